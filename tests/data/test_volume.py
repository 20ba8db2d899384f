import gzip
import itertools
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.data import phantoms, volume
from voxprior.errors import Refusal


def save(path, array, grid=None):
    volume.write_image(volume.from_array(array, grid or phantoms.grid_of(array.shape)), path)
    return path


def poke(path, offset, form, value):
    """Changes one field of a NIfTI-1 header."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, content, offset, value)
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def damaged(name, path):
    voxels = phantoms.make()[0]
    floats = voxels.astype(np.float32)
    if name == "empty file":
        path.write_bytes(b"")
    elif name == "renamed text":
        path.write_bytes(gzip.compress(b"this is no image"))
    elif name == "not gzip":
        path.write_bytes(b"this is no image")
    elif name == "truncated":
        save(path, voxels)
        path.write_bytes(path.read_bytes()[:4000])
    elif name == "bit flipped":
        content = bytearray(save(path, voxels).read_bytes())
        content[len(content) // 2] ^= 0x40
        path.write_bytes(bytes(content))
    elif name == "4-D":
        image = sitk.GetImageFromArray(voxels)
        sitk.WriteImage(sitk.JoinSeries([image, image]), str(path))
    elif name == "2-D":
        sitk.WriteImage(sitk.GetImageFromArray(voxels[0]), str(path))
    elif name == "vector":
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([voxels] * 3, -1), isVector=True), str(path))
    elif name == "one slice":
        save(path, voxels[:1])
    elif name == "zero spacing":
        poke(save(path, voxels), 80, "<f", 0.0)
    elif name == "NaN spacing":
        poke(save(path, voxels), 84, "<f", float("nan"))
    elif name == "negative spacing":
        poke(save(path, voxels), 80, "<f", -2.0)
    elif name == "huge spacing":
        poke(save(path, voxels), 88, "<f", 5000.0)
    elif name == "NaN":
        floats[3, 4, 5] = np.nan
        save(path, floats)
    elif name == "infinite":
        floats[3, 4, 5] = -np.inf
        save(path, floats)
    elif name == "constant":
        save(path, np.full_like(voxels, 7))
    return path


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("missing", "missing"),
        ("empty file", "zero bytes"),
        ("renamed text", "is no NIfTI file"),
        ("not gzip", "no gzip"),
        ("truncated", "truncated"),
        ("bit flipped", "damaged"),
        ("4-D", "4-D, not 3-D"),
        ("2-D", "2-D, not 3-D"),
        ("vector", "3 values per voxel"),
        ("one slice", "single slice"),
        ("zero spacing", "spacing of 0 mm"),
        ("NaN spacing", "spacing of nan mm"),
        ("negative spacing", "spacing of -2 mm"),
        ("huge spacing", "spacing of 5000 mm"),
        ("NaN", "1 voxels that are NaN"),
        ("infinite", "NaN or infinite"),
        ("constant", "constant"),
    ],
)
def test_defects_are_refused_in_one_sentence(tmp_path, name, word):
    path = damaged(name, tmp_path / "scan.nii.gz")
    with pytest.raises(Refusal, match=word) as refusal:
        volume.read_scan(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert ": " in str(refusal.value)  # the advice


def test_a_whole_scan_is_read(tmp_path):
    voxels, _ = phantoms.make(1)
    image = volume.read_scan(save(tmp_path / "scan ü.nii.gz", voxels))
    assert np.array_equal(sitk.GetArrayFromImage(image), voxels)


def test_labels_stored_as_floats_become_integers_and_say_so(tmp_path):
    labels = phantoms.make()[1]
    image, repairs = volume.read_label(save(tmp_path / "l.nii.gz", labels.astype(np.float64)))
    assert np.array_equal(sitk.GetArrayFromImage(image), labels)
    assert image.GetPixelID() == sitk.sitkUInt8
    assert repairs == ["label values stored as float64 read as integers"]


@pytest.mark.parametrize(("value", "word"), [(-1, "negative"), (0.5, "whole numbers"), (1e6, "above 65535")])
def test_impossible_label_values_are_refused(tmp_path, value, word):
    labels = phantoms.make()[1].astype(np.float32)
    labels[0, 0, 0] = value
    with pytest.raises(Refusal, match=word):
        volume.read_label(save(tmp_path / "l.nii.gz", labels))


def all_directions():
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            for axis in range(3):
                matrix[order[axis], axis] = signs[axis]
            yield tuple(matrix.ravel())


@pytest.mark.parametrize("direction", list(all_directions()))
def test_every_orientation_turns_to_lps_like_simpleitk_and_back(direction):
    voxels = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    raw = volume.Grid((6, 5, 4), (1.0, 2.0, 3.0), (-7.0, 8.0, 9.5), direction)
    image = volume.from_array(voxels, raw)
    turned, grid = volume.to_lps(image)
    expected = sitk.DICOMOrient(image, "LPS")
    assert np.array_equal(turned, sitk.GetArrayFromImage(expected))
    assert np.allclose(grid.origin_xyz_mm, expected.GetOrigin())
    assert grid.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    back = volume.to_native(turned, grid, raw)
    assert np.array_equal(sitk.GetArrayFromImage(back), voxels)
    assert volume.Grid.of(back) == raw


@pytest.mark.parametrize("orientation", sorted(phantoms.ORIENTATIONS))
def test_labels_survive_the_way_to_the_cache_and_back(orientation):
    shape = (20, 48, 44)
    labels = phantoms.make(2, shape)[1]
    raw = phantoms.grid_of(shape, (4.0, 1.1, 1.3), orientation)
    turned, lps = volume.to_lps(volume.from_array(labels, raw))
    grid = lps.with_spacing((2.0, 1.0, 1.0))
    finer = volume.resample.resample_labels(turned, lps.spacing_zyx_mm, grid.shape_zyx, grid.spacing_zyx_mm)
    # Through JSON, as predict gets the grids from the index.
    back = volume.to_native(finer, volume.Grid.from_json(grid.to_json()).to_json(), raw.to_json())
    assert volume.Grid.of(back) == raw
    found = sitk.GetArrayFromImage(back)
    for number in (1, 2, 3):
        dice = 2 * np.sum((found == number) & (labels == number)) / (np.sum(found == number) + np.sum(labels == number))
        assert dice > 0.95
    # No shift: the first and last voxels are where they were.
    assert np.allclose(lps.corners_mm()[0], grid.corners_mm()[0])


def test_written_labels_carry_the_scans_geometry_to_float32(tmp_path):
    labels = phantoms.make()[1]
    raw = phantoms.grid_of(labels.shape, (2.5, 0.703125, 0.7), "tilted")
    image, _ = volume.read_label(save(tmp_path / "l.nii.gz", labels, raw))
    read = volume.Grid.of(image)
    assert np.allclose(read.corners_mm(), raw.corners_mm(), atol=1e-3)
    assert np.allclose(read.spacing_xyz_mm, raw.spacing_xyz_mm, rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["l.nii.gz"]


def test_a_label_map_off_its_grid_is_an_error():
    grid = phantoms.grid_of((4, 5, 6))
    with pytest.raises(ValueError, match="do not lie"):
        volume.to_native(np.zeros((4, 5, 7), np.uint8), grid, grid)
