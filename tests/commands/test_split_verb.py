import csv
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
    write_cases(tmp_path / "own.csv", "d", [case["case"] for case in cases])
    write_cases(tmp_path / "other.csv", "other", ["x0", "x1"])
    return tmp_path / "index.json"


def write_cases(path, dataset, cases, **twins):
    """Writes a case table; `twins` gives cases the hash of another."""
    columns = ("case", "dataset", "person", "label", "twin_sha256")
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows((case, dataset, f"{dataset}/{case}", "l", twins.get(case, dataset + case)) for case in cases)


def make(index, allow_leakage=False, **numbers):
    card = index.with_name("card.json")
    card.write_text(SplitCard(split=Split(**numbers), allow_leakage=allow_leakage).model_dump_json())
    tables = [index.with_name("own.csv"), index.with_name("other.csv")]
    split.run(card, index, tables, index.with_name("splits.json"), index.with_name("leakage.json"))
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


def test_a_copy_in_another_dataset_is_refused_or_told(index):
    quiet = make(index, test=3, val=1, budgets=[1])
    assert json.loads(index.with_name("leakage.json").read_text()) == {
        "format": 1, "allowed": False, "cases": {"d": 11, "other": 2}, "found": [],
    }  # fmt: skip
    learned = quiet["folds"][0]["train"][0]
    write_cases(index.with_name("other.csv"), "other", ["x0", "x1"], x1="d" + learned)
    with pytest.raises(Refusal, match=f"1 scored cases .*d/{learned} and other/x1 share their voxels.*allow_leakage"):
        make(index, test=3, val=1, budgets=[1])
    assert make(index, allow_leakage=True, test=3, val=1, budgets=[1]) == quiet
    told = json.loads(index.with_name("leakage.json").read_text())
    assert told["allowed"] is True
    assert told["found"] == [{"learned": f"d/{learned}", "scored": "other/x1", "shared": "voxels", "folds": [0]}]


def test_a_table_without_hashes_is_refused(index):
    index.with_name("own.csv").write_text("case,dataset\nc0,d\n")
    with pytest.raises(Refusal, match="own.csv is of an older version, .*: run 'intake' again"):
        make(index, test=3, val=1, budgets=[1])
