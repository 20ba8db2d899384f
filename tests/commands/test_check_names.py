"""check: names of files and of recipes that mean nothing are refused before any work."""

from types import SimpleNamespace

import pytest

from voxprior.commands import check
from voxprior.errors import Refusal


def resolved(**changes):
    study = {"inits": {"vit": ["scratch", "mae", "mine"]}, "files": {"mine": None}, "recipes": {"vit": {}}}
    return SimpleNamespace(study=SimpleNamespace(**{**study, **changes}))


def test_files_that_inits_name_and_recipes_of_the_studys_backbones_pass():
    check.check_names(resolved())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"files": {"mae": None}}, "files.mae is called like an init that is no file"),
        ({"files": {"scratch": None}}, "files.scratch is called like"),
        ({"files": {"mine": None, "forgotten": None}}, "files.forgotten stands in no list of inits"),
        ({"inits": {"vit": ["mae", "mae"]}, "files": {}}, "inits.vit names mae twice"),
        ({"recipes": {"mae": {}}}, "recipes.mae is no backbone of this study"),
        ({"recipes": {"cnn": {}}}, "recipes.cnn is no backbone of this study: choose from vit"),
    ],
)
def test_names_that_mean_nothing_are_refused(changes, says):
    with pytest.raises(Refusal, match=says):
        check.check_names(resolved(**changes))
