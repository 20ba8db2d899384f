import numpy as np
import pytest
import SimpleITK as sitk

from voxprior.data import export, phantoms, volume


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "tilted"])
def test_volumes_borders_and_absent_classes(orientation):
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[2:4, 2:4, 2:4], labels[3, 3, 7] = 1, 2
    one, two, three = export.measure(
        volume.from_array(labels, phantoms.grid_of(labels.shape, (3, 2, 2), orientation)), 3
    )
    assert one == (8, pytest.approx(0.096), False)
    assert two == (1, pytest.approx(0.012), True)
    assert three == (0, 0.0, False)


def test_own_values_above_255_and_those_of_several_values(tmp_path):
    grid = phantoms.grid_of((3, 4, 5))
    ids = volume.from_array(np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 4, grid)
    export.write_labels(ids, [[300], [7, 8], []], tmp_path / "own.nii.gz")
    own = sitk.ReadImage(str(tmp_path / "own.nii.gz"))
    assert own.GetPixelID() == sitk.sitkUInt16
    assert np.array_equal(sitk.GetArrayFromImage(own), np.array([0, 300, 7, 0])[sitk.GetArrayFromImage(ids)])
    np.testing.assert_allclose(own.GetOrigin(), ids.GetOrigin(), rtol=1e-6)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_probabilities_go_back_to_where_they_came_from(orientation, tmp_path):
    """A share that rises linearly in the world does so in the scan's own grid too."""
    raw = phantoms.grid_of((9, 12, 10), (3.0, 2.0, 2.5), orientation)
    grid = volume.lps_grid(raw).with_spacing((2.0, 1.5, 3.0))
    place = np.meshgrid(*[np.arange(n) * step for n, step in zip(grid.shape_zyx, grid.spacing_zyx_mm, strict=True)], indexing="ij")  # fmt: skip # noqa: E501
    share = (place[0] + 2 * place[1] + 3 * place[2]) / 160
    with export.Probabilities(tmp_path / "held", 2, grid.shape_zyx) as held:
        for z in (slice(0, 5), slice(5, None)):
            held.put(
                (slice(*z.indices(grid.shape_zyx[0])[:2]), slice(None), slice(None)), np.stack([share, 1 - share])[:, z]
            )
        files = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
        held.write(grid, raw, files)
    assert not (tmp_path / "held").exists()
    made = [sitk.ReadImage(str(file)) for file in files]
    assert made[0].GetSize() == raw.size_xyz
    back, _ = volume.to_lps(made[0])
    lps = volume.lps_grid(raw)
    place = np.meshgrid(*[np.arange(n) * step for n, step in zip(lps.shape_zyx, lps.spacing_zyx_mm, strict=True)], indexing="ij")  # fmt: skip # noqa: E501
    inside = np.ones(lps.shape_zyx, bool)
    for axis, step in enumerate(grid.spacing_zyx_mm):
        inside &= place[axis] <= (grid.shape_zyx[axis] - 1) * step
    expected = (place[0] + 2 * place[1] + 3 * place[2]) / 160 * 255
    assert inside.mean() > 0.7
    assert np.abs(back[inside] - expected[inside]).max() <= 1.01
    assert np.abs(sum(sitk.GetArrayFromImage(one).astype(int) for one in made) - 255).max() <= 1
