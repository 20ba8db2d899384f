"""Ranks of inits, in the two ways that rankings of this field use, with bootstrap intervals.

- *rank of means* (aggregate, then rank): inits are ordered by their means; ties share the mean of their places.
- *mean of ranks* (rank, then aggregate): inits are ordered on each case, and the places averaged; 1.3 is first on most.
Source: Wiesenfarth et al., "Methods and open-source toolkit for analyzing and visualizing challenge results",
Scientific Reports 11:2369 (2021). The two may disagree: a few cases on which an init fails move its mean and not its
mean rank.

Axes: I inits, N cases, P, S seeds, R replicates, U patients.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxprior.maths.statistics import (
    FEWEST_PATIENTS,
    Values,
    case_means,
    expanded_tail,
    joint_means,
    network_shifts,
    networks,
    owners,
    patient_draws,
)


class Ranks(NamedTuple):
    """Rank, low and high of each init: three (I,) arrays; low and high are NaN below 3 patients."""

    rank: Values
    low: Values
    high: Values


def places(score_IR: Values, higher_is_better: bool) -> Values:
    """Ranks along the first axis: 1 is best, ties share the mean of their places, (I, R)."""
    score_IR = score_IR if higher_is_better else -score_IR
    above_IR = np.stack([(score_IR > own).sum(axis=0) for own in score_IR])
    same_IR = np.stack([(score_IR == own).sum(axis=0) for own in score_IR])
    return above_IR + (same_IR + 1) / 2


def rank_of_means(
    arms: list[Values], patient_N: list[str], higher_is_better: bool, confidence: float, resamples: int, seed: int
) -> Ranks:
    """Ranks inits by their means over cases; arms (N, S) or (N, P, S) on the same cases in the same order."""
    mean_I = np.array([np.nanmean(case_means(arm)) for arm in arms])
    rank_I = places(mean_I[:, None], higher_is_better)[:, 0]
    patients = len(set(patient_N))
    if patients < FEWEST_PATIENTS:
        return _without_interval(rank_I)
    rank_IR = places(joint_means(arms, patient_N, resamples, seed), higher_is_better)
    # A place is a whole number, or half between ties: ends of the interval are places that occur.
    tail = expanded_tail(patients - 1, confidence)
    low = np.quantile(rank_IR, tail, axis=1, method="lower")
    return Ranks(rank_I, low, np.quantile(rank_IR, 1 - tail, axis=1, method="higher"))


def mean_of_ranks(
    arms: list[Values], patient_N: list[str], higher_is_better: bool, confidence: float, resamples: int, seed: int
) -> Ranks:
    """Averages over cases the places that inits take on each; cases that an init lacks are left out for all."""
    sign = 1.0 if higher_is_better else -1.0
    value_IN = np.stack([sign * case_means(arm) for arm in arms])
    kept_N = np.asarray(~np.isnan(value_IN).any(axis=0), dtype=bool)
    value_IN = value_IN[:, kept_N]
    owner_N, patients = owners(patient_N, kept_N)
    if not value_IN.size:
        return _without_interval(np.full(len(arms), np.nan))
    rank_I = places(value_IN, True).mean(axis=1)
    if patients < FEWEST_PATIENTS:
        return _without_interval(rank_I)
    drawn_RU = patient_draws(patients, resamples, seed)
    shift_IR = np.stack(
        [
            network_shifts(sign * networks(arm)[kept_N], owner_N).draw(resamples, (seed, i, patients))
            for i, arm in enumerate(arms)
        ]
    )
    weight_RN = drawn_RU[:, owner_N]
    weight_RN = weight_RN / weight_RN.sum(axis=1, keepdims=True)
    rank_IR = 1.0 + _mean_above(value_IN, shift_IR, weight_RN)
    rank_IR = rank_I[:, None] + (rank_IR - rank_I[:, None]) * np.sqrt(patients / (patients - 1))
    tail = expanded_tail(patients - 1, confidence)
    low, high = np.clip(np.quantile(rank_IR, [tail, 1 - tail], axis=1), 1, len(arms))
    return Ranks(rank_I, low, high)


def _mean_above(value_IN: Values, shift_IR: Values, weight_RN: Values) -> Values:
    """Counts, per init and replicate, how many others lie above it on the average case; a tie is a half: (I, R)."""
    count, (resamples, _) = len(value_IN), weight_RN.shape
    above_IR = np.zeros((count, resamples))
    for i in range(count):
        for j in range(i + 1, count):
            gap_N = value_IN[j] - value_IN[i]
            gap_R = shift_IR[j] - shift_IR[i]
            higher_R: NDArray[np.float64]
            if gap_R.any():
                higher_R = np.einsum("rn,rn->r", weight_RN, (np.sign(gap_N + gap_R[:, None]) + 1) / 2)
            else:
                higher_R = weight_RN @ ((np.sign(gap_N) + 1) / 2)
            above_IR[i] += higher_R
            above_IR[j] += 1 - higher_R
    return above_IR


def _without_interval(rank_I: Values) -> Ranks:
    nothing_I = np.full(len(rank_I), np.nan)
    return Ranks(rank_I, nothing_I, nothing_I)
