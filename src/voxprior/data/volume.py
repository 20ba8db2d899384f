"""Scans and label maps in and out of files; the only place where x y z exists.

A file's voxels lie on a *raw* grid. `to_lps` turns them, by exchanging and flipping axes only, so that x runs to the
patient's left, y to the back (posterior), z to the head (superior). A tilted scan stays tilted: its `direction` is then
near the identity, not equal to it, because turning it upright would interpolate and pad the corners.

Grid convention, as SimpleITK's: the centre of the first voxel stays where it is when the spacing changes (same
`origin`), voxel i lies at origin + direction @ (i * spacing). torch, scipy and nnU-Net align the volume's *edges*
instead; mixing the two shifts a segmentation by up to half a voxel. `to_native` undoes both steps exactly.

Axes: arrays are Z Y X; SimpleITK's sizes, spacings and origins are x y z.
"""

import contextlib
import gzip
import itertools
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from voxprior.data import resample, series
from voxprior.errors import Refusal

SPACING_MM = (0.01, 50.0)  # anything beyond is a header error: metres, micrometres, or a missing field
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr")

# ITK prints header warnings of several lines for files that are then refused, or read, in one sentence here.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass(frozen=True)
class Grid:
    """Where voxels lie in the world (LPS, mm). `direction` is a 3x3 matrix, row by row; its columns are the axes."""

    size_xyz: tuple[int, int, int]
    spacing_xyz_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> "Grid":
        """Reads the grid of an image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Grid":
        """Reads a grid as the index of a prepared dataset holds it."""
        return cls(**{key: tuple(content[key]) for key in cls.__dataclass_fields__})

    def to_json(self) -> dict[str, list[float]]:
        """Writes the grid as the index of a prepared dataset holds it."""
        return {key: list(value) for key, value in asdict(self).items()}

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Array shape."""
        x, y, z = self.size_xyz
        return z, y, x

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Spacing in array order."""
        x, y, z = self.spacing_xyz_mm
        return z, y, x

    def corners_mm(self) -> np.ndarray:
        """Places the centres of the eight corner voxels in the world: (8, 3)."""
        index = np.array(list(itertools.product(*[(0, n - 1) for n in self.size_xyz])), dtype=float)
        matrix = np.asarray(self.direction).reshape(3, 3)
        return np.asarray(self.origin_xyz_mm) + (index * self.spacing_xyz_mm) @ matrix.T

    def with_spacing(self, spacing_zyx_mm: tuple[float, float, float]) -> "Grid":
        """Makes the grid of the same box at another spacing; the first voxel's centre stays."""
        z, y, x = resample.new_shape(self.shape_zyx, self.spacing_zyx_mm, spacing_zyx_mm)
        dz, dy, dx = (float(s) for s in spacing_zyx_mm)
        return Grid((x, y, z), (dx, dy, dz), self.origin_xyz_mm, self.direction)


def stem(path: str | Path) -> str:
    """Strips the folder and an image suffix, `.nii.gz` as a whole."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), Path(path).stem)


# ------------------------------------------------------------------------------------------------- reading
def read_scan(path: str | Path, verify: bool = True) -> sitk.Image:
    """Reads a scan and refuses what cannot be one.

    Args:
        path: any file that SimpleITK reads.
        verify: read the bytes once more, for what SimpleITK overlooks (truncated gzip, NaN in NIfTI); a caller may
            skip this for files that `intake` has passed.

    Returns:
        The image with its own pixel type.

    Raises:
        Refusal: missing, empty, damaged or no image; not three-dimensional; spacing zero, negative or absurd; one
            slice; NaN or infinite values; all voxels equal.
    """
    image = _read(path, verify)
    voxels = sitk.GetArrayViewFromImage(image)
    # A sum is NaN or infinite if any voxel is: it needs no array of booleans as large as the scan.
    if voxels.dtype.kind == "f" and not np.isfinite(voxels.sum(dtype=np.float64)):
        bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
        raise Refusal(f"{path} holds {bad} voxels that are NaN or infinite: export the scan again without them")
    if voxels.min() == voxels.max():
        raise Refusal(f"{path} is constant, every voxel is {voxels.flat[0]}: export the scan again or remove it")
    return image


def read_label(path: str | Path, verify: bool = True) -> tuple[sitk.Image, list[str]]:
    """Reads a label map: (image of uint8 or uint16, repairs made).

    Whole numbers stored as floats are turned into integers, and the repair is named. A label map may be empty.

    Raises:
        Refusal: as `read_scan`, except constant; negative values, fractions, NaN, or values above 65535.
    """
    image = _read(path, verify)
    voxels = sitk.GetArrayViewFromImage(image)
    repairs = []
    if voxels.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = bool(np.array_equal(voxels, np.rint(voxels)))
        if not whole:
            raise Refusal(f"{path} holds label values that are not whole numbers: export the labels as integers")
        repairs.append(f"label values stored as {voxels.dtype} read as integers")
    low, high = voxels.min(), voxels.max()
    if low < 0:
        raise Refusal(f"{path} holds the negative label value {low}: give background 0 and classes 1, 2, ...")
    if high > np.iinfo(np.uint16).max:
        raise Refusal(f"{path} holds the label value {high}, above 65535: check that it is a label map")
    return sitk.Cast(image, sitk.sitkUInt8 if high <= 255 else sitk.sitkUInt16), repairs


def _read(path: str | Path, verify: bool) -> sitk.Image:
    path = Path(path)
    if path.name.endswith(series.SUFFIX):
        return series.read(path)
    if not path.is_file():
        raise Refusal(f"{path} is missing: restore it or fetch the dataset again")
    if path.stat().st_size == 0:
        raise Refusal(f"{path} has zero bytes: copy or export it again")
    if verify:
        _check_stream(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
        _check_header(path, reader)
        return reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().rsplit("\n", 1)[-1].rsplit("ERROR: ", 1)[-1]
        raise Refusal(f"{path} cannot be read as an image ({reason}): export it again as NIfTI or NRRD") from None


def _check_stream(path: Path) -> None:
    """Reads a file's bytes once: checks a gzip's checksum, and looks for NaN in a NIfTI.

    SimpleITK fills what a truncated gzip lacks, and its NIfTI reader turns NaN and infinite values into 0, both without
    a word.
    """
    header = _nifti_header(path)
    bad = 0
    with _opened(path) as stream:
        if header is not None:
            stream.read(header.data_byte)
        while block := stream.read(1 << 20):
            if header is not None and header.number is not None:
                whole = len(block) - len(block) % header.number.itemsize
                values = np.frombuffer(block[:whole], header.number)
                bad += int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise Refusal(f"{path} holds {bad} voxels that are NaN or infinite: export the scan again without them")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, through gzip by its suffix."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as stream:
            yield stream  # type: ignore[misc]
    except gzip.BadGzipFile:
        raise Refusal(f"{path} is no gzip file or is damaged: copy it again or give it its true suffix") from None
    except (EOFError, zlib.error):
        raise Refusal(f"{path} is truncated or damaged: copy it again") from None


class _Header(NamedTuple):
    """What a NIfTI-1 header stores: spacing x y z, type of floating voxels, first byte of the voxels."""

    spacing_mm: tuple[float, ...]
    number: np.dtype[Any] | None
    data_byte: int


def _nifti_header(path: Path) -> _Header | None:
    """Reads the raw header of a NIfTI-1; None for other formats."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return None
    with _opened(path) as file:
        header = file.read(348)
    for order in "<>":
        if len(header) == 348 and struct.unpack_from(order + "i", header)[0] == 348:
            code = struct.unpack_from(order + "h", header, 70)[0]
            number = {16: np.dtype(order + "f4"), 64: np.dtype(order + "f8")}.get(code)
            start = struct.unpack_from(order + "f", header, 108)[0]
            spacing = struct.unpack_from(order + "3f", header, 80)
            return _Header(spacing, number, int(start) if math.isfinite(start) else 352)
    return None


def _check_header(path: Path, reader: sitk.ImageFileReader) -> None:
    dimension = reader.GetDimension()
    if dimension != 3:
        hint = {2: "a single slice is not a volume, join the slices", 4: "save one frame or contrast as a 3-D file"}
        raise Refusal(f"{path} is {dimension}-D, not 3-D: {hint.get(dimension, 'save it as a 3-D file')}")
    if reader.GetNumberOfComponents() != 1:
        raise Refusal(f"{path} has {reader.GetNumberOfComponents()} values per voxel: save one channel as a 3-D file")
    if min(reader.GetSize()) < 2:
        raise Refusal(f"{path} has a single slice along one axis: a volume is needed, join the slices")
    header = _nifti_header(path)
    # The reader replaces a stored spacing of zero or NaN by 1 mm without a word.
    spacing = (*reader.GetSpacing(), *(header.spacing_mm if header else ()))
    wrong = [s for s in spacing if not SPACING_MM[0] <= s <= SPACING_MM[1]]
    if wrong:
        raise Refusal(
            f"{path} has a voxel spacing of {wrong[0]:g} mm, which must lie between {SPACING_MM[0]:g} and "
            f"{SPACING_MM[1]:g}: correct the header"
        )


# ------------------------------------------------------------------------------------------------- orientation
def _lps_axes(direction: tuple[float, ...]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Finds, for each world axis x y z, the raw axis nearest to it and whether that axis runs backwards."""
    matrix = np.asarray(direction).reshape(3, 3)
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(matrix[axis, p[axis]]) for axis in range(3)))
    return order, tuple(bool(matrix[axis, order[axis]] < 0) for axis in range(3))


def _turn(array_ZYX: np.ndarray, order: tuple[int, ...], flipped: tuple[bool, ...]) -> np.ndarray:
    turned = np.transpose(array_ZYX, [2 - order[axis] for axis in (2, 1, 0)])
    return turned[tuple(slice(None, None, -1 if flipped[axis] else 1) for axis in (2, 1, 0))]


def lps_grid(raw: Grid) -> Grid:
    """Says where the voxels lie once `to_lps` has turned them."""
    order, flipped = _lps_axes(raw.direction)
    matrix = np.asarray(raw.direction).reshape(3, 3)
    first = np.array([0.0, 0.0, 0.0])
    for axis in range(3):
        first[order[axis]] = raw.size_xyz[order[axis]] - 1 if flipped[axis] else 0
    origin = np.asarray(raw.origin_xyz_mm) + matrix @ (first * raw.spacing_xyz_mm)
    turned = matrix[:, list(order)] * np.where(flipped, -1.0, 1.0) + 0.0  # + 0.0: no minus zero in files
    a, b, c = order
    return Grid(
        (raw.size_xyz[a], raw.size_xyz[b], raw.size_xyz[c]),
        (raw.spacing_xyz_mm[a], raw.spacing_xyz_mm[b], raw.spacing_xyz_mm[c]),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        tuple(float(value) for value in turned.ravel()),
    )


def to_lps(image: sitk.Image) -> tuple[np.ndarray, Grid]:
    """Turns an image to LPS by exchanging and flipping axes: (array of its own, Z Y X, possibly strided; its grid)."""
    raw = Grid.of(image)
    return _turn(sitk.GetArrayFromImage(image), *_lps_axes(raw.direction)), lps_grid(raw)


def to_native(labels_ZYX: np.ndarray, grid: Grid | Mapping[str, Any], raw: Grid | Mapping[str, Any]) -> sitk.Image:
    """Brings a label map from its cached grid back to the grid of the raw file: the inverse of prepare.

    Args:
        labels_ZYX: label map on `grid`, unsigned integers.
        grid: grid of the cached array, as the index holds it under `grid`.
        raw: grid of the raw file, as the index holds it under `raw`.

    Returns:
        The label map with size, spacing, origin and direction of the raw file. Each voxel gets the class with the
        largest linearly interpolated share; beyond the last cached voxel the nearest one decides.

    Raises:
        ValueError: the array does not lie on `grid`.
    """
    grid = grid if isinstance(grid, Grid) else Grid.from_json(grid)
    raw = raw if isinstance(raw, Grid) else Grid.from_json(raw)
    if tuple(labels_ZYX.shape) != grid.shape_zyx:
        raise ValueError(f"labels of shape {labels_ZYX.shape} do not lie on a grid of shape {grid.shape_zyx}")
    lps = lps_grid(raw)
    native_ZYX = resample.resample_labels(labels_ZYX, grid.spacing_zyx_mm, lps.shape_zyx, lps.spacing_zyx_mm)
    order, flipped = _lps_axes(raw.direction)
    back = tuple(order.index(axis) for axis in range(3))
    # Undone in reverse: first the flips, on the turned axes, then the exchange.
    native_ZYX = _turn(_turn(native_ZYX, (0, 1, 2), flipped), back, (False, False, False))
    return from_array(np.ascontiguousarray(native_ZYX), raw)


def from_array(array_ZYX: np.ndarray, grid: Grid) -> sitk.Image:
    """Makes an image of an array on a grid."""
    image = sitk.GetImageFromArray(array_ZYX)
    image.SetSpacing(grid.spacing_xyz_mm)
    image.SetOrigin(grid.origin_xyz_mm)
    image.SetDirection(grid.direction)
    return image


def write_image(image: sitk.Image, path: str | Path) -> None:
    """Writes an image by rename as compressed NIfTI; the geometry is exact to float32, which is what NIfTI stores."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # SimpleITK chooses the format by the suffix, so the unfinished file carries it too.
    part = path.with_name(stem(path) + ".part.nii.gz")
    sitk.WriteImage(image, os.fspath(part), useCompression=True, compressionLevel=1)
    os.replace(part, path)
