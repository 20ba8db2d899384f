import numpy as np
import pytest
import torch

from voxprior.configuration import Simulate
from voxprior.data import phantoms, simulate, volume
from voxprior.errors import Refusal
from voxprior.maths import chance

SHAPE, SPACING = (30, 34, 32), (3.0, 3.0, 3.0)


def key(number):
    return chance.keys(0, number, torch.tensor([0]))


@pytest.mark.parametrize("number", range(8))
def test_warps_never_fold(number):
    shift = simulate.displacement(key(number), SHAPE, SPACING, warp_mm=9.0, smooth_mm=36.0)
    determinant = simulate.jacobian(shift, SPACING)
    assert determinant.min() > 0.1
    assert shift.abs().max() > 1


def test_the_jacobian_of_a_stretch_is_its_volume_change():
    places = torch.stack(torch.meshgrid(*[torch.arange(6.0) * s for s in (3, 2, 1)], indexing="ij"))
    stretch = places * torch.tensor([0.1, -0.2, 0.5])[:, None, None, None]
    assert torch.allclose(simulate.jacobian(stretch, (3.0, 2.0, 1.0)), torch.tensor(1.1 * 0.8 * 1.5))


def test_the_velocity_has_unit_variance_and_the_stated_correlation():
    fields = torch.stack([simulate._velocity(key(n), (25, 25, 25), 6.0, 36.0) for n in range(24)])
    assert abs(fields.square().mean() - 1) < 0.25
    # At a distance of smooth_mm, 6 cells, the correlation is exp(-1/2).
    assert abs((fields[:, :, 6:] * fields[:, :, :-6]).mean() / fields.square().mean() - np.exp(-0.5)) < 0.15


@pytest.fixture
def base(tmp_path):
    folder = phantoms.write_folder(tmp_path, cases=1, shape_zyx=SHAPE, spacing_zyx_mm=SPACING, orientation="RAS")
    name = "phantom_000.nii.gz"
    return simulate.read_base(str(folder / "images" / name), str(folder / "labels" / name), SPACING)


def test_without_changes_the_patient_is_the_base(base):
    numbers = Simulate(patients=1, warp_mm=0, noise_hu=0, contrast=0)
    voxels, labels = simulate.make_patient(base, numbers, 0)
    assert np.abs(voxels - base.volume_ZYX).max() <= 1
    assert np.array_equal(labels, base.labels_ZYX)


def test_patients_differ_and_come_back_equal(base):
    numbers = Simulate(patients=2)
    first, again, second = (simulate.make_patient(base, numbers, n) for n in (0, 0, 1))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], second[1])
    assert set(np.unique(first[1])) <= set(np.unique(base.labels_ZYX))


def test_labels_move_with_the_image(base):
    numbers = Simulate(patients=1, noise_hu=0, contrast=0, smooth_mm=30.0, warp_mm=6.0)
    voxels, labels = simulate.make_patient(base, numbers, 3)
    for number in (1, 2, 3):
        core = labels == number
        assert abs(np.median(voxels[core]) - np.median(base.volume_ZYX[base.labels_ZYX == number])) < 40


def test_a_folding_warp_is_refused(base):
    with pytest.raises(Refusal, match="folded"):
        simulate.make_patient(base, Simulate(patients=1, warp_mm=300.0, smooth_mm=6.0), 0)


def test_the_base_grid_is_upright(base):
    assert base.grid.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert isinstance(base.grid, volume.Grid)
