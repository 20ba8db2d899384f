"""Bytes and kernels of small programs, by hand."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
META = torch.device("meta")


@pytest.fixture
def roofline(monkeypatch):
    """Imports the module as the script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import roofline

    return roofline


def noted(roofline, work):
    tape = roofline.Tape()
    with tape:
        kept = work()
    return tape.operations, kept


def total(roofline, operations, compiled):
    gpu = {"bf16": 1e12, "tf32": 1e12, "fp32": 1e12, "bytes_per_second": 1e12}
    return roofline.add_up(operations, roofline.kernels(operations, compiled), gpu)


def test_element_wise_operations_become_one_kernel_that_reads_and_writes_once(roofline):
    a, b = torch.ones(1000, device=META), torch.ones(1000, device=META)
    operations, _ = noted(roofline, lambda: ((a * b) + a).exp())
    eager, compiled = total(roofline, operations, False), total(roofline, operations, True)
    assert (eager.kernels, eager.bytes) == (3, 4000 * (3 + 3 + 2))
    assert (compiled.kernels, compiled.bytes) == (1, 4000 * 3)


def test_a_matrix_product_is_a_kernel_of_its_own_with_its_flops(roofline):
    a, b = torch.ones(64, 32, device=META), torch.ones(32, 16, device=META)
    operations, _ = noted(roofline, lambda: (a * 2) @ b + 1)
    compiled = total(roofline, operations, True)
    assert compiled.kernels == 3
    assert sum(operation.flops for operation in operations) == 2 * 64 * 32 * 16
    assert compiled.bytes == 4 * (2 * 64 * 32 + 64 * 32 + 32 * 16 + 64 * 16 + 2 * 64 * 16)


def test_looking_at_a_tensor_in_another_way_costs_nothing_and_a_repeated_one_is_read_once(roofline):
    a, b = torch.ones(10, 10, device=META), torch.ones(1, 10, device=META)
    operations, _ = noted(roofline, lambda: a.T.reshape(10, 10)[:5] + b.expand(5, 10))
    assert [operation.name for operation in operations] == ["add"]
    assert total(roofline, operations, False).bytes == 4 * (50 + 10 + 50)


def test_what_a_long_reduction_gives_is_used_in_a_kernel_of_its_own(roofline):
    a = torch.ones(100_000, device=META)
    operations, _ = noted(roofline, lambda: a * 2 / (a * 2).sum())
    assert total(roofline, operations, True).kernels > 1


def test_memory_says_how_many_samples_fit(roofline):
    gpu = {"memory_bytes": 100.0}
    assert roofline.fits({2: 30.0, 4: 50.0}, gpu) == 8  # 10 and 10 a sample, of 90


def test_a_host_that_waits_launches_nothing_meanwhile(roofline):
    spans = [(3.0, 1, False), (3.0, 1, False), (3.0, 1, False)]
    assert roofline.clock(spans, 1.0) == 10.0  # launched behind the first one
    assert roofline.clock([(3.0, 1, True)] * 3, 1.0) == 12.0
    assert roofline.clock([(0.5, 2, False)] * 3, 1.0) == 6.5  # the device waits for the host


def test_kernels_are_called_after_what_they_do(roofline):
    a, norm = torch.ones(4, 64, device=META), torch.nn.functional.layer_norm
    operations, _ = noted(roofline, lambda: torch.nn.functional.gelu(norm(a, (64,)) @ torch.ones(64, 8, device=META)))
    found = [roofline.kind_of(operations, group) for group in roofline.kernels(operations, True)]
    assert [kind for kind in found if kind != "other"] == ["norms", "matrix products", "GELU"]
