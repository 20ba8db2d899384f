"""Folder layouts: which files are one case.

A layout turns the list of a dataset's files into entries (case, image, label); only 'dicom' opens the scans for that,
because what belongs together stands in their headers. Paths are relative to the dataset's root and use forward slashes.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from voxprior.data import conventions, dicom, tables
from voxprior.data.entries import Entry, Layout, join_channels, match, pair, pair_classes, pattern
from voxprior.data.volume import stem
from voxprior.errors import Refusal

IGNORE = "ignore"  # how published layouts name what is not known, among their classes


def list_cases(
    layout: Layout, root: Path, files: list[str], classes: Sequence[str] = (), channels: Sequence[str] = ()
) -> list[Entry]:
    """Lists the cases of a dataset in a stable order, labelled or not.

    Args:
        layout: kind, root and templates; its `root` is a folder below `root`.
        root: the dataset's folder.
        files: the files that belong to the dataset, relative to `root`; what else lies there is not looked at.
        classes: the class names that `{class}` in a label template stands for.
        channels: names of the channels, in order; none or one: a case is one file with one channel.

    Raises:
        Refusal: no case at all; a file that describes the dataset is missing or unreadable; a template is missing, or
            has `{class}` without `{case}` or where no classes are given, or lacks `{channel}`.
    """
    prefix = "" if layout.root in ("", ".") else layout.root.strip("/") + "/"
    inside = sorted(file[len(prefix) :] for file in files if file.startswith(prefix))
    found = LAYOUTS[layout.kind](layout, root / prefix, inside, classes, channels)
    if not found:
        raise Refusal(f"{root / prefix} holds no case of layout '{layout.kind}': check the layout's root and templates")
    claims: dict[str, int] = {}
    for entry in found:
        claims[entry.case] = claims.get(entry.case, 0) + 1
    return [
        entry.below(prefix)._replace(defect=entry.defect or _unusable(entry) or _claimed(claims[entry.case]))
        for entry in found
    ]


def _claimed(times: int) -> str:
    return f"{times} files claim this case name" if times > 1 else ""


def _unusable(entry: Entry) -> str:
    """Says why a name or a path cannot be carried through the tables and file names that follow; empty: it can."""
    if not entry.case.strip() or "/" in entry.case or "\\" in entry.case or entry.case.startswith("."):
        return f"'{entry.case}' cannot be a case's name, which becomes a file name"
    if any("|" in file for file in (entry.image, *entry.channels)):
        return "its path holds '|', which separates a case's channels in the case table"
    return ""


# ------------------------------------------------------------------------------------------------- decathlon
def _decathlon(
    layout: Layout, root: Path, files: list[str], classes: Sequence[str], channels: Sequence[str]
) -> list[Entry]:
    """Reads `dataset.json` as the Medical Segmentation Decathlon writes it.

    `training` and `validation` list {image, label}; `test` lists images, which become unlabelled cases where they are
    present (a mirror may leave them out). Several channels are the fourth axis of an image.
    """
    content = conventions.read_dataset_json(root / "dataset.json", layout.kind)
    if not isinstance(content.get("training", []), list):
        raise Refusal(f"{root}/dataset.json does not list cases under 'training': restore it or use layout 'folder'")
    present = set(files)
    found = []
    for section in ("training", "validation", "test"):
        for item in content.get(section) or []:
            image, label = (item, None) if isinstance(item, str) else (item.get("image", ""), item.get("label"))
            image, label = image.removeprefix("./"), None if label is None else label.removeprefix("./")
            if label is None and image not in present:
                continue
            missing = [file for file in (image, label) if file is not None and file not in present]
            defect = f"{missing[0]} is listed in dataset.json and missing" if missing else ""
            found.append(Entry(stem(image), image, label, defect))
    return found


# ------------------------------------------------------------------------------------------------- folder
def _folder(
    layout: Layout, root: Path, files: list[str], classes: Sequence[str], channels: Sequence[str]
) -> list[Entry]:
    """Matches globs with `{case}`; an image template without it takes each file's stem as the case."""
    if not layout.images:
        raise Refusal(f"layout 'folder' of {root} lacks 'images': give a template such as images/{{case}}.nii.gz")
    of_images, of_labels = share_out(layout.images, layout.labels, files, classes, channels)
    images = folder_images(layout.images, root, of_images, channels)
    if layout.labels and "{class}" in layout.labels:
        return pair_classes(images, layout.labels, of_labels, classes, f"layout 'folder' of {root}")
    labels = match(layout.labels, of_labels) if layout.labels else []
    if not layout.labels or "{case}" in layout.labels:
        return pair(images, labels)
    defect = f"no file matches the labels template {layout.labels}" if not labels else ""
    if len(labels) > 1:
        defect = f"{len(labels)} label files match: {', '.join(file for _, file in labels)}"
    return [entry._replace(label=labels[0][1] if labels else None, defect=entry.defect or defect) for entry in images]


def share_out(
    images: str, labels: str | None, files: list[str], classes: Sequence[str], channels: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Splits files into what may be images and what may be labels.

    A file that fits both templates (`{case}.nii.gz` and `{case}_label.nii.gz` in one folder) belongs to the one that
    spells out more letters: a label map must not become an unlabelled scan.
    """
    if not labels:
        return files, []
    image, label = pattern(images, (), channels).fullmatch, pattern(labels, classes).fullmatch
    both = {file for file in files if image(file) and label(file)}
    letters = [len(re.sub(r"\{\w+\}|[*?]", "", template)) for template in (images, labels)]
    rest = [file for file in files if file not in both]
    return (files, rest) if letters[0] > letters[1] else (rest, files)


def folder_images(template: str, root: Path, files: Sequence[str], channels: Sequence[str]) -> list[Entry]:
    """Lists the images that fit a template, one entry per case, the files of its channels in their order.

    Raises:
        Refusal: `{channel}` without `{case}`, or without names of channels.
    """
    if "{channel}" not in template:
        return [Entry(case, image, None) for case, image in match(template, files)]
    if "{case}" not in template or not channels:
        raise Refusal(
            f"layout 'folder' of {root} has {{channel}} in its images template {template}: that needs {{case}} there "
            "too, and the names of the dataset's 'channels'"
        )
    fits = pattern(template, channels=channels).fullmatch
    hits = [(fits(file), file) for file in files]
    return join_channels([(hit["case"], hit["channel"], file) for hit, file in hits if hit], channels)


Listing = Callable[[Layout, Path, list[str], Sequence[str], Sequence[str]], list[Entry]]
LAYOUTS: dict[str, Listing] = {
    "bids": conventions.bids,
    "decathlon": _decathlon,
    "dicom": dicom.dicom,
    "folder": _folder,
    "nnunet": conventions.nnunet,
    "table": tables.table,
    "totalsegmentator": conventions.totalsegmentator,
}
