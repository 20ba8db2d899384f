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
    if value.dim() != 5:
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


def receptive_offset(
    network: nn.Module,
    encode: Callable[[Tensor], Tensor],
    stride: int,
    cells: int = 13,
    across: int = 2,
    probes: int = 2,
) -> tuple[float, float, float]:
    """Measures d along Z, Y, X: where the gradient of a central cell has its centre, less the cell's number times S.

    Volumes of noise, long along one axis, are encoded; the middle cell, its channels added with random signs, is
    differentiated; d is the centroid of the gradient's absolute values, over all probes. Deterministic: the noise is
    counted. An odd number of cells, so that what looks everywhere (attention) looks around the middle.

    Args:
        network: whose norms are held constant; what `encode` computes with.
        encode: (1, 1, Z, Y, X) -> (1, z, y, x, C).
        stride: S, voxels per cell.
        cells: length of the volumes along the axis measured; odd, and longer than the receptive field.
        across: length along the two others.
        probes: volumes per axis.
    """
    device = next(network.parameters()).device
    found = []
    with torch.enable_grad(), _fixed_statistics(network):
        for axis in range(3):
            shape = [1, 1, *(stride * (cells if other == axis else across) for other in range(3))]
            weight_K = torch.zeros(shape[2 + axis], dtype=torch.float64, device=device)
            for probe in range(probes):
                key_B = chance.keys(0, probe, torch.zeros(1, dtype=torch.int64, device=device))
                volume = chance.uniform(key_B, "receptive/noise", tuple(shape[1:])).requires_grad_()
                map_BzyxC = encode(volume)
                middle = [size // 2 for size in map_BzyxC.shape[1:4]]
                sign_C = chance.uniform(key_B, "receptive/sign", (map_BzyxC.shape[-1],))[0].sub(0.5).sign()
                cell_C = map_BzyxC[0, middle[0], middle[1], middle[2]]
                (gradient,) = torch.autograd.grad((cell_C * sign_C).sum(), volume)
                other_axes = tuple(other for other in range(3) if other != axis)
                weight_K += gradient[0, 0].double().abs().sum(other_axes)
            place_K = torch.arange(len(weight_K), dtype=torch.float64, device=device)
            centre = (weight_K * place_K).sum() / weight_K.sum()
            found.append(float(centre) - (cells // 2) * stride)
    z, y, x = found
    return z, y, x
