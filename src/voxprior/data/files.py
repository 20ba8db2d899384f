"""Files that are whole or absent: hash one, write one by rename."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


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


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file by rename: `<name>.part` beside it, flushed to disk, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON by rename, indented by one space."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
