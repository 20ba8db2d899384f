"""Lays the score table of a study out as arrays, which everything that is computed from scores is computed from.

Axes: A arms (init and budget of one backbone), M metrics, N cases, F folds, K classes, P pretraining seeds, S
fine-tuning seeds. NaN where a class is in neither map, or nothing was scored.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values = NDArray[np.float64]
SMALL = 20_000_000  # numbers up to this are counted in an array and not hashed
COHORT = ["dataset", "cohort"]
ARM = [*COHORT, "backbone", "init", "budget"]


class Arm(NamedTuple):
    """One init at one label budget, one metric: scores of every case of its cohort, in the cohort's order.

    classes: {class: (N, P, S)}; mean: (N, P, S), over the classes that exist. excluded, per class: scores left out
    because neither map has the class.
    """

    dataset: str
    cohort: str
    backbone: str
    init: str
    budget: int
    metric: str
    cases: list[str]
    patients: list[str]
    mean: Values
    classes: dict[str, Values]
    excluded: dict[str, int]

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Names the arm, as the first columns of most tables do."""
        return self.dataset, self.cohort, self.backbone, self.init, self.budget

    @property
    def networks(self) -> int:
        """How many networks each case was segmented by: pretraining seeds times fine-tuning seeds."""
        return int(self.mean.shape[1] * self.mean.shape[2])


def lay_out(scores: pd.DataFrame | list[Arm]) -> list[Arm]:
    """Makes arrays of a score table, arms and metrics in the order in which they first appear; laid out ones stay.

    An external case that several folds have scored is averaged over them; test cases belong to one fold. An init
    without a pretraining has one of P; the column `pretrain_seed` may be missing, as in tables of before.

    Args:
        scores: see `docs/formats.md`, tables, scores.csv.
    """
    if isinstance(scores, list):
        return scores
    if "pretrain_seed" not in scores:
        scores = scores.assign(pretrain_seed=0)
    codes = {name: pd.factorize(scores[name])[0] for name in COHORT}
    cohort_of = codes["dataset"] * (codes["cohort"].max(initial=0) + 1) + codes["cohort"]
    arms: list[Arm] = []
    for cohort in pd.unique(cohort_of):
        rows = scores if (cohort_of == cohort).all() else scores[cohort_of == cohort]
        arms += _cohort(rows)
    return arms


def _cohort(rows: pd.DataFrame) -> list[Arm]:
    """Lays out one dataset and cohort, whose arms share their cases."""
    names = ["backbone", "init", "budget", "metric", "case", "fold", "class", "pretrain_seed", "seed"]
    code, known = {}, {}
    for name in names:
        code[name], known[name] = factorize(rows[name])
    arm, arms = factorize(joined([code["backbone"], code["init"], code["budget"]]))
    size = {name: len(known[name]) for name in names}
    value, there = rows["value"].to_numpy(dtype=np.float64), rows["value"].notna().to_numpy()
    empty = (rows["flag"] == "both_empty").to_numpy()
    first = {"arm": len(arms), **{n: size[n] for n in ("metric", "case")}}
    code["arm"] = arm
    tail = {n: size[n] for n in ("pretrain_seed", "seed")}
    per_class = _Sums(code, {**first, "class": size["class"], **tail}, value, there)
    class_AMNKPS = per_class.means()
    present_AMKPS = np.asarray(per_class.present().any(axis=2))
    per_fold = _Sums(code, {**first, "fold": size["fold"], **tail}, value, there)
    mean_AMNPS = nanmean(per_fold.means(), axis=3)
    del per_fold
    shape = (len(arms), size["metric"], size["class"])
    place = np.ravel_multi_index((arm, code["metric"], code["class"]), shape)
    excluded_AMK = np.bincount(place[empty], minlength=int(np.prod(shape))).reshape(shape)
    _, first_row = np.unique(code["case"], return_index=True)
    patients = [str(patient) for patient in rows["patient"].iloc[first_row]]
    found = []
    for a in range(len(arms)):
        row = rows.iloc[int(np.argmax(arm == a))]
        for m, metric in enumerate(known["metric"]):
            rows_KPS = present_AMKPS[a, m]
            if not rows_KPS.any():
                continue
            ks, ps, ss = (np.flatnonzero(rows_KPS.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
            names = [str(known["class"][k]) for k in ks]
            found.append(
                Arm(
                    dataset=str(row["dataset"]),
                    cohort=str(row["cohort"]),
                    backbone=str(row["backbone"]),
                    init=str(row["init"]),
                    budget=int(row["budget"]),
                    metric=str(metric),
                    cases=[str(case) for case in known["case"]],
                    patients=patients,
                    mean=mean_AMNPS[a, m][:, ps][:, :, ss],
                    classes={n: class_AMNKPS[a, m, :, k][:, ps][:, :, ss] for n, k in zip(names, ks, strict=True)},
                    excluded={n: int(excluded_AMK[a, m, k]) for n, k in zip(names, ks, strict=True)},
                )
            )
    return found


class _Sums:
    """Sums and counts of scores on a dense grid of codes."""

    def __init__(self, code: dict[str, Any], size: dict[str, int], value: Values, there: NDArray[np.bool_]) -> None:
        self.shape = tuple(size.values())
        cells = int(np.prod(self.shape))
        place = np.ravel_multi_index(tuple(code[name] for name in size), self.shape)
        self.rows = np.bincount(place, minlength=cells)
        place = place[there]
        self.total, self.count = (
            np.bincount(place, weights=value[there], minlength=cells),
            np.bincount(place, minlength=cells),
        )

    def means(self) -> Values:
        """Averages what fell on the same place; NaN where nothing did."""
        nothing = np.full(len(self.total), np.nan)
        return np.divide(self.total, self.count, out=nothing, where=self.count > 0).reshape(self.shape)

    def present(self) -> NDArray[np.bool_]:
        """Marks places that have a row, with or without a score."""
        return (self.rows > 0).reshape(self.shape)


def factorize(column: Any) -> tuple[NDArray[np.intp], list[Any]]:
    """Numbers the values of a column in the order in which they appear: code per row, and the values.

    A missing value counts as the first one: only `pretrain_seed` has any, and no init has some with and some without.
    """
    words = column.cat.categories if isinstance(column, pd.Series) and column.dtype == "category" else None
    given = np.asarray(column if words is None else column.cat.codes)
    if not len(given) or given.dtype.kind not in "iu" or given.min() < 0 or given.max() > SMALL:
        code, known = pd.factorize(column)
        return np.maximum(code, 0), list(known) or [None]
    # Small numbers need no hashing: the first row of each, written from the back.
    first = np.full(int(given.max()) + 1, -1, dtype=np.intp)
    first[given[::-1]] = np.arange(len(given) - 1, -1, -1)
    known = np.flatnonzero(first >= 0)
    known = known[np.argsort(first[known])]
    place = np.zeros(len(first), dtype=np.intp)
    place[known] = np.arange(len(known))
    return place[given], list(known if words is None else words[known])


def joined(codes: list[NDArray[np.intp]]) -> NDArray[np.intp]:
    """Makes one code of several, different wherever one of them is."""
    sizes = tuple(int(code.max(initial=0)) + 1 for code in codes)
    return np.ravel_multi_index(tuple(codes), sizes)


def nanmean(values: Values, axis: int) -> Values:
    """Averages along an axis what is there; NaN, and no warning, where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
