"""How many labels an init saves: where scratch's label-budget curve reaches what the init reaches with fewer.

Scratch's curve is made monotone (isotonic regression: more labels do not harm, noise does) and read between budgets
linearly over the logarithm of the number of labels. Curves are not extrapolated: what lies beyond the largest budget is
"above" it, and that is a result. The interval comes from joint bootstrap replicates of all means: the same patients for
both curves, seeds drawn apart.

Axes: B budgets in rising order, R replicates.
"""

import math
from typing import NamedTuple

import numpy as np

from voxprior.maths.statistics import FEWEST_PATIENTS, Values, case_means, expanded_tail, joint_means


class LabelsSaved(NamedTuple):
    """With the init's labels one gets what scratch needs `labels` for.

    kind: `about`; `above` the largest budget; `below` the smallest. high_kind: `above` where the interval is open.
    """

    kind: str
    labels: float
    low: float
    high: float
    high_kind: str


def monotone(curve_RB: Values) -> Values:
    """Fits the nearest curve that never falls, in squares: isotonic regression, for many curves at once.

    Source: the min-max formula, Robertson, Wright and Dykstra, "Order Restricted Statistical Inference" (1988), 1.4.

    Example:
        >>> monotone(np.array([[1.0, 3.0, 2.0, 4.0]])).tolist()
        [[1.0, 2.5, 2.5, 4.0]]
    """
    budgets = curve_RB.shape[1]
    sums = np.concatenate([np.zeros((len(curve_RB), 1)), np.cumsum(curve_RB, axis=1)], axis=1)
    fitted = np.empty_like(curve_RB, dtype=np.float64)
    for b in range(budgets):
        best = np.full(len(curve_RB), -np.inf)
        for first in range(b + 1):
            means = [(sums[:, last] - sums[:, first]) / (last - first) for last in range(b + 1, budgets + 1)]
            best = np.maximum(best, np.min(means, axis=0))
        fitted[:, b] = best
    return fitted


def labels_needed(budgets: list[int], scratch: list[float], value: float) -> tuple[str, float]:
    """Reads off scratch's curve how many labels it needs to reach a score: ("about" | "above" | "below", labels).

    Linear between budgets on a logarithmic axis, on the monotone curve; the first point that reaches the score counts.
    Beyond the last budget the answer is "above" it: curves are not extrapolated.
    """
    labels = float(read_off(budgets, np.array([scratch], dtype=np.float64), np.array([value]))[0])
    if labels == np.inf:
        return "above", float(budgets[-1])
    return ("below", float(budgets[0])) if labels == 0 else ("about", labels)


def read_off(budgets: list[int], scratch_RB: Values, value_R: Values) -> Values:
    """Reads the labels that scratch needs for each value: (R,); 0 below the smallest budget, inf above the largest."""
    curve_RB = monotone(scratch_RB)
    reached_RB = curve_RB >= value_R[:, None] - 1e-12
    last = np.argmax(reached_RB, axis=1)
    rows = np.arange(len(value_R))
    first = np.maximum(last - 1, 0)
    rise = curve_RB[rows, last] - curve_RB[rows, first]
    share = np.divide(value_R - curve_RB[rows, first], rise, out=np.zeros(len(value_R)), where=rise > 0)
    budget_B = np.asarray(budgets, dtype=np.float64)
    labels = budget_B[first] * (budget_B[last] / budget_B[first]) ** np.clip(share, 0, 1)
    labels = np.where((last == 0) & (value_R < curve_RB[:, 0] - 1e-12), 0.0, labels)
    return np.where(reached_RB.any(axis=1), labels, np.inf)


def labels_saved(
    init: Values,
    scratch: dict[int, Values],
    patient_N: list[str],
    higher_is_better: bool,
    confidence: float,
    resamples: int,
    seed: int,
) -> LabelsSaved:
    """Estimates the budget at which scratch reaches what an init reaches, and its interval.

    Args:
        init: scores of the init at its budget, (N, S) or (N, P, S).
        scratch: scores of scratch per budget, on the same cases in the same order.
        patient_N: whose scan each case is.
        higher_is_better: of the metric.
        confidence: of the interval.
        resamples: bootstrap replicates.
        seed: of what is drawn.

    Returns:
        The labels; without an interval (NaN, and `high_kind` empty) below 3 patients.
    """
    budgets, sign = sorted(scratch), 1.0 if higher_is_better else -1.0
    arms = [sign * init, *(sign * scratch[budget] for budget in budgets)]
    means = [float(np.nanmean(case_means(arm))) for arm in arms]
    kind, labels = labels_needed(budgets, means[1:], means[0])
    patients = len(set(patient_N))
    if patients < FEWEST_PATIENTS:
        return LabelsSaved(kind, labels, float("nan"), float("nan"), "")
    joint_AR = joint_means(arms, patient_N, resamples, seed)
    found_R = read_off(budgets, joint_AR[1:].T, joint_AR[0])
    tail = expanded_tail(patients - 1, confidence)
    # Numbers that occur, not between two: there is nothing between the largest budget and infinity.
    found_R.sort()
    low = found_R[math.floor(tail * (len(found_R) - 1))]
    high = found_R[math.ceil((1 - tail) * (len(found_R) - 1))]
    ends = [float(np.clip(end, budgets[0], budgets[-1])) for end in (low, high)]
    return LabelsSaved(kind, labels, ends[0], ends[1], "above" if high == np.inf else "about")
