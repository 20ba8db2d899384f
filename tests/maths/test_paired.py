"""Planned contrasts: known answers, exact tests, the four verdicts, and error rates."""

import itertools

import numpy as np
import pytest
from scipy import stats

from voxprior.maths.paired import Contrast, contrast, effect_size, holm, patient_means, sign_flip, verdict
from voxprior.maths.statistics import case_means, difference_interval

SETTINGS = (0.95, 1000, 0)


def people(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def test_few_patients_are_tested_exactly():
    difference = np.array([0.3, -0.1, 0.4, 0.2, 0.5])
    means = [np.dot(signs, difference) for signs in itertools.product([1, -1], repeat=5)]
    expected = np.mean(np.abs(means) >= difference.sum() - 1e-12)
    assert sign_flip(difference, people(5), [], 0) == expected
    assert sign_flip(np.ones(5), people(5), [], 0) == 2 / 32
    assert sign_flip(np.zeros(5), people(5), [], 0) == 1


def test_many_patients_agree_with_the_t_test_and_p_is_never_zero():
    difference = np.random.default_rng(0).normal(0.3, 1, 40)
    assert sign_flip(difference, people(40), [], 0) == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, abs=0.01)
    assert 0 < sign_flip(difference + 10, people(40), [], 0) < 1e-4


def test_scans_of_one_patient_flip_together():
    chance = np.random.default_rng(1)
    one = chance.normal(0.4, 1, 12)
    believed = sign_flip(one.repeat(4), people(48), [], 0)
    assert sign_flip(one.repeat(4), [p for p in people(12) for _ in range(4)], [], 0) == sign_flip(
        one, people(12), [], 0
    )
    assert believed < 0.5 * sign_flip(one, people(12), [], 0)
    assert patient_means(np.array([1.0, 3.0, np.nan, 5.0]), ["a", "a", "b", "b"]).tolist() == [2, 5]


def test_seeds_that_disagree_make_p_larger():
    chance = np.random.default_rng(2)
    patient = chance.normal(0, 0.05, (30, 1))
    steady = patient + 0.05 + np.zeros(3)
    shaky = patient + 0.05 + np.array([-0.3, 0.0, 0.3])
    ps = [sign_flip(case_means(v), people(30), [v], 0) for v in (steady, shaky)]
    assert ps[0] < 0.001
    assert ps[1] > 0.3


def test_holm_is_what_is_written_in_the_paper():
    assert holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005])) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True
    )
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert np.isnan(holm(np.array([np.nan]))).all()


def test_effect_size_inverts_the_noncentral_t():
    difference = np.random.default_rng(3).normal(0.5, 1, 18)
    effect, low, high = effect_size(difference, 0.95)
    assert effect == pytest.approx(difference.mean() / difference.std(ddof=1))
    t = effect * np.sqrt(18)
    assert stats.nct.sf(t, 17, low * np.sqrt(18)) == pytest.approx(0.025, abs=1e-6)
    assert stats.nct.cdf(t, 17, high * np.sqrt(18)) == pytest.approx(0.025, abs=1e-6)
    assert np.isnan(effect_size(np.full(5, 0.1), 0.95)).all()


def test_a_contrast_agrees_with_its_interval():
    chance = np.random.default_rng(4)
    values, other = chance.normal(0.2, 1, (2, 25, 3))
    found = contrast(values, other, people(25), *SETTINGS)
    assert found[:4] == difference_interval(values, other, people(25), *SETTINGS)
    mirrored = contrast(other, values, people(25), *SETTINGS)
    assert mirrored.difference == -found.difference
    assert mirrored.p == found.p
    for shift in np.linspace(-1, 1, 21):
        moved = contrast(values + shift, other, people(25), *SETTINGS)
        assert (moved.false_claim < 0.025) == (moved.low > 0 or moved.high < 0)
    few = contrast(values[:2], other[:2], people(2), *SETTINGS)
    assert np.isnan([few.low, few.effect, few.p, few.false_claim, few.smallest]).all()


@pytest.mark.parametrize(
    ("low", "high", "p", "higher", "said"),
    [
        (0.01, 0.03, 0.01, True, "better"),
        (0.01, 0.03, 0.01, False, "worse"),
        (-0.03, -0.01, 0.01, True, "worse"),
        (-0.03, -0.01, 0.05, False, "better"),
        (0.01, 0.03, 0.06, True, "not separated"),
        (-0.01, 0.03, 0.01, True, "not separated"),
        (-0.004, 0.005, 0.9, True, "equivalent"),
        (0.001, 0.004, 0.001, True, "equivalent"),
        (np.nan, np.nan, np.nan, True, "not separated"),
    ],
)
def test_verdicts(low, high, p, higher, said):
    found = Contrast(0.0, low, high, 9, *[0.0] * 6)
    assert verdict(found, p, higher, 0.005, 0.95) == said


def test_what_is_said_to_be_seen_at_80_percent_is():
    chance = np.random.default_rng(5)
    seen = np.mean([contrast(*draws(chance, 0.0), people(20), *SETTINGS).smallest for _ in range(20)])
    found = [contrast(*draws(chance, seen), people(20), *SETTINGS).p <= 0.05 for _ in range(150)]
    assert 0.68 <= np.mean(found) <= 0.92


def draws(chance: np.random.Generator, gain: float) -> tuple[np.ndarray, np.ndarray]:
    patient = chance.normal(0, 1, (20, 1))
    other, values = patient + chance.normal(0, 0.3, (2, 20, 3))
    return values + gain, other
