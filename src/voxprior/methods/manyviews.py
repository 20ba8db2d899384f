"""Views of several kinds of one volume, as GL-MAE's global and local ones: what a kind is, and where its views lie.

Axes: B samples, V views of a sample, W = B V views, N patches (Z-major order).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxprior.maths import chance
from voxprior.maths.augment import draw_flips, flip
from voxprior.maths.boxes import valid_patches
from voxprior.maths.masking import random_masked, visible_count
from voxprior.maths.places import draw_boxes, mm_per_voxel


@dataclass(frozen=True)
class Kind:
    """One kind of view: how many, how large, and how much of it is hidden."""

    name: str
    views: int
    size_zyx: tuple[int, int, int]
    share: tuple[float, float]
    ratio: float
    grid_zyx: tuple[int, int, int]

    @property
    def patches(self) -> int:
        """Patches of one view."""
        return math.prod(self.grid_zyx)

    @property
    def visible(self) -> int:
        """Patches of one view that the student sees."""
        return visible_count(self.patches, self.ratio)


class Draws(nn.Module):
    """Draws where the views of one kind lie, how they are mirrored and which patches are hidden.

    A module, so that it is compiled with the networks: as written it is hundreds of kernels of a few numbers each.

    Args:
        kind: of view.
        patch_vox: side of a patch.
        resized: boxes of other sizes than the view's are resampled to it.
        flip: probability of being mirrored, of each axis.
    """

    compiled = True

    def __init__(self, kind: Kind, patch_vox: int, resized: bool, flip: float) -> None:
        super().__init__()
        self.kind, self.patch_vox, self.resized, self.flip = kind, patch_vox, resized, flip

    def forward(self, lo_B3: Tensor, hi_B3: Tensor, spacing_mm_B3: Tensor, key_B: Tensor) -> tuple[Tensor, ...]:
        """Returns boxes and mirrors (B, V, 3), masked, valid, mm per voxel (mean of the axes) as in `Views`."""
        kind = self.kind
        key_W = chance.bits(key_B, kind.name, (kind.views,)).flatten()
        share = kind.share if self.resized else None
        lo_BV3, hi_BV3 = draw_boxes(key_W, lo_B3, hi_B3, kind.size_zyx, share)
        flipped_W3 = draw_flips(key_W, "flip", (self.flip,) * 3)
        masked_WN = random_masked(key_W, kind.patches, kind.ratio)
        valid_WN = torch.ones_like(masked_WN)
        if share is None:
            first_W3, last_W3 = ((edge_B3[:, None] - lo_BV3).flatten(0, 1) for edge_B3 in (lo_B3, hi_B3))
            valid_WN = valid_patches(first_W3, last_W3, kind.size_zyx, self.patch_vox)
            valid_WN = flip(valid_WN.unflatten(1, kind.grid_zyx), flipped_W3).flatten(1)
        rows = flipped_W3, masked_WN, valid_WN
        apart = [row.unflatten(0, (-1, kind.views)) for row in rows]
        return lo_BV3, hi_BV3, *apart, mm_per_voxel(lo_BV3, hi_BV3, kind.size_zyx, spacing_mm_B3)
