"""PGL: two views of one region must give the same features *at the same places*, found by the known crops and mirrors.

Paper: Xie et al., "PGL: prior-guided local self-supervised learning for 3D medical image segmentation", 2020,
arXiv 2011.12640.

Verified: the abstract (crop, mirror and scale are used to align the feature maps; local against global consistency;
latent space, no reconstruction). Nothing else of the paper could be read, and its repository holds no code. Views,
sizes, LARS at 0.2, 2 of 500 epochs of warm-up are as an independent re-implementation records them. Unknown, hence a
field or a choice of ours, and every equation is `eq. ?`: what "10 % overlap" means, whether Z is scaled, head widths,
momentum, decay, normalisation of the loss, the network. No result of the paper was reproduced.

What is ours, and why:
- Maps are read at the same anatomy by exact continuous coordinates, not by cutting whole cells (which misplaces
  features by 12 voxels on average at a stride of 16).
- A cell looks at j S + d, and d is *measured* (`nets/receptive.py`): 0 in stacks of strided 3x3x3 convolutions, not the
  middle of the cell, so that mirroring and mirroring back displaces features by S - 1 - 2 d voxels. The value measured
  before training is used throughout; how far it drifted is reported at the end.
- Vectors are normalised per place, after reading; places more than an eighth of a cell beyond the outermost
  centres do not count: there, a map could only be repeated.
- The mean is over places that count, of all samples and processes.
- Views, networks, heads, teacher and recipe are BYOL's (`methods/byol.py`): only the pooling differs.

Axes: B samples, V the two views, C channels, Z Y X voxels, z y x cells of a feature map, K places along one axis,
N places of a pair (Z-major), F cells along one axis.

Dictionary: paper word -> ours. global consistency -> BYOL, `global_consistency`; local consistency ->
`local_consistency`; prior -> boxes and mirrors that travel with the views; online / target -> student / teacher.
"""

import copy
import math
from typing import Any, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.maths import chance, pairs
from voxprior.maths.boxes import Region
from voxprior.maths.ema import follow, taught
from voxprior.maths.patches import grid
from voxprior.methods import byol
from voxprior.methods.byol import Views, suits
from voxprior.methods.contract import Term
from voxprior.nets.backbones import Backbone
from voxprior.nets.features import feature_map, width_of
from voxprior.nets.heads import Head
from voxprior.nets.receptive import receptive_offset
from voxprior.nets.vit import ViT

__all__ = ["TITLE", "Config", "Model", "Views", "accepts", "recipe", "region", "suits"]

TITLE = "PGL"


class Config(byol.Config):
    """BYOL's numbers, and how places are compared."""

    correspondence: Literal["aligned", "shuffled", "none"] = Field(
        "aligned", description="controls: shuffled compares each place with another; none compares cells by number"
    )
    beyond_cells: float = Field(
        0.125, ge=0, le=1, description="places this far beyond the outermost cells' centres still count in full"
    )
    clamped_weight: float = Field(0.0, ge=0, le=1, description="of places still farther out")
    lambda_global: float = Field(0.0, ge=0, description="weight of BYOL's term, with heads of its own")


class Places(NamedTuple):
    """Where both maps are read, and how much each place counts.

    `axes_V`: per view, coordinates along Z, Y, X, each (B, K), in the view. `partner_BN`: the place that the teacher's
    map is read at instead; None: the same.
    """

    axes_V: list[tuple[Tensor, Tensor, Tensor]]
    weight_BN: Tensor
    partner_BN: Tensor | None


def accepts(backbone: Backbone) -> str | None:
    """Says why a backbone cannot be pretrained by PGL, as BYOL does, or None where it can."""
    reason = byol.accepts(backbone)
    return reason and reason.replace(byol.TITLE, TITLE)


def region(config: Config, backbone: Backbone) -> Region:
    """Asks the loader for the parent box of a pair, see `byol.region`.

    Raises:
        Refusal: as there, or a view is a single cell, which has no places.
    """
    found = byol.region(config, backbone)
    check_cells(grid(config.view_vox, backbone.stride_vox(-1 if config.level is None else config.level)))
    return found


def check_cells(cells_zyx: tuple[int, int, int]) -> None:
    """Refuses a map of one cell."""
    if math.prod(cells_zyx) == 1:
        raise Refusal("pgl: a view of a single cell has no places to compare: make view_vox larger or take byol")


def recipe(config: Config, batch_size: int) -> dict[str, Any] | None:
    """Returns LARS as recorded of the paper, or None: the backbone's own. A map has many vectors: one scan is enough.

    Raises:
        Refusal: the global term would normalise one vector by the statistics of a batch of one.
    """
    if config.lambda_global:
        byol.check_batch(config, batch_size)
    return byol.paper_recipe(config, batch_size)


def read_places(map_BVzyxC: Tensor, axes_V: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Reads each view's map at its places, linearly between cells' centres, in float32: (B, V, N, C). eq. ?"""
    read = []
    for map_BzyxC, axes in zip(map_BVzyxC.unbind(1), axes_V, strict=True):
        z, y, x = (pairs.interpolation(u, cells) for u, cells in zip(axes, map_BzyxC.shape[1:4], strict=True))
        read.append(pairs.read(map_BzyxC, (z, y, x)))
    return torch.stack(read, 1)


def local_consistency(prediction_BVNC: Tensor, target_BVNC: Tensor, weight_BN: Tensor) -> Term:
    """Compares both maps place by place: sum_n w_n (|p_a - z_b|^2 + |p_b - z_a|^2) over unit vectors, and sum_n w_n.

    Between 0 and 8. A place that does not count has no influence, whatever it holds, and pairs that share nothing
    count nothing. eq. ?
    """
    apart_BN = byol.cosine_distance(prediction_BVNC, target_BVNC.flip(1)).sum(1)
    return Term((torch.where(weight_BN > 0, apart_BN, 0.0) * weight_BN).sum(), weight_BN.sum())


class Model(byol.Model):
    """PGL on the contract of `methods.contract`: BYOL that keeps places.

    Attributes:
        offset_3: the receptive-field offset in use, Z Y X in voxels of a view: as measured before the first step.
    """

    config: Config
    offset_3: Tensor

    def __init__(self, config: Config, encoder: nn.Module) -> None:
        super().__init__(config, encoder)
        check_cells(self.cells_zyx)
        if config.lambda_global:
            width = width_of(encoder, self.stage)
            self.global_projector = Head(width, config.head_hidden, config.head_out, config.head_norm)
            self.global_predictor = Head(config.head_out, config.head_hidden, config.head_out, config.head_norm)
            self.teacher.global_projector = copy.deepcopy(self.global_projector).requires_grad_(False)
        on_meta = next(encoder.parameters()).is_meta  # sizes alone, nothing that could be measured
        measured = (0.0, 0.0, 0.0) if on_meta else self.measure_offset()
        self.register_buffer("offset_3", torch.tensor(measured, dtype=torch.float32))

    def measure_offset(self) -> tuple[float, float, float]:
        """Measures the encoder's receptive-field offset as it is now, Z Y X in voxels."""
        filters = self.config.standardise_weights
        return receptive_offset(
            self.encoder,
            lambda volume: feature_map(self.encoder, volume, self.stage, filters),
            self.stride,
            alone=isinstance(self.encoder, ViT),
            channels=cast(Any, self.encoder).channels_in,
        )

    def shifts(self) -> list[Tensor | float]:
        """Computes per axis how far a map's coordinate lies from a view's: (S - 1 - 2 d) / n, 0 where d is the middle.

        The shift is in the frame of the view, after its mirror: every view is encoded by the same network.
        """
        if self.config.correspondence == "none":
            return [0.0, 0.0, 0.0]
        return [(self.stride - 1 - 2 * self.offset_3[axis]) / side for axis, side in enumerate(self.config.view_vox)]

    def places(self, views: Views) -> Places:
        """Finds the same anatomy in both maps, or what a negative control takes for it. eq. ?

        As many places per axis as a map has cells, evenly spread over what both boxes share.
        """
        found: list[list[Tensor]] = [[], []]
        inside, shared = [], []
        for axis, (cells, shift) in enumerate(zip(self.cells_zyx, self.shifts(), strict=True)):
            lo_B, hi_B = views.shared_lo_B3[:, axis], views.shared_hi_B3[:, axis]
            for view in (0, 1):
                if self.config.correspondence == "none":
                    u_BK = pairs.spread(torch.full_like(lo_B, -1.0), torch.ones_like(lo_B), cells)
                else:
                    box = views.lo_BV3[:, view, axis, None], views.hi_BV3[:, view, axis, None]
                    mirrored_B1 = views.flipped_BV3[:, view, axis, None]
                    u_BK = pairs.to_view(pairs.spread(lo_B, hi_B, cells), *box, mirrored_B1)
                found[view].append(u_BK + shift)
            beyond = self.config.beyond_cells
            inside.append(pairs.within(found[0][axis], cells, beyond) & pairs.within(found[1][axis], cells, beyond))
            shared.append((hi_B > lo_B)[:, None].expand(-1, cells))
        inside_BN, shared_BN = (pairs.grid_points(*flags).all(-1) for flags in (inside, shared))
        weight_BN = torch.where(inside_BN, 1.0, self.config.clamped_weight) * shared_BN
        axes_V = [cast(tuple[Tensor, Tensor, Tensor], tuple(axes)) for axes in found]
        if self.config.correspondence != "shuffled":
            return Places(axes_V, weight_BN, None)
        partner_BN = chance.permutation(views.key_B, "pair/partner", weight_BN.shape[1])
        return Places(axes_V, weight_BN * weight_BN.gather(1, partner_BN), partner_BN)

    def terms(self, student_BVzyxC: Tensor, teacher_BVzyxC: Tensor, views: Views) -> dict[str, Term]:
        """Returns `local_consistency`, BYOL's term where it has a weight, and the monitors."""
        places = self.places(views)
        projection_BVzyxC = byol.through(self.projector, student_BVzyxC)
        target_BVzyxC = taught(byol.through, self.teacher.projector, teacher_BVzyxC)
        prediction_BVNC = read_places(byol.through(self.predictor, projection_BVzyxC), places.axes_V)
        target_BVNC = read_places(target_BVzyxC, places.axes_V)
        if places.partner_BN is not None:
            target_BVNC = target_BVNC.gather(2, places.partner_BN[:, None, :, None].expand_as(target_BVNC))
        terms = {"local_consistency": local_consistency(prediction_BVNC, target_BVNC, places.weight_BN)}
        if weight := self.config.lambda_global:
            heads = self.global_projector, self.global_predictor, cast(nn.Module, self.teacher.global_projector)
            terms["global_consistency"] = byol.global_consistency(heads, student_BVzyxC, teacher_BVzyxC)[0]._replace(
                weight=weight
            )
        terms |= byol.monitors(projection_BVzyxC, views)
        all_of_them = places.weight_BN.new_full((), float(places.weight_BN.numel()))
        return terms | {"valid_share": Term(places.weight_BN.sum(), all_of_them, 0.0)}

    def after_step(self, progress: float, total_steps: int) -> None:
        """Moves the teacher as BYOL does."""
        super().after_step(progress, total_steps)
        if self.config.lambda_global:
            teachers = cast(nn.Module, self.teacher.global_projector)
            follow(teachers, self.global_projector, self.momentum(progress, total_steps))

    def measures(self) -> dict[str, float]:
        """Measures the receptive-field offset now, per axis in voxels, and how far it is from the one in use."""
        now = dict(zip("zyx", self.measure_offset(), strict=True))
        used = dict(zip("zyx", self.offset_3.tolist(), strict=True))
        return {f"offset_{axis}_vox": now[axis] for axis in now} | {
            f"offset_drift_{axis}_vox": now[axis] - used[axis] for axis in now
        }

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Shows both views and the places compared: `points_view_a`, `points_view_b` (B, N, 3), Z Y X in voxels.

        A point is where the anatomy lies, not where its cell's centre does. NaN where the place does not count.
        """
        places, shown = self.places(views), super().pictures(views)
        points_VBN3 = []
        for axes in places.axes_V:
            measures = zip(axes, self.shifts(), self.config.view_vox, strict=True)
            points_VBN3.append(pairs.grid_points(*((g_BK - shift + 1) / 2 * side for g_BK, shift, side in measures)))
        if places.partner_BN is not None:
            points_VBN3[1] = points_VBN3[1].gather(1, places.partner_BN[..., None].expand_as(points_VBN3[1]))
        counts_BN1 = (places.weight_BN > 0)[..., None]
        for name, points_BN3 in zip("ab", points_VBN3, strict=True):
            shown[f"points_view_{name}"] = torch.where(counts_BN1, points_BN3, torch.nan)
        return shown
