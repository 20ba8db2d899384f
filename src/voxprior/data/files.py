"""Names for content: hashes of files and of JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal


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
