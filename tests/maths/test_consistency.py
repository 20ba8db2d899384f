"""Consistency losses against loops in NumPy: values, gradients, which pairs count, what may be added."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from voxprior.maths.consistency import assign, cosine_distance, cross_entropy, entropy, likeness, pair_sum, product

COUNTS = {"all": 9, "same": 3, "cross": 6}  # of 3 anchors and 3 views


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_softmax(row: np.ndarray) -> np.ndarray:
    powers = np.array([math.exp(value - max(row)) for value in row])
    return powers / sum(powers)


def counts(pairs: str, p: int, v: int) -> bool:
    return {"all": True, "same": p == v, "cross": p != v}[pairs]


@pytest.mark.parametrize("pairs", ["same", "all", "cross"])
def test_glmae_check_10_cross_entropy_equals_the_slow_loop(pairs: str):
    anchor, student, centre = noise(2, 3, 5), noise(2, 3, 5, seed=1), noise(5, seed=2)
    total, count = cross_entropy(assign(anchor, centre, 0.5), student, 0.2, pairs)
    expected, terms = 0.0, 0
    for b in range(2):
        for p in range(3):
            q = slow_softmax((anchor[b, p] - centre).double().numpy() / 0.5)
            for v in range(3):
                if counts(pairs, p, v):
                    log_e = np.log(slow_softmax(student[b, v].double().numpy() / 0.2))
                    expected -= sum(q[k] * log_e[k] for k in range(5))
                    terms += 1
    assert float(count) == terms == 2 * COUNTS[pairs]
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pairs", ["same", "all", "cross"])
def test_glmae_check_10_gradient_is_the_closed_form(pairs: str):
    anchor, student = noise(2, 3, 5), noise(2, 3, 5, seed=1).requires_grad_()
    q = assign(anchor, torch.zeros(5), 0.5)
    total, count = cross_entropy(q, student, 0.2, pairs)
    (total / count).backward()
    expected = torch.zeros(2, 3, 5)
    with torch.no_grad():
        for p in range(3):
            for v in range(3):
                if counts(pairs, p, v):
                    expected[:, v] += ((student[:, v] / 0.2).softmax(-1) - q[:, p]) / 0.2 / (2 * COUNTS[pairs])
    torch.testing.assert_close(student.grad, expected, rtol=1e-4, atol=1e-6)


def test_glmae_check_10_the_least_is_the_entropy_of_the_target():
    anchor, centre = noise(4, 1, 7), noise(7, seed=2)
    q = assign(anchor, centre, 0.5)
    same = (anchor - centre) / 0.5 * 0.2  # student logits that give softmax(e / 0.2) = q
    total, _ = cross_entropy(q, same, 0.2, "all")
    torch.testing.assert_close(total, entropy(q).sum())
    for seed in range(20):
        assert cross_entropy(q, same + 0.1 * noise(4, 1, 7, seed=seed), 0.2, "all")[0] > total
    torch.testing.assert_close(entropy(torch.full((1, 1, 7), 1 / 7)), torch.full((1, 1), math.log(7)))
    assert entropy(torch.eye(7)[None]).abs().max() == 0


def test_glmae_check_10_what_is_added_to_teacher_and_centre_alike_changes_nothing():
    anchor, centre, shift = noise(2, 2, 6).double(), noise(6, seed=1).double(), 5 * noise(6, seed=2).double()
    torch.testing.assert_close(
        assign(anchor + shift, centre + shift, 0.04), assign(anchor, centre, 0.04), rtol=1e-3, atol=1e-6
    )


def test_glmae_check_10_a_single_global_view_still_has_its_own_pair():
    values = noise(3, 1, 1)
    for pairs, count in (("same", 3), ("all", 3), ("cross", 0)):
        total, counted = pair_sum(values, pairs)
        assert float(counted) == count and float(total) == pytest.approx(float(values.sum()) if count else 0, abs=1e-6)
    assert float(pair_sum(noise(3, 2, 8), "all")[1]) == 3 * 2 * 8  # every anchor with every local view


@pytest.mark.parametrize("pairs", ["same", "all", "cross"])
def test_cosine_distance_equals_the_slow_loop_and_leaves_the_anchor_alone(pairs: str):
    anchor, student = noise(2, 3, 5).requires_grad_(), noise(2, 3, 5, seed=1).requires_grad_()
    total, count = cosine_distance(anchor, student, pairs)
    expected = 0.0
    for b in range(2):
        for p in range(3):
            for v in range(3):
                a, e = anchor[b, p].detach().double().numpy(), student[b, v].detach().double().numpy()
                if counts(pairs, p, v):
                    expected += 2 - 2 * sum(a * e) / math.sqrt(sum(a * a)) / math.sqrt(sum(e * e))
    assert float(count) == 2 * COUNTS[pairs] and total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert anchor.grad is None and student.grad.abs().sum() > 0


def test_likeness_is_the_mean_cosine_between_samples():
    anchor = noise(3, 2, 4)
    total, count = likeness(anchor)
    unit = (anchor / anchor.norm(dim=-1, keepdim=True)).double().numpy()
    cosines = [
        unit[a, i] @ unit[b, j] for a in range(3) for b in range(3) if a != b for i in range(2) for j in range(2)
    ]
    assert float(count) == len(cosines) == 24
    assert float(total) == pytest.approx(sum(cosines), rel=1e-4)
    alike = torch.div(*likeness(noise(1, 1, 4).expand(3, 2, 4)))
    assert float(alike) == pytest.approx(1.0)


def test_autocast_does_not_round():
    anchor, student = noise(2, 2, 64) / 8, noise(2, 3, 64, seed=1) / 8
    exact = cross_entropy(assign(anchor, torch.zeros(64), 0.04), student, 0.1, "all")[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = cross_entropy(assign(anchor, torch.zeros(64), 0.04), student, 0.1, "all")[0]
        assert product(anchor.bfloat16(), student.mT).dtype == torch.float32
        assert (anchor @ student.mT).dtype == torch.bfloat16
    assert torch.equal(inside, exact)
