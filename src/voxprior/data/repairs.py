"""What is repaired and what is set aside: the limits between the two in one place, and the geometry's repairs.

**The rule.** A file is repaired where every way to read it leads to the same arrays, up to less than resampling changes
them anyway; the repair is made in memory and named in the case's `repairs`. Where two readings lead to different arrays
(left and right exchanged, another voxel size, values that are no classes), nobody but the owner can know which one is
right: the case is set aside.

Axes: x y z, as files have them; columns of a direction are the voxel axes.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from voxprior.errors import Refusal

# A direction further than this from a rotation is a sheared scan (gantry tilt), which needs resampling. Up to here
# lengths and angles within the scan change by less than 2 %, a fifth of what augmentation changes them by.
SHEAR_DEG = 1.0
SHEAR_NOTED_DEG = 0.01  # less is rounding of four decimals
# sform and pixdim may say different voxel sizes; from here on a measured volume differs by more than 3 %.
SPACING_SHARE = 0.01
FAR_VOX = 0.25  # a label map shifted by more than this against its image is another scan's, or a wrong header
NEAR_VOX = 1e-3  # less is rounding: NIfTI stores float32
SPACING_MM = (0.01, 50.0)  # anything beyond is a header error: metres, micrometres, or a missing field

Matrix = np.ndarray[Any, Any]


def nearest_rotation(matrix: Matrix) -> tuple[Matrix, float]:
    """Finds the orthogonal matrix nearest to a direction: (matrix, largest angle between old and new axes in degrees).

    The orthogonal factor of the polar decomposition, U V^T of the singular value decomposition; a left-handed direction
    stays left-handed.

    Source: Higham, Computing the polar decomposition, SIAM Journal on Scientific and Statistical Computing 7(4), 1986.
    """
    left, _, right = np.linalg.svd(matrix)
    rotation = left @ right
    return rotation, degrees_between(matrix, rotation)


def degrees_between(first: Matrix, second: Matrix) -> float:
    """Measures the largest angle between the axes (columns) of two matrices, in degrees."""
    lengths = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    return float(np.degrees(np.arccos(np.clip((first * second).sum(axis=0) / lengths, -1, 1))).max())


def straighten(path: Path, direction: tuple[float, ...]) -> tuple[tuple[float, ...], list[str]]:
    """Turns a direction that is nearly a rotation into one: (direction, repairs); others come back as they are.

    Args:
        path: the file, for the message.
        direction: 3x3, row by row.

    Raises:
        Refusal: not finite, axes that are not of length 1, or sheared by more than `SHEAR_DEG`.
    """
    matrix = np.asarray(direction, float).reshape(3, 3)
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(matrix).all() or np.abs(lengths - 1).max() > SPACING_SHARE:
        shown = " ".join(f"{length:.4g}" for length in lengths)
        raise Refusal(f"{path} has a direction whose axes have the lengths {shown}, not 1: correct the header")
    rotation, degrees = nearest_rotation(matrix)
    if degrees > SHEAR_DEG:
        raise Refusal(
            f"{path} is sheared, its axes lie up to {degrees:.3g} degrees beside a right-angled grid (gantry tilt?): "
            "resample it to a right-angled grid"
        )
    if degrees <= SHEAR_NOTED_DEG:
        return direction, []
    said = f"axes up to {degrees:.2g} degrees beside a right-angled grid, turned to the nearest one"
    return tuple(float(value) for value in rotation.ravel()), [said]


def lps_axes(direction: tuple[float, ...] | Matrix) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Finds, for each world axis x y z, the raw axis nearest to it and whether that axis runs backwards."""
    matrix = np.asarray(direction).reshape(3, 3)
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(matrix[axis, p[axis]]) for axis in range(3)))
    return order, tuple(bool(matrix[axis, order[axis]] < 0) for axis in range(3))


def demand_grid(path: Path, sform: Matrix | None, qform: Matrix | None) -> None:
    """Checks that a NIfTI's matrices, as far as it has them, place a grid.

    Raises:
        Refusal: one is not finite or singular.
    """
    for name, matrix in (("sform", sform), ("qform", qform)):
        if matrix is not None and (not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :3])) < 1e-9):
            raise Refusal(f"{path} has a header whose {name} places no grid (singular or not finite): correct it")


def agree_on_spacing(path: Path, spacing_mm: tuple[float, ...], sform: Matrix) -> list[str]:
    """Compares a NIfTI's pixdim with the lengths of its sform's columns; names the repair.

    Raises:
        Refusal: they differ by more than `SPACING_SHARE`.
    """
    lengths = np.linalg.norm(sform[:, :3], axis=0)
    apart = float(np.abs(lengths / spacing_mm - 1).max())
    shown = [" ".join(f"{value:.4g}" for value in some) for some in (spacing_mm, lengths)]
    if apart > SPACING_SHARE:
        raise Refusal(
            f"{path} has two voxel sizes in its header, pixdim {shown[0]} mm and sform {shown[1]} mm (x y z): keep the "
            "one that is right"
        )
    return [f"pixdim {shown[0]} mm used where sform says {shown[1]} mm"] if apart > NEAR_VOX else []


def tell_apart(sform: Matrix, qform: Matrix, voxel_mm: float) -> list[str]:
    """Says how far a NIfTI's sform and qform are apart, where it is more than rounding."""
    degrees = degrees_between(sform[:, :3], qform[:, :3])
    apart_mm = float(np.abs(sform[:, 3] - qform[:, 3]).max())
    if degrees <= SHEAR_DEG and apart_mm <= FAR_VOX * voxel_mm:
        return []
    return [f"sform and qform differ by {degrees:.2g} degrees and {apart_mm:.3g} mm, the sform is used"]
