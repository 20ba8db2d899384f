"""BYOL in 3-D: two views of one region must give the same vector, whatever the crop, the mirror and the intensities.

Paper: Grill et al., "Bootstrap your own latent", NeurIPS 2020, arXiv 2006.07733. Here it is the control of PGL
(`methods/pgl.py`), which takes views, networks, heads, teacher and recipe from this file and differs in one thing: BYOL
averages a feature map over space before the heads, PGL keeps its places.

Verified in the authors' code of BYOL: symmetric loss 2 - 2 cos, teacher without predictor, momentum 0.996 rising to 1
by a cosine, heads 4096 and 256 wide, each view through the network on its own, head statistics over all devices, LARS
(rate 0.2 per 256 samples, decay 1.5e-6 at 1000 epochs, biases and norms without either). The views are PGL's
(`methods/twoviews.py`).

Departures, and why:
- Three dimensions, and PGL's views: a control differs in one thing.
- The encoder sees no batch statistics: those of this project have none. In the heads they are the paper's
  (`head_norm: batch`); `layer` is for batches of a few scans.
- The momentum is a half-life, a share of the run (`schedule: share`): 0.996 halves the old weights in 173 steps, which
  is 2.45 % of PGL's 7063 (1808 scans, 500 epochs, batches of 128) and longer than many a short run.

Axes: B samples, V the two views, C channels, Z Y X voxels, z y x cells of a feature map, N vectors of a sample.

Dictionary: paper word -> ours. online network -> student (encoder, projector, predictor); target network -> teacher;
representation y -> feature map; projection z -> projection; prediction q(z) -> prediction; tau -> momentum.
"""

import copy
import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.maths import pairs
from voxprior.maths.boxes import Region
from voxprior.maths.collapse import effective_rank, relative_deviation
from voxprior.maths.ema import follow, taught
from voxprior.maths.patches import grid
from voxprior.maths.schedules import cosine, momentum_from_half_life
from voxprior.methods.contract import Batch, Term
from voxprior.methods.twoviews import Change, Pair, ViewConfig, Views, parent, side_of, suits, two_views
from voxprior.nets.backbones import Backbone
from voxprior.nets.batchnorm import of_all_processes
from voxprior.nets.features import feature_map, stages, stride_of, trained_state, width_of
from voxprior.nets.heads import Head, Norm

__all__ = ["TITLE", "Config", "Model", "Views", "accepts", "recipe", "region", "suits"]

TITLE = "BYOL"


class Config(ViewConfig):
    """The numbers of BYOL on PGL's views; where those of PGL are unknown, BYOL's own."""

    version: int = Field(1, ge=1, description="raised when the same numbers give other results")
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


def accepts(backbone: Backbone) -> str | None:
    """Says why a backbone cannot be pretrained by BYOL, or None where it can."""
    if backbone.family != "swin":
        return None
    # Tiny preset, phantoms, 150 steps: of their spread over places features keep 0.17 (BYOL) and 0.11 (PGL), where
    # `tests/methods` asks for 0.25 and BYOL on a ViT keeps 0.38.
    return "BYOL collapses on a Swin, whose cells soon hold the same everywhere: start it from scratch or from a file"


def region(config: Config, backbone: Backbone) -> Region:
    """Asks the loader for the parent box in which a pair is drawn: `parent` views, along a shared Z the largest box.

    Raises:
        Refusal: a side of the views is no multiple of the map's stride, or the backbone has no such level.
    """
    stage = -1 if config.level is None else config.level
    if stage >= backbone.maps:
        last = backbone.maps - 1
        raise Refusal(f"level {stage} is below the last map of {backbone.name}, {last}: lower it or leave it null")
    if config.standardise_weights and backbone.family != "cnn":
        raise Refusal(f"standardise_weights is about convolutions and {backbone.name} has none: set it to false")
    grid(config.view_vox, backbone.stride_vox(stage))
    return parent(config)


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
    """Watches for collapse and for pairs that do not overlap as they should.

    A process may hold a single sample, whose two views are alike in any network: the vectors of all are looked at.

    Args:
        projection_BVC: vectors of the student, (B, V, ..., C).
        views: the pairs.
    """
    vector_RC = of_all_processes(projection_BVC.flatten(0, -2))
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
        self.register_buffer("side_3", side_of(config), persistent=False)
        self.pair, self.change = Pair(config), Change(config)

    def views(self, batch: Batch, key_B: Tensor) -> Views:
        """Cuts two overlapping views, see `twoviews.two_views`."""
        return two_views(self.config, batch, key_B, cast(Tensor, self.side_3), self.pair, self.change)

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

    def encoder_state(self) -> dict[str, Tensor]:
        """Returns what segmentation inherits: what was trained, with standardised weights where they were used so."""
        return trained_state(self.encoder, self.stage, self.config.standardise_weights)

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Shows `view_a` and `view_b` as the student sees them: (B, Z, Y, X) float32 in [0, 1]."""
        a_BCZYX, b_BCZYX = views.volume_BVCZYX.clamp(0, 1).unbind(1)
        return {"view_a": a_BCZYX[:, 0], "view_b": b_BCZYX[:, 0]}
