"""The channels of a case: several files, the fourth axis of one, or several values per voxel.

In the case table several files stand in one column, joined by `|`. All channels of a case lie on one grid.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from voxprior.data import repairs, volume
from voxprior.data.labels import FAR_VOX
from voxprior.errors import Refusal

BETWEEN = "|"


def join(paths: Sequence[str]) -> str:
    """Writes the files of a case as the case table holds them."""
    return BETWEEN.join(paths)


def read_channels(image: str, count: int = 1, verify: bool = True) -> Iterator[sitk.Image]:
    """Reads a case's image channel by channel; `open_channels` without the lists of repairs."""
    return (channel for channel, _ in open_channels(image, count, verify))


def open_channels(image: str, count: int = 1, verify: bool = True) -> Iterator[tuple[sitk.Image, list[str]]]:
    """Reads a case's image channel by channel, all on the first one's grid: (the channel, repairs made).

    Args:
        image: its file or files, as the case table holds them.
        count: how many channels there must be.
        verify: as `volume.open_scan`.

    Raises:
        Refusal: as `volume.open_scan`; another number of channels; channels on different grids.
    """
    paths = image.split(BETWEEN)
    if len(paths) == 1 and count == 1:
        yield volume.open_scan(paths[0], verify)
    elif len(paths) == 1:
        yield from _axis(Path(paths[0]), count)
    elif len(paths) != count:
        raise Refusal(
            f"{paths[0]} and {len(paths) - 1} more are {len(paths)} channels, not {count}: run 'intake' again"
        )
    else:
        first: volume.Grid | None = None
        for path in paths:
            channel, made = volume.open_scan(path, verify)
            grid = volume.Grid.of(channel)
            first = first or grid
            _check_grid(path, grid, paths[0], first)
            yield channel, made


def _check_grid(path: str, grid: volume.Grid, first_path: str, first: volume.Grid) -> None:
    advice = "resample all channels of a case to one grid"
    if grid.size_xyz != first.size_xyz:
        shapes = ["x".join(map(str, one.shape_zyx)) for one in (grid, first)]
        raise Refusal(f"{path} has {shapes[0]} voxels where channel {first_path} has {shapes[1]}: {advice}")
    apart_mm = float(np.abs(grid.corners_mm() - first.corners_mm()).max())
    if apart_mm > FAR_VOX * min(first.spacing_xyz_mm):
        raise Refusal(f"{path} lies up to {apart_mm:.3g} mm beside channel {first_path}: {advice}")


def _axis(path: Path, count: int) -> Iterator[tuple[sitk.Image, list[str]]]:
    """Takes the channels of one file: its fourth axis, or its values per voxel."""
    if not path.is_file():
        raise Refusal(f"{path} is missing: restore it or fetch the dataset again")
    try:
        image = sitk.ReadImage(os.fspath(path))
    except RuntimeError as error:
        reason = str(error).strip().rsplit("\n", 1)[-1].rsplit("ERROR: ", 1)[-1]
        raise Refusal(f"{path} cannot be read as an image ({reason}): export it again as NIfTI or NRRD") from None
    dimension, values = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    found = image.GetSize()[3] if dimension == 4 and values == 1 else values if dimension == 3 else 0
    if found != count:
        what = f"has {found} channels" if found else f"is {dimension}-D with {values} values per voxel"
        raise Refusal(f"{path} {what} where the dataset has {count}: correct 'channels' in the dataset's file")
    for number in range(count):
        channel = image[:, :, :, number] if dimension == 4 else sitk.VectorIndexSelectionCast(image, number)
        _check_voxels(f"{path}, channel {number + 1},", channel)
        direction, made = repairs.straighten(path, channel.GetDirection())
        channel.SetDirection(direction)
        yield channel, made


def _check_voxels(name: str, channel: sitk.Image) -> None:
    """Refuses what `volume.read_scan` refuses of a file of its own."""
    spacing, (least, most) = channel.GetSpacing(), repairs.SPACING_MM
    if min(channel.GetSize()) < 2 or not all(least <= s <= most for s in spacing):
        raise Refusal(f"{name} has {channel.GetSize()} voxels of {spacing} mm: a volume is needed, correct the header")
    voxels = sitk.GetArrayViewFromImage(channel)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels.sum(dtype=np.float64)):
        raise Refusal(f"{name} holds voxels that are NaN or infinite: export the scan again without them")
    if voxels.min() == voxels.max():
        raise Refusal(f"{name} is constant, every voxel is {voxels.flat[0]}: export the scan again or remove it")
