"""prepare: orients, resamples, scales and caches every case."""

import csv
from pathlib import Path


def run(card: Path, cases: Path, output: Path, workers: int) -> None:
    """Fills the volume cache beside `output` and writes the index last; finished cases are not done again.

    Args:
        card: prepare card.
        cases: `cases.csv` of the dataset.
        output: `…/index.json`.
        workers: processes.
    """
    from dataclasses import replace

    from voxprior.cards import card_hash, read_card
    from voxprior.data import cache, prepare
    from voxprior.engine.journal import progress
    from voxprior.errors import Refusal
    from voxprior.whole import write_json

    content = read_card("prepare", card)
    with open(cases, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise Refusal(f"{cases} lists no case: run 'intake' again")
    scaling = content.prepare.intensity
    for one in (scaling, *content.prepare.channels.values()):
        if one.low >= one.high:
            raise Refusal(f"{card}: intensity low {one.low:g} is not below high {one.high:g}: correct the study")
    key = card_hash(content)
    classes = tuple(tuple(values) for values in content.classes)
    recipe = prepare.Recipe(key, content.prepare.spacing_zyx_mm, scaling.kind, scaling.low, scaling.high, classes)
    own = {
        content.channels.index(name): (one.kind, one.low, one.high) for name, one in content.prepare.channels.items()
    }
    recipe = replace(recipe, channels=len(content.channels), own=own, ignore=tuple(content.ignore))
    made = prepare.prepare_all(rows, output.parent, recipe, workers)
    index = {
        "format": cache.FORMAT,
        "dataset": content.dataset,
        "key": key,
        "quantum": prepare.QUANTUM,
        "channels": content.channels,
        "classes": [number for number, values in enumerate(content.classes, 1) if values],
        "simulated": any(row["simulated"] == "true" for row in rows),
        "cases": list(progress(made, len(rows), f"prepare {content.dataset}")),
    }
    write_json(output, index)
