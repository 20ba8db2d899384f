"""Recognises how a user's folders are laid out, from names alone: which of the layouts, and with which templates.

Paths are relative to the dataset's root and use forward slashes.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from voxprior.data.entries import match
from voxprior.data.layouts import IGNORE, list_cases
from voxprior.data.volume import SUFFIXES, stem
from voxprior.errors import Refusal
from voxprior.maths import regions

LABEL_WORDS = re.compile(
    r"(?:^|[^a-z])(label|labels|labelmap|seg|segs|segm|segmentation|mask|gt|truth|dseg)(?![a-z])", re.I
)
MOST_CHANNELS = 6
SAMPLE = 300  # files that templates are tried on; what they match among all is told afterwards


@dataclass
class Recognised:
    """A layout as `configuration.Layout` has it, and what else the names and a `dataset.json` tell.

    `classes` (name -> values) and `channels` are empty where they are not told; `ignore` lists values that mean "not
    known"; `modality` is what a `dataset.json` calls the first channel. Classes that overlap stand in the order in
    which they are painted.
    """

    kind: str
    images: str | None = None
    labels: str | None = None
    root: str = "."
    channels: tuple[str, ...] = ()
    classes: dict[str, list[int]] = field(default_factory=dict)
    modality: str = ""
    ignore: tuple[int, ...] = ()

    @property
    def regions(self) -> list[str]:
        """Lists the classes that share a value with another one, in their order."""
        every = Counter(value for values in self.classes.values() for value in set(values))
        return [name for name, values in self.classes.items() if any(every[value] > 1 for value in values)]


def recognise(root: Path, images: str, labels: str | None, files: list[str]) -> Recognised | None:
    """Finds the layout that fits a folder; None where no scan is found.

    Args:
        root: the folder that holds everything.
        images: the folder of the scans below `root`; "" is `root` itself.
        labels: the folder of the label maps below `root`; None: not named, it may be anywhere.
        files: the files below both.
    """
    prefix = images + "/" if images else ""
    inside = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
    place = images if images else "."
    if labels is None:
        told = _described(root / images, inside, place) or _totalsegmentator(inside, place) or _bids(inside, place)
        if told is not None:
            return told
    scans = [file for file in files if file.startswith(prefix) and file.lower().endswith(SUFFIXES)]
    if scans:
        return _folder(files, scans, prefix, labels)
    slices = [file for file in files if file.startswith(prefix) and _may_be_dicom(file)]
    if slices:
        maps = [] if labels is None else [file for file in files if file.startswith(labels + "/")]
        return Recognised("dicom", _dicom_folders(slices, prefix), _dicom_labels(maps))
    return None


def _dicom_folders(slices: Sequence[str], prefix: str) -> str | None:
    """Names the folders of series by the first one below the scans' folder; None where that is not enough."""
    folders = {file.removeprefix(prefix).rpartition("/")[0] for file in slices}
    depths = {folder.count("/") for folder in folders}
    if "" in folders or len(depths) > 1 or len({folder.split("/")[0] for folder in folders}) < len(folders):
        return f"{prefix}**" if prefix else None
    return prefix + "{case}" + "/*" * depths.pop()


def _may_be_dicom(file: str) -> bool:
    name = file.rsplit("/", 1)[-1].lower()
    return name.endswith((".dcm", ".ima", ".dicom")) or "." not in name


def _dicom_labels(maps: Sequence[str]) -> str | None:
    images = [file for file in maps if file.lower().endswith(SUFFIXES)]
    return f"{images[0].rpartition('/')[0]}/{{case}}{_ending(images[0])}" if images else None


def _ending(file: str) -> str:
    return Path(file).name[len(stem(file)) :]


# ------------------------------------------------------------------------------------------------- published layouts
def _described(folder: Path, inside: list[str], place: str) -> Recognised | None:
    """Reads what a `dataset.json` tells: nnU-Net's, or the Decathlon's."""
    if "dataset.json" not in inside:
        return None
    try:
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8-sig"))
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    channels = content.get("channel_names", content.get("modality", {}))
    names = tuple(word(str(name)) for name in channels.values()) if isinstance(channels, dict) else ()
    modality = names[0] if names else ""
    if "channel_names" in content or any(re.match(r"imagesTr/[^/]+_0000\.", file) for file in inside):
        kind = "nnunet"
    elif isinstance(content.get("training"), list):
        kind = "decathlon"
    else:
        return None
    several = _distinct(names) if len(names) > 1 else ()
    classes, ignore = _classes(content.get("labels", {}))
    return Recognised(kind, None, None, place, several, classes, modality, ignore)


def _classes(labels: Any) -> tuple[dict[str, list[int]], tuple[int, ...]]:
    """Takes classes from `{"1": "liver"}` or `{"liver": 1}`, and the values that are ignored. 0 is background.

    `{"tumour": [2, 3]}` joins values. Where classes overlap they stand in the order in which nnU-Net paints them, that
    of `labels` (`regions_class_order` holds the values that are painted); or the larger before the smaller ones, where
    that order would cover some.
    """
    classes: dict[str, list[int]] = {}
    ignore: tuple[int, ...] = ()
    for key, value in labels.items() if isinstance(labels, dict) else ():
        name, numbers = (value, [key]) if str(key).isdigit() else (key, value if isinstance(value, list) else [value])
        numbers = [int(number) for number in numbers if str(number).isdigit() and int(number) > 0]
        if str(name).lower() == IGNORE:
            ignore = tuple(numbers)
        elif numbers and str(name).lower() != "background":
            classes[word(str(name))] = numbers
    if not all(regions.painted_values(list(classes.values()))):
        classes = dict(sorted(classes.items(), key=lambda named: -len(named[1])))
    return classes, ignore


def _totalsegmentator(inside: list[str], place: str) -> Recognised | None:
    scans = {m[1] for file in inside if (m := re.fullmatch(r"([^/]+)/(?:ct|mri)\.nii\.gz", file))}
    parts = [m for file in inside if (m := re.fullmatch(r"([^/]+)/segmentations/([^/]+)\.nii\.gz", file))]
    names = sorted({m[2] for m in parts if m[1] in scans and word(m[2]) == m[2]})
    if not names:
        return None
    classes = {name: [value] for value, name in enumerate(sorted(names, key=lambda name: name == IGNORE), 1)}
    ignore = tuple(classes.pop(IGNORE, ()))
    return Recognised("totalsegmentator", root=place, classes=classes, ignore=ignore)


def _bids(inside: list[str], place: str) -> Recognised | None:
    expression = re.compile(r"sub-[^/]+/(?:ses-[^/]+/)?(?:anat|ct|pet|dwi|perf)/[^/]+_([A-Za-z0-9]+)\.nii(?:\.gz)?")
    suffixes = Counter(m[1] for file in inside if (m := expression.fullmatch(file)))
    maps = Counter(m[1] for file in inside if (m := re.fullmatch(r"derivatives/.*_([A-Za-z0-9]+)\.nii(?:\.gz)?", file)))
    if not suffixes:
        return None
    kind = next((name for name, _ in maps.most_common() if LABEL_WORDS.fullmatch(name)), None)
    template = None if kind in (None, "dseg") else f"derivatives/**/*_{kind}.nii.gz"
    return Recognised("bids", suffixes.most_common(1)[0][0], template, place)


# ------------------------------------------------------------------------------------------------- folders of files
def _folder(files: list[str], scans: list[str], prefix: str, labels: str | None) -> Recognised:
    """Finds templates for images and labels by the names that most scans share."""
    if labels is None:
        maps = [file for file in scans if LABEL_WORDS.search(file.removeprefix(prefix))]
        scans = [file for file in scans if file not in set(maps)] if len(maps) < len(scans) else scans
        maps = maps if len(maps) < len(scans) + len(maps) else []
    else:
        below = labels + "/" if labels else ""
        maps = [file for file in files if file.startswith(below) and file.lower().endswith(SUFFIXES)]
        # Label maps may lie below the scans' folder, or the scans below the label maps'.
        scans = [file for file in scans if len(below) <= len(prefix) or not file.startswith(below)]
        maps = [file for file in maps if len(prefix) < len(below) or not file.startswith(prefix)]
    sample = sorted({*scans[:SAMPLE], *maps[:SAMPLE]})
    return _paired(list(_templates(scans[:SAMPLE])), list(_templates(maps[:SAMPLE])), sample, scans[:SAMPLE])


def _paired(images: list[str], labels: list[str], sample: list[str], scans: list[str]) -> Recognised:
    """Chooses the templates by which most label maps find a scan and most files are used.

    Among equals those with the fewest `*` and letters: spelt-out names stay right when other files are added.
    """

    def worth(choice: tuple[tuple[str, tuple[str, ...]], str]) -> tuple[int, int, int, int]:
        (image, channels), label = choice
        found = Recognised("folder", image, label or None, ".", channels)
        try:
            entries = list_cases(found, Path(), sample, (), channels)
        except Refusal:
            return -1, 0, 0, 0
        good = [entry for entry in entries if not entry.defect]
        used = sum(len(entry.channels) or 1 for entry in good) - (len(entries) - len(good))
        spelt = f"{image}{label}"
        return sum(entry.label is not None for entry in good), used, -spelt.count("*"), -len(spelt)

    ways = [(image, ()) for image in images] + [way for image in images for way in _by_channel(image, scans)]
    (image, channels), label = max(product(ways, labels or [""]), key=worth)
    return Recognised("folder", image, label or None, ".", channels)


def _templates(files: Sequence[str]) -> Iterator[str]:
    """Proposes templates for a set of files: the case is a file's name, part of it, or the name of a folder."""
    if not files:
        return
    depth = Counter(file.count("/") for file in files).most_common(1)[0][0]
    rows = [file.split("/") for file in files if file.count("/") == depth]
    ending = Counter(_ending(row[-1]) for row in rows).most_common(1)[0][0]
    names = [stem(row[-1]) for row in rows if _ending(row[-1]) == ending]
    # Folders: a part that all share is spelt out, one that differs is any.
    folders = [column[0] if len(set(column)) == 1 else "*" for column in zip(*[row[:-1] for row in rows], strict=True)]
    heads, tails = {"", _head(names)}, {"", _tail(names)}
    spread = [place for place, part in enumerate(folders) if part == "*"]
    for head, tail in product(sorted(heads), sorted(tails)):
        yield "/".join([*folders, f"{head}{{case}}{tail}{ending}"])
        for place in spread:  # the case is a folder, named again in the file or not
            there = [part if place != other else "{case}" for other, part in enumerate(folders)]
            yield "/".join([*there, f"{head}{{case}}{tail}{ending}"])
    for place in spread:
        there = [part if place != other else "{case}" for other, part in enumerate(folders)]
        yield "/".join([*there, f"*{_tail(names)}{ending}"])
        for name in sorted(set(names))[:MOST_CHANNELS] if len(set(names)) <= MOST_CHANNELS else ():
            yield "/".join([*there, f"{name}{ending}"])


def _head(names: Sequence[str]) -> str:
    """The beginning that all names share, up to its last separator: digits of a number are not cut off."""
    return re.sub(r"[^_\-. ]*$", "", _shared(names))


def _shared(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _tail(names: Sequence[str]) -> str:
    """The end that all names share, from its first separator."""
    shared = _shared([name[::-1] for name in names])[::-1]
    found = re.search(r"[_\-. ].*$", shared)
    return found[0] if found and len(set(names)) > 1 else ""


def _by_channel(template: str, scans: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Proposes a template with `{channel}` where cases have the same few words at the end: `_0000`, `_t1`, `/t1`."""
    if "{case}" not in template:
        return
    head, ending = template.rsplit("{case}", 1)
    for joint in ("_", "-", "/"):
        if joint == "/" and not template.rsplit("/", 1)[0].endswith("{case}"):
            continue
        stub = f"{head}{{case}}{joint}" if joint != "/" else template.rsplit("/", 1)[0] + "/"
        ending = _ending(scans[0]) if joint == "/" else ending
        hits = match(f"{stub}*{ending}", scans)
        words = Counter(_last(file, joint, ending) for _, file in hits)
        cases = {case for case, _ in hits}
        often = tuple(sorted(name for name, times in words.items() if times >= 0.8 * len(hits) / max(1, len(words))))
        if 2 <= len(words) <= MOST_CHANNELS and len(often) == len(words) and "" not in words and len(cases) > 1:
            yield f"{stub}{{channel}}{ending}", often


def _last(file: str, joint: str, ending: str) -> str:
    name = file[: len(file) - len(ending)]
    found = name.rsplit(joint, 1)[-1]
    return found if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", found) else ""


# ------------------------------------------------------------------------------------------------- names
def word(text: str) -> str:
    """Turns any text into a name of a class or channel: letters, digits and `_`."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", text.strip()).strip("_")
    return plain or "unnamed"


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names))
