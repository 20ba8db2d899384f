"""The layout 'dicom': which files of a folder are one series, and what its case is called.

It opens the headers of all files, because what belongs together stands there: the SeriesInstanceUID.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk

from voxprior.data import series
from voxprior.data.entries import Entry, Layout, match, pair, pattern
from voxprior.errors import Refusal

_NOT_DICOM = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".nhdr", ".csv", ".json", ".txt", ".md", ".xml", ".pdf")


def dicom(layout: Layout, root: Path, files: list[str], classes: Sequence[str], channels: Sequence[str]) -> list[Entry]:
    """Lists the image series of each folder that fits the template `images`, or of every folder where there is none.

    A case is named by `{case}` in the template, or by the folder's path with `_` between its parts. Where a folder
    holds several series, `_s<SeriesNumber>` follows (or the end of the UID where that is not enough). Label maps are
    files beside them, by the template `labels`. The patient is a hash of PatientID where a dataset has several of them,
    else the folder's name.

    Raises:
        Refusal: several channels, which DICOM series of their own cannot be paired to.
    """
    if len(channels) > 1:
        raise Refusal(
            f"layout 'dicom' of {root} takes one channel: convert the series to NIfTI and use layout 'folder' with "
            "{channel}, or a table"
        )
    by_folder: dict[str, list[str]] = {}
    for file in files:
        if not file.lower().endswith(_NOT_DICOM):
            by_folder.setdefault(file.rpartition("/")[0], []).append(file)
    fits = pattern(layout.images or "**").fullmatch
    found: list[tuple[Entry, str]] = []
    for folder, own in by_folder.items():
        if hit := fits(folder):
            name = hit.groupdict().get("case") or folder.replace("/", "_") or root.name
            found += list(_series_of(root, folder, set(own), name))
    several = len({patient for _, patient in found if patient}) > 1
    entries = [entry._replace(patient=patient) if several and patient else entry for entry, patient in found]
    return pair(entries, match(layout.labels, files) if layout.labels else [])


def _series_of(root: Path, folder: str, listed: set[str], name: str) -> list[tuple[Entry, str]]:
    """Lists a folder's image series and a hash of the PatientID of each."""
    place = os.fspath(root / folder)
    found: list[tuple[list[str], str, str, str]] = []
    seen: list[str] = []
    with series.own_locale():
        uids = sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(place))
        named = [(uid, sitk.ImageSeriesReader.GetGDCMSeriesFileNames(place, uid)) for uid in uids]
    for uid, paths in named:
        own = [file for path in paths if (file := f"{folder}/{os.path.basename(path)}".lstrip("/")) in listed]
        seen += own
        first = next((reader for file in own if (reader := series.header(root / file)) is not None), None)
        if first is not None:  # else a structure set, a report: no image at all
            number, patient = (series.tag(first, key) for key in ("0020|0011", "0010|0020"))
            found.append((own, uid, number, hashlib.sha256(patient.encode()).hexdigest()[:12] if patient else ""))
    stray = sorted(file for file in listed - set(seen) if _claims_dicom(root / file))
    defect = f"{stray[0].rpartition('/')[2]} beside its slices is damaged, it names no series" if stray else ""
    numbers = [number for _, _, number, _ in found]
    entries = [] if found or not stray else [(Entry(name, folder, None, defect), "")]
    for own, uid, number, patient in found:
        case = name
        if len(found) > 1:
            case = f"{name}_s{number}" if number and numbers.count(number) == 1 else f"{name}_{uid.split('.')[-1]}"
        entries.append((Entry(case, folder, None, defect, slices=tuple(own), patient=name), patient))
    return entries


def _claims_dicom(path: Path) -> bool:
    """Tells whether a file that is in no series ought to be: by its suffix or its magic number."""
    if path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"
