"""An init that is a file of weights has a title and no pretraining."""

import pytest

from voxprior.errors import Refusal
from voxprior.study import cells, facts

STUDY = {
    "split": {"budgets": [1]},
    "inits": {"vit": ["mine", "scratch"], "cnn": ["other"]},
    "files": {"mine": {"title": ""}, "other": {"title": "Theirs"}},
}


def test_nothing_is_read_of_a_pretraining_that_was_not_made(tmp_path):
    assert cells.pretrained(STUDY) == []
    assert facts.titles(tmp_path, STUDY) == {"scratch": "From scratch", "mine": "mine", "other": "Theirs"}
    with_method = {**STUDY, "inits": {"vit": ["scratch", "mae", "mine"]}}
    assert cells.pretrained(with_method) == [("vit", "mae")]
    with pytest.raises(Refusal, match="summary.json is missing"):
        facts.titles(tmp_path, with_method)
