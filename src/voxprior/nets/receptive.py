"""Where in its input a cell of a feature map looks: the receptive-field offset, measured on the network as it is.

A cell j of a map with total stride S looks at input voxels around j S + d. Pooling, patches and kernels as wide as
their stride have d = (S - 1) / 2, the middle of the cell; stacks of padded 3x3x3 convolutions with stride 2 have d = 0.
Whoever takes the middle for granted misplaces their features by (S - 1) / 2 voxels, and mirrored ones by as much the
other way.

Axes: B samples, Z Y X voxels, z y x cells, C channels, K voxels along the axis that is measured.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from voxprior.maths import chance


def _fix_statistics(norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Passes the gradient as if the norm's statistics were constants.

    Per sample and channel such a norm is y = s x + t; s is what y's deviations are to x's. Through its statistics every
    output depends on every voxel, evenly: that is no place, and would draw each centre to the middle of the volume.
    """
    value = inputs[0]
    if value.dim() != 5 or isinstance(norm, nn.LayerNorm):
        return None  # a norm over channels, cell by cell, knows no other place
    with torch.no_grad():
        zyx = (2, 3, 4)
        apart = value - value.mean(zyx, keepdim=True)
        slope = (apart * output).sum(zyx, keepdim=True) / apart.square().sum(zyx, keepdim=True).clamp(min=1e-12)
    return output.detach() + slope * (value - value.detach())


@contextmanager
def _fixed_statistics(network: nn.Module) -> Iterator[None]:
    norms = [part for part in network.modules() if "Norm" in type(part).__name__]
    hooks = [norm.register_forward_hook(_fix_statistics) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def axis_offset(
    network: nn.Module,
    encode: Callable[[Tensor], Tensor],
    stride: int,
    axis: int,
    cells: int = 13,
    across: int = 2,
    probes: int = 2,
    channels: int = 1,
) -> float:
    """Measures d along one axis: the centre of a middle cell's gradient, less the cell's number times S, in voxels.

    Volumes of noise, long along the axis, are encoded; the middle cell, its channels added with random signs, is
    differentiated; d is the centroid of the gradient's absolute values, over all probes. Deterministic: the noise is
    counted.

    Args:
        network: whose norms are held constant; what `encode` computes with.
        encode: (1, channels, Z, Y, X) -> (1, z, y, x, C).
        stride: S, voxels per cell.
        axis: 0, 1, 2 for Z, Y, X.
        cells: length of the volumes along the axis, longer than the receptive field.
        across: length along the two others. Convolutions padded with zeros lose weight beside short sides and pools do
            not, so where both lead to a cell, d depends on it a little.
        probes: number of volumes.
        channels: of a volume.
    """
    device = next(network.parameters()).device
    shape = [channels, *(stride * (cells if other == axis else across) for other in range(3))]
    other_axes = tuple(other for other in range(3) if other != axis)
    weight_K = torch.zeros(shape[1 + axis], dtype=torch.float64, device=device)
    with torch.enable_grad(), _fixed_statistics(network):
        for probe in range(probes):
            key_B = chance.keys(0, probe, torch.zeros(1, dtype=torch.int64, device=device))
            volume = chance.uniform(key_B, "receptive/noise", tuple(shape)).requires_grad_()
            map_zyxC = encode(volume)[0]
            z, y, x = (size // 2 for size in map_zyxC.shape[:3])
            sign_C = chance.uniform(key_B, "receptive/sign", (map_zyxC.shape[-1],))[0].sub(0.5).sign()
            (gradient,) = torch.autograd.grad((map_zyxC[z, y, x] * sign_C).sum(), volume)
            weight_K += gradient[0].double().abs().sum((0, *(1 + other for other in other_axes)))
    place_K = torch.arange(len(weight_K), dtype=torch.float64, device=device)
    return float((weight_K * place_K).sum() / weight_K.sum()) - (cells // 2) * stride


def receptive_offset(
    network: nn.Module, encode: Callable[[Tensor], Tensor], stride: int, alone: bool = False, channels: int = 1
) -> tuple[float, float, float]:
    """Measures d along Z, Y, X in voxels, see `axis_offset`.

    `alone`: of volumes of a single cell. Attention reaches every token from every token, by content and with weights
    that differ from place to place; a token stands for what it sees of its own patch.
    """
    sizes = {"cells": 1, "across": 1} if alone else {}
    z, y, x = (axis_offset(network, encode, stride, axis, channels=channels, **sizes) for axis in range(3))
    return z, y, x
