"""Intensity changes: against slow loops, on the window's fixed numbers, by keys alone."""

import math

import numpy as np
import pytest
import torch

from voxprior.maths import chance, intensity

SHAPE = (6, 1, 8, 7, 9)


def keys(count: int = 6, step: int = 0) -> torch.Tensor:
    return chance.keys(0, step, torch.arange(count))


def volume() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))


EFFECTS = {
    "noise": lambda v, k, p: intensity.noise(v, k, p, 0.1),
    "blur": lambda v, k, p: intensity.blur(v, k, p, (0.5, 1.0)),
    "brightness": lambda v, k, p: intensity.brightness(v, k, p, (0.75, 1.25), 0.6),
    "gamma": lambda v, k, p: intensity.gamma(v, k, p, (0.7, 1.5)),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_T12_probability_0_is_identity_and_1_changes_every_sample(name):
    before = volume()
    assert torch.equal(EFFECTS[name](before, keys(), 0.0), before)
    after = EFFECTS[name](before, keys(), 1.0)
    assert after.shape == before.shape and not (after == before).flatten(1).all(1).any()


@pytest.mark.parametrize("name", EFFECTS)
def test_T12_the_same_key_gives_the_same_change_in_any_batch(name):
    before, drawn = volume(), EFFECTS[name](volume(), keys(), 0.5)
    assert torch.equal(drawn, EFFECTS[name](before, keys(), 0.5))
    alone = torch.cat([EFFECTS[name](before[i : i + 1], keys()[i : i + 1], 0.5) for i in range(6)])
    torch.testing.assert_close(drawn, alone, rtol=1e-6, atol=1e-6)
    assert not torch.equal(EFFECTS[name](before, keys(), 1.0), EFFECTS[name](before, keys(step=1), 1.0))


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_occur_as_often_as_asked(name):
    before = torch.rand(400, 1, 2, 2, 2)
    changed = (EFFECTS[name](before, keys(400), 0.3) != before).flatten(1).any(1).float().mean()
    assert float(changed) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("name", ["brightness", "gamma"])
def test_T12_clip_and_gamma_stay_in_the_window_and_never_ask_the_crop(name):
    wild = 3 * volume() - 1
    after = EFFECTS[name](wild, keys(), 1.0)
    assert after.min() >= 0 and after.max() <= 1
    # The same tissue beside air and without it: changed alike.
    beside = wild.clone()
    beside[..., :4] = 0.0
    torch.testing.assert_close(EFFECTS[name](beside, keys(), 1.0)[..., 4:], after[..., 4:])


def test_brightness_and_gamma_equal_slow_loops():
    before, key = volume(), keys()
    factor = 0.75 + 0.5 * chance.uniform(key, "intensity/factor").double().numpy()
    power = 0.7 + 0.8 * chance.uniform(key, "intensity/power").double().numpy()
    bright, bent = EFFECTS["brightness"](before, key, 1.0), EFFECTS["gamma"](before, key, 1.0)
    for place in np.ndindex(*SHAPE):
        value = float(before[place])
        assert float(bright[place]) == pytest.approx(min(max(0.6 + (value - 0.6) * factor[place[0]], 0), 1), abs=1e-5)
        assert float(bent[place]) == pytest.approx(value ** power[place[0]], abs=1e-5)


def test_blur_equals_a_slow_loop_and_keeps_a_constant():
    before, sigma = volume()[:2], torch.tensor([0.5, 1.0])
    after = intensity.gaussian(before, sigma[:, None].expand(-1, 3))
    for b, s in enumerate(sigma.tolist()):
        for z, y, x in ((0, 0, 0), (4, 3, 5), (7, 6, 8)):
            total = weights = 0.0
            for i, j, k in np.ndindex(*SHAPE[2:]):
                w = math.exp(-0.5 * ((i - z) ** 2 + (j - y) ** 2 + (k - x) ** 2) / s**2)
                total, weights = total + w * float(before[b, 0, i, j, k]), weights + w
            assert float(after[b, 0, z, y, x]) == pytest.approx(total / weights, abs=1e-5)
    constant = torch.full((1, 1, 5, 5, 5), 0.3)
    torch.testing.assert_close(intensity.gaussian(constant, torch.full((1, 3), 0.8)), constant)


def test_noise_has_the_variance_that_was_drawn():
    flat = torch.zeros(4, 1, 24, 24, 24)
    after = intensity.noise(flat, keys(4), 1.0, 0.1)
    drawn = 0.1 * chance.uniform(keys(4), "intensity/noise/variance")
    torch.testing.assert_close(after.flatten(1).var(1), drawn, rtol=0.05, atol=0)
    assert after.flatten(1).mean(1).abs().max() < 0.02
