"""Boxes in a volume: what a sample reads, and which part of it is real.

Axes: Z Y X voxels. `lo_zyx` is the first voxel inside, `hi_zyx` the first beyond.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """What the loader reads per sample: a box of `size_vox` voxels, or of `size_mm` where mm are asked for.

    `whole`: the prepared volume itself, cut to `size_vox` at most.
    """

    size_vox: tuple[int, int, int]
    size_mm: tuple[float, float, float] | None = None
    whole: bool = False


def valid_patches(valid_lo_B3: Tensor, valid_hi_B3: Tensor, size_zyx: tuple[int, int, int], patch_vox: int) -> Tensor:
    """Tells which patches hold at least one real voxel: (B, N) bool, Z-major.

    Volumes smaller than the region are padded; patches that are padding alone stay out of every loss and ranking.
    """
    inside = []
    for axis, side in enumerate(size_zyx):
        start = torch.arange(0, side, patch_vox, device=valid_lo_B3.device)
        lo, hi = valid_lo_B3[:, axis, None], valid_hi_B3[:, axis, None]
        inside.append((start[None] < hi) & (start[None] + patch_vox > lo))
    z, y, x = inside
    return (z[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :]).flatten(1)
