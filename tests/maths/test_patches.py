"""Patches go out and come back; a patch holds the voxels that its place says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from voxprior.errors import Refusal
from voxprior.maths.patches import destandardise, grid, patchify, standardise, take, unpatchify


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30, deadline=None)
@given(
    cells=st.tuples(*[st.integers(1, 4)] * 3), patch=st.sampled_from([1, 2, 3, 4]), channels=st.sampled_from([1, 2, 4])
)
def test_round_trip_is_exact(cells: tuple[int, int, int], patch: int, channels: int):
    volume = noise(2, channels, *(patch * count for count in cells))
    assert grid(tuple(volume.shape), patch) == cells
    assert torch.equal(unpatchify(patchify(volume, patch), cells, patch), volume)


def test_a_patch_holds_its_own_cube_in_z_major_order():
    volume = noise(1, 4, 4, 6, 8)
    patches = patchify(volume, 2)
    assert patches.shape == (1, 2 * 3 * 4, 8 * 4)
    cube = volume[0, :, 2:4, 2:4, 6:8]  # patch (1, 1, 3) of (2, 3, 4)
    assert torch.equal(patches[0, 1 * 12 + 1 * 4 + 3], cube.permute(1, 2, 3, 0).flatten())


@pytest.mark.parametrize("size", [(12, 12, 4), (4, 8, 12)])
def test_linear_on_patches_equals_a_strided_convolution(size: tuple[int, int, int]):
    volume, weight, bias = noise(2, 1, *size), noise(5, 64), noise(5)
    convolved = F.conv3d(volume, weight.reshape(5, 1, 4, 4, 4), bias, stride=4)
    linear = F.linear(patchify(volume, 4), weight, bias)
    torch.testing.assert_close(linear.mT, convolved.flatten(2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16, 12), (9, 8, 8), (4, 8, 8)])
def test_sizes_that_do_not_divide_are_refused(size: tuple[int, int, int]):
    with pytest.raises(Refusal, match="x".join(map(str, size)) + " voxels.*multiple of 8"):
        patchify(torch.zeros(1, 1, *size), 8)


def test_take_takes_rows_per_sample():
    values, index = noise(3, 5, 2), torch.tensor([[4, 0], [1, 1], [2, 3]])
    expected = torch.stack([values[b, index[b]] for b in range(3)])
    assert torch.equal(take(values, index), expected)
    shared = torch.stack([values[0, index[b]] for b in range(3)])
    assert torch.equal(take(values[:1], index), shared)


def test_standardise_equals_the_formula():
    patches = noise(2, 3, 27).double() * 5 + 2
    expected = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(standardise(patches), expected.float())
    assert standardise(patches.bfloat16()).dtype == torch.float32


def test_standardise_ignores_scale_and_shift():
    patches = noise(2, 3, 64)
    torch.testing.assert_close(standardise(4.0 * patches - 3.0), standardise(patches), rtol=1e-3, atol=1e-3)


def test_constant_patch_becomes_zero_with_finite_gradient():
    patch = torch.full((1, 1, 64), 0.25, requires_grad=True)
    standard = standardise(patch)
    assert torch.equal(standard, torch.zeros(1, 1, 64))
    standard.square().sum().backward()
    assert patch.grad.isfinite().all()


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_destandardise_undoes_standardise(eps: float):
    patches = noise(2, 3, 64) * 0.1 + 0.5
    torch.testing.assert_close(destandardise(standardise(patches, eps), patches, eps), patches)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("cells", [(6, 6, 2), (2, 3, 4)])
def test_glmae_check_01_patches_go_out_and_come_back(cells: tuple[int, int, int], channels: int):
    volume, weight, bias = noise(2, channels, *(4 * n for n in cells)), noise(5, channels, 4, 4, 4), noise(5)
    patches = patchify(volume, 4)
    assert torch.equal(unpatchify(patches, cells, 4), volume)
    linear = F.linear(patches, weight.permute(0, 2, 3, 4, 1).flatten(1), bias)
    convolved = F.conv3d(volume, weight, bias, stride=4)
    torch.testing.assert_close(linear.mT, convolved.flatten(2), rtol=1e-4, atol=1e-4)
    with pytest.raises(Refusal, match="multiple of 4"):
        patchify(volume[..., :-1], 4)
