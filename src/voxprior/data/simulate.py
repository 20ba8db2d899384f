"""Simulated patients: random diffeomorphic warps and intensity changes of one labelled scan.

They are one person in many shapes, enough to try a pipeline and never evidence. A stationary velocity field of smooth
noise is integrated by scaling and squaring, which gives a smooth map with a smooth inverse. Each patient is a function
of (seed, number).

Source of scaling and squaring: Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", 2006.

Axes: Z Y X voxels, B = 1, C = 3 components z y x in mm.
"""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from voxprior.data import resample, volume
from voxprior.errors import Refusal
from voxprior.maths import chance

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]
Zyx = tuple[float, float, float]

SQUARINGS = 6
HU = (-1024, 3071)  # air to the end of a 12-bit scanner; below lies only padding


class Simulate(Protocol):
    """What is needed of the numbers in a card."""

    patients: int
    spacing_zyx_mm: Zyx
    warp_mm: float
    smooth_mm: float
    noise_hu: float
    contrast: float
    seed: int


class Base(NamedTuple):
    """The one scan: intensities on the new grid, labels on their own."""

    volume_ZYX: Array
    grid: volume.Grid
    labels_ZYX: Array
    labels_spacing_mm: Zyx


def read_base(image: str, label: str, spacing_zyx_mm: Zyx) -> Base:
    """Reads the scan once and resamples its intensities; label values stay as they are, on the file's grid.

    Raises:
        Refusal: a file cannot be used, or the two do not lie on one grid.
    """
    scan = volume.read_scan(image)
    voxels_ZYX, lps = volume.to_lps(scan)
    labels, _ = volume.read_label(label)
    labels_ZYX, labels_grid = volume.to_lps(labels)
    if labels_ZYX.shape != voxels_ZYX.shape:
        raise Refusal(f"{label} and {image} have different shapes: export both on one grid")
    grid = lps.with_spacing(spacing_zyx_mm)
    low, high = HU
    smooth_ZYX = resample.resample_image(
        voxels_ZYX, lps.spacing_zyx_mm, grid.spacing_zyx_mm, lambda plane: np.clip(plane, low, high)
    )
    return Base(smooth_ZYX, grid, np.ascontiguousarray(labels_ZYX), labels_grid.spacing_zyx_mm)


def make_patient(base: Base, numbers: Simulate, patient: int) -> tuple[Array, Array]:
    """Makes one patient: (volume int16 in HU, labels), both on the base's new grid.

    Labels are looked up at the nearest voxel of the original label map, so they are interpolated once only.

    Raises:
        Refusal: the warp folds space somewhere.
    """
    key_B = chance.keys(numbers.seed, patient, torch.tensor([0]))
    shape, spacing = base.grid.shape_zyx, base.grid.spacing_zyx_mm
    shift_CZYX = displacement(key_B, shape, spacing, numbers.warp_mm, numbers.smooth_mm)
    if float(jacobian(shift_CZYX, spacing).min()) <= 0:
        raise Refusal(
            f"simulated patient {patient} is folded: warp_mm {numbers.warp_mm:g} is too large for smooth_mm "
            f"{numbers.smooth_mm:g}; lower the first or raise the second"
        )
    place_CZYX = shift_CZYX + _places_mm(shape, spacing)
    warped_ZYX = _look_up(torch.from_numpy(base.volume_ZYX)[None], place_CZYX, spacing)[0]
    slope, offset = chance.normal(key_B, "simulate/contrast", (2,))[0].tolist()
    # Attenuation, not HU, is scaled: air stays air. The offset is a tenth of the slope's effect on water.
    warped_ZYX = (warped_ZYX + 1000) * (1 + numbers.contrast * slope) - 1000 + 100 * numbers.contrast * offset
    warped_ZYX = warped_ZYX + numbers.noise_hu * chance.normal(key_B, "simulate/noise", shape)[0]
    volume_ZYX = warped_ZYX.round().clamp(*HU).to(torch.int16).numpy()
    return volume_ZYX, _look_up_nearest(base.labels_ZYX, place_CZYX.numpy(), base.labels_spacing_mm)


# ------------------------------------------------------------------------------------------------- the warp
def displacement(key_B: Tensor, shape_zyx: Shape, spacing_mm: Zyx, warp_mm: float, smooth_mm: float) -> Tensor:
    """Draws a diffeomorphic displacement in mm: (C, Z, Y, X) float32.

    The velocity has standard deviation `warp_mm` per component everywhere, and correlation
    exp(-d^2 / (2 smooth_mm^2)) at distance d. It is integrated on a grid of smooth_mm / 6, fine for so smooth a field,
    and interpolated linearly.
    """
    step_mm = max(smooth_mm / 6, min(spacing_mm))
    coarse = tuple(max(2, math.ceil((n - 1) * s / step_mm) + 1) for n, s in zip(shape_zyx, spacing_mm, strict=True))
    steps_mm = (step_mm, step_mm, step_mm)
    shift = _velocity(key_B, coarse, step_mm, smooth_mm) * (warp_mm / 2**SQUARINGS)  # type: ignore[arg-type]
    places = _places_mm(coarse, steps_mm)  # type: ignore[arg-type]
    for _ in range(SQUARINGS):
        shift = shift + _look_up(shift, places + shift, steps_mm)
    for axis in range(3):
        weights = resample.axis_weights(coarse[axis], step_mm, shape_zyx[axis], spacing_mm[axis], blur=False)
        shift = torch.tensordot(torch.from_numpy(weights), shift, dims=([1], [axis + 1])).movedim(0, axis + 1)
    return shift.contiguous()


def _velocity(key_B: Tensor, shape_zyx: Shape, step_mm: float, smooth_mm: float) -> Tensor:
    """Draws smooth noise of unit variance: (C, Z, Y, X)."""
    # White noise under a Gaussian of width s has correlation length s * sqrt(2).
    width = smooth_mm / math.sqrt(2) / step_mm
    margin = math.ceil(3 * width)
    field = chance.normal(key_B, "simulate/velocity", (3, *(n + 2 * margin for n in shape_zyx)))[0]
    for axis, n in enumerate(shape_zyx):
        distance = torch.arange(n + 2 * margin)[None, :] - (torch.arange(n)[:, None] + margin)
        weights = torch.exp(-(distance**2) / (2 * width**2))
        weights = weights / weights.square().sum(dim=1, keepdim=True).sqrt()
        field = torch.tensordot(weights, field, dims=([1], [axis + 1])).movedim(0, axis + 1)
    return field


def jacobian(shift_CZYX: Tensor, spacing_mm: Zyx) -> Tensor:
    """Computes the determinant of the map's derivative, identity + displacement: (Z, Y, X). Positive: nothing folds."""
    rows = torch.stack(torch.gradient(shift_CZYX, spacing=spacing_mm, dim=(1, 2, 3)))
    a, b, c = rows[0].clone(), rows[1].clone(), rows[2].clone()
    for axis, row in enumerate((a, b, c)):
        row[axis] += 1
    return (a * torch.cross(b, c, dim=0)).sum(dim=0)


def _places_mm(shape_zyx: Shape, spacing_mm: Zyx) -> Tensor:
    axes = [torch.arange(n, dtype=torch.float32) * s for n, s in zip(shape_zyx, spacing_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _look_up(field_CZYX: Tensor, place_CZYX: Tensor, spacing_mm: Zyx) -> Tensor:
    """Reads a field at places in mm, linearly; beyond the border its value is repeated."""
    size = torch.tensor(field_CZYX.shape[1:]) - 1
    unit = [2 * place / (s * n) - 1 for place, s, n in zip(place_CZYX, spacing_mm, size.tolist(), strict=True)]
    grid = torch.stack(unit[::-1], dim=-1)[None]  # grid_sample wants x y z
    return grid_sample(field_CZYX[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]


def _look_up_nearest(labels_ZYX: Array, place_CZYX: Array, spacing_mm: Zyx) -> Array:
    index = [
        np.clip(np.rint(place / np.float32(s)), 0, n - 1).astype(np.int32)
        for place, s, n in zip(place_CZYX, spacing_mm, labels_ZYX.shape, strict=True)
    ]
    return labels_ZYX[tuple(index)]
