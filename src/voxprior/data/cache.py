"""The volume cache: prepared arrays in chunks, read box by box.

One `.b2nd` (Blosc2) file per scan and one per label map; layout in `docs/formats.md`, "index". A random crop reads
only the blocks that it touches. Blosc2 has no checksum, so the index holds each file's SHA-256. Opening a file checks
it once per process, unless the file has the size and the time of change that it had when prepare wrote it: then it is
not read through. `voxprior pack` puts the same arrays into shards, which `shards.py` reads by byte ranges.

Axes: C channels, Z Y X voxels. Images are C Z Y X, one chunk per channel; label maps Z Y X.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import numpy as np

from voxprior.data import shards
from voxprior.data.files import sha256_of, sha256_of_json
from voxprior.errors import Refusal
from voxprior.whole import whole

FORMAT = 2
CHUNK_VOX = 64
# Side of what is unpacked at least, and what sorts its bytes, by number type. Smaller blocks: less is unpacked in vain
# at a crop's faces. Sorting: an image's lower bytes are noise, and are copied without being looked at; labels have but
# one byte, and sorting them took four times as long as unpacking.
PACKING = {"int16": (16, blosc2.Filter.SHUFFLE), "uint8": (32, blosc2.Filter.NOFILTER)}
TICK_NS = 50_000_000  # file systems count time in steps; two changes within one may look like one
OPEN = 256  # arrays kept open: each is a file handle, and many systems give a process 1,024
AGAIN = "delete it and rerun 'prepare'"
PLACES = 1024  # voxels remembered per class, for crops centred on a class without reading the label map

Array = np.ndarray[Any, Any]
Zyx = tuple[int, int, int]


def write_array(path: Path, array: Array, key: str, places: dict[int, Array] | None = None) -> str:
    """Writes a volume in chunks, by rename, and returns the file's SHA-256.

    Args:
        path: `….b2nd`.
        array: int16 image C Z Y X, or uint8 labels Z Y X.
        key: what the content depends on; stored in the file.
        places: per class id, voxels (N, 3) of that class; stored with a label map.
    """
    apart = (1,) * (array.ndim - 3)  # a crop of few channels reads no other ones
    chunks = apart + tuple(min(CHUNK_VOX, n) for n in array.shape[-3:])
    side, order = PACKING[array.dtype.name]
    with whole(path) as part:
        stored = blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=os.fspath(part),
            mode="w",
            chunks=chunks,
            blocks=tuple(min(side, n) for n in chunks),
            cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": [order], "nthreads": 1},
            dparams={"nthreads": 1},  # stands in the file: without it, its hash would depend on the machine's cores
            meta={"voxprior": {"format": FORMAT, "key": key}},
        )
        for number, voxels in (places or {}).items():
            stored.schunk.vlmeta[f"places_{number}"] = voxels.astype("<u2").tobytes()
        del stored
    return sha256_of(path)


def stamp(path: Path) -> list[int]:
    """Tells a file's size in bytes and when it was changed, in ns."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


class Entry(NamedTuple):
    """What reading a case needs of its index entry: a fifth of the memory of all of it."""

    image: str
    image_sha256: str
    label: str | None
    label_sha256: str | None
    shape_zyx: Zyx
    spacing_zyx_mm: tuple[float, float, float]
    class_voxels: bytes  # int64, per class
    image_at: shards.Place | None
    label_at: shards.Place | None


def read_index(path: str | Path) -> dict[str, Any]:
    """Reads and checks `index.json` of a prepared dataset; read once per process while the file stays the same.

    Raises:
        Refusal: missing, not JSON, or of another format version.
    """
    return _read_index(*_state(path))


def find_case(index_path: str | Path, case: str) -> tuple[dict[str, Any], Entry]:
    """Finds a case: (what the index says of all cases, its entry).

    Raises:
        Refusal: as `read_index`; the index does not know the case.
    """
    about, cases = _read_cases(*_state(index_path))
    if case not in cases:
        raise Refusal(f"{index_path} has no case '{case}': rerun 'prepare' and 'split' for this dataset")
    return about, cases[case]


def _state(path: str | Path) -> tuple[str, tuple[int, ...]]:
    if not Path(path).is_file():
        raise Refusal(f"{path} is missing: run 'prepare' for this dataset")
    return os.fspath(path), tuple(stamp(Path(path)))


@functools.lru_cache(maxsize=16)
def _read_index(path: str, state: tuple[int, ...]) -> dict[str, Any]:
    return _parsed(path, None)


@functools.lru_cache(maxsize=16)
def _read_cases(path: str, state: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Reads what is needed to open cases, by name, and never holds the rest: each reading process has its own copy."""
    content = _parsed(path, _slim)
    return content, dict(content.pop("cases", []))


def _slim(found: dict[str, Any]) -> Any:
    """Makes less of a JSON object as soon as it is read."""
    if "direction" in found:  # a grid
        return None
    if "image_sha256" not in found:
        return found
    image_at, label_at = (shards.Place(*found[key]) if found.get(key) else None for key in ("image_at", "label_at"))
    return found["case"], Entry(
        image=found["image"],
        image_sha256=found["image_sha256"],
        label=found["label"],
        label_sha256=found["label_sha256"],
        shape_zyx=tuple(found["shape_zyx"]),
        spacing_zyx_mm=tuple(found["spacing_zyx_mm"]),
        class_voxels=np.array(found["class_voxels"], np.int64).tobytes(),
        image_at=image_at,
        label_at=label_at,
    )


def _parsed(path: str, hook: Callable[[dict[str, Any]], Any] | None) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_hook=hook)
        version = content["format"]
    except (ValueError, KeyError, TypeError):
        raise Refusal(f"{path} is damaged: delete it and rerun 'prepare'") from None
    if version != FORMAT:
        raise Refusal(f"{path} has format {version} and this voxprior reads {FORMAT}: delete it and rerun 'prepare'")
    return dict(content)


def content_key(index_path: str | Path, cases: Sequence[str], *more: str | None) -> str:
    """Names what is learned from: these cases, in this order, as they are prepared now, and hashes of what else."""
    index = read_index(index_path)
    known = {entry["case"]: [entry["image_sha256"], entry["label_sha256"]] for entry in index["cases"]}
    return sha256_of_json([index["quantum"], [[case, *known.get(case, [])] for case in cases], more])[:16]


@dataclass(frozen=True)
class Case:
    """One prepared case, open for reading boxes."""

    name: str
    image: Any
    label: Any
    quantum: float
    spacing_zyx_mm: tuple[float, float, float]
    shape_zyx: Zyx
    class_voxels: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many channels the image has."""
        return int(self.image.shape[0])

    def read(self, lo_zyx: Zyx, size_zyx: Zyx) -> tuple[Array, Zyx, Zyx]:
        """Reads a box of the image: (int16 box C Z Y X, first real voxel, first voxel beyond the real ones).

        The box may reach beyond the volume; what lies outside is 0, the window's minimum.
        """
        return _read_box(self.image, lo_zyx, size_zyx)

    def read_label(self, lo_zyx: Zyx, size_zyx: Zyx) -> Array:
        """Reads a box of the label map: uint8, background outside the volume."""
        return _read_box(self.label, lo_zyx, size_zyx)[0]

    def places(self, number: int) -> Array:
        """Lists up to 1024 voxels of a class, spread over all of it: (N, 3) int64."""
        packed = isinstance(self.label, shards.Packed)
        voxels = self.label.more(f"places_{number}") if packed else self.label.schunk.vlmeta[f"places_{number}"]
        return np.frombuffer(voxels, "<u2").reshape(-1, 3).astype(np.int64)


def _read_box(stored: Any, lo_zyx: Zyx, size_zyx: Zyx) -> tuple[Array, Zyx, Zyx]:
    start = [max(0, lo) for lo in lo_zyx]
    stop = [min(n, lo + size) for n, lo, size in zip(stored.shape[-3:], lo_zyx, size_zyx, strict=True)]
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        raise ValueError(f"box at {lo_zyx} of size {size_zyx} lies outside a volume of shape {stored.shape}")
    # Every axis spelled out: Blosc2 takes a tenth longer to find out what `...` stands for.
    every = [slice(0, n) for n in stored.shape[:-3]]
    real = stored[(*every, *(slice(a, b) for a, b in zip(start, stop, strict=True)))]
    z0, y0, x0 = (a - lo for a, lo in zip(start, lo_zyx, strict=True))
    z1, y1, x1 = (b - lo for b, lo in zip(stop, lo_zyx, strict=True))
    if real.shape[-3:] == tuple(size_zyx):
        return real, (z0, y0, x0), (z1, y1, x1)
    box = np.zeros((*real.shape[:-3], *size_zyx), real.dtype)
    box[..., z0:z1, y0:y1, x0:x1] = real
    return box, (z0, y0, x0), (z1, y1, x1)


def open_case(index_path: str | Path, case: str) -> Case:
    """Opens a prepared case; each file is checked against the index once per process.

    Raises:
        Refusal: the index does not know the case; a file is missing, damaged, or made for another index.
    """
    index, entry = find_case(index_path, case)
    folder = Path(index_path).parent
    arrays = {}
    for kind, file, sha256, place in (
        ("image", entry.image, entry.image_sha256, entry.image_at),
        ("label", entry.label, entry.label_sha256, entry.label_at),
    ):
        if place:
            root = shards.root_of(index["shards"]["root"], folder)
            arrays[kind] = shards.open_array(root, place, (FORMAT, index["key"]))
        elif file:
            path = os.fspath(folder / file)
            changed = os.stat(path).st_mtime_ns if os.path.isfile(path) else 0
            _check(path, case, str(sha256), changed)
            arrays[kind] = _open(path, index["key"], changed)
    return Case(
        name=case,
        image=arrays["image"],
        label=arrays.get("label"),
        quantum=float(index["quantum"]),
        spacing_zyx_mm=entry.spacing_zyx_mm,
        shape_zyx=entry.shape_zyx,
        class_voxels=tuple(np.frombuffer(entry.class_voxels, np.int64).tolist()),
    )


@functools.lru_cache(maxsize=1 << 16)
def _check(path: str, case: str, sha256: str, changed: int) -> None:
    """Checks a file against its hash; once per process, also where it is opened again."""
    if not Path(path).is_file():
        raise Refusal(f"{path} is missing: rerun 'prepare'")
    if not _untouched(Path(path), case, sha256) and sha256_of(path) != sha256:
        raise Refusal(f"{path} is damaged or stale (its hash is not the index's): {AGAIN}")


@functools.lru_cache(maxsize=OPEN)
def _open(path: str, key: str, changed: int) -> Any:
    try:
        stored = blosc2.open(path, mode="r", mmap_mode="r", dparams={"nthreads": 1})
        made_for = stored.schunk.meta["voxprior"]
    except (RuntimeError, ValueError, KeyError):
        raise Refusal(f"{path} is no prepared array: {AGAIN}") from None
    if made_for != {"format": FORMAT, "key": key}:
        raise Refusal(f"{path} was prepared with another card or format: {AGAIN}")
    return stored


def _untouched(path: Path, case: str, sha256: str) -> bool:
    """Tells whether nothing has changed a file since prepare wrote it, by what the case's sidecar says."""
    place = path.parent / f"{case}.json"
    try:
        sidecar = json.loads(place.read_text(encoding="utf-8"))
        hashes = [sidecar["entry"]["image_sha256"], sidecar["entry"]["label_sha256"]]
        stamps = {Path(file).name: value for file, value in sidecar["stamps"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    earlier = path.stat().st_mtime_ns + TICK_NS <= place.stat().st_mtime_ns
    return earlier and sha256 in hashes and stamps.get(path.name) == stamp(path)
