"""Segments a volume of any size, window by window, in little memory.

Logits of overlapping windows are added with Gaussian weights, as MONAI's `sliding_window_inference` does on the same
window grid. But logits of the whole volume never exist: windows come in Z order, and as soon as no later window reaches
a slice, its labels are taken and its place in a ring of `window_z` slices is used again. Memory is
classes * window_z * Y * X floats. Weights need not be divided out: they are the same for every class.

Axes: C classes (0 is background), of volumes and windows channels; Z Y X voxels.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from voxprior.errors import Refusal

Zyx = tuple[int, int, int]


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Lists where windows start along one axis: steps of int(window * (1 - overlap)), the last one snapped to the end.

    Source: MONAI `dense_patch_slices`, so that the two can be compared.
    """
    if size <= window:
        return [0]
    step = max(int(window * (1.0 - overlap)), 1)
    return [*range(0, size - window, step), size - window]


def gaussian_weights(window_zyx: Zyx, sigma_share: float = 0.125) -> Tensor:
    """Weighs a window's voxels by a Gaussian about its centre, at least 0.001: (Z, Y, X) float32.

    The floor keeps corners that only one window reaches; source: MONAI `compute_importance_map`.
    """
    weights = torch.ones(())
    for side in window_zyx:
        at = torch.arange(side, dtype=torch.float32) - (side - 1) / 2.0
        weights = weights[..., None] * torch.exp(-0.5 * (at / (sigma_share * side)) ** 2)
    return weights.clamp_min(max(float(weights.min()), 1e-3))


def _argmax(logits_CZYX: Tensor) -> Tensor:
    """Takes the class with the largest value, the first of equals: (Z, Y, X) uint8.

    torch's argmax strides over the class axis on the CPU; comparing class by class, a slice at a time, reads memory in
    order and stays in the cache.

    Raises:
        Refusal: a value is not finite.
    """
    if logits_CZYX.is_cuda:
        best, label = logits_CZYX.max(dim=0)
        label = label.to(torch.uint8)
    else:
        best, label = logits_CZYX[0].clone(), torch.zeros(logits_CZYX.shape[1:], dtype=torch.uint8)
        better_YX = torch.empty(label.shape[1:], dtype=torch.bool)
        for best_YX, label_YX, logits_CYX in zip(best, label, logits_CZYX.unbind(1), strict=True):
            for number, logits_YX in enumerate(logits_CYX[1:], start=1):
                torch.gt(logits_YX, best_YX, out=better_YX)
                # Numbers rise, so the larger one is the newer one; a masked fill does the same many times slower.
                torch.maximum(label_YX, better_YX.view(torch.uint8).mul_(number), out=label_YX)
                torch.maximum(best_YX, logits_YX, out=best_YX)
    if not bool(torch.isfinite(best.sum(dtype=torch.float64))):
        raise Refusal("the network's output is not finite: train the model again with a lower learning rate")
    return label


class _Ring:
    """Sums of weighted logits of the `window_z` slices that windows still reach; slice z lies at z % window_z."""

    def __init__(self, classes: int, depth: int, plane_yx: tuple[int, int], device: torch.device) -> None:
        self.sums_CZYX = torch.zeros(classes, depth, *plane_yx, device=device)
        self.depth = depth

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Splits slices start..stop where the ring closes: (where in the ring, where from `start`)."""
        done = 0
        while done < stop - start:
            at = (start + done) % self.depth
            length = min(stop - start - done, self.depth - at)
            yield slice(at, at + length), slice(done, done + length)
            done += length

    def add(self, lo_zyx: Zyx, logits_CZYX: Tensor, weights_ZYX: Tensor) -> None:
        """Adds one window's weighted logits."""
        (z, y, x), (dz, dy, dx) = lo_zyx, weights_ZYX.shape
        for ring, window in self._pieces(z, z + dz):
            box_CZYX = self.sums_CZYX[:, ring, y : y + dy, x : x + dx]
            box_CZYX.addcmul_(logits_CZYX[:, window].float(), weights_ZYX[window])

    def finish(self, start: int, stop: int) -> Tensor:
        """Takes the labels of slices that no later window reaches, and clears their place: (stop - start, Y, X)."""
        labels = []
        for ring, _ in self._pieces(start, stop):
            labels.append(_argmax(self.sums_CZYX[:, ring]))
            self.sums_CZYX[:, ring].zero_()
        return torch.cat(labels)


def _padded(volume_CZYX: Tensor, window_zyx: Zyx) -> tuple[Tensor, tuple[slice, ...]]:
    """Pads sides that are smaller than the window with 0, evenly: (volume, where the real one lies in it)."""
    short = [max(window - side, 0) for window, side in zip(window_zyx, volume_CZYX.shape[1:], strict=True)]
    inside = tuple(slice(n // 2, n // 2 + side) for n, side in zip(short, volume_CZYX.shape[1:], strict=True))
    if any(short):
        volume_CZYX = F.pad(volume_CZYX, [side for n in reversed(short) for side in (n // 2, n - n // 2)])
    return volume_CZYX, inside


def _call(network: Callable[[Tensor], Tensor], windows_BCZYX: Tensor) -> Tensor:
    """Calls the network, on the CPU never with one window.

    torch sends a single small 3-D sample to its own convolution and two or more to oneDNN, which is so much faster
    (4 to 10 times at 8 to 16 channels and 32^3 voxels, one thread) that computing the window twice costs less.
    """
    if windows_BCZYX.shape[0] == 1 and not windows_BCZYX.is_cuda:
        return network(windows_BCZYX.expand(2, -1, -1, -1, -1))[:1]
    return network(windows_BCZYX)


@torch.inference_mode()
def segment_volume(
    network: Callable[[Tensor], Tensor],
    volume: np.ndarray,
    quantum: float,
    window_zyx: Zyx,
    overlap: float = 0.5,
    device: torch.device | None = None,
    precision: AbstractContextManager[object] | None = None,
    batch: int = 4,
) -> np.ndarray:
    """Segments one volume.

    Args:
        network: (B, channels, *window) float32 -> logits (B, classes, *window), on `device`, in evaluation mode.
        volume: prepared intensities, int16 or float, (channels, Z, Y, X) or (Z, Y, X). Sides smaller than the window
            are padded with 0, evenly, and cut off again.
        quantum: intensity = volume * quantum, multiplied window by window.
        window_zyx: the network's crop in voxels.
        overlap: share of a window that the next one covers, in [0, 1).
        device: where windows and sums live; the CPU by default.
        precision: autocast context of the network; float32 by default. Sums are float32 always.
        batch: windows per call of the network.

    Returns:
        (Z, Y, X) uint8 class numbers.

    Raises:
        Refusal: the network's output is not finite.
    """
    device = device or torch.device("cpu")
    given = torch.from_numpy(np.ascontiguousarray(volume))
    volume_CZYX, inside = _padded(given if given.ndim == 4 else given[None], window_zyx)
    sides = tuple(volume_CZYX.shape[1:])
    starts_z, starts_y, starts_x = (
        window_starts(side, window, overlap) for side, window in zip(sides, window_zyx, strict=True)
    )
    dz, dy, dx = window_zyx
    weights = gaussian_weights(window_zyx).to(device)
    labels = torch.empty(sides, dtype=torch.uint8)
    ring = None
    with precision or nullcontext():
        for z, stop in zip(starts_z, [*starts_z[1:], sides[0]], strict=True):
            corners = [(z, y, x) for y in starts_y for x in starts_x]
            for first in range(0, len(corners), batch):
                some = corners[first : first + batch]
                windows = [volume_CZYX[:, z : z + dz, y : y + dy, x : x + dx] for z, y, x in some]
                logits_BCZYX = _call(network, torch.stack(windows).to(device).float() * quantum)
                if ring is None:
                    ring = _Ring(logits_BCZYX.shape[1], window_zyx[0], (sides[1], sides[2]), device)
                for lo, logits in zip(some, logits_BCZYX, strict=True):
                    ring.add(lo, logits, weights)
                del logits, logits_BCZYX  # or they would lie beside the next ones
            labels[z:stop] = cast(_Ring, ring).finish(z, stop)
    return labels[inside].numpy().copy()
