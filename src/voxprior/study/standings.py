"""Tables that look at several arms at once: labels saved, ranks, and where the spread comes from.

In studies of simulated patients intervals and labels saved stay empty: see `compare.py`.
"""

import math
from collections import defaultdict

import numpy as np
import pandas as pd

from voxprior.maths.ranks import mean_of_ranks, rank_of_means
from voxprior.maths.savings import labels_saved
from voxprior.maths.statistics import Values
from voxprior.maths.variance import SOURCES, variance_parts
from voxprior.study.compare import Settings
from voxprior.study.layout import ARM, Arm
from voxprior.study.measures import measure_of

NAN = float("nan")
SCHEMES = {"rank_of_means": rank_of_means, "mean_of_ranks": mean_of_ranks}


def saved_table(arms: list[Arm], settings: Settings) -> pd.DataFrame:
    """Reads off scratch's curve how many labels it needs for what each init reaches, on the test cohort.

    Budgets at which scratch has no score are left out of its curve; without any there is no row.
    """
    inits: dict[tuple[str, str, str], dict[str, dict[int, Arm]]] = defaultdict(lambda: defaultdict(dict))
    for arm in arms:
        if arm.cohort == "test" and measure_of(arm.metric).better:
            inits[arm.dataset, arm.backbone, arm.metric][arm.init][arm.budget] = arm
    rows = []
    for (dataset, backbone, metric), by_init in inits.items():
        scratch = {b: arm.mean for b, arm in by_init.get("scratch", {}).items() if _scored(arm.mean)}
        higher = measure_of(metric).higher_is_better
        for init, by_budget in by_init.items():
            for budget, arm in by_budget.items():
                if init == "scratch" or not scratch or not _scored(arm.mean):
                    continue
                found = labels_saved(arm.mean, scratch, arm.patients, higher, *settings[:3])
                said = ("", NAN, NAN, NAN, "") if settings.simulated else tuple(found)
                rows.append((dataset, backbone, init, metric, budget, *said, settings.stamp))
    columns = ["dataset", "backbone", "init", "metric", "budget", "kind", "labels", "low", "high", "high_kind", "stamp"]
    return pd.DataFrame(rows, columns=columns)


def _scored(values: Values) -> bool:
    return bool((~np.isnan(values)).any())


def rank_table(arms: list[Arm], settings: Settings) -> pd.DataFrame:
    """Ranks the inits of each backbone and budget, scratch among them, in both ways; where two or more are scored."""
    fields: dict[tuple[str, str, str, str, int], list[Arm]] = defaultdict(list)
    for arm in arms:
        if measure_of(arm.metric).better and _scored(arm.mean):
            fields[arm.dataset, arm.cohort, arm.backbone, arm.metric, arm.budget].append(arm)
    rows = []
    for key, rivals in fields.items():
        if len(rivals) < 2:
            continue
        values, patients = [arm.mean for arm in rivals], rivals[0].patients
        for scheme, ranked in SCHEMES.items():
            found = ranked(values, patients, measure_of(key[3]).higher_is_better, *settings[:3])
            for i, arm in enumerate(rivals):
                ends = (NAN, NAN) if settings.simulated else (found.low[i], found.high[i])
                rows.append((*key, scheme, arm.init, found.rank[i], *ends, settings.stamp))
    names = ["dataset", "cohort", "backbone", "metric", "budget", "scheme", "init", "rank", "low", "high", "stamp"]
    return pd.DataFrame(rows, columns=names)


def variance_table(arms: list[Arm], settings: Settings) -> pd.DataFrame:
    """Splits the variance of each arm's scores (mean of classes) by source; empty where a source has one level."""
    rows = []
    for arm in arms:
        found = variance_parts(arm.mean)
        total = sum(part for part in found.values() if not math.isnan(part))
        for source in SOURCES:
            share = found[source] / total if total > 0 else NAN
            rows.append((*arm.key, arm.metric, source, found[source], share, settings.stamp))
    return pd.DataFrame(rows, columns=[*ARM, "metric", "source", "variance", "share", "stamp"])
