import math

import pytest

from voxprior.maths import schedules


def test_progress_runs_from_0_to_1():
    assert [schedules.progress_of(step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert schedules.progress_of(0, 1) == 0


def test_learning_rate_rises_in_a_line_and_falls_to_0():
    factors = [schedules.warmup_cosine(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    rising, falling = factors[:11], factors[10:]
    assert rising == sorted(set(rising))
    assert falling == sorted(set(falling), reverse=True)
    assert factors[10 + 89 // 2] == pytest.approx(0.5 * (1 + math.cos(math.pi * 44 / 89)))


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.0), (1, 1.0), (2, 0.1), (3, 1.0), (7, 0.5)])
def test_learning_rate_of_short_runs_stays_in_range(total, warmup):
    assert all(0 <= schedules.warmup_cosine(step, total, warmup) <= 1 for step in range(total))


def test_cosine_ends():
    assert schedules.cosine(0.99, 1.0, 0.0) == pytest.approx(0.99)
    assert schedules.cosine(0.99, 1.0, 0.5) == pytest.approx(0.995)
    assert schedules.cosine(0.99, 1.0, 1.0) == pytest.approx(1.0)


def test_half_life_halves_what_is_left_of_the_teacher():
    momentum = schedules.momentum_from_half_life(0.1, 400)
    assert momentum**40 == pytest.approx(0.5)
    assert schedules.momentum_from_half_life(0.001, 100) ** 5 == pytest.approx(0.5)


def test_half_life_of_a_long_run_is_the_known_momentum():
    # AnatoMask: 0.999 over 204,000 steps is a half-life of 0.0034 of the run.
    assert schedules.momentum_from_half_life(0.0034, 204_000) == pytest.approx(0.999, abs=1e-5)
