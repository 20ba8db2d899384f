"""Turns scores into the tables of a study: label-budget curves, planned contrasts, means per case.

Seeds are averaged within a case before cases are averaged; intervals come from `maths/statistics.py`. Inits are
compared inside one backbone only. In studies of simulated patients intervals stay empty and every row is stamped: the
patients are one person, and an interval over them would say how alike the simulations are.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from voxprior.maths.statistics import Interval, difference_interval, mean_interval

STAMP = "simulated patients: pipeline check"
ARM = ["dataset", "cohort", "backbone", "init", "budget"]
# What a method adds to another: planned before any number is seen, so that nobody picks the pair that looks best.
PLANNED = {"glmae": "mae", "anatomask": "spark", "pgl": "byol"}
BOUNDS = {"dice": (0.0, 1.0), "nsd": (0.0, 1.0), "hd95_mm": (0.0, np.inf)}


def stamp_of(simulated: bool, leaks: int) -> str:
    """Says what every table and figure of a study must say; empty for most.

    Args:
        simulated: the patients are made from few people.
        leaks: scored cases that are learned from as well (`data/leakage.py`).
    """
    leaked = f"leakage: {leaks} scored case{'s' if leaks != 1 else ''} also learned from" if leaks else ""
    return "; ".join(part for part in (STAMP if simulated else "", leaked) if part)


class Settings(NamedTuple):
    """How intervals are made; `simulated` leaves them empty and stamps every row, as `leaks` does."""

    confidence: float
    resamples: int
    seed: int
    simulated: bool
    leaks: int = 0

    @property
    def stamp(self) -> str:
        """What stands in every row of a study that is no evidence, or whose numbers are too good."""
        return stamp_of(self.simulated, self.leaks)


class Scores(NamedTuple):
    """Scores of one arm, class and metric: values (case, seed), NaN where excluded, and the patient of each case."""

    values: np.ndarray[Any, Any]
    cases: pd.Index
    patients: list[str]


def over_classes(scores: pd.DataFrame) -> pd.DataFrame:
    """Averages the classes of each case, cell and metric; classes that neither map has are left out.

    Returns:
        The columns of `scores` with `class` = "mean".
    """
    keys = [name for name in scores.columns if name not in ("class", "value", "flag")]
    mean = scores.groupby(keys, sort=False, as_index=False)["value"].mean()
    return mean.assign(**{"class": "mean", "flag": ""})


def table_of(rows: pd.DataFrame) -> Scores:
    """Lays out the rows of one arm, class and metric as case x seed.

    An external case that several folds have scored is averaged over them; test cases belong to one fold.
    """
    table = rows.pivot_table(index="case", columns="seed", values="value", aggfunc="mean", dropna=False)
    patients = rows.drop_duplicates("case").set_index("case")["patient"]
    return Scores(table.to_numpy(dtype=float), table.index, patients.loc[table.index].tolist())


def curves(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Computes mean and interval per arm, budget, class (and `mean`) and metric."""
    excluded = scores.assign(excluded=scores["flag"] == "both_empty")
    per_class = excluded.groupby([*ARM, "class", "metric"], sort=False)["excluded"].sum()
    overall = excluded.groupby([*ARM, "metric"], sort=False)["excluded"].sum()
    rows = []
    key: Any
    for key, group in pd.concat([over_classes(scores), scores]).groupby([*ARM, "class", "metric"], sort=False):
        found = table_of(group)
        interval = _stamped(mean_interval(found.values, found.patients, *settings[:3]), settings)
        low, high = np.clip([interval.low, interval.high], *BOUNDS[key[-1]])
        left_out = overall[*key[:5], key[6]] if key[5] == "mean" else per_class[key]
        rows.append((*key, interval.mean, low, high, interval.cases, found.values.shape[1], left_out, settings.stamp))
    columns = [*ARM, "class", "metric", "mean", "low", "high", "cases", "seeds", "excluded", "stamp"]
    return pd.DataFrame(rows, columns=columns)


def contrasts(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Computes the planned contrasts of each backbone and budget, paired by case, over the mean of classes.

    Each init minus scratch, and each init minus the method it builds on (`PLANNED`), where both are in the study.
    """
    mean = over_classes(scores)
    # dict() would take the groupby for a mapping, which it is not.
    arms: dict[Any, pd.DataFrame] = {key: rows for key, rows in mean.groupby([*ARM, "metric"], sort=False)}  # noqa: C416
    rows = []
    for (dataset, cohort, backbone, init, budget, metric), group in arms.items():
        for against in ("scratch", PLANNED.get(init, "")):
            other_rows = arms.get((dataset, cohort, backbone, against, budget, metric))
            if against == init or other_rows is None:
                continue
            arm, other = table_of(group), table_of(other_rows)
            places = other.cases.get_indexer(arm.cases)
            values = np.where((places >= 0)[:, None], other.values[places], np.nan)
            interval = _stamped(difference_interval(arm.values, values, arm.patients, *settings[:3]), settings)
            rows.append((dataset, cohort, backbone, init, against, budget, metric, *interval, settings.stamp))
    columns = ["dataset", "cohort", "backbone", "init", "against", "budget", "metric"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "low", "high", "cases", "stamp"])


def _stamped(interval: Interval, settings: Settings) -> Interval:
    return interval._replace(low=float("nan"), high=float("nan")) if settings.simulated else interval


def case_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Averages classes and seeds per case, arm and metric; `scored` counts the class scores behind each mean."""
    keys = [*ARM, "fold", "case", "patient", "metric"]
    mean = over_classes(scores).groupby(keys, sort=False)["value"].mean()
    flagged = scores.assign(
        scored=scores["value"].notna(), missed=scores["flag"] == "missed", invented=scores["flag"] == "invented"
    )
    counts = flagged.groupby(keys, sort=False)[["scored", "missed", "invented"]].sum()
    return pd.concat([mean, counts], axis=1).reset_index()


def mean_dice(curve_table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Nests the test cohort's mean Dice: {backbone: {init: {budget: value}}}, None where no case has a score."""
    nested: dict[str, dict[str, dict[str, float | None]]] = {}
    rows = curve_table.query("cohort == 'test' and metric == 'dice' and `class` == 'mean'")
    for row in rows.to_dict("records"):
        arm = nested.setdefault(row["backbone"], {}).setdefault(row["init"], {})
        arm[str(row["budget"])] = None if pd.isna(row["mean"]) else round(float(row["mean"]), 6)
    return nested


def labels_needed(budgets: list[int], scratch: list[float], value: float) -> tuple[str, float]:
    """Reads off scratch's curve how many labels it needs to reach a score: ("about" | "above" | "below", labels).

    Linear between budgets on a logarithmic axis. Beyond the last budget the answer is "above" it: curves are not
    extrapolated. The first crossing counts where a curve is not monotone.
    """
    if value <= scratch[0]:
        return ("about" if value == scratch[0] else "below"), float(budgets[0])
    for i in range(1, len(budgets)):
        if scratch[i] >= value:
            share = (value - scratch[i - 1]) / (scratch[i] - scratch[i - 1])
            return "about", float(budgets[i - 1] * (budgets[i] / budgets[i - 1]) ** share)
    return "above", float(budgets[-1])
