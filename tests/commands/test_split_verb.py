import json

import pytest

from voxprior.cards import SplitCard
from voxprior.commands import split
from voxprior.configuration import Split
from voxprior.data import cache
from voxprior.data.files import sha256_of_json
from voxprior.errors import Refusal


@pytest.fixture
def index(tmp_path):
    cases = [
        {
            "case": f"c{i}",
            "patient": f"p{i}",
            "person": f"d/p{i}",
            "label": "x" if i < 9 else None,
            "class_voxels": [5, 0],
        }
        for i in range(11)
    ]
    (tmp_path / "index.json").write_text(json.dumps({"format": cache.FORMAT, "cases": cases}))
    return tmp_path / "index.json"


def make(index, **numbers):
    card = index.with_name("card.json")
    card.write_text(SplitCard(split=Split(**numbers)).model_dump_json())
    split.run(card, index, index.with_name("splits.json"))
    return json.loads(index.with_name("splits.json").read_text())


def test_the_lists_are_frozen_with_their_hash(index):
    content = make(index, test=3, val=1, budgets=[1, 4])
    assert content["format"] == 1 and content["sha256"] == sha256_of_json(content["folds"])
    fold = content["folds"][0]
    assert {name: len(fold[name]) for name in ("test", "val", "train", "pool")} == {
        "test": 3, "val": 1, "train": 5, "pool": 7,
    }  # fmt: skip
    assert fold["budgets"]["4"] == fold["train"][:4]


def test_a_budget_beyond_the_training_set_is_refused(index):
    with pytest.raises(Refusal, match="larger than the 5"):
        make(index, test=3, val=1, budgets=[6])
