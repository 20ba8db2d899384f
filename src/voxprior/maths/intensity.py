"""Intensity changes of the contrastive methods, batched on the device; all chance comes from keys.

What every augmentation needs stands here too: an effect for some samples (`sometimes`), a matrix along an axis
(`along`), a blur (`gaussian`).

Every effect works about fixed numbers of the intensity window, never about the crop's own: two views of one place,
of which one holds air and the other does not, would otherwise show the same tissue differently for that reason alone.

What happens to a sample depends on its key alone. The noise goes through a logarithm and a cosine, so it may differ
between CPU and CUDA in the last bit; everything else is drawn bit-equal.

Axes: B samples (here: views), C channels, Z Y X voxels, O I voxels along one axis. Intensities are in [0, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from voxprior.maths import chance


def _between(key_B: Tensor, stream: str, limits: tuple[float, float]) -> Tensor:
    """Draws one number per sample, shaped to scale volumes: (B, 1, 1, 1, 1)."""
    return (limits[0] + (limits[1] - limits[0]) * chance.uniform(key_B, stream)).view(-1, 1, 1, 1, 1)


def drawn_alone(key_B: Tensor) -> bool:
    """Tells whether to work on the samples that an effect is drawn for, and on no others.

    So on the CPU. Elsewhere asking which they are would make the host wait, and a compiler must not ask.
    """
    return key_B.device.type == "cpu" and not torch.compiler.is_compiling()


def sometimes(
    volume_BCZYX: Tensor, key_B: Tensor, stream: str, probability: float, effect: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Applies `effect(volume, key)` to the samples it is drawn for; the others stay bit for bit."""
    if probability == 0:
        return volume_BCZYX
    drawn_B = chance.uniform(key_B, stream + "/gate") < probability
    if drawn_alone(key_B):
        rows = drawn_B.nonzero()[:, 0]
        return volume_BCZYX.index_copy(0, rows, effect(volume_BCZYX[rows], key_B[rows])) if len(rows) else volume_BCZYX
    return torch.where(drawn_B.view(-1, 1, 1, 1, 1), effect(volume_BCZYX, key_B), volume_BCZYX)


def noise(volume_BCZYX: Tensor, key_B: Tensor, probability: float, variance: float) -> Tensor:
    """Adds Gaussian noise whose variance is drawn from 0 to `variance`."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        size = _between(key, "intensity/noise/variance", (0.0, variance)).sqrt()
        return volume + size * chance.normal(key, "intensity/noise", tuple(volume.shape[1:]))

    return sometimes(volume_BCZYX, key_B, "intensity/noise", probability, effect)


def along(volume_BCZYX: Tensor, matrix_BOI: Tensor, axis: int) -> Tensor:
    """Multiplies one of the axes Z Y X by a matrix for each sample."""
    name = "zyx"[axis]
    return torch.einsum(f"bo{name},bczyx->bc{'zyx'.replace(name, 'o')}", matrix_BOI, volume_BCZYX)


def gaussian(volume_BCZYX: Tensor, sigma_B3: Tensor) -> Tensor:
    """Blurs by Gaussians of the given sigmas, Z Y X in voxels; near a face, the voxels that exist count alone."""
    for axis, size in enumerate(volume_BCZYX.shape[2:]):
        voxel = torch.arange(size, device=sigma_B3.device)
        apart_OI = (voxel[:, None] - voxel).float()
        weight_BOI = torch.exp(-0.5 * (apart_OI / sigma_B3[:, axis, None, None]).square())
        volume_BCZYX = along(volume_BCZYX, weight_BOI / weight_BOI.sum(-1, keepdim=True), axis)
    return volume_BCZYX


def blur(volume_BCZYX: Tensor, key_B: Tensor, probability: float, sigma_vox: tuple[float, float]) -> Tensor:
    """Blurs by a Gaussian whose sigma is drawn between two numbers of voxels."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        return gaussian(volume, _between(key, "intensity/sigma", sigma_vox).view(-1, 1).expand(-1, 3))

    return sometimes(volume_BCZYX, key_B, "intensity/blur", probability, effect)


def brightness(
    volume_BCZYX: Tensor, key_B: Tensor, probability: float, factor: tuple[float, float], zero: float
) -> Tensor:
    """Multiplies the distance from `zero` by a factor drawn between two numbers and clips to [0, 1].

    `zero` is the intensity that standardised data have at 0, their mean.
    """

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        return (zero + (volume - zero) * _between(key, "intensity/factor", factor)).clamp(0.0, 1.0)

    return sometimes(volume_BCZYX, key_B, "intensity/brightness", probability, effect)


def gamma(volume_BCZYX: Tensor, key_B: Tensor, probability: float, power: tuple[float, float]) -> Tensor:
    """Raises intensities, clipped to [0, 1], to a power drawn between two numbers."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        return volume.clamp(0.0, 1.0).pow(_between(key, "intensity/power", power))

    return sometimes(volume_BCZYX, key_B, "intensity/gamma", probability, effect)
