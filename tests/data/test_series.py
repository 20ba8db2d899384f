import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.configuration import Layout
from voxprior.data import intake, layouts, phantoms, series, volume
from voxprior.errors import Refusal

DICOM = Layout(kind="dicom", images="scans/{case}", labels="labels/{case}.nii.gz")


def scan(index: int = 0, orientation: str = "LPS", shape_zyx=(10, 12, 14)) -> sitk.Image:
    return volume.from_array(phantoms.make(index, shape_zyx)[0], phantoms.grid_of(shape_zyx, orientation=orientation))


def files(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


def look(root: Path, layout: Layout = DICOM):
    entries = layouts.list_cases(layout, root, files(root))
    return list(intake.examine(entries, root, intake.Identity("d"), notes=intake.Notes(root / "out")))


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "tilted"])
def test_a_series_is_read_as_the_volume_it_was(tmp_path, orientation):
    before = scan(orientation=orientation)
    phantoms.write_series(tmp_path / "scans/a", before)
    ((kind, row),) = look(tmp_path)
    assert kind == "case", row
    after = volume.read_scan(row["image"])
    # A left-handed file cannot exist in DICOM: compare in LPS, where both are turned the same way.
    (one, first), (two, second) = volume.to_lps(before), volume.to_lps(after)
    assert np.array_equal(one, two)
    assert np.allclose(first.corners_mm(), second.corners_mm(), atol=1e-4)
    assert row["spacing_zyx_mm"] == "3 2 2"


def test_series_of_one_folder_are_separated_and_belong_to_one_patient(tmp_path):
    phantoms.write_series(tmp_path / "scans/a", scan(0), number=1)
    phantoms.write_series(tmp_path / "scans/a", scan(1), number=2)
    phantoms.write_series(tmp_path / "scans/b", scan(2), number=3)
    (tmp_path / "scans/a/notes.txt").write_text("no scan")
    rows = [row for kind, row in look(tmp_path) if kind == "case"]
    assert [(row["case"], row["patient"]) for row in rows] == [("a_s1", "a"), ("a_s2", "a"), ("b", "b")]
    assert len({row["content_sha256"] for row in rows}) == 3


def test_patients_are_told_apart_by_a_hash_of_their_id(tmp_path):
    for number, patient in enumerate(("Ann", "Ann", "Bob"), 1):
        phantoms.write_series(tmp_path / f"scans/{number}", scan(number), number, patient)
    patients = [row["patient"] for _, row in look(tmp_path)]
    assert patients[0] == patients[1] != patients[2]
    assert not {"Ann", "Bob"} & set(patients)


def test_a_label_map_lies_beside_the_series(tmp_path):
    phantoms.write_series(tmp_path / "scans/a", scan())
    labels = volume.from_array(phantoms.make(0, (10, 12, 14))[1], volume.Grid.of(scan()))
    volume.write_image(labels, tmp_path / "labels/a.nii.gz")
    ((kind, row),) = look(tmp_path)
    assert kind == "case" and row["label"].endswith("labels/a.nii.gz") and row["repairs"] == ""


def defect(root: Path) -> str:
    ((kind, row),) = look(root)
    assert kind == "quarantine"
    return f"{row['file']} {row['defect']}: {row['advice']}"


def test_a_missing_slice_is_refused_with_its_place(tmp_path):
    phantoms.write_series(tmp_path / "scans/a", scan(), leave_out=4)
    said = defect(tmp_path)
    assert "scans/a" in said and "series a lacks 1 of its slices between -291 and -285 mm" in said
    assert "IM021_1.dcm and IM035_1.dcm" in said


def test_a_doubled_slice_is_refused(tmp_path):
    folder = phantoms.write_series(tmp_path / "scans/a", scan())
    (folder / "IM900_1.dcm").write_bytes((folder / "IM021_1.dcm").read_bytes())
    assert "has two slices at -291 mm, IM021_1.dcm and IM900_1.dcm" in defect(tmp_path)


def test_mixed_sizes_and_orientations_are_refused(tmp_path):
    phantoms.write_series(tmp_path / "scans/a", scan(), leave_out=9)
    phantoms.write_series(tmp_path / "other", scan(shape_zyx=(10, 12, 16)))
    os.replace(tmp_path / "other/IM063_1.dcm", tmp_path / "scans/a/IM063_1.dcm")
    assert "different size in voxels, 14 12 in" in defect(tmp_path)
    phantoms.write_series(tmp_path / "other", scan(orientation="tilted"))
    os.replace(tmp_path / "other/IM063_1.dcm", tmp_path / "scans/a/IM063_1.dcm")
    assert "different orientation" in defect(tmp_path)


def test_a_sheared_series_and_uneven_distances_are_refused(tmp_path):
    upright = scan()
    folder = phantoms.write_series(tmp_path / "a", upright)
    paths = sorted(folder.iterdir())
    assert len(series.order(paths, "s")[0]) == 10
    for change, word in ((0.9, "sheared"), (0.0, "uneven")):
        tilted = volume.from_array(sitk.GetArrayFromImage(upright), volume.Grid.of(upright))
        writer = folder.parent / f"b{change}"
        for place in range(10):
            origin = [0.0, change * place, 3.0 * place + (0.0 if change or place < 5 else 0.8)]
            tilted.SetOrigin(origin)
            phantoms.write_series(writer / str(place), tilted[:, :, :2], leave_out=1)
        ours = sorted(writer.rglob("*.dcm"))
        with pytest.raises(Refusal, match=word):
            series.order(ours, "s")


def test_damaged_files_are_not_left_out_silently(tmp_path):
    folder = phantoms.write_series(tmp_path / "scans/a", scan())
    last = folder / "IM063_1.dcm"
    last.write_bytes(b"\0" * 200)
    assert "IM063_1.dcm beside its slices is damaged" in defect(tmp_path)
    for path in folder.iterdir():
        path.write_bytes(b"\0" * 200)
    assert "is damaged" in defect(tmp_path)


def test_a_file_that_vanishes_later_is_named(tmp_path):
    folder = phantoms.write_series(tmp_path / "scans/a", scan())
    ((_, row),) = look(tmp_path)
    (folder / "IM021_1.dcm").unlink()
    with pytest.raises(Refusal, match=r"IM021_1\.dcm, which is missing"):
        volume.read_scan(row["image"])


def test_several_channels_are_refused(tmp_path):
    with pytest.raises(Refusal, match="takes one channel"):
        layouts.list_cases(DICOM, tmp_path, ["scans/a/1.dcm"], channels=["t1", "t2"])
