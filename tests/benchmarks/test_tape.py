"""What is noted of a step: operations, bytes, kernels of lists, memory alive."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
META = torch.device("meta")


@pytest.fixture
def tape(monkeypatch):
    """Imports the module as the scripts do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tape

    return tape


def noted(tape, work):
    made = tape.Tape()
    with made:
        work()
    return made


@pytest.mark.parametrize("way", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_convolution_counts_the_same_with_and_without_gradients(tape, way):
    conv, volume = torch.nn.Conv3d(2, 4, 3, padding=1, device=META), torch.ones(1, 2, 8, 8, 8, device=META)
    with way():
        operations = noted(tape, lambda: conv(volume)).operations
    assert sum(operation.flops for operation in operations) == 2 * 27 * 2 * 4 * 8**3
    assert [operation.kind for operation in operations] == ["product"]


def test_a_norm_is_its_statistics_and_what_is_made_with_them(tape):
    first, second = noted(
        tape, lambda: torch.nn.functional.layer_norm(torch.ones(10, 64, device=META), (64,))
    ).operations[-2:]
    assert (first.kind, first.reduced, second.kind, second.again) == ("reduction", 64, "pointwise", True)
    assert set(first.writes) <= set(second.reads)


def test_what_the_host_does_by_itself_is_not_noted(tape):
    assert noted(tape, lambda: torch.ones(3) + 1).operations == []


def test_putting_values_into_places_moves_them_alone_and_adding_them_to_axes_apart_the_whole_tensor_too(tape):
    at, volume = torch.zeros(5, dtype=torch.int64, device=META), torch.zeros(2, 3, 100, device=META)
    *_, put = noted(tape, lambda: volume.index_put_((at,), torch.ones(5, 3, 100, device=META))).operations
    assert sum(put.writes.values()) == 4 * 1500
    assert sum(put.reads.values()) == 4 * 1500 + 8 * 5
    given = torch.ones(5, 3, device=META)
    put_ = torch.ops.aten.index_put_
    *_, added = noted(tape, lambda: put_(volume, [at, None, at], given, True)).operations
    assert sum(added.writes.values()) == 4 * (15 + 2 * 600)


def test_the_fullest_moment_counts_what_is_alive_and_not_what_was_let_go(tape):
    def work():
        a = torch.ones(1000, device=META)
        b = a * 2
        del a
        c = b + 1
        del b
        return c * 3

    made = tape.Tape()
    held = torch.ones(500, device=META)
    made.hold([held, held.view(5, 100)])
    with made:
        work()
    assert made.peak_bytes == 4 * (500 + 2000)


def test_an_operation_on_lists_is_launched_for_their_chunks_and_their_number(tape):
    few, many = [torch.ones(65536 * 321, device=META)], [torch.ones(1, device=META) for _ in range(111)]
    assert tape.launches_of("_foreach_mul_", [few]) == 2
    assert tape.launches_of("_foreach_mul_", [many]) == 2
    assert tape.launches_of("_foreach_add_", [many, many]) == 2
    assert tape.launches_of("_foreach_add_", [many, many, many]) == 3
    assert tape.launches_of("cat", [many]) == 1
