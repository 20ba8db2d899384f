"""Numbers and findings as words, with the sense that each has: nothing is claimed that an interval does not carry."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from voxprior.maths.savings import labels_needed
from voxprior.study.measures import MEASURES

MINUS, DASH = "\u2212", "\u2013"
PLACES = {name: measure.places for name, measure in MEASURES.items()}


def number(value: float, metric: str) -> str:
    """Writes a score: Dice and NSD with three places, HD95 in mm with one; a dash where there is none."""
    return DASH if math.isnan(value) else f"{value:.{PLACES[metric]}f}"


def signed(value: float, metric: str) -> str:
    """Writes a difference with its sign.

    Example:
        >>> signed(0.0314, "dice")
        '+0.031'
    """
    if math.isnan(value):
        return DASH
    text = f"{value:+.{PLACES[metric]}f}"
    # What rounds to nothing has no direction.
    return text.replace("-", MINUS) if float(text) else text[1:]


def interval(low: float, high: float, metric: str, signs: bool = False) -> str:
    """Writes an interval as `low to high`; empty where there is none."""
    write = signed if signs else number
    return "" if math.isnan(low) else f"{write(low, metric)} to {write(high, metric)}"


def listed(names: list[str]) -> str:
    """Joins names as a sentence does: `liver, spleen and heart`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def networks(study: Mapping[str, Any]) -> str:
    """Says how many networks a case's score is averaged over: `2 pretraining seeds x 3 fine-tuning seeds`."""
    before, after = len(study["pretrain"].get("seeds", [0])), len(study["finetune"].get("seeds", [0]))
    stages = ((before, "pretraining"), (after, "fine-tuning"))
    told = " x ".join(f"{number} {stage} seed{'s' if number != 1 else ''}" for number, stage in stages)
    return f"{told}; from scratch {after}" if before > 1 else told


def duration(seconds: float) -> str:
    """Writes a time: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def hours(value: float) -> str:
    """Writes hours with two significant digits, or whole ones from ten on; a dash where they were not measured."""
    if math.isnan(value):
        return DASH
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def quantity(value: float) -> str:
    """Writes a large number in steps of a thousand: 21.4 G."""
    if math.isnan(value):
        return DASH
    for step, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= step:
            return f"{value / step:.3g} {unit}"
    return f"{value:.3g}"


def energy(joules: float) -> str:
    """Writes an energy as people pay for it, in Wh or kWh; a dash where it was not measured."""
    if math.isnan(joules):
        return DASH
    hours = joules / 3600
    return f"{hours / 1000:.3g} kWh" if hours >= 1000 else f"{hours:.3g} Wh"


def measure(value: float) -> str:
    """Writes a number as a method measured it: three significant digits; a dash where there is none.

    Less than a millionth, in voxels or shares, is what float32 makes of 0.
    """
    if math.isnan(value):
        return DASH
    return "0" if abs(value) < 1e-6 else f"{value:.3g}".replace("-", MINUS)


def share(value: float) -> str:
    """Writes a share as per cent with two significant digits, or whole ones from ten on: 0.0432 is 4.3 %."""
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.2g} %"


def finding(row: Mapping[Any, Any], title: str, confidence: float, against: str = "scratch") -> str:
    """Says what one contrast shows, in one sentence: a gain, a loss, or that none is shown.

    Args:
        row: difference, low, high, cases, budget of a contrast in Dice.
        title: what the init is called.
        confidence: of the interval.
        against: what the one that it is compared with is called.
    """
    labels = f"{row['budget']} labelled case{'s' if row['budget'] != 1 else ''}"
    change = f"{signed(row['difference'], 'dice')} Dice"
    if math.isnan(row["low"]):
        return (
            f"With {labels}, {title}: {change} against {against}, on too few patients ({row['cases']}) for an interval."
        )
    within = f"{100 * confidence:g} % interval {interval(row['low'], row['high'], 'dice', signs=True)}"
    word = str(row.get("verdict") or "")
    if not word:  # a table of an older study
        word = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "not separated"
    if word == "equivalent":
        margin = number(row["margin"], "dice")
        return f"With {labels}, {title} and {against} are equivalent within {margin}: {change} ({within})."
    if word == "not separated":
        return f"With {labels}, no difference between {title} and {against} is shown: {change} ({within})."
    return f"With {labels}, {title} is {word} than {against}: {change} ({within})."


def effect(value: float) -> str:
    """Writes an effect size with its sign and two places; a dash where there is none."""
    return DASH if math.isnan(value) else f"{value:+.2f}".replace("-", MINUS)


def chance(value: float) -> str:
    """Writes a p-value or the probability of an error: two digits, never 0; a dash where there is none."""
    if math.isnan(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def labels_equal(curves: pd.DataFrame, init: str, budget: int) -> str:
    """Says how many labels scratch needs for the Dice that `init` reaches with `budget`; empty without scratch.

    Args:
        curves: rows of one backbone, test cohort, class `mean`, metric Dice.
        init: the pretrained one.
        budget: its label budget.
    """
    scratch = curves[curves["init"] == "scratch"].sort_values("budget")
    reached = curves[(curves["init"] == init) & (curves["budget"] == budget)]["mean"]
    if scratch.empty or reached.empty or scratch["mean"].isna().any() or reached.isna().any():
        return ""
    how, labels = labels_needed(scratch["budget"].tolist(), scratch["mean"].tolist(), float(reached.iloc[0]))
    return {"about": f"about {labels:.2g}", "above": f"more than {labels:g}", "below": f"fewer than {labels:g}"}[how]
