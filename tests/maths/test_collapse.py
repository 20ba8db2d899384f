"""Collapse: known spectra and slow loops."""

import numpy as np
import pytest
import torch

from voxprior.maths.collapse import effective_rank, relative_deviation


def test_vectors_of_all_directions_deviate_by_1_and_equal_ones_by_0():
    vectors = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert float(relative_deviation(vectors)) == pytest.approx(1.0, abs=0.02)
    assert float(relative_deviation(vectors[:1].expand(50, -1))) == pytest.approx(0.0, abs=1e-6)
    assert float(relative_deviation(7 * vectors)) == pytest.approx(float(relative_deviation(vectors)), rel=1e-5)


@pytest.mark.parametrize("rows", [12, 400])
def test_the_rank_is_the_participation_ratio_of_the_eigenvalues(rows):
    vectors = torch.randn(rows, 20, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 2, 20)
    unit = vectors.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(np.cov(unit.T))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert float(effective_rank(vectors)) == pytest.approx(expected, rel=1e-4)
    assert expected < min(rows - 1, 20)


def test_the_rank_counts_directions():
    axes = torch.cat([torch.eye(8)[:4], -torch.eye(8)[:4]])
    assert float(effective_rank(axes)) == pytest.approx(4.0, rel=1e-5)
    assert float(effective_rank(torch.ones(6, 8))) == pytest.approx(0.0, abs=1e-6)
