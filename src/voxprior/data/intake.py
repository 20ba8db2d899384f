"""Intake: looks at every case of a dataset once, and says which can be used.

A case that cannot be used is set aside with its defect and an advice; the others go on. What is mended is mended in
memory only, and named in the `repairs` column. Labels in a file per class are merged into one label map per case.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from voxprior.data import channels, fingerprint, series, snapshots, volume
from voxprior.data.entries import Entry
from voxprior.data.files import sha256_of_json
from voxprior.data.labels import ClassFiles, Counted, check_values, fit
from voxprior.data.processes import spread
from voxprior.data.remembered import Memory
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
    channels: int = 1  # of every image

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


@dataclass
class Notes:
    """What is known before, and kept beside the rows."""

    folder: Path | None = None  # where the case table will lie; None: no pictures are drawn
    classes: Mapping[str, Sequence[int]] = field(default_factory=dict)  # name -> label values; empty: any value goes
    ignore: Sequence[int] = ()  # label values that mean "not known"
    samples: int = 0  # voxels that a case gives to the fingerprint; 0: nothing is measured
    thin: int = 1  # of which every so many-th is kept (`thinning`)
    memory: Memory | None = None
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)  # by case, of those that can be used


def thinning(cases: int) -> int:
    """Says which share of a case's voxels the fingerprint keeps, one in so many: about ten million in all."""
    return max(1, -(-cases * fingerprint.SAMPLES // 10_000_000))


def examine(
    entries: Iterable[Entry],
    root: Path,
    identity: Identity,
    merger: ClassFiles | None = None,
    notes: Notes | None = None,
    workers: int = 1,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Looks at each case: yields ("case", row) or ("quarantine", row) with the columns above, in the entries' order.

    `merger` is needed for entries with a file per class; their label is what it merges. Pictures of what is set aside
    are drawn below the folder of `notes`, into `quarantine/`, lists of DICOM series into `series/`. `notes` is filled.

    The second case with the voxels of an earlier one, turned or not, is set aside: twins in training and test leak.
    """
    notes = notes or Notes()
    pictures = None if notes.folder is None else notes.folder / "quarantine"
    seen: dict[str, str] = {}
    keys: dict[str, str] = {}  # of cases that memory does not know yet

    def known(entry: Entry) -> Any:
        key = _key(entry, root, notes)
        kept = notes.memory.get(key) if notes.memory else None
        if key and kept is None:
            keys[entry.case] = key
        return kept

    look = partial(_look, root=root, identity=identity, merger=merger, notes=replace(notes, memory=None, measures={}))
    for entry, told in spread(look, entries, workers, known):
        if isinstance(told, str):
            yield "quarantine", _defect(entry, root, identity.dataset, told, pictures)
            continue
        if notes.memory:
            notes.memory.keep(keys.pop(entry.case, None), told)
        row, measured = told
        twin = seen.setdefault(row["twin_sha256"], entry.case)
        if twin != entry.case:
            sentence = f"{row['image']} holds the same voxels as case {twin}: keep one of the two"
            yield "quarantine", _defect(entry, root, identity.dataset, sentence, pictures)
        else:
            # Numbers of Python's own would take eight times the memory in ten thousand cases.
            every = slice(None, None, notes.thin)
            taken = [
                {kind: np.array(some[every], np.float32) for kind, some in one.items()} for one in measured["channels"]
            ]
            notes.measures[entry.case] = measured | {"channels": taken}
            yield "case", row


def _key(entry: Entry, root: Path, notes: Notes) -> str | None:
    """Names what a case is made from; None where it has to be looked at again."""
    # Files per class are remembered by what merges them; a series is looked at again where its list is gone.
    forget = entry.parts or (entry.slices and not _list_of(entry, notes).is_file())
    files = [] if forget else [*(entry.slices or entry.channels or (entry.image,)), *filter(None, [entry.label])]
    return notes.memory.key(root, files, [list(entry), _from_here(root)]) if notes.memory and files else None


def _look(
    entry: Entry, root: Path, identity: Identity, merger: ClassFiles | None, notes: Notes
) -> tuple[dict[str, Any], dict[str, Any]] | str:
    """Looks at one case, in a process of its own perhaps: its row and measures, or why it cannot be used."""
    try:
        return _row(entry, root, identity, merger, notes)
    except Refusal as refusal:
        return str(refusal)


def _row(
    entry: Entry, root: Path, identity: Identity, merger: ClassFiles | None, notes: Notes
) -> tuple[dict[str, Any], dict[str, Any]]:
    if entry.defect:
        raise Refusal(f"{root / entry.image}: {entry.defect}: correct the dataset or its layout")
    patient = entry.patient if entry.patient and identity.patient is None else identity.patient_of(entry.case)
    files = _files(entry, root, notes)
    opened = channels.open_channels(channels.join([str(file) for file in files]), identity.channels)
    first = next(opened)
    grid = volume.Grid.of(first[0])
    label, repaired, counted = _label(entry, root, grid, merger, notes)
    measured = fingerprint.measure(grid, counted, notes.classes)
    content: list[str] = []
    twins: list[str] = []
    repairs: list[str] = []
    for channel, made in chain([first], opened):
        content.append(content_sha256(channel))
        twins.append(twin_sha256(channel))
        repairs += made
        if notes.samples:
            measured["channels"].append(fingerprint.sample(channel, counted, notes.classes, notes.samples))
    row = {
        "case": entry.case,
        "dataset": identity.dataset,
        "patient": patient,
        "person": identity.person or entry.person or f"{identity.dataset}/{patient}",
        "image": channels.join([_from_here(file) for file in files]),
        "label": "" if label is None else _from_here(label),
        "simulated": str(identity.simulated).lower(),
        "shape_zyx": " ".join(str(n) for n in grid.shape_zyx),
        "spacing_zyx_mm": " ".join(f"{s:.6g}" for s in grid.spacing_zyx_mm),
        "content_sha256": content[0] if identity.channels == 1 else sha256_of_json(content),
        "twin_sha256": twins[0] if identity.channels == 1 else sha256_of_json(twins),
        # Scan and label of one export share what is wrong with them.
        "repairs": "; ".join(dict.fromkeys(repairs + repaired)),
    }
    return row, measured


def _list_of(entry: Entry, notes: Notes) -> Path:
    return (notes.folder or Path()) / "series" / f"{entry.case}{series.SUFFIX}"


def _files(entry: Entry, root: Path, notes: Notes) -> list[Path]:
    """Names the files that stand for a case's image: itself, its channels', or the list of a DICOM series.

    A series is checked here, before its list is written.
    """
    if not entry.slices:
        return [root / file for file in entry.channels or (entry.image,)]
    path = _list_of(entry, notes)
    series.write([root / file for file in entry.slices], path, f"{root / entry.image}: series {entry.case}")
    return [path]


def _label(
    entry: Entry,
    root: Path,
    image: volume.Grid,
    merger: ClassFiles | None,
    notes: Notes,
) -> tuple[Path | None, list[str], Counted | None]:
    """Checks a case's labels: (its label map, merged where there is a file per class, or None; repairs; its voxels)."""
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
        path, repairs = merger.merge(entry.case, files, image)
        return path, repairs, Counted.of(volume.read_label(path, verify=False)[0])
    if entry.label is None:
        return None, [], None
    path = root / entry.label
    label, repairs = volume.read_label(path)
    repairs += fit(path, volume.Grid.of(label), image)
    counted = Counted.of(label)
    return path, repairs + check_values(path, counted.counts, notes.classes, notes.ignore), counted


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
