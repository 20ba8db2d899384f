"""NIfTI headers as they are stored, and the checks that need them.

SimpleITK reads a NIfTI without a word where the file says two things at once or breaks off: it fills what a truncated
gzip lacks, turns NaN and infinite voxels into 0, replaces a spacing of zero by 1 mm, takes the sform where the qform
says otherwise. What is written in the file is read here instead.

Axes: x y z; matrices in NIfTI's world (x to the right, y to the front, z to the head).
"""

import contextlib
import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from voxprior.errors import Refusal

Matrix = np.ndarray[Any, Any]


class Header(NamedTuple):
    """What a NIfTI header stores; `sform` and `qform` are 3x4, or None where their code is 0."""

    dimension: int  # without axes of length 1 at the end
    spacing_mm: tuple[float, ...]
    number: np.dtype[Any] | None  # of floating voxels
    data_byte: int
    data_bytes: int
    sform: Matrix | None
    qform: Matrix | None


class _Version(NamedTuple):
    """Where a version of the format keeps its fields, as `struct` reads them."""

    size: int
    magic: tuple[int, bytes]
    code: tuple[int, str]
    bits: tuple[int, str]
    sizes: tuple[int, str]
    pixdim: tuple[int, str]
    start: tuple[int, str]
    codes: tuple[int, str]
    quaternion: tuple[int, str]
    rows: tuple[int, str]


VERSIONS = (
    _Version(
        348, (344, b"n+1\0"), (70, "h"), (72, "h"), (40, "8h"), (76, "8f"), (108, "f"), (252, "2h"), (256, "6f"),
        (280, "12f"),
    ),
    _Version(
        540, (4, b"n+2\0"), (12, "h"), (14, "h"), (16, "8q"), (104, "8d"), (168, "q"), (344, "2i"), (352, "6d"),
        (400, "12d"),
    ),
)  # fmt: skip


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, through gzip by its suffix.

    Raises:
        Refusal: it cannot be opened, is no gzip, or is truncated.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as stream:
            yield stream  # type: ignore[misc]
    except gzip.BadGzipFile:
        raise Refusal(f"{path} is no gzip file or is damaged: copy it again or give it its true suffix") from None
    except (EOFError, zlib.error):
        raise Refusal(f"{path} is truncated or damaged: copy it again") from None
    except OSError as error:
        raise Refusal(f"{path} cannot be opened ({error.strerror}): let the user who runs this read it") from None


def read_header(path: Path) -> Header | None:
    """Reads the header of a NIfTI as it is stored; None for files that do not call themselves NIfTI.

    Raises:
        Refusal: the file calls itself NIfTI and is none.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return None
    with opened(path) as file:
        head = file.read(540)
    for version in VERSIONS:
        for order in "<>":
            if len(head) >= version.size and struct.unpack_from(order + "i", head)[0] == version.size:
                start, magic = version.magic
                if head[start : start + 4] != magic:
                    shown = head[start : start + 4].decode("ascii", "replace").rstrip("\0")
                    raise Refusal(
                        f"{path} has the magic word {shown!r} where a NIfTI file has 'n+1' or 'n+2': export it again"
                    )
                return _parse(head, order, version)
    raise Refusal(f"{path} is no NIfTI file, whatever its name says: export it again or give it its true suffix")


def _parse(head: bytes, order: str, at: _Version) -> Header:
    def read(field: tuple[int, str]) -> tuple[Any, ...]:
        return struct.unpack_from(order + field[1], head, field[0])

    sizes = read(at.sizes)
    pixdim, start = read(at.pixdim), read(at.start)[0]
    kinds = {16: np.dtype(order + "f4"), 64: np.dtype(order + "f8")}
    sform_rows = np.array(read(at.rows), float).reshape(3, 4)
    (qform_code, sform_code), quaternion = read(at.codes), read(at.quaternion)
    sizes = sizes[1 : 1 + min(max(sizes[0], 0), 7)]
    return Header(
        max((number for number, size in enumerate(sizes, 1) if size != 1 or number <= 3), default=0),
        pixdim[1:4],
        kinds.get(read(at.code)[0]),
        int(start) if math.isfinite(start) else at.size + 4,
        math.prod(sizes) * read(at.bits)[0] // 8,
        sform_rows if sform_code > 0 else None,
        _qform(quaternion, pixdim) if qform_code > 0 else None,
    )


def _qform(quaternion: tuple[float, ...], pixdim: tuple[float, ...]) -> Matrix:
    """Makes the 3x4 matrix of a qform.

    Source: nifti1.h, "METHOD 2"; the sign of pixdim[0] turns the third axis.
    """
    b, c, d, *offset = quaternion
    a = math.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    scale = np.array(pixdim[1:4]) * (1, 1, -1 if pixdim[0] < 0 else 1)
    return np.column_stack([rotation * scale, offset])


def check_stream(path: Path, header: Header | None) -> None:
    """Reads a file's bytes once: checks a gzip's checksum, and looks for NaN and for missing voxels in a NIfTI.

    Raises:
        Refusal: truncated or damaged; fewer voxels than the header announces; NaN or infinite voxels.
    """
    if header is None and path.suffix.lower() != ".gz":
        return
    bad, left = 0, header.data_bytes if header else 0
    with opened(path) as stream:
        if header is not None:
            stream.read(header.data_byte)
        while block := stream.read(1 << 20):
            left -= len(block)
            if header is not None and header.number is not None:
                whole = len(block) - len(block) % header.number.itemsize
                values = np.frombuffer(block[:whole], header.number)
                bad += int(values.size - np.count_nonzero(np.isfinite(values)))
    if left > 0:
        raise Refusal(f"{path} lacks {left} bytes of the voxels that its header announces: copy or export it again")
    if bad:
        raise Refusal(f"{path} holds {bad} voxels that are NaN or infinite: export the scan again without them")
