"""The crop as the methods that paint it see it: float32, mirrored, some of its patches hidden.

Axes: B samples, C channels, Z Y X voxels, N patches (Z-major order).
"""

import math

from torch import Tensor, nn

from voxprior.maths import augment, masking
from voxprior.maths.batch import Batch, volume_from
from voxprior.maths.boxes import valid_patches
from voxprior.maths.patches import grid


class Crop(nn.Module):
    """Mirrors the crops, hides exactly `round(mask_ratio * N)` patches of each, and notes which patches are real.

    A module, so that it is compiled with the networks: as written it is over a hundred kernels on a GPU, most of them
    for a few integers that chance is counted from.

    Args:
        crop_vox: size of a crop.
        patch_vox: side of a patch.
        mask_ratio: share of the patches that are hidden.
        flip: probability of being mirrored, of each axis.
        stream: name of the mask's draw.
    """

    compiled = True

    def __init__(
        self, crop_vox: tuple[int, int, int], patch_vox: int, mask_ratio: float, flip: float, stream: str = "mask"
    ) -> None:
        super().__init__()
        self.crop_vox, self.patch_vox, self.stream = crop_vox, patch_vox, stream
        self.mask_ratio, self.flip = mask_ratio, flip
        self.grid_zyx = grid(crop_vox, patch_vox)

    def forward(self, batch: Batch, key_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `volume_BCZYX` float32, `masked_BN` and `valid_BN` bool; all chance comes from the keys."""
        flipped_B3 = augment.draw_flips(key_B, "flip", (self.flip,) * 3)
        valid_BN = valid_patches(batch["valid_lo_B3"], batch["valid_hi_B3"], self.crop_vox, self.patch_vox)
        return (
            augment.flip(volume_from(batch), flipped_B3),
            masking.random_masked(key_B, math.prod(self.grid_zyx), self.mask_ratio, self.stream),
            augment.flip(valid_BN.unflatten(1, self.grid_zyx), flipped_B3).flatten(1),
        )
