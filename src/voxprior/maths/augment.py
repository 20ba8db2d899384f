"""Augmentation of a batch on its device, image and label map together; all chance comes from keys.

What happens to a sample depends on its key alone, not on the batch around it. Voxel noise goes through a logarithm and
a cosine, so it may differ between CPU and CUDA in the last bit; everything else is drawn bit-equal.

Axes: B samples, C channels, Z Y X voxels. Label maps are uint8 with 255 where nothing is known.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from voxprior.maths import chance

UNKNOWN = 255


def _between(key_B: Tensor, stream: str, low: float, high: float, shape: tuple[int, ...] = ()) -> Tensor:
    return low + (high - low) * chance.uniform(key_B, stream, shape)


def _drawn(key_B: Tensor, stream: str, probability: float) -> tuple[Tensor, Tensor]:
    """Lists the samples to work on (b,), and tells for each whether the effect is drawn for it (b,) bool.

    On the CPU the list is the drawn ones alone, which saves work. Elsewhere it is every sample: asking which are drawn
    would make the host wait for the device, and the meta device has no answer. The result is the same.
    """
    drawn_B = chance.uniform(key_B, stream + "/gate") < probability
    if key_B.device.type != "cpu":
        return torch.arange(key_B.shape[0], device=key_B.device), drawn_B
    rows = drawn_B.nonzero()[:, 0]
    return rows, drawn_B[rows]


def _put(old_B: Tensor, rows: Tensor, drawn: Tensor, new: Tensor) -> Tensor:
    """Replaces the listed samples by `new` where the effect is drawn for them."""
    drawn = drawn.view(-1, *[1] * (new.dim() - 1))
    return old_B.index_copy(0, rows, torch.where(drawn, new, old_B[rows]))


def _intensity(
    volume_BCZYX: Tensor, key_B: Tensor, stream: str, probability: float, effect: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Applies `effect(volume, key)` to the samples it is drawn for."""
    rows, drawn = _drawn(key_B, stream, probability)
    if rows.numel() == 0:
        return volume_BCZYX
    return _put(volume_BCZYX, rows, drawn, effect(volume_BCZYX[rows], key_B[rows]))


def _per_sample(value_B: Tensor) -> Tensor:
    return value_B.view(-1, 1, 1, 1, 1)


def draw_flips(key_B: Tensor, stream: str, probability_zyx: tuple[float, float, float]) -> Tensor:
    """Draws for each sample along which of Z, Y, X it is mirrored: (B, 3) bool."""
    drawn_B3 = chance.uniform(key_B, stream, (3,))
    return torch.stack([drawn_B3[:, axis] < probability for axis, probability in enumerate(probability_zyx)], dim=1)


def flip(value_BZYX: Tensor, flipped_B3: Tensor) -> Tensor:
    """Mirrors each sample along the axes, the last three, that its row says: (B, ..., Z, Y, X), voxels or patches.

    Mirroring X swaps left and right organs. The CPU moves what is mirrored and no more; elsewhere each voxel is chosen
    from both, because asking would make the host wait for the device. The result is the same.
    """
    if value_BZYX.device.type == "cpu":
        axes_B = [[axis - 3 for axis, drawn in enumerate(row) if drawn] for row in flipped_B3.tolist()]
        return torch.stack([value.flip(axes) for value, axes in zip(value_BZYX, axes_B, strict=True)])
    for axis in range(3):
        chosen_B = flipped_B3[:, axis].reshape(-1, *[1] * (value_BZYX.ndim - 1))
        value_BZYX = torch.where(chosen_B, value_BZYX.flip(axis - 3), value_BZYX)
    return value_BZYX


def rotation(angle_B3: Tensor) -> Tensor:
    """Makes rotation matrices from angles about x, y and z in radians, applied in this order: (B, 3, 3)."""
    cos_B3, sin_B3 = angle_B3.cos(), angle_B3.sin()
    matrix_B33 = torch.eye(3, dtype=angle_B3.dtype, device=angle_B3.device).expand(angle_B3.shape[0], 3, 3)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        turn_B33 = torch.eye(3, dtype=angle_B3.dtype, device=angle_B3.device).repeat(angle_B3.shape[0], 1, 1)
        turn_B33[:, i, i] = turn_B33[:, j, j] = cos_B3[:, axis]
        turn_B33[:, i, j], turn_B33[:, j, i] = -sin_B3[:, axis], sin_B3[:, axis]
        matrix_B33 = turn_B33 @ matrix_B33
    return matrix_B33


def warp(volume_BCZYX: Tensor, labels_BZYX: Tensor, matrix_B33: Tensor, spacing_mm_B3: Tensor) -> tuple[Tensor, Tensor]:
    """Resamples image (linear) and labels (nearest) through one linear map about the crop's centre.

    Args:
        volume_BCZYX: float32.
        labels_BZYX: uint8.
        matrix_B33: x y z in mm of the result -> x y z in mm of the input, both from the centre.
        spacing_mm_B3: Z Y X; a rotation in voxels would shear where voxels are not cubes.

    Returns:
        The same shapes. What comes from beyond the crop is 0 in the image and unknown (255) in the labels.
    """
    # x y z, as grid_sample counts. Sides stay Python numbers: a copy of them would make the host wait for the device.
    half_mm_B3 = torch.stack([0.5 * spacing_mm_B3[:, axis] * volume_BCZYX.shape[2 + axis] for axis in (2, 1, 0)], dim=1)
    theta_B33 = matrix_B33 * half_mm_B3[:, None, :] / half_mm_B3[:, :, None]
    grid = F.affine_grid(F.pad(theta_B33, (0, 1)), list(volume_BCZYX.shape), align_corners=False)
    image = F.grid_sample(volume_BCZYX, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Labels move up by one, so that the zeros from beyond the crop become -1, which is 255 as uint8.
    shifted = labels_BZYX[:, None].float() + 1.0
    moved = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return image, (moved[:, 0].to(torch.int16) - 1).to(torch.uint8)


def affine(
    volume_BCZYX: Tensor,
    labels_BZYX: Tensor,
    key_B: Tensor,
    spacing_mm_B3: Tensor,
    probability: float,
    turn_degrees: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Rotates by up to `turn_degrees` about each axis and scales by 1/scale to scale, log-uniform."""
    rows, drawn = _drawn(key_B, "augment/affine", probability)
    if rows.numel() == 0:
        return volume_BCZYX, labels_BZYX
    key, turn, stretch = key_B[rows], math.radians(turn_degrees), math.log(scale)
    matrix = rotation(_between(key, "augment/turn", -turn, turn, (3,)))
    matrix = matrix * _between(key, "augment/scale", -stretch, stretch).exp()[:, None, None]
    image, label = warp(volume_BCZYX[rows], labels_BZYX[rows], matrix, spacing_mm_B3[rows])
    return _put(volume_BCZYX, rows, drawn, image), _put(labels_BZYX, rows, drawn, label)


def contrast(volume_BCZYX: Tensor, key_B: Tensor, probability: float, slope: float, shift: float) -> Tensor:
    """Changes contrast about the sample's mean by a factor in 1 -+ `slope`, and brightness by up to `shift`."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        mean = volume.mean(dim=(1, 2, 3, 4), keepdim=True)
        factor = 1.0 + _per_sample(_between(key, "augment/slope", -slope, slope))
        return (volume - mean) * factor + (mean + _per_sample(_between(key, "augment/shift", -shift, shift)))

    return _intensity(volume_BCZYX, key_B, "augment/contrast", probability, effect)


def gamma(volume_BCZYX: Tensor, key_B: Tensor, probability: float, strength: float) -> Tensor:
    """Raises intensities, clamped to [0, 1], to a power between exp(-strength) and exp(strength)."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        return volume.clamp(0.0, 1.0).pow(_per_sample(_between(key, "augment/power", -strength, strength).exp()))

    return _intensity(volume_BCZYX, key_B, "augment/gamma", probability, effect)


def noise(volume_BCZYX: Tensor, key_B: Tensor, probability: float, deviation: float) -> Tensor:
    """Adds Gaussian noise whose standard deviation is drawn from 0 to `deviation`."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        size = _per_sample(_between(key, "augment/noise/size", 0.0, deviation))
        return volume + size * chance.normal(key, "augment/noise", tuple(volume.shape[1:]))

    return _intensity(volume_BCZYX, key_B, "augment/noise", probability, effect)
