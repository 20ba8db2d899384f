"""Masks hide exactly as many patches as they say, each patch equally often."""

import math

import pytest
import torch

from voxprior.maths import chance
from voxprior.maths.masking import masked_from_order, random_masked, random_order, split, visible_count


def keys(count: int, step: int = 0) -> torch.Tensor:
    return chance.keys(0, step, torch.arange(count))


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"),
    [
        (216, 0.6, 86),
        (216, 0.75, 54),
        (1000, 0.8, 200),
        (1000, 0.9, 100),
        (64, 0.75, 16),
        (8, 0.99, 1),
        (8, 0.01, 7),
        (2, 0.5, 1),
    ],
)
def test_counts_are_exact_in_every_row(patches: int, ratio: float, visible: int):
    assert visible_count(patches, ratio) == visible
    assert (~random_masked(keys(16), patches, ratio)).sum(1).tolist() == [visible] * 16


def test_rows_and_steps_differ_and_keys_repeat():
    masked = random_masked(keys(16), 216, 0.6)
    assert len({tuple(row) for row in masked.tolist()}) == 16
    assert torch.equal(masked, random_masked(keys(16), 216, 0.6))
    assert not torch.equal(masked, random_masked(keys(16, step=1), 216, 0.6))


def test_every_patch_is_hidden_equally_often():
    rows, ratio = 2000, 0.75
    frequency = random_masked(keys(rows), 64, ratio).double().mean(0)
    assert (frequency - ratio).abs().max() < 4.5 * math.sqrt(ratio * (1 - ratio) / rows)


def test_mask_follows_the_order():
    order = random_order(keys(3), 10)
    masked = masked_from_order(order, 4)
    for row in range(3):
        assert not masked[row, order[row, :4]].any() and masked[row, order[row, 4:]].all()


def test_split_lists_each_patch_once_in_rising_order():
    masked = random_masked(keys(5), 24, 0.6)
    visible_BK, masked_BM = split(masked, visible_count(24, 0.6))
    assert visible_BK.shape == (5, 10) and masked_BM.shape == (5, 14)
    for row in range(5):
        assert visible_BK[row].tolist() == (~masked[row]).nonzero()[:, 0].tolist()
        assert masked_BM[row].tolist() == masked[row].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("patches", "ratio", "visible"), [(216, 0.6, 86), (1000, 0.8, 200), (1000, 0.9, 100)])
def test_glmae_check_02_masks_are_exact_partitions_that_keys_repeat(patches: int, ratio: float, visible: int):
    masked = random_masked(keys(8), patches, ratio)
    assert (~masked).sum(1).tolist() == [patches - round(ratio * patches)] * 8 == [visible] * 8
    visible_BK, masked_BM = split(masked, visible)
    order = torch.cat([visible_BK, masked_BM], dim=1)
    assert torch.equal(order.sort(dim=1).values, torch.arange(patches).expand(8, -1))
    shuffled = torch.arange(patches).expand(8, -1).gather(1, order)
    assert torch.equal(shuffled.gather(1, order.argsort(dim=1)), torch.arange(patches).expand(8, -1))
    assert len({tuple(row) for row in masked.tolist()}) == 8
    assert torch.equal(masked, random_masked(keys(8), patches, ratio))


def test_glmae_check_02_every_patch_is_kept_as_often_as_any_other():
    kept = (~random_masked(keys(2000), 216, 0.6)).double().mean(0)
    share = 86 / 216
    assert (kept - share).abs().max() < 4 * math.sqrt(share * (1 - share) / 2000)
