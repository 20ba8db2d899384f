"""What fine-tuning does to its crops: nnU-Net's effects (`maths/augment.py`), image and labels together.

Axes: B samples, C channels, Z Y X voxels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from voxprior.maths import augment
from voxprior.maths.augment import UNKNOWN
from voxprior.maths.batch import Batch, volume_from


def real_voxels(batch: Batch) -> Tensor:
    """Tells which voxels of the crop are not padding: (B, Z, Y, X) bool."""
    sides = batch["labels_BZYX"].shape
    inside = torch.ones(sides, dtype=torch.bool, device=batch["labels_BZYX"].device)
    for axis, side in enumerate(sides[1:]):
        at = torch.arange(side, device=batch["valid_lo_B3"].device)[None]
        axis_BN = (at >= batch["valid_lo_B3"][:, axis, None]) & (at < batch["valid_hi_B3"][:, axis, None])
        axis_BZYX = axis_BN.view(-1, *[side if other == axis else 1 for other in range(3)])
        inside &= axis_BZYX
    return inside


class Augmentation(nn.Module):
    """Mirrors, turns, scales, and changes intensities; padding is unlabelled.

    A module without weights, so that it is compiled with the network: as written it is 1,800 operations, on a
    GPU a kernel each, most of them for labels that a turn moves and integers that the noise is counted from.
    """

    compiled = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, key_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns image (B, C, Z, Y, X) float32 and labels (B, Z, Y, X) uint8, 255 where nothing is known."""
        c = self.config
        labels = batch["labels_BZYX"].masked_fill(~real_voxels(batch), UNKNOWN)
        flipped_B3 = augment.draw_flips(key_B, "augment/flip", c.flip_zyx)
        volume, labels = augment.flip(volume_from(batch), flipped_B3), augment.flip(labels, flipped_B3)
        volume, labels = augment.spatial(volume, labels, key_B, batch["spacing_mm_B3"], c.spatial)
        volume = augment.noise(volume, key_B, c.noise, c.noise_deviation)
        volume = augment.blur(volume, key_B, c.blur, c.blur_sigma_vox)
        volume = augment.brightness(volume, key_B, c.brightness, c.brightness_change)
        volume = augment.contrast(volume, key_B, c.contrast, c.slope, c.shift)
        volume = augment.low_resolution(volume, key_B, c.low_resolution, c.coarsest)
        volume = augment.gamma(volume, key_B, c.gamma_inverted, c.gamma_strength, inverted=True)
        return augment.gamma(volume, key_B, c.gamma, c.gamma_strength), labels
