"""Segments a volume of any size, window by window, in little memory.

Logits of overlapping windows are added with Gaussian weights, as MONAI's `sliding_window_inference` does on the same
window grid. But logits of the whole volume never exist: windows come in order along one axis, and as soon as no later
window reaches a slice, its labels are taken and its place in a ring of as many slices as a window has is used again.
The ring rolls along Z, or Y where it is smaller there. Where it would still be larger than `Tiling.most_bytes`, as with
a hundred classes on a large scan, the volume is cut into bands across that axis, and the windows that reach into two
bands are computed for both; the sums, and so the labels, are the same. For labels the weights need not be divided out:
they are the same for every class, and positive.

Axes: C classes (0 is background), of volumes and windows channels; Z Y X voxels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby, pairwise, product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from voxprior.segment import readout
from voxprior.segment.readout import Readout

Zyx = tuple[int, int, int]
Place = tuple[slice, slice, slice]
Network = Callable[[Tensor], Tensor]
LOGITS_BYTES = 512 << 20  # of the windows of one call; there are never fewer than two
MOST_BYTES = 4 << 30  # of the sums of logits
OUTSIDE = -2  # place of what lies in no band: neither a place nor one below the first


class Tiling(NamedTuple):
    """How a volume is cut into windows, and how much memory the sums of their logits may take."""

    window_zyx: Zyx
    overlap: float = 0.5
    batch: int = 4  # windows per call of the network, or fewer where their logits are large
    most_bytes: int = MOST_BYTES


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


class _Ring:
    """Sums of weighted logits of a band: the slices that windows still reach, slice n at place n % depth."""

    def __init__(self, channels: int, band: "Band", depth: int, memory_N: Tensor) -> None:
        """Lays the sums into memory of zeros, which it leaves behind as zeros when all slices are finished."""
        self.band, self.depth, self.compiled = band, depth, not memory_N.is_cuda
        sides = [channels, *(stop - start for start, stop in zip(band.lo_zyx, band.hi_zyx, strict=True))]
        sides[band.axis + 1] = depth
        self.sums_CZYX = memory_N[: math.prod(sides)].view(sides)

    def add(self, corners: Sequence[Zyx], logits_BCZYX: Tensor, weights_ZYX: Tensor) -> None:
        """Adds what of some windows' weighted logits lies in the band; their corners differ along X alone."""
        sides, lo_zyx, hi_zyx = weights_ZYX.shape, self.band.lo_zyx, self.band.hi_zyx
        places = []
        for axis in (0, 1):
            place = corners[0][axis] + np.arange(sides[axis])
            outside = (place < lo_zyx[axis]) | (place >= hi_zyx[axis])
            place = place % self.depth if axis == self.band.axis else place - lo_zyx[axis]
            places.append(np.where(outside, OUTSIDE, place))
        spans = [(max(x, lo_zyx[2]), min(x + sides[2], hi_zyx[2]), x) for _, _, x in corners]
        place_x = np.array([(start - lo_zyx[2], start - x, stop - start) for start, stop, x in spans])
        if self.compiled:
            from voxprior.maths import tiles

            logits = logits_BCZYX.float().contiguous().numpy()
            tiles.add_weighted(self.sums_CZYX.numpy(), logits, weights_ZYX.numpy(), *places, place_x)
            return
        for (ring_z, cut_z), (ring_y, cut_y) in product(*map(_runs, places)):
            for logits_CZYX, (to, of, count) in zip(logits_BCZYX, place_x.tolist(), strict=True):
                part_CZYX = logits_CZYX[:, cut_z, cut_y, of : of + count].float()
                sums_CZYX = self.sums_CZYX[:, ring_z, ring_y, to : to + count]
                sums_CZYX.addcmul_(part_CZYX, weights_ZYX[cut_z, cut_y, of : of + count])

    def finish(self, start: int, stop: int) -> Iterator[tuple[Place, Tensor]]:
        """Yields slices that no later window reaches, (place in the volume, sums), and clears them afterwards."""
        place = [slice(first, last) for first, last in zip(self.band.lo_zyx, self.band.hi_zyx, strict=True)]
        for ring, piece in _runs(np.arange(start, stop) % self.depth):
            place[self.band.axis] = slice(start + piece.start, start + piece.stop)
            sums_CZYX = self.sums_CZYX.narrow(self.band.axis + 1, ring.start, ring.stop - ring.start)
            yield (place[0], place[1], place[2]), sums_CZYX
            sums_CZYX.zero_()


def _runs(places: np.ndarray) -> list[tuple[slice, slice]]:
    """Splits places that rise by one, but for where the ring closes, into runs: (places, where among them)."""
    breaks = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    runs = [(int(places[start]), start, stop) for start, stop in pairwise(breaks) if places[start] >= 0]
    return [(slice(at, at + stop - start), slice(start, stop)) for at, start, stop in runs]


class Band(NamedTuple):
    """A box that is segmented from end to end along `axis`, Z or Y."""

    axis: int
    lo_zyx: Zyx
    hi_zyx: Zyx


def bands(sides_zyx: Zyx, tiling: Tiling, channels: int) -> list[Band]:
    """Cuts a volume into bands as large as `most_bytes` allows: rings roll along Z, or Y where that saves a quarter.

    Never along X: rows are added as they lie in memory. Cuts lie where a window starts, so that few windows reach over
    them.
    """
    shares = [min(window / side, 1.0) for window, side in zip(tiling.window_zyx, sides_zyx, strict=True)]
    axis = 1 if shares[1] < 0.75 * shares[0] else 0
    across = min((shares[n], n) for n in range(3) if n != axis)[1]
    starts = window_starts(sides_zyx[across], tiling.window_zyx[across], tiling.overlap)
    need = 4 * channels * math.prod(sides_zyx) * tiling.window_zyx[axis] / sides_zyx[axis]
    side = sides_zyx[across]
    widest = max(1, int(side * tiling.most_bytes / need))
    edges = [0]
    while edges[-1] < side:
        most = min(edges[-1] + widest, side)
        edges.append(
            max([start for start in starts if edges[-1] < start < most], default=most) if most < side else side
        )
    found = []
    for start, stop in pairwise(edges):
        lo, hi = [0, 0, 0], list(sides_zyx)
        lo[across], hi[across] = start, stop
        found.append(Band(axis, (lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2])))
    return found


def pad(volume: np.ndarray, window_zyx: Zyx) -> tuple[Tensor, Place]:
    """Pads sides that are smaller than the window with 0, evenly: (C Z Y X, where the real volume lies in it)."""
    given = torch.from_numpy(np.ascontiguousarray(volume))
    volume_CZYX = given if given.ndim == 4 else given[None]
    short = [max(window - side, 0) for window, side in zip(window_zyx, volume_CZYX.shape[1:], strict=True)]
    inside = [slice(n // 2, n // 2 + side) for n, side in zip(short, volume_CZYX.shape[1:], strict=True)]
    if any(short):
        volume_CZYX = F.pad(volume_CZYX, [side for n in reversed(short) for side in (n // 2, n - n // 2)])
    return volume_CZYX, (inside[0], inside[1], inside[2])


def _call(network: Network, windows_BCZYX: Tensor) -> Tensor:
    """Calls the network, on the CPU never with one window.

    torch sends a single small 3-D sample to its own convolution and two or more to oneDNN, which is so much faster
    (4 to 10 times at 8 to 16 channels and 32^3 voxels, one thread) that computing the window twice costs less.
    """
    if windows_BCZYX.shape[0] == 1 and not windows_BCZYX.is_cuda:
        return network(windows_BCZYX.expand(2, -1, -1, -1, -1))[:1]
    return network(windows_BCZYX)


@torch.inference_mode()
def finished(
    network: Network,
    volume_CZYX: Tensor,
    quantum: float,
    tiling: Tiling,
    device: torch.device,
    precision: AbstractContextManager[object],
    divide: bool = False,
) -> Iterator[tuple[Place, Tensor]]:
    """Segments a volume and yields it piece by piece: (place, logits (C, z, y, x)), each voxel once.

    Logits are sums over windows, weighted; with `divide` their weighted mean. A piece is gone when the next one is
    asked for. The volume is at least as large as a window.
    """
    sides_zyx = (volume_CZYX.shape[1], volume_CZYX.shape[2], volume_CZYX.shape[3])
    weights_ZYX = gaussian_weights(tiling.window_zyx).to(device)
    one_BCZYX = torch.ones(tiling.batch if divide else 0, 1, *tiling.window_zyx, device=device)

    def call(corners: Sequence[Zyx]) -> Tensor:
        windows_BCZYX = _windows(volume_CZYX, corners, tiling.window_zyx, device, quantum)
        with precision:
            return _call(network, windows_BCZYX)

    # The first window tells how many classes there are. It is always the first, whatever the bands.
    known = [call([(0, 0, 0)])]
    classes = known[0].shape[1]
    batch = min(tiling.batch, max(2, LOGITS_BYTES // (4 * known[0].numel())))
    cut = bands(sides_zyx, tiling, classes)
    # One memory for all bands: who asked for the pieces may still hold the last one when the next band begins.
    most = max(math.prod(np.subtract(band.hi_zyx, band.lo_zyx).tolist()) for band in cut)
    most = most // sides_zyx[cut[0].axis] * tiling.window_zyx[cut[0].axis]
    memory_N, weights_N = (torch.zeros(count * most, device=device) for count in (classes, int(divide)))
    for band in cut:
        depth, axis = tiling.window_zyx[band.axis], band.axis
        ring = _Ring(classes, band, depth, memory_N)
        rings: tuple[_Ring, ...] = (ring, _Ring(1, band, depth, weights_N)) if divide else (ring,)
        corners = _corners(sides_zyx, band, tiling)
        reached, done = 0, 0
        while done < len(corners):
            # Windows of several slices may be computed together; they are added when their turn comes.
            some = corners[done : done + (1 if known else batch)]
            logits_BCZYX = known.pop() if known else call(some)
            for (z, y), places in groupby(range(len(some)), key=lambda n, some=some: some[n][:2]):  # type: ignore[misc]
                row = list(places)
                if (z, y)[axis] > reached:
                    yield from _divided(rings, reached, (z, y)[axis])
                    reached = (z, y)[axis]
                corners_B, here = [some[n] for n in row], slice(row[0], row[-1] + 1)
                ring.add(corners_B, logits_BCZYX[here], weights_ZYX)
                if divide:
                    rings[1].add(corners_B, one_BCZYX[: len(row)], weights_ZYX)
            del logits_BCZYX  # or they would lie beside the next ones
            done += len(some)
        yield from _divided(rings, reached, sides_zyx[axis])


def _divided(rings: tuple[_Ring, ...], start: int, stop: int) -> Iterator[tuple[Place, Tensor]]:
    """Yields finished slices, divided by the weights that the second ring summed, if there is one."""
    for pieces in zip(*[ring.finish(start, stop) for ring in rings], strict=True):
        place, sums_CZYX = pieces[0]
        yield place, sums_CZYX / pieces[1][1] if len(pieces) > 1 else sums_CZYX


def _corners(sides_zyx: Zyx, band: Band, tiling: Tiling) -> list[Zyx]:
    """Lists the lower corners of the windows that reach into a band, in order along the band's axis."""
    found = []
    for side, window, first, last in zip(sides_zyx, tiling.window_zyx, band.lo_zyx, band.hi_zyx, strict=True):
        starts = window_starts(side, window, tiling.overlap)
        found.append([start for start in starts if start < last and start + window > first])
    return sorted(product(found[0], found[1], found[2]), key=lambda corner: (corner[band.axis], corner))


def _windows(
    volume_CZYX: Tensor, corners: Sequence[Zyx], window_zyx: Zyx, device: torch.device, quantum: float
) -> Tensor:
    """Cuts windows out, as float32 intensities on the device."""
    dz, dy, dx = window_zyx
    cut = [volume_CZYX[:, z : z + dz, y : y + dy, x : x + dx] for z, y, x in corners]
    return torch.stack(cut).to(device).float() * quantum


def segment_volume(
    network: Network,
    volume: np.ndarray,
    quantum: float,
    window_zyx: Zyx,
    overlap: float = 0.5,
    device: torch.device | None = None,
    precision: AbstractContextManager[object] | None = None,
    most_bytes: int = MOST_BYTES,
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
        most_bytes: what the sums of logits may take; the labels do not depend on it.

    Returns:
        (Z, Y, X) uint8 class numbers, of classes that exclude one another.

    Raises:
        Refusal: the network's output is not finite.
    """
    tiling, where = Tiling(window_zyx, overlap, most_bytes=most_bytes), device or torch.device("cpu")
    return segment_with(network, volume, quantum, tiling, where, None, precision)


def segment_with(
    network: Network,
    volume: np.ndarray,
    quantum: float,
    tiling: Tiling,
    device: torch.device,
    keep: Callable[[Place, np.ndarray], None] | None = None,
    precision: AbstractContextManager[object] | None = None,
    read: Readout = readout.CLASSES,
) -> np.ndarray:
    """Segments one volume as `segment_volume` does, and hands the probabilities (C, z, y, x) of each box to `keep`.

    They are made by `read` from the weighted mean of logits; each voxel comes once. `read` also makes the labels.
    """
    volume_CZYX, inside = pad(volume, tiling.window_zyx)
    labels = torch.empty(tuple(volume_CZYX.shape[1:]), dtype=torch.uint8)
    pieces = finished(network, volume_CZYX, quantum, tiling, device, precision or nullcontext(), keep is not None)
    for place, logits_CZYX in pieces:
        labels[place] = read.labels(logits_CZYX)
        if keep is not None:
            _hand_over(keep, place, (logits_CZYX, read), inside)
    return labels[inside].numpy().copy()


def _hand_over(
    keep: Callable[[Place, np.ndarray], None], place: Place, found: tuple[Tensor, Readout], inside: Place
) -> None:
    """Hands on the probabilities of what of a box lies in the volume and not in its padding."""
    there, cut = [], []
    for part, real in zip(place, inside, strict=True):
        start, stop = max(part.start, real.start), min(part.stop, real.stop)
        if start >= stop:
            return
        there.append(slice(start - real.start, stop - real.start))
        cut.append(slice(start - part.start, stop - part.start))
    logits_CZYX, read = found
    shares_CZYX = read.shares(logits_CZYX[(slice(None), *cut)])
    keep((there[0], there[1], there[2]), shares_CZYX.cpu().numpy())
