"""What intake remembers of cases that it has passed, so that an interrupted or repeated run looks at new ones only.

One line of JSON per case, added as soon as the case is done. A case counts as known while its files have the hash of
the manifest and, on the disk, the size and time of change that they had.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from voxprior.data.files import sha256_of_json
from voxprior.whole import add_line, parse_lines

KEY = b'{"key": "'  # what `keep` begins a line with
VERSION = 2  # raised when a case's row, its measures or what is refused changes


class Memory:
    """Rows of cases by what they were made from, in a file that only grows."""

    def __init__(self, path: Path, hashes: dict[str, str], settings: Any) -> None:
        """Reads what an earlier run has left.

        Args:
            path: the file.
            hashes: SHA-256 by path, of the dataset's files as the manifest lists them, relative to its root.
            settings: JSON content that the rows depend on beside the files.
        """
        self._path, self._hashes, self._settings = path, hashes, sha256_of_json([VERSION, settings])
        # Where a line stands, not what is on it: some KB a case.
        self._file: IO[bytes] | None = path.open("rb") if path.is_file() else None
        self._known = dict(_places(self._file)) if self._file else {}

    def key(self, root: Path, files: Iterable[str], rest: Any) -> str | None:
        """Names a case by its files' content; None where a file cannot be found or is not in the manifest."""
        parts = []
        for file in files:
            try:
                state = (root / file).stat()
            except OSError:
                return None
            if file not in self._hashes:
                return None
            parts.append([file, self._hashes[file], state.st_size, state.st_mtime_ns])
        return sha256_of_json([self._settings, parts, rest])

    def get(self, key: str | None) -> Any:
        """Gives what was kept under a key, or None."""
        place = self._known.get(key) if key else None
        if place is None or self._file is None:
            return None
        self._file.seek(place)
        lines = parse_lines(self._file.readline().decode(errors="replace"))
        return next((line["kept"] for line in lines if line.get("key") == key), None)

    def keep(self, key: str | None, kept: Any) -> None:
        """Adds a line."""
        if key:
            add_line(self._path, {"key": key, "kept": kept})


def _places(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Yields (key, where its line begins); the rest of a line is read where it is asked for, and may prove torn."""
    place = 0
    for line in file:
        if line.startswith(KEY):
            yield line[len(KEY) :].partition(b'"')[0].decode(errors="replace"), place
        place += len(line)
