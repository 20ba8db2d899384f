"""DICOM series: in which order its slices are one volume, whether one is missing, and how it is read.

Slices are ordered by their place along the normal of the image plane, not by name or number. A series is kept as the
list of its files, `<case>.series.json`, and read from the DICOM files each time: no copy of the scans is made.

Everything here that has an order of axes is x y z, as SimpleITK and DICOM have it.
"""

import contextlib
import json
import locale
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from voxprior.errors import Refusal
from voxprior.whole import write_json

SUFFIX = ".series.json"
APART = 0.01  # of the slice distance: how far a slice may lie from where it should
TURNED = 1e-3  # largest difference of two direction cosines


@contextlib.contextmanager
def own_locale() -> Iterator[None]:
    """Gives the process its locale back: GDCM sets it to "C", after which Python reads text files as ASCII."""
    mine = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, mine)


def header(path: Path) -> sitk.ImageFileReader | None:
    """Reads the header of a DICOM file; None where it is no image."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(os.fspath(path))
    try:
        with own_locale():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader


def tag(reader: sitk.ImageFileReader, key: str) -> str:
    """Gives the text of a tag, such as 0010|0020; empty where the file has none."""
    return reader.GetMetaData(key).strip().strip("\0") if reader.HasMetaDataKey(key) else ""


# ------------------------------------------------------------------------------------------------- order
class Slice(NamedTuple):
    """What a file's header says."""

    path: str
    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    position_mm: np.ndarray
    direction: np.ndarray
    pixel: int


def order(paths: Sequence[Path], name: str) -> tuple[list[str], float]:
    """Orders the slices of a series along its normal: (paths, distance of slices in mm).

    Args:
        paths: its files.
        name: how a refusal names the series.

    Raises:
        Refusal: a file is no image; fewer than two slices; sizes, voxel spacings or orientations are mixed; slices
            stand twice, are missing, lie at uneven distances, or are sheared (a tilted gantry).
    """
    if len(paths) < 2:
        raise Refusal(f"{name} has one file, {paths[0].name}: a volume needs one file per slice, convert it to NIfTI")
    slices = [_slice(path, name) for path in paths]
    first = slices[0]
    for other in slices:
        for what, a, b, most in (
            ("size in voxels", first.size[:2], other.size[:2], 0.0),
            ("voxel spacing", first.spacing_mm[:2], other.spacing_mm[:2], 1e-4),
            ("orientation", first.direction.ravel(), other.direction.ravel(), TURNED),
        ):
            if np.abs(np.subtract(a, b)).max() > most:
                raise Refusal(
                    f"{name} mixes slices of different {what}, {_few(a)} in {Path(first.path).name} and {_few(b)} in "
                    f"{Path(other.path).name}: export the series again, or split its files into folders"
                )
    normal = np.cross(first.direction[:, 0], first.direction[:, 1])
    slices.sort(key=lambda one: float(one.position_mm @ normal))
    along_mm = np.array([one.position_mm @ normal for one in slices])
    step_mm = float(np.median(np.diff(along_mm)))
    _check_steps(slices, along_mm, step_mm, name)
    moved_mm = np.array([one.position_mm for one in slices]) - slices[0].position_mm
    beside_mm = np.abs(moved_mm - np.outer(moved_mm @ normal, normal)).max()
    if beside_mm > 0.25 * min(first.spacing_mm[:2]):
        raise Refusal(
            f"{name} is sheared, its slices slide by up to {beside_mm:.3g} mm within their plane (a tilted gantry): "
            "resample it to an upright grid first"
        )
    return [one.path for one in slices], step_mm


def _few(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _slice(path: Path, name: str) -> Slice:
    reader = header(path)
    if reader is None:
        raise Refusal(f"{name} holds {path.name}, which cannot be read as a DICOM image: copy the series again")
    size = reader.GetSize()
    if len(size) > 2 and size[2] > 1:
        raise Refusal(
            f"{name} holds {path.name}, a file of {size[2]} frames, whose places cannot be checked: convert it to NIfTI"
        )
    if reader.GetNumberOfComponents() != 1:
        raise Refusal(f"{name} holds {path.name}, a colour image: remove it, or leave the series out")
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    position = np.array(reader.GetOrigin())
    return Slice(os.fspath(path), size, reader.GetSpacing(), position, direction, reader.GetPixelID())


def _check_steps(slices: list[Slice], along_mm: np.ndarray, step_mm: float, name: str) -> None:
    for before, after, here_mm, gap_mm in zip(slices, slices[1:], along_mm, np.diff(along_mm), strict=False):
        names = f"{Path(before.path).name} and {Path(after.path).name}"
        if gap_mm < APART * max(step_mm, 0.1):
            raise Refusal(f"{name} has two slices at {here_mm:.4g} mm, {names}: remove one of each such pair")
        if abs(gap_mm - step_mm) > APART * step_mm:
            lacking = gap_mm / step_mm
            if round(lacking) >= 2 and abs(lacking - round(lacking)) < 10 * APART:
                raise Refusal(
                    f"{name} lacks {round(lacking) - 1} of its slices between {here_mm:.4g} and {here_mm + gap_mm:.4g} "
                    f"mm, {names}: export the whole series"
                )
            raise Refusal(
                f"{name} has slices at uneven distances, {gap_mm:.4g} mm between {names} and {step_mm:.4g} mm "
                "elsewhere: resample it to even ones first"
            )


# ------------------------------------------------------------------------------------------------- files
def write(slices: Sequence[Path], path: Path, name: str) -> None:
    """Checks a series and writes the list of its files in order.

    Args:
        slices: its files.
        path: `….series.json`.
        name: how a refusal names the series.

    Raises:
        Refusal: as `order`.
    """
    ordered, step_mm = order(slices, name)
    # Below the working folder paths are relative, so that a study can be moved with its scans.
    near = [os.path.relpath(file) for file in ordered]
    files = [file if there.startswith("..") else there for file, there in zip(ordered, near, strict=True)]
    write_json(path, {"format": 1, "step_mm": step_mm, "files": files})


def files_of(path: Path) -> list[Path]:
    """Lists the files of a written series.

    Raises:
        Refusal: the list cannot be read.
    """
    try:
        return [Path(file) for file in json.loads(path.read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise Refusal(f"{path} is missing or damaged: run 'intake' again") from None


def read(path: Path) -> sitk.Image:
    """Reads the volume of a written series; stored values are turned into HU (or whatever the scanner's slope says).

    Raises:
        Refusal: the list or one of its files is missing or damaged.
    """
    files = files_of(path)
    lacking = [file for file in files if not file.is_file()]
    if lacking:
        raise Refusal(f"{path} lists {lacking[0]}, which is missing: restore it or run 'intake' again")
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([os.fspath(file) for file in files])
    pixels = {opened.GetPixelID() for file in files if (opened := header(file)) is not None}
    if len(pixels) > 1:  # every slice has a slope of its own, as in PET: one number type for all
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with own_locale():
            image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().rsplit("\n", 1)[-1].rsplit("ERROR: ", 1)[-1]
        raise Refusal(f"{path} lists files that cannot be read ({reason}): copy the series again") from None
    step_mm = float(json.loads(path.read_text(encoding="utf-8"))["step_mm"])
    image.SetSpacing((*image.GetSpacing()[:2], step_mm))
    return image
