"""Dice + cross-entropy of a segmentation, summed and counted.

As MONAI's `DiceCELoss`, with these choices: softmax; Dice of each sample and class on its own (`batch=False`, so that
its mean is the same for any number of processes); background in the cross-entropy but not in the Dice; voxels with
label 255, not labelled here, in neither. `DiceCELoss` cannot leave voxels out; where every voxel is labelled, value and
gradient are its own (a test).

Classes that overlap have a sigmoid each and no channel of background: Dice as above, of every class, and binary
cross-entropy, as MONAI's `DiceLoss(sigmoid=True)` and torch's own. Label maps hold painted classes
(`maths/regions.py`), from which the overlapping targets are made on the device.

Axes: B samples, C channels or classes (0 is background), K classes that overlap, N labels, Z Y X voxels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxprior.maths.augment import UNKNOWN

SMOOTH = 1e-5  # MONAI's `smooth_nr` and `smooth_dr`: a class that is in neither map costs nothing


class Loss(nn.Module):
    """Sums both losses at each level of deep supervision.

    A module without weights, so that it is compiled with the network: as written each operation is a pass over
    logits of all classes at full resolution.

    Args:
        regions: per painted class, those it belongs to; (): classes do not overlap.
    """

    compiled = True
    belongs_KN: Any  # (K, 256) bool where classes overlap: which of them a voxel with a label belongs to

    def __init__(self, regions: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.register_buffer("belongs_KN", _belongs(regions) if regions else None, persistent=False)

    def forward(self, logits: list[Tensor], labels_BZYX: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns per level the sum of 1 - Dice, that of the cross-entropy, and how many voxels are labelled."""
        return [self.sums(level.float(), shrink(labels_BZYX, tuple(level.shape[2:]))) for level in logits]

    def sums(self, logits_BCZYX: Tensor, labels_BZYX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes one level's: Dice over samples and classes, cross-entropy over voxels (and classes that overlap)."""
        known_BZYX = labels_BZYX != UNKNOWN
        if self.belongs_KN is not None:
            target, known = self.held(labels_BZYX).float(), known_BZYX[:, None]
            dice = soft_dice_error(logits_BCZYX.sigmoid() * known, target).sum()
            bce = F.binary_cross_entropy_with_logits(logits_BCZYX, target, known.float(), reduction="sum")
            return dice, bce, known_BZYX.sum()
        number = torch.arange(logits_BCZYX.shape[1], device=labels_BZYX.device, dtype=torch.uint8).view(1, -1, 1, 1, 1)
        target = (labels_BZYX[:, None] == number).float()  # no class at all where unknown
        dice = soft_dice_error(logits_BCZYX.softmax(1) * known_BZYX[:, None], target)[:, 1:].sum()
        ce = F.cross_entropy(logits_BCZYX, labels_BZYX.long(), ignore_index=UNKNOWN, reduction="sum")
        return dice, ce, known_BZYX.sum()

    def held(self, labels_BZYX: Tensor) -> Tensor:
        """Tells to which of overlapping classes every voxel belongs: (B, K, Z, Y, X) bool, none where unknown."""
        held: Tensor = self.belongs_KN[:, labels_BZYX.long()].movedim(0, 1)
        return held


def _belongs(regions: Sequence[Sequence[int]]) -> Tensor:
    """Tabulates which classes a voxel of each label belongs to: (K, 256) bool."""
    belongs_KN = torch.zeros(len(regions), 256, dtype=torch.bool)
    for painted, classes in enumerate(regions, 1):
        belongs_KN[[number - 1 for number in classes], painted] = True
    return belongs_KN


def soft_dice_error(probability_BCZYX: Tensor, target_BCZYX: Tensor) -> Tensor:
    """Computes 1 - Dice of each sample and class, (B, C), from probabilities instead of a map.

    Source: Milletari et al., "V-Net", 3DV 2016, without the squares in the denominator, as in MONAI's `DiceLoss`.
    """
    space = (2, 3, 4)
    overlap_BC = (probability_BCZYX * target_BCZYX).sum(space)
    total_BC = probability_BCZYX.sum(space) + target_BCZYX.sum(space)
    return 1.0 - (2.0 * overlap_BC + SMOOTH) / (total_BC + SMOOTH)


def shrink(labels_BZYX: Tensor, size_zyx: tuple[int, ...]) -> Tensor:
    """Picks the label nearest to each coarser voxel's centre: (B, *size_zyx)."""
    if tuple(labels_BZYX.shape[1:]) == size_zyx:
        return labels_BZYX
    return F.interpolate(labels_BZYX[:, None].float(), size_zyx, mode="nearest-exact")[:, 0].to(torch.uint8)


def level_weights(levels: int) -> list[float]:
    """Weighs the levels of deep supervision: each half of the finer one, 1 together."""
    return [0.5**level / (2.0 - 0.5 ** (levels - 1)) for level in range(levels)]
