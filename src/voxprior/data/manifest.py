"""The manifest: which files are a dataset, with size and hash, and from which archives they came."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxprior.data.files import sha256_of, sha256_of_json
from voxprior.data.unpack import is_junk
from voxprior.errors import Refusal
from voxprior.whole import write_json

FORMAT = 1


def write_manifest(
    manifest: Path,
    dataset: str,
    root: Path,
    junk: list[str],
    archives: list[dict[str, Any]] | None = None,
    simulated: bool = False,
    known: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Lists and hashes all files below `root`, writes the manifest and gives its content.

    Args:
        manifest: where it is written.
        dataset: its name.
        root: the folder that the dataset's layout describes.
        junk: glob patterns of files that are left out.
        archives: from which archives the files came.
        simulated: whether patients are simulated.
        known: hashes that need not be computed again, by path as the manifest writes it.

    Raises:
        Refusal: there are no files.
    """
    shown = shown_root(manifest, root)
    known = known or {}
    files = [
        {"path": name, "bytes": path.stat().st_size, "sha256": known.get(name) or sha256_of(path)}
        for name, path in listed(manifest, root, junk)
    ]
    if not files:
        raise Refusal(f"{root} holds no files: put the scans of '{dataset}' there")
    content = {
        "format": FORMAT,
        "dataset": dataset,
        "root": shown.as_posix(),
        "simulated": simulated,
        "archives": archives or [],
        "files": files,
        "files_sha256": sha256_of_json(files),
    }
    write_json(manifest, content)
    return content


def shown_root(manifest: Path, root: Path) -> Path:
    """Writes a dataset's root as the manifest does: relative where it lies below the manifest's folder."""
    # Files of our own move with the study, so their paths are relative; scans used in place keep an absolute path.
    below = Path(os.path.abspath(root)).is_relative_to(os.path.abspath(manifest.parent))
    return Path(os.path.relpath(root, manifest.parent)) if below else root.resolve()


def listed(manifest: Path, root: Path, junk: list[str]) -> Iterator[tuple[str, Path]]:
    """Yields the files of a dataset in order: (path as the manifest writes it, path from here)."""
    shown = shown_root(manifest, root)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and not is_junk(name.as_posix(), junk) and path.resolve() != manifest.resolve():
            yield (shown / name).as_posix(), path


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks a manifest.

    Raises:
        Refusal: missing, damaged, or of another format version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise Refusal(f"{path} has format {content['format']}, not {FORMAT}: delete it and fetch again")
        if content["files_sha256"] != sha256_of_json(content["files"]):
            raise Refusal(f"{path} was changed after it was written: delete it and fetch again")
        return dict(content)
    except FileNotFoundError:
        raise Refusal(f"{path} is missing: fetch the dataset") from None
    except Refusal:
        raise
    except (ValueError, KeyError, TypeError):
        raise Refusal(f"{path} is damaged: delete it and fetch again") from None


def files_of(content: dict[str, Any], manifest: Path) -> tuple[Path, list[str]]:
    """Gives the dataset's root folder and the listed files relative to it."""
    root = content["root"]
    names = [Path(os.path.relpath(file["path"], root)).as_posix() for file in content["files"]]
    return manifest.parent / root, names


def is_whole(content: dict[str, Any], manifest: Path) -> bool:
    """Tells whether every listed file is there with its size and hash."""
    for file in content["files"]:
        path = manifest.parent / file["path"]
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            return False
    return all(sha256_of(manifest.parent / file["path"]) == file["sha256"] for file in content["files"])
