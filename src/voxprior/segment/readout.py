"""From a network's logits to labels and probabilities: one class a voxel, or classes that overlap.

Logits may be sums over windows: neither the largest nor the sign changes when they are divided by the weights.

Axes: C channels, one per class, the first for background where classes exclude one another; Z Y X voxels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from voxprior.errors import Refusal


class Readout(NamedTuple):
    """`labels`: (C, Z, Y, X) float32 -> (Z, Y, X) uint8 on the CPU; `shares`: mean logits -> probabilities."""

    labels: Callable[[Tensor], Tensor]
    shares: Callable[[Tensor], Tensor]


def argmax(logits_CZYX: Tensor) -> Tensor:
    """Takes the class with the largest value, the first of equals: (Z, Y, X) uint8, on the CPU.

    Args:
        logits_CZYX: float32; on the CPU with a last axis that lies in memory in order.

    Raises:
        Refusal: a value is not finite.
    """
    if logits_CZYX.is_cuda:
        best, label = logits_CZYX.max(dim=0)
        label, finite = label.to(torch.uint8).cpu(), bool(torch.isfinite(best).all())
    else:
        from voxprior.maths import tiles

        label = torch.empty(logits_CZYX.shape[1:], dtype=torch.uint8)
        memory = logits_CZYX.as_strided((logits_CZYX.untyped_storage().nbytes() // 4,), (1,), 0).numpy()
        where, shape = int(logits_CZYX.storage_offset()), np.array(logits_CZYX.shape)
        finite = tiles.pick_labels(memory, where, np.array(logits_CZYX.stride()), shape, label.numpy())
    if not finite:
        raise _not_finite()
    return label


def paint(logits_KZYX: Tensor) -> Tensor:
    """Paints class 1, 2, ... wherever its logit is above 0, a later one over an earlier: (Z, Y, X) uint8, on the CPU.

    Source: nnU-Net, "Region-based training" (`regions_class_order`).

    Raises:
        Refusal: a value is not finite.
    """
    label_ZYX = torch.zeros(logits_KZYX.shape[1:], dtype=torch.uint8, device=logits_KZYX.device)
    finite = torch.ones((), dtype=torch.bool, device=logits_KZYX.device)
    for number, logits_ZYX in enumerate(logits_KZYX, 1):  # one by one: no more memory than a slice of one class
        label_ZYX.masked_fill_(logits_ZYX > 0, number)
        finite &= torch.isfinite(logits_ZYX).all()
    if not bool(finite):
        raise _not_finite()
    return label_ZYX.cpu()


def _not_finite() -> Refusal:
    return Refusal("the network's output is not finite: train the model again with a lower learning rate")


def _softmax(logits_CZYX: Tensor) -> Tensor:
    return torch.softmax(logits_CZYX, dim=0)


CLASSES = Readout(argmax, _softmax)
REGIONS = Readout(paint, torch.sigmoid)


def readout_of(regions: object) -> Readout:
    """Says how a model is read whose card has these `regions`; empty: its classes exclude one another."""
    return REGIONS if regions else CLASSES
