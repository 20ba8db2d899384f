"""Masks with an exact number of masked patches: random ones, and those that hide what is hard.

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


def hard_masked(
    score_BN: Tensor, candidate_BN: Tensor, visible: int, hard: int, key_B: Tensor, stream: str = "mask"
) -> tuple[Tensor, Tensor]:
    """Hides the patches of the highest score and draws the rest uniformly from all others, on the device.

    The hard ones are put behind all others in a random order whose first `visible` patches are visible. So counts are
    exact whatever the scores are, and without hard ones the mask is `random_masked` of the same key and stream.

    Args:
        score_BN: float; a patch of score -inf or NaN is never hard.
        candidate_BN: bool, False for patches that are never hard either: AnatoMask's teacher saw them.
        visible: how many patches stay visible.
        hard: how many masked patches are to be hard, from 0 to N - visible. Where candidates run out there are fewer.
        key_B: int64 keys of the random rest.
        stream: name of the random draw.

    Returns:
        `masked_BN`, True for exactly N - visible patches of each row, and `hard_BN`, those of them that are hard.

    Source: Li et al., "AnatoMask", 2024, figure 2; the form is that of Wang et al., "Hard patches mining for masked
    image modeling", 2023.
    """
    patches = score_BN.shape[1]
    ranked_BN = torch.where(candidate_BN & (score_BN > -torch.inf), score_BN, -torch.inf)
    hard_BN = masked_from_order(ranked_BN.argsort(dim=1), patches - hard) & (ranked_BN > -torch.inf)
    order_BN = random_order(key_B, patches, stream)
    hard_last_BN = hard_BN.gather(1, order_BN).to(torch.uint8).argsort(dim=1, stable=True)
    return masked_from_order(order_BN.gather(1, hard_last_BN), visible), hard_BN


def split(masked_BN: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """Lists the visible and the masked patches of each sample in rising order: (B, K) and (B, M) int64.

    Every row of `masked_BN` must have exactly `visible` False entries, as all masks of this module have; it is not
    checked, because reading it back would stop the device.
    """
    order_BN = masked_BN.to(torch.uint8).argsort(dim=1, stable=True)
    return order_BN[:, :visible], order_BN[:, visible:]
