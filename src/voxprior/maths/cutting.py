"""`crops.cut` for GPUs in one pass: a Triton kernel that reads the stored region and writes views, and nothing between.

Matrix products over whole axes are what a CPU does best; on a GPU they would be float32 products over a whole region
for every view: 0.43 TFLOP for GL-MAE's ten views of 320^3 voxels, a third of the step (docs/performance.md). The
filter of an output voxel touches a few voxels a side, and those alone are read here.

Import this where it is used: it needs Triton, which torch brings along for CUDA and not for CPUs. With
TRITON_INTERPRET=1 it runs on a CPU, slowly; the tests compare it with `crops.cut` so.

Axes: B samples, V views of a sample, C channels, Z Y X voxels of the region.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit
def _axis(edge, at, axis: tl.constexpr, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Places output voxels on an axis: centre, half width of the filter, first voxel touched, how many, valid range."""
    lo = tl.load(edge + axis)
    step = (tl.load(edge + 3 + axis) - lo) / size
    centre = lo + (tl.where(tl.load(edge + 6 + axis) > 0, size - 1 - at, at).to(tl.float32) + 0.5) * step
    width = tl.maximum(step, 1.0)
    first = tl.floor(centre - width - 0.5).to(tl.int32) + 1
    taps = tl.ceil(2.0 * width).to(tl.int32)
    return centre, width, first, taps, tl.load(edge + 9 + axis), tl.load(edge + 12 + axis)


@triton.jit
def _weight(voxel, centre, width, begin, end):  # type: ignore[no-untyped-def]
    """Weighs a voxel by the triangle, and by 0 where it is padding."""
    apart = tl.abs(centre - (voxel.to(tl.float32) + 0.5))
    inside = (voxel >= begin) & (voxel < end)
    return tl.where(inside, tl.maximum(1.0 - apart / width, 0.0), 0.0)


@triton.jit
def _total(centre, width, first, taps, begin, end):  # type: ignore[no-untyped-def]
    """Adds the weights along an axis; 1 where there are none, so that they can be divided by."""
    total = centre * 0.0  # not zeros_like: as the rest, it must run in the interpreter whoever imported Triton first
    for tap in range(0, taps):
        total += _weight(first + tap, centre, width, begin, end)
    return tl.where(total > 0, total, 1.0)


@triton.jit
def _cut(  # type: ignore[no-untyped-def]
    region, scale, edges, out,
    channels, views, side_z, side_y, side_x,
    size_z: tl.constexpr, size_y: tl.constexpr, size_x: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Computes `block` voxels of one view and channel."""
    row = tl.program_id(0)
    view, channel = row // channels, row % channels
    sample, edge = view // views, edges + view * 15
    at = tl.program_id(1) * block + tl.arange(0, block)
    there = at < size_z * size_y * size_x
    z_at, y_at, x_at = at // (size_y * size_x), (at // size_x) % size_y, at % size_x
    cz, wz, z0, taps_z, begin_z, end_z = _axis(edge, z_at, 0, size_z)
    cy, wy, y0, taps_y, begin_y, end_y = _axis(edge, y_at, 1, size_y)
    cx, wx, x0, taps_x, begin_x, end_x = _axis(edge, x_at, 2, size_x)
    # 64 bits: a batch of regions of 320^3 voxels and four channels has more voxels than 32 bits count.
    base = region + (sample.to(tl.int64) * channels + channel) * side_z * side_y * side_x
    sums = tl.full([block], 0.0, tl.float32)
    for tap_z in range(0, taps_z):
        z = z0 + tap_z
        share_z = _weight(z, cz, wz, begin_z, end_z)
        plane = base + z.to(tl.int64) * side_y * side_x
        for tap_y in range(0, taps_y):
            y = y0 + tap_y
            share_zy = share_z * _weight(y, cy, wy, begin_y, end_y)
            for tap_x in range(0, taps_x):
                x = x0 + tap_x
                share = share_zy * _weight(x, cx, wx, begin_x, end_x)
                value = tl.load(plane + y * side_x + x, mask=there & (share > 0), other=0)
                sums += share * value.to(tl.float32)
    total = _total(cz, wz, z0, taps_z, begin_z, end_z) * _total(cy, wy, y0, taps_y, begin_y, end_y)
    total *= _total(cx, wx, x0, taps_x, begin_x, end_x)
    sums = sums / total * tl.load(scale + sample)
    tl.store(out + row.to(tl.int64) * size_z * size_y * size_x + at, sums, mask=there)


def cut(
    volume_BCZYX: Tensor,
    quantum_B: Tensor,
    lo_BV3: Tensor,
    hi_BV3: Tensor,
    size_zyx: tuple[int, int, int],
    valid_B6: Tensor,
    flipped_BV3: Tensor | None,
) -> Tensor:
    """Cuts and resamples boxes as `crops.cut` does: (B, V, C, *size_zyx) float32.

    Args:
        volume_BCZYX: regions as stored, int16, or float32.
        quantum_B: what a stored step is worth.
        lo_BV3, hi_BV3, size_zyx, flipped_BV3: as there.
        valid_B6: first real voxels Z Y X, then the first beyond them.
    """
    samples, channels, *sides = volume_BCZYX.shape
    views = lo_BV3.shape[1]
    flipped_BV3 = torch.zeros_like(lo_BV3) if flipped_BV3 is None else flipped_BV3
    parts = [lo_BV3, hi_BV3, flipped_BV3, valid_B6[:, None].expand(-1, views, -1)]
    edge_BVE = torch.cat([part.float() for part in parts], dim=-1).contiguous()  # 15 numbers a view
    out = torch.empty(samples, views, channels, *size_zyx, device=volume_BCZYX.device)
    # The views of a sample stand beside one another in the launch, so that what they share of it is still in the cache.
    blocks = triton.cdiv(size_zyx[0] * size_zyx[1] * size_zyx[2], BLOCK)
    launch: Any = _cut[(samples * views * channels, blocks)]
    volume_BCZYX = volume_BCZYX.contiguous()
    launch(volume_BCZYX, quantum_B.float(), edge_BVE, out, channels, views, *sides, *size_zyx, block=BLOCK)
    return out
