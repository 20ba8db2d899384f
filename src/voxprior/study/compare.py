"""Turns scores into the tables of a study: label-budget curves and planned contrasts.

Seeds are averaged within a case before cases are averaged; intervals come from `maths/statistics.py`, verdicts from
`maths/paired.py`. Inits are compared inside one backbone only. In studies of simulated patients intervals stay
empty and every row is stamped: the patients are one person, and an interval over them would say how alike the
simulations are.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from voxprior.maths.paired import Contrast, contrast, holm, verdict
from voxprior.maths.statistics import Interval, mean_interval
from voxprior.study.layout import ARM, Arm, lay_out
from voxprior.study.measures import measure_of

STAMP = "simulated patients: pipeline check"
# What a method adds to another: planned before any number is seen, so that nobody picks the pair that looks best.
PLANNED = {"glmae": "mae", "anatomask": "spark", "pgl": "byol"}
NAN = float("nan")


def stamp_of(simulated: bool, leaks: int) -> str:
    """Says what every table and figure of a study must say; empty for most.

    Args:
        simulated: the patients are made from few people.
        leaks: scored cases that are learned from as well (`data/leakage.py`).
    """
    leaked = f"leakage: {leaks} scored case{'s' if leaks != 1 else ''} also learned from" if leaks else ""
    return "; ".join(part for part in (STAMP if simulated else "", leaked) if part)


class Settings(NamedTuple):
    """How intervals and verdicts are made; `simulated` leaves them empty and stamps every row, as `leaks` does."""

    confidence: float
    resamples: int
    seed: int
    simulated: bool
    leaks: int = 0
    margin: float = 0.005
    margin_mm: float = 0.1

    @property
    def stamp(self) -> str:
        """What stands in every row of a study that is no evidence, or whose numbers are too good."""
        return stamp_of(self.simulated, self.leaks)

    def margin_of(self, metric: str) -> float:
        """How small a difference in this metric is no difference: `margin` of shares, `margin_mm` of distances."""
        return self.margin_mm if measure_of(metric).unit == "mm" else self.margin


def curves(scores: pd.DataFrame | list[Arm], settings: Settings) -> pd.DataFrame:
    """Computes mean and interval per arm, budget, class (and `mean`) and metric, of a score table or laid out ones."""
    arms = lay_out(scores)
    wanted = [(arm, "mean", arm.mean, sum(arm.excluded.values())) for arm in arms]
    wanted += [(arm, name, values, arm.excluded[name]) for arm in arms for name, values in arm.classes.items()]
    rows = []
    for arm, name, values, left_out in wanted:
        interval = _stamped(mean_interval(values, arm.patients, *settings[:3]), settings)
        measure = measure_of(arm.metric)
        low, high = np.clip([interval.low, interval.high], measure.lowest, measure.highest)
        found = (interval.mean, low, high, interval.cases, arm.networks, left_out)
        rows.append((*arm.key, name, arm.metric, *found, settings.stamp))
    columns = [*ARM, "class", "metric", "mean", "low", "high", "cases", "seeds", "excluded", "stamp"]
    return pd.DataFrame(rows, columns=columns)


def _stamped(interval: Interval, settings: Settings) -> Interval:
    return interval._replace(low=NAN, high=NAN) if settings.simulated else interval


def contrasts(
    scores: pd.DataFrame | list[Arm], settings: Settings, variants: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Computes the planned contrasts of each backbone and budget, paired by case, over the mean of classes.

    Each init minus scratch, and each init minus the method it builds on (`PLANNED`) or is a variant of, where both are
    in the study. `variants` names the method of each variant.
    Metrics without a better side have no contrasts. Holm's family is one metric of one dataset and cohort: all its
    contrasts, over backbones and budgets.
    """
    by_key = {(*arm.key, arm.metric): arm for arm in lay_out(scores) if measure_of(arm.metric).better}
    rows = []
    pairs = PLANNED | dict(variants or {})
    for (dataset, cohort, backbone, init, budget, metric), arm in by_key.items():
        for against in ("scratch", pairs.get(init, "")):
            other = by_key.get((dataset, cohort, backbone, against, budget, metric))
            if against != init and other is not None:
                found = contrast(arm.mean, other.mean, arm.patients, *settings[:3])
                rows.append((dataset, cohort, backbone, init, against, budget, metric, *found))
    names = ["dataset", "cohort", "backbone", "init", "against", "budget", "metric"]
    table = pd.DataFrame(rows, columns=[*names, *Contrast._fields])
    table["p_holm"] = table.groupby(["dataset", "cohort", "metric"])["p"].transform(lambda p: holm(p.to_numpy()))
    table["margin"] = [settings.margin_of(metric) for metric in table["metric"]]
    table["verdict"] = [_verdict(row, settings) for row in table.to_dict("records")]
    table["stamp"] = settings.stamp
    if settings.simulated:
        estimates = [name for name in Contrast._fields if name not in ("difference", "cases")]
        table[[*estimates, "p_holm"]] = NAN
    last = ["effect", "effect_low", "effect_high", "p", "p_holm", "verdict", "margin", "false_claim", "smallest"]
    return table[[*names, "difference", "low", "high", "cases", *last, "stamp"]]


def _verdict(row: dict[Any, Any], settings: Settings) -> str:
    if settings.simulated:
        return ""
    found = Contrast(*(row[name] for name in Contrast._fields))
    higher = measure_of(row["metric"]).higher_is_better
    return verdict(found, row["p_holm"], higher, row["margin"], settings.confidence)


def mean_dice(curve_table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Nests the test cohort's mean Dice: {backbone: {init: {budget: value}}}, None where no case has a score."""
    nested: dict[str, dict[str, dict[str, float | None]]] = {}
    rows = curve_table.query("cohort == 'test' and metric == 'dice' and `class` == 'mean'")
    for row in rows.to_dict("records"):
        arm = nested.setdefault(row["backbone"], {}).setdefault(row["init"], {})
        arm[str(row["budget"])] = None if pd.isna(row["mean"]) else round(float(row["mean"]), 6)
    return nested
