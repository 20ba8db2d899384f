"""What a study found, in sentences and words: the first thing that its report says.

Verdicts are those of the tables (`contrasts.csv`); nothing is decided here. Tables that were made before there were
verdicts are read by their intervals alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from voxprior.study import wording
from voxprior.study.measures import measure_of

ORDER = ("better", "equivalent", "not separated", "worse")
SIGNS = {"better": "\u25b2", "worse": "\u25bc", "equivalent": "=", "not separated": "?"}
Row = Mapping[Any, Any]


def verdict_of(row: Row) -> str:
    """Reads a contrast's verdict, or what its interval alone allows to say; empty where there is no interval."""
    if word := str(row.get("verdict") or ""):
        return word
    if math.isnan(row["low"]) or math.isnan(row["high"]):
        return ""
    if row["low"] <= 0 <= row["high"]:
        return "not separated"
    lower_is_better = measure_of(row.get("metric", "dice")).better == "lower"
    return "better" if (row["low"] > 0) != lower_is_better else "worse"


def needs(row: Row) -> str:
    """Writes how many labels scratch needs: `9.2`, `more than 16`, `fewer than 4`."""
    return {"about": "", "above": "more than ", "below": "fewer than "}[str(row["kind"])] + labels(row["labels"])


def labels(value: float) -> str:
    """Writes a number of labels: two significant digits, whole ones from ten on."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


def needs_interval(row: Row) -> str:
    """Writes the interval of what scratch needs: `6 to 14`, `6 to more than 16`, `16 or more`; empty without one."""
    if math.isnan(row["low"]) or math.isnan(row["high"]):
        return ""
    if str(row.get("high_kind", "")) != "above":
        return f"{labels(row['low'])} to {labels(row['high'])}"
    if row["low"] >= row["high"]:
        return f"{labels(row['low'])} or more"
    return f"{labels(row['low'])} to more than {labels(row['high'])}"


def cost(hours: Mapping[str, tuple[float, str]], init: str) -> str:
    """Says what one pretraining took, as the end of a sentence; empty where none was run."""
    if init not in hours:
        return ""
    took, device = hours[init]
    # Minutes are what a small pretraining takes; a third of a thousandth of an hour says nothing.
    text = f"{wording.hours(took)} {device} h" if took >= 0.1 else f"{wording.duration(3600 * took)} ({device})"
    return f"; its pretraining took {text}"


def answer(
    contrasts: pd.DataFrame,
    saved: pd.DataFrame | None,
    hours: Mapping[str, tuple[float, str]],
    titles: Mapping[str, str],
    confidence: float,
) -> list[str]:
    """Says for one backbone whether a pretraining is worth it: a sentence or two.

    The first sentence is about the fewest labels at which an init is better than scratch, and about the init that gains
    most there. Where none is ever better, that is what it says.

    Args:
        contrasts: rows against scratch, cohort `test`, metric Dice.
        saved: rows of `labels_saved.csv` in Dice; None where the table is missing.
        hours: init -> hours of one pretraining, and the kind of device.
        titles: what each init is called.
        confidence: of the intervals.
    """
    rows = [{**row, "word": verdict_of(row)} for row in contrasts.to_dict("records")]
    if not rows:
        return []
    better = [row for row in rows if row["word"] == "better"]
    budget = min(row["budget"] for row in better or rows)
    here = [row for row in rows if row["budget"] == budget]
    if better:
        best = max((row for row in here if row["word"] == "better"), key=lambda row: row["difference"])
        first = _gain(best, saved, titles[best["init"]], confidence) + cost(hours, best["init"]) + "."
        rest = [row for row in here if row is not best]
    elif any(row["word"] for row in rows):
        budgets = wording.listed([str(some) for some in sorted({row["budget"] for row in rows})])
        what = budgets.replace(" and ", " or ") + (" labels" if budgets != "1" else " label")
        first, rest = f"No pretraining is shown to be better than scratch, with {what}.", here
    else:
        return ["There are too few patients for intervals: nothing can be said about better or worse."]
    others = [_group(word, [row for row in rest if row["word"] == word], titles) for word in ORDER]
    others = [text for text in others if text]
    return [first, f"Against scratch with {counted(budget)}: {'; '.join(others)}."] if others else [first]


def _gain(row: Row, saved: pd.DataFrame | None, title: str, confidence: float) -> str:
    if saved is not None:
        same = saved[(saved["init"] == row["init"]) & (saved["budget"] == row["budget"])].to_dict("records")
        if same and str(same[0]["kind"]) in ("about", "above"):
            within = needs_interval(same[0])
            shown = f" ({100 * confidence:g} % interval {within})" if within else ""
            return f"{title} with {counted(row['budget'])} does what scratch needs {needs(same[0])} for{shown}"
    return wording.finding(row, title, confidence).removesuffix(".")


def _group(word: str, rows: list[Row], titles: Mapping[str, str]) -> str:
    if not rows:
        return ""
    named = wording.listed([f"{titles[row['init']]} ({wording.signed(row['difference'], 'dice')})" for row in rows])
    are = "is" if len(rows) == 1 else "are"
    said = {
        "better": "also better",
        "equivalent": "equivalent to it",
        "not separated": "not separated from it",
        "worse": "worse",
    }[word]
    return f"{named} {are} {said}"


def counted(budget: int) -> str:
    """Writes a number of labels with its noun: `1 label`, `4 labels`."""
    return f"{budget} label{'s' if budget != 1 else ''}"


def matrix(table: pd.DataFrame) -> dict[str, Any]:
    """Lays rows out as init x budget: {"budgets": [...], "rows": [{"init", "cells": [row | None]}]}."""
    budgets = sorted({int(budget) for budget in table["budget"]})
    rows = []
    for init, some in table.groupby("init", sort=False):
        by_budget = {int(row["budget"]): row for row in some.to_dict("records")}
        rows.append({"init": init, "cells": [by_budget.get(budget) for budget in budgets]})
    return {"budgets": budgets, "rows": rows}


def verdict_matrix(contrasts: pd.DataFrame) -> dict[str, Any]:
    """Lays contrasts against scratch out as init x budget, each with its verdict as `word`."""
    return matrix(contrasts.assign(word=[verdict_of(row) for row in contrasts.to_dict("records")]))
