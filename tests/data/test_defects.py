"""Every kind of bad input gets its row: accepted, repaired and named, or set aside; never a traceback."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "results" / "bad_input.csv"


def load():
    """Imports defects.py, which is a script beside this test."""
    spec = importlib.util.spec_from_file_location("defects_of_scans", HERE / "defects.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


corpus = load()
COMMITTED = {row["defect"]: row for row in csv.DictReader(TABLE.open(encoding="utf-8", newline=""))}


@pytest.mark.parametrize("one", corpus.DEFECTS, ids=lambda one: one.name)
def test_what_is_broken_is_named_and_the_others_go_on(one, tmp_path, monkeypatch):
    for folder in (tmp_path, *tmp_path.parents):  # for the one that gives up its rights
        if folder.owner() == tmp_path.owner() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)
    monkeypatch.chdir(tmp_path)
    seen = corpus.run(one, tmp_path)
    assert seen.outcome == one.outcome, seen
    assert "Traceback" not in seen.output and seen.seconds <= 5
    assert seen.exit == (2 if one.outcome == "refused" else 0)
    if one.outcome in ("quarantined", "refused"):
        assert "\n" not in seen.says
        what, _, advice = seen.says.rpartition(": ")
        assert len(advice) > 8 and len(what) > 20
    # The table in the docs says what the command line says: `python tests/data/defects.py --table <it>` writes it anew.
    assert corpus.row_of(one, seen) == COMMITTED[one.name]


def test_the_table_lists_the_corpus_and_nothing_else():
    names = [one.name for one in corpus.DEFECTS]
    assert len(set(names)) == len(names) >= 60
    assert list(COMMITTED) == names


def test_pictures_are_drawn_of_what_can_be_read():
    drawn = {row["defect"]: row["picture"] for row in COMMITTED.values() if row["outcome"] == "quarantined"}
    assert not drawn["zero bytes"] and not drawn["missing since it was fetched"] and not drawn["not readable"]
    for name in ("NaN", "constant", "2-D", "4-D, two frames", "colours", "spacing huge", "labels of another shape"):
        assert drawn[name] == "yes", name
