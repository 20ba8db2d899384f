"""What a planned contrast shows: difference, effect size, p value, and one of four verdicts.

The unit is the patient; the networks' seeds are a second chance, and enter everything here but the effect size.

- *p*: two-sided sign-flip permutation test. If two inits are equal, each patient's difference could as well have had
  the other sign. All flips where there are few (up to 14 patients), else 20,000 drawn ones, the data counted as one of
  them. What other seeds would have added to all patients at once is added to each flip, from a normal distribution with
  the variance that the seeds show, and the tail widened to Student's, because few seeds show it only roughly.
  Sources: Fisher, "The Design of Experiments" (1935); Phipson and Smyth, "Permutation p-values should never be zero",
  SAGMB 9 (2010).
- *Holm*: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
- *effect*: Cohen's d_z, the mean difference over the standard deviation of the patients' differences; its interval from
  the noncentral t distribution. Source: Lakens, Frontiers in Psychology 4:863 (2013).
- *false claim*: the probability that the true difference is zero or has the other sign, given these data and no
  opinion beforehand: the share of the bootstrap's replicates beyond zero, with the tail expanded as that of the
  interval. The 95 % interval excludes zero exactly where it is below 2.5 %. It is no more than that: where most
  contrasts that anyone looks at are truly zero, more claims are false.
- *smallest*: the difference that this test set and these seeds would find in 80 of 100 repetitions, at the level of one
  test: so many standard errors that a noncentral t exceeds t_0.975 that often, with the variance made median-unbiased
  (divided by the median of chi squared over its degrees of freedom). Source: Cohen, "Statistical Power Analysis"
  (1988), for Student's t.

Axes: N cases, P, S seeds, U patients, M flips, C contrasts of a family.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

from voxprior.maths.statistics import (
    FEWEST_PATIENTS,
    Part,
    Replicates,
    Values,
    case_means,
    network_shifts,
    networks,
    owners,
    replicate,
    satterthwaite,
)

FLIPS = 20_000
FEW = 14  # patients: 2 ** 14 flips are all there are, and fewer than are drawn otherwise
POWER = 0.8
NAN = float("nan")


class Contrast(NamedTuple):
    """One comparison of two inits, in the metric's own unit; NaN where too few patients have it."""

    difference: float
    low: float
    high: float
    cases: int
    effect: float
    effect_low: float
    effect_high: float
    p: float
    false_claim: float
    smallest: float


def contrast(
    values: Values, other: Values, patient_N: list[str], confidence: float, resamples: int, seed: int
) -> Contrast:
    """Compares two inits on the cases that both have: `values - other`, each (N, S) or (N, P, S), in the same order.

    Args:
        values: scores of one init.
        other: scores of the one that it is compared with; it may have other numbers of seeds.
        patient_N: whose scan each case is.
        confidence: of the intervals, e.g. 0.95.
        resamples: number of bootstrap replicates.
        seed: the same seed gives the same numbers.
    """
    difference_N = case_means(values) - case_means(other)
    made = replicate(difference_N, patient_N, [values, other], resamples, seed)
    interval = made.interval(confidence)
    if not made.means_R.size:
        return Contrast(*interval, *[NAN] * 6)
    patient_U = patient_means(difference_N, patient_N)
    p = sign_flip(difference_N, patient_N, [values, other], seed)
    return Contrast(
        *interval, *effect_size(patient_U, confidence), p, false_claim(made), smallest_seen(made, confidence)
    )


def patient_means(value_N: Values, patient_N: list[str]) -> Values:
    """Averages the scans of each patient, NaN left out: (U,)."""
    kept_N = ~np.isnan(value_N)
    owner_N, _ = owners(patient_N, kept_N)
    return np.bincount(owner_N, weights=value_N[kept_N]) / np.bincount(owner_N)


def sign_flip(difference_N: Values, patient_N: list[str], arms: list[Values], seed: int) -> float:
    """Tests whether the mean difference is zero: the two-sided p value; NaN below 3 patients.

    Args:
        difference_N: differences of cases, NaN where one is missing.
        patient_N: whose scan each case is: all of a patient's differences are flipped together.
        arms: the scores per network behind them, whose seeds are a chance of their own; none: patients alone.
        seed: of what is drawn.
    """
    kept_N = ~np.isnan(difference_N)
    owner_N, patients = owners(patient_N, kept_N)
    if patients < FEWEST_PATIENTS:
        return NAN
    total_U = np.bincount(owner_N, weights=difference_N[kept_N]) / len(owner_N)
    null_M = _signs(patients, seed) @ total_U
    parts = [part for values in arms for part in network_shifts(networks(values)[kept_N], owner_N).parts()]
    if parts:
        chance = np.random.default_rng([seed, patients])
        # Turned by the sign of what was found, so that `a - b` and `b - a` have one p value.
        turned = np.copysign(np.sqrt(sum(part.variance for part in parts)), total_U.sum())
        null_M = null_M + turned * chance.standard_normal(len(null_M))
    beyond = int((np.abs(null_M) >= abs(total_U.sum()) * (1 - 1e-9)).sum())
    if not parts:
        return beyond / len(null_M) if patients <= FEW else (beyond + 1) / (len(null_M) + 1)
    p = (beyond + 1) / (len(null_M) + 1)
    # Flips need no degrees of freedom; the seeds' variances have few, and their part of the tail is a Student's.
    patients_alone = Part(float((total_U**2).sum()), np.inf)
    away = special.ndtri(p / 2)
    if beyond <= 2:  # none but the data and their mirror image: the flips end here, and standard errors go on
        spread = total_U.var(ddof=1) * patients + sum(part.variance for part in parts)
        away = min(away, -abs(total_U.sum()) / np.sqrt(spread))
    return float(2 * special.stdtr(satterthwaite([patients_alone, *parts]), away))


@lru_cache(maxsize=4)
def _signs(patients: int, seed: int) -> Values:
    """Lists all flips of few patients, or draws some: (M, U) of -1 and 1."""
    if patients <= FEW:
        negative_MU = (np.arange(1 << patients)[:, None] >> np.arange(patients)) & 1
    else:
        negative_MU = np.random.default_rng(seed).integers(0, 2, (FLIPS, patients))
    return 1.0 - 2.0 * negative_MU.astype(np.float64)


def holm(p_C: Values) -> Values:
    """Adjusts the p values of a family, so that one false "better" or "worse" in it is as rare as in a single test.

    NaN stay NaN and do not count.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.06, 0.06]
    """
    adjusted_C = np.full(len(p_C), np.nan)
    order = np.argsort(np.where(np.isnan(p_C), np.inf, p_C), kind="stable")[: int((~np.isnan(p_C)).sum())]
    times = np.arange(len(order), 0, -1)
    adjusted_C[order] = np.minimum(1.0, np.maximum.accumulate(p_C[order] * times))
    return adjusted_C


def effect_size(difference_U: Values, confidence: float) -> tuple[float, float, float]:
    """Computes Cohen's d_z of the patients' differences and its interval; NaN where all are equal.

    The interval holds the noncentralities under which the t statistic at hand is no surprise.
    """
    count, deviation = len(difference_U), float(difference_U.std(ddof=1))
    mean = float(difference_U.mean())
    if deviation <= 1e-12 * max(abs(mean), 1e-300):
        return NAN, NAN, NAN
    effect = mean / deviation
    t, tail = effect * np.sqrt(count), (1 - confidence) / 2
    low, high = (float(special.nctdtrinc(count - 1, share, t)) / np.sqrt(count) for share in (1 - tail, tail))
    return effect, low, high


def false_claim(made: Replicates) -> float:
    """Computes how probable it is that the true difference is zero or on the other side; see the module."""
    beyond = (made.means_R <= 0 if made.mean > 0 else made.means_R >= 0).sum()
    if made.mean == 0:
        return 0.5
    share = (float(beyond) + 0.5) / (made.means_R.size + 1)
    away = special.ndtri(share) if beyond else min(special.ndtri(share), -abs(made.mean) / max(made.deviation, 1e-300))
    return float(special.stdtr(made.freedom, away))


def smallest_seen(made: Replicates, confidence: float) -> float:
    """Computes the smallest true difference that would be found in 80 % of repetitions of this study.

    A variance known with few degrees of freedom comes out too small more often than not; it is raised so that half of
    all studies state too much and half too little.
    """
    level = special.stdtrit(made.freedom, (1 + confidence) / 2)
    noncentrality = special.nctdtrinc(made.freedom, 1 - POWER, level)
    typical = special.chdtri(made.freedom, 0.5) / made.freedom
    return float(noncentrality * made.deviation / np.sqrt(typical))


def verdict(found: Contrast, p_holm: float, higher_is_better: bool, margin: float, confidence: float) -> str:
    """Says what a contrast shows, in one of four words.

    `equivalent`: the whole interval lies within the margin around zero, whether or not it holds zero.
    `better`, `worse`: the adjusted p value is at most 1 - confidence, and the interval lies on one side of zero.
    `not separated`: all else, also where too few patients give no interval.
    """
    if -margin <= found.low and found.high <= margin:
        return "equivalent"
    if p_holm <= 1 - confidence + 1e-12 and (found.low > 0 or found.high < 0):
        return "better" if (found.low > 0) == higher_is_better else "worse"
    return "not separated"
