"""The layout 'table': a CSV of paths, one row per case."""

import csv
from collections.abc import Sequence
from pathlib import Path

from voxprior.data.entries import Entry, Layout
from voxprior.errors import Refusal

COLUMNS = ("case", "image", "label", "patient", "person")


def table(layout: Layout, root: Path, files: list[str], classes: Sequence[str], channels: Sequence[str]) -> list[Entry]:
    """Reads the CSV that the layout's `images` names: columns case, image, label[, patient, person].

    Where there are several channels, columns of their names hold a file each, or `image` one file with a fourth axis.
    Paths are relative to the table's folder, or absolute. Commas, semicolons and tabs are understood. Other columns are
    not looked at.

    Raises:
        Refusal: no table, no text, a column is missing, or it has no row.
    """
    path = root / (layout.images or "cases.csv")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise Refusal(f"{path} is missing: layout 'table' reads it, name the table as 'images'") from None
    except UnicodeDecodeError:
        raise Refusal(f"{path} is not UTF-8 text: save the table as CSV in UTF-8") from None
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    columns = [name.strip() for name in next(csv.reader([head], delimiter=delimiter), [])]
    several = len(channels) > 1 and "image" not in columns
    lacking = [name for name in ("case", *(channels if several else ("image",))) if name not in columns]
    if lacking:
        raise Refusal(
            f"{path} has no column {', '.join(lacking)}: its columns are {', '.join(columns)}, and case and image (or "
            "one per channel) are needed; label, patient and person may be there"
        )
    folder = Path(layout.images or "").parent.as_posix()
    present, found = set(files), []
    for number, row in enumerate(rows, start=2):
        given = {(name or "").strip(): (value or "").strip() for name, value in row.items() if isinstance(value, str)}
        files_of = [_placed(folder, given[name]) for name in (channels if several else ("image",))]
        label = _placed(folder, given["label"]) if given.get("label") else None
        missing = [file for file in (*files_of, label) if file is not None and file not in present]
        missing = [file for file in missing if not file or not (root / file).is_file()]
        defect = f"row {number} of {path.name} names {missing[0] or 'no image'}, which is missing" if missing else ""
        found.append(
            Entry(
                given["case"],
                files_of[0],
                label,
                defect,
                channels=tuple(files_of) if several else (),
                patient=given.get("patient", ""),
                person=given.get("person", ""),
            )
        )
    return found


def _placed(folder: str, path: str) -> str:
    """Puts the table's folder in front of a path that is not absolute; nothing stays nothing."""
    path = path.replace("\\", "/").removeprefix("./")
    return path if not path or path.startswith("/") or folder in ("", ".") else f"{folder}/{path}"
