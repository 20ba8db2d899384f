import json

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.cards import FetchCard, IntakeCard, PrepareCard, card_hash
from voxprior.commands import fetch, intake, prepare
from voxprior.configuration import Intensity, Layout, Prepare, Source
from voxprior.data import cache, phantoms, volume

SCALE = Prepare(spacing_zyx_mm=(2.0, 2.0, 2.0), intensity=Intensity(kind="window", low=-1000, high=1000))
CARD = PrepareCard(dataset="own", classes=[[1, 2], [], [3]], prepare=SCALE)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phantoms.write_folder(tmp_path / "scans", cases=2, unlabelled=1, orientation="PIR")
    layout = Layout(kind="folder", images="images/{case}.nii.gz", labels="labels/{case}.nii.gz")
    cards = {
        "fetch": FetchCard(dataset="own", source=Source(kind="folder", path="scans")),
        "intake": IntakeCard(dataset="own", layout=layout, classes={"a": [1]}),
        "prepare": CARD,
    }
    for name, card in cards.items():
        (tmp_path / f"{name}.json").write_text(card.model_dump_json())
    fetch.run(tmp_path / "fetch.json", tmp_path / "raw/own/manifest.json", None)
    intake.run(
        tmp_path / "intake.json", tmp_path / "raw/own/manifest.json", tmp_path / "cases.csv", tmp_path / "aside.csv"
    )
    return tmp_path


def make(place, workers=1):
    prepare.run(place / "prepare.json", place / "cases.csv", place / "p/index.json", workers)
    return cache.read_index(place / "p/index.json")


def test_the_index_names_grids_classes_and_hashes(place):
    index = make(place)
    assert (index["key"], index["classes"], index["simulated"]) == (card_hash(CARD), [1, 3], False)
    first, _, last = index["cases"]
    assert first["spacing_zyx_mm"] == [2, 2, 2]
    assert first["class_voxels"][1] == 0 and min(first["class_voxels"][0], first["class_voxels"][2]) > 0
    assert (last["label"], last["label_sha256"], last["class_voxels"]) == (None, None, [0, 0, 0])
    assert cache.open_case(place / "p/index.json", first["case"]).shape_zyx == tuple(first["shape_zyx"])
    assert not list((place / "p").rglob("*.part"))


def test_cached_labels_go_back_to_the_files_own_grid(place):
    entry = make(place)["cases"][0]
    case = cache.open_case(place / "p/index.json", entry["case"])
    back = volume.to_native(case.read_label((0, 0, 0), case.shape_zyx), entry["grid"], entry["raw"])
    raw = sitk.ReadImage(entry["raw_label"])
    assert back.GetSize() == raw.GetSize() and np.allclose(back.GetDirection(), raw.GetDirection())
    found, labels = sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(raw)
    for number, values in ((1, (1, 2)), (3, (3,))):
        expected = np.isin(labels, values)
        assert 2 * np.sum((found == number) & expected) / (np.sum(found == number) + np.sum(expected)) > 0.95


def test_a_second_run_changes_no_file(place):
    make(place)
    before = {path: path.stat().st_mtime_ns for path in (place / "p/volumes").iterdir()}
    make(place)
    assert before == {path: path.stat().st_mtime_ns for path in (place / "p/volumes").iterdir()}


@pytest.mark.slow
def test_two_processes_make_the_same_index(place):
    one = make(place)
    text = (place / "p/index.json").read_text()
    for path in (place / "p/volumes").iterdir():
        path.unlink()
    (place / "p/index.json").unlink()
    assert make(place, workers=2) == one
    assert (place / "p/index.json").read_text() == text


def test_a_changed_card_makes_the_cases_again(place):
    make(place)
    other = CARD.model_copy(update={"prepare": SCALE.model_copy(update={"spacing_zyx_mm": (3.0, 3.0, 3.0)})})
    (place / "prepare.json").write_text(other.model_dump_json())
    assert json.loads(json.dumps(make(place)))["cases"][0]["spacing_zyx_mm"] == [3, 3, 3]
