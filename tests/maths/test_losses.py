"""The masked error equals a slow writing of its formula, and padding has no say."""

import math

import numpy as np
import pytest
import torch

from voxprior.maths.losses import masked_patch_error


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 5, 7, generator=generator), torch.randn(2, 5, 7, generator=generator)
    return prediction, target, torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)


def test_error_equals_the_formula_written_slowly():
    prediction, target, counted = example()
    total, count = masked_patch_error(prediction, target, counted)
    expected = []
    for sample, patch in np.argwhere(counted.numpy()):
        errors = zip(prediction[sample, patch], target[sample, patch], strict=True)
        expected.append(np.mean([(float(p) - float(t)) ** 2 for p, t in errors]))
    assert total.item() == pytest.approx(sum(expected), rel=1e-6)
    assert count.item() == len(expected) == 6


def test_gradient_is_the_papers():
    prediction, target, counted = example()
    prediction.requires_grad_()
    total, count = masked_patch_error(prediction, target, counted)
    (total / count).backward()
    expected = 2 * (prediction.detach() - target) / (6 * 7) * counted[..., None]
    torch.testing.assert_close(prediction.grad, expected)


@pytest.mark.parametrize("filling", [1e6, math.nan, math.inf])
def test_uncounted_patches_have_no_influence(filling: float):
    prediction, target, counted = example()
    expected, _ = masked_patch_error(prediction, target, counted)
    spoilt_p = prediction.masked_fill(~counted[..., None], filling).requires_grad_()
    total, _ = masked_patch_error(spoilt_p, target.masked_fill(~counted[..., None], -filling), counted)
    total.backward()
    assert torch.equal(total, expected)
    assert spoilt_p.grad.isfinite().all() and (spoilt_p.grad[~counted] == 0).all()


def test_halves_add_up_to_the_whole():
    prediction, target, counted = example()
    total, count = masked_patch_error(prediction, target, counted)
    parts = [masked_patch_error(prediction[i : i + 1], target[i : i + 1], counted[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(total, parts[0][0] + parts[1][0])
    assert count == parts[0][1] + parts[1][1]


def test_sums_are_float32_under_bfloat16():
    prediction, target, counted = example()
    with torch.autocast("cpu", torch.bfloat16):
        total, count = masked_patch_error(prediction.bfloat16(), target, counted)
    assert total.dtype == count.dtype == torch.float32


def test_nothing_counted_gives_zero_over_zero():
    prediction, target, counted = example()
    total, count = masked_patch_error(prediction, target, torch.zeros_like(counted))
    assert total.item() == 0 and count.item() == 0
