"""split: freezes who trains, who validates, who tests, and which labels each budget may use."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run(
    card: Path,
    index: Path,
    cases: list[Path],
    output: Path,
    leakage: Path,
    pools: Sequence[Path] = (),
    files: Sequence[str] = (),
) -> None:
    """Splits the cases of a prepared dataset by patient, and checks that nothing scored is learned from.

    Args:
        card: split card.
        index: of the study's own dataset.
        cases: case tables: the study's own dataset first, then the datasets that are only scored.
        output: the lists with their hash.
        leakage: what the gate found (`docs/formats.md`, "leakage").
        pools: case tables of the datasets that are only pretrained on.
        files: `name=path` of the files of weights that the study starts from.

    Raises:
        Refusal: too few patients for the split; a scan or a person is learned from and scored as well, and the study
            does not allow it.
    """
    from voxprior.cards import read_card
    from voxprior.data import cache, seen
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
    known_of = [_look_into(given, content.files) for given in files]
    for name, saw, _ in known_of:
        found += seen.overlaps(name, saw, folds, tables) if saw else []
    if not content.allow_leakage:
        gate.demand_none(found)
    looked_at = {rows[0]["dataset"]: len(rows) for rows in tables + pooled if rows}
    told = [{**one._asdict(), "folds": list(one.folds)} for one in found]
    known_files = {"files": [about for _, _, about in known_of]} if known_of else {}
    gated = {"format": 1, "allowed": content.allow_leakage, "cases": looked_at, "found": told, **known_files}
    write_json(leakage, gated)
    write_json(output, {"format": 1, "sha256": sha256_of_json(folds), "folds": folds})


def _look_into(given: str, hashes: dict[str, str]) -> tuple[str, Any, dict[str, Any]]:
    """Reads what a file of weights was trained on: (name, that or None, what is told of it)."""
    from voxprior.data import seen
    from voxprior.data.files import sha256_of
    from voxprior.errors import Refusal

    name, _, file = given.partition("=")
    if (sha256 := sha256_of(file)) != hashes.get(name):
        raise Refusal(f"{file} has changed since its card was written (SHA-256 {sha256[:16]}…): run the study again")
    saw = seen.read(Path(file))
    known = "nothing" if saw is None else "all" if saw.complete else "part"
    return name, saw, {"name": name, "sha256": sha256, "known": known, "scans": len(saw.scans) if saw else 0}


def _read_table(path: Path) -> list[dict[str, str]]:
    from voxprior.errors import Refusal

    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if "twin_sha256" not in (reader.fieldnames or ()):
            raise Refusal(f"{path} is of an older version, without the hashes that show copies: run 'intake' again")
        return list(reader)
