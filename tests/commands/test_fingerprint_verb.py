import json

import pytest
import yaml

from voxprior.cards import IntakeCard
from voxprior.commands import fingerprint, intake
from voxprior.configuration import Layout, Prepare
from voxprior.data import phantoms
from voxprior.data.manifest import write_manifest
from voxprior.errors import Refusal


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phantoms.write_folder(tmp_path / "scans", cases=3, unlabelled=1)
    write_manifest(tmp_path / "raw/manifest.json", "own", tmp_path / "scans", [])
    layout = Layout(kind="folder", images="images/{case}.nii.gz", labels="labels/{case}.nii.gz")
    card = IntakeCard(dataset="own", layout=layout, classes={"one": [1], "two": [2], "never": [9]}, modality="ct")
    (tmp_path / "card.json").write_text(card.model_dump_json())
    intake.run(tmp_path / "card.json", tmp_path / "raw/manifest.json", tmp_path / "i/cases.csv", tmp_path / "i/q.csv")
    return tmp_path / "i/fingerprint.json"


def test_the_proposal_is_yaml_that_a_study_takes(told, capsys):
    capsys.readouterr()
    fingerprint.run(told)
    said = capsys.readouterr().out
    proposed = yaml.safe_load(said[said.index("prepare:") :])
    content = json.loads(told.read_text())["proposal"]
    assert proposed["finetune"] == content["finetune"] == {"crop_vox": [32, 32, 32]}
    assert Prepare(**proposed["prepare"]).model_dump(mode="json") == Prepare(**content["prepare"]).model_dump(
        mode="json"
    )
    assert proposed["prepare"]["spacing_zyx_mm"] == list(phantoms.SPACING_ZYX_MM)
    assert "own: 4 cases, 3 labelled, ct" in said and "never" in said
    assert all(why in said for why in content["why"])


def test_another_intake_writes_the_same_fingerprint(told):
    before = told.read_bytes()
    folder = told.parents[1]
    assert len((folder / "i/examined.jsonl").read_text().splitlines()) == 4
    intake.run(folder / "card.json", folder / "raw/manifest.json", folder / "i/cases.csv", folder / "i/q.csv")
    assert told.read_bytes() == before
    assert len((folder / "i/examined.jsonl").read_text().splitlines()) == 4


def test_what_is_no_fingerprint_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"cases": 3}')
    with pytest.raises(Refusal, match="x.json is no fingerprint of a dataset: run 'intake' again"):
        fingerprint.run(tmp_path / "x.json")
