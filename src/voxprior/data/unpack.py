"""Unpacks archives that nobody vouches for: every member is looked at before anything is written.

Refused as a whole: a member with `..` or an absolute path, a link or device among what is unpacked, more bytes than a
scan archive can hold or than the disk has, a name twice, a name that is a file and a folder.
"""

import errno
import fnmatch
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from voxprior.data.locked import blocks_of, is_locked_with_aes
from voxprior.errors import Refusal
from voxprior.whole import no_room

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ZIP = (".zip", ".whl")
MOST_MEMBERS = 2_000_000
GROWTH = 60  # label maps compress well, but an archive that grows more than this is a bomb
FLOOR_BYTES = 2 << 30


class Damaged(Refusal):
    """The archive itself is broken: only another copy of it helps."""


class _Member(NamedTuple):
    name: str
    bytes: int
    plain: bool
    handle: tarfile.TarInfo | zipfile.ZipInfo


def is_archive(name: str) -> bool:
    """Tells by the suffix whether a file is an archive that can be unpacked."""
    return name.lower().endswith(TAR + ZIP)


def extract(archive: Path, folder: Path, members: list[str], junk: list[str], password: str = "") -> None:
    """Unpacks an archive into a folder, which holds half of it when this fails: give a folder to throw away.

    Args:
        archive: tar (plain or compressed), zip or wheel.
        folder: exists; files that are there already stay, and are never written over.
        members: glob patterns on the member's path (`*` also crosses folders); empty = everything.
        junk: glob patterns; members with a matching part of the path are skipped.
        password: opens members of a zip that are locked, with AES or as of old.

    Raises:
        Damaged: the archive is broken.
        Refusal: see above; or the disk is full, or nothing matches `members`.
    """
    try:
        if archive.name.lower().endswith(ZIP):
            _extract_zip(archive, folder, members, junk, password)
        else:
            _extract_tar(archive, folder, members, junk)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise Damaged(f"{archive} is damaged ({error}): delete it and fetch it again") from None
    except NotImplementedError as error:  # of zipfile: methods that it does not know
        raise Refusal(f"{archive} cannot be read here ({error}): unpack it by hand and use the folder") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room(folder, archive.stat().st_size) from None
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL):
            raise Refusal(
                f"{archive} has a member that cannot be written ({error.strerror}): unpack it by hand, use the folder"
            ) from None
        if error.errno is None:  # of gzip and bz2: no such stream
            raise Damaged(f"{archive} is damaged ({error}): delete it and fetch it again") from None
        raise


def _extract_tar(archive: Path, folder: Path, members: list[str], junk: list[str]) -> None:
    with tarfile.open(archive) as tar:
        found = (_Member(_tidy(info.name), info.size, info.isreg(), info) for info in tar if not info.isdir())
        for member in _chosen(archive, folder, found, members, junk):
            source = tar.extractfile(member.handle)  # type: ignore[arg-type]
            if source is not None:
                _copy(archive, _blocks(source), folder / member.name, member.bytes)


def _extract_zip(archive: Path, folder: Path, members: list[str], junk: list[str], password: str) -> None:
    with zipfile.ZipFile(archive) as content:
        found = (
            _Member(_tidy(info.filename), info.file_size, _is_plain(info), info)
            for info in content.infolist()
            if not info.is_dir()
        )
        for member in _chosen(archive, folder, found, members, junk):
            _copy(archive, _opened(archive, content, member.handle, password), folder / member.name, member.bytes)  # type: ignore[arg-type]


def _opened(archive: Path, content: zipfile.ZipFile, info: zipfile.ZipInfo, password: str) -> Iterator[bytes]:
    """Yields the bytes of a zip's member, unlocked where it is locked."""
    if info.flag_bits & 1 and not password:
        raise Refusal(f"{archive} is locked by a password: unpack it by hand and use the folder")
    if is_locked_with_aes(info):
        with open(archive, "rb") as file:
            yield from blocks_of(file, info, password)
        return
    try:
        with content.open(info, pwd=password.encode() or None) as source:
            yield from _blocks(source)
    except RuntimeError as error:  # also of methods that are not known
        if isinstance(error, NotImplementedError) or not info.flag_bits & 1:
            raise
        raise Refusal(f"{archive} is not unlocked by the password given: set the right one") from None


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(1 << 20):
        yield block


def _is_plain(info: zipfile.ZipInfo) -> bool:
    return stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)


def _tidy(name: str) -> str:
    """Takes `./` and doubled slashes out of a member's path, so that one file has one name."""
    return PurePosixPath(name).as_posix()


def _chosen(
    archive: Path, folder: Path, found: Iterable[_Member], members: list[str], junk: list[str]
) -> Iterator[_Member]:
    """Checks all members, then yields those to unpack."""
    chosen: dict[str, _Member] = {}
    most_bytes, total = FLOOR_BYTES + GROWTH * archive.stat().st_size, 0
    for count, member in enumerate(found):
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
            raise Refusal(f"{archive} has a member that leads outside, {member.name!r}: do not use this archive")
        total += member.bytes
        # While listing: to list a compressed tar is to unpack it.
        if total > most_bytes:
            raise Refusal(f"{archive} would grow to {total} bytes, far beyond its size: do not use this archive")
        if count >= MOST_MEMBERS:
            raise Refusal(f"{archive} holds more than {MOST_MEMBERS} files: do not use this archive")
        if not _wanted(member.name, members, junk):
            continue
        if not member.plain:
            raise Refusal(f"{archive} has a member that is a link or device, {member.name!r}: do not use this archive")
        if chosen.setdefault(member.name, member) is not member:
            raise Refusal(f"{archive} holds a name twice, {member.name!r}: do not use this archive")
    if not chosen:
        raise Refusal(f"{archive} has no member that matches {', '.join(members) or '*'}: correct the dataset's file")
    folders = {parent.as_posix() for name in chosen for parent in PurePosixPath(name).parents}
    if both := sorted(folders & set(chosen)):
        raise Refusal(f"{archive} has {both[0]!r} as a file and as a folder: do not use this archive")
    need = sum(member.bytes for member in chosen.values())
    if need > shutil.disk_usage(folder).free:
        raise no_room(folder, need)
    yield from chosen.values()


def _wanted(name: str, members: list[str], junk: list[str]) -> bool:
    if is_junk(name, junk):
        return False
    return not members or any(fnmatch.fnmatchcase(name, pattern) for pattern in members)


def is_junk(name: str, junk: list[str]) -> bool:
    """Tells whether a part of a path matches one of the patterns."""
    return any(fnmatch.fnmatchcase(piece, pattern) for piece in PurePosixPath(name).parts for pattern in junk)


def _copy(archive: Path, blocks: Iterator[bytes], target: Path, most_bytes: int) -> None:
    """Copies one member, never more than its header announced (a zip may lie)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = most_bytes
    with open(target, "xb") as file:
        for block in blocks:
            left -= len(block)
            if left < 0:
                raise Damaged(f"{archive} holds more bytes than it announces in {target.name}: do not use this archive")
            file.write(block)
    if left:
        raise Damaged(f"{archive} ends inside {target.name}: delete it and fetch it again")
