"""Unpacks archives that nobody vouches for: every member is looked at before anything is written.

Refused as a whole: a member with `..` or an absolute path, a link or device among what is unpacked, more bytes than a
scan archive can hold or than the disk has, a name twice.
"""

import fnmatch
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from voxprior.errors import Refusal

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ZIP = (".zip", ".whl")
MOST_MEMBERS = 2_000_000
GROWTH = 60  # label maps compress well, but an archive that grows more than this is a bomb
FLOOR_BYTES = 2 << 30


class _Member(NamedTuple):
    name: str
    bytes: int
    plain: bool
    handle: tarfile.TarInfo | zipfile.ZipInfo


def is_archive(name: str) -> bool:
    """Tells by the suffix whether a file is an archive that can be unpacked."""
    return name.lower().endswith(TAR + ZIP)


def unpack(archive: Path, folder: Path, members: list[str], junk: list[str]) -> None:
    """Unpacks an archive into a folder that is then complete, or not there.

    Args:
        archive: tar (plain or compressed), zip or wheel.
        folder: replaced as a whole, by rename from `<folder>.part`.
        members: glob patterns on the member's path (`*` also crosses folders); empty = everything.
        junk: glob patterns; members with a matching part of the path are skipped.

    Raises:
        Refusal: see above; or the archive is damaged, or nothing matches `members`.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if archive.name.lower().endswith(ZIP):
            _unpack_zip(archive, part, members, junk)
        else:
            _unpack_tar(archive, part, members, junk)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Refusal(f"{archive} is damaged ({error}): delete it and fetch it again") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack_tar(archive: Path, part: Path, members: list[str], junk: list[str]) -> None:
    with tarfile.open(archive) as tar:
        found = [_Member(info.name, info.size, info.isreg(), info) for info in tar if not info.isdir()]
        for member in _chosen(archive, part, found, members, junk):
            source = tar.extractfile(member.handle)  # type: ignore[arg-type]
            if source is not None:
                _copy(archive, source, part / member.name, member.bytes)


def _unpack_zip(archive: Path, part: Path, members: list[str], junk: list[str]) -> None:
    with zipfile.ZipFile(archive) as content:
        found = []
        for info in content.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if not info.is_dir():
                found.append(_Member(info.filename, info.file_size, kind in (0, stat.S_IFREG), info))
        for member in _chosen(archive, part, found, members, junk):
            with content.open(member.handle) as source:  # type: ignore[arg-type]
                _copy(archive, source, part / member.name, member.bytes)


def _chosen(archive: Path, part: Path, found: list[_Member], members: list[str], junk: list[str]) -> Iterator[_Member]:
    """Checks all members, then yields those to unpack."""
    for member in found:
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise Refusal(f"{archive} has a member that leads outside, {member.name!r}: do not use this archive")
    chosen = [member for member in found if _wanted(member.name, members, junk)]
    for member in chosen:
        if not member.plain:
            raise Refusal(f"{archive} has a member that is a link or device, {member.name!r}: do not use this archive")
    if not chosen:
        raise Refusal(f"{archive} has no member that matches {', '.join(members) or '*'}: correct the dataset's file")
    if len({member.name for member in chosen}) < len(chosen) or len(chosen) > MOST_MEMBERS:
        raise Refusal(f"{archive} holds a name twice or more than {MOST_MEMBERS} files: do not use this archive")
    total = sum(member.bytes for member in chosen)
    if total > FLOOR_BYTES + GROWTH * archive.stat().st_size:
        raise Refusal(f"{archive} would grow to {total} bytes, far beyond its size: do not use this archive")
    free = shutil.disk_usage(part).free
    if total > free:
        raise Refusal(f"{part.parent} has {free} bytes free and {archive.name} needs {total}: make room")
    yield from chosen


def _wanted(name: str, members: list[str], junk: list[str]) -> bool:
    if any(fnmatch.fnmatchcase(piece, pattern) for piece in PurePosixPath(name).parts for pattern in junk):
        return False
    return not members or any(fnmatch.fnmatchcase(name.removeprefix("./"), pattern) for pattern in members)


def _copy(archive: Path, source: IO[bytes], target: Path, most_bytes: int) -> None:
    """Copies one member, never more than its header announced (a zip may lie)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = most_bytes
    with open(target, "xb") as file:
        while block := source.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise Refusal(f"{archive} holds more bytes than it announces in {target.name}: do not use this archive")
            file.write(block)
    if left:
        raise Refusal(f"{archive} ends inside {target.name}: delete it and fetch it again")
