"""Pairs of boxes that overlap, where a point of one is found in the other, and reading feature maps between cells.

Coordinates are edge coordinates of the region, as in `maths/crops.py`: voxel i occupies [i, i + 1]. In a view the
coordinate u runs from -1 to 1 between its first and last *edge*, in the order in which the view is read: a mirrored
view runs against the region.

Axes: B pairs, V the two views of a pair, 3 Z Y X, K points along one axis, N points of a pair (Z-major), F cells of a
feature map along one axis, z y x cells, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from voxprior.maths import chance

_MARGIN = 1e-4  # the overlap aimed at exceeds the least one by this, so that float32 cannot round a pair below it


class Pair(NamedTuple):
    """Two boxes per sample; `fallback_B`: they are the same box, because no pair as asked for fits the volume."""

    lo_BV3: Tensor
    hi_BV3: Tensor
    fallback_B: Tensor


def _draw_sides(key_B: Tensor, room_B3: Tensor, side_B3: Tensor, scale: tuple[float, float], shared_z: bool) -> Tensor:
    """Draws the sides of both boxes, (B, 2, 3) float64: side times a factor per axis, as large as the room allows."""
    low, high = scale
    drawn_BV3 = chance.uniform(key_B, "pair/scale", (2, 3)).double()
    if shared_z:
        drawn_BV3 = torch.stack([drawn_BV3[:, 0], torch.cat([drawn_BV3[:, 0, :1], drawn_BV3[:, 1, 1:]], 1)], 1)
    widest_B3 = (room_B3 / side_B3).clamp(low, high)
    return side_B3[:, None] * (low + drawn_BV3 * (widest_B3[:, None] - low))


def _needed(sides_BV3: Tensor, least: float) -> Tensor:
    """Computes the volume that both boxes must share for an overlap (IoU) of `least`: (B,)."""
    least = min(least + _MARGIN, 1.0)
    return least / (1 + least) * sides_BV3.prod(-1).sum(-1)


def draw_pair(
    key_B: Tensor,
    valid_lo_B3: Tensor,
    valid_hi_B3: Tensor,
    side_B3: Tensor,
    scale: tuple[float, float],
    least: float,
    shared_z: bool,
) -> Pair:
    """Draws box A anywhere in the valid box and box B such that intersection over union is at least `least`.

    B is placed axis by axis, in an order drawn per pair: along the first it may move as far as the overlap allows if
    both others overlapped fully, along the next as far as what is left allows, uniformly each time. So no pair is
    rejected, and the whole range of overlaps occurs. Where the sides drawn cannot reach the overlap, or the valid box
    is smaller than the smallest box, B is A's box; along an axis too short for it, the box reaches beyond the valid
    box on both sides.

    Args:
        key_B: one key per pair.
        valid_lo_B3: first edge of what may be cut, Z Y X.
        valid_hi_B3: its last edge.
        side_B3: side of a view in voxels of the region.
        scale: a box is this many times as large as a view, drawn per box and axis.
        least: least overlap, intersection over union, in (0, 1).
        shared_z: both boxes have the same range along Z.
    """
    lo_B3, hi_B3, side_B3 = valid_lo_B3.double(), valid_hi_B3.double(), side_B3.double()
    room_B3 = hi_B3 - lo_B3
    sides_BV3 = _draw_sides(key_B, room_B3, side_B3, scale, shared_z)
    place_BV3 = chance.uniform(key_B, "pair/place", (2, 3)).double()
    a_lo_B3 = lo_B3 + place_BV3[:, 0] * (room_B3 - sides_BV3[:, 0])
    a_hi_B3 = a_lo_B3 + sides_BV3[:, 0]
    b_lo_B3 = a_lo_B3
    needed_B = _needed(sides_BV3, least)
    shared_B3 = sides_BV3.amin(1)  # of an axis that is placed: what overlaps; of another: the most that can
    small_B = (room_B3 < side_B3 * (scale[0] - 1e-6)).any(1)
    fallback_B = small_B | (shared_B3.prod(1) < needed_B)
    order_B3 = chance.permutation(key_B, "pair/order", 3)
    axis_3 = torch.arange(3, device=key_B.device)
    for turn in range(3):
        chosen_B3 = order_B3[:, turn, None] == axis_3
        least_B3 = needed_B[:, None] * shared_B3 / shared_B3.prod(1, keepdim=True)
        first_B3 = torch.maximum(a_lo_B3 - sides_BV3[:, 1] + least_B3, lo_B3)
        last_B3 = torch.minimum(a_hi_B3 - least_B3, hi_B3 - sides_BV3[:, 1])
        drawn_B3 = first_B3 + place_BV3[:, 1] * (last_B3 - first_B3).clamp(min=0)
        if shared_z:
            drawn_B3 = torch.cat([a_lo_B3[:, :1], drawn_B3[:, 1:]], 1)
        b_lo_B3 = torch.where(chosen_B3, drawn_B3, b_lo_B3)
        overlap_B3 = torch.minimum(a_hi_B3, drawn_B3 + sides_BV3[:, 1]) - torch.maximum(a_lo_B3, drawn_B3)
        shared_B3 = torch.where(chosen_B3, overlap_B3, shared_B3)
    b_lo_B3 = torch.where(fallback_B[:, None], a_lo_B3, b_lo_B3)
    b_hi_B3 = torch.where(fallback_B[:, None], a_hi_B3, b_lo_B3 + sides_BV3[:, 1])
    return Pair(torch.stack([a_lo_B3, b_lo_B3], 1).float(), torch.stack([a_hi_B3, b_hi_B3], 1).float(), fallback_B)


def unreachable_share(scale: tuple[float, float], least: float, shared_z: bool, draws: int = 4096) -> float:
    """Tells for which share of the pairs the sides alone make the overlap impossible, wherever the boxes lie."""
    with torch.device("cpu"):  # the answer is a number, also where a model is built without memory (meta)
        key_B, one_B3 = chance.keys(0, 0, torch.arange(draws)), torch.ones(draws, 3).double()
        sides_BV3 = _draw_sides(key_B, 1e9 * one_B3, one_B3, scale, shared_z)
    return float((sides_BV3.amin(1).prod(1) < _needed(sides_BV3, least)).double().mean())


def overlap_box(lo_BV3: Tensor, hi_BV3: Tensor, valid_lo_B3: Tensor, valid_hi_B3: Tensor) -> tuple[Tensor, Tensor]:
    """Intersects both boxes and the valid box: (lo, hi), each (B, 3); hi <= lo along an axis: they share nothing."""
    lo_B3 = torch.maximum(lo_BV3.amax(1), valid_lo_B3.to(lo_BV3.dtype))
    return lo_B3, torch.minimum(hi_BV3.amin(1), valid_hi_B3.to(hi_BV3.dtype))


def iou(lo_BV3: Tensor, hi_BV3: Tensor) -> Tensor:
    """Computes the intersection of each pair's boxes over their union, by volume: (B,)."""
    both_B = (hi_BV3.amin(1) - lo_BV3.amax(1)).clamp(min=0).prod(-1)
    return both_B / ((hi_BV3 - lo_BV3).prod(-1).sum(-1) - both_B)


def spread(lo_B: Tensor, hi_B: Tensor, count: int) -> Tensor:
    """Spreads points evenly between two edges: lo + (k + 1/2) / K (hi - lo), (B, K)."""
    share_K = (torch.arange(count, device=lo_B.device) + 0.5) / count
    return lo_B[:, None] + share_K * (hi_B - lo_B)[:, None]


def to_view(place: Tensor, lo: Tensor, hi: Tensor, flipped: Tensor) -> Tensor:
    """Finds places of the region in a view: u = s (2 x - lo - hi) / (hi - lo), s = -1 where mirrored. Broadcasts."""
    u = (2 * place - lo - hi) / (hi - lo)
    return torch.where(flipped, -u, u)


def to_volume(u: Tensor, lo: Tensor, hi: Tensor, flipped: Tensor) -> Tensor:
    """Finds places of a view in the region, the inverse of `to_view`: x = (lo + hi) / 2 + s u (hi - lo) / 2."""
    return (lo + hi) / 2 + torch.where(flipped, -u, u) * (hi - lo) / 2


def within(u_BK: Tensor, cells: int, beyond_cells: float = 0.0) -> Tensor:
    """Tells which points lie between the centres of the outermost cells, where a map can be interpolated: bool.

    The others could only be clamped; `beyond_cells`, in cells, is how far out a point may lie all the same. An axis of
    a single cell holds no position at all: every point is within.
    """
    if cells == 1:
        return torch.ones_like(u_BK, dtype=torch.bool)
    return u_BK.abs() <= 1 + (2 * beyond_cells - 1) / cells + 1e-5


def interpolation(u_BK: Tensor, cells: int) -> Tensor:
    """Makes the matrices that read a map at points along one axis, linearly, clamped to the outermost cells: (B, K, F).

    Cell j has its centre at u = (2 j + 1) / F - 1, torch's `align_corners=False`. Applied axis by axis they give what
    `grid_sample` gives on a grid of points, with a gradient that is the same on every run and device.
    """
    place_BK = (((u_BK + 1) * cells - 1) / 2).clamp(0, cells - 1)
    cell_F = torch.arange(cells, device=u_BK.device)
    return (1 - (place_BK[..., None] - cell_F).abs()).clamp(min=0)


def read(map_BzyxC: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Reads a map at a grid of points by three `interpolation` matrices, float32: (B, N, C)."""
    z_BKF, y_BKF, x_BKF = matrices
    # Both kinds of autocast are switched off by name, so that tensors of no device (meta) pass too.
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        seen = torch.einsum("bkz,bzyxc->bkyxc", z_BKF, map_BzyxC.float())
        seen = torch.einsum("bky,bzyxc->bzkxc", y_BKF, seen)
        seen = torch.einsum("bkx,bzyxc->bzykc", x_BKF, seen)
    return seen.flatten(1, 3)


def grid_points(z_BK: Tensor, y_BK: Tensor, x_BK: Tensor) -> Tensor:
    """Lists the points of a grid given by its coordinates (or flags) along each axis: (B, N, 3), Z-major."""
    shape = (len(z_BK), z_BK.shape[1], y_BK.shape[1], x_BK.shape[1])
    spread_axes = z_BK[:, :, None, None], y_BK[:, None, :, None], x_BK[:, None, None, :]
    return torch.stack([axis.expand(shape) for axis in spread_axes], dim=-1).flatten(1, 3)
