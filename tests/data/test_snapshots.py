import numpy as np
import SimpleITK as sitk

from voxprior.data import snapshots


def save(path, array, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def drawn(tmp_path, *paths):
    png = tmp_path / "pictures" / "case.png"
    assert snapshots.write_planes(paths, png)
    assert [path.name for path in png.parent.iterdir()] == ["case.png"]
    return sitk.GetArrayFromImage(sitk.ReadImage(str(png)))


def test_three_middle_planes_to_scale_with_the_head_on_top(tmp_path):
    voxels = np.zeros((10, 40, 20), np.int16)
    voxels[7:] = 100
    picture = drawn(tmp_path, save(tmp_path / "a.nrrd", voxels, (2.0, 2.0, 8.0)))
    # 80 x 80 x 40 mm: the longest side fills the tile
    assert picture.shape == (128, 64 + 4 + 64 + 4 + 128)
    coronal = picture[:, 68:132]
    assert (coronal[:38] == 255).all() and (coronal[39:] == 0).all()


def test_an_impossible_spacing_is_ignored_and_a_label_gets_its_row(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    voxels[4] = np.nan
    scan = save(tmp_path / "a.nrrd", voxels, (900.0, 1.0, 1.0))
    label = save(tmp_path / "l.nrrd", (np.indices((8, 8, 8))[2] > 3).astype(np.uint8))
    picture = drawn(tmp_path, scan, tmp_path / "missing.nrrd", label)
    assert picture.shape == (2 * 128 + 4, 3 * 128 + 8)
    assert (picture[:128, :128] == 0).all()  # the plane of NaN
    assert set(np.unique(picture[132:, :128])) == {0, 255}


def test_nothing_is_written_where_nothing_can_be_read(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"no image")
    assert not snapshots.write_planes([tmp_path / "a.nii"], tmp_path / "p" / "x.png")
    assert not (tmp_path / "p").exists()
