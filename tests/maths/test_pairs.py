"""Pairs of boxes: coordinates there and back, guaranteed overlap, and maps read between cells."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from voxprior.maths import chance, pairs


def keys(count: int, step: int = 0) -> torch.Tensor:
    return chance.keys(0, step, torch.arange(count))


def drawn(count: int, volume: tuple, side: tuple, scale=(1.1, 1.4), least=0.1, shared_z=False, lo=(0, 0, 0)):
    """Draws pairs in equal volumes."""
    lo_B3 = torch.tensor(lo).expand(count, 3)
    hi_B3 = lo_B3 + torch.tensor(volume)
    side_B3 = torch.tensor(side, dtype=torch.float64).expand(count, 3)
    return pairs.draw_pair(keys(count), lo_B3, hi_B3, side_B3, scale, least, shared_z), lo_B3, hi_B3


def slow_iou(lo: np.ndarray, hi: np.ndarray) -> float:
    """Intersection over union of two boxes, axis by axis."""
    both, one, two = 1.0, 1.0, 1.0
    for axis in range(3):
        both *= max(0.0, min(hi[0, axis], hi[1, axis]) - max(lo[0, axis], lo[1, axis]))
        one, two = one * (hi[0, axis] - lo[0, axis]), two * (hi[1, axis] - lo[1, axis])
    return both / (one + two - both)


def test_T01_places_go_to_a_view_and_back():
    rng = torch.Generator().manual_seed(0)
    lo = 100 * torch.rand(200, 3, generator=rng)
    hi = lo + 10 + 100 * torch.rand(200, 3, generator=rng)
    flipped = torch.rand(200, 3, generator=rng) < 0.5
    place = lo[:, None] + (hi - lo)[:, None] * torch.rand(200, 50, 3, generator=rng)
    boxes = lo[:, None], hi[:, None], flipped[:, None]
    u = pairs.to_view(place, *boxes)
    assert (u.abs() <= 1 + 1e-6).all()
    assert (pairs.to_volume(u, *boxes) - place).abs().max() < 1e-4
    # First edge to -1 and last to 1, the other way round where mirrored.
    ends = pairs.to_view(torch.stack([lo, hi], 1), *boxes)
    sign = torch.where(flipped, -1.0, 1.0)
    torch.testing.assert_close(ends, torch.stack([-sign, sign], 1))


def test_T01_every_point_of_the_overlap_lies_in_both_views():
    pair, lo_B3, hi_B3 = drawn(200, (60, 70, 80), (16, 32, 24))
    shared_lo, shared_hi = pairs.overlap_box(pair.lo_BV3, pair.hi_BV3, lo_B3, hi_B3)
    assert (shared_hi > shared_lo).all()
    point_BN3 = pairs.grid_points(*(pairs.spread(shared_lo[:, axis], shared_hi[:, axis], 4) for axis in range(3)))
    flipped = chance.uniform(keys(200), "flip", (2, 3)) < 0.5
    for view in (0, 1):
        boxes = (part[:, view, None] for part in (pair.lo_BV3, pair.hi_BV3, flipped))
        assert (pairs.to_view(point_BN3, *boxes).abs() <= 1 + 1e-5).all()


@pytest.mark.parametrize(
    ("volume", "side", "shared_z"),
    [((120, 200, 160), (16, 96, 64), False), ((23, 192, 192), (16, 96, 96), True), ((18, 36, 28), (16, 32, 24), False)],
)
def test_T09_pairs_overlap_as_asked_inside_the_volume(volume, side, shared_z):
    """The last volume is barely larger than a view: its boxes go up to 1.125, 1.125 and 1.167 times a view."""
    count = 4000
    pair, lo_B3, hi_B3 = drawn(count, volume, side, shared_z=shared_z, lo=(3, 5, 7))
    lo, hi = pair.lo_BV3, pair.hi_BV3
    assert not pair.fallback_B.any()
    assert (lo >= lo_B3[:, None] - 1e-4).all() and (hi <= hi_B3[:, None] + 1e-4).all()
    factor = (hi - lo) / torch.tensor(side)
    assert factor.min() >= 1.1 - 1e-5 and factor.max() <= 1.4 + 1e-5
    assert factor.amax((0, 1)) == pytest.approx([min(1.4, v / s) for v, s in zip(volume, side, strict=True)], rel=1e-2)
    assert pairs.iou(lo, hi).min() >= 0.1
    if volume[1] > 2 * side[1]:
        assert pairs.iou(lo, hi).std() > 0.05
    sample = [slow_iou(lo[b].double().numpy(), hi[b].double().numpy()) for b in range(50)]
    np.testing.assert_allclose(pairs.iou(lo, hi)[:50], sample, rtol=1e-4)
    assert torch.equal(lo[:, 0, 0], lo[:, 1, 0]) == shared_z
    assert not torch.equal(lo[:, 0, 1], lo[:, 1, 1])


def test_overlaps_of_every_size_occur_and_no_axis_is_preferred():
    pair, _, _ = drawn(4000, (200, 200, 200), (32, 32, 32), least=0.1)
    overlap = pairs.iou(pair.lo_BV3, pair.hi_BV3)
    assert overlap.std() > 0.1 and overlap.min() < 0.12 and overlap.max() > 0.7
    apart = (pair.lo_BV3[:, 0] - pair.lo_BV3[:, 1]).abs().mean(0)
    assert apart.max() < 1.05 * apart.min()


def test_a_pair_depends_on_its_key_and_volume_alone():
    lo_B3, hi_B3 = torch.zeros(8, 3), torch.tensor([60.0, 50, 40]).repeat(8, 1)
    hi_B3[3] = torch.tensor([200.0, 20, 30])
    rest = torch.full((8, 3), 16.0), (1.1, 1.4), 0.1, False
    together = pairs.draw_pair(keys(8), lo_B3, hi_B3, *rest)
    alone = pairs.draw_pair(keys(8)[5:], lo_B3[5:], hi_B3[5:], rest[0][5:], *rest[1:])
    assert all(torch.equal(a[5:], b) for a, b in zip(together, alone, strict=True))


def test_a_volume_smaller_than_the_smallest_box_gives_one_box_twice_around_it():
    pair, lo_B3, hi_B3 = drawn(50, (30, 100, 100), (32, 32, 32))
    assert pair.fallback_B.all() and torch.equal(pair.lo_BV3[:, 0], pair.lo_BV3[:, 1])
    assert torch.equal(pair.hi_BV3[:, 0], pair.hi_BV3[:, 1])
    assert (pair.lo_BV3[..., 0] <= 0).all() and (pair.hi_BV3[..., 0] >= 30).all()
    shared_lo, shared_hi = pairs.overlap_box(pair.lo_BV3, pair.hi_BV3, lo_B3, hi_B3)
    assert (shared_lo[:, 0] == 0).all() and (shared_hi[:, 0] == 30).all()


def test_sides_that_cannot_reach_the_overlap_are_counted_as_they_fall():
    pair, _, _ = drawn(4096, (500, 500, 500), (32, 32, 32), scale=(1.0, 2.0), least=0.5)
    share = pairs.unreachable_share((1.0, 2.0), 0.5, False)
    assert 0.1 < share < 0.9
    assert float(pair.fallback_B.float().mean()) == pytest.approx(share, abs=0.03)
    assert pairs.unreachable_share((1.1, 1.4), 0.1, False) == 0


@pytest.mark.parametrize("cells", [(2, 6, 5), (1, 3, 4)])
def test_reading_axis_by_axis_equals_grid_sample(cells):
    map_BzyxC = torch.randn(3, *cells, 7, dtype=torch.float64).float()
    axes = [2.4 * torch.rand(3, count) - 1.2 for count in (4, 3, 2)]
    matrices = tuple(pairs.interpolation(u, n) for u, n in zip(axes, cells, strict=True))
    point = pairs.grid_points(*axes).unflatten(1, (4, 3, 2))
    there = F.grid_sample(
        map_BzyxC.movedim(-1, 1), point.flip(-1), mode="bilinear", padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(pairs.read(map_BzyxC, matrices), there.flatten(2).mT, rtol=1e-5, atol=1e-5)


def test_points_are_within_between_the_outermost_centres():
    u = torch.tensor([[-0.76, -0.74, 0.0, 0.75, 0.8]])
    assert pairs.within(u, 4).tolist() == [[False, True, True, True, False]]
    assert pairs.within(u, 4, 0.25).all()
    assert pairs.within(torch.tensor([[-1.0, 1.0]]), 1).all()
