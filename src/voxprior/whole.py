"""Files that are whole or absent: written beside their place and renamed when they are complete and on the disk.

Imports the standard library alone, so that every room and every verb can afford it.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal


class NoRoom(Refusal):
    """Says that the disk is full."""


def no_room(path: Path, need_bytes: int) -> NoRoom:
    """Makes the refusal for a full disk: path, need, free."""
    free = shutil.disk_usage(path.parent).free
    return NoRoom(
        f"{path} does not fit on the disk, it needs {need_bytes:,} bytes or more and {free:,} are free: "
        "make room and run the same command again"
    )


@contextmanager
def whole(path: Path, need_bytes: int = 0) -> Iterator[Path]:
    """Gives `<path>.part` to write to and puts it in place at the end: nobody ever sees half a file.

    Args:
        path: where the file ends up; its folder is made.
        need_bytes: how large it will be, where that is known: too full a disk is noticed before the first byte.

    Raises:
        Refusal: the disk is full. What was at `path` before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if need_bytes and shutil.disk_usage(path.parent).free < need_bytes:
        raise no_room(path, need_bytes)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # of a process that was killed
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(path, max(need_bytes, part.stat().st_size if part.exists() else 0)) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, UTF-8, line ends as they are in the text.

    Raises:
        Refusal: the disk is full.
    """
    content = text.encode()
    with whole(path, need_bytes=len(content)) as part:
        part.write_bytes(content)


def write_json(path: Path, content: Any, sort_keys: bool = False) -> None:
    """Writes a JSON file whole, indented by one space.

    Raises:
        Refusal: the disk is full.
        ValueError: a number is not finite, which JSON cannot say.
    """
    text = json.dumps(content, indent=1, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def add_line(path: Path, content: Any) -> None:
    """Adds one JSON object as a line; a line that a killed process left half-written is closed first, and is lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(content) + "\n").encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Reads the JSON objects that `add_line` wrote, without half-written ones; nothing where there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    yield from parse_lines(text)


def parse_lines(text: str) -> Iterator[dict[str, Any]]:
    """Reads the JSON objects of a text, one a line; what is torn or no object is left out."""
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content
