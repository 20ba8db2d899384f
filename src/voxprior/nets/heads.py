"""Projector and predictor: what stands between an encoder's features and a loss on vectors; discarded afterwards.

A 1x1x1 convolution is a matrix product over the channels of every cell, and is written so, channels last: the same
head takes a map (B, z, y, x, C) and a pooled vector (B, 1, 1, 1, C).

Axes: B samples, z y x cells, C channels, R rows (cells of all samples).
"""

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from voxprior.errors import Refusal

Norm = Literal["batch", "layer"]


class _SumOverProcesses(torch.autograd.Function):
    """Adds a tensor over all processes; so is its gradient, because the processes' losses are added as well."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(value: Tensor) -> Tensor:
    """Adds a tensor over all processes, with a gradient; the tensor itself where there is one process."""
    return _SumOverProcesses.apply(value) if dist.is_initialized() else value


class BatchStatistics(nn.Module):
    """Normalises each channel by mean and biased variance over the rows of all processes, in float32.

    It never runs on single scans, so it keeps no running statistics. Called once per view: each view has its own.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, value_RC: Tensor) -> Tensor:
        """Returns the normalised rows.

        Raises:
            Refusal: there is one row, whose deviation from itself is 0 whatever it holds.
        """
        processes = dist.get_world_size() if dist.is_initialized() else 1
        if len(value_RC) * processes < 2:
            raise Refusal("a batch of one vector has no batch statistics: set head_norm to layer, or a larger batch")
        row_RC = value_RC.float()
        # Ranks may hold different numbers of rows, so the count is added up too.
        count = sum_over_processes(row_RC.new_full((), float(len(row_RC))))
        centred_RC = row_RC - sum_over_processes(row_RC.sum(0)) / count
        variance_C = sum_over_processes(centred_RC.square().sum(0)) / count
        return centred_RC * (variance_C + self.eps).rsqrt() * self.weight + self.bias


class LayerStatistics(nn.LayerNorm):
    """Normalises each row by its own mean and variance, in float32: no sample knows another."""

    def forward(self, value_RC: Tensor) -> Tensor:
        """Returns the normalised rows."""
        return F.layer_norm(value_RC.float(), self.normalized_shape, self.weight, self.bias, self.eps)


class Head(nn.Module):
    """Two matrix products over the channels with a norm and a ReLU between them: (..., C) -> (..., outputs)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.widen = nn.Linear(inputs, hidden, bias=False)  # the norm has a bias
        self.norm: nn.Module = BatchStatistics(hidden) if norm == "batch" else LayerStatistics(hidden)
        self.narrow = nn.Linear(hidden, outputs)

    def forward(self, value: Tensor) -> Tensor:
        """Returns one vector per cell."""
        row_RC = self.norm(self.widen(value.flatten(0, -2)))
        return self.narrow(F.relu(row_RC)).unflatten(0, value.shape[:-1])
