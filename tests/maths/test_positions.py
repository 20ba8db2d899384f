"""A position table names each token of its grid, the same way every time."""

import numpy as np
import pytest
import torch

from voxprior.errors import Refusal
from voxprior.maths.positions import position_table, sine_cosine


@pytest.mark.parametrize("grid_zyx", [(6, 6, 6), (10, 10, 10), (12, 12, 2), (1, 1, 5), (3, 4, 3)])
def test_rows_are_unique(grid_zyx: tuple[int, int, int]):
    table = sine_cosine(grid_zyx, 48)
    assert table.shape == (np.prod(grid_zyx), 48) and table.dtype == torch.float32
    distance = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.fill_diagonal_(1.0).min() > 0.1


def test_table_equals_the_formula():
    table, width, k = sine_cosine((2, 3, 4), 24).numpy(), 24, 4
    for row, index in enumerate(np.ndindex(2, 3, 4)):
        expected = []
        for i in index:
            angles = [i / 10000 ** (j / k) for j in range(k)]
            expected += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
        assert len(expected) == width
        np.testing.assert_allclose(table[row], expected, atol=1e-6)


def test_axes_are_told_apart():
    assert not torch.equal(sine_cosine((2, 3, 4), 24), sine_cosine((4, 3, 2), 24))
    swapped = sine_cosine((3, 2, 4), 24).reshape(3, 2, 4, 3, 8).transpose(0, 1)[..., [1, 0, 2], :]
    assert torch.equal(sine_cosine((2, 3, 4), 24), swapped.reshape(24, 24))


def test_a_grid_is_the_corner_of_a_larger_one():
    large = sine_cosine((4, 5, 6), 12).reshape(4, 5, 6, 12)
    assert torch.equal(large[:2, :3, :2].reshape(12, 12), sine_cosine((2, 3, 2), 12))


def test_all_rows_have_the_same_length():
    torch.testing.assert_close(sine_cosine((3, 4, 5), 96).norm(dim=1), torch.full((60,), 48.0).sqrt())


@pytest.mark.parametrize("width", [64, 512, 100])
def test_other_widths_are_refused(width: int):
    with pytest.raises(Refusal, match=f"{width}.*multiple of 6") as refused:
        sine_cosine((2, 2, 2), width)
    offered = int(str(refused.value).rsplit(" ", 1)[1])
    assert offered % 6 == 0 and 0 < offered - width <= 6


def test_table_is_built_once_and_equals_the_formula():
    device = torch.device("cpu")
    table = position_table((2, 3, 4), 24, device)
    assert table is position_table((2, 3, 4), 24, device)
    assert torch.equal(table, sine_cosine((2, 3, 4), 24))
    assert not table.requires_grad and not table.is_inference()
    assert position_table((2, 3, 4), 24, torch.device("meta")).device.type == "meta"


def test_glmae_check_07_every_token_of_every_grid_has_its_own_row():
    for grid_zyx in ((6, 6, 6), (10, 10, 10), (12, 12, 2)):
        assert len(sine_cosine(grid_zyx, 96).unique(dim=0)) == np.prod(grid_zyx)
    assert sine_cosine((12, 12, 2), 96).shape == sine_cosine((6, 6, 8), 96).shape  # as many tokens, another grid
    assert not torch.equal(sine_cosine((12, 12, 2), 96), sine_cosine((6, 6, 8), 96))
    large, small = sine_cosine((10, 10, 10), 96), sine_cosine((6, 6, 6), 96)
    shrunk = torch.nn.functional.interpolate(large.T.reshape(1, 96, 10, 10, 10), (6, 6, 6), mode="trilinear")
    apart = (shrunk.flatten(2)[0].T - small).norm() / small.norm()
    assert 0.4 < apart < 0.6, "why nothing is interpolated: one table shrunk is another table"
