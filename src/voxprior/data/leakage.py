"""The leakage gate: no scan and no person may be learned from and scored as well.

Scans are compared by `twin_sha256` (`twins.py`), people by the name in the case table. Inside a dataset twins are set
aside at intake; here the datasets of a study are laid beside one another, and every fold's lists are looked at again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from voxprior.errors import Refusal

Row = Mapping[str, str]


class Overlap(NamedTuple):
    """A case that a fold learns from, a case that is scored, and what they share."""

    learned: str  # dataset/case, or files.<name>: weights that have learned from the scored case (`seen.py`)
    scored: str
    shared: str  # "voxels" or "person"; "labels": not scored, but its labels were not new to the weights
    folds: tuple[int, ...]


def find_overlaps(
    folds: Sequence[Mapping[str, Any]], tables: Sequence[Sequence[Row]], pools: Sequence[Sequence[Row]] = ()
) -> list[Overlap]:
    """Lists the overlaps between what is learned from and what is scored.

    Args:
        folds: of the split: `pool`, `train`, `val`, `test` list cases of the study's own dataset.
        tables: rows of the case tables: the study's own dataset first, then those that are only scored.
        pools: rows of the case tables that are only pretrained on.

    Returns:
        One entry per pair of cases, in the order of the tables. Inside the study's own dataset people are not
        compared: the split has kept them apart, unless all are one simulated person, which the study says elsewhere.
    """
    own = {row["case"]: row for row in tables[0]}
    outside = [row for table in tables[1:] for row in table if row["label"]]
    pooled = [row for pool in pools for row in pool]
    # Most rows share nothing with any other, and are left out before the folds are gone through.
    everything = [*own.values(), *outside, *pooled]
    twice = {
        key: {value for value, rows in Counter(row[key] for row in everything).items() if rows > 1}
        for key in ("twin_sha256", "person")
    }
    pairs: dict[tuple[str, str, str], list[int]] = {}
    for fold in folds:
        learned = [own[case] for case in dict.fromkeys([*fold["pool"], *fold["train"]])]
        held = [own[case] for case in [*fold["val"], *fold["test"]]]
        for some, others, shared, key in (
            (learned + pooled, held + outside, "voxels", "twin_sha256"),
            (learned + pooled, outside, "person", "person"),
            (pooled, held, "person", "person"),
        ):
            known: dict[str, list[Row]] = {}
            for row in some if others else ():
                if row[key] in twice[key]:
                    known.setdefault(row[key], []).append(row)
            for row in others if known else ():
                for twin in known.get(row[key], []):
                    pairs.setdefault((_name(twin), _name(row), shared), []).append(fold["fold"])
    # Who shares voxels shares the person: one reason is enough.
    voxels = {(learned, scored) for learned, scored, shared in pairs if shared == "voxels"}
    return [
        Overlap(learned, scored, shared, tuple(numbers))
        for (learned, scored, shared), numbers in pairs.items()
        if shared == "voxels" or (learned, scored) not in voxels
    ]


def demand_none(found: Sequence[Overlap]) -> None:
    """Refuses overlaps.

    Raises:
        Refusal: there are some; the sentence names the first three.
    """
    found, taught = ([one for one in found if (one.shared == "labels") == is_label] for is_label in (False, True))
    if taught and not found:
        some = ", ".join(one.scored for one in taught[:3]) + (", ..." if len(taught) > 3 else "")
        raise Refusal(
            f"{taught[0].learned} was trained with the labels of {len(taught)} cases that the study's label budgets "
            f"count as new ({some}): take the file out, or set 'allow_leakage: true' in the study, which stamps every "
            "table and figure"
        )
    if found:
        shown = "; ".join(f"{one.learned} and {one.scored} share their {one.shared}" for one in found[:3])
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise Refusal(
            f"{len(found)} scored cases are learned from as well ({shown}{more}): take one of each pair out of its "
            "dataset, or a file out of the study, or set 'allow_leakage: true' in the study, which stamps every table "
            "and figure"
        )


def _name(row: Row) -> str:
    return f"{row['dataset']}/{row['case']}"
