import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.data import intake, phantoms, volume
from voxprior.data.entries import Entry
from voxprior.errors import Refusal


def save(path, array, **grid):
    volume.write_image(volume.from_array(array, phantoms.grid_of(array.shape, **grid)), path)


def look(root, *entries, **identity):
    return list(intake.examine(entries, root, intake.Identity("d", **identity)))


@pytest.fixture
def root(tmp_path):
    for index in range(2):
        voxels, labels = phantoms.make(index)
        save(tmp_path / f"i{index}.nii.gz", voxels)
        save(tmp_path / f"l{index}.nii.gz", labels)
    return tmp_path


def test_a_good_case_gets_its_row(root):
    ((kind, row),) = look(root, Entry("c0_s1", "i0.nii.gz", "l0.nii.gz"), patient=r"^(c\d)_")
    assert kind == "case"
    assert (row["patient"], row["person"], row["shape_zyx"], row["spacing_zyx_mm"]) == (
        "c0",
        "d/c0",
        "24 28 26",
        "3 2 2",
    )
    assert (row["simulated"], row["repairs"]) == ("false", "")
    assert tuple(row) == intake.CASES


def test_others_go_on_when_one_case_is_broken(root):
    (root / "i0.nii.gz").write_bytes(b"")
    (first, aside), (second, _) = look(root, Entry("c0", "i0.nii.gz", None), Entry("c1", "i1.nii.gz", "l1.nii.gz"))
    assert (first, second) == ("quarantine", "case")
    assert aside["defect"] == "has zero bytes" and aside["advice"] == "copy or export it again"
    assert aside["file"].endswith("i0.nii.gz") and tuple(aside) == intake.QUARANTINE


@pytest.mark.parametrize(
    ("grid", "cut", "word"),
    [
        ({}, 1, "24x28x25 voxels where its image has 24x28x26"),
        ({"spacing_zyx_mm": (3.0, 2.0, 2.1)}, 0, "beside its image"),
        ({"orientation": "RAS"}, 0, "beside its image"),
        ({"orientation": "tilted"}, 0, "beside its image"),
    ],
)
def test_labels_of_another_geometry_are_set_aside(root, grid, cut, word):
    labels = phantoms.make(0)[1]
    save(root / "l0.nii.gz", labels[:, :, : 26 - cut], **grid)
    ((kind, row),) = look(root, Entry("c0", "i0.nii.gz", "l0.nii.gz"))
    assert kind == "quarantine" and word in row["defect"] and row["file"].endswith("l0.nii.gz")


def test_a_small_shift_is_repaired_and_named(root):
    image = volume.from_array(phantoms.make(0)[1], phantoms.grid_of(phantoms.SHAPE_ZYX))
    image.SetOrigin([value + 0.05 for value in image.GetOrigin()])
    volume.write_image(image, root / "l0.nii.gz")
    ((kind, row),) = look(root, Entry("c0", "i0.nii.gz", "l0.nii.gz"))
    assert kind == "case" and row["repairs"] == "label geometry off by 0.05 mm, the image's is used"


def test_the_content_hash_sees_through_headers_types_and_compression(root):
    voxels = phantoms.make(0)[0]
    plain = sitk.GetImageFromArray(voxels)
    moved = volume.from_array(voxels.astype(np.float64), phantoms.grid_of(voxels.shape, (5.0, 1.0, 1.0), "RAS"))
    assert intake.content_sha256(plain) == intake.content_sha256(moved)
    voxels[3, 4, 5] += 1
    assert intake.content_sha256(plain) != intake.content_sha256(sitk.GetImageFromArray(voxels))
    assert intake.content_sha256(plain) != intake.content_sha256(sitk.GetImageFromArray(voxels.reshape(28, 24, 26)))


def test_a_copy_of_another_case_is_set_aside(root):
    save(root / "copy.nrrd.nii.gz", phantoms.make(0)[0].astype(np.float32), orientation="RAS")
    (_, _), (kind, row) = look(root, Entry("c0", "i0.nii.gz", None), Entry("c9", "copy.nrrd.nii.gz", None))
    assert kind == "quarantine" and row["defect"] == "holds the same voxels as case c0"


def test_a_patient_expression_that_finds_nothing_is_named(root):
    ((kind, row),) = look(root, Entry("c0", "i0.nii.gz", None), patient="^x(.)")
    assert kind == "quarantine" and "finds no group" in row["defect"]
    with pytest.raises(Refusal, match="finds no group"):
        intake.Identity("d", patient="c0").patient_of("c0")
