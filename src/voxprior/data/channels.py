"""The channels of a case: several files, the fourth axis of one, or several values per voxel.

In the case table several files stand in one column, joined by `|`. All channels of a case lie on one grid.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from voxprior.data import checks, series, volume
from voxprior.errors import Refusal

BETWEEN = "|"


def join(paths: Sequence[str]) -> str:
    """Writes the files of a case as the case table holds them."""
    return BETWEEN.join(paths)


def read_channels(image: str, count: int = 1, verify: bool = True) -> Iterator[sitk.Image]:
    """Reads a case's image channel by channel; `open_channels` without the lists of repairs."""
    return (channel for channel, _ in open_channels(image, count, verify))


def places_of(image: str) -> list[Any]:
    """Tells where a case's voxels lie, by the headers of its files as they are now; JSON content.

    Raises:
        Refusal: a file is missing.
    """
    found: list[Any] = []
    for file in map(Path, image.split(BETWEEN)):
        checks.readable(file)
        if file.name.endswith(series.SUFFIX):
            reader = series.header(series.files_of(file)[0])
        else:
            reader = checks.reader_of(file)
            with contextlib.suppress(RuntimeError):  # whoever reads its voxels says what is wrong with it
                reader.ReadImageInformation()
        if reader is not None:
            found.append([reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()])
    return found


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
        yield from volume.open_channels_of(paths[0], count, verify)
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
            grid.demand_same(path, first, f"channel {paths[0]}", "resample all channels of a case to one grid")
            yield channel, made
