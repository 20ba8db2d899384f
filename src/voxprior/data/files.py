"""Names for content: hashes of files and of JSON."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal
from voxprior.whole import write_json


def sha256_of(path: str | Path) -> str:
    """Hashes a file's bytes with SHA-256, a MiB at a time: 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(content: Any) -> str:
    """Hashes JSON content by its canonical text (sorted keys, no blanks): 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def located(file: str, listing: Path) -> Path:
    """Finds a file that a listing names: beside the listing, or below the working folder."""
    beside = listing.parent / file
    return beside if beside.exists() else Path(file)


def read_fold(splits: Path, number: int) -> dict[str, Any]:
    """Reads one fold of a split (`docs/formats.md`, "splits").

    Raises:
        Refusal: the split has no such fold.
    """
    for fold in json.loads(splits.read_text(encoding="utf-8"))["folds"]:
        if fold["fold"] == number:
            return dict(fold)
    raise Refusal(f"{splits} has no fold {number}: run 'split' again")


def write_note(note: Path, made_from: Any, files: Sequence[str], told: dict[str, Any]) -> None:
    """Notes that the `files` beside a note are done: what they were made from, their hashes, what to tell of them."""
    hashes = {name: sha256_of(note.parent / name) for name in files}
    write_json(note, {"made_from": made_from, "files": hashes, "told": told})


def read_note(note: Path, made_from: Any) -> dict[str, Any] | None:
    """Gives what an earlier run told, if the files it noted are whole and made from the same things; else None."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        files = content["files"].items()
        good = content["made_from"] == made_from and all(sha256_of(note.parent / name) == told for name, told in files)
        return dict(content["told"]) if good else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
