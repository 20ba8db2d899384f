import math

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


EFFECTS = {
    "affine": lambda v, y, k: augment.affine(v, y, k, torch.ones(len(k), 3), 0.5, 15.0, 1.2),
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
