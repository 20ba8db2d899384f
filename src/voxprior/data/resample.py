"""Resampling between two spacings of one box, axis by axis.

Interpolation on a grid is separable, so each axis is one small matrix, (voxels out) x (voxels in), into which the blur
before down-sampling is folded for free. Few of its entries are not 0, and only those are worked with. Slices come and
go one by one: beside the scan and the result, memory holds those slices that the next one needs. Grids share the centre
of the first voxel (see `volume`).

Axes: Z Y X voxels.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Zyx = tuple[float, float, float]

BLUR_ABOVE = 1.5  # below, linear interpolation itself blurs more than the missing blur would


def new_shape(shape_zyx: tuple[int, int, int], spacing_mm: Zyx, new_spacing_mm: Zyx) -> tuple[int, int, int]:
    """Counts voxels at a new spacing: the last centre lies within half a new voxel of the old last centre."""
    z, y, x = (
        max(1, math.floor((n - 1) * old / new + 0.5) + 1)
        for n, old, new in zip(shape_zyx, spacing_mm, new_spacing_mm, strict=True)
    )
    return z, y, x


def axis_weights(voxels: int, step_mm: float, new_voxels: int, new_step_mm: float, blur: bool) -> Array:
    """Makes the matrix that resamples one axis: (new voxels, voxels) float32, rows sum to 1.

    Linear interpolation between centres; beyond the last centre its value is repeated. With `blur`, an axis that gets
    more than 1.5 times coarser is smoothed first by a Gaussian whose width turns a voxel of the old size into one of
    the new: without it every third value is picked and noise and thin edges alias into the coarse scan.
    Variance (k^2 - 1) / (8 ln 2) old voxels for a factor k.

    Source: Cardoso et al., "Scale factor point spread function matching: beyond aliasing in image resampling", 2015.
    """
    place = np.clip(np.arange(new_voxels) * (new_step_mm / step_mm), 0, voxels - 1)
    # 9 digits: 3 * (0.1 / 0.3) must hit voxel 1 and not a hair before it.
    place = np.round(place, 9)
    below = np.minimum(place.astype(int), max(voxels - 2, 0))
    share = place - below
    weights = np.zeros((new_voxels, voxels))
    rows = np.arange(new_voxels)
    weights[rows, below] = 1 - share
    weights[rows, np.minimum(below + 1, voxels - 1)] += share
    factor = new_step_mm / step_mm
    if blur and factor > BLUR_ABOVE:
        distance = np.arange(voxels)[:, None] - np.arange(voxels)[None, :]
        kernel = np.exp(-(distance**2) / (2 * (factor**2 - 1) / (8 * math.log(2))))
        weights = weights @ (kernel / kernel.sum(axis=1, keepdims=True))
    return weights.astype(np.float32)


def taps(weights: Array) -> tuple[Array, Array]:
    """Keeps what counts of a resampling matrix: (first voxel of each row, int32; (rows, taps) float32 from there on).

    Entries below a millionth go, and the rest is scaled to a sum of 1 again.
    """
    kept = np.where(np.abs(weights) > 1e-6, weights, 0)
    kept = kept / kept.sum(axis=1, keepdims=True)
    first = np.argmax(kept != 0, axis=1)
    last = kept.shape[1] - 1 - np.argmax(kept[:, ::-1] != 0, axis=1)
    count = int((last - first).max()) + 1
    first = np.minimum(first, kept.shape[1] - count)
    return first.astype(np.int32), np.take_along_axis(kept, first[:, None] + np.arange(count), 1).astype(np.float32)


def resample_image(
    volume_ZYX: Array,
    spacing_mm: Zyx,
    new_spacing_mm: Zyx,
    change: Callable[[Array], Array] | None = None,
    quantum: float | None = None,
    blur: bool = True,
    new_shape_zyx: tuple[int, int, int] | None = None,
) -> Array:
    """Resamples intensities linearly, smoothed first along axes that get much coarser.

    Args:
        volume_ZYX: any number type, any strides.
        spacing_mm, new_spacing_mm: Z Y X.
        change: applied to each float32 slice (Y, X) before.
        quantum: the result is stored as int16 multiples of it.
        blur: False: plain linear interpolation everywhere.
        new_shape_zyx: of the result, where it is another than `new_shape` says; the border's values are repeated.

    Returns:
        float32 or int16, (Z, Y, X).
    """
    from voxprior.maths import kernels  # here, because `volume` imports this file where nothing is resampled

    shape = new_shape_zyx or new_shape(volume_ZYX.shape, spacing_mm, new_spacing_mm)
    (first_z, weight_z), (first_y, weight_y), (first_x, weight_x) = (
        taps(axis_weights(n, old, m, new, blur))
        for n, old, m, new in zip(volume_ZYX.shape, spacing_mm, shape, new_spacing_mm, strict=True)
    )
    out = np.empty(shape, np.float32 if quantum is None else np.int16)
    count = weight_z.shape[1]
    window = np.zeros((count, shape[1], shape[2]), np.float32)  # slice z lies at place z % count
    row_X = np.empty(volume_ZYX.shape[2], np.float32)
    done = 0
    for z, first in enumerate(first_z):
        for source in range(max(done, first), first + count):
            plane = np.ascontiguousarray(volume_ZYX[source], dtype=np.float32)
            plane = plane if change is None else change(plane)
            kernels.resample_plane(plane, first_y, weight_y, first_x, weight_x, row_X, window[source % count])
        done = max(done, int(first) + count)
        slice_YX = np.tensordot(np.roll(weight_z[z], int(first) % count), window, axes=1)
        out[z] = slice_YX if quantum is None else np.rint(slice_YX / np.float32(quantum))
    return out


# ------------------------------------------------------------------------------------------------- labels
def resample_labels(
    labels_ZYX: Array,
    spacing_mm: Zyx,
    new_shape_zyx: tuple[int, int, int],
    new_spacing_mm: Zyx,
    ids: Array | None = None,
) -> Array:
    """Resamples a label map: each new voxel gets the value with the largest linearly interpolated share.

    This is one-hot linear interpolation, exactly (nearest neighbour differs from it in 0.06 % of the voxels of a CT,
    all on surfaces), at a cost that does not depend on the number of classes. Ties go to the lowest value.

    Args:
        labels_ZYX: uint8 or uint16, any strides.
        spacing_mm, new_spacing_mm: Z Y X.
        new_shape_zyx: shape of the result.
        ids: the value that stands for each value of the map; looked up first.

    Returns:
        (Z, Y, X) in the type of `ids`, or of the map.
    """
    from voxprior.maths import kernels

    table = np.arange(np.iinfo(labels_ZYX.dtype).max + 1, dtype=labels_ZYX.dtype) if ids is None else ids
    (first_z, weight_z), (first_y, weight_y), (first_x, weight_x) = (
        _neighbours(axis_weights(n, old, m, new, blur=False))
        for n, old, m, new in zip(labels_ZYX.shape, spacing_mm, new_shape_zyx, new_spacing_mm, strict=True)
    )
    out = np.empty(new_shape_zyx, table.dtype)
    slice_YX = np.empty(new_shape_zyx[1:], np.uint16)
    planes: dict[int, Array] = {}
    for z, first in enumerate(first_z.tolist()):
        # A share of 0 asks for no second slice: there is none above the last.
        wanted = (first, first + 1) if weight_z[z, 1] > 0 else (first, first)
        planes = {
            n: planes[n] if n in planes else np.ascontiguousarray(table[labels_ZYX[n]], np.uint16) for n in wanted
        }
        kernels.resample_labels_plane(
            planes[wanted[0]], planes[wanted[1]], weight_z[z, 1], first_y, weight_y, first_x, weight_x, slice_YX
        )
        out[z] = slice_YX
    return out


def _neighbours(weights: Array) -> tuple[Array, Array]:
    """Gives a linear resampling matrix as (lower neighbour, shares of it and of the next)."""
    first, weight = taps(weights)
    return first, np.pad(weight, ((0, 0), (0, 2 - weight.shape[1])))
