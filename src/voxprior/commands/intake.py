"""intake: lists and checks the cases of a dataset."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any


def run(
    card: Path, manifest: Path, cases: Path, quarantine: Path, fingerprint: Path | None = None, workers: int = 1
) -> None:
    """Looks at every case and writes the tables of those that can be used and those that cannot, and the fingerprint.

    Beside the table of usable cases lie `quarantine/<case>.png`, a picture of each case set aside whose voxels can be
    read; where labels come in a file per class, `labels/<case>.nii.gz`; and `examined.jsonl`, by which another run
    looks at new and changed files only.

    Args:
        card: intake card.
        manifest: of the dataset.
        cases: table of usable cases.
        quarantine: table of those set aside.
        fingerprint: what the scans are like; `fingerprint.json` beside the cases if not given.
        workers: processes; fewer where the largest scan, in all of them at once, would not fit into the free memory.

    Raises:
        Refusal: no case can be used; the classes do not suit a layout with a file per class.
    """
    from voxprior.cards import read_card
    from voxprior.data import fingerprint as fingerprints
    from voxprior.data import intake, labels, layouts, memory, processes, survey
    from voxprior.data.manifest import files_of, read_manifest
    from voxprior.engine.journal import progress
    from voxprior.errors import Refusal
    from voxprior.whole import write_json, write_text

    content = read_card("intake", card)
    listed = read_manifest(manifest)
    root, files = files_of(listed, manifest)
    in_files = content.classes | ({layouts.IGNORE: content.ignore} if content.ignore else {})
    entries = layouts.list_cases(content.layout, root, files, list(in_files), content.channels)
    merger = labels.ClassFiles.of(in_files, cases.parent / "labels") if any(e.parts for e in entries) else None
    identity = intake.Identity(
        content.dataset, content.patient, content.person, content.simulated, len(content.channels)
    )
    usable: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    shutil.rmtree(cases.parent / "quarantine", ignore_errors=True)
    known = _memory(content, listed, cases.parent / "examined.jsonl")
    thin = intake.thinning(len(entries))
    notes = intake.Notes(cases.parent, content.classes, content.ignore, fingerprints.SAMPLES, thin, known)
    if workers > 1:
        workers = processes.fitting(workers, survey.need_bytes(entries, root), memory.free_bytes())
    looked = intake.examine(entries, root, identity, merger, notes, workers)
    for kind, row in progress(looked, len(entries), f"intake {content.dataset}"):
        (usable if kind == "case" else aside).append(row)
    write_text(quarantine, _table(intake.QUARANTINE, aside))
    if not usable:
        raise Refusal(
            f"{content.dataset}: none of its {len(entries)} cases can be used, the first because {aside[0]['file']} "
            f"{aside[0]['defect']}: see {quarantine}"
        )
    told = fingerprints.summarise(
        content.dataset, content.modality, [notes.measures[row["case"]] for row in usable], content.channels
    )
    write_json(fingerprint or cases.parent / "fingerprint.json", told)
    write_text(cases, _table(intake.CASES, usable))
    print(f"{content.dataset}: {len(entries)} cases found, {len(usable)} usable, {len(aside)} set aside")


def _memory(content: Any, listed: dict[str, Any], path: Path) -> Any:
    """Opens what an earlier run remembers; files go by their path below the dataset's root."""
    import os

    from voxprior.data.remembered import Memory

    root = listed["root"]
    hashes = {Path(os.path.relpath(file["path"], root)).as_posix(): file["sha256"] for file in listed["files"]}
    return Memory(path, hashes, content.model_dump(mode="json"))


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
