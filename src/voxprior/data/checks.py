"""What a file must be before its voxels are worth reading: one sentence for each thing that can be wrong.

Axes: x y z, as files have them.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from voxprior.data import nifti, repairs
from voxprior.errors import Refusal

# Suffixes that are read, and what reads them: asking every reader of SimpleITK takes longer than reading a small file.
FORMATS = {
    ".nii.gz": "NiftiImageIO", ".nii": "NiftiImageIO", ".nrrd": "NrrdImageIO", ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO", ".nhdr": "NrrdImageIO",
}  # fmt: skip
COMPLEX = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's world to ours


def reader_of(path: Path) -> sitk.ImageFileReader:
    """Makes a reader for a file, by its suffix; SimpleITK finds out by itself where that says nothing."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(next((io for suffix, io in FORMATS.items() if path.name.lower().endswith(suffix)), ""))
    reader.SetFileName(os.fspath(path))
    return reader


def reason(error: RuntimeError) -> str:
    """Takes the telling line out of what ITK says, without the address of its object."""
    lines = str(error).strip().rsplit("ERROR: ", 1)[-1].splitlines()
    telling = [line for line in lines if not line.startswith("Reason:")] or lines
    return re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", telling[-1]).strip(" .")


def readable(path: Path) -> None:
    """Refuses what cannot be opened, is no file, or is empty."""
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise Refusal(f"{path} is missing: restore it or fetch the dataset again") from None
    except IsADirectoryError:
        raise Refusal(f"{path} is a folder, not a file: correct the layout's templates") from None
    except OSError as error:
        raise Refusal(f"{path} cannot be opened ({error.strerror}): restore it or let this user read it") from None
    if empty:
        raise Refusal(f"{path} has zero bytes: copy or export it again")


def one_volume(path: Path, reader: sitk.ImageFileReader) -> None:
    """Refuses, by its header, what is no volume of one value per voxel."""
    dimension = reader.GetDimension()
    if dimension != 3:
        hint = {2: "a single slice is not a volume, join the slices", 4: "save one frame or contrast as a 3-D file"}
        raise Refusal(f"{path} is {dimension}-D, not 3-D: {hint.get(dimension, 'save it as a 3-D file')}")
    if reader.GetPixelID() not in COMPLEX and reader.GetNumberOfComponents() != 1:
        raise Refusal(f"{path} has {reader.GetNumberOfComponents()} values per voxel: save one channel as a 3-D file")


def channels(path: Path, reader: sitk.ImageFileReader, count: int) -> None:
    """Refuses, by its header, what does not hold `count` channels along a fourth axis or as values per voxel."""
    dimension, values = reader.GetDimension(), reader.GetNumberOfComponents()
    found = reader.GetSize()[3] if dimension == 4 and values == 1 else values if dimension == 3 else 0
    if found != count:
        what = f"has {found} channels" if found else f"is {dimension}-D with {values} values per voxel"
        raise Refusal(f"{path} {what} where the dataset has {count}: correct 'channels' in the dataset's file")


def grid(path: Path, reader: sitk.ImageFileReader) -> None:
    """Refuses, by its header, complex numbers, single slices, and a spacing or origin that cannot be."""
    if reader.GetPixelID() in COMPLEX:
        raise Refusal(f"{path} holds complex numbers: save their magnitude")
    if min(reader.GetSize()[:3]) < 2:
        raise Refusal(f"{path} has a single slice along one axis: a volume is needed, join the slices")
    spacing(path, reader.GetSpacing()[:3])
    if not np.isfinite(reader.GetOrigin()).all():
        raise Refusal(f"{path} has an origin that is not finite: correct the header")


def values(name: str, voxels: np.ndarray[Any, Any]) -> None:
    """Refuses voxels that are not finite, and those that are all equal."""
    # A sum is NaN or infinite if any voxel is: it needs no array of booleans as large as the scan.
    if voxels.dtype.kind == "f" and not np.isfinite(voxels.sum(dtype=np.float64)):
        bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
        raise Refusal(f"{name} holds {bad} voxels that are NaN or infinite: export the scan again without them")
    if voxels.min() == voxels.max():
        raise Refusal(f"{name} is constant, every voxel is {voxels.flat[0]}: export the scan again or remove it")


def spacing(path: Path, spacing_mm: tuple[float, ...]) -> None:
    """Refuses voxel sizes that no scanner makes."""
    low, high = repairs.SPACING_MM
    wrong = [s for s in spacing_mm if not low <= s <= high]
    if wrong:
        raise Refusal(
            f"{path} has a voxel spacing of {wrong[0]:g} mm, which must lie between {low:g} and {high:g}: "
            "correct the header"
        )


def stored(path: Path, header: nifti.Header) -> tuple[tuple[float, ...] | None, list[str]]:
    """Compares what sform, qform and pixdim of a NIfTI say: (direction of the sform or None, what was chosen).

    Where sform and qform lead to the same axes, both lead to the same array, and the sform is taken, as by SimpleITK.

    Raises:
        Refusal: no spacing; sform and qform with other axes; sform sheared or with other voxel sizes.
    """
    spacing(path, header.spacing_mm)
    repairs.demand_grid(path, header.sform, header.qform)
    sform, qform = header.sform, header.qform
    if sform is None:
        return None, [] if qform is not None else ["neither sform nor qform, axes taken as left, posterior, superior"]
    if qform is not None and repairs.lps_axes(TO_LPS @ sform[:, :3]) != repairs.lps_axes(TO_LPS @ qform[:, :3]):
        raise Refusal(
            f"{path} has an sform and a qform that point its axes in different directions (left and right could be "
            "exchanged): keep the one that is right"
        )
    matrix = TO_LPS @ sform[:, :3]
    direction, made = repairs.straighten(path, tuple((matrix / np.linalg.norm(matrix, axis=0)).ravel()))
    made = made + repairs.agree_on_spacing(path, header.spacing_mm, sform)
    return direction, made if qform is None else made + repairs.tell_apart(sform, qform, min(header.spacing_mm))
