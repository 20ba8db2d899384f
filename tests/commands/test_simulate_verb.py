import json

import pytest

from voxprior.cards import FetchCard, SimulateCard
from voxprior.commands import fetch, simulate
from voxprior.configuration import Layout, Simulate, Source
from voxprior.data import phantoms
from voxprior.data.manifest import files_of, read_manifest
from voxprior.errors import Refusal

LAYOUT = Layout(kind="folder", images="images/{case}.nii.gz", labels="labels/{case}.nii.gz")


def make(place, cases, patients):
    scans = phantoms.write_folder(place / "scans", cases=cases)
    (place / "fetch.json").write_text(
        FetchCard(dataset="own", source=Source(kind="folder", path=str(scans))).model_dump_json()
    )
    fetch.run(place / "fetch.json", place / "raw/own/manifest.json", None)
    card = SimulateCard(dataset="own", layout=LAYOUT, simulate=Simulate(patients=patients, spacing_zyx_mm=(4, 4, 4)))
    (place / "card.json").write_text(card.model_dump_json())
    simulate.run(place / "card.json", place / "raw/own/manifest.json", place / "sim/own/manifest.json")
    return read_manifest(place / "sim/own/manifest.json")


def test_patients_come_with_a_manifest_that_says_simulated(tmp_path):
    content = make(tmp_path, 1, 2)
    assert content["simulated"] is True
    root, files = files_of(content, tmp_path / "sim/own/manifest.json")
    assert files == [f"{kind}/sim_00{i}.nii.gz" for kind in ("images", "labels") for i in range(2)]
    assert all((root / file).is_file() for file in files)


def test_a_smaller_cohort_leaves_no_patient_of_the_larger_one(tmp_path):
    make(tmp_path, 1, 3)
    assert len(make(tmp_path, 1, 2)["files"]) == 4
    assert len(list((tmp_path / "sim/own").rglob("*.nii.gz"))) == 4
    assert json.loads((tmp_path / "sim/own/manifest.json").read_text())["root"] == "."


def test_more_than_one_labelled_scan_is_refused(tmp_path):
    with pytest.raises(Refusal, match="2 labelled cases"):
        make(tmp_path, 2, 1)
