"""Patches of a volume: cut, put back, describe.

Axes: B samples, C channels, Z Y X voxels, N patches (Z-major order), V values of one patch (z, y, x, channel).
"""

import torch
from einops import rearrange
from torch import Tensor

from voxprior.errors import Refusal


def grid(size_zyx: tuple[int, ...], patch_vox: int) -> tuple[int, int, int]:
    """Counts patches along each axis.

    Raises:
        Refusal: a side is not a multiple of the patch.
    """
    if any(side % patch_vox for side in size_zyx[-3:]):
        raise Refusal(
            f"a crop of {'x'.join(map(str, size_zyx[-3:]))} voxels cannot be cut into patches of {patch_vox}: "
            f"make each side a multiple of {patch_vox}"
        )
    z, y, x = (side // patch_vox for side in size_zyx[-3:])
    return z, y, x


def patchify(volume_BCZYX: Tensor, patch_vox: int) -> Tensor:
    """Cuts a volume into cubes: (B, C, Z, Y, X) -> (B, N, patch**3 * C)."""
    grid(tuple(volume_BCZYX.shape), patch_vox)
    p = patch_vox
    return rearrange(volume_BCZYX, "b c (z p) (y q) (x r) -> b (z y x) (p q r c)", p=p, q=p, r=p)


def unpatchify(patch_BNV: Tensor, grid_zyx: tuple[int, int, int], patch_vox: int) -> Tensor:
    """Puts cubes back, the exact inverse of `patchify`: (B, N, V) -> (B, C, Z, Y, X)."""
    z, y, x = grid_zyx
    p = patch_vox
    return rearrange(patch_BNV, "b (z y x) (p q r c) -> b c (z p) (y q) (x r)", z=z, y=y, x=x, p=p, q=p, r=p)


def take(value_BNV: Tensor, index_BK: Tensor) -> Tensor:
    """Takes rows by index, per sample: (B, N, V), (B, K) int64 -> (B, K, V). `value_BNV` may be (1, N, V)."""
    count = value_BNV.shape[1]
    start_B = torch.arange(index_BK.shape[0], device=index_BK.device) * (count if value_BNV.shape[0] > 1 else 0)
    row = (index_BK + start_B[:, None]).flatten()
    return value_BNV.flatten(0, 1).index_select(0, row).unflatten(0, tuple(index_BK.shape))


def standardise(patch_BNV: Tensor, eps: float = 1e-6) -> Tensor:
    """Standardises each patch with its own mean and unbiased variance, in float32.

    A constant patch becomes zero. Source: He et al., "Masked autoencoders are scalable vision learners", 2022,
    section 4 (normalised pixel targets).
    """
    patch_BNV = patch_BNV.float()
    mean = patch_BNV.mean(dim=-1, keepdim=True)
    variance = patch_BNV.var(dim=-1, keepdim=True, unbiased=True)
    return (patch_BNV - mean) / (variance + eps).sqrt()


def destandardise(standard_BNV: Tensor, patch_BNV: Tensor, eps: float = 1e-6) -> Tensor:
    """Gives standardised values the mean and spread of `patch_BNV`: the inverse of `standardise` at the same `eps`."""
    patch_BNV = patch_BNV.float()
    mean = patch_BNV.mean(dim=-1, keepdim=True)
    variance = patch_BNV.var(dim=-1, keepdim=True, unbiased=True)
    return standard_BNV.float() * (variance + eps).sqrt() + mean
