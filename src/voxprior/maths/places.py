"""Where views lie: boxes drawn inside the real part of a volume, from keys.

Axes: B samples, V views of a sample, W = B V views of all samples, 3 = Z Y X. Edge coordinates as in `maths/crops.py`.
"""

import torch
from torch import Tensor

from voxprior.maths import chance


def draw_boxes(
    key_W: Tensor,
    valid_lo_B3: Tensor,
    valid_hi_B3: Tensor,
    size_zyx: tuple[int, int, int],
    share: tuple[float, float] | None,
) -> tuple[Tensor, Tensor]:
    """Draws V boxes a sample: first and last edge, (B, V, 3) float32 each.

    Args:
        key_W: one key per view, sample by sample; V is found from their number.
        valid_lo_B3: first real voxel of each region.
        valid_hi_B3: first voxel beyond the real ones.
        size_zyx: voxels of a view.
        share: each side of a box is a share of the valid box's, drawn uniformly between these two per axis, and the
            box lies inside. None: each side is that of the view and starts at a whole voxel; where the valid box is
            the shorter one, it lies inside the drawn box.
    """
    shape = (len(valid_lo_B3), -1, 3)
    valid_B13 = (valid_hi_B3 - valid_lo_B3)[:, None].float()
    place_BV3 = chance.uniform(key_W, "place", (3,)).view(shape)
    if share is None:
        side_BV3 = torch.stack([torch.full_like(place_BV3[..., 0], size) for size in size_zyx], dim=-1)
        spare_BV3 = valid_B13 - side_BV3
        at_BV3 = spare_BV3.clamp(max=0) + (place_BV3 * (spare_BV3.abs() + 1)).floor()
    else:
        least, largest = share
        side_BV3 = valid_B13 * (least + (largest - least) * chance.uniform(key_W, "side", (3,)).view(shape))
        at_BV3 = place_BV3 * (valid_B13 - side_BV3)
    lo_BV3 = valid_lo_B3[:, None] + at_BV3
    return lo_BV3, lo_BV3 + side_BV3


def mm_per_voxel(lo_BV3: Tensor, hi_BV3: Tensor, size_zyx: tuple[int, int, int], spacing_mm_B3: Tensor) -> Tensor:
    """Tells how coarse each view is, mean of the three axes: (B, V)."""
    mm_BV3 = (hi_BV3 - lo_BV3) * spacing_mm_B3[:, None]
    return sum((mm_BV3[..., axis] / (3 * size) for axis, size in enumerate(size_zyx)), torch.zeros_like(mm_BV3[..., 0]))
