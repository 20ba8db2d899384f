"""A first look at a user's scans: sizes from all headers, intensities and label values from a few files.

Axes: Z Y X voxels, in LPS as everything that is prepared.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from voxprior.data import checks, series, volume
from voxprior.data.entries import Entry
from voxprior.data.fingerprint import propose_spacing
from voxprior.errors import Refusal

FEW = 5  # scans, and label maps, that are read for their voxels
LIBRARIES_BYTES = 400 << 20
AIR_HU = -200  # a scan that goes below is taken for CT

Zyx = tuple[float, float, float]


class Header(NamedTuple):
    """What a scan's header says; `channels` is the length of its fourth axis, or 1."""

    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: Zyx
    channels: int = 1


class Voxels(NamedTuple):
    """What a few scans and label maps hold.

    low, high: half a percent and 99.5 percent of the intensities, inside the labels where there are labels.
    air: half a percent of all intensities.
    values: label values and in how many of the label maps that were read each was found.
    read: (scans read, label maps read).
    """

    low: float
    high: float
    air: float
    values: dict[int, int]
    read: tuple[int, int]


def read_header(entry: Entry, root: Path) -> Header:
    """Reads the size and spacing of a case's image, no voxel of it.

    Raises:
        Refusal: the file, or a slice, cannot be read or is not three-dimensional.
    """
    if entry.slices:
        place = root / entry.image
        ordered, step_mm = series.order([root / file for file in entry.slices], f"{place}: series {entry.case}")
        first = series.header(Path(ordered[0]))
        if first is None:
            raise Refusal(f"{ordered[0]} cannot be read: copy the series again")
        size, spacing = (*first.GetSize()[:2], len(ordered)), (*first.GetSpacing()[:2], step_mm)
        return _turned(size, spacing, first.GetDirection(), 1)
    path = root / entry.image
    reader = _opened(path)
    size, dimension = reader.GetSize(), reader.GetDimension()
    if dimension not in (3, 4):
        raise Refusal(f"{path} is {dimension}-D, not 3-D: save it as a 3-D file")
    matrix = np.asarray(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    direction = tuple(float(value) for value in matrix.ravel())
    return _turned(size[:3], reader.GetSpacing()[:3], direction, size[3] if dimension == 4 else 1)


def _opened(path: Path) -> sitk.ImageFileReader:
    reader = checks.reader_of(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise Refusal(f"{path} cannot be read as an image: export it again as NIfTI or NRRD") from None
    return reader


def _turned(size: Sequence[int], spacing_mm: Sequence[float], direction: tuple[float, ...], channels: int) -> Header:
    x, y, z = size
    dx, dy, dz = spacing_mm
    grid = volume.lps_grid(volume.Grid((x, y, z), (dx, dy, dz), (0.0, 0.0, 0.0), direction))
    return Header(grid.shape_zyx, grid.spacing_zyx_mm, channels)


def read_headers(entries: Sequence[Entry], root: Path) -> tuple[dict[str, Header], list[str]]:
    """Reads all headers: (header by case, what is wrong with the others)."""
    headers, wrong = {}, []
    for entry in entries:
        if entry.defect:
            wrong.append(f"{root / entry.image}: {entry.defect}")
            continue
        try:
            headers[entry.case] = read_header(entry, root)
        except Refusal as refusal:
            wrong.append(str(refusal))
    return headers, wrong


def read_voxels(entries: Sequence[Entry], root: Path) -> Voxels:
    """Reads a few scans, labelled ones first, and their label maps, spread evenly over the list.

    Files that cannot be read are left out here; intake says what is wrong with them.

    Raises:
        Refusal: none of the scans that were tried can be read.
    """
    labelled = [entry for entry in entries if entry.label and not entry.defect]
    whole = labelled or [entry for entry in entries if not entry.defect]
    chosen = [whole[place] for place in sorted({*np.linspace(0, len(whole) - 1, min(FEW, len(whole))).astype(int)})]
    inside: list[np.ndarray[Any, Any]] = []
    outside: list[np.ndarray[Any, Any]] = []
    values: Counter[int] = Counter()
    maps = 0
    for entry in chosen:
        try:
            voxels_ZYX = _first_channel(entry, root)
            # A few million voxels tell percentiles as well as all of them.
            step = max(1, round((voxels_ZYX.size / 4e6) ** (1 / 3)))
            thin = (slice(None, None, step),) * 3
            outside.append(np.ravel(voxels_ZYX[thin]))
            if entry.label:
                labels_ZYX = sitk.GetArrayFromImage(volume.read_label(root / entry.label)[0])
                values.update(int(value) for value in np.unique(labels_ZYX) if value)
                maps += 1
                if labels_ZYX.shape == voxels_ZYX.shape:
                    inside.append(voxels_ZYX[thin][labels_ZYX[thin] > 0])
        except Refusal:
            continue
    if not outside:
        raise Refusal(f"none of the {len(chosen)} scans tried below {root} can be read: see what is wrong with them")
    everything = np.concatenate(outside)
    within = np.concatenate(inside) if inside and sum(map(len, inside)) else everything
    low, high = (float(value) for value in np.percentile(within, (0.5, 99.5)))
    return Voxels(low, high, float(np.percentile(everything, 0.5)), dict(sorted(values.items())), (len(outside), maps))


def _first_channel(entry: Entry, root: Path) -> np.ndarray[Any, Any]:
    """Reads the first channel of a case's image as it lies in the file."""
    files = [os.fspath(root / entry.image)]
    if entry.slices:
        files, _ = series.order([root / file for file in entry.slices], entry.case)
    try:
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(files if entry.slices else files[0]))
    except RuntimeError:
        raise Refusal(f"{files[0]} cannot be read as an image: export it again as NIfTI or NRRD") from None
    return voxels[0] if voxels.ndim == 4 else voxels


def propose_grid(headers: Sequence[Header]) -> tuple[Zyx, str, tuple[int, int, int]]:
    """Proposes a spacing, as the fingerprint does: (spacing, why, voxels of the median scan at that spacing)."""
    spacing_N3 = np.array([header.spacing_zyx_mm for header in headers])
    shape_N3 = np.array([header.shape_zyx for header in headers])
    target_mm, why = propose_spacing(shape_N3, spacing_N3)
    z, y, x = (max(1, int(n)) for n in np.median(shape_N3 * spacing_N3 / target_mm, axis=0).round())
    a, b, c = target_mm
    return (a, b, c), why, (z, y, x)


def need_bytes(entries: Sequence[Entry], root: Path) -> int:
    """Says how much memory looking at the largest case takes at most, by the headers of the largest files.

    Its scan as float64 or twice as float32, its labels as uint16, and a process's libraries.
    """
    voxels = 0
    for entry in sorted(entries, key=lambda entry: _file_bytes(entry, root))[-FEW:]:
        try:
            voxels = max(voxels, math.prod(read_header(entry, root).shape_zyx))
        except Refusal:
            continue
    return LIBRARIES_BYTES + voxels * 10


def _file_bytes(entry: Entry, root: Path) -> int:
    files = [root / file for file in (entry.slices[:1] or [entry.image])]
    return sum(file.stat().st_size for file in files if file.is_file()) * max(1, len(entry.slices))
