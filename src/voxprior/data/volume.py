"""Scans and label maps in and out of files; the only place where x y z exists.

A file's voxels lie on a *raw* grid. `to_lps` turns them, by exchanging and flipping axes only, so that x runs to the
patient's left, y to the back (posterior), z to the head (superior). A tilted scan stays tilted: its `direction` is then
near the identity, not equal to it, because turning it upright would interpolate and pad the corners.

Grid convention, as SimpleITK's: the centre of the first voxel stays where it is when the spacing changes (same
`origin`), voxel i lies at origin + direction @ (i * spacing). torch, scipy and nnU-Net align the volume's *edges*
instead; mixing the two shifts a segmentation by up to half a voxel. `to_native` undoes both steps exactly.

Axes: arrays are Z Y X; SimpleITK's sizes, spacings and origins are x y z.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from voxprior.data import checks, nifti, repairs, resample, series
from voxprior.errors import Refusal

SUFFIXES = tuple(checks.FORMATS)

# Without this ITK gives up on a sform that is a rotation but for rounding; `repairs` decides which ones pass.
os.environ.setdefault("ITK_NIFTI_SFORM_PERMISSIVE", "1")
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

    def demand_same(self, path: str | Path, other: "Grid", what: str, advice: str) -> float:
        """Compares with the grid of `what`, by where the corner voxels are in the world: how far they are apart, mm.

        Raises:
            Refusal: another number of voxels, or a corner further away than `repairs.FAR_VOX`.
        """
        if self.size_xyz != other.size_xyz:
            shapes = ["x".join(map(str, grid.shape_zyx)) for grid in (self, other)]
            raise Refusal(f"{path} has {shapes[0]} voxels where {what} has {shapes[1]}: {advice}")
        apart_mm = float(np.abs(self.corners_mm() - other.corners_mm()).max())
        if apart_mm > repairs.FAR_VOX * min(other.spacing_xyz_mm):
            raise Refusal(
                f"{path} lies up to {apart_mm:.3g} mm beside {what} (spacing, origin or direction differ): {advice}"
            )
        return apart_mm

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
    """Reads a scan and refuses what cannot be one; `open_scan` without the list of repairs."""
    return open_scan(path, verify)[0]


def open_scan(path: str | Path, verify: bool = True) -> tuple[sitk.Image, list[str]]:
    """Reads a scan and refuses what cannot be one: (the image with its own pixel type, repairs made).

    Args:
        path: any file that SimpleITK reads.
        verify: read the bytes once more, for what SimpleITK overlooks (truncated gzip, NaN in NIfTI); a caller may
            skip this for files that `intake` has passed.

    Raises:
        Refusal: missing, not readable, empty, damaged or no image; not three-dimensional; spacing zero, negative or
            absurd; geometry that `repairs` does not mend; one slice; NaN or infinite values; all voxels equal.
    """
    image, made = _read(path, verify)
    checks.values(str(path), sitk.GetArrayViewFromImage(image))
    return image, made


def read_label(path: str | Path, verify: bool = True) -> tuple[sitk.Image, list[str]]:
    """Reads a label map: (image of uint8 or uint16, repairs made).

    Whole numbers stored as floats are turned into integers, and the repair is named. A label map may be empty.

    Raises:
        Refusal: as `open_scan`, except constant; negative values, fractions, NaN, or values above 65535.
    """
    image, made = _read(path, verify)
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            # Plane by plane: no second copy of a label map that is already too large.
            whole = all(np.array_equal(plane, np.rint(plane)) for plane in voxels)
        if not whole:
            raise Refusal(f"{path} holds label values that are not whole numbers: export the labels as integers")
        made = [*made, f"label values stored as {voxels.dtype} read as integers"]
    low, high = voxels.min(), voxels.max()
    if low < 0:
        raise Refusal(f"{path} holds the negative label value {low}: give background 0 and classes 1, 2, ...")
    if high > np.iinfo(np.uint16).max:
        raise Refusal(f"{path} holds the label value {high}, above 65535: check that it is a label map")
    return sitk.Cast(image, sitk.sitkUInt8 if high <= 255 else sitk.sitkUInt16), made


def open_channels_of(path: str | Path, count: int, verify: bool = True) -> Iterator[tuple[sitk.Image, list[str]]]:
    """Reads the channels of one file, its fourth axis or its values per voxel: (the channel, repairs made).

    Raises:
        Refusal: as `open_scan`, of any channel; another number of channels than `count`.
    """
    image, direction, made = _open(Path(path), verify, lambda path, reader: checks.channels(path, reader, count))
    for number in range(count):
        if image.GetDimension() == 4:
            channel = image[:, :, :, number]
        else:
            channel = sitk.VectorIndexSelectionCast(image, number)
        channel.SetDirection(direction)
        checks.values(f"{path}: channel {number + 1}", sitk.GetArrayViewFromImage(channel))
        yield channel, made


def _read(path: str | Path, verify: bool) -> tuple[sitk.Image, list[str]]:
    """Reads an image of three axes and one value per voxel: (the image, repairs made)."""
    path = Path(path)
    if path.name.endswith(series.SUFFIX):
        return series.read(path), []
    image, direction, made = _open(path, verify, checks.one_volume)
    image.SetDirection(direction)
    return image, made


def _open(
    path: Path, verify: bool, suits: Callable[[Path, sitk.ImageFileReader], None]
) -> tuple[sitk.Image, tuple[float, ...], list[str]]:
    """Reads a file once its header has passed, the dear checks last: (image, direction of x y z, repairs made).

    `suits` refuses what the caller cannot use, by the header.
    """
    checks.readable(path)
    header = nifti.read_header(path)
    reader = checks.reader_of(path)
    try:
        # What the file stores first: the reader mends some of it without a word, and complains of the rest in many.
        stored = header is not None and header.dimension in (3, 4)
        direction, made = checks.stored(path, header) if header and stored else (None, [])
        reader.ReadImageInformation()
        suits(path, reader)
        checks.grid(path, reader)
        if direction is None:
            side = reader.GetDimension()
            matrix = np.asarray(reader.GetDirection()).reshape(side, side)[:3, :3]
            direction, turned = repairs.straighten(path, tuple(float(value) for value in matrix.ravel()))
            made = made + turned
        if verify:
            nifti.check_stream(path, header)
        image = reader.Execute()
    except RuntimeError as error:
        if verify:  # a broken stream explains more than what SimpleITK says of it
            nifti.check_stream(path, header)
        raise Refusal(f"{path} cannot be read as an image ({checks.reason(error)}): export it again as NIfTI") from None
    return image, direction, made


# ------------------------------------------------------------------------------------------------- orientation
def _turn(array_ZYX: np.ndarray, order: tuple[int, ...], flipped: tuple[bool, ...]) -> np.ndarray:
    turned = np.transpose(array_ZYX, [2 - order[axis] for axis in (2, 1, 0)])
    return turned[tuple(slice(None, None, -1 if flipped[axis] else 1) for axis in (2, 1, 0))]


def lps_grid(raw: Grid) -> Grid:
    """Says where the voxels lie once `to_lps` has turned them."""
    order, flipped = repairs.lps_axes(raw.direction)
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
    return _turn(sitk.GetArrayFromImage(image), *repairs.lps_axes(raw.direction)), lps_grid(raw)


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
    return from_lps(native_ZYX, raw)


def from_lps(array_ZYX: np.ndarray, raw: Grid) -> sitk.Image:
    """Turns an array on `lps_grid(raw)` back to how the file stores its axes: an image on the file's grid."""
    order, flipped = repairs.lps_axes(raw.direction)
    back = tuple(order.index(axis) for axis in range(3))
    # Undone in reverse: first the flips, on the turned axes, then the exchange.
    native_ZYX = _turn(_turn(array_ZYX, (0, 1, 2), flipped), back, (False, False, False))
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
