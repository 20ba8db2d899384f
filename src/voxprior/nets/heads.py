"""Projector and predictor: what stands between an encoder's features and a loss on vectors; discarded afterwards.

A 1x1x1 convolution is a matrix product over the channels of every cell, and is written so, channels last: the same
head takes a map (B, z, y, x, C) and a pooled vector (B, 1, 1, 1, C).

Axes: B samples, z y x cells, C channels, R rows (cells of all samples).
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from voxprior.nets.batchnorm import BatchStatistics

Norm = Literal["batch", "layer"]


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
