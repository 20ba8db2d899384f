"""Sources: brings a dataset's files to this machine and writes down exactly what came.

Order: a mirror, if one is named, then the source's URLs as they are listed; a place that has a wrong file is named and
the next one asked. A file's hash is checked before anything is unpacked. `manifest.json` is written last.

Beside it lie `files/` (the dataset), `incoming/` (what has arrived, until all is there) and `fetched.json`, a copy of
the manifest: Snakemake deletes a job's outputs before it runs again, and what is whole need not be fetched twice.
"""

import errno
import fnmatch
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from voxprior.data import places, trust, unpack
from voxprior.data.files import sha256_of_json
from voxprior.data.manifest import is_whole, listed, write_manifest
from voxprior.data.parts import Part, Source, parts_of
from voxprior.data.places import Job
from voxprior.data.trust import Arrived, Record
from voxprior.errors import Refusal
from voxprior.whole import no_room, write_json


def fetch(
    source: Source,
    dataset: str,
    manifest: Path,
    mirror: str | None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetches a dataset into the manifest's folder; does nothing where all files are there and their hashes match.

    Args:
        source: kind, where, and which files are accepted.
        dataset: its name.
        manifest: `…/<dataset>/manifest.json`; unpacked files lie in `files/` beside it.
        mirror: a folder, the archive itself, or the beginning of a URL; tried first.
        sleep: waits between attempts, in seconds.

    Raises:
        Refusal: out of reach, a wrong hash, an unsafe archive, too few files, a full disk, or a manual step is missing.
    """
    folder = manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder.parent.parent / "hashes" / f"{dataset}.jsonl")
    job = Job(source, dataset, manifest, mirror, record, sleep)
    parts = parts_of(source)
    if source.kind == "folder":
        place = Path(source.path or "")
        if not source.path or not place.is_dir():
            raise Refusal(f"{source.path} is not a folder: give the folder with the scans of '{dataset}' as 'path'")
        _use_in_place(job, place)
        return
    if _is_here(job, parts):
        return
    if source.kind == "manual" and (place_by_hand := places.unpacked_by_hand(job, parts)) is not None:
        _use_in_place(job, place_by_hand)
        return
    password = _password(job)  # before an hour of downloading
    came = [places.get(job, part) for part in parts]
    _assemble(job, came, password)


def _is_here(job: Job, parts: list[Part]) -> bool:
    """Tells whether all of it was fetched before; writes the manifest again where only that is missing."""
    kept = job.manifest.with_name("fetched.json")
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
        came = {archive["file"]: archive for archive in before["archives"]}
        same = before.pop("how") == _how(job.source, parts) and set(came) == {part.file for part in parts}
        same &= all(trust.has_come(part, came[part.file]["sha256"], job.record) for part in parts if same)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # never fetched, or by half
    if not same or not is_whole(before, job.manifest):
        return False
    if not job.manifest.exists():
        write_json(job.manifest, before)
    return True


def _password(job: Job) -> str:
    """Reads the password of a dataset's archives, which stands in no file of ours.

    Raises:
        Refusal: it is not set.
    """
    if not job.source.password_from:
        return ""
    name = f"VOXPRIOR_PASSWORD_{job.dataset.upper()}"
    if not (password := os.environ.get(name, "")):
        raise Refusal(
            f"the archive of '{job.dataset}' is locked by a password: read the terms of use, get it from "
            f"{job.source.password_from.replace(': ', ' ')} and set it as environment variable {name}"
        )
    return password


def _how(source: Source, parts: list[Part]) -> str:
    """Names what decides which files come of an archive."""
    return sha256_of_json([source.members, source.junk, [[part.file, part.into] for part in parts]])


def _use_in_place(job: Job, place: Path) -> None:
    """Lists and hashes scans where they lie; those whose size and time did not change are not read again."""
    kept = job.manifest.with_name("fetched.json")
    times = {name: path.stat().st_mtime_ns for name, path in listed(job.manifest, place, job.source.junk)}
    _check_expected(job, place, list(times))
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
        sizes = {file["path"]: file for file in before["files"]}
        unchanged = [name for name in times if before["times_ns"].get(name) == times[name] and name in sizes]
        known = {
            name: sizes[name]["sha256"]
            for name in unchanged
            if (job.manifest.parent / name).stat().st_size == sizes[name]["bytes"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}
    content = write_manifest(job.manifest, job.dataset, place, job.source.junk, known=known)
    write_json(kept, content | {"times_ns": times})


# ------------------------------------------------------------------------------------------------- all of them
def _assemble(job: Job, came: list[Arrived], password: str) -> None:
    """Makes `files/` of what arrived, complete or not at all, and writes the manifest."""
    place = job.manifest.parent / "files"
    part = place.with_name("files.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for arrived in came:
            target = part / arrived.into
            target.mkdir(parents=True, exist_ok=True)
            if unpack.is_archive(arrived.file):
                _unpack(job, arrived, target, password)
            else:
                _place(arrived, target / arrived.file)
        names = [name for name, _ in listed(part / "manifest.json", part, job.source.junk)]
        _check_expected(job, job.manifest.parent, names)
        shutil.rmtree(place, ignore_errors=True)
        part.replace(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for arrived in came:
        if arrived.first:
            job.record.add(arrived)
    archives = [
        {"file": a.file, "sha256": a.sha256, "bytes": a.bytes, "from": a.origin, "contains": a.contains} for a in came
    ]
    content = write_manifest(job.manifest, job.dataset, place, job.source.junk, archives)
    write_json(job.manifest.with_name("fetched.json"), content | {"how": _how(job.source, parts_of(job.source))})
    shutil.rmtree(job.incoming, ignore_errors=True)


def _unpack(job: Job, arrived: Arrived, target: Path, password: str) -> None:
    try:
        unpack.extract(arrived.path, target, job.source.members, job.source.junk, password)
    except unpack.Damaged as damage:
        if not arrived.ours:
            raise
        # Its hash is that of nobody's good file, or the disk has lost some of it: the next run has to fetch it again.
        arrived.path.unlink()
        raise Refusal(f"{str(damage).rpartition(': ')[0]}: it was removed, run again or name a mirror") from None


def _place(arrived: Arrived, target: Path) -> None:
    """Puts a single file into the dataset: a second name for what arrived, or a copy of what is not ours."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if arrived.ours:
            try:
                os.link(arrived.path, target)
                return
            except OSError as error:  # a file system without second names
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
        shutil.copyfile(arrived.path, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(target, arrived.bytes) from None


def _check_expected(job: Job, place: Path, names: list[str]) -> None:
    """Compares numbers of files with those that the dataset should have.

    Raises:
        Refusal: another number matches a pattern.
    """
    for pattern, number in job.source.expects.items():
        found = sum(fnmatch.fnmatchcase(name, "*" + pattern) for name in names)
        if found != number:
            raise Refusal(
                f"{place} has {found} files like {pattern} where {number} are expected: complete it, or correct "
                f"'expects' in the dataset's file"
            )
