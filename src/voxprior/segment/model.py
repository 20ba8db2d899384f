"""Fine-tuning on the same contract as a pretraining method: views, loss terms, `after_step`.

Augmentation (`segment/augmentation.py`) and loss (`segment/loss.py`) are compiled as the network is.

Axes: B samples, C channels or classes (0 is background), Z Y X voxels.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from voxprior.maths import augment
from voxprior.maths.augment import UNKNOWN
from voxprior.maths.batch import Batch, Term, volume_from
from voxprior.maths.boxes import Region
from voxprior.maths.ema import follow
from voxprior.maths.schedules import momentum_from_half_life
from voxprior.nets.batchnorm import sum_over_processes
from voxprior.segment.augmentation import Augmentation, real_voxels
from voxprior.segment.loss import Loss, level_weights

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


class Model(nn.Module):
    """A segmentation network that learns from labelled crops."""

    def __init__(self, config: Config, network: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.network: Any = network
        self.average: Any = copy.deepcopy(network).requires_grad_(False) if config.ema else None
        self.augmentation, self.loss = Augmentation(config), Loss(config.regions)
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
        return Views(*self.augmentation(batch, key_B))

    def forward(self, views: Views, progress: float) -> dict[str, Term]:
        """Returns `dice` and `ce`, and for coarser levels of deep supervision `dice_1`, `ce_1` and so on.

        Where classes overlap, `bce` stands for `ce`.
        """
        logits = self.network(views.volume_BCZYX)
        levels = logits if isinstance(logits, list | tuple) else [logits]
        terms: dict[str, Term] = {}
        found = self.loss(levels, views.labels_BZYX)
        for level, (sums, weight) in enumerate(zip(found, level_weights(len(levels)), strict=True)):
            tail = f"_{level}" if level else ""
            for name, term in self.terms(tuple(levels[level].shape[:2]), *sums).items():
                terms[name + tail] = term._replace(weight=weight)
        return terms

    def terms(self, shape_bc: tuple[int, ...], dice: Tensor, ce: Tensor, known: Tensor) -> dict[str, Term]:
        """Gives the sums of one level their counts.

        None asks the device: every sample and class counts, an absent class as one that must stay absent. The binary
        cross-entropy of classes that overlap counts each voxel once per class.
        """
        samples, channels = shape_bc
        if self.config.regions:
            return {"dice": Term(dice, torch.tensor(samples * channels)), "bce": Term(ce, known * channels)}
        return {"dice": Term(dice, torch.tensor(samples * (channels - 1))), "ce": Term(ce, known)}

    def after_step(self, progress: float, total_steps: int) -> None:
        """Lets the averaged weights follow, where they are kept.

        At first they are the plain mean of all steps so far: an average that starts from the first weights would still
        hold some of them at the end of a run of few half-lives.
        """
        if self.average is not None:
            step = round(progress * (total_steps - 1))
            momentum = momentum_from_half_life(self.config.ema, total_steps)
            follow(self.average, self.network, min(momentum, step / (step + 1)))


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
            there, said = model.loss.held(labels), (logits > 0) & (labels != UNKNOWN)[:, None]
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
