"""AnatoMask: a teacher finds the patches that are hard to paint, and the student is made to paint those.

Paper: Li et al., "AnatoMask: enhancing medical image segmentation with reconstruction-guided self-masking", ECCV 2024,
arXiv 2407.06468. Encoder, decoder and loss are SparK's (`methods/spark.py`).

Verified in the authors' code and method figure: per step a uniform random mask, the teacher's reconstruction under it,
its error per patch, the hardest share of the student's mask budget taken from what the teacher could not see, the rest
random; the share rises in a straight line from 0 to 0.5; the student alone is trained; the teacher is its moving
average (0.999 to 0.9999 over the first quarter). Not verified: the paper's body, its equations and tables (`eq. ?`).

Departures (those of SparK's page too, such as GroupNorm in the decoder):
    score          the loss the student is trained with. The code compares a standardised prediction with raw voxels, so
                   a perfect prediction scores mean^2 + (1 - deviation)^2 and plain background is "hard"; `released`
                   keeps that for comparisons, `denorm` compares in raw voxels.
    flat patches   are never hard: what a constant patch leaves to paint is scanner noise. Not under `released`.
    padding        is never hard, and outside the loss.
    schedules      in shares of the run, without the off-by-one that ends at 0.5005; `schedule: released` has both.
    teacher        does not run while no patch would be hard: its answer would not be used.

Axes: B samples, C channels, Z Y X voxels, N patches (mask units, Z-major), V values of one patch.

Words: EMA model = teacher; active, kept = visible; inactive = masked; loss_pred = score; guide = hard share above 0;
epoch = progress.
"""

import copy
import math
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.maths import ema, masking, patches, schedules
from voxprior.maths.boxes import Region
from voxprior.methods import spark
from voxprior.methods.contract import Batch, Term
from voxprior.methods.crop import Crop
from voxprior.nets.backbones import Backbone
from voxprior.nets.residual import StagedEncoder

TITLE = "AnatoMask"

Score = Literal["norm", "released", "denorm"]


class Config(BaseModel):
    """AnatoMask's numbers; the defaults are those of the authors' script at STU-Net-B."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    crop_vox: tuple[int, int, int] = Field((112, 112, 128), description="sides are multiples of the mask unit")
    mask_ratio: float = Field(0.6, gt=0, lt=1)
    decoder_width: int = Field(512, ge=1, description="channels at the deepest level; halved at every level above")
    decoder_norm: Literal["group", "batch"] = Field(
        "group", description="batch: over all samples and processes, as in the authors' code"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring, per axis")
    score: Score = Field("norm", description="what ranks patches: the training loss, the code's error, raw error")
    flat_below: float = Field(
        0.005, ge=0, description="patches of smaller standard deviation (intensities in [0, 1]) are never hard"
    )
    hard_start: float = Field(0.0, ge=0, le=1, description="hard share of the masked patches at the first step")
    hard_end: float = Field(0.5, ge=0, le=1, description="and at the last; swap the two for hard to easy")
    schedule: Literal["share", "released"] = Field("share", description="released: literal numbers, by epoch")
    epochs: int = Field(1000, ge=4, description="into which `schedule: released` divides the run")
    half_life_start: float = Field(0.0034, gt=0, description="teacher's half-life at the first step, share of the run")
    half_life_end: float = Field(0.034, gt=0, description="teacher's half-life once it stays, share of the run")
    half_life_until: float = Field(0.25, gt=0, le=1, description="share of the run after which it stays")
    least_half_life: float = Field(5.0, gt=0, description="the half-life is never shorter than this, in steps")


class Views(NamedTuple):
    """One augmented crop per sample, the teacher's random mask, which patches are real, and the keys of the fill."""

    volume_BCZYX: Tensor
    teacher_masked_BN: Tensor
    valid_BN: Tensor
    key_B: Tensor


def accepts(backbone: Backbone) -> str | None:
    """Returns None where AnatoMask can pretrain the backbone, as SparK can, else one sentence why not."""
    reason = spark.accepts(backbone)
    return reason and reason.replace(spark.TITLE, TITLE)


def region(config: Config, backbone: Backbone) -> Region:
    """Asks the loader for the crop itself.

    Raises:
        Refusal: a side of the crop is no multiple of the backbone's mask unit, or there is nothing to hide.
    """
    if math.prod(patches.grid(config.crop_vox, backbone.unit_vox)) < 2:
        raise Refusal(
            f"anatomask: crop_vox holds a single mask unit of {backbone.unit_vox} voxels: make the crop larger"
        )
    return Region(config.crop_vox)


def epoch_of(progress: float, epochs: int) -> int:
    """Tells the epoch, from 0, that a step belongs to where the run is divided into `epochs` equal ones."""
    return min(int(progress * epochs), epochs - 1)


def hard_share(config: Config, progress: float) -> float:
    """Tells which share of the masked patches is chosen by the teacher: in [0, 1] (masking dynamics, eq. ?; figure 2).

    A straight line from `hard_start` to `hard_end`. `released`: r(e) = start + (end - start) (e + 1) / (E - 1), which
    ends beyond `hard_end`.
    """
    if config.schedule == "released":
        progress = (epoch_of(progress, config.epochs) + 1) / (config.epochs - 1)
    share = config.hard_start + (config.hard_end - config.hard_start) * progress
    return min(max(share, 0.0), 1.0)


@torch.compiler.disable
def hard_count(config: Config, masked: int, progress: float) -> int:
    """Counts the masked patches that the teacher chooses: floor(share * masked), rounding errors aside.

    Not for a compiler to look into: it would compile the model anew for every value of `progress`.
    """
    return min(math.floor(hard_share(config, progress) * masked + 1e-9), masked)


def teacher_momentum(config: Config, progress: float, total_steps: int) -> float:
    """Tells how much of itself the teacher keeps at a step (eq. ?).

    The code raises the momentum m in a straight line from 0.999 to 0.9999 over the first quarter. 1 - m is 0.69 over
    the half-life, so here the inverse of the half-life goes in a straight line from start to end. Over the code's
    204,000 steps the two are the same.
    """
    if config.schedule == "released":
        epoch, rising = epoch_of(progress, config.epochs), config.epochs // 4
        return 0.999 + min(epoch / rising, 1.0) * (0.9999 - 0.999)
    first, last = 1.0 / config.half_life_start, 1.0 / config.half_life_end
    inverse = first + (last - first) * min(progress / config.half_life_until, 1.0)
    return schedules.momentum_from_half_life(1.0 / inverse, total_steps, config.least_half_life)


def patch_error(predicted_BNV: Tensor, patch_BNV: Tensor, score: Score) -> Tensor:
    """Scores how badly every patch is painted: (B, N) float32 (eq. ?).

    norm: the training loss, in standardised voxels. denorm: the same in raw voxels, variance times the loss.
    released: standardised prediction against raw voxels, as the code does; a perfect prediction does not score 0.
    """
    if score == "norm":
        return spark.patch_loss(predicted_BNV, patch_BNV)
    if score == "denorm":
        predicted_BNV = patches.destandardise(predicted_BNV, patch_BNV)
    return (predicted_BNV.float() - patch_BNV.float()).square().mean(dim=-1)


class Painter(nn.Module):
    """SparK's encoder and decoder: student and teacher are one each."""

    def __init__(self, encoder: StagedEncoder, decoder: spark.Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, volume_BCZYX: Tensor, masked_BN: Tensor) -> Tensor:
        """Predicts the standardised voxels of every patch from the visible ones alone: (B, N, V)."""
        return spark.reconstruct(self.encoder, self.decoder, volume_BCZYX, masked_BN)


class Model(nn.Module):
    """Trains an encoder by painting patches that its own moving average finds hard.

    Raises:
        Refusal: the crop is no multiple of the mask unit, or the decoder's width cannot be halved at every level.
    """

    def __init__(self, config: Config, encoder: StagedEncoder) -> None:
        super().__init__()
        self.config = config
        self.cells_zyx = patches.grid(config.crop_vox, encoder.unit_vox)
        self.crop = Crop(config.crop_vox, encoder.unit_vox, config.mask_ratio, config.flip, "teacher/mask")
        self.visible = masking.visible_count(math.prod(self.cells_zyx), config.mask_ratio)
        self.masked = math.prod(self.cells_zyx) - self.visible
        self.student_voxels = math.prod(config.crop_vox)
        decoder = spark.Decoder(encoder.channels, config.decoder_width, config.decoder_norm, encoder.channels_in)
        self.student = Painter(encoder, decoder)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    @property
    def encoder(self) -> StagedEncoder:
        """The student's encoder, which segmentation inherits."""
        return self.student.encoder

    def train(self, mode: bool = True) -> "Model":
        """Switches the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def views(self, batch: Batch, key_B: Tensor) -> Views:
        """Mirrors the crops and draws the teacher's masks: exactly `round(mask_ratio * N)` patches hidden, uniformly.

        The student's masks depend on progress and on the teacher's answer, so `forward` makes them, from the same keys.
        """
        volume_BCZYX, masked_BN, valid_BN = self.crop(batch, key_B)
        return Views(volume_BCZYX, masked_BN, valid_BN, key_B)

    def score(self, views: Views, patch_BNV: Tensor) -> Tensor:
        """Asks the teacher how hard each patch is to paint: (B, N) float32, -inf where a patch is never hard.

        Never hard is what the teacher saw, what is padding and, but for `released`, what is flat.
        """

        def error(volume_BCZYX: Tensor, masked_BN: Tensor, patch_BNV: Tensor) -> Tensor:
            return patch_error(self.teacher(volume_BCZYX, masked_BN), patch_BNV, self.config.score)

        error_BN = ema.taught(error, views.volume_BCZYX, views.teacher_masked_BN, patch_BNV)
        ranked_BN = views.teacher_masked_BN & views.valid_BN
        if self.config.score != "released":
            ranked_BN = ranked_BN & (patch_BNV.float().std(dim=-1) >= self.config.flat_below)
        return torch.where(ranked_BN, error_BN, -torch.inf)

    def student_mask(self, views: Views, patch_BNV: Tensor, hard: int) -> tuple[Tensor, Tensor]:
        """Hides the `hard` hardest patches and random others (figure 2): `masked_BN` and, of these, `hard_BN`.

        Where no patch is to be hard the teacher is not asked, and the mask is the one that SparK would draw.
        """
        score_BN = self.score(views, patch_BNV) if hard else views.valid_BN.float()
        return masking.hard_masked(score_BN, views.teacher_masked_BN, self.visible, hard, views.key_B)

    def forward(self, views: Views, progress: float) -> dict[str, Term]:
        """Returns `reconstruction`, the student's loss over masked patches that are not padding, and the monitors."""
        # Known from `progress` alone: nothing waits for the device.
        hard = hard_count(self.config, self.masked, progress)
        patch_BNV = patches.patchify(views.volume_BCZYX, self.encoder.unit_vox)
        masked_BN, hard_BN = self.student_mask(views, patch_BNV, hard)
        loss_BN = spark.patch_loss(self.student(views.volume_BCZYX, masked_BN), patch_BNV)
        counted_BN = masked_BN & views.valid_BN
        loss = Term(torch.where(counted_BN, loss_BN, 0.0).sum(), counted_BN.sum().float())
        return {"reconstruction": loss} | self.monitors(views, patch_BNV, masked_BN, hard_BN)

    @torch.no_grad()
    def monitors(self, views: Views, patch_BNV: Tensor, masked_BN: Tensor, hard_BN: Tensor) -> dict[str, Term]:
        """Watches the masks, without any influence on the training.

        hard_share: of the masked patches, how many the teacher chose. mask_overlap: how many the teacher could not see
        either. hard_deviation: mean standard deviation of the hard patches; hard_flat: how many of them are flat. A low
        deviation or a high share of flat ones says that the teacher chooses background.
        """
        deviation_BN = patch_BNV.float().std(dim=-1)

        def share(part_BN: Tensor, whole_BN: Tensor) -> Term:
            return Term(torch.where(whole_BN, part_BN.float(), 0.0).sum(), whole_BN.sum().float(), weight=0.0)

        return {
            "hard_share": share(hard_BN, masked_BN),
            "mask_overlap": share(views.teacher_masked_BN, masked_BN),
            "hard_deviation": share(deviation_BN, hard_BN),
            "hard_flat": share(deviation_BN < self.config.flat_below, hard_BN),
        }

    def after_step(self, progress: float, total_steps: int) -> None:
        """Moves the teacher towards the student: teacher = m teacher + (1 - m) student (eq. ?)."""
        ema.follow(self.teacher, self.student, teacher_momentum(self.config, progress, total_steps))

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Shows `input`, `masked_input`, `reconstruction` and `teacher_error`: each (B, Z, Y, X) float32 in [0, 1].

        The masks are those of the last step. As with SparK, predicted patches are given the true patch's mean and
        deviation and visible patches are shown as they were. `teacher_error` paints each patch with its score as a
        share of the crop's highest; 0 where a patch is never hard.
        """
        unit_vox = self.encoder.unit_vox
        patch_BNV = patches.patchify(views.volume_BCZYX, unit_vox).float()
        score_BN = self.score(views, patch_BNV)
        hard = hard_count(self.config, self.masked, 1.0)
        masked_BN, _ = masking.hard_masked(score_BN, views.teacher_masked_BN, self.visible, hard, views.key_B)
        predicted_BNV = patches.destandardise(self.student(views.volume_BCZYX, masked_BN), patch_BNV)
        error_BN1 = score_BN.clamp(min=0.0)[:, :, None]
        masked_BN1 = masked_BN[:, :, None]
        shown = {
            "input": patch_BNV,
            "masked_input": torch.where(masked_BN1, 0.0, patch_BNV),
            "reconstruction": torch.where(masked_BN1, predicted_BNV, patch_BNV),
            "teacher_error": (error_BN1 / error_BN1.amax(dim=1, keepdim=True).clamp(min=1e-12)).expand_as(patch_BNV),
        }
        return {
            name: patches.unpatchify(value_BNV, self.cells_zyx, unit_vox)[:, 0].clamp(0, 1)
            for name, value_BNV in shown.items()
        }
