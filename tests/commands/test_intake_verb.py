import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.cards import FetchCard, IntakeCard, PrepareCard
from voxprior.commands import fetch, intake, prepare
from voxprior.configuration import Intensity, Layout, Prepare, Source
from voxprior.data import cache, phantoms, volume
from voxprior.errors import Refusal


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phantoms.write_decathlon(tmp_path / "scans", cases=3, unlabelled=1)
    (tmp_path / "fetch.json").write_text(
        FetchCard(dataset="own", source=Source(kind="folder", path="scans")).model_dump_json()
    )
    fetch.run(tmp_path / "fetch.json", tmp_path / "raw/own/manifest.json", None)
    card = IntakeCard(dataset="own", layout=Layout(kind="decathlon"), classes={"a": [1]})
    (tmp_path / "card.json").write_text(card.model_dump_json())
    return tmp_path


def look(place, workers=1):
    where = [place / name for name in ("card.json", "raw/own/manifest.json", "cases.csv", "quarantine.csv")]
    intake.run(*where, workers=workers)
    return [list(csv.DictReader((place / name).open(newline=""))) for name in ("cases.csv", "quarantine.csv")]


def test_intake_lists_cases_and_sets_broken_ones_aside(place):
    (place / "scans/imagesTr/phantom_001.nii.gz").write_bytes(b"")
    cases, aside = look(place)
    assert [row["case"] for row in cases] == ["phantom_000", "phantom_002", "phantom_003"]
    assert [row["case"] for row in aside] == ["phantom_001"]
    assert [bool(row["label"]) for row in cases] == [True, True, False]
    assert cases[0]["person"] == "own/phantom_000"
    assert cases[0]["image"] == "scans/imagesTr/phantom_000.nii.gz"


def test_two_processes_say_what_one_says_and_remember_it(place):
    (place / "scans/imagesTr/phantom_001.nii.gz").write_bytes(b"")
    alone = look(place), (place / "fingerprint.json").read_bytes()
    for remembered in ("nothing", "all but one"):
        lines = (place / "examined.jsonl").read_text().splitlines(keepends=True)
        (place / "examined.jsonl").write_text("" if remembered == "nothing" else "".join(lines[:-1]))
        assert (look(place, workers=2), (place / "fingerprint.json").read_bytes()) == alone
        assert len((place / "examined.jsonl").read_text().splitlines()) == len(lines)


def test_intake_refuses_when_nothing_is_left_and_says_why(place):
    for path in (place / "scans").rglob("*.nii.gz"):
        path.write_bytes(b"")
    with pytest.raises(Refusal, match="none of its 4 cases can be used, the first because .* has zero bytes"):
        look(place)
    assert (place / "quarantine.csv").is_file() and not (place / "cases.csv").exists()


# ------------------------------------------------------------------------------------------------- a file per class
PER_CLASS = Layout(kind="folder", images="{case}/ct.nii.gz", labels="{case}/segmentations/{class}.nii.gz")
VALUES = {"one": [7], "two": [3], "three": [255]}  # not in the order of the files


@pytest.fixture
def per_class(place):
    """Cases 0 to 4 with files per class, case 5 without."""
    shutil.rmtree(place / "scans")
    phantoms.write_per_class(place / "scans", cases=5, unlabelled=1)
    refetch(place)
    return place


def refetch(place, classes=VALUES):
    (place / "raw/own/manifest.json").unlink(missing_ok=True)
    fetch.run(place / "fetch.json", place / "raw/own/manifest.json", None)
    (place / "card.json").write_text(IntakeCard(dataset="own", layout=PER_CLASS, classes=classes).model_dump_json())


def class_file(place, case, name):
    return place / f"scans/phantom_{case:03d}/segmentations/{name}.nii.gz"


def rewrite(path, change, spacing_zyx_mm=None):
    image = sitk.ReadImage(str(path))
    grid = volume.Grid.of(image)
    grid = phantoms.grid_of(grid.shape_zyx, spacing_zyx_mm, "RAS") if spacing_zyx_mm else grid
    volume.write_image(volume.from_array(change(sitk.GetArrayFromImage(image)), grid), path)


def test_files_per_class_become_one_label_map_that_prepare_reads(per_class):
    cases, aside = look(per_class)
    assert len(cases) == 6 and not aside
    assert cases[0]["label"] == "labels/phantom_000.nii.gz" and cases[5]["label"] == ""
    assert {row["repairs"] for row in cases} == {""}
    merged = sitk.ReadImage(cases[2]["label"])
    expected = np.array([0, 7, 3, 255])[phantoms.make(2)[1]]
    assert merged.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(merged), expected)
    assert not list(per_class.rglob("*.part*"))
    scale = Prepare(spacing_zyx_mm=phantoms.SPACING_ZYX_MM, intensity=Intensity(kind="window", low=-1000, high=1000))
    card = PrepareCard(dataset="own", classes=[[255], [7]], prepare=scale)
    (per_class / "prepare.json").write_text(card.model_dump_json())
    prepare.run(per_class / "prepare.json", per_class / "cases.csv", per_class / "p/index.json", 1)
    entries = cache.read_index(per_class / "p/index.json")["cases"]
    assert entries[2]["class_voxels"] == [int((expected == 255).sum()), int((expected == 7).sum())]
    assert entries[5]["label"] is None


def test_unusable_class_files_set_their_case_aside(per_class):
    class_file(per_class, 0, "two").unlink()
    rewrite(class_file(per_class, 1, "one"), lambda a: a, spacing_zyx_mm=(3.0, 2.0, 2.1))
    rewrite(class_file(per_class, 2, "three"), lambda a: a * np.where(np.arange(a.shape[2]) % 2, 1, 2).astype(np.uint8))
    class_file(per_class, 3, "one").write_bytes(class_file(per_class, 3, "one").read_bytes()[:-20])
    rewrite(class_file(per_class, 4, "one"), lambda a: a[:, :, 1:])
    refetch(per_class)
    cases, aside = look(per_class)
    assert [row["case"] for row in cases] == ["phantom_005"]
    expected = [
        ("ct.nii.gz", "has no label file of class two", "restore it"),
        ("one.nii.gz", "beside its image", "export both on one grid"),
        ("three.nii.gz", "more than one value beside 0", "export it again"),
        ("one.nii.gz", "truncated or damaged", "copy it again"),
        ("one.nii.gz", "voxels where its image has", "export both on one grid"),
    ]
    for row, (file, defect, advice) in zip(aside, expected, strict=True):
        assert row["file"].endswith(file) and defect in row["defect"] and row["advice"].startswith(advice), row
        assert "scans/" not in row["defect"]
    assert not list((per_class / "labels").glob("*"))


def test_where_files_overlap_the_greater_value_is_kept_and_counted(per_class):
    one, two, three = (class_file(per_class, 0, name) for name in ("one", "two", "three"))
    where = sitk.GetArrayFromImage(sitk.ReadImage(str(two))) > 0
    for path in (one, three):
        rewrite(path, lambda a: np.where(where, 255, 255 * a).astype(np.uint8))  # 0 and 255 are binary too
    refetch(per_class)
    first = look(per_class)[0][0]
    assert first["repairs"].startswith(f"{where.sum()} voxels in files of several classes")
    merged = sitk.GetArrayFromImage(sitk.ReadImage(first["label"]))
    assert set(merged[where]) == {255} and set(np.unique(merged)) == {0, 7, 255}


def test_a_second_run_merges_only_what_changed(per_class):
    first, _ = look(per_class)
    label, other = Path(first[0]["label"]), Path(first[1]["label"])
    before = label.stat().st_mtime_ns, other.stat().st_mtime_ns
    rewrite(class_file(per_class, 1, "one"), lambda a: 0 * a)
    refetch(per_class)
    assert look(per_class)[0] == first
    assert label.stat().st_mtime_ns == before[0] and other.stat().st_mtime_ns > before[1]
    assert 7 not in sitk.GetArrayFromImage(sitk.ReadImage(str(other)))
    label.write_bytes(b"damaged")
    assert look(per_class)[0] == first
    assert 7 in sitk.GetArrayFromImage(sitk.ReadImage(str(label)))


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"one": [1, 2], "two": [3]}, "class one has the values"),
        ({"one": [256], "two": [3]}, "class one has the values"),
        ({"one": [], "two": [3]}, "class one has the values"),
        ({"one": [1], "two": [1]}, "classes one and two both have the value 1"),
    ],
)
def test_classes_without_a_value_of_their_own_are_refused(per_class, classes, words):
    refetch(per_class, classes)
    with pytest.raises(Refusal, match=words):
        look(per_class)
