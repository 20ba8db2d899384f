"""BYOL in 3-D: two views of one region must give the same vector, whatever the crop, the mirror and the intensities.

Paper: Grill et al., "Bootstrap your own latent", NeurIPS 2020, arXiv 2006.07733. Here it is the control of PGL
(`methods/pgl.py`), which takes views, networks, heads, teacher and recipe from this file and differs in one thing: BYOL
averages a feature map over space before the heads, PGL keeps its places.

Verified in the authors' code of BYOL: symmetric loss 2 - 2 cos, teacher without predictor, momentum 0.996 rising to 1
by a cosine, heads 4096 and 256 wide, each view through the network on its own, head statistics over all devices, LARS
(rate 0.2 per 256 samples, decay 1.5e-6 at 1000 epochs, biases and norms without either). The views are PGL's, as an
independent re-implementation records them; PGL's paper itself could not be read (see there).

Departures, and why:
- Three dimensions, and PGL's views: a control differs in one thing.
- The encoder sees no batch statistics: those of this project have none. In the heads they are the paper's
  (`head_norm: batch`); `layer` is for batches of a few scans.
- The momentum is a half-life, a share of the run (`schedule: share`): 0.996 halves the old weights in 173 steps, which
  is 2.45 % of PGL's 7063 (1808 scans, 500 epochs, batches of 128) and longer than many a short run.
- Intensities change about fixed numbers of the window, not the crop's own (`maths/intensity.py`).
- Volumes too small for a pair of boxes use one box twice; a study with more than 5 % such pairs is refused.

Axes: B samples, V the two views, C channels, Z Y X voxels, z y x cells of a feature map, N vectors of a sample.

Dictionary: paper word -> ours. online network -> student (encoder, projector, predictor); target network -> teacher;
representation y -> feature map; projection z -> projection; prediction q(z) -> prediction; tau -> momentum.
"""

import copy
import math
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.maths import intensity, pairs
from voxprior.maths.augment import draw_flips
from voxprior.maths.boxes import Region
from voxprior.maths.chance import mix
from voxprior.maths.collapse import effective_rank, relative_deviation
from voxprior.maths.crops import cut
from voxprior.maths.ema import follow, taught
from voxprior.maths.patches import grid
from voxprior.maths.schedules import cosine, momentum_from_half_life
from voxprior.methods.contract import Batch, Term, volume_from
from voxprior.nets.backbones import Backbone
from voxprior.nets.features import feature_map, stages, stride_of, trained_state, width_of
from voxprior.nets.heads import Head, Norm

TITLE = "BYOL"
MOST_FALLBACKS = 0.05  # share of the pairs that may be one box twice

Limits = tuple[float, float]


class Config(BaseModel):
    """The numbers of BYOL on PGL's views; defaults as recorded of PGL's paper, and BYOL's own where it is silent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(1, ge=1, description="raised when the same numbers give other results")
    view_vox: tuple[int, int, int] = Field((16, 96, 96), description="Z Y X, multiples of the stride of the map")
    view_mm: tuple[float, float, float] | None = Field(
        None, description="what a view spans at scale 1; null: as many voxels of the prepared volume as it has"
    )
    scale: Limits = Field((1.1, 1.4), description="a box is this many times as large, drawn per box and axis")
    min_overlap: float = Field(0.10, gt=0, lt=1, description="of two boxes: intersection over union, by volume")
    shared_z: bool = Field(True, description="both boxes have the same range along Z; unknown in the paper")
    parent: float = Field(2.0, ge=1, description="side of the region that is read for a pair, in views")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring, per view and axis")
    noise: float = Field(0.1, ge=0, le=1, description="probability of Gaussian noise, per view")
    noise_variance: float = Field(0.1, ge=0, description="largest; of intensities standardised as below")
    blur: float = Field(0.2, ge=0, le=1, description="probability of Gaussian blur, per view")
    blur_vox: Limits = (0.5, 1.0)
    brightness: float = Field(0.5, ge=0, le=1, description="probability of a change of brightness, per view")
    brightness_factor: Limits = (0.75, 1.25)
    gamma: float = Field(0.5, ge=0, le=1, description="probability of a gamma change, per view")
    gamma_power: Limits = (0.7, 1.5)
    intensity_mean: float = Field(0.6415, description="0 of standardised data: -158.58 HU in -1024 to 325")
    intensity_deviation: float = Field(0.2407, gt=0, description="1 of standardised data: 324.7 HU of 1349")
    head_hidden: int = Field(4096, ge=2)
    head_out: int = Field(256, ge=2)
    head_norm: Norm = Field("batch", description="batch: statistics over the vectors of a view; layer: of each vector")
    level: int | None = Field(None, ge=0, description="stage of a CNN whose map is used, 0 full resolution; null: last")
    standardise_weights: bool = Field(False, description="of a CNN's convolutions; segmentation inherits them so")
    schedule: Literal["share", "released"] = Field("share", description="what the teacher's momentum starts from")
    teacher_half_life: float = Field(0.0245, gt=0, description="share of the run; under share")
    teacher_momentum: float = Field(0.996, ge=0, le=1, description="under released")
    optimiser: Literal["adamw", "lars"] = Field("adamw", description="adamw: the backbone's recipe; lars: as below")
    lars_lr: float = Field(0.2, gt=0, description="per 256 samples of a batch")
    lars_warmup: float = Field(0.004, ge=0, le=1, description="share of the run: 2 of 500 epochs")
    lars_weight_decay: float = Field(1.5e-6, ge=0)

    @model_validator(mode="after")
    def _pairs_exist(self) -> "Config":
        for name in ("scale", "blur_vox", "brightness_factor", "gamma_power"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} goes from {low} to {high}: it must increase, above 0")
        if self.parent < self.scale[1]:
            raise ValueError(f"parent {self.parent} is smaller than the largest box of scale, {self.scale[1]}")
        if min(self.view_vox) < 1 or min(self.view_mm or (1.0,)) <= 0:
            raise ValueError("view_vox and view_mm must be positive")
        lost = pairs.unreachable_share(self.scale, self.min_overlap, self.shared_z)
        if lost > MOST_FALLBACKS:
            raise ValueError(
                f"min_overlap {self.min_overlap} cannot be reached by {lost:.0%} of the pairs of boxes with scale "
                f"{self.scale[0]} to {self.scale[1]}: lower it or narrow the scale"
            )
        return self


class Views(NamedTuple):
    """Both views of each sample, where they lie in the region, and the keys. Boxes in edge coordinates, Z Y X."""

    volume_BVCZYX: Tensor
    lo_BV3: Tensor
    hi_BV3: Tensor
    flipped_BV3: Tensor
    shared_lo_B3: Tensor  # what both boxes and the valid box share
    shared_hi_B3: Tensor
    fallback_B: Tensor
    key_B: Tensor


def accepts(backbone: Backbone) -> str | None:
    """Returns None: both families give a feature map."""
    return None


def region(config: Config, backbone: Backbone) -> Region:
    """Asks the loader for the parent box in which a pair is drawn: `parent` views, along a shared Z the largest box.

    Raises:
        Refusal: a side of the views is no multiple of the map's stride, or the backbone has no such level.
    """
    stage = -1 if config.level is None else config.level
    deepest = 0 if backbone.family == "vit" else backbone.architecture["pretrained_stages"] - 1
    if stage > deepest:
        raise Refusal(f"level {stage} is below the last map of {backbone.name}, {deepest}: lower it or leave it null")
    if config.standardise_weights and backbone.family == "vit":
        raise Refusal(f"standardise_weights is about convolutions and {backbone.name} has none: set it to false")
    grid(config.view_vox, backbone.unit_vox if stage in (-1, deepest) else 2**stage)
    times = (config.scale[1] if config.shared_z else config.parent, config.parent, config.parent)
    z, y, x = (math.ceil(side * factor - 1e-6) for side, factor in zip(config.view_vox, times, strict=True))
    if config.view_mm is None:
        return Region((z, y, x))
    z_mm, y_mm, x_mm = (side * factor for side, factor in zip(config.view_mm, times, strict=True))
    return Region((z, y, x), size_mm=(z_mm, y_mm, x_mm))


def suits(
    config: Config, shapes_vox: list[tuple[int, int, int]], spacings_mm: list[tuple[float, float, float]]
) -> str | None:
    """Returns None, or why pairs cannot be drawn in volumes of these sizes (Z Y X): more than 5 % are too small."""
    least = []
    for spacing in spacings_mm:
        one = [mm / s for mm, s in zip(config.view_mm, spacing, strict=True)] if config.view_mm else config.view_vox
        least.append([side * config.scale[0] for side in one])
    small = [any(n < m - 1e-6 for n, m in zip(*pair, strict=True)) for pair in zip(shapes_vox, least, strict=True)]
    # Every volume is read equally often; in a large enough one, the sides alone may still be in the way.
    share = sum(small) / len(small)
    share += (1 - share) * pairs.unreachable_share(config.scale, config.min_overlap, config.shared_z)
    if share <= MOST_FALLBACKS:
        return None
    what = f"view_vox {list(config.view_vox)}" if config.view_mm is None else f"view_mm {list(config.view_mm)}"
    return (
        f"{share:.0%} of the pairs would be one box twice, because {sum(small)} of {len(small)} volumes are smaller "
        f"than {what} at scale {config.scale[0]}: make the views smaller"
    )


def recipe(config: Config, batch_size: int) -> dict[str, Any] | None:
    """Returns the recipe of the paper, LARS, for a batch; None: the backbone's own.

    Raises:
        Refusal: pooled vectors, one a sample, are to be normalised by the statistics of a batch of one.
    """
    check_batch(config, batch_size)
    return paper_recipe(config, batch_size)


def paper_recipe(config: Config, batch_size: int) -> dict[str, Any] | None:
    """Returns LARS for a batch: no clipping, decay and adaptation of weights alone. Grill et al. 2020, appendix."""
    if config.optimiser == "adamw":
        return None
    return {
        "optimiser": "lars",
        "lr": config.lars_lr * batch_size / 256,
        "momentum": 0.9,
        "trust": 1e-3,
        "weight_decay": config.lars_weight_decay,
        "warmup": config.lars_warmup,
        "clip": None,
    }


def check_batch(config: Config, batch_size: int) -> None:
    """Refuses batch statistics over a batch of one pooled vector."""
    if batch_size < 2 and config.head_norm == "batch":
        raise Refusal("byol: a batch of one has no batch statistics: set head_norm to layer or batch_size to 2 or more")


def cosine_distance(prediction: Tensor, projection: Tensor) -> Tensor:
    """Computes 2 - 2 cos of vectors along the last axis, between 0 and 4, in float32. Grill et al. 2020, eq. 2."""
    unit = F.normalize(prediction.float(), dim=-1)
    return 2 - 2 * (unit * F.normalize(projection.float(), dim=-1)).sum(-1)


class Teacher(nn.Module):
    """Copies of encoder and projector that no gradient reaches."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.projector = copy.deepcopy(projector)
        self.requires_grad_(False)


def through(head: nn.Module, map_BVzyxC: Tensor) -> Tensor:
    """Passes each view through a head on its own, so that each has its own statistics: (B, V, ..., C)."""
    return torch.stack([head(map_BzyxC) for map_BzyxC in map_BVzyxC.unbind(1)], 1)


def global_consistency(
    heads: tuple[nn.Module, nn.Module, nn.Module], student_BVzyxC: Tensor, teacher_BVzyxC: Tensor
) -> tuple[Term, Tensor]:
    """Compares the views by vectors averaged over space: L = d(q(z_a), z'_b) + d(q(z_b), z'_a), between 0 and 8.

    Args:
        heads: projector, predictor, and the teacher's projector.
        student_BVzyxC: the student's maps of both views.
        teacher_BVzyxC: the teacher's.

    Returns:
        The loss summed over samples with their number, and the projections (B, V, C).
    Source: Grill et al. 2020, eq. 2 and the symmetric form below it.
    """
    projector, predictor, teachers = heads
    space = (2, 3, 4)
    projection_BVC = through(projector, student_BVzyxC.float().mean(space))
    target_BVC = taught(through, teachers, teacher_BVzyxC.float().mean(space))
    apart_BV = cosine_distance(through(predictor, projection_BVC), target_BVC.flip(1))
    return Term(apart_BV.sum(), apart_BV.new_full((), float(len(apart_BV)))), projection_BVC


@torch.no_grad()
def monitors(projection_BVC: Tensor, views: Views) -> dict[str, Term]:
    """Watches for collapse and for pairs that do not overlap as they should; over processes, the mean of each one's.

    Args:
        projection_BVC: vectors of the student, (B, V, ..., C).
        views: the pairs.
    """
    vector_RC = projection_BVC.detach().flatten(0, -2)
    one, samples = vector_RC.new_ones((), dtype=torch.float32), views.fallback_B.new_ones(views.fallback_B.shape).sum()
    overlap_B = pairs.iou(views.lo_BV3, views.hi_BV3)
    return {
        "feature_deviation": Term(relative_deviation(vector_RC), one, 0.0),
        "feature_rank": Term(effective_rank(vector_RC), one, 0.0),
        "overlap_iou": Term(overlap_B.sum(), samples, 0.0),
        "fallback_share": Term(views.fallback_B.float().sum(), samples, 0.0),
    }


class Model(nn.Module):
    """BYOL on the contract of `methods.contract`; PGL replaces `terms` and shares everything else.

    Attributes:
        stage: of a CNN, which map is used; -1 the deepest.
        cells_zyx: cells of that map of one view.

    Raises:
        Refusal: the views are no multiple of the map's stride, or the encoder has no such map.
    """

    def __init__(self, config: Config, encoder: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.stage = -1 if config.level is None else config.level
        if self.stage >= stages(encoder):
            raise Refusal(f"level {self.stage} is below the last of the encoder's {stages(encoder)} maps: lower it")
        self.encoder = encoder
        self.stride = stride_of(encoder, self.stage)
        self.cells_zyx = grid(config.view_vox, self.stride)
        width = width_of(encoder, self.stage)
        self.projector = Head(width, config.head_hidden, config.head_out, config.head_norm)
        self.predictor = Head(config.head_out, config.head_hidden, config.head_out, config.head_norm)
        self.teacher = Teacher(encoder, self.projector)
        self.student_voxels = 2 * math.prod(config.view_vox)
        # On the device: a tensor made from Python numbers in a step would be a copy that the host waits for.
        side_3 = torch.tensor(config.view_mm or config.view_vox, dtype=torch.float64)
        self.register_buffer("side_3", side_3, persistent=False)

    # ------------------------------------------------------------------------------------------------ views
    def views(self, batch: Batch, key_B: Tensor) -> Views:
        """Draws a pair of overlapping boxes, cuts and mirrors them, and changes the intensities of each on its own."""
        config = self.config
        lo_B3, hi_B3 = batch["valid_lo_B3"], batch["valid_hi_B3"]
        side_B3 = cast(Tensor, self.side_3).expand(len(key_B), 3)
        if config.view_mm is not None:
            side_B3 = side_B3 / batch["spacing_mm_B3"]
        pair = pairs.draw_pair(key_B, lo_B3, hi_B3, side_B3, config.scale, config.min_overlap, config.shared_z)
        flips = (config.flip,) * 3
        flipped_BV3 = torch.stack([draw_flips(key_B, f"view/{name}/flip", flips) for name in "ab"], 1)
        volume_BVCZYX = cut(volume_from(batch), pair.lo_BV3, pair.hi_BV3, config.view_vox, lo_B3, hi_B3, flipped_BV3)
        view_V = torch.arange(2, device=key_B.device)
        changed_BCZYX = self.change(volume_BVCZYX.flatten(0, 1), mix(mix(key_B)[:, None] + view_V).flatten())
        shared = pairs.overlap_box(pair.lo_BV3, pair.hi_BV3, lo_B3, hi_B3)
        volume_BVCZYX = changed_BCZYX.unflatten(0, (-1, 2))
        return Views(volume_BVCZYX, pair.lo_BV3, pair.hi_BV3, flipped_BV3, *shared, pair.fallback_B, key_B)

    def change(self, volume_BCZYX: Tensor, key_B: Tensor) -> Tensor:
        """Adds noise, blurs, changes brightness and gamma, each with its own probability, in this order."""
        config = self.config
        variance = config.noise_variance * config.intensity_deviation**2
        volume_BCZYX = intensity.noise(volume_BCZYX, key_B, config.noise, variance)
        volume_BCZYX = intensity.blur(volume_BCZYX, key_B, config.blur, config.blur_vox)
        factor, zero = config.brightness_factor, config.intensity_mean
        volume_BCZYX = intensity.brightness(volume_BCZYX, key_B, config.brightness, factor, zero)
        return intensity.gamma(volume_BCZYX, key_B, config.gamma, config.gamma_power)

    # ------------------------------------------------------------------------------------------------ loss
    def features(self, encoder: nn.Module, volume_BVCZYX: Tensor) -> Tensor:
        """Encodes both views, (B, V, z, y, x, C); in one pass, as nothing in an encoder joins samples."""
        filters = self.config.standardise_weights
        return feature_map(encoder, volume_BVCZYX.flatten(0, 1), self.stage, filters).unflatten(0, (-1, 2))

    def forward(self, views: Views, progress: float) -> dict[str, Term]:
        """Encodes both views by student and teacher and returns the loss terms and the monitors."""
        student_BVzyxC = self.features(self.encoder, views.volume_BVCZYX)
        teacher_BVzyxC = taught(self.features, self.teacher.encoder, views.volume_BVCZYX)
        return self.terms(student_BVzyxC, teacher_BVzyxC, views)

    def terms(self, student_BVzyxC: Tensor, teacher_BVzyxC: Tensor, views: Views) -> dict[str, Term]:
        """Returns `global_consistency`, the loss summed over samples and their number, and the monitors."""
        heads = self.projector, self.predictor, self.teacher.projector
        term, projection_BVC = global_consistency(heads, student_BVzyxC, teacher_BVzyxC)
        return {"global_consistency": term, **monitors(projection_BVC, views)}

    def after_step(self, progress: float, total_steps: int) -> None:
        """Moves the teacher. Grill et al. 2020, section 3.2: the momentum rises to 1 along a cosine."""
        momentum = self.momentum(progress, total_steps)
        follow(self.teacher.encoder, self.encoder, momentum)
        follow(self.teacher.projector, self.projector, momentum)

    def momentum(self, progress: float, total_steps: int) -> float:
        """Tells the share of its old weights that the teacher keeps."""
        start = self.config.teacher_momentum
        if self.config.schedule == "share":
            start = momentum_from_half_life(self.config.teacher_half_life, total_steps)
        return cosine(start, 1.0, progress)

    # ------------------------------------------------------------------------------------------------ results
    def encoder_state(self) -> dict[str, Tensor]:
        """Returns what segmentation inherits: what was trained, with standardised weights where they were used so."""
        return trained_state(self.encoder, self.stage, self.config.standardise_weights)

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Shows `view_a` and `view_b` as the student sees them: (B, Z, Y, X) float32 in [0, 1]."""
        a_BCZYX, b_BCZYX = views.volume_BVCZYX.clamp(0, 1).unbind(1)
        return {"view_a": a_BCZYX[:, 0], "view_b": b_BCZYX[:, 0]}
