"""From the hash of the data to a number: which runs stand behind a score, and where their files lie.

Links are relative to the report, so that they hold wherever the results folder is copied as a whole. Only what exists
is linked. MLflow is filled after the report is written, so a run is named there by its card's hash, which never
changes, and by the run id only where an earlier publication left one.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd

from voxprior.study import gather

LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` listens unless told otherwise


class Link(NamedTuple):
    """A file of a run: what it is, and where, seen from the report."""

    name: str
    href: str


class Store(NamedTuple):
    """Where MLflow shows the runs: address, experiment, and the ids of runs that were published before."""

    address: str
    experiment: str
    ids: dict[str, str]

    def search(self, card_hash: str) -> str:
        """Makes the address of a search for a card; empty where the experiment is not known."""
        if not self.experiment:
            return ""
        words = quote(f'tags.card_hash = "{card_hash}"')
        return f"{self.address}/#/experiments/{self.experiment}/runs?searchFilter={words}"


def read_store(results: Path) -> Store:
    """Reads what the last publication left; a study that was never published has none."""
    told: dict[str, Any] = {}
    for name in ("store.json", "tracked.json"):
        if (results / name).is_file():
            told |= {key: value for key, value in gather.read_json(results / name).items() if value}
    store = str(told.get("store", ""))
    address = store.rstrip("/") if store.startswith("http") else LOCAL
    known = re.search(r"#/experiments/(\d+)", str(told.get("page", "")))
    experiment = str(told.get("experiment") or (known[1] if known else ""))
    return Store(address, experiment, dict(told.get("runs", {})))


class Places:
    """Makes links to a study's files that hold from where the report lies."""

    def __init__(self, results: Path, beside: Path) -> None:
        self.results = results
        self.before = Path(os.path.relpath(results.resolve(), beside.resolve())).as_posix()

    def link(self, name: str, path: str) -> Link | None:
        """Links a file of the results folder; None where it is missing."""
        if not (self.results / path).exists():
            return None
        return Link(name, quote(path if self.before == "." else f"{self.before}/{path}"))

    def run(self, folder: Path) -> list[Link]:
        """Links what a run has left: card, log, journal, summary, scores, load report."""
        place = folder.relative_to(self.results).as_posix()
        wanted = [("card", f"cards/{place}.json"), ("log", f"logs/{place}.log"), ("journal", f"{place}/journal.jsonl")]
        wanted += [(name, f"{place}/{name}") for name in ("summary.json", "load_report.json", "scores.csv")]
        named = [self.link(name.split(".")[0].replace("_", " "), path) for name, path in wanted]
        return [link for link in named if link is not None]


def anchor(backbone: str, init: str, budget: int) -> str:
    """Names the place on the page that lists the runs behind an arm's numbers."""
    return f"made-{backbone}-{init}-{budget}"


def arms(table: pd.DataFrame, places: Places, store: Store) -> list[dict[str, Any]]:
    """Groups the runs behind every arm and budget, with the pretraining that each started from.

    Args:
        table: one row per training, see `facts.runs`; budget 0 is a pretraining.
        places: makes links.
        store: what is known of MLflow.
    """
    before = {
        key: [_run(row, places, store) for row in some.to_dict("records")]
        for key, some in table[table["budget"] == 0].groupby(["backbone", "init"], sort=False)
    }
    found = []
    key: Any
    for key, some in table[table["budget"] > 0].groupby(["backbone", "init", "budget"], sort=False):
        backbone, init, budget = str(key[0]), str(key[1]), int(key[2])
        runs = [_run(row, places, store) for row in some.to_dict("records")]
        inputs = {name: sorted({run["inputs"].get(name) for run in runs} - {None}) for name in _INPUTS}
        found.append(
            {
                "anchor": anchor(backbone, init, budget),
                "backbone": backbone,
                "init": init,
                "budget": budget,
                "runs": runs,
                "pretrainings": before.get((backbone, init), []),
                **inputs,
            }
        )
    return found


_INPUTS = ("index_sha256", "splits_sha256", "encoder_sha256")


def _run(row: dict[Any, Any], places: Places, store: Store) -> dict[str, Any]:
    name = row["folder"].relative_to(places.results).as_posix()
    return {
        "fold": row["fold"],
        "pretrain_seed": None if pd.isna(row["pretrain_seed"]) else row["pretrain_seed"],
        "seed": None if pd.isna(row["seed"]) else row["seed"],
        "card_hash": row["card_hash"],
        "links": places.run(row["folder"]),
        "inputs": row["inputs"],
        "mlflow": store.ids.get(name, ""),
        "search": store.search(row["card_hash"]),
    }
