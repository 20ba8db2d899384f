"""Statistics: known answers, determinism, few patients, and how often the intervals cover the truth."""

import numpy as np
import pytest
from scipy import stats

from voxprior.maths.statistics import case_means, difference_interval, expanded_tail, mean_interval, seed_shifts

SETTINGS = (0.95, 2000, 0)


def people(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def test_mean_is_the_mean_of_case_means():
    values = np.array([[0.5, 0.7], [0.9, np.nan], [np.nan, np.nan], [0.1, 0.3]])
    assert case_means(values) == pytest.approx([0.6, 0.9, np.nan, 0.2], nan_ok=True)
    found = mean_interval(values, people(4), *SETTINGS)
    assert found.mean == pytest.approx((0.6 + 0.9 + 0.2) / 3)
    assert found.cases == 3
    assert found.low < found.mean < found.high


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    values = np.random.default_rng(3).random((12, 2))
    assert mean_interval(values, people(12), 0.95, 500, 7) == mean_interval(values, people(12), 0.95, 500, 7)
    assert mean_interval(values, people(12), 0.95, 500, 7) != mean_interval(values, people(12), 0.95, 500, 8)


def test_below_three_patients_there_is_no_interval():
    two = mean_interval(np.array([[0.5], [0.7], [0.6]]), ["a", "b", "b"], *SETTINGS)
    assert two.mean == pytest.approx(0.6)
    assert two.cases == 3
    assert np.isnan(two.low)
    assert np.isnan(two.high)
    none = mean_interval(np.full((2, 1), np.nan), ["a", "b"], *SETTINGS)
    assert np.isnan(none.mean)
    assert none.cases == 0
    assert np.isnan(difference_interval(np.ones((2, 1)), np.zeros((2, 1)), ["a", "b"], *SETTINGS).low)


def test_scans_of_one_patient_count_as_one_chance():
    values = np.random.default_rng(0).normal(size=(8, 1))
    alone = mean_interval(values, people(8), *SETTINGS)
    tripled = mean_interval(values.repeat(3, axis=0), [p for p in people(8) for _ in range(3)], *SETTINGS)
    believed = mean_interval(values.repeat(3, axis=0), people(24), *SETTINGS)
    assert (tripled.low, tripled.high) == pytest.approx((alone.low, alone.high))
    assert believed.high - believed.low < 0.7 * (alone.high - alone.low)


def test_interval_of_a_normal_sample_is_as_wide_as_students():
    values = np.random.default_rng(1).normal(size=(15, 1))
    found = mean_interval(values, people(15), 0.95, 20_000, 0)
    half = stats.t.ppf(0.975, 14) * values.std(ddof=1) / np.sqrt(15)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert expanded_tail(14, 0.95) < 0.025


def test_pairing_removes_what_patients_share():
    chance = np.random.default_rng(2)
    easy = chance.normal(size=(20, 1))
    other = easy + chance.normal(0, 0.05, (20, 2))
    values = easy + 0.1 + chance.normal(0, 0.05, (20, 3))
    found = difference_interval(values, other, people(20), *SETTINGS)
    assert found.low < 0.1 < found.high
    assert found.low > 0
    assert found.high - found.low < 0.2 < mean_interval(values, people(20), *SETTINGS).high


def test_difference_uses_the_cases_both_have():
    values, other = np.array([[1.0], [2.0], [np.nan], [4.0]]), np.array([[0.0], [np.nan], [0.0], [1.0]])
    found = difference_interval(values, other, people(4), *SETTINGS)
    assert found.cases == 2
    assert found.mean == pytest.approx((1 + 3) / 2)


def test_seeds_that_disagree_widen_the_interval():
    patient = np.random.default_rng(4).normal(0, 0.01, (30, 1))
    steady, shaky = patient + np.zeros(3), patient + np.array([-0.2, 0.0, 0.2])
    widths = [np.ptp(mean_interval(v, people(30), *SETTINGS)[1:3]) for v in (steady, shaky)]
    assert widths[1] > 5 * widths[0]


def test_shifts_are_those_of_the_seeds_alone():
    chance = np.random.default_rng(5)
    noise = chance.normal(0, 0.2, (4000, 20, 3))
    shift = chance.normal(0, 0.3, (4000, 1, 3))
    owner = np.arange(20)
    variance = [(seed_shifts(values, owner) ** 2).mean() for values in noise + shift]
    assert np.mean(variance) == pytest.approx(0.09, rel=0.05)
    assert np.mean([(seed_shifts(values, owner) == 0).all() for values in noise]) > 0.5
    assert seed_shifts(noise[0, :, :1], owner).tolist() == [0]


def coverage(runs: int, draw_effects) -> tuple[float, float]:
    """Simulates studies of 20 patients and 3 seeds; returns how often mean and difference intervals cover."""
    chance = np.random.default_rng(0)
    covered = np.zeros(2)
    for run in range(runs):
        values, other, truth, gain = draw_effects(chance)
        one = mean_interval(values, people(len(values)), 0.95, 1000, run)
        two = difference_interval(values, other, people(len(values)), 0.95, 1000, run)
        covered += one.low <= truth <= one.high, two.low <= gain <= two.high
    return tuple(covered / runs)


def dice_like(chance: np.random.Generator):
    """Draws skewed case scores as Dice is: patient effect Beta(8, 2), noise per network and case."""
    patient = chance.beta(8, 2, (20, 1))
    other, values = patient + chance.normal(0, 0.04, (2, 20, 3))
    return values + chance.gamma(2, 0.02, (20, 1)), other, 0.8 + 0.04, 0.04


def seeds_matter(chance: np.random.Generator):
    """Draws scores of networks of which some are better for every patient, by chance."""
    patient = chance.normal(0, 1, (20, 1))
    other, values = patient + chance.normal(0, 0.2, (2, 20, 3)) + chance.normal(0, 0.3, (2, 1, 3))
    return values + 0.2, other, 0.2, 0.2


@pytest.mark.parametrize("draw", [dice_like, seeds_matter])
def test_intervals_cover_the_truth_roughly(draw):
    of_mean, of_difference = coverage(200, draw)
    assert 0.90 <= of_mean <= 0.99
    assert 0.90 <= of_difference <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("draw", [dice_like, seeds_matter])
def test_intervals_cover_the_truth(draw):
    of_mean, of_difference = coverage(2000, draw)
    assert 0.93 <= of_mean <= 0.97
    assert 0.93 <= of_difference <= 0.97
