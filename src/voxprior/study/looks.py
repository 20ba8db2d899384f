"""Test cases to look at: which ones, and their slices as the page leafs through them."""

from pathlib import Path
from typing import Any, NamedTuple

from voxprior.study import cells, gather, wording
from voxprior.study.drawn import data_url
from voxprior.study.slices import Case, strips

WHICH = {
    "worst": "Lowest mean Dice over all inits",
    "disputed": "Largest difference between inits",
    "median": "Median Dice over all inits",
}


class Look(NamedTuple):
    """A test case as every init of a backbone segments it.

    `case` is None where the scan cannot be shown; `reasons` says why, under the init, or under "" for the scan itself.
    """

    backbone: str
    which: str
    name: str
    case: Case | None
    reasons: dict[str, str]


def picked_cases(results: Path, study: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Picks up to three test cases of each backbone: {backbone: [("worst", case), ("disputed", case), ...]}.

    By Dice with the largest budget, so that every init is shown on the same scan; no case twice.
    """
    table = gather.read_table(results / "tables" / "cases.csv")
    largest = max(study["split"]["budgets"])
    table = table[(table["cohort"] == "test") & (table["metric"] == "dice") & (table["budget"] == largest)]
    picked = {}
    for backbone in study["inits"]:
        rows = table[table["backbone"] == backbone]
        by_init = rows.pivot_table(index="case", columns="init", values="value")
        order = by_init.mean(axis=1).dropna().sort_values(kind="stable").index
        spread = (by_init.max(axis=1) - by_init.min(axis=1)).dropna().sort_values(kind="stable").index
        if len(order):
            wanted = [("worst", order[0]), ("median", order[len(order) // 2])]
            if by_init.shape[1] > 1 and len(spread) and spread[-1] not in {case for _, case in wanted}:
                wanted.insert(1, ("disputed", spread[-1]))
            picked[backbone] = wanted
    return picked


def shown(looks: list[Look], results: Path, study: dict[str, Any], titles: dict[str, str]) -> list[dict[str, Any]]:
    """Prepares the picked cases for the page: planes with their sprites, one row of planes per init."""
    dice = _dice(results, study)
    found = []
    for look in looks:
        inits = [init for backbone, init in cells.arms_of(study) if backbone == look.backbone]
        entry: dict[str, Any] = {
            "backbone": look.backbone,
            "which": WHICH[look.which],
            "case": look.name,
            "open": look.which == "worst",
            "reason": look.reasons.get("", ""),
            "inits": [],
            "planes": [],
        }
        drawn = strips(look.case) if look.case is not None else []
        for strip in drawn:
            entry["planes"].append(
                {
                    "name": strip.plane,
                    "width": strip.width_px,
                    "height": strip.height_px,
                    "start": strip.start,
                    "count": len(strip.places_mm),
                    "places": strip.places_mm,
                    "scan": data_url(strip.scan, "jpeg"),
                    "label": data_url(strip.label, "png"),
                }
            )
        for init in inits:
            value = dice.get((look.backbone, init, look.name))
            entry["inits"].append(
                {
                    "title": titles[init],
                    "dice": "" if value is None else wording.number(value, "dice"),
                    "reason": look.reasons.get(init, ""),
                    "layers": [data_url(s.predictions[init], "png") for s in drawn if init in s.predictions],
                }
            )
        found.append(entry)
    return found


def _dice(results: Path, study: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    table = gather.read_table(results / "tables" / "cases.csv")
    table = table[(table["cohort"] == "test") & (table["metric"] == "dice")]
    table = table[table["budget"] == max(study["split"]["budgets"])].dropna(subset="value")
    return dict(zip(zip(table["backbone"], table["init"], table["case"], strict=True), table["value"], strict=True))
