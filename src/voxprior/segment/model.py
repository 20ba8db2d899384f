"""Fine-tuning on the same contract as a pretraining method: views, loss terms, `after_step`.

The loss is Dice + cross-entropy, as MONAI's `DiceCELoss`, with these choices: softmax; Dice of each sample and class on
its own (`batch=False`, so that its mean is the same for any number of processes); background in the cross-entropy but
not in the Dice; voxels with label 255, not labelled here, in neither. `DiceCELoss` cannot leave voxels out; where every
voxel is labelled, value and gradient are its own (a test).

Classes that overlap (`Config.regions`) have a sigmoid each and no channel of background: Dice as above, of every class,
and binary cross-entropy, as MONAI's `DiceLoss(sigmoid=True)` and torch's own. Label maps hold painted classes
(`maths/regions.py`), from which the overlapping targets are made on the device.

Axes: B samples, C channels or classes (0 is background), Z Y X voxels.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxprior.maths import augment
from voxprior.maths.augment import UNKNOWN
from voxprior.maths.batch import Batch, Term, volume_from
from voxprior.maths.boxes import Region
from voxprior.maths.ema import follow
from voxprior.maths.schedules import momentum_from_half_life
from voxprior.nets.batchnorm import sum_over_processes

SMOOTH = 1e-5  # MONAI's `smooth_nr` and `smooth_dr`: a class that is in neither map costs nothing
SPATIAL = augment.Spatial(turn_degrees=15.0, scale_by=1.2)


@dataclass(frozen=True)
class Config:
    """Crop and augmentation: nnU-Net's effects. Each probability is per sample.

    The rotation happens inside the crop, where nnU-Net cuts it from a larger one: what turns in from beyond its edge is
    0 in the image and unlabelled, so angles and scales are half of nnU-Net's.
    """

    crop_vox: tuple[int, int, int]
    flip_zyx: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spatial: augment.Spatial = SPATIAL
    blur: float = 0.1
    blur_sigma_vox: tuple[float, float] = (0.5, 1.0)
    brightness: float = 0.15
    brightness_change: float = 0.25
    low_resolution: float = 0.125
    coarsest: float = 2.0
    contrast: float = 0.3
    slope: float = 0.25
    shift: float = 0.1
    gamma: float = 0.3
    gamma_inverted: float = 0.1
    gamma_strength: float = 0.4
    noise: float = 0.15
    noise_deviation: float = 0.05
    ema: float = 0.0  # half-life of the averaged weights as a share of the run; 0: none are kept
    regions: tuple[tuple[int, ...], ...] = ()  # per painted class, those it belongs to; (): classes do not overlap


class Views(NamedTuple):
    """`volume_BCZYX` float32 after augmentation, and its `labels_BZYX`, uint8 with 255 where nothing is known."""

    volume_BCZYX: Tensor
    labels_BZYX: Tensor


def region(config: Config) -> Region:
    """Says what the loader reads per sample: the crop itself."""
    return Region(config.crop_vox)


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


def level_weights(levels: int) -> list[float]:
    """Weighs the levels of deep supervision: each half of the finer one, 1 together."""
    return [0.5**level / (2.0 - 0.5 ** (levels - 1)) for level in range(levels)]


class Model(nn.Module):
    """A segmentation network that learns from labelled crops."""

    belongs_KN: Any  # (K, 256) bool where classes overlap: which of them a voxel with a label belongs to

    def __init__(self, config: Config, network: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.network: Any = network
        self.average: Any = copy.deepcopy(network).requires_grad_(False) if config.ema else None
        self.register_buffer("belongs_KN", _belongs(config.regions) if config.regions else None, persistent=False)
        self.student_voxels = config.crop_vox[0] * config.crop_vox[1] * config.crop_vox[2]

    @property
    def encoder(self) -> nn.Module:
        """The part that a pretraining can fill."""
        encoder: nn.Module = self.network.encoder
        return encoder

    @property
    def chosen(self) -> nn.Module:
        """The network that is predicted with: the averaged one where there is one."""
        chosen: nn.Module = self.network if self.average is None else self.average
        return chosen

    def views(self, batch: Batch, key_B: Tensor) -> Views:
        """Augments image and labels together; padding is unlabelled."""
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
        return Views(augment.gamma(volume, key_B, c.gamma, c.gamma_strength), labels)

    def forward(self, views: Views, progress: float) -> dict[str, Term]:
        """Returns `dice` and `ce`, and for coarser levels of deep supervision `dice_1`, `ce_1` and so on.

        Where classes overlap, `bce` stands for `ce`.
        """
        logits = self.network(views.volume_BCZYX)
        levels = logits if isinstance(logits, list | tuple) else [logits]
        terms: dict[str, Term] = {}
        for level, (logits_BCZYX, weight) in enumerate(zip(levels, level_weights(len(levels)), strict=True)):
            tail = f"_{level}" if level else ""
            labels = shrink(views.labels_BZYX, tuple(logits_BCZYX.shape[2:]))
            for name, term in self.terms(logits_BCZYX.float(), labels).items():
                terms[name + tail] = term._replace(weight=weight)
        return terms

    def terms(self, logits_BCZYX: Tensor, labels_BZYX: Tensor) -> dict[str, Term]:
        """Computes the sums and counts of both losses: Dice over samples and classes, cross-entropy over voxels.

        The binary cross-entropy of classes that overlap counts each voxel once per class.
        """
        samples, channels = logits_BCZYX.shape[:2]
        known_BZYX = labels_BZYX != UNKNOWN
        if self.config.regions:
            target, known = self.held(labels_BZYX).float(), known_BZYX[:, None]
            dice = soft_dice_error(logits_BCZYX.sigmoid() * known, target).sum()
            bce = F.binary_cross_entropy_with_logits(logits_BCZYX, target, known.float(), reduction="sum")
            count = torch.tensor(samples * channels)
            return {"dice": Term(dice, count), "bce": Term(bce, known_BZYX.sum() * channels)}
        number = torch.arange(channels, device=labels_BZYX.device, dtype=torch.uint8).view(1, -1, 1, 1, 1)
        target = (labels_BZYX[:, None] == number).float()  # no class at all where unknown
        dice = soft_dice_error(logits_BCZYX.softmax(1) * known_BZYX[:, None], target)[:, 1:].sum()
        ce = F.cross_entropy(logits_BCZYX, labels_BZYX.long(), ignore_index=UNKNOWN, reduction="sum")
        # Neither count asks the device: every sample and class counts, an absent class as one that must stay absent.
        return {"dice": Term(dice, torch.tensor(samples * (channels - 1))), "ce": Term(ce, known_BZYX.sum())}

    def held(self, labels_BZYX: Tensor) -> Tensor:
        """Tells to which of overlapping classes every voxel belongs: (B, K, Z, Y, X) bool, none where unknown."""
        held: Tensor = self.belongs_KN[:, labels_BZYX.long()].movedim(0, 1)
        return held

    def after_step(self, progress: float, total_steps: int) -> None:
        """Lets the averaged weights follow, where they are kept.

        At first they are the plain mean of all steps so far: an average that starts from the first weights would still
        hold some of them at the end of a run of few half-lives.
        """
        if self.average is not None:
            step = round(progress * (total_steps - 1))
            momentum = momentum_from_half_life(self.config.ema, total_steps)
            follow(self.average, self.network, min(momentum, step / (step + 1)))


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


@torch.no_grad()
def crop_dice(model: Model, batches: Sequence[Batch]) -> dict[str, float]:
    """Measures Dice on whole batches that are not augmented: `val_dice`, the mean over the classes that they hold.

    Voxels of all crops count together, so that a crop that only touches an organ has no score of its own. A monitor:
    crops and not scans, prepared and not native grids. Empty where the crops hold no class.
    """
    network = model.chosen.eval()
    device = next(network.parameters()).device
    counts: Any = 0
    for batch in batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = batch["labels_BZYX"].masked_fill(~real_voxels(batch), UNKNOWN)
        logits = network(volume_from(batch))
        if model.config.regions:
            there, said = model.held(labels), (logits > 0) & (labels != UNKNOWN)[:, None]
        else:
            found = logits.argmax(1).to(torch.uint8).masked_fill(labels == UNKNOWN, UNKNOWN)
            number = torch.arange(1, logits.shape[1], device=device, dtype=torch.uint8).view(1, -1, 1, 1, 1)
            there, said = labels[:, None] == number, found[:, None] == number
        counts = counts + torch.stack([part.sum((0, 2, 3, 4)) for part in (there & said, there, said)]).double()
    network.train()
    overlap_K, there_K, said_K = sum_over_processes(counts)  # each has its share of the crops
    held_K = there_K > 0
    if not bool(held_K.any()):
        return {}
    return {"val_dice": float((2 * overlap_K / (there_K + said_K))[held_K].mean())}
