"""Chance is a function of its keys: known answers, even, and the same for any batching."""

import math
import zlib

import pytest
import torch

from voxprior.maths import chance

ALL = (1 << 64) - 1
KEYS = [0x238275BC38FCBE91, 0x2F32A78496C67C60]
UNIFORM = [0.47548073530197144, 0.6199725270271301, 0.5316405892372131]
PERMUTATION = [2, 1, 6, 0, 5, 3, 4, 7]


def splitmix(x: int) -> int:
    """SplitMix64's output function on Python integers: an independent second writing."""
    x = (x + 0x9E3779B97F4A7C15) & ALL
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ALL
    return x ^ (x >> 31)


def unsigned(tensor: torch.Tensor) -> list[int]:
    return [value & ALL for value in tensor.flatten().tolist()]


def some_keys(count: int, step: int = 0, seed: int = 0) -> torch.Tensor:
    return chance.keys(seed, step, torch.arange(count))


def test_mix_gives_the_published_sequence():
    # The first outputs of SplitMix64 from state 0, as in the reference implementation of its authors.
    golden = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    state = torch.tensor([0, 0x9E3779B97F4A7C15 - (1 << 64), 2 * 0x9E3779B97F4A7C15 % (1 << 64)])
    assert unsigned(chance.mix(state)) == golden


def test_mix_equals_integer_arithmetic():
    values = [0, 1, -1, 12345, -(1 << 63), (1 << 63) - 1]
    assert unsigned(chance.mix(torch.tensor(values))) == [splitmix(value & ALL) for value in values]


def test_keys_and_bits_equal_integer_arithmetic():
    key = splitmix(splitmix(splitmix(7) ^ 11) ^ 2)
    assert unsigned(chance.keys(7, 11, torch.arange(3)))[2] == key
    start = splitmix(key ^ splitmix(zlib.crc32(b"flip")))
    expected = [splitmix((start + i * 0x9E3779B97F4A7C15) & ALL) for i in range(6)]
    assert unsigned(chance.bits(chance.keys(7, 11, torch.tensor([2])), "flip", (2, 3))) == expected


def test_known_answers():
    """If these move, every run of every study moves: they must not."""
    assert unsigned(some_keys(2)) == KEYS
    assert chance.uniform(some_keys(1), "flip", (3,)).flatten().tolist() == UNIFORM
    assert chance.permutation(some_keys(1), "mask", 8).tolist() == [PERMUTATION]


def test_seed_step_sample_and_stream_all_matter():
    drawn = [
        chance.uniform(key, stream, (4,))
        for key, stream in (
            (chance.keys(0, 0, torch.tensor([0])), "a"),
            (chance.keys(1, 0, torch.tensor([0])), "a"),
            (chance.keys(0, 1, torch.tensor([0])), "a"),
            (chance.keys(0, 0, torch.tensor([1])), "a"),
            (chance.keys(0, 0, torch.tensor([0])), "b"),
        )
    ]
    assert len({tuple(values.flatten().tolist()) for values in drawn}) == 5


def test_keys_of_a_run_do_not_collide():
    step = torch.arange(1000)[:, None]
    keys = chance.keys(0, step.expand(1000, 64), torch.arange(64).expand(1000, 64))
    assert keys.unique().numel() == 64000


def test_a_sample_draws_the_same_alone_and_in_any_batch():
    key_B = some_keys(5)
    draws = {
        "uniform": lambda key: chance.uniform(key, "x", (2, 3)),
        "normal": lambda key: chance.normal(key, "x", (7,)),
        "permutation": lambda key: chance.permutation(key, "x", 9),
        "integers": lambda key: chance.integers(key, "x", torch.full((len(key), 2), 100)),
    }
    for name, draw in draws.items():
        alone = torch.cat([draw(key_B[i : i + 1]) for i in range(5)])
        assert torch.equal(draw(key_B), alone), name
        assert torch.equal(draw(key_B.flip(0)), alone.flip(0)), name


def test_uniform_is_uniform():
    drawn = chance.uniform(some_keys(100), "u", (1000,))
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, 64, 0, 1)
    chi2 = ((counts - 1e5 / 64).square() / (1e5 / 64)).sum()
    assert 63 - 5 * math.sqrt(126) < chi2 < 63 + 5 * math.sqrt(126)
    assert abs(drawn.mean() - 0.5) < 5 / math.sqrt(12 * 1e5)


def test_neighbours_are_uncorrelated():
    drawn = chance.uniform(some_keys(300), "u", (300,)).double() - 0.5
    other = chance.uniform(some_keys(300), "v", (300,)).double() - 0.5
    for one, two in ((drawn[:, 1:], drawn[:, :-1]), (drawn[1:], drawn[:-1]), (drawn, other)):
        assert abs((one * two).mean() * 12) < 5 / math.sqrt(one.numel())


def test_permutation_is_a_permutation_and_every_place_is_as_likely():
    order = chance.permutation(some_keys(4000), "p", 7)
    assert torch.equal(order.sort(dim=1).values, torch.arange(7).expand(4000, 7))
    counts = torch.stack([(order == value).sum(0) for value in range(7)]).double()
    assert (counts - 4000 / 7).abs().max() < 5 * math.sqrt(4000 / 7 * 6 / 7)


def test_integers_stay_below_high_and_reach_every_value():
    high = torch.tensor([1, 2, 3, 10]).expand(2000, 4)
    drawn = chance.integers(some_keys(2000), "i", high)
    assert drawn.dtype == torch.int64 and (drawn >= 0).all() and (drawn < high).all()
    for column, count in enumerate((1, 2, 3, 10)):
        frequency = torch.bincount(drawn[:, column], minlength=count) / 2000
        assert (frequency - 1 / count).abs().max() < 5 * math.sqrt(0.25 / 2000)


def test_normal_has_mean_0_and_variance_1():
    drawn = chance.normal(some_keys(100), "n", (1000,))
    assert drawn.isfinite().all()
    assert abs(drawn.mean()) < 5 / math.sqrt(1e5) and abs(drawn.var() - 1) < 5 * math.sqrt(2 / 1e5)
    assert (drawn.abs() < 1).float().mean() == pytest.approx(0.6827, abs=0.01)
