"""Where a token lies: fixed 3-D sine-cosine tables and rotary angles, one per grid.

A table is made for the grid at hand (integer indices 0, 1, 2, ... along each axis) and never interpolated: a 10x10x10
table shrunk to 6x6x6 is about half as far from the true 6x6x6 table as that table is from zero.

Axes: N tokens (Z-major), D width, H heads, L tokens of a sample, E channels of a head, F = E / 2 pairs of them.
`grid_zyx` counts tokens along each axis.
"""

from functools import lru_cache

import torch
from torch import Tensor

from voxprior.errors import Refusal


def check_width(width: int, what: str) -> None:
    """Refuses a width that three axes of sine and cosine cannot share.

    Raises:
        Refusal: `width` is not a multiple of 6.
    """
    if width % 6:
        raise Refusal(
            f"{what} of {width} cannot hold 3-D sine-cosine positions: "
            f"choose a multiple of 6, e.g. {width + 6 - width % 6}"
        )


def sine_cosine(grid_zyx: tuple[int, int, int], width: int, device: torch.device | str | None = None) -> Tensor:
    """Builds the position table of a grid: (N, width) float32, each row unique.

    For each axis a in Z, Y, X the row holds sin(i_a w_j) then cos(i_a w_j), w_j = 10000^(-j/k), j = 0..k-1,
    k = width / 6. Computed in float64, per axis, and only then spread over the grid.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5, per axis as in He et al. 2022 (MAE).

    Raises:
        Refusal: `width` is not a multiple of 6.
    """
    check_width(width, "a width")
    k = width // 6
    frequency_K = 10000.0 ** (-torch.arange(k, dtype=torch.float64, device=device) / k)
    parts = []
    for axis, side in enumerate(grid_zyx):
        angle = torch.arange(side, dtype=torch.float64, device=device)[:, None] * frequency_K
        row = torch.cat([angle.sin(), angle.cos()], dim=1).float()
        shape = [1, 1, 1, 2 * k]
        shape[axis] = side
        parts.append(row.reshape(shape).expand(*grid_zyx, 2 * k))
    return torch.cat(parts, dim=3).reshape(-1, width)


@lru_cache(maxsize=32)
def _remembered(grid_zyx: tuple[int, int, int], width: int, device: torch.device) -> Tensor:
    # A table made inside inference_mode could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        return sine_cosine(grid_zyx, width, device)


def position_table(grid_zyx: tuple[int, int, int], width: int, device: torch.device) -> Tensor:
    """Returns `sine_cosine` of the grid, built once per grid, width and device. Read it, never write into it.

    It is no module state: nothing to save, to move or to broadcast. While a graph is being compiled the table is part
    of the graph, because a compiler must not see a cache.
    """
    if torch.compiler.is_compiling():
        return sine_cosine(grid_zyx, width, device)
    return _remembered(tuple(grid_zyx), width, device)


def rotary_angles(grid_zyx: tuple[int, int, int], pairs: int, device: torch.device | str | None = None) -> Tensor:
    """Builds the angles by which a token's place turns the pairs of a head's channels: (N, pairs) float32.

    The first third of the pairs belongs to Z, the next to Y, the last to X; pair j of k of an axis is turned by
    i 10000^(-j/k) at index i. Indices are whole at any grid, so a token's next neighbour is the same turn away in all.

    Source: Su et al., "RoFormer", 2021, arXiv 2104.09864, section 3.2.2, per axis as in EVA-02 (arXiv 2303.11331) and
    Primus (arXiv 2503.01835).

    Raises:
        Refusal: three axes cannot share the pairs.
    """
    if pairs % 3:
        raise Refusal(
            f"heads of {2 * pairs} channels cannot be turned along three axes: choose a width of heads times a "
            "multiple of 6"
        )
    k = pairs // 3
    frequency_K = 10000.0 ** (-torch.arange(k, dtype=torch.float64, device=device) / k)
    sides = [torch.arange(side, dtype=torch.float64, device=device) for side in grid_zyx]
    place_N3 = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, 2)
    return (place_N3[:, :, None] * frequency_K).flatten(1).float()


@lru_cache(maxsize=32)
def _remembered_angles(grid_zyx: tuple[int, int, int], pairs: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return rotary_angles(grid_zyx, pairs, device)


def angle_table(grid_zyx: tuple[int, int, int], pairs: int, device: torch.device) -> Tensor:
    """Returns `rotary_angles` of the grid, built once as `position_table`. Read it, never write into it."""
    if torch.compiler.is_compiling():
        return rotary_angles(grid_zyx, pairs, device)
    return _remembered_angles(tuple(grid_zyx), pairs, device)


def turn(value_BHLE: Tensor, cos_BLF: Tensor, sin_BLF: Tensor) -> Tensor:
    """Turns neighbouring channels (2 j, 2 j + 1) as coordinates of a plane by angle j: in float32, (B, H, L, E).

    Turned queries and keys have scalar products that depend on differences of places. The angles' cosines and sines may
    be (1, L, F).

    Source: Su et al. 2021, equation 34.
    """
    cos, sin = cos_BLF[:, None], sin_BLF[:, None]
    even, odd = value_BHLE.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(value_BHLE.dtype)
