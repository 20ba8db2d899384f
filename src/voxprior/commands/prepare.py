"""prepare: orients, resamples, scales and caches every case."""

import csv
import json
from pathlib import Path
from typing import Any


def run(
    card: Path, cases: Path, output: Path, workers: int, config: Path | None = None, fingerprint: Path | None = None
) -> None:
    """Fills the volume cache beside `output` and writes the index last; finished cases are not done again.

    Args:
        card: prepare card.
        cases: `cases.csv` of the dataset.
        output: `…/index.json`.
        workers: processes.
        config: the resolved study, and
        fingerprint: what the scans are like: for what the index says of the dataset, and nothing else.
    """
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
    recipe = prepare.recipe_of(key, content.prepare, content.classes, content.channels, content.ignore)
    made = prepare.prepare_all(rows, output.parent, recipe, workers)
    index = {
        "format": cache.FORMAT,
        "dataset": content.dataset,
        "key": key,
        "quantum": prepare.QUANTUM,
        "channels": content.channels,
        "classes": [number for number, values in enumerate(content.classes, 1) if values],
        "data": _facts(content, config, fingerprint),
        "simulated": any(row["simulated"] == "true" for row in rows),
        "cases": list(progress(made, len(rows), f"prepare {content.dataset}")),
    }
    write_json(output, index)


def _facts(card: Any, config: Path | None, fingerprint: Path | None) -> dict[str, Any]:
    """Lists what a model trained on the dataset must say of it: its licence, its label values, what its scans are like.

    It is copied, and no array depends on it.
    """
    known = json.loads(config.read_text(encoding="utf-8"))["datasets"].get(card.dataset, {}) if config else {}
    measured = json.loads(fingerprint.read_text(encoding="utf-8")) if fingerprint else {}
    told = {key: known[key] for key in ("title", "licence", "licence_url", "citation", "modality") if key in known}
    return {"dataset": card.dataset, "values": card.classes, **told, "intensity": measured.get("intensity", {})}
