"""What a layout finds, and the templates it finds it by.

A template is a glob in which `{case}` stands for the case's name, `{class}` for a class's and `{channel}` for a
channel's. Paths are relative to the dataset's root and use forward slashes.
"""

import re
from collections.abc import Sequence
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

    Where each class has a file of its own, `label` is None and `parts` lists (class, file). Where each channel has one,
    `channels` lists the files in the order of the channels and `image` is the first. Where the image is a DICOM series,
    `slices` lists its files and `image` is their folder. `patient` and `person` are set where the layout knows them.
    """

    case: str
    image: str
    label: str | None
    defect: str = ""
    parts: tuple[tuple[str, str], ...] = ()
    channels: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    patient: str = ""
    person: str = ""

    def below(self, prefix: str) -> "Entry":
        """Puts a folder in front of every path; a path from the root of the disk stays."""

        def put(path: str) -> str:
            return path if path.startswith("/") else prefix + path

        return self._replace(
            image=put(self.image),
            label=None if self.label is None else put(self.label),
            parts=tuple((name, put(file)) for name, file in self.parts),
            channels=tuple(put(file) for file in self.channels),
            slices=tuple(put(file) for file in self.slices),
        )


def pattern(template: str, classes: Sequence[str] = (), channels: Sequence[str] = ()) -> re.Pattern[str]:
    """Turns a glob with names into a regular expression; `*` stays inside a folder, `**` does not.

    `{class}` stands for one of `classes` and `{channel}` for one of `channels`; for themselves where there are none.
    """
    parts = {"{case}": "(?P<case>[^/]+?)", "**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    for name, words in (("class", classes), ("channel", channels)):
        if words:
            parts[f"{{{name}}}"] = f"(?P<{name}>{'|'.join(map(re.escape, words))})"
    text = ""
    for token in re.split(r"(\{case\}|\{class\}|\{channel\}|\*\*/|\*\*|\*|\?)", template):
        text += parts.get(token, re.escape(token))
        if token.startswith("{") and token in parts:
            parts[token] = f"(?P={token[1:-1]})"  # from the second time on, the same name again
    return re.compile(text)


def match(template: str, files: Sequence[str]) -> list[tuple[str, str]]:
    """Lists (case, file) of the files that fit a template; without `{case}` in it a file's stem is the case."""
    fits = pattern(template).fullmatch
    hits = [(fits(file), file) for file in files]
    return [(hit.groupdict().get("case") or stem(file), file) for hit, file in hits if hit]


def pair(images: list[Entry], labels: list[tuple[str, str]]) -> list[Entry]:
    """Gives each image the label of its case; two labels of one case, or a label without an image, are defects."""
    by_case: dict[str, list[str]] = {}
    for case, file in labels:
        by_case.setdefault(case, []).append(file)
    found = []
    for entry in images:
        own = by_case.pop(entry.case, [])
        defect = f"{len(own)} label files match: {', '.join(own)}" if len(own) > 1 else ""
        found.append(entry._replace(label=own[0] if own else None, defect=entry.defect or defect))
    return found + [Entry(case, own[0], own[0], "a label without an image") for case, own in by_case.items()]


def pair_classes(
    images: list[Entry], template: str, files: Sequence[str], classes: Sequence[str], where: str
) -> list[Entry]:
    """Gives each image the label files of its classes.

    Raises:
        Refusal: the template has `{class}` without `{case}`, or there are no classes.
    """
    if "{case}" not in template or not classes:
        raise Refusal(
            f"{where} has {{class}} in its labels template {template}: that needs {{case}} there too, and does not go "
            "with 'simulate', which needs one label map"
        )
    fits = pattern(template, classes).fullmatch
    by_case: dict[str, dict[str, list[str]]] = {}
    for file in files:
        if hit := fits(file):
            by_case.setdefault(hit["case"], {}).setdefault(hit["class"], []).append(file)
    found = []
    for entry in images:
        own = by_case.pop(entry.case, {})
        twice = [
            f"{len(some)} label files match class {name}: {', '.join(some)}" for name, some in own.items() if some[1:]
        ]
        parts = tuple((name, own[name][0]) for name in classes if name in own)
        found.append(entry._replace(parts=parts, defect=entry.defect or "; ".join(twice)))
    for case, own in by_case.items():
        first = next(iter(own.values()))[0]
        found.append(Entry(case, first, first, "a label without an image"))
    return found


def join_channels(found: Sequence[tuple[str, str, str]], channels: Sequence[str]) -> list[Entry]:
    """Makes one entry per case of (case, channel, file); a channel that is missing or twice is a defect."""
    by_case: dict[str, dict[str, list[str]]] = {}
    for case, channel, file in found:
        by_case.setdefault(case, {}).setdefault(channel, []).append(file)
    entries = []
    for case, own in by_case.items():
        lacking = [name for name in channels if name not in own]
        twice = [name for name in channels if len(own.get(name, [])) > 1]
        defect = f"{len(own[twice[0]])} files match channel {twice[0]}: {', '.join(own[twice[0]])}" if twice else ""
        if lacking:
            defect = f"channel {', '.join(lacking)} is missing"
        files = tuple(own[name][0] for name in channels if name in own)
        entries.append(Entry(case, files[0], None, defect, channels=files if len(channels) > 1 else ()))
    return entries
