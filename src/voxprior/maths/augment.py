"""Augmentation of a batch on its device, image and label map together; all chance comes from keys.

The effects are those of nnU-Net v2: rotation, scale, elastic bending, mirroring, noise, blur, brightness, contrast, low
resolution, gamma. What happens to a sample depends on its key alone, not on the batch around it. On the CPU the spatial
part and the noise run in compiled loops (`kernels`), elsewhere, and where torch compiles, in array operations: the same
keys give the same result up to rounding (a test), and everything but the noise is drawn bit-equal.

Source: Isensee et al., "nnU-Net", Nature Methods 2021, supplementary note 2; version 2's numbers where they differ.

Axes: B samples, C channels, Z Y X voxels, I O voxels along one axis, N all voxels, K nodes along one axis. Label maps
are uint8 with 255 where nothing is known.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from voxprior.maths import chance
from voxprior.maths.intensity import along, drawn_alone, gaussian, sometimes

UNKNOWN = 255
TIE = 1e-6  # label l counts this times l less, so that equal shares go to the lowest whatever the rounding
NODES = 4  # cells between the nodes of a bent grid, along each axis


@dataclass(frozen=True)
class Spatial:
    """How samples are turned, scaled and bent; each happens to a sample with a probability of its own.

    Attributes:
        turn: probability of a rotation about all axes, each by up to `turn_degrees`.
        scale: probability of a scale between 1/`scale_by` and `scale_by`, log-uniform.
        elastic: probability of moving the nodes of a grid, a quarter of the crop apart, by up to `bend` of that.
            Below 0.4 the cubic B-spline between them folds nowhere: Choi and Lee, "Injectivity conditions of 2D and 3D
            uniform cubic B-spline functions", Graphical Models 62, 2000.
    """

    turn: float = 0.2
    turn_degrees: float = 30.0
    scale: float = 0.2
    scale_by: float = 1.4
    elastic: float = 0.0
    bend: float = 0.2


def _between(key_B: Tensor, stream: str, low: float, high: float, shape: tuple[int, ...] = ()) -> Tensor:
    return low + (high - low) * chance.uniform(key_B, stream, shape)


def _put(old_B: Tensor, rows: Tensor | slice, drawn: Tensor, new: Tensor) -> Tensor:
    """Replaces the rows, those of samples that the effect is drawn for, or all, by `new` where it is drawn."""
    if isinstance(rows, Tensor):
        return new if len(rows) == len(old_B) else old_B.index_copy(0, rows, new)
    return torch.where(drawn.view(-1, *[1] * (new.dim() - 1)), new, old_B)


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
    if drawn_alone(flipped_B3):
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


# ------------------------------------------------------------------------------------------------- spatial
def spatial(
    volume_BCZYX: Tensor, labels_BZYX: Tensor, key_B: Tensor, spacing_mm_B3: Tensor, how: Spatial
) -> tuple[Tensor, Tensor]:
    """Rotates, scales and bends image and labels in one resampling; see `Spatial` and `warp`."""
    turned_B, scaled_B, bent_B = (
        chance.uniform(key_B, f"augment/{name}/gate") < probability
        for name, probability in (("turn", how.turn), ("scale", how.scale), ("elastic", how.elastic))
    )
    rows: Tensor | slice = slice(None)
    drawn = turned_B | scaled_B | bent_B
    if drawn_alone(key_B):
        rows = drawn.nonzero()[:, 0]
        if len(rows) == 0:
            return volume_BCZYX, labels_BZYX
    key = key_B[rows]
    turn, stretch = math.radians(how.turn_degrees), math.log(how.scale_by)
    matrix = rotation(torch.where(turned_B[rows, None], _between(key, "augment/turn", -turn, turn, (3,)), 0.0))
    scale = torch.where(scaled_B[rows], _between(key, "augment/scale", -stretch, stretch), 0.0).exp()
    shift = None
    if how.elastic > 0:
        shift = bending(key, tuple(labels_BZYX.shape[1:]), how.bend * bent_B[rows])
    image, label = warp(
        volume_BCZYX[rows], labels_BZYX[rows], matrix * scale[:, None, None], spacing_mm_B3[rows], shift
    )
    return _put(volume_BCZYX, rows, drawn, image), _put(labels_BZYX, rows, drawn, label)


def bending(key_B: Tensor, size_zyx: tuple[int, ...], bend_B: Tensor) -> Tensor:
    """Draws smooth displacements: (B, 3, Z, Y, X), Z Y X in voxels, at most `bend` of the distance of two nodes."""
    shift = _between(key_B, "augment/elastic", -1.0, 1.0, (3, *[NODES + 3] * 3)) * bend_B.view(-1, 1, 1, 1, 1)
    for axis, (name, size) in enumerate(zip("zyx", size_zyx, strict=True)):
        place_O1 = ((torch.arange(size, device=key_B.device) + 0.5) * (NODES / size))[:, None]
        apart_OK = (place_O1 + 1 - torch.arange(NODES + 3, device=key_B.device)).abs()
        # The cubic B-spline: its own sum over the nodes is 1.
        near_OK = 2 / 3 - apart_OK.square() + apart_OK**3 / 2
        weight_OK = torch.where(apart_OK < 1, near_OK, (2 - apart_OK).clamp(min=0) ** 3 / 6)
        shift = torch.einsum(f"o{name},bczyx->bc{'zyx'.replace(name, 'o')}", weight_OK, shift)
        shift[:, axis] *= size / NODES
    return shift


def warp(
    volume_BCZYX: Tensor,
    labels_BZYX: Tensor,
    matrix_B33: Tensor,
    spacing_mm_B3: Tensor,
    shift_B3ZYX: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Resamples image (linear) and labels (one-hot linear) through a linear map about the crop's centre and a shift.

    A voxel gets the label with the largest linear share; ties go to the lowest.

    Args:
        volume_BCZYX: float32.
        labels_BZYX: uint8.
        matrix_B33: x y z in mm of the result -> x y z in mm of the input, both from the centre.
        spacing_mm_B3: Z Y X; a rotation in voxels would shear where voxels are not cubes.
        shift_B3ZYX: added to the place in the input, Z Y X in voxels of it.

    Returns:
        The same shapes. What comes from beyond the crop is 0 in the image and unknown (255) in the labels.
    """
    # Sides stay Python numbers: a copy of them would make the host wait for the device.
    matrix_B33 = matrix_B33.flip(1, 2) * spacing_mm_B3[:, None, :] / spacing_mm_B3[:, :, None]
    middle_B3 = torch.stack([torch.full_like(spacing_mm_B3[:, 0], (n - 1) / 2) for n in labels_BZYX.shape[1:]], dim=1)
    map_B34 = torch.cat([matrix_B33, (middle_B3[:, :, None] - matrix_B33 @ middle_B3[:, :, None])], dim=2)
    if drawn_alone(volume_BCZYX):
        return _warp_on_cpu(volume_BCZYX, labels_BZYX, map_B34, shift_B3ZYX)
    # Coordinate by coordinate, so that a compiler makes one kernel of it: a product of matrices would be another one.
    sides = labels_BZYX.shape[1:]
    z, y, x = (torch.arange(n, device=map_B34.device, dtype=torch.float32) for n in sides)
    factor = map_B34[..., None, None, None]
    at_3 = []
    for i in range(3):
        at = factor[:, i, 0] * z[:, None, None] + factor[:, i, 1] * y[:, None] + factor[:, i, 2] * x + factor[:, i, 3]
        at_3.append(at if shift_B3ZYX is None else at + shift_B3ZYX[:, i])
    return _look_up(volume_BCZYX, labels_BZYX, at_3)


def _warp_on_cpu(
    volume_BCZYX: Tensor, labels_BZYX: Tensor, map_B34: Tensor, shift_B3ZYX: Tensor | None
) -> tuple[Tensor, Tensor]:
    from voxprior.maths import kernels  # here: machines that train on a GPU may lack numba

    image, moved = torch.empty_like(volume_BCZYX).contiguous(), torch.empty_like(labels_BZYX).contiguous()
    shift = torch.empty(len(image), 3, 0, 0, 0) if shift_B3ZYX is None else shift_B3ZYX
    given = (volume_BCZYX, labels_BZYX, map_B34, shift)
    for sample in zip(*[part.contiguous().numpy() for part in given], image.numpy(), moved.numpy(), strict=True):
        kernels.warp(*sample)
    return image, moved


def _look_up(volume_BCZYX: Tensor, labels_BZYX: Tensor, at_3: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Does what `kernels.warp` does, in array operations: for each voxel, eight neighbours and their shares.

    `at_3`: coordinates along Z, Y, X in voxels of the input, each (B, Z, Y, X).
    """
    sides = labels_BZYX.shape[1:]
    below_3 = [at.floor() for at in at_3]
    above_share_3 = [at - below for at, below in zip(at_3, below_3, strict=True)]
    looked: list[Tensor] = []
    labels: list[Tensor] = []
    shares: list[Tensor] = []
    for corner in range(8):
        parts, cells, within = [], [], []
        for axis, far in enumerate((corner >> 2, corner >> 1 & 1, corner & 1)):
            side, index = sides[axis], below_3[axis] + far
            parts.append(above_share_3[axis] if far else 1 - above_share_3[axis])
            cells.append(index.clamp(0, side - 1).long())
            within.append((index >= 0) & (index < side))
        share, inside = parts[0] * parts[1] * parts[2], within[0] & within[1] & within[2]
        place = (cells[0] * sides[1] + cells[1]) * sides[2] + cells[2]
        found_BCN = volume_BCZYX.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, volume_BCZYX.shape[1], -1))
        looked.append((share * inside)[:, None] * found_BCN.view_as(volume_BCZYX))
        label = labels_BZYX.flatten(1).gather(1, place.flatten(1)).view_as(labels_BZYX)
        labels.append(label.masked_fill(~inside, UNKNOWN))
        shares.append(share)
    image = looked[0]
    for one in looked[1:]:
        image = image + one
    return image, _most(labels, shares)


def _most(labels: list[Tensor], shares: list[Tensor]) -> Tensor:
    """Picks the label with the largest sum of shares."""
    best, moved = None, labels[0]
    for label in labels:
        total = label * -TIE
        for other, share in zip(labels, shares, strict=True):
            total = total + share * (other == label)
        if best is not None:
            moved = torch.where(total > best, label, moved)
        best = total if best is None else torch.maximum(total, best)
    return moved


# ------------------------------------------------------------------------------------------------- intensities
def blur(volume_BCZYX: Tensor, key_B: Tensor, probability: float, sigma_vox: tuple[float, float]) -> Tensor:
    """Blurs by a Gaussian, its sigma drawn between two numbers of voxels for each axis; at faces, real voxels count."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        return gaussian(volume, _between(key, "augment/sigma", *sigma_vox, (3,)))

    return sometimes(volume_BCZYX, key_B, "augment/blur", probability, effect)


def coarse_and_back(size: int, cells_B: Tensor) -> Tensor:
    """Makes matrices that average an axis into fewer cells and interpolate back: (B, size, size), rows sum to 1."""
    voxel = torch.arange(size, device=cells_B.device)
    step_B11 = (size / cells_B)[:, None, None]
    # Cell k holds the average around its centre, by a triangle as wide as the cell: what a coarse scan sees.
    centre_B1K = (voxel + 0.5) * step_B11 - 0.5
    down_BKI = (1 - (voxel[:, None] - centre_B1K).abs() / step_B11).clamp(min=0).transpose(1, 2)
    down_BKI = down_BKI / down_BKI.sum(-1, keepdim=True).clamp(min=1e-6)
    place_BO1 = ((voxel[:, None] + 0.5) / step_B11 - 0.5).clamp(min=0)
    place_BO1 = torch.minimum(place_BO1, cells_B[:, None, None] - 1.0)
    return (1 - (place_BO1 - voxel).abs()).clamp(min=0) @ down_BKI


def low_resolution(volume_BCZYX: Tensor, key_B: Tensor, probability: float, coarsest: float) -> Tensor:
    """Shows the sample as if scanned with 1 / `coarsest` to all of its voxels along each axis, interpolated back."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        share_B = _between(key, "augment/resolution", 1 / coarsest, 1.0)
        for axis, size in enumerate(volume.shape[2:]):
            volume = along(volume, coarse_and_back(size, (share_B * size).round().clamp(min=1)), axis)
        return volume

    return sometimes(volume_BCZYX, key_B, "augment/low resolution", probability, effect)


def brightness(volume_BCZYX: Tensor, key_B: Tensor, probability: float, change: float) -> Tensor:
    """Multiplies intensities by a factor in 1 -+ `change`."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        return volume * _per_sample(_between(key, "augment/factor", 1 - change, 1 + change))

    return sometimes(volume_BCZYX, key_B, "augment/brightness", probability, effect)


def contrast(volume_BCZYX: Tensor, key_B: Tensor, probability: float, slope: float, shift: float) -> Tensor:
    """Changes contrast about the sample's mean by a factor in 1 -+ `slope`, and brightness by up to `shift`."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        mean = volume.mean(dim=(1, 2, 3, 4), keepdim=True)
        factor = 1.0 + _per_sample(_between(key, "augment/slope", -slope, slope))
        return (volume - mean) * factor + (mean + _per_sample(_between(key, "augment/shift", -shift, shift)))

    return sometimes(volume_BCZYX, key_B, "augment/contrast", probability, effect)


def gamma(volume_BCZYX: Tensor, key_B: Tensor, probability: float, strength: float, inverted: bool = False) -> Tensor:
    """Raises intensities, clamped to [0, 1], to a power between exp(-strength) and exp(strength).

    `inverted`: raises what they lack to 1 instead, which stretches the other end; drawn on its own.
    """
    name = "augment/inverted gamma" if inverted else "augment/gamma"
    power = "augment/inverted power" if inverted else "augment/power"

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        exponent = _per_sample(_between(key, power, -strength, strength).exp())
        volume = volume.clamp(0.0, 1.0)
        return 1 - (1 - volume).pow(exponent) if inverted else volume.pow(exponent)

    return sometimes(volume_BCZYX, key_B, name, probability, effect)


def noise(volume_BCZYX: Tensor, key_B: Tensor, probability: float, deviation: float) -> Tensor:
    """Adds Gaussian noise whose standard deviation is drawn from 0 to `deviation`."""

    def effect(volume: Tensor, key: Tensor) -> Tensor:
        size = _per_sample(_between(key, "augment/noise/size", 0.0, deviation))
        return volume + size * _normal(key, "augment/noise", tuple(volume.shape[1:]))

    return sometimes(volume_BCZYX, key_B, "augment/noise", probability, effect)


def _normal(key_B: Tensor, stream: str, shape: tuple[int, ...]) -> Tensor:
    """Draws `chance.normal`'s numbers; on the CPU by a compiled loop, far faster than 64-bit array operations."""
    if not drawn_alone(key_B):
        return chance.normal(key_B, stream, shape)
    from voxprior.maths import kernels

    drawn = torch.empty(2, len(key_B), math.prod(shape))
    for part_BN, name in zip(drawn.numpy(), ("/radius", "/angle"), strict=True):
        for row_N, start in zip(part_BN, chance.start(key_B, stream + name).tolist(), strict=True):
            kernels.uniform(start, row_N)
    radius_BN = drawn[0].neg_().log1p_().mul_(-2.0).sqrt_()
    return (radius_BN * drawn[1].mul_(2.0 * math.pi).cos_()).view(len(key_B), *shape)
