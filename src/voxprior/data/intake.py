"""Intake: looks at every case of a dataset once, and says which can be used.

A case that cannot be used is set aside with its defect and an advice; the others go on. What is mended is mended in
memory only, and named in the `repairs` column. Labels in a file per class are merged into one label map per case.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from voxprior.data import channels, series, volume
from voxprior.data.files import sha256_of_json
from voxprior.data.labels import ClassFiles, fit
from voxprior.data.layouts import Entry
from voxprior.errors import Refusal

CASES = (
    "case", "dataset", "patient", "person", "image", "label", "simulated",
    "shape_zyx", "spacing_zyx_mm", "content_sha256", "repairs",
)  # fmt: skip
QUARANTINE = ("case", "dataset", "file", "defect", "advice")


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


def content_sha256(image: sitk.Image) -> str:
    """Names a scan by its voxel values and shape, whatever the file, its compression, header or number type.

    Values are hashed as int32 where all are whole numbers in its range, else as float32.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    digest = hashlib.sha256(repr(tuple(int(n) for n in voxels.shape)).encode())
    limit = np.iinfo(np.int32)
    # Slice by slice: no second copy of the scan.
    whole = voxels.dtype.kind in "iu" or all(np.array_equal(plane, np.rint(plane)) for plane in voxels)
    kind = np.int32 if whole and voxels.min() >= limit.min and voxels.max() <= limit.max else np.float32
    for plane in voxels:
        # + 0 turns minus zero into zero: equal voxels, equal hash.
        digest.update(np.ascontiguousarray(plane.astype(kind) + kind(0)).tobytes())
    return digest.hexdigest()


def examine(
    entries: Iterable[Entry],
    root: Path,
    identity: Identity,
    merger: ClassFiles | None = None,
    folder: Path = Path(),
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Looks at each case: yields ("case", row) or ("quarantine", row) with the columns above.

    `merger` is needed for entries with a file per class; their label is what it merges. `folder` is where the case
    table will lie; the lists of DICOM series are written below it, into `series/`.

    The second case with the voxels of an earlier one is set aside: twins in training and test would leak.
    """
    seen: dict[str, str] = {}
    for entry in entries:
        try:
            row = _row(entry, root, identity, merger, folder)
        except Refusal as refusal:
            yield "quarantine", _defect(entry, root, identity.dataset, str(refusal))
            continue
        twin = seen.setdefault(row["content_sha256"], entry.case)
        if twin != entry.case:
            sentence = f"{row['image']} holds the same voxels as case {twin}: keep one of the two"
            yield "quarantine", _defect(entry, root, identity.dataset, sentence)
        else:
            yield "case", row


def _row(entry: Entry, root: Path, identity: Identity, merger: ClassFiles | None, folder: Path) -> dict[str, Any]:
    if entry.defect:
        raise Refusal(f"{root / entry.image}: {entry.defect}: correct the dataset or its layout")
    patient = entry.patient if entry.patient and identity.patient is None else identity.patient_of(entry.case)
    files = _files(entry, root, folder)
    scan = channels.join([str(file) for file in files])
    image, content = _read(scan, identity.channels)
    grid = volume.Grid.of(image)
    label, repairs = _label(entry, root, grid, merger)
    return {
        "case": entry.case,
        "dataset": identity.dataset,
        "patient": patient,
        "person": identity.person or entry.person or f"{identity.dataset}/{patient}",
        "image": channels.join([_from_here(file) for file in files]),
        "label": "" if label is None else _from_here(label),
        "simulated": str(identity.simulated).lower(),
        "shape_zyx": " ".join(str(n) for n in grid.shape_zyx),
        "spacing_zyx_mm": " ".join(f"{s:.6g}" for s in grid.spacing_zyx_mm),
        "content_sha256": content,
        "repairs": "; ".join(repairs),
    }


def _files(entry: Entry, root: Path, folder: Path) -> list[Path]:
    """Names the files that stand for a case's image: itself, its channels', or the list of a DICOM series.

    A series is checked here, before its list is written.
    """
    if not entry.slices:
        return [root / file for file in entry.channels or (entry.image,)]
    path = folder / "series" / f"{entry.case}{series.SUFFIX}"
    series.write([root / file for file in entry.slices], path, f"{root / entry.image}: series {entry.case}")
    return [path]


def _read(scan: str, count: int) -> tuple[sitk.Image, str]:
    """Reads all channels: (the first one; a hash of the content of all)."""
    rest = channels.read_channels(scan, count)
    first = next(rest)
    content = content_sha256(first)
    return first, content if count == 1 else sha256_of_json([content, *map(content_sha256, rest)])


def _label(entry: Entry, root: Path, image: volume.Grid, merger: ClassFiles | None) -> tuple[Path | None, list[str]]:
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
    return path, repairs + fit(path, volume.Grid.of(label), image)


def _from_here(path: Path) -> str:
    """Writes a path relative to the working folder where it lies below it, else as it is."""
    relative = os.path.relpath(path)
    return Path(path).as_posix() if relative.startswith("..") else Path(relative).as_posix()


def _defect(entry: Entry, root: Path, dataset: str, sentence: str) -> dict[str, Any]:
    """Splits a refusal's sentence, 'file ... defect: advice', into columns."""
    defect, _, advice = sentence.rpartition(": ")
    labels = [entry.label or entry.image, *(file for _, file in entry.parts)]
    named = next((file for file in labels if str(root / file) in sentence), entry.image)
    for file in (root / entry.image, root / named):
        defect = defect.removeprefix(str(file)).lstrip(": ")
    file_ = _from_here(root / named)
    return {"case": entry.case, "dataset": dataset, "file": file_, "defect": defect, "advice": advice}
