"""split: freezes who trains, who validates, who tests, and which labels each budget may use."""

import csv
from collections.abc import Sequence
from pathlib import Path


def run(card: Path, index: Path, cases: list[Path], output: Path, leakage: Path, pools: Sequence[Path] = ()) -> None:
    """Splits the cases of a prepared dataset by patient, and checks that nothing scored is learned from.

    Args:
        card: split card.
        index: of the study's own dataset.
        cases: case tables: the study's own dataset first, then the datasets that are only scored.
        output: the lists with their hash.
        leakage: what the gate found (`docs/formats.md`, "leakage").
        pools: case tables of the datasets that are only pretrained on.

    Raises:
        Refusal: too few patients for the split; a scan or a person is learned from and scored as well, and the study
            does not allow it.
    """
    from voxprior.cards import read_card
    from voxprior.data import cache
    from voxprior.data import leakage as gate
    from voxprior.data.files import sha256_of_json
    from voxprior.maths import splits
    from voxprior.whole import write_json

    content = read_card("split", card)
    wanted = content.split
    known = [
        splits.Case(
            case["case"],
            case["patient"],
            case["person"],
            case["label"] is not None,
            frozenset(number for number, voxels in enumerate(case["class_voxels"], 1) if voxels),
        )
        for case in cache.read_index(index)["cases"]
    ]
    folds = splits.split(known, wanted.test, wanted.val, wanted.budgets, wanted.folds, wanted.seed)
    tables, pooled = ([_read_table(path) for path in paths] for paths in (cases, pools))
    found = gate.find_overlaps(folds, tables, pooled)
    if not content.allow_leakage:
        gate.demand_none(found)
    looked_at = {rows[0]["dataset"]: len(rows) for rows in tables + pooled if rows}
    told = [{**one._asdict(), "folds": list(one.folds)} for one in found]
    write_json(leakage, {"format": 1, "allowed": content.allow_leakage, "cases": looked_at, "found": told})
    write_json(output, {"format": 1, "sha256": sha256_of_json(folds), "folds": folds})


def _read_table(path: Path) -> list[dict[str, str]]:
    from voxprior.errors import Refusal

    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if "twin_sha256" not in (reader.fieldnames or ()):
            raise Refusal(f"{path} is of an older version, without the hashes that show copies: run 'intake' again")
        return list(reader)
