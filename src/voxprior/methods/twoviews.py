"""Two overlapping views of one region: what BYOL and PGL show their networks, and where each view lies.

Both boxes are drawn so that they overlap, cut and mirrored on the device, and changed in intensity each on its own. The
numbers are those that an independent re-implementation records of PGL's paper (see `methods/pgl.py`).

Departures, and why:
- Overlap is intersection over union, by volume; the paper's meaning is unknown.
- Intensities change about fixed numbers of the window, not the crop's own (`maths/intensity.py`).
- Volumes too small for a pair of boxes use one box twice; a pool with more than 5 % such pairs is refused.

Axes: B samples, V the two views, C channels, Z Y X voxels, 3 an axis over Z, Y, X.
"""

import math
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from voxprior.maths import intensity, pairs
from voxprior.maths.augment import draw_flips
from voxprior.maths.boxes import Region
from voxprior.maths.chance import mix
from voxprior.maths.crops import cut
from voxprior.methods.contract import Batch

MOST_FALLBACKS = 0.05  # share of the pairs that may be one box twice

Limits = tuple[float, float]


class ViewConfig(BaseModel):
    """The numbers of the views; defaults as recorded of PGL's paper."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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

    @model_validator(mode="after")
    def _pairs_exist(self) -> "ViewConfig":
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


def parent(config: ViewConfig) -> Region:
    """Asks the loader for the box in which a pair is drawn: `parent` views, along a shared Z the largest box."""
    times = (config.scale[1] if config.shared_z else config.parent, config.parent, config.parent)
    z, y, x = (math.ceil(side * factor - 1e-6) for side, factor in zip(config.view_vox, times, strict=True))
    if config.view_mm is None:
        return Region((z, y, x))
    z_mm, y_mm, x_mm = (side * factor for side, factor in zip(config.view_mm, times, strict=True))
    return Region((z, y, x), size_mm=(z_mm, y_mm, x_mm))


def suits(
    config: ViewConfig, shapes_vox: list[tuple[int, int, int]], spacings_mm: list[tuple[float, float, float]]
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


class Pair(nn.Module):
    """Draws where a pair of overlapping boxes lies and how each is mirrored.

    A module, so that it is compiled with the networks: as written it is hundreds of kernels of a few numbers each.
    """

    compiled = True

    def __init__(self, config: ViewConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, key_B: Tensor, side_3: Tensor) -> tuple[Tensor, ...]:
        """Returns the fields of `Views` from `lo_BV3` to `fallback_B`, and a key for each view."""
        config, lo_B3, hi_B3 = self.config, batch["valid_lo_B3"], batch["valid_hi_B3"]
        side_B3 = side_3.expand(len(key_B), 3)
        if config.view_mm is not None:
            side_B3 = side_B3 / batch["spacing_mm_B3"]
        pair = pairs.draw_pair(key_B, lo_B3, hi_B3, side_B3, config.scale, config.min_overlap, config.shared_z)
        flips = (config.flip,) * 3
        flipped_BV3 = torch.stack([draw_flips(key_B, f"view/{name}/flip", flips) for name in "ab"], 1)
        shared = pairs.overlap_box(pair.lo_BV3, pair.hi_BV3, lo_B3, hi_B3)
        key_BV = mix(mix(key_B)[:, None] + torch.arange(2, device=key_B.device))
        return pair.lo_BV3, pair.hi_BV3, flipped_BV3, *shared, pair.fallback_B, key_BV


def two_views(config: ViewConfig, batch: Batch, key_B: Tensor, side_3: Tensor, pair: Pair, change: nn.Module) -> Views:
    """Draws a pair of overlapping boxes, cuts and mirrors them, and changes the intensities of each on its own.

    Args:
        config: the views.
        batch: of the loader.
        key_B: keys.
        side_3: `side_of(config)` on the batch's device.
        pair: `Pair(config)`, of the model, which is compiled with it.
        change: `Change(config)`, likewise.
    """
    lo_BV3, hi_BV3, flipped_BV3, shared_lo_B3, shared_hi_B3, fallback_B, key_BV = pair(batch, key_B, side_3)
    of = batch["region_BCZYX"], lo_BV3, hi_BV3, config.view_vox
    volume_BVCZYX = cut(*of, batch["valid_lo_B3"], batch["valid_hi_B3"], flipped_BV3, batch["quantum_B"])
    volume_BVCZYX = change(volume_BVCZYX.flatten(0, 1), key_BV.flatten()).unflatten(0, (-1, 2))
    return Views(volume_BVCZYX, lo_BV3, hi_BV3, flipped_BV3, shared_lo_B3, shared_hi_B3, fallback_B, key_B)


def side_of(config: ViewConfig) -> Tensor:
    """Returns what a view spans at scale 1, (3,) float64, in mm or voxels.

    A model keeps it on its device: a tensor made from Python numbers in a step is a copy that the host waits for.
    """
    return torch.tensor(config.view_mm or config.view_vox, dtype=torch.float64)


class Change(nn.Module):
    """Adds noise, blurs, changes brightness and gamma, each with its own probability, in this order.

    A module, so that it is compiled with the networks: on a GPU it is some hundred passes over the views otherwise, a
    third of a step of ViT-B, most of them the integers that the noise is counted from.
    """

    compiled = True

    def __init__(self, config: ViewConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, volume_BCZYX: Tensor, key_B: Tensor) -> Tensor:
        """Returns the changed views."""
        config = self.config
        variance = config.noise_variance * config.intensity_deviation**2
        volume_BCZYX = intensity.noise(volume_BCZYX, key_B, config.noise, variance)
        volume_BCZYX = intensity.blur(volume_BCZYX, key_B, config.blur, config.blur_vox)
        factor, zero = config.brightness_factor, config.intensity_mean
        volume_BCZYX = intensity.brightness(volume_BCZYX, key_B, config.brightness, factor, zero)
        return intensity.gamma(volume_BCZYX, key_B, config.gamma, config.gamma_power)
