"""Layouts that others have published: nnU-Net's raw folders, TotalSegmentator, BIDS.

Paths are relative to the dataset's root and use forward slashes.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxprior.data.entries import Entry, Layout, join_channels, pair, pair_classes, pattern
from voxprior.errors import Refusal

# What a derivative's name may have beside the entities of the scan it was made from.
_DERIVED = {"space", "desc", "label", "res", "den", "hemi", "atlas", "seg", "model"}
_SCANS = r"(?P<folder>sub-[^/]+/(?:ses-[^/]+/)?(?:anat|ct|pet|dwi|perf)/)"


def read_dataset_json(path: Path, kind: str) -> dict[str, Any]:
    """Reads the `dataset.json` of a dataset.

    Raises:
        Refusal: missing, not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Refusal(f"{path} is missing: layout '{kind}' reads it, restore it or use layout 'folder'") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is not valid JSON ({error}): restore it") from None
    if not isinstance(content, dict):
        raise Refusal(f"{path} does not list what layout '{kind}' needs: restore it or use layout 'folder'")
    return content


# ------------------------------------------------------------------------------------------------- nnU-Net
def nnunet(
    layout: Layout, root: Path, files: list[str], classes: Sequence[str], channels: Sequence[str]
) -> list[Entry]:
    """Lists `imagesTr/<case>_0000.nii.gz`, ... with `labelsTr/<case>.nii.gz`, and `imagesTs` (`labelsTs` if there).

    `dataset.json` tells how many channels there are and how files end. Where it lists the files itself (`dataset`),
    they are taken from there; those may lie outside the folder, relative to it.

    Raises:
        Refusal: `dataset.json` is missing or unreadable, or has another number of channels than the dataset's file.
    """
    path = root / "dataset.json"
    content = read_dataset_json(path, layout.kind)
    named = content.get("channel_names", content.get("modality"))
    if not isinstance(named, dict) or not named:
        raise Refusal(f"{path} has no 'channel_names': restore it or use layout 'folder'")
    numbers = [f"{number:04d}" for number in range(len(named))]
    if len(numbers) != max(1, len(channels)):
        raise Refusal(
            f"{path} names {len(numbers)} channels ({', '.join(map(str, named.values()))}) where the dataset's file "
            f"has {max(1, len(channels))}: list all of them, in this order, under 'channels'"
        )
    ending = str(content.get("file_ending", ".nii.gz"))
    if isinstance(content.get("dataset"), dict):
        return [_listed(case, item, root, files) for case, item in content["dataset"].items()]
    found = []
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        scans = _hits(rf"{images}/(?P<case>[^/]+)_(?P<channel>\d{{4}}){re.escape(ending)}", files)
        maps = _hits(rf"{labels}/(?P<case>[^/]+){re.escape(ending)}", files)
        entries = join_channels([(hit["case"], hit["channel"], hit.string) for hit in scans], numbers)
        found += pair(entries, [(hit["case"], hit.string) for hit in maps])
    return found


def _listed(case: str, item: dict[str, Any], root: Path, files: list[str]) -> Entry:
    """Takes one case of `dataset` in `dataset.json`: {images: [...], label: ...}."""
    images, label = [str(file) for file in item.get("images") or [""]], item.get("label")
    present = set(files)
    missing = [file for file in (*images, label) if file is not None and file not in present]
    missing = [file for file in missing if not (root / file).is_file()]
    defect = f"{missing[0]} is listed in dataset.json and missing" if missing else ""
    return Entry(case, images[0], label, defect, channels=tuple(images) if len(images) > 1 else ())


def _hits(expression: str, files: Sequence[str]) -> list[re.Match[str]]:
    fits = re.compile(expression).fullmatch
    return [hit for hit in map(fits, files) if hit]


# ------------------------------------------------------------------------------------------------- TotalSegmentator
def totalsegmentator(
    layout: Layout, root: Path, files: list[str], classes: Sequence[str], channels: Sequence[str]
) -> list[Entry]:
    """Lists `<case>/ct.nii.gz` or `<case>/mri.nii.gz` with the binary `<case>/segmentations/<class>.nii.gz`."""
    by_case: dict[str, list[str]] = {}
    for hit in _hits(r"(?P<case>[^/]+)/(?:ct|mri)\.nii\.gz", files):
        by_case.setdefault(hit["case"], []).append(hit.string)
    images = [
        Entry(case, own[0], None, f"{len(own)} images, {' and '.join(own)}, claim this case" if own[1:] else "")
        for case, own in by_case.items()
    ]
    where = f"layout 'totalsegmentator' of {root}"
    return pair_classes(images, "{case}/segmentations/{class}.nii.gz", files, classes, where)


# ------------------------------------------------------------------------------------------------- BIDS
def bids(layout: Layout, root: Path, files: list[str], classes: Sequence[str], channels: Sequence[str]) -> list[Entry]:
    """Lists `sub-*/[ses-*/]<anat|ct|...>/<entities>_<suffix>.nii.gz`; a case's name is its entities.

    The suffix is the layout's `images` (`T1w`, `ct`; `*` takes any), or each of the dataset's `channels` where there
    are several. A label map lies below `derivatives/`, by the glob `labels` (default `derivatives/**/*_dseg.nii.gz`),
    and has the scan's entities and perhaps more that say what it is (`space`, `desc`, ...). The patient is `sub-*`.

    Raises:
        Refusal: the suffix is missing.
    """
    if not layout.images and len(channels) < 2:
        raise Refusal(f"layout 'bids' of {root} lacks 'images': give the scans' suffix, such as T1w or ct")
    wanted = "|".join(map(re.escape, channels)) if len(channels) > 1 else str(layout.images)
    suffix = "[A-Za-z0-9]+" if wanted == "*" else wanted
    scans = _hits(rf"{_SCANS}(?P<case>[^/]+)_(?P<channel>{suffix})\.nii(?:\.gz)?", files)
    if len(channels) > 1:
        images = join_channels([(hit["case"], hit["channel"], hit.string) for hit in scans], channels)
    else:
        images = [Entry(hit["case"], hit.string, None) for hit in scans]
    known = {_entities(entry.case): entry.case for entry in images}
    fits = pattern(layout.labels or "derivatives/**/*_dseg.nii.gz").fullmatch
    labels = []
    for file in filter(fits, files):
        name = file.rsplit("/", 1)[-1].split(".", 1)[0].rpartition("_")[0]
        kept = frozenset(part for part in _entities(name) if part.partition("-")[0] not in _DERIVED)
        labels.append((known.get(_entities(name)) or known.get(kept) or name, file))
    return [
        entry._replace(patient=next((p for p in entry.case.split("_") if p.startswith("sub-")), ""))
        for entry in pair(images, labels)
    ]


def _entities(name: str) -> frozenset[str]:
    return frozenset(name.split("_"))
