"""Which scans a file of weights was trained on: hashes that our files carry, and what they say to a study.

A scan goes by the first digits of its `twin_sha256` (`twins.py`): the same for a turned copy, whatever grid and
intensities it was prepared for, and nobody's name.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from voxprior.data.cache import read_index
from voxprior.data.leakage import Overlap
from voxprior.errors import Refusal

DIGITS = 16

Row = Mapping[str, str]


class Seen(NamedTuple):
    """Hashes of scans that weights were trained on, and of those whose labels were used.

    `complete`: False where they began from weights of which nothing is known.
    """

    scans: frozenset[str] = frozenset()
    labelled: frozenset[str] = frozenset()
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """Gives plain data, in one order."""
        return {"scans": sorted(self.scans), "labelled": sorted(self.labelled), "complete": self.complete}


def of_cases(indexes: Sequence[tuple[str | Path, Sequence[str]]], labels: bool, start: Path | None = None) -> Seen:
    """Says what a training has seen.

    Args:
        indexes: prepared datasets, and which of their cases are learned from.
        labels: whether with their labels.
        start: the file of weights that it starts from.
    """
    began = Seen() if start is None else read(start) or Seen(complete=False)
    found, complete = set(), began.complete
    for index, cases in indexes:
        known = {entry["case"]: entry.get("twin_sha256") for entry in read_index(index)["cases"]}
        hashes = [known.get(case) for case in cases]
        complete = complete and all(hashes)  # an index of an older version has none
        found |= {twin[:DIGITS] for twin in hashes if twin}
    return Seen(began.scans | found, began.labelled | (found if labels else set()), complete)


def read(path: Path) -> Seen | None:
    """Reads what a file of weights says; None: nothing, so it is not ours, or older than this.

    Raises:
        Refusal: it is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            told = json.loads((file.metadata() or {}).get("voxprior", "{}")).get("seen")
    except (SafetensorError, OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read as safetensors ({error}): give a safetensors file") from None
    return Seen(frozenset(told["scans"]), frozenset(told["labelled"]), told["complete"]) if told else None


def overlaps(
    name: str, seen: Seen, folds: Sequence[Mapping[str, Any]], tables: Sequence[Sequence[Row]]
) -> list[Overlap]:
    """Lists scored cases that a file was trained on, and cases whose labels it has had that a budget counts as new.

    Args:
        name: of the file in the study.
        seen: what it was trained on.
        folds: of the split.
        tables: rows of the case tables: the study's own dataset first, then those that are only scored.
    """
    own = {row["case"]: row for row in tables[0]}
    outside = [row for table in tables[1:] for row in table if row["label"]]
    pairs: dict[tuple[str, str], list[int]] = {}
    for fold in folds:
        scored = [own[case] for case in [*fold["val"], *fold["test"]]] + outside
        trained = [own[case] for case in fold["train"]]
        for rows, hashes, shared in ((scored, seen.scans, "voxels"), (trained, seen.labelled, "labels")):
            for row in rows:
                if row["twin_sha256"][:DIGITS] in hashes:
                    pairs.setdefault((f"{row['dataset']}/{row['case']}", shared), []).append(fold["fold"])
    return [Overlap(f"files.{name}", case, shared, tuple(numbers)) for (case, shared), numbers in pairs.items()]
