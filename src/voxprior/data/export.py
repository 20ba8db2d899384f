"""What a model says of a scan, brought back to the scan's own grid and written: labels, volumes, probabilities.

Nothing here holds classes times the scan's voxels: labels are one byte a voxel, probabilities wait on the disk and come
back class by class, slice by slice.

Axes: C classes (0 is background), Z Y X voxels.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from voxprior.data import resample, volume
from voxprior.data.labels import to_own_values
from voxprior.maths.regions import union

ONE = 255  # a probability of 1, as it is stored

Array = np.ndarray[Any, Any]


class Found(NamedTuple):
    """What a label map holds of one class."""

    voxels: int
    volume_ml: float
    touches_border: bool  # it lies on the first or last slice along some axis: the scan may have cut it off


def measure(ids: sitk.Image, classes: int, overlapping: Sequence[Sequence[int]] = ()) -> list[Found]:
    """Measures classes 1 to `classes` of a label map of ids (uint8); `overlapping`: see `maths/regions.py`."""
    from voxprior.maths import kernels

    ids_ZYX = sitk.GetArrayViewFromImage(ids)
    count_K = np.zeros(256, np.int64)
    kernels.count_labels(np.array(ids_ZYX).reshape(-1), count_K)
    faces = [np.unique(ids_ZYX.take(place, axis)) for axis in range(3) for place in (0, -1)]
    outer = set(np.concatenate(faces).tolist())
    voxel_ml = math.prod(ids.GetSpacing()) / 1000.0
    found = []
    for number in range(1, classes + 1):
        painted = union(overlapping, number)
        voxels = int(count_K[painted].sum())
        found.append(Found(voxels, voxels * voxel_ml, not outer.isdisjoint(painted)))
    return found


def write_labels(ids: sitk.Image, values: Sequence[Sequence[int]] | None, path: Path) -> None:
    """Writes a label map of ids as NIfTI: as it is, or with a dataset's own values (see `labels.to_own_values`)."""
    if values is not None:
        own = sitk.GetImageFromArray(to_own_values(sitk.GetArrayViewFromImage(ids), values))
        own.CopyInformation(ids)
        ids = own
    volume.write_image(ids, path)


class Probabilities:
    """Probabilities of all classes on the prepared grid, one byte each, in a file that is gone at the end.

    Example:
        with Probabilities(path, classes, shape) as held: held.put(place, shares_CZYX); held.write(...)
    """

    def __init__(self, path: Path, classes: int, shape_zyx: tuple[int, ...]) -> None:
        """Makes room at `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._held_CZYX = np.memmap(path, np.uint8, "w+", shape=(classes, *shape_zyx))

    def __enter__(self) -> "Probabilities":
        return self

    def __exit__(self, *_: object) -> None:
        del self._held_CZYX
        self._path.unlink(missing_ok=True)

    def put(self, place: tuple[slice, slice, slice], shares_CZYX: Array) -> None:
        """Keeps the probabilities, in [0, 1], of a box."""
        self._held_CZYX[(slice(None), *place)] = np.rint(shares_CZYX * np.float32(ONE))

    def write(self, grid: volume.Grid, raw: volume.Grid, files: Sequence[Path]) -> None:
        """Writes what is held, in order, to files (see `write_shares`)."""
        for held_ZYX, file in zip(self._held_CZYX, files, strict=True):
            write_shares(held_ZYX, grid, raw, file)


def write_shares(held_ZYX: Array, grid: volume.Grid, raw: volume.Grid, file: Path) -> None:
    """Writes probabilities on the scan's own grid as they are held: uint8, 255 times the probability.

    Between prepared voxels they are interpolated linearly; beyond the last one its value is repeated.
    """
    lps = volume.lps_grid(raw)
    native_ZYX = resample.resample_image(
        held_ZYX, grid.spacing_zyx_mm, lps.spacing_zyx_mm, quantum=1.0, blur=False, new_shape_zyx=lps.shape_zyx
    )
    volume.write_image(volume.from_lps(native_ZYX.astype(np.uint8), raw), file)
