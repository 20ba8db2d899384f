import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import SimpleITK as sitk

from voxprior.data import labels, nifti, phantoms, repairs, volume
from voxprior.errors import Refusal

SCAN = Path("scan.nii.gz")


def rotation(chance):
    return np.linalg.qr(chance.normal(size=(3, 3)))[0]


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_rotation_is_the_polar_factor_and_keeps_its_hand(seed):
    chance = np.random.default_rng(seed)
    matrix = rotation(chance) + chance.normal(0, 0.01, (3, 3))
    found, degrees = repairs.nearest_rotation(matrix)
    assert np.allclose(found, scipy.linalg.polar(matrix)[0])
    assert np.allclose(found @ found.T, np.eye(3)) and np.linalg.det(found) * np.linalg.det(matrix) > 0
    cosine = [found[:, a] @ matrix[:, a] / np.linalg.norm(matrix[:, a]) for a in range(3)]
    assert degrees == pytest.approx(np.degrees(np.arccos(min(cosine))))
    for _ in range(50):  # no rotation nearby is nearer
        other = found @ scipy.linalg.expm(np.cross(np.eye(3), chance.normal(0, 0.02, 3)))
        assert np.linalg.norm(other - matrix) >= np.linalg.norm(found - matrix)


def test_a_right_angled_direction_is_left_alone_to_the_last_bit():
    direction = tuple(rotation(np.random.default_rng(1)).ravel())
    assert repairs.straighten(SCAN, direction) == (direction, [])


@pytest.mark.parametrize(("degrees", "words"), [(0.5, None), (1.9, None), (2.1, "sheared"), (30, "sheared")])
def test_shear_is_mended_up_to_a_degree_an_axis_and_refused_beyond(degrees, words):
    # A shear is shared by the two axes: each turns by half of it.
    angle = np.radians(degrees)
    direction = (1, np.sin(angle), 0, 0, np.cos(angle), 0, 0, 0, 1)
    if words:
        with pytest.raises(Refusal, match=words):
            repairs.straighten(SCAN, direction)
        return
    turned, said = repairs.straighten(SCAN, direction)
    assert np.allclose(np.reshape(turned, (3, 3)).T @ np.reshape(turned, (3, 3)), np.eye(3))
    assert said == [f"axes up to {degrees / 2:.2g} degrees beside a right-angled grid, turned to the nearest one"]


def test_a_mended_scan_has_the_mended_direction_whoever_reads_it(tmp_path):
    path = tmp_path / "scan.nii.gz"
    volume.write_image(volume.from_array(phantoms.make()[0], phantoms.grid_of(phantoms.SHAPE_ZYX)), path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    rows = np.array(struct.unpack_from("<12f", content, 280)).reshape(3, 4)
    rows[0, 1] = 0.01
    struct.pack_into("<12f", content, 280, *rows.ravel())
    path.write_bytes(gzip.compress(bytes(content)))
    image, said = volume.open_scan(path)
    matrix = np.reshape(image.GetDirection(), (3, 3))
    assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-12) and not np.allclose(matrix, np.eye(3), atol=1e-4)
    assert said[0].startswith("axes up to 0.14 degrees")
    assert volume.read_scan(path, verify=False).GetDirection() == image.GetDirection()


# ------------------------------------------------------------------------------------------------- stored headers
@pytest.mark.parametrize("orientation", sorted(phantoms.ORIENTATIONS))
def test_stored_matrices_are_those_that_simpleitk_makes(tmp_path, orientation):
    path = tmp_path / "scan.nii"
    grid = phantoms.grid_of(phantoms.SHAPE_ZYX, (4.0, 1.1, 1.3), orientation)
    sitk.WriteImage(volume.from_array(phantoms.make()[0], grid), str(path))
    header = nifti.read_header(path)
    expected = np.diag([-1, -1, 1]) @ np.reshape(grid.direction, (3, 3)) * grid.spacing_xyz_mm
    for matrix in (header.sform, header.qform):
        assert np.allclose(matrix[:, :3], expected, atol=1e-5)
        assert np.allclose(matrix[:, 3], np.array(grid.origin_xyz_mm) * (-1, -1, 1), atol=1e-4)
    assert header.data_bytes == phantoms.make()[0].nbytes == path.stat().st_size - header.data_byte
    assert header.dimension == 3


def as_nifti_2(content: bytes) -> bytes:
    """Writes a NIfTI-1 as version 2."""
    head = bytearray(544)
    struct.pack_into("<i8s2h8q", head, 0, 540, b"n+2\0\r\n\x1a\n", *struct.unpack_from("<2h", content, 70),
                     *struct.unpack_from("<8h", content, 40))  # fmt: skip
    struct.pack_into("<8dq2d", head, 104, *struct.unpack_from("<8f", content, 76), 544, 1.0, 0.0)
    struct.pack_into("<2i6d12d", head, 344, *struct.unpack_from("<2h6f12f", content, 252))
    return bytes(head) + content[352:]


def test_nifti_of_version_2_is_checked_as_version_1(tmp_path):
    first, second = tmp_path / "one.nii", tmp_path / "two.nii"
    voxels = phantoms.make()[0].astype(np.float32)
    voxels[3, 4, 5] = np.nan
    sitk.WriteImage(volume.from_array(voxels, phantoms.grid_of(voxels.shape, orientation="tilted")), str(first))
    second.write_bytes(as_nifti_2(first.read_bytes()))
    one, two = nifti.read_header(first), nifti.read_header(second)
    assert (one.spacing_mm, one.number, one.data_bytes) == (two.spacing_mm, two.number, two.data_bytes)
    assert np.allclose(one.sform, two.sform) and np.allclose(one.qform, two.qform)
    with pytest.raises(Refusal, match="1 voxels that are NaN"):
        volume.read_scan(second)
    second.write_bytes(second.read_bytes()[:-8])
    with pytest.raises(Refusal, match="lacks 8 bytes"):
        volume.read_scan(second)


# ------------------------------------------------------------------------------------------------- label values
def test_values_of_no_class_are_counted_and_named():
    counts = np.zeros(1 << 16, np.int64)
    counts[[0, 2, 9, 300]] = 50, 10, 3, 4
    said = labels.check_values(SCAN, counts, {"a": [1, 2], "b": [5]})
    assert said == ["label values of no class (9, 300; 7 voxels) read as background"]
    assert labels.check_values(SCAN, counts, {"a": [2, 9, 300]}) == labels.check_values(SCAN, counts, {}) == []
    with pytest.raises(Refusal, match="2, 9, 300 and none of the dataset's classes"):
        labels.check_values(SCAN, counts, {"a": [1]})


def test_own_values_come_back_from_the_studys_ids():
    values = [[5], [], [300, 301], [2]]
    own = labels.to_own_values(np.array([[0, 1, 2], [3, 4, 1]], np.uint8), values)
    assert own.tolist() == [[0, 5, 0], [300, 2, 5]] and own.dtype == np.uint16
    assert labels.to_own_values(np.array([1], np.uint8), [[7]]).dtype == np.uint8


def test_voxels_of_each_value_are_counted():
    voxels = np.random.default_rng(0).integers(0, 700, (5, 6, 7)).astype(np.uint16)
    assert np.array_equal(labels.count_values(sitk.GetImageFromArray(voxels)), np.bincount(voxels.ravel(), None, 65536))
