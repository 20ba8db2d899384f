"""Labels saved: monotone curves, reading between budgets, what lies beyond, and intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from voxprior.maths.savings import labels_needed, labels_saved, monotone, read_off


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=7))
def test_monotone_is_isotonic_regression(curve):
    assert monotone(np.array([curve]))[0] == pytest.approx(isotonic_regression(curve).x, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "kind", "labels"),
    [(0.6, "about", 2.0), (0.7, "about", 8**0.5), (0.8, "about", 4.0), (0.81, "above", 4.0), (0.3, "below", 1)],
)
def test_labels_that_scratch_needs(value, kind, labels):
    found = labels_needed([1, 2, 4], [0.4, 0.6, 0.8], value)
    assert found[0] == kind
    assert found[1] == pytest.approx(labels)


def test_a_dip_of_the_curve_is_noise():
    assert labels_needed([1, 2, 4, 8], [0.4, 0.7, 0.6, 0.8], 0.65)[1] == pytest.approx(2)
    assert labels_needed([1, 2, 4, 8], [0.4, 0.7, 0.6, 0.8], 0.725)[1] == pytest.approx(32**0.5)


def test_beyond_the_budgets_nothing_is_extrapolated():
    curve = np.array([[0.4, 0.6, 0.8]] * 4)
    found = read_off([1, 2, 4], curve, np.array([0.3, 0.4, 0.8, 0.9]))
    assert found.tolist() == [0, 1, 4, np.inf]


def scores(chance, mean, patients, noise=0.02):
    return mean + chance[0] + chance[1].normal(0, noise, (patients, 3))


def study(seed: int, reach: float, patients: int = 25):
    """Scratch gains 0.1 with each doubling from 0.4; the init reaches `reach`."""
    generator = np.random.default_rng(seed)
    patient = generator.normal(0, 0.1, (patients, 1))
    scratch = {b: scores((patient, generator), 0.4 + 0.1 * i, patients) for i, b in enumerate([1, 2, 4, 8])}
    return scores((patient, generator), reach, patients), scratch, [f"p{i}" for i in range(patients)]


@pytest.mark.parametrize("higher", [True, False])
def test_labels_saved_on_a_known_curve(higher):
    init, scratch, people = study(0, 0.55)
    sign = 1 if higher else -1
    flipped = {b: sign * v for b, v in scratch.items()}
    found = labels_saved(sign * init, flipped, people, higher, 0.95, 500, 0)
    assert found.kind == "about"
    assert found.low < 2 * 2**0.5 < found.high
    assert found.low > 2
    assert found.high < 4
    assert found.high_kind == "about"


def test_beyond_the_largest_budget_is_said_and_the_interval_is_open():
    init, scratch, people = study(1, 0.8)
    above = labels_saved(init, scratch, people, True, 0.95, 500, 0)
    assert (above.kind, above.labels, above.high_kind) == ("above", 8, "above")
    init, scratch, people = study(2, 0.695)
    edge = labels_saved(init, scratch, people, True, 0.95, 500, 0)
    assert (edge.kind, edge.high, edge.high_kind) == ("about", 8, "above")
    init, scratch, people = study(3, 0.2)
    assert labels_saved(init, scratch, people, True, 0.95, 500, 0)[:4] == ("below", 1, 1, 1)


def test_below_three_patients_there_is_no_interval():
    init, scratch, people = study(0, 0.55, patients=2)
    found = labels_saved(init, scratch, people, True, 0.95, 500, 0)
    assert found.kind == "about"
    assert np.isnan([found.low, found.high]).all()
    assert found.high_kind == ""


def test_intervals_of_labels_cover_roughly():
    covered = 0
    for seed in range(100):
        init, scratch, people = study(seed, 0.55, patients=15)
        found = labels_saved(init, scratch, people, True, 0.95, 400, seed)
        covered += found.low <= 2 * 2**0.5 <= found.high
    assert 88 <= covered <= 100
