"""Pictures of scans that were set aside: the middle plane along each axis, for as much of the file as can be read.

Nothing is checked here and nothing is turned: the picture shows the voxels as the file stores them.

Axes: Z Y X voxels; H W rows and columns of a picture.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from voxprior.data.repairs import SPACING_MM

SIDE_PX, GAP_PX, GAP_GREY = 128, 4, 128
MOST_VOXELS = 1 << 31  # a header that announces more is not believed

Array = np.ndarray[Any, Any]


def write_planes(paths: Sequence[Path], png: Path) -> bool:
    """Writes one picture with a row of three planes per file, by rename; tells whether any file could be read."""
    rows = [_row(voxels, spacing) for path in paths for voxels, spacing in [_read(path)] if voxels is not None]
    if not rows:
        return False
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP_PX), (0, width - row.shape[1])), constant_values=GAP_GREY) for row in rows]
    png.parent.mkdir(parents=True, exist_ok=True)
    part = png.with_name("unfinished.part.png")  # a case's name may leave no room for a suffix
    sitk.WriteImage(sitk.GetImageFromArray(np.concatenate(padded)[:-GAP_PX]), os.fspath(part), useCompression=True)
    os.replace(part, png)
    return True


def _read(path: Path) -> tuple[Array | None, tuple[float, ...]]:
    """Reads the first frame and channel of a file: (voxels Z Y X or None, spacing Z Y X in mm)."""
    effective = os.access in os.supports_effective_ids
    if not (os.path.isfile(path) and os.access(path, os.R_OK, effective_ids=effective)):
        return None, ()  # some of ITK's readers would try, and complain aloud
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if math.prod(size) * reader.GetNumberOfComponents() > MOST_VOXELS:
            return None, ()
        if len(size) > 3:
            reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
        image = reader.Execute()
        if image.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
            image = sitk.ComplexToModulus(image)
        elif image.GetNumberOfComponentsPerPixel() > 1:
            image = sitk.VectorIndexSelectionCast(image, 0)
    except RuntimeError:
        return None, ()
    voxels = sitk.GetArrayFromImage(image)
    return voxels.reshape((1,) * (3 - voxels.ndim) + voxels.shape), image.GetSpacing()[::-1]


def _row(voxels_ZYX: Array, spacing_mm: tuple[float, ...]) -> Array:
    """Draws the three planes side by side, to the scale that the spacing says where it is a possible one: (H, W)."""
    usable = len(spacing_mm) == 3 and all(SPACING_MM[0] <= s <= SPACING_MM[1] for s in spacing_mm)
    spacing = np.array(spacing_mm if usable else (1.0, 1.0, 1.0))
    scale = SIDE_PX / (np.array(voxels_ZYX.shape) * spacing).max()
    tiles = []
    for axis in range(3):
        plane = voxels_ZYX.take(voxels_ZYX.shape[axis] // 2, axis).astype(np.float64)
        # Rows of an array run down, slices run up: the head is on top.
        plane = plane if axis == 0 else plane[::-1]
        sides = np.maximum(1, np.rint(np.array(plane.shape) * np.delete(spacing, axis) * scale)).astype(int)
        down, right = (np.arange(px) * n // px for px, n in zip(sides, plane.shape, strict=True))
        tile = _grey(plane)[down][:, right]
        tiles.append(np.pad(tile, ((0, SIDE_PX - len(tile)), (0, GAP_PX)), constant_values=GAP_GREY))
    return np.concatenate(tiles, axis=1)[:, :-GAP_PX]


def _grey(plane: Array) -> Array:
    """Maps a plane's 1st to 99th percentile to black and white; what is not finite is black."""
    finite = plane[np.isfinite(plane)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 0.0)
    if low == high and finite.size:
        low, high = finite.min(), finite.max()
    share = (np.nan_to_num(plane, nan=low, posinf=low, neginf=low) - low) / ((high - low) or 1.0)
    return (np.clip(share, 0, 1) * 255).astype(np.uint8)
