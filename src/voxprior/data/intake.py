"""Intake: looks at every case of a dataset once, and says which can be used.

A case that cannot be used is set aside with its defect and an advice; the others go on. What is mended is mended in
memory only, and named in the `repairs` column. Labels in a file per class are merged into one label map per case.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxprior.data import snapshots, volume
from voxprior.data.labels import ClassFiles, check_values, count_values, fit
from voxprior.data.layouts import Entry
from voxprior.data.twins import content_sha256, twin_sha256
from voxprior.errors import Refusal

CASES = (
    "case", "dataset", "patient", "person", "image", "label", "simulated",
    "shape_zyx", "spacing_zyx_mm", "content_sha256", "twin_sha256", "repairs",
)  # fmt: skip
QUARANTINE = ("case", "dataset", "file", "defect", "advice", "picture")


@dataclass(frozen=True)
class Identity:
    """How cases are named: the dataset, and who stands behind a case."""

    dataset: str
    patient: str | None = None  # regular expression; its first group in the case name is the patient
    person: str | None = None  # one person behind every case
    simulated: bool = False

    def patient_of(self, case: str) -> str:
        """Names the patient of a case; the case itself where no expression is given.

        Raises:
            Refusal: the expression has no group or does not match the case.
        """
        if self.patient is None:
            return case
        found = re.search(self.patient, case)
        if found is None or not found.groups():
            raise Refusal(
                f"{case}: the patient expression '{self.patient}' finds no group in this case name: correct it in the "
                "dataset's file"
            )
        return found.group(1)


def examine(
    entries: Iterable[Entry],
    root: Path,
    identity: Identity,
    merger: ClassFiles | None = None,
    classes: Mapping[str, Sequence[int]] | None = None,
    pictures: Path | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Looks at each case: yields ("case", row) or ("quarantine", row) with the columns above.

    `merger` is needed for entries with a file per class; their label is what it merges. `classes` (name -> values)
    tells which label values are known; without it all are. `pictures` is a folder for pictures of what is set aside.

    The second case with the voxels of an earlier one, turned or not, is set aside: twins in training and test leak.
    """
    seen: dict[str, str] = {}
    for entry in entries:
        try:
            row = _row(entry, root, identity, merger, classes or {})
        except Refusal as refusal:
            yield "quarantine", _defect(entry, root, identity.dataset, str(refusal), pictures)
            continue
        twin = seen.setdefault(row["twin_sha256"], entry.case)
        if twin != entry.case:
            sentence = f"{row['image']} holds the same voxels as case {twin}: keep one of the two"
            yield "quarantine", _defect(entry, root, identity.dataset, sentence, pictures)
        else:
            yield "case", row


def _row(
    entry: Entry, root: Path, identity: Identity, merger: ClassFiles | None, classes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    if entry.defect:
        raise Refusal(f"{root / entry.image}: {entry.defect}: correct the dataset or its layout")
    patient = identity.patient_of(entry.case)
    image, repairs = volume.open_scan(root / entry.image)
    grid = volume.Grid.of(image)
    label, repaired = _label(entry, root, grid, merger, classes)
    return {
        "case": entry.case,
        "dataset": identity.dataset,
        "patient": patient,
        "person": identity.person or f"{identity.dataset}/{patient}",
        "image": _from_here(root / entry.image),
        "label": "" if label is None else _from_here(label),
        "simulated": str(identity.simulated).lower(),
        "shape_zyx": " ".join(str(n) for n in grid.shape_zyx),
        "spacing_zyx_mm": " ".join(f"{s:.6g}" for s in grid.spacing_zyx_mm),
        "content_sha256": content_sha256(image),
        "twin_sha256": twin_sha256(image),
        # Scan and label of one export share what is wrong with them.
        "repairs": "; ".join(dict.fromkeys(repairs + repaired)),
    }


def _label(
    entry: Entry,
    root: Path,
    image: volume.Grid,
    merger: ClassFiles | None,
    classes: Mapping[str, Sequence[int]],
) -> tuple[Path | None, list[str]]:
    """Checks a case's labels: (its label map, merged where there is a file per class, or None; repairs)."""
    if entry.parts:
        if merger is None:
            raise ValueError(f"case {entry.case} has a file per class: give examine what merges them")
        files = {name: root / file for name, file in entry.parts}
        lacking = [name for name in merger.values if name not in files or not files[name].is_file()]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise Refusal(
                f"{root / entry.image} has no label file of class {', '.join(lacking[:3])}{more}: restore it (all 0 "
                "where the scan does not show the class), or take the class out of the dataset's 'classes'"
            )
        return merger.merge(entry.case, files, image)
    if entry.label is None:
        return None, []
    path = root / entry.label
    label, repairs = volume.read_label(path)
    repairs += fit(path, volume.Grid.of(label), image)
    return path, repairs + check_values(path, count_values(label), classes)


def _from_here(path: Path) -> str:
    """Writes a path relative to the working folder where it lies below it, else as it is."""
    relative = os.path.relpath(path)
    return Path(path).as_posix() if relative.startswith("..") else Path(relative).as_posix()


def _defect(entry: Entry, root: Path, dataset: str, sentence: str, pictures: Path | None) -> dict[str, Any]:
    """Splits a refusal's sentence, 'file ... defect: advice', into columns, and draws what can be read."""
    defect, _, advice = sentence.rpartition(": ")
    labels = [entry.label or entry.image, *(file for _, file in entry.parts)]
    named = next((file for file in labels if str(root / file) in sentence), entry.image)
    for file in (root / entry.image, root / named):
        defect = defect.removeprefix(str(file)).lstrip(": ")
    row = {"case": entry.case, "dataset": dataset, "file": _from_here(root / named), "defect": defect, "advice": advice}
    drawn = (
        ""
        if pictures is None
        else _draw([root / file for file in dict.fromkeys((entry.image, named))], entry, pictures)
    )
    return row | {"picture": drawn}


def _draw(files: list[Path], entry: Entry, pictures: Path) -> str:
    """Draws a case that was set aside; several may claim one name."""
    number, png = 1, pictures / f"{entry.case}.png"
    while png.exists():
        number += 1
        png = pictures / f"{entry.case}-{number}.png"
    return _from_here(png) if snapshots.write_planes(files, png) else ""
