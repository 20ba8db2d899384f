"""Views cut from a region on its device: boxes with real edges, resampled to a fixed size, mirrored.

Coordinates are edge coordinates: voxel i occupies [i, i + 1], so its centre is i + 1/2, and a box from 0 to n is the
whole axis. Output voxel j of a box [lo, hi] with n voxels has its centre at lo + (j + 1/2) (hi - lo) / n; a mirrored
box is read from hi to lo. Resampling is separable: one small matrix per sample, view and axis, applied by matrix
products. On a GPU `maths/cutting.py` does the same in one pass where Triton is there and `allow_kernel` was told so.

Axes: B samples, V views of a sample, C channels, Z Y X voxels of the region, O voxels of a view along one axis,
I voxels of the region along it.
"""

import torch
from torch import Tensor

_kernel = False


def allow_kernel(allowed: bool) -> None:
    """Says whether views on a GPU may be cut by the Triton kernel: as the networks may be compiled, or not."""
    global _kernel  # of the process, as torch's own switches are; the numbers agree to rounding either way
    _kernel = allowed


def weights(lo_BV: Tensor, hi_BV: Tensor, size: int, valid_lo_B: Tensor, valid_hi_B: Tensor, side: int) -> Tensor:
    """Makes the resampling matrices of one axis: (B, V, size, side) float32, rows that sum to 1, or 0 (see `cut`).

    A triangle as wide as an output voxel, and at least as wide as an input voxel: linear interpolation where a view
    magnifies, an anti-aliasing average where it shrinks. Source: triangle filter, Heckbert, "Fundamentals of texture
    mapping and image warping", 1989, section 3.5.
    """
    step_BV1 = ((hi_BV - lo_BV) / size)[..., None]
    place_BVO = lo_BV[..., None] + (torch.arange(size, device=lo_BV.device) + 0.5) * step_BV1
    voxel_I = torch.arange(side, device=lo_BV.device)
    apart_BVOI = (place_BVO[..., None] - (voxel_I + 0.5)).abs()
    weight_BVOI = (1.0 - apart_BVOI / step_BV1.clamp(min=1.0)[..., None]).clamp(min=0.0)
    real_BI = (voxel_I >= valid_lo_B[:, None]) & (voxel_I < valid_hi_B[:, None])
    weight_BVOI = torch.where(real_BI[:, None, None], weight_BVOI, 0.0)
    total_BVO1 = weight_BVOI.sum(-1, keepdim=True)
    return weight_BVOI / torch.where(total_BVO1 > 0, total_BVO1, 1.0)


def cut(
    volume_BCZYX: Tensor,
    lo_BV3: Tensor,
    hi_BV3: Tensor,
    size_zyx: tuple[int, int, int],
    valid_lo_B3: Tensor,
    valid_hi_B3: Tensor,
    flipped_BV3: Tensor | None = None,
    quantum_B: Tensor | None = None,
) -> Tensor:
    """Cuts boxes out of each sample and resamples them: (B, V, C, *size_zyx) float32.

    What the region holds outside its valid box never enters a view: near its faces the nearest real voxels count
    alone, and where a box leaves it altogether the view is 0, the prepared minimum.

    Args:
        volume_BCZYX: regions, in [0, 1] once multiplied by `quantum_B`.
        lo_BV3: first edge of each box, Z Y X in edge coordinates of the region, float32.
        hi_BV3: last edge; hi > lo.
        size_zyx: voxels of every view.
        valid_lo_B3: first real voxel of each region.
        valid_hi_B3: first voxel beyond the real ones.
        flipped_BV3: bool, mirrored along which axis; None: no view is mirrored.
        quantum_B: what a stored step is worth; None: 1.
    """
    if quantum_B is None:
        quantum_B = torch.ones(len(volume_BCZYX), device=volume_BCZYX.device)
    if _kernel and volume_BCZYX.is_cuda:
        from voxprior.maths import cutting

        valid_B6 = torch.cat([valid_lo_B3, valid_hi_B3], dim=1)
        return cutting.cut(volume_BCZYX, quantum_B, lo_BV3, hi_BV3, size_zyx, valid_B6, flipped_BV3)
    seen = (volume_BCZYX.float() * quantum_B[:, None, None, None, None])[:, None]
    for axis, (name, size) in enumerate(zip("zyx", size_zyx, strict=True)):
        matrix_BVOI = weights(
            lo_BV3[..., axis], hi_BV3[..., axis], size, valid_lo_B3[:, axis], valid_hi_B3[:, axis],
            volume_BCZYX.shape[axis + 2],
        )  # fmt: skip
        if flipped_BV3 is not None:
            matrix_BVOI = torch.where(flipped_BV3[..., axis, None, None], matrix_BVOI.flip(2), matrix_BVOI)
        # The first product makes the views: before it there is one volume a sample, summed over its axis of one, w.
        views = "w" if axis == 0 else "v"
        seen = torch.einsum(f"bvn{name},b{views}czyx->bvc{'zyx'.replace(name, 'n')}", matrix_BVOI, seen)
    return seen
