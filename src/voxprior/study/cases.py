"""Means per case: which scans an init fails on.

Axes: G groups of arm, metric, fold and case; S networks (pretraining and fine-tuning seeds).
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from voxprior.study.layout import ARM, factorize, joined, nanmean

KEYS = [*ARM, "fold", "case", "metric"]


def case_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Averages classes, then seeds, per case, arm and metric.

    Returns:
        `value`, and how many class scores are behind it: `scored`, and of these `missed` and `invented`.
    """
    if scores.empty:
        return pd.DataFrame(
            columns=[*ARM, "fold", "case", "patient", "metric", "value", "scored", "missed", "invented"]
        )
    network, networks = _groups(scores, [name for name in ("pretrain_seed", "seed") if name in scores])
    group, groups = _groups(scores, KEYS)
    shape = (groups, networks)
    value, there = scores["value"].to_numpy(dtype=np.float64), scores["value"].notna().to_numpy()
    place = (group * shape[1] + network)[there]
    total = np.bincount(place, weights=value[there], minlength=int(np.prod(shape)))
    count = np.bincount(place, minlength=int(np.prod(shape)))
    mean_GS = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0).reshape(shape)
    # The first row of each group: writing backwards, the first is written last.
    first_G = np.zeros(groups, dtype=np.intp)
    first_G[group[::-1]] = np.arange(len(group))[::-1]
    table = scores.iloc[first_G][[*ARM, "fold", "case", "patient", "metric"]].reset_index(drop=True)
    table["value"] = nanmean(mean_GS, axis=1)
    table["scored"] = np.bincount(group[there], minlength=groups)
    for flag in ("missed", "invented"):
        table[flag] = np.bincount(group[(scores["flag"] == flag).to_numpy()], minlength=groups)
    return table


def _groups(scores: pd.DataFrame, names: list[str]) -> tuple[NDArray[np.intp], int]:
    """Numbers the rows by the columns that tell groups apart, and counts the groups."""
    code = np.zeros(len(scores), dtype=np.intp)
    for name in names:
        # Renumbered after each column, so that the numbers stay as few as the groups.
        code, known = factorize(joined([code, factorize(scores[name])[0]]))
    return code, len(known)
