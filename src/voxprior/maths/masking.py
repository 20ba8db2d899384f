"""Random masks with an exact number of masked patches.

Axes: B samples, N patches, K visible patches, M masked patches. `masked_BN` is True where hidden from the network.
"""

import torch
from torch import Tensor

from voxprior.maths import chance


def visible_count(patches: int, ratio: float) -> int:
    """Counts visible patches: N - round(ratio * N), at least one visible and one masked.

    `int(N * (1 - ratio))` truncates: 1000 patches at 0.9 would leave 99.
    """
    return min(max(patches - round(ratio * patches), 1), patches - 1)


def random_order(key_B: Tensor, patches: int, stream: str = "mask") -> Tensor:
    """Draws a random order of the patches per sample, (B, N): the first K are visible, the rest masked."""
    return chance.permutation(key_B, stream, patches)


def masked_from_order(order_BN: Tensor, visible: int) -> Tensor:
    """Turns an order into `masked_BN`: False for the first `visible` entries of each row, True for the others."""
    masked_BN = torch.ones_like(order_BN, dtype=torch.bool)
    return masked_BN.scatter(1, order_BN[:, :visible], False)


def random_masked(key_B: Tensor, patches: int, ratio: float, stream: str = "mask") -> Tensor:
    """Draws masks uniformly without replacement, exactly round(ratio * N) masked in every row: (B, N) bool."""
    return masked_from_order(random_order(key_B, patches, stream), visible_count(patches, ratio))


def split(masked_BN: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """Lists the visible and the masked patches of each sample in rising order: (B, K) and (B, M) int64.

    Every row of `masked_BN` must have exactly `visible` False entries, as all masks of this module have; it is not
    checked, because reading it back would stop the device.
    """
    order_BN = masked_BN.to(torch.uint8).argsort(dim=1, stable=True)
    return order_BN[:, :visible], order_BN[:, visible:]
