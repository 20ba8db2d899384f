"""What a run says while it works: a journal of numbers, a clock, a progress line.

Imports the standard library alone, so that every verb can afford it.
"""

import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
Mark = dict[str, int]


class Damaged(Exception):
    """Says that a file of a run's working state is not what was written."""


class Journal:
    """Appends JSON objects to a file, one per line, each handed to the operating system at once.

    A resumed run opens it at the mark that its checkpoint holds: lines written after that checkpoint are cut off and
    written again, so that the file equals an uninterrupted run's byte for byte.
    """

    def __init__(self, path: Path, mark: Mark | None = None) -> None:
        """Opens the journal at `mark`, or empty.

        Raises:
            Damaged: the lines before the mark are missing or changed.
        """
        self.path = path
        self._bytes = mark["bytes"] if mark else 0
        self._crc = mark["crc"] if mark else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0)
            if zlib.crc32(head := file.read(self._bytes)) != self._crc or len(head) != self._bytes:
                raise Damaged(f"{path} does not hold what the checkpoint says")
            file.truncate(self._bytes)
        self._file = open(path, "ab")  # noqa: SIM115 (open for the run's length)

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._bytes += len(line)
        self._crc = zlib.crc32(line, self._crc)

    def mark(self) -> Mark:
        """Puts everything on the disk and tells where the file ends: its length and CRC-32."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "crc": self._crc}

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Nowhere(Journal):
    """Takes what a journal takes and writes nothing: one process of a run writes, the others have this."""

    def __init__(self) -> None:
        pass

    def write(self, record: dict[str, Any]) -> None:
        """Drops the record."""

    def mark(self) -> Mark:
        """Marks nothing."""
        return {"bytes": 0, "crc": 0}

    def close(self) -> None:
        """Does nothing."""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress(iterable: Iterable[Item], total: int, label: str, start: int = 0, every_s: float = 60.0) -> Iterator[Item]:
    """Hands the items through and tells on stderr how far it is, how fast, and how long it takes.

    On a terminal a bar; in a log file one plain line at most every `every_s` seconds, and one at the end. `start`
    counts what an earlier, interrupted run did.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, total=total, desc=label, initial=start, dynamic_ncols=True)
        return
    began = told = time.monotonic()
    done = start
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if done >= total or now - told >= every_s:
            told = now
            rate = (done - start) / max(now - began, 1e-9)
            left = f", {_clock((total - done) / rate)} left" if done < total else f" in {_clock(now - began)}"
            print(f"{label}: {done}/{total}, {rate:.3g}/s{left}", file=sys.stderr, flush=True)
