"""Masks hide exactly as many patches as they say, each patch equally often."""

import math

import pytest
import torch

from voxprior.maths import chance
from voxprior.maths.masking import hard_masked, masked_from_order, random_masked, random_order, split, visible_count


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


# ------------------------------------------------------------------------------------- AnatoMask's checks of its masks
def uneven(rows: int, patches: int) -> torch.Tensor:
    """Scores that differ strongly from patch to patch, and in another order in every row."""
    chosen = torch.Generator().manual_seed(0)
    return torch.rand(rows, patches, generator=chosen).argsort(1).double().exp()


def teacher(rows: int, patches: int) -> torch.Tensor:
    return random_masked(keys(rows), patches, 0.6, "teacher/mask")


@pytest.mark.parametrize(("cells", "visible"), [((7, 7, 8), 157), ((6, 6, 6), 86), ((8, 8, 8), 205), ((4, 4, 4), 26)])
@pytest.mark.parametrize("score", ["uneven", "equal", "nan", "never"])
def test_check_05_both_masks_hold_exactly_the_published_counts(cells: tuple, visible: int, score: str):
    patches, rows = math.prod(cells), 6
    assert visible_count(patches, 0.6) == visible
    assert (~random_masked(keys(rows), patches, 0.6)).sum(1).tolist() == [visible] * rows
    fill = {"equal": 0.0, "nan": float("nan"), "never": -float("inf")}
    score_BN = uneven(rows, patches) if score == "uneven" else torch.full((rows, patches), fill[score])
    for share in (0.0, 0.1, 0.5, 1.0):
        hard = int(share * (patches - visible))
        masked, hard_BN = hard_masked(score_BN, teacher(rows, patches), visible, hard, keys(rows))
        assert (~masked).sum(1).tolist() == [visible] * rows
        assert masked[hard_BN].all()
        assert hard_BN.sum(1).tolist() == [hard if score in ("uneven", "equal") else 0] * rows


def chi_square(counts_N: torch.Tensor, expected: float, rows: int) -> float:
    """Distance of the counts from `expected` in units of what chance alone gives, about 1, for draws without return."""
    patches, ratio = len(counts_N), expected / rows
    spread = rows * ratio * (1 - ratio) * patches / (patches - 1)
    return float(((counts_N - expected) ** 2).sum() / spread / (patches - 1))


def test_check_06_without_hard_patches_the_mask_is_uniform():
    rows, patches, visible = 4000, 64, 26
    masked, hard = hard_masked(uneven(rows, patches), teacher(rows, patches), visible, 0, keys(rows))
    assert torch.equal(masked, random_masked(keys(rows), patches, 0.6)) and not hard.any()
    ratio = (patches - visible) / patches
    assert (masked.double().mean(0) - ratio).abs().max() < 5 * math.sqrt(ratio * (1 - ratio) / rows)
    # The mean square of 63 normal values is below 1.7 but for one time in 2000.
    assert 0.5 < chi_square(masked.double().sum(0), ratio * rows, rows) < 1.7


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_check_07_hard_patches_are_always_taken(share: float):
    rows, patches, visible = 16, 392, 157
    score, seen = uneven(rows, patches), teacher(rows, patches)
    hard = math.floor(share * (patches - visible))
    masked, hard_BN = hard_masked(score, seen, visible, hard, keys(rows))
    for row in range(rows):
        candidates = sorted((i for i in range(patches) if seen[row, i]), key=lambda i: score[row, i])
        top = candidates[len(candidates) - hard :]
        assert set(top) == set(hard_BN[row].nonzero()[:, 0].tolist()) and masked[row, top].all()
        assert share < 1 or masked[row].sum() == len(top)
    assert len({tuple(row) for row in hard_BN.tolist()}) == rows


def test_check_08_the_rest_is_uniform_over_all_other_patches():
    rows, patches, visible, hard = 4000, 64, 26, 19
    seen = teacher(1, patches).expand(rows, -1)  # one teacher's mask and score, many draws of the rest
    score = uneven(1, patches).expand(rows, -1)
    masked, hard_BN = hard_masked(score, seen, visible, hard, keys(rows))
    others = ~hard_BN[0]
    assert others.sum() == patches - hard and (others & seen[0]).any() and (others & ~seen[0]).any()
    ratio = (patches - visible - hard) / (patches - hard)
    frequency = masked[:, others].double().mean(0)
    assert (frequency - ratio).abs().max() < 5 * math.sqrt(ratio * (1 - ratio) / rows)
    assert 0.5 < chi_square(masked[:, others].double().sum(0), ratio * rows, rows) < 1.8


def test_hard_patches_run_out_before_others_are_taken_for_hard():
    score = torch.full((3, 10), -float("inf"))
    score[:, [2, 7]] = torch.tensor([1.0, 2.0])
    score[0, 7] = float("nan")
    masked, hard = hard_masked(score, torch.ones(3, 10, dtype=torch.bool), 4, 5, keys(3))
    assert [row.nonzero()[:, 0].tolist() for row in hard] == [[2], [2, 7], [2, 7]]
    assert (masked.sum(1) == 6).all() and masked[hard].all()


def test_a_mask_depends_on_its_own_row_alone():
    rows, patches = 8, 64
    score, seen = uneven(rows, patches), teacher(rows, patches)
    together, _ = hard_masked(score, seen, 26, 19, keys(rows))
    alone, _ = hard_masked(score[3:4], seen[3:4], 26, 19, keys(rows)[3:4])
    assert torch.equal(together[3:4], alone)


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
