"""Folder layouts: which files are one case.

A layout turns the list of a dataset's files into (case, image, label) and looks at no voxel. Paths are relative to the
dataset's root and use forward slashes.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from voxprior.data.volume import stem
from voxprior.errors import Refusal


class Layout(Protocol):
    """What is needed of the layout in a card."""

    kind: Any
    root: str
    images: str | None
    labels: str | None


class Entry(NamedTuple):
    """One case: its image and label below the root; no label = unlabelled. `defect` says why it cannot be used.

    Where each class has a file of its own, `label` is None and `parts` lists (class, file).
    """

    case: str
    image: str
    label: str | None
    defect: str = ""
    parts: tuple[tuple[str, str], ...] = ()


def list_cases(layout: Layout, root: Path, files: list[str], classes: Sequence[str] = ()) -> list[Entry]:
    """Lists the cases of a dataset in a stable order, labelled or not.

    Args:
        layout: kind, root and templates; its `root` is a folder below `root`.
        root: the dataset's folder.
        files: the files that belong to the dataset, relative to `root`; what else lies there is not looked at.
        classes: the class names that `{class}` in a label template stands for.

    Raises:
        Refusal: no case at all; `dataset.json` is missing or unreadable; a template is missing, or has `{class}`
            without `{case}` or where no classes are given.
    """
    prefix = "" if layout.root in ("", ".") else layout.root.strip("/") + "/"
    inside = sorted(file[len(prefix) :] for file in files if file.startswith(prefix))
    found = LAYOUTS[layout.kind](layout, root / prefix, inside, classes)
    if not found:
        raise Refusal(f"{root / prefix} holds no case of layout '{layout.kind}': check the layout's root and templates")
    claims: dict[str, int] = {}
    for entry in found:
        claims[entry.case] = claims.get(entry.case, 0) + 1
    return [
        Entry(
            entry.case,
            prefix + entry.image,
            None if entry.label is None else prefix + entry.label,
            entry.defect or (f"{claims[entry.case]} files claim this case name" if claims[entry.case] > 1 else ""),
            tuple((name, prefix + file) for name, file in entry.parts),
        )
        for entry in found
    ]


# ------------------------------------------------------------------------------------------------- decathlon
def _decathlon(layout: Layout, root: Path, files: list[str], classes: Sequence[str]) -> list[Entry]:
    """Reads `dataset.json` as the Medical Segmentation Decathlon writes it.

    `training` and `validation` list {image, label}; `test` lists images, which become unlabelled cases where they are
    present (a mirror may leave them out).
    """
    path = root / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Refusal(f"{path} is missing: layout 'decathlon' reads it, restore it or use layout 'folder'") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is not valid JSON ({error}): restore it") from None
    if not isinstance(content, dict) or not isinstance(content.get("training", []), list):
        raise Refusal(f"{path} does not list cases under 'training': restore it or use layout 'folder'")
    present = set(files)
    found = []
    for section in ("training", "validation", "test"):
        for item in content.get(section) or []:
            image, label = (item, None) if isinstance(item, str) else (item.get("image", ""), item.get("label"))
            image, label = _clean(image), None if label is None else _clean(label)
            if label is None and image not in present:
                continue
            missing = [file for file in (image, label) if file is not None and file not in present]
            defect = f"{missing[0]} is listed in dataset.json and missing" if missing else ""
            found.append(Entry(stem(image), image, label, defect))
    return found


def _clean(path: str) -> str:
    return path[2:] if path.startswith("./") else path


# ------------------------------------------------------------------------------------------------- folder
def _pattern(template: str, classes: Sequence[str] = ()) -> re.Pattern[str]:
    """Turns a glob with `{case}` into a regular expression; `*` stays inside a folder, `**` does not.

    `{class}` stands for one of `classes`, and for itself where there are none.
    """
    parts = {
        "{case}": "(?P<case>[^/]+?)",
        "**/": "(?:.*/)?",
        "**": ".*",
        "*": "[^/]*",
        "?": "[^/]",
    }
    if classes:
        parts["{class}"] = f"(?P<class>{'|'.join(map(re.escape, classes))})"
    tokens = re.split(r"(\{case\}|\{class\}|\*\*/|\*\*|\*|\?)", template)
    text = ""
    for token in tokens:
        text += parts.get(token, re.escape(token))
        if token in ("{case}", "{class}") and token in parts:
            parts[token] = f"(?P={token[1:-1]})"  # from the second time on, the same name again
    return re.compile(text)


def _folder(layout: Layout, root: Path, files: list[str], classes: Sequence[str]) -> list[Entry]:
    """Matches globs with `{case}`; an image template without it takes each file's stem as the case."""
    if not layout.images:
        raise Refusal(f"layout 'folder' of {root} lacks 'images': give a template such as images/{{case}}.nii.gz")
    images = _match(layout.images, files)
    if layout.labels and "{class}" in layout.labels:
        return _class_files(layout.labels, images, root, files, classes)
    labels = _match(layout.labels, files) if layout.labels else []
    shared = bool(layout.labels) and "{case}" not in str(layout.labels)
    by_case: dict[str, list[str]] = {}
    for case, file in labels:
        by_case.setdefault("" if shared else case, []).append(file)
    found = []
    for case, image in images:
        own = by_case.pop(case, []) if not shared else by_case.get("", [])
        defect = f"{len(own)} label files match: {', '.join(own)}" if len(own) > 1 else ""
        found.append(Entry(case, image, own[0] if own else None, defect))
    if shared and not labels:
        found = [entry._replace(defect=f"no file matches the labels template {layout.labels}") for entry in found]
    if not shared:
        found += [Entry(case, own[0], own[0], "a label without an image") for case, own in by_case.items()]
    return found


def _class_files(
    template: str, images: list[tuple[str, str]], root: Path, files: list[str], classes: Sequence[str]
) -> list[Entry]:
    """Pairs images with the label files of their classes."""
    if "{case}" not in template or not classes:
        raise Refusal(
            f"layout 'folder' of {root} has {{class}} in its labels template {template}: that needs {{case}} there "
            "too, and does not go with 'simulate', which needs one label map"
        )
    pattern = _pattern(template, classes)
    by_case: dict[str, dict[str, list[str]]] = {}
    for file in files:
        if hit := pattern.fullmatch(file):
            by_case.setdefault(hit["case"], {}).setdefault(hit["class"], []).append(file)
    found = []
    for case, image in images:
        own = by_case.pop(case, {})
        twice = [
            f"{len(some)} label files match class {name}: {', '.join(some)}" for name, some in own.items() if some[1:]
        ]
        parts = tuple((name, own[name][0]) for name in classes if name in own)
        found.append(Entry(case, image, None, "; ".join(twice), parts))
    for case, own in by_case.items():
        first = next(iter(own.values()))[0]
        found.append(Entry(case, first, first, "a label without an image"))
    return found


def _match(template: str, files: list[str]) -> list[tuple[str, str]]:
    pattern = _pattern(template)
    hits = [(pattern.fullmatch(file), file) for file in files]
    return [(hit.groupdict().get("case") or stem(file), file) for hit, file in hits if hit]


LAYOUTS = {"decathlon": _decathlon, "folder": _folder}
