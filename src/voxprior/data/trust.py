"""Which files are accepted: by the hash that is published, else by the hash that the first one had.

Where nobody published a hash, the first file's is recorded in `data/hashes/<dataset>.jsonl` (one JSON object a line:
`file`, `sha256`, `bytes`, `from`; the first line of a file counts), and every later one must be the same. The record
lies outside the dataset's folder, so that it outlives the scans.
"""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

from voxprior.data.parts import Part
from voxprior.data.unpack import is_archive
from voxprior.errors import Refusal
from voxprior.whole import add_line, read_lines

GZIP, ZIP = b"\x1f\x8b", b"PK"
# Ending -> how such a file begins, and how one says it. A tar is known by its 257th byte and checked in unpacking.
BEGINS = {
    ".tar.gz": (GZIP, "a gzip file"),
    ".tgz": (GZIP, "a gzip file"),
    ".gz": (GZIP, "a gzip file"),
    ".zip": (ZIP, "a zip archive"),
    ".whl": (ZIP, "a wheel"),
    ".nrrd": (b"NRRD", "an NRRD file"),
    ".npz": (ZIP, "an npz file"),
}


class Arrived(NamedTuple):
    """A file on this machine that is accepted. `ours`: it may be deleted. `first`: its SHA-256 is to be recorded."""

    path: Path
    file: str
    sha256: str
    bytes: int
    origin: str
    contains: str
    ours: bool
    first: bool
    into: str = "."


class Record:
    """The hashes recorded on first use."""

    def __init__(self, path: Path) -> None:
        """Reads the record; a half-written last line, of a process that was killed, does not count."""
        self.path = path
        self.sha256: dict[str, str] = {}
        for entry in read_lines(path):
            if {"file", "sha256"} <= entry.keys():
                self.sha256.setdefault(entry["file"], entry["sha256"])

    def add(self, came: Arrived) -> None:
        """Records a file's hash, if the file has none yet."""
        if came.file in self.sha256:
            return
        self.sha256[came.file] = came.sha256
        add_line(self.path, {"file": came.file, "sha256": came.sha256, "bytes": came.bytes, "from": came.origin})


def is_proven(part: Part) -> bool:
    """Tells whether a hash is known for every file that would be accepted."""
    return bool(part.accepts) and all(accepted.sha256 or accepted.md5 for accepted in part.accepts)


def has_come(part: Part, sha256: str, record: Record) -> bool:
    """Tells whether a file that came earlier with this hash is one that is accepted."""
    if any(accepted.sha256 == sha256 for accepted in part.accepts):
        return True
    unsure = not part.accepts or any(accepted.sha256 is None for accepted in part.accepts)
    return unsure and record.sha256.get(part.file, sha256) == sha256


def lengths_of(part: Part) -> set[int]:
    """Gives the lengths in bytes that an accepted file may have; empty where any may."""
    known = {accepted.bytes for accepted in part.accepts}
    return set() if None in known else {length for length in known if length is not None}


def judge(path: Path, origin: str, part: Part, record: Record, ours: bool) -> Arrived:
    """Compares a file with what is accepted.

    Raises:
        Refusal: it is another file; one of ours is removed, another's is left where it is.
    """
    try:
        return _judged(path, origin, part, record, ours)
    except Refusal:
        if ours:
            path.unlink(missing_ok=True)
        raise


def _judged(path: Path, origin: str, part: Part, record: Record, ours: bool) -> Arrived:
    remedy = "it was removed, run again or name a mirror" if ours else "replace it, or leave this mirror out"
    length = path.stat().st_size
    _check_beginning(path, origin, part, remedy)
    sha256, md5 = _hashes(path, any(accepted.md5 for accepted in part.accepts))
    came = Arrived(path, part.file, sha256, length, origin, "", ours, False, part.into)
    for accepted in part.accepts:
        if accepted.sha256 == sha256:
            return came._replace(contains=accepted.contains)
        if accepted.sha256 is None and accepted.md5 == md5 != "":
            return came._replace(contains=accepted.contains, first=True)
    recorded = record.sha256.get(part.file)
    if not is_proven(part):
        contains = next((a.contains for a in part.accepts if not (a.sha256 or a.md5)), "")
        if sha256 == recorded:
            return came._replace(contains=contains)
        fits = not (lengths := lengths_of(part)) or length in lengths
        if recorded is None and fits:
            _check_end(path, origin, remedy)
            return came._replace(contains=contains, first=True)
        if not fits:
            raise Refusal(f"{path} from {origin} has {length:,} bytes where {sorted(lengths)} are expected: {remedy}")
    expected = [f"sha256 {a.sha256}" if a.sha256 else f"md5 {a.md5}" for a in part.accepts if a.sha256 or a.md5]
    expected += [f"sha256 {recorded}, recorded in {record.path},"] if recorded and not is_proven(part) else []
    found = f"sha256 {sha256}" + (f" and md5 {md5}" if md5 else "")
    raise Refusal(
        f"{path} from {origin} has {found} where {' or '.join(expected)} is expected: {remedy}; if the publisher "
        f"changed it, check it and correct {'the record' if recorded and not is_proven(part) else 'the dataset file'}"
    )


def _check_beginning(path: Path, origin: str, part: Part, remedy: str) -> None:
    """Notices web pages and other strangers by their first bytes, for a better sentence than two hashes."""
    wanted, called = next((begin for ending, begin in BEGINS.items() if part.file.lower().endswith(ending)), (b"", ""))
    with open(path, "rb") as file:
        first = file.read(512)
    is_page = first.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<error"))
    if is_page and not part.file.lower().endswith((".html", ".htm", ".xml")):
        raise Refusal(f"{path} from {origin} is a web page, not {called or 'the file'}: {remedy}")
    if not first.startswith(wanted):
        raise Refusal(f"{path} from {origin} is {'not ' + called if first else 'empty'}: {remedy}")


def _hashes(path: Path, with_md5: bool) -> tuple[str, str]:
    """Reads a file once: its SHA-256, and its MD5 where that is wanted."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            if with_md5:
                md5.update(block)
    return sha256.hexdigest(), md5.hexdigest() if with_md5 else ""


def _check_end(path: Path, origin: str, remedy: str) -> None:
    """Reads the end of a file whose hash nobody knows, so that half a file is never trusted.

    A zip or a compressed tar shows its damage in unpacking; a tar that was cut between two members does not.
    """
    name = path.name.lower()
    try:
        if name.endswith(".tar"):
            with open(path, "rb") as file:
                file.seek(-min(512, path.stat().st_size), 2)
                if any(file.read()):
                    raise EOFError("it has no end")
        elif name.endswith(".gz") and not is_archive(name):
            with gzip.open(path) as content:
                while content.read(1 << 20):
                    pass
    except (zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise Refusal(f"{path} from {origin} is damaged ({error}): {remedy}") from None
