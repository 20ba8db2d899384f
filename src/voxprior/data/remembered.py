"""What intake remembers of cases that it has passed, so that an interrupted or repeated run looks at new ones only.

One line of JSON per case, added as soon as the case is done. A case counts as known while its files have the hash of
the manifest and, on the disk, the size and time of change that they had.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from voxprior.data.files import sha256_of_json

VERSION = 1  # raised when a case's row, its measures or what is refused changes


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
        self._known: dict[str, Any] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        lines, self._torn = text.splitlines(), bool(text) and not text.endswith("\n")
        for line in lines:
            try:
                content = json.loads(line)
                self._known[content["key"]] = content["kept"]
            except (ValueError, KeyError, TypeError):
                continue  # the line that an interrupted run was writing

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
        return self._known.get(key) if key else None

    def keep(self, key: str | None, kept: Any) -> None:
        """Adds a line."""
        if key:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("\n" * self._torn + json.dumps({"key": key, "kept": kept}) + "\n")
            self._torn = False
