"""Which operations become one kernel, by hand."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
META = torch.device("meta")
N = 100_000


@pytest.fixture
def joined(monkeypatch):
    """Notes a program and joins its operations."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fusing
    import tape

    def work(program, compiled=True):
        made = tape.Tape()
        with made:
            kept = program()
        groups = fusing.kernels(made.operations, compiled)
        del kept
        return [group.bytes for group in groups]

    return work


def test_a_value_that_is_used_twice_is_made_again_and_not_written(joined):
    a, b = torch.ones(N, device=META), torch.ones(N, device=META)

    def program():
        c = a * b
        return c - c.sum()

    # c is summed from a and b, and made of them once more where the sum is taken from it.
    assert joined(program) == [4 * (2 * N + 1), 4 * (2 * N + 1 + N)]
    assert joined(program, compiled=False) == [4 * 3 * N, 4 * (N + 1), 4 * (2 * N + 1)]


def test_statistics_over_few_values_and_their_use_are_one_kernel_and_over_many_two(joined):
    rows, row = torch.ones(N // 1000, 1000, device=META), torch.ones(1, N, device=META)
    norm = torch.nn.functional.layer_norm
    assert len(joined(lambda: norm(rows, (1000,)))) == 1
    assert len(joined(lambda: norm(row, (N,)))) == 2
    assert len(joined(lambda: norm(rows, (1000,)), compiled=False)) == 1
    assert len(joined(lambda: norm(row, (N,)), compiled=False)) == 2


def test_what_a_product_reads_is_written_first(joined):
    a, b = torch.ones(64, 64, device=META), torch.ones(64, 64, device=META)
    assert joined(lambda: (a * 2).exp() @ b) == [4 * 2 * 64**2, 4 * 3 * 64**2]


def test_kernels_that_read_the_same_run_as_one(joined):
    a = torch.ones(N, device=META)
    assert joined(lambda: (a * 2, a + 1)) == [4 * 3 * N]
    assert len(joined(lambda: (a * 2, torch.ones(N, device=META) + 1))) == 2


def test_a_value_of_many_others_is_written_before_it_is_used_again(joined):
    parts = [torch.ones(N, device=META) for _ in range(6)]

    def program():
        total = sum(parts[1:], parts[0])
        return total * 2, total.sum(), total @ parts[0]

    sizes = joined(program)
    assert sum(sizes) < 4 * N * (6 + 1 + 1 + 2 + 1)
    assert sizes[0] >= 4 * N * 7


def test_what_only_its_own_kernel_reads_is_not_written(joined):
    parts = [torch.ones(N, device=META) for _ in range(6)]

    def program():
        total = sum(parts[1:], parts[0])
        return total * 2, total + 1

    assert joined(program) == [4 * N * (6 + 2)]
