"""Batch statistics over all processes, differentiable; torch's synchronised batch norm runs on GPUs alone.

Axes: B samples, Z Y X voxels or cells, C channels, R rows (cells of all samples).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from voxprior.errors import Refusal


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


@torch.no_grad()
def of_all_processes(value_RC: Tensor) -> Tensor:
    """Lists the rows of all processes, which must have equally many, without a gradient."""
    if not dist.is_initialized():
        return value_RC.detach()
    rows_RC = value_RC.new_empty(len(value_RC) * dist.get_world_size(), value_RC.shape[1])
    dist.all_gather_into_tensor(rows_RC, value_RC.detach().contiguous())
    return rows_RC


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


class MapStatistics(BatchStatistics):
    """Normalises each channel of a map by its mean and variance over all samples, places and processes, in float32."""

    def forward(self, map_BCZYX: Tensor) -> Tensor:
        """Returns the normalised map."""
        last_BZYXC = map_BCZYX.movedim(1, -1)
        return super().forward(last_BZYXC.flatten(0, -2)).unflatten(0, last_BZYXC.shape[:-1]).movedim(-1, 1)
