"""What weights have seen: hashes in the file, carried from encoder to model, and compared with a study's cases."""

import csv
import json

import pytest
import torch

from voxprior.cards import SplitCard
from voxprior.commands import split
from voxprior.configuration import Split
from voxprior.data import cache, seen
from voxprior.data.files import sha256_of
from voxprior.errors import Refusal
from voxprior.nets.weights import write_weights


@pytest.fixture
def study(tmp_path):
    """Ten labelled cases of the study's own dataset, two of another, with hashes as intake gives them."""
    cases = [
        {
            "case": f"c{i}", "patient": f"p{i}", "person": f"d/p{i}", "label": "x", "class_voxels": [5],
            "twin_sha256": twin(f"c{i}"),
        }
        for i in range(10)
    ]  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"format": cache.FORMAT, "cases": cases}))
    for dataset, names in (("own", [case["case"] for case in cases]), ("other", ["x0", "x1"])):
        with open(tmp_path / f"{dataset}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("case", "dataset", "person", "label", "twin_sha256"))
            writer.writerows((name, dataset, f"{dataset}/{name}", "l", twin(name)) for name in names)
    return tmp_path


def twin(name):
    return (name.encode().hex() + "0" * 64)[:64]


def write(path, saw):
    write_weights(path, {"a": torch.zeros(1)}, {"seen": saw.to_json()} if saw else {})
    return path


def run(study, file, allow=False):
    card = SplitCard(split=Split(test=3, budgets=[1]), allow_leakage=allow, files={"mine": sha256_of(file)})
    (study / "card.json").write_text(card.model_dump_json())
    tables = [study / "own.csv", study / "other.csv"]
    out = study / "splits.json", study / "leakage.json"
    split.run(study / "card.json", study / "index.json", tables, *out, files=[f"mine={file}"])
    return json.loads(out[1].read_text()), json.loads(out[0].read_text())["folds"][0]


def test_a_model_has_seen_what_its_encoder_has(study, tmp_path):
    index = study / "index.json"
    pool = seen.of_cases([(index, ["c1", "c2"])], labels=False)
    encoder = write(tmp_path / "encoder.safetensors", pool)
    model = seen.of_cases([(index, ["c3"])], labels=True, start=encoder)
    assert model.scans == {twin(name)[:16] for name in ("c1", "c2", "c3")}
    assert model.labelled == {twin("c3")[:16]} and model.complete
    assert seen.read(write(tmp_path / "model.safetensors", model)) == model
    foreign = write(tmp_path / "foreign.safetensors", None)
    assert seen.read(foreign) is None
    assert not seen.of_cases([(index, ["c3"])], labels=True, start=foreign).complete
    content = json.loads(index.read_text())
    content["cases"][3].pop("twin_sha256")  # an index of an older version
    (tmp_path / "older.json").write_text(json.dumps(content))
    assert not seen.of_cases([(tmp_path / "older.json", ["c3"])], labels=True).complete
    (tmp_path / "no.safetensors").write_bytes(b"pickle")
    with pytest.raises(Refusal, match="cannot be read as safetensors"):
        seen.read(tmp_path / "no.safetensors")


def test_a_file_that_has_seen_other_scans_passes_and_is_told(study):
    told, _ = run(study, write(study / "f", seen.Seen(frozenset({"ab" * 8}))))
    assert told["found"] == []
    assert told["files"] == [{"name": "mine", "sha256": sha256_of(study / "f"), "known": "all", "scans": 1}]
    told, _ = run(study, write(study / "f", seen.Seen(frozenset({"ab" * 8}), complete=False)))
    assert told["files"][0]["known"] == "part"
    told, _ = run(study, write(study / "f", None))
    assert (told["files"][0]["known"], told["files"][0]["scans"]) == ("nothing", 0)


def test_a_scored_scan_that_a_file_has_seen_is_refused_or_stamped(study):
    clean = write(study / "f", seen.Seen())
    fold = run(study, clean)[1]
    for case in (fold["test"][0], "x1"):
        file = write(study / "f", seen.Seen(frozenset({twin(case)[:16]})))
        name = f"other/{case}" if case == "x1" else f"own/{case}"
        with pytest.raises(Refusal, match=f"1 scored cases .*files.mine and {name} share their voxels.*allow_leakage"):
            run(study, file)
        told, _ = run(study, file, allow=True)
        assert told["found"] == [{"learned": "files.mine", "scored": name, "shared": "voxels", "folds": [0]}]
    run(study, write(study / "f", seen.Seen(frozenset({twin(fold["train"][0])[:16]}))))  # as pretraining may


def test_labels_that_the_budgets_count_as_new_are_refused(study):
    case = run(study, write(study / "f", seen.Seen()))[1]["train"][0]
    known = frozenset({twin(case)[:16]})
    file = write(study / "f", seen.Seen(known, known))
    with pytest.raises(Refusal, match=f"files.mine was trained with the labels of 1 cases .*own/{case}"):
        run(study, file)
    assert run(study, file, allow=True)[0]["found"][0]["shared"] == "labels"


def test_a_file_that_has_changed_is_refused(study):
    file = write(study / "f", None)
    card = SplitCard(split=Split(test=3, budgets=[1]), files={"mine": "0" * 64})
    (study / "card.json").write_text(card.model_dump_json())
    out = study / "splits.json", study / "leakage.json"
    with pytest.raises(Refusal, match="has changed since its card was written"):
        split.run(study / "card.json", study / "index.json", [study / "own.csv"], *out, files=[f"mine={file}"])


def test_cards_of_studies_without_files_keep_their_hash():
    assert "files" not in SplitCard(split=Split(test=3, budgets=[1])).model_dump(mode="json")
