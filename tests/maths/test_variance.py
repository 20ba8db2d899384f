"""Variance by source: what was put in comes out."""

import numpy as np
import pytest

from voxprior.maths.statistics import network_shifts, replicate
from voxprior.maths.variance import variance_parts

PUT_IN = {"patient": 1.0, "pretrain_seed": 0.16, "seed": 0.09, "rest": 0.04}


def scores(chance: np.random.Generator, cases: int, pretrainings: int, seeds: int) -> np.ndarray:
    sizes = {"patient": (cases, 1, 1), "pretrain_seed": (pretrainings, 1), "seed": (pretrainings, seeds)}
    sizes["rest"] = (cases, pretrainings, seeds)
    return sum(chance.normal(0, PUT_IN[name] ** 0.5, size) for name, size in sizes.items())


def test_parts_come_out_on_average():
    chance = np.random.default_rng(0)
    found = [variance_parts(scores(chance, 30, 6, 4)) for _ in range(150)]
    for name, expected in PUT_IN.items():
        assert np.mean([parts[name] for parts in found]) == pytest.approx(expected, rel=0.12), name


def test_what_cannot_be_told_apart_is_empty():
    values = np.random.default_rng(1).normal(size=(10, 1))
    one = variance_parts(values)
    assert one["patient"] == pytest.approx(values.var(ddof=1))
    assert np.isnan([one["rest"], one["seed"], one["pretrain_seed"]]).all()
    seeds = variance_parts(np.random.default_rng(1).normal(size=(10, 3)))
    assert np.isnan(seeds["pretrain_seed"])
    assert not np.isnan(seeds["seed"])
    assert np.isnan(list(variance_parts(np.array([[1.0, np.nan]])).values())).all()


def test_levels_of_seeds_add_up_to_the_variance_of_the_mean():
    chance, owner = np.random.default_rng(2), np.arange(40)
    shifts = [network_shifts(scores(chance, 40, 5, 4), owner) for _ in range(300)]
    assert np.mean([(s.pretrain_P**2).mean() for s in shifts]) == pytest.approx(0.16, rel=0.15)
    assert np.mean([(s.seed_PS**2).mean() for s in shifts]) == pytest.approx(0.09, rel=0.1)
    drawn = shifts[0].draw(20_000, (0,))
    assert drawn.var() == pytest.approx(sum(part.variance for part in shifts[0].parts()), rel=0.05)


def test_intervals_know_of_pretraining_seeds():
    chance, covered = np.random.default_rng(3), 0
    for run in range(120):
        values = scores(chance, 20, 4, 2)
        patients = [f"p{i}" for i in range(20)]
        found = replicate(values.mean(axis=(1, 2)), patients, [values], 500, run).interval(0.95)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 120 <= 1
