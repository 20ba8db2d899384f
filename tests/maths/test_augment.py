import math

import numpy as np
import pytest
import torch

from voxprior.maths import augment, chance

SIZE = (12, 10, 14)


def _batch(samples: int = 4):
    key_B = chance.keys(3, 5, torch.arange(samples))
    volume = torch.rand(samples, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    labels = (torch.rand(samples, *SIZE, generator=torch.Generator().manual_seed(1)) * 4).to(torch.uint8)
    return volume, labels, key_B


def test_flip_moves_image_and_labels_together_and_some_of_each():
    _, labels, key_B = _batch(32)
    flipped_B3 = augment.draw_flips(key_B, "s", (0.5, 0.5, 0.5))
    moved = augment.flip(labels, flipped_B3)
    assert torch.equal(augment.flip(labels[:, None].float(), flipped_B3)[:, 0].to(torch.uint8), moved)
    assert moved.dtype == torch.uint8
    for sample, axes in enumerate(flipped_B3):
        assert torch.equal(moved[sample], labels[sample].flip(axes.nonzero()[:, 0].tolist()))
    assert len(flipped_B3.unique(dim=0)) >= 6


def test_flips_of_probability_0_or_1_and_streams():
    volume, _, key_B = _batch(64)
    drawn = augment.draw_flips(key_B, "s", (0.0, 0.3, 1.0))
    assert not drawn[:, 0].any() and drawn[:, 2].all()
    assert 0 < drawn[:, 1].sum() < 32
    assert torch.equal(drawn, chance.uniform(key_B, "s", (3,)) < torch.tensor([0.0, 0.3, 1.0]))
    assert not torch.equal(drawn, augment.draw_flips(key_B, "t", (0.0, 0.3, 1.0)))
    assert torch.equal(augment.flip(volume, drawn & torch.tensor([False, False, True])), volume.flip(4))


def test_rotation_matrices_turn():
    matrix = augment.rotation(torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.0, math.pi / 2]], dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(2, dtype=torch.float64))
    x = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(matrix[1] @ x, torch.tensor([0.0, 1, 0], dtype=torch.float64))


def test_warp_by_the_identity_changes_nothing():
    volume, labels, _ = _batch()
    image, moved = augment.warp(volume, labels, torch.eye(3).expand(4, 3, 3), torch.ones(4, 3))
    torch.testing.assert_close(image, volume, rtol=0, atol=1e-5)
    assert torch.equal(moved, labels)


def test_warp_by_a_quarter_turn_equals_rot90_where_voxels_are_cubes():
    volume = torch.rand(1, 1, 6, 8, 8)
    labels = (volume[:, 0] * 5).to(torch.uint8)
    matrix = augment.rotation(torch.tensor([[0.0, 0.0, math.pi / 2]]))
    image, moved = augment.warp(volume, labels, matrix, torch.full((1, 3), 2.0))
    turned = [k for k in (1, 3) if torch.equal(moved, labels.rot90(k, (2, 3)))]
    assert len(turned) == 1
    torch.testing.assert_close(image, volume.rot90(turned[0], (3, 4)), rtol=0, atol=1e-5)


def test_warp_respects_spacing():
    """In voxels of 1 x 1 x 2 mm a quarter turn about z maps 8 x 4 voxels onto themselves."""
    volume = torch.zeros(1, 1, 1, 8, 4)
    volume[..., :, :2] = 1.0  # the left half becomes the top or bottom half
    labels = volume[:, 0].to(torch.uint8)
    matrix = augment.rotation(torch.tensor([[0.0, 0.0, math.pi / 2]]))
    _, moved = augment.warp(volume, labels, matrix, torch.tensor([[1.0, 1.0, 2.0]]))
    rows = moved[0, 0].float().mean(1)
    assert sorted({tuple(rows[:4].tolist()), tuple(rows[4:].tolist())}) == [(0.0,) * 4, (1.0,) * 4]


def test_what_comes_from_beyond_the_crop_is_unknown_and_255_stays_255():
    volume, labels, _ = _batch(1)
    labels[:] = 3
    labels[0, 6, 5, 7] = 255
    image, moved = augment.warp(volume + 1, labels, 2 * torch.eye(3)[None], torch.ones(1, 3))
    assert set(moved.unique().tolist()) == {3, 255}
    assert image[0, 0, 0, 0, 0] == 0
    assert moved[0, 0, 0, 0] == 255
    assert moved[0, 6, 5, 6] == 3
    _still, kept = augment.warp(volume, labels, torch.eye(3)[None], torch.ones(1, 3))
    assert kept[0, 6, 5, 7] == 255


def _one_hot_linear(labels, map_34, shift=None):
    """Interpolates the map of each value linearly, beyond the crop is value 255, and takes the largest share."""
    from scipy.ndimage import map_coordinates

    place = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in labels.shape], indexing="ij"))
    at = torch.einsum("ij,jzyx->izyx", map_34[:, :3], place) + map_34[:, 3, None, None, None]
    at = (at if shift is None else at + shift).numpy()
    values = [*range(4), 255]
    shares = [
        map_coordinates((labels == v).double().numpy(), at, order=1, mode="grid-constant", cval=float(v == 255))
        for v in values
    ]
    return torch.tensor(values, dtype=torch.uint8)[torch.from_numpy(np.stack(shares)).argmax(0)]


@pytest.mark.parametrize("bent", [False, True])
def test_the_label_map_is_one_hot_linear_on_both_ways(bent):
    size = (24, 28, 32)
    labels = _smooth_labels(size)
    volume = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(2))
    key_B = chance.keys(1, 2, torch.arange(1))
    spacing = torch.tensor([[3.0, 1.5, 2.0]])
    matrix = augment.rotation(torch.tensor([[0.3, -0.2, 0.4]])) * 0.9
    shift = augment.bending(key_B, size, torch.tensor([0.3])) if bent else None
    image, moved = augment.warp(volume, labels[None], matrix, spacing, shift)
    in_voxels = (matrix.flip(1, 2) * spacing[:, None, :] / spacing[:, :, None])[0].double()
    middle = torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64)
    map_34 = torch.cat([in_voxels, (middle - in_voxels @ middle)[:, None]], dim=1)
    expected = _one_hot_linear(labels, map_34, None if shift is None else shift[0])
    assert (moved[0] != expected).double().mean() < 1e-3
    # What a GPU does, on the CPU.
    axes = [torch.arange(n, dtype=torch.float32) for n in size]
    at = torch.einsum("ij,jzyx->izyx", map_34[:, :3].float(), torch.stack(torch.meshgrid(*axes, indexing="ij")))
    at = at + map_34[:, 3, None, None, None].float()
    at = at if shift is None else at + shift[0]
    image_2, moved_2 = augment._look_up(volume, labels[None], [one[None] for one in at])
    torch.testing.assert_close(image, image_2, rtol=0, atol=1e-4)
    assert (moved != moved_2).double().mean() < 1e-3


def _smooth_labels(size):
    noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.avg_pool3d(noise, 7, 1, 3)[0].argmax(0).to(torch.uint8)


def test_bending_folds_nowhere():
    size = (40, 32, 48)
    shift = augment.bending(chance.keys(0, 0, torch.arange(8)), size, torch.full((8,), 0.4))
    assert shift.shape == (8, 3, *size)
    assert all(shift[:, axis].abs().max() <= 0.4 * size[axis] / augment.NODES for axis in range(3))
    steps = torch.stack(torch.gradient(shift, dim=(2, 3, 4)), dim=-1).movedim(1, -2)  # (..., component, axis)
    assert torch.linalg.det(steps + torch.eye(3)).min() > 0


def test_low_resolution_of_all_cells_changes_nothing_and_of_fewer_keeps_a_ramp():
    weights = augment.coarse_and_back(20, torch.tensor([20.0, 10.0, 1.0]))
    torch.testing.assert_close(weights[0], torch.eye(20), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 20))
    ramp = weights[1] @ torch.arange(20.0)
    torch.testing.assert_close(ramp[3:-3], torch.arange(20.0)[3:-3], rtol=0, atol=1e-3)
    torch.testing.assert_close(weights[2], weights[2][:1].expand(20, 20))


def test_noise_is_the_counted_one():
    key_B = chance.keys(0, 3, torch.arange(2))
    drawn = augment._normal(key_B, "s", (5, 6, 7))
    torch.testing.assert_close(drawn, chance.normal(key_B, "s", (5, 6, 7)), rtol=0, atol=1e-6)


def test_blur_keeps_the_mean_and_lowers_the_deviation():
    volume = torch.rand(3, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    image = augment.blur(volume, chance.keys(0, 0, torch.arange(3)), 1.0, (0.9, 1.0))
    torch.testing.assert_close(image.mean(), volume.mean(), rtol=0, atol=2e-3)
    assert (image.flatten(1).std(1) < 0.5 * volume.flatten(1).std(1)).all()


EFFECTS = {
    "spatial": lambda v, y, k: augment.spatial(v, y, k, torch.ones(len(k), 3), augment.Spatial(0.3, 15.0, 0.3, 1.2)),
    "elastic": lambda v, y, k: augment.spatial(
        v, y, k, torch.ones(len(k), 3), augment.Spatial(turn=0, scale=0, elastic=0.5)
    ),
    "blur": lambda v, y, k: (augment.blur(v, k, 0.5, (0.5, 1.0)), y),
    "low resolution": lambda v, y, k: (augment.low_resolution(v, k, 0.5, 2.0), y),
    "brightness": lambda v, y, k: (augment.brightness(v, k, 0.5, 0.25), y),
    "inverted gamma": lambda v, y, k: (augment.gamma(v, k, 0.5, 0.4, inverted=True), y),
    "contrast": lambda v, y, k: (augment.contrast(v, k, 0.5, 0.25, 0.1), y),
    "gamma": lambda v, y, k: (augment.gamma(v, k, 0.5, 0.4), y),
    "noise": lambda v, y, k: (augment.noise(v, k, 0.5, 0.05), y),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_happen_to_some_samples_by_their_key_alone(name):
    volume, labels, key_B = _batch(16)
    before = volume.clone(), labels.clone()
    image, moved = EFFECTS[name](volume, labels, key_B)
    assert torch.equal(volume, before[0]) and torch.equal(labels, before[1]), "inputs must not change"
    changed = (image != volume).flatten(1).any(1)
    assert 2 < changed.sum() < 14
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {0, 1, 2, 3, 255}
    alone, alone_moved = EFFECTS[name](volume[5:6], labels[5:6], key_B[5:6])
    torch.testing.assert_close(alone, image[5:6], rtol=0, atol=1e-6)
    assert torch.equal(alone_moved, moved[5:6])


def test_gamma_keeps_order_and_range():
    volume, _, key_B = _batch()
    image = augment.gamma(volume, key_B, 1.0, 0.4)
    assert image.min() >= 0
    assert image.max() <= 1
    order = volume[0].flatten().argsort()
    assert (image[0].flatten()[order].diff() >= 0).all()


def test_noise_has_no_mean_and_at_most_the_given_deviation():
    key_B = chance.keys(0, 0, torch.arange(6))
    image = augment.noise(torch.zeros(6, 1, 24, 24, 24), key_B, 1.0, 0.05)
    deviation = image.flatten(1).std(1)
    assert image.mean().abs() < 1e-3
    assert (deviation <= 0.051).all()
    assert deviation.max() > 0.02
