"""Prepared volumes packed into shards, read by byte ranges: on object storage, a web server or a disk.

A shard holds many arrays, one after another. An array is its compressed chunks, as Blosc2 made them, then what is
stored beside them (`places_<class>`), then its head: JSON with the array's shape and the length and CRC-32 of each of
these parts. The index says where arrays lie and what the SHA-256 of their heads is; so a crop takes one request for the
head and those for the chunks that it touches, and what arrives is checked. Layout in `docs/formats.md`, "shards".

Axes: C channels, Z Y X voxels.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import sys
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import blosc2
import numpy as np

from voxprior.errors import Refusal, Resumable

ATTEMPTS = 6
PATIENCE_S = 30  # no attempt begins later: drivers of buckets try again by themselves within each
GAP_BYTES = 64 << 10  # parts that are nearer to one another come in one request: a request costs more than that
AGAIN = "run 'pack' again"
# Families of errors that drivers have beside OSError: of the web (and all buckets), and of S3.
WEB, S3, ANSWERS = ("aiohttp", "ClientError"), "botocore.exceptions", ("botocore.parsers", "ResponseParserError")
FAMILIES = (WEB, (S3, "BotoCoreError"), (S3, "ClientError"), ANSWERS)
PASSING = (WEB, (S3, "HTTPClientError"), (S3, "ConnectionError"), ANSWERS)  # no answer, or half of one
BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # they know no folders

Array = np.ndarray[Any, Any]


class Place(NamedTuple):
    """Where an array lies: the shard's file, its first byte, that of its head, the one after its end."""

    file: str
    start: int
    head: int
    end: int
    head_sha256: str


class Packed:
    """An array in a shard, read box by box; every reading is requests."""

    def __init__(self, url: str, place: Place, head: dict[str, Any]) -> None:
        """Takes the head as it was read."""
        self._url, self._name = url, f"{url} at byte {place.start}"
        self.shape: tuple[int, ...] = tuple(head["shape"])
        self._layout = {"dtype": np.dtype(head["dtype"]), "chunks": head["chunks"], "blocks": head["blocks"]}
        lengths = [length for length, _ in head["parts"]]
        self._starts = np.cumsum([place.start, *lengths])
        self._crcs = [crc for _, crc in head["parts"]]
        self._more: list[str] = head["more"]
        counts = [math.ceil(n / chunk) for n, chunk in zip(self.shape, head["chunks"], strict=True)]
        self._grid = np.arange(math.prod(counts)).reshape(counts)

    def __getitem__(self, box: tuple[slice, ...]) -> Array:
        """Reads a box; a slice with a beginning and an end for each axis."""
        chunks = self._layout["chunks"]
        touched = (slice(s.start // n, -(-s.stop // n)) for s, n in zip(box, chunks, strict=True))
        numbers = [int(number) for number in self._grid[tuple(touched)].ravel()]
        array = blosc2.uninit(self.shape, **self._layout, cparams={"nthreads": 1}, dparams={"nthreads": 1})
        for number, part in zip(numbers, self._parts(numbers), strict=True):
            array.schunk.update_chunk(number, part)
        return np.asarray(array[box])

    def more(self, name: str) -> bytes:
        """Reads what is stored beside the chunks under a name."""
        return self._parts([self._grid.size + self._more.index(name)])[0]

    def _parts(self, numbers: Sequence[int]) -> list[bytes]:
        """Reads parts, in ascending order, and checks them."""
        ranges: list[tuple[int, int]] = []
        for number in numbers:
            start, end = int(self._starts[number]), int(self._starts[number + 1])
            if ranges and start - ranges[-1][1] <= GAP_BYTES:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
        read = iter(list(zip(ranges, read_ranges(self._url, ranges), strict=True)))
        (first, last), content = next(read)
        parts = []
        for number in numbers:
            start, end = int(self._starts[number]), int(self._starts[number + 1])
            if end > last:
                (first, last), content = next(read)
            parts.append(content[start - first : end - first])
            if zlib.crc32(parts[-1]) != self._crcs[number]:
                raise Refusal(f"{self._name} is damaged in part {number} (its CRC-32 is not the head's): {AGAIN}")
        return parts


def root_of(root: str, folder: Path) -> str:
    """Completes the folder of the shards that an index names: a URL, or a path relative to the index's folder."""
    return root if "://" in root else os.fspath(folder / root)


@functools.lru_cache(maxsize=1024)
def open_array(root: str, place: Place, made_for: tuple[int, str]) -> Packed:
    """Opens an array by its head.

    Args:
        root: folder of the shards, a path or a URL.
        place: from the index.
        made_for: the cache's format and the key of the prepare card.

    Raises:
        Refusal: missing, damaged, or made for another index.
        Resumable: cannot be reached.
    """
    url = f"{root}/{place.file}"
    (head,) = read_ranges(url, [(place.head, place.end)])
    if hashlib.sha256(head).hexdigest() != place.head_sha256:
        raise Refusal(f"{url} is damaged or stale at byte {place.head} (its hash is not the index's): {AGAIN}")
    content = json.loads(head)
    if (content["format"], content["key"]) != made_for:
        raise Refusal(f"{url} was packed from arrays of another card or format: {AGAIN}")
    return Packed(url, place, content)


def read_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Reads byte ranges [start, end) of a file, at once where its storage can; tries again where that may help.

    Raises:
        Refusal: it is missing or ends too early, it may not be read, or its server knows no ranges.
        Resumable: it cannot be reached, after six attempts or half a minute.
    """
    import tenacity

    attempts = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(PATIENCE_S),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        retry=tenacity.retry_if_exception(_passes),
        reraise=True,
    )
    with _in_a_sentence(url, "read"):
        try:
            read = attempts(_read_once, url, ranges)
        except FileNotFoundError:
            raise Refusal(f"{url} is missing: {AGAIN}, or correct 'root' in the index") from None
    for (start, end), content in zip(ranges, read, strict=True):
        if len(content) != end - start:
            raise Refusal(
                f"{url} gave {len(content):,} bytes for bytes {start:,} to {end:,}: it is cut short, or its server "
                f"knows no byte ranges: {AGAIN}, or serve it by one that does"
            )
    return read


def _read_once(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    system, path = storage(url)
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    return list(system.cat_ranges([path] * len(ranges), starts, ends, on_error="raise"))


def storage(url: str) -> tuple[Any, str]:
    """Finds the driver of a path or URL: (file system, path in it).

    Raises:
        Refusal: an address, or a setting of fsspec, that no driver takes.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, TypeError) as error:
        raise Refusal(f"{url} cannot be opened ({_short(error)}): install its driver, or correct the address") from None
    return system, path


@contextmanager
def _in_a_sentence(url: str, done: str) -> Iterator[None]:
    """Turns what drivers raise into a sentence: what lasts is refused, after what may pass the command can go on."""
    try:
        yield
    except (Refusal, Resumable):
        raise
    except _errors() as error:
        said = f"{url} cannot be {done} ({_short(error)}): check the address"
        if _passes(error):
            raise Resumable(f"{said}, the network and your access") from error
        raise Refusal(f"{said}, your access and the driver's settings") from error


def _errors() -> tuple[type[Exception], ...]:
    """Lists what drivers raise when they cannot read or write; wrong settings are found out when first used."""
    return (*_known(FAMILIES), OSError, ValueError, TypeError)


def _short(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 200)


def _known(names: Sequence[tuple[str, str]]) -> tuple[type[Exception], ...]:
    """Finds classes in modules that are imported: no others can have raised anything."""
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def _passes(error: BaseException) -> bool:
    """Tells whether an error may pass: no answer, too many requests, a server in trouble."""
    if isinstance(error, TimeoutError):
        return True
    response = getattr(error.__cause__, "response", None) or {}  # of S3, whose driver raises an OSError from it
    if response.get("Error", {}).get("Code") == "NoSuchUpload":  # a store ends what takes too long
        return True
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | FileExistsError):
        return False
    status = getattr(error, "status", None) or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(error, (OSError, *_known(PASSING)))


# ------------------------------------------------------------------------------------------------- writing
def plan(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Shares cases out, in order, to shards of about `shard_bytes`: each closes with the case that fills it."""
    filled = itertools.accumulate(sizes.values(), initial=0)
    numbers = (before // shard_bytes for before in filled)
    paired = zip(numbers, sizes, strict=False)
    return [[case for _, case in some] for _, some in itertools.groupby(paired, key=lambda pair: pair[0])]


def append(shard: IO[bytes], file: str, stored: Any) -> Place:
    """Writes an open Blosc2 array to the end of a shard and says where it is."""
    parts = [stored.schunk.get_chunk(number) for number in range(stored.schunk.nchunks)]
    more = sorted(stored.schunk.vlmeta)
    parts += [stored.schunk.vlmeta[name] for name in more]
    head = {
        **stored.schunk.meta["voxprior"],
        "shape": stored.shape,
        "dtype": stored.dtype.str,
        "chunks": stored.chunks,
        "blocks": stored.blocks,
        "more": more,
        "parts": [[len(part), zlib.crc32(part)] for part in parts],
    }
    start = shard.tell()
    for part in parts:
        shard.write(part)
    middle, content = shard.tell(), json.dumps(head, sort_keys=True).encode()
    shard.write(content)
    return Place(file, start, middle, shard.tell(), hashlib.sha256(content).hexdigest())


def check(root: str) -> None:
    """Looks whether a folder or URL can be written to, as far as that shows before anything is written.

    Raises:
        Refusal: a web server; an address without a driver; a bucket that is not there; no credentials.
        Resumable: it cannot be reached.
    """
    if root.startswith(("http://", "https://")):
        raise Refusal(f"{root} is a web server, which is only read from: pack into a folder and give this as --root")
    system, folder = storage(root)
    if not _is_bucket(system):
        return
    bucket = folder.split("/")[0]
    with _in_a_sentence(root, "reached"):
        try:
            system.info(bucket)
        except FileNotFoundError:
            raise Refusal(f"{root}: there is no bucket '{bucket}': make it, or correct the address") from None
        except PermissionError:
            pass  # a key may be good for writing alone


def send(local: Path, root: str, file: str) -> None:
    """Puts a finished shard where the shards lie, by the storage's own means.

    Raises:
        Refusal: it may not be written.
        Resumable: it cannot be written.
    """
    system, folder = storage(root)
    with _in_a_sentence(f"{root}/{file}", "written"):
        if not _is_bucket(system):  # making a folder of a bucket's would make the bucket, too
            system.makedirs(folder, exist_ok=True)
        system.put_file(os.fspath(local), f"{folder}/{file}")


def size_of(root: str, file: str) -> int | None:
    """Says how many bytes a shard has; None where there is none.

    Raises:
        Refusal: it may not be looked at.
        Resumable: it cannot be reached.
    """
    system, folder = storage(root)
    with _in_a_sentence(f"{root}/{file}", "reached"):
        try:
            return int(system.size(f"{folder}/{file}"))
        except FileNotFoundError:
            return None


def _is_bucket(system: Any) -> bool:
    names = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    return bool(names & BUCKETS)
