"""Masks per stride, and instance statistics over visible voxels."""

import numpy as np
import pytest
import torch
from torch import nn

from voxprior.nets.sparse import InstanceNorm, Visible, hide, visible_pyramid

GRID = (2, 3, 2)


def _masked(*rows: list[int]) -> torch.Tensor:
    """One row of masked units per sample."""
    masked_BN = torch.zeros(len(rows), 12, dtype=torch.bool)
    for b, row in enumerate(rows):
        masked_BN[b, row] = True
    return masked_BN


def test_check_02_of_anatomask_the_mask_at_every_stride_is_the_mask_repeated() -> None:
    masked_BN = _masked([0, 5, 11], [1, 2, 3, 4])
    levels = visible_pyramid(masked_BN, GRID, stages=3)
    for level, side in zip(levels, (4, 2, 1), strict=True):
        for b in range(2):
            units = ~masked_BN[b].numpy().reshape(GRID)
            expected = np.kron(units, np.ones((side,) * 3, dtype=bool))
            np.testing.assert_array_equal(level.voxels_B1ZYX[b, 0].numpy(), expected)
            assert level.count_B1111[b].item() == expected.sum()


def test_check_04_of_anatomask_statistics_are_each_samples_own_over_its_visible_voxels() -> None:
    torch.manual_seed(0)
    visible = visible_pyramid(_masked([0, 1, 2, 3, 4], [6, 7, 8]), GRID, stages=3)[0]
    feature = torch.randn(2, 4, 8, 12, 8) * torch.tensor([1.0, 30.0]).view(2, 1, 1, 1, 1) + 7
    normed = InstanceNorm(4)(feature, visible)
    for b in range(2):
        shown = normed[b][:, visible.voxels_B1ZYX[b, 0]]
        assert shown.mean(dim=1).abs().max() < 1e-4
        assert (shown.std(dim=1, unbiased=False) - 1).abs().max() < 1e-3
        assert not normed[b][:, ~visible.voxels_B1ZYX[b, 0]].any()


def test_check_04_of_anatomask_samples_do_not_touch_one_another() -> None:
    torch.manual_seed(0)
    masked_BN = _masked([0, 1], [6, 7, 8])
    both = visible_pyramid(masked_BN, GRID, stages=3)[0]
    alone = visible_pyramid(masked_BN[:1], GRID, stages=3)[0]
    feature = torch.randn(2, 4, 8, 12, 8)
    changed = feature.clone()
    changed[1] = changed[1] * 100 + 3
    norm = InstanceNorm(4)
    assert torch.equal(norm(feature, both)[0], norm(changed, both)[0])
    torch.testing.assert_close(norm(feature, both)[:1], norm(feature[:1], alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("all_visible_mask", [False, True])
def test_equals_torchs_instance_norm_where_everything_is_visible(all_visible_mask: bool) -> None:
    torch.manual_seed(0)
    visible = visible_pyramid(_masked([], []), GRID, stages=3)[0] if all_visible_mask else None
    ours, theirs = InstanceNorm(4), nn.InstanceNorm3d(4, affine=True)
    with torch.no_grad():
        ours.weight.copy_(torch.rand(4))
        ours.bias.copy_(torch.rand(4))
    theirs.load_state_dict(ours.state_dict())
    a = torch.randn(2, 4, 8, 12, 8, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    weight = torch.randn(2, 4, 8, 12, 8)
    (ours(a, visible) * weight).sum().backward()
    (theirs(b) * weight).sum().backward()
    torch.testing.assert_close(ours(a, visible), theirs(b), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)


def _reference(feature: torch.Tensor, norm: InstanceNorm, visible: Visible) -> torch.Tensor:
    """The norm as one would write it down, a sample and channel at a time, for autograd to differentiate."""
    made = torch.zeros_like(feature)
    for b in range(len(feature)):
        shown = visible.voxels_B1ZYX[b, 0]
        for c in range(feature.shape[1]):
            seen = feature[b, c][shown]
            normed = (seen - seen.mean()) / (seen.var(unbiased=False) + norm.eps).sqrt()
            made[b, c] = made[b, c].masked_scatter(shown, normed * norm.weight[c] + norm.bias[c])
    return made


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gradients_are_those_of_the_norm_written_down(dtype: torch.dtype, within: float) -> None:
    torch.manual_seed(0)
    visible = visible_pyramid(_masked([0, 1, 2, 3, 4], [6, 7, 8]), GRID, stages=3)[0]
    ours, theirs = InstanceNorm(4), InstanceNorm(4).double()
    with torch.no_grad():
        ours.weight.copy_(torch.rand(4) + 0.5)
        ours.bias.copy_(torch.rand(4))
    theirs.load_state_dict(ours.state_dict())
    a = (3 * torch.randn(2, 4, 8, 12, 8) + 7).to(dtype).requires_grad_()
    b = a.detach().double().requires_grad_()
    factor = torch.randn(2, 4, 8, 12, 8).to(dtype)  # hidden voxels get a gradient too, which ends there
    normed, expected = ours(a, visible), _reference(b, theirs, visible)
    (normed * factor).sum().backward()
    (expected * factor).sum().backward()
    pairs = [
        (normed, expected),
        (a.grad, b.grad),
        (ours.weight.grad, theirs.weight.grad),
        (ours.bias.grad, theirs.bias.grad),
    ]
    for got, wanted in pairs:
        assert (got - wanted).abs().max() < within * wanted.abs().max()


@pytest.mark.parametrize("mean", [0.0, 20.0, 200.0])
def test_one_pass_over_bfloat16_finds_the_variance_of_what_is_there(mean: float) -> None:
    torch.manual_seed(0)
    visible = visible_pyramid(_masked([3, 4]), GRID, stages=5)[0]
    feature = (torch.randn(1, 3, *visible.voxels_B1ZYX.shape[2:]) + mean).bfloat16()
    normed, wide = InstanceNorm(3)(feature, visible), InstanceNorm(3)(feature.float(), visible)
    torch.testing.assert_close(normed, wide.bfloat16(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_hidden_values_leak_neither_forward_nor_backward(poison: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    visible = visible_pyramid(_masked([0, 1, 9]), GRID, stages=3)[0]
    feature = torch.randn(1, 4, 8, 12, 8, dtype=dtype)
    poisoned = torch.where(visible.voxels_B1ZYX, feature, poison).requires_grad_()
    norm = InstanceNorm(4)
    assert torch.equal(norm(poisoned, visible), norm(feature, visible))
    assert torch.equal(hide(poisoned, visible), hide(feature, visible))
    norm(poisoned, visible).square().sum().backward()
    assert torch.isfinite(poisoned.grad).all()
    assert not poisoned.grad[(~visible.voxels_B1ZYX).expand(1, 4, 8, 12, 8)].any()


def test_a_sample_without_visible_voxels_stays_zero_and_finite() -> None:
    visible = visible_pyramid(_masked(list(range(12))), GRID, stages=2)[0]
    feature = torch.randn(1, 4, 4, 6, 4, requires_grad=True)
    normed = InstanceNorm(4)(feature, visible)
    normed.sum().backward()
    assert not normed.any()
    assert torch.isfinite(feature.grad).all()


def test_statistics_are_float32_for_bfloat16_features() -> None:
    torch.manual_seed(0)
    visible = visible_pyramid(_masked([3, 4]), GRID, stages=4)[0]
    feature = (torch.randn(1, 2, 16, 24, 16) + 20).bfloat16()
    normed = InstanceNorm(2)(feature, visible)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.float(), InstanceNorm(2)(feature.float(), visible), rtol=1e-2, atol=1e-2)
