"""intake: lists and checks the cases of a dataset."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any


def run(card: Path, manifest: Path, cases: Path, quarantine: Path) -> None:
    """Looks at every case and writes the table of usable cases and the table of those set aside.

    Beside the table of usable cases lie `quarantine/<case>.png`, a picture of each case set aside whose voxels can be
    read, and, where labels come in a file per class, `labels/<case>.nii.gz`.

    Raises:
        Refusal: no case can be used; the classes do not suit a layout with a file per class.
    """
    from voxprior.cards import read_card
    from voxprior.data import intake, labels, layouts, sources
    from voxprior.engine.journal import progress
    from voxprior.errors import Refusal
    from voxprior.whole import write_text

    content = read_card("intake", card)
    root, files = sources.files_of(sources.read_manifest(manifest), manifest)
    entries = layouts.list_cases(content.layout, root, files, list(content.classes))
    merger = labels.ClassFiles.of(content.classes, cases.parent / "labels") if any(e.parts for e in entries) else None
    identity = intake.Identity(content.dataset, content.patient, content.person, content.simulated)
    usable: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    pictures = cases.parent / "quarantine"
    shutil.rmtree(pictures, ignore_errors=True)
    looked = intake.examine(entries, root, identity, merger, content.classes, pictures)
    for kind, row in progress(looked, len(entries), f"intake {content.dataset}"):
        (usable if kind == "case" else aside).append(row)
    write_text(quarantine, _table(intake.QUARANTINE, aside))
    if not usable:
        raise Refusal(
            f"{content.dataset}: none of its {len(entries)} cases can be used, the first because {aside[0]['file']} "
            f"{aside[0]['defect']}: see {quarantine}"
        )
    write_text(cases, _table(intake.CASES, usable))
    print(f"{content.dataset}: {len(entries)} cases found, {len(usable)} usable, {len(aside)} set aside")


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
