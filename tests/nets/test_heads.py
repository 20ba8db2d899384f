"""Heads: statistics, one process or two, and what they equal."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from voxprior.errors import Refusal
from voxprior.nets.batchnorm import BatchStatistics
from voxprior.nets.heads import Head


def head(norm: str, seed: int = 0) -> Head:
    torch.manual_seed(seed)
    made = Head(5, 12, 4, norm)
    with torch.no_grad():
        made.norm.weight.uniform_(0.5, 2)
        made.norm.bias.uniform_(-1, 1)
    return made


def test_a_head_is_1x1x1_convolution_norm_relu_and_1x1x1_convolution():
    made, value = head("batch"), torch.randn(2, 3, 2, 4, 5)
    there = nn.Sequential(nn.Conv3d(5, 12, 1, bias=False), nn.BatchNorm3d(12), nn.ReLU(), nn.Conv3d(12, 4, 1)).train()
    with torch.no_grad():
        there[0].weight.copy_(made.widen.weight[..., None, None, None])
        there[1].weight.copy_(made.norm.weight)
        there[1].bias.copy_(made.norm.bias)
        there[3].weight.copy_(made.narrow.weight[..., None, None, None])
        there[3].bias.copy_(made.narrow.bias)
    expected = there(value.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(made(value), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_norm_equals_a_slow_loop(norm):
    made, row = head(norm).norm, torch.randn(7, 12)
    value = row.double().numpy()
    expected = np.zeros_like(value)
    for r, c in np.ndindex(7, 12):
        over = value[:, c] if norm == "batch" else value[r]
        mean = sum(over) / len(over)
        variance = sum((v - mean) ** 2 for v in over) / len(over)
        expected[r, c] = (value[r, c] - mean) / np.sqrt(variance + 1e-5)
    expected = expected * made.weight.detach().numpy() + made.bias.detach().numpy()
    np.testing.assert_allclose(made(row).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_layer_statistics_know_no_other_sample_and_batch_statistics_do():
    value = torch.randn(4, 1, 1, 1, 5)
    for norm, same in (("layer", True), ("batch", False)):
        made = head(norm)
        assert torch.allclose(made(value)[:2], made(value[:2]), atol=1e-6) == same


def test_a_batch_of_one_vector_has_no_batch_statistics():
    with pytest.raises(Refusal, match="batch of one"):
        head("batch")(torch.randn(1, 1, 1, 1, 5))
    assert head("layer")(torch.randn(1, 1, 1, 1, 5)).isfinite().all()


def test_norms_are_float32_under_autocast():
    for norm in ("batch", "layer"):
        made = head(norm)
        seen = []
        made.norm.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            made(torch.randn(3, 2, 2, 2, 5))
        assert seen == [torch.float32]


def _loss(made: Head, value: torch.Tensor) -> torch.Tensor:
    return (made(value) - 0.3).pow(3).sum()


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    made, value = head("batch"), torch.load(f"{folder}/value.pt", weights_only=True)
    mine = value[slice(0, 1) if rank == 0 else slice(1, 3)].requires_grad_()
    loss = _loss(made, mine)
    loss.backward()
    gradients = {name: p.grad for name, p in made.named_parameters()}
    for total in [loss.detach_(), *gradients.values()]:
        dist.all_reduce(total)
    torch.save((loss, gradients, mine.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_batches_give_one_process_loss_and_gradient(tmp_path: Path):
    value = torch.randn(3, 2, 2, 2, 5, generator=torch.Generator().manual_seed(1))
    torch.save(value, tmp_path / "value.pt")
    torch.multiprocessing.start_processes(_one_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    made, whole = head("batch"), value.clone().requires_grad_()
    loss = _loss(made, whole)
    loss.backward()
    gradient = []
    for rank in (0, 1):
        their_loss, their_gradients, mine = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(their_loss, loss.detach(), rtol=1e-5, atol=1e-5)
        for name, parameter in made.named_parameters():
            torch.testing.assert_close(their_gradients[name], parameter.grad, rtol=1e-5, atol=1e-4)
        gradient.append(mine)
    torch.testing.assert_close(torch.cat(gradient), whole.grad, rtol=1e-5, atol=1e-5)
    assert isinstance(made.norm, BatchStatistics)
