"""Ranks: by hand, against brute force, and intervals that hold the truth."""

import numpy as np
import pytest
from scipy import stats

from voxprior.maths.ranks import _mean_above, mean_of_ranks, places, rank_of_means

SETTINGS = (0.95, 400, 0)


def people(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


@pytest.mark.parametrize("higher", [True, False])
def test_places_are_scipys(higher):
    score = np.random.default_rng(0).integers(0, 4, (5, 30)).astype(float)
    expected = stats.rankdata(-score if higher else score, axis=0)
    assert np.array_equal(places(score, higher), expected)


def test_one_failure_moves_the_mean_and_not_the_ranks():
    steady = np.full((10, 1), 0.80)
    better = np.full((10, 1), 0.85)
    better[0] = 0.0
    assert rank_of_means([steady, better], people(10), True, *SETTINGS).rank.tolist() == [1, 2]
    found = mean_of_ranks([steady, better], people(10), True, *SETTINGS)
    assert found.rank == pytest.approx([1.9, 1.1])
    assert (found.low <= found.rank).all()
    assert (found.high >= found.rank).all()


def test_intervals_of_ranks_hold_what_is_uncertain():
    chance = np.random.default_rng(1)
    patient = chance.normal(0, 1, (30, 1))
    arms = [patient + gain + chance.normal(0, 0.2, (30, 2)) for gain in (0.0, 0.01, 2.0)]
    found = rank_of_means(arms, people(30), True, *SETTINGS)
    assert (found.low[2], found.rank[2], found.high[2]) == (1, 1, 1)
    assert (found.low[:2] == 2).all()
    assert (found.high[:2] == 3).all()
    assert np.isnan(rank_of_means([a[:2] for a in arms], people(2), True, *SETTINGS).low).all()


def test_mean_ranks_with_shifted_networks_are_those_of_brute_force():
    chance = np.random.default_rng(2)
    value_IN, shift_IR = chance.normal(size=(4, 12)), chance.normal(0, 0.5, (4, 6))
    weight_RN = chance.dirichlet(np.ones(12), 6)
    found = 1 + _mean_above(value_IN, shift_IR, weight_RN)
    for r in range(6):
        ranked = stats.rankdata(-(value_IN + shift_IR[:, r : r + 1]), axis=0)
        assert found[:, r] == pytest.approx(ranked @ weight_RN[r])


def test_cases_that_an_init_lacks_are_left_out_for_all():
    first, second = np.array([[0.1], [0.9], [0.9], [0.9]]), np.array([[0.5], [0.5], [0.5], [np.nan]])
    assert mean_of_ranks([first, second], people(4), True, *SETTINGS).rank == pytest.approx([4 / 3, 5 / 3])
