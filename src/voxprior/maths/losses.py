"""Losses as (sum, count), so that a mean over counted things is the same for any number of processes.

Axes: B samples, M masked patches, V values of one patch.
"""

import torch
from torch import Tensor


def masked_patch_error(prediction_BMV: Tensor, target_BMV: Tensor, counted_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the mean squared error of each counted masked patch, in float32 whatever the inputs are.

    sum / count = 1/|M| sum_{i in M} 1/V ||prediction_i - target_i||^2, M the counted patches.

    Args:
        prediction_BMV: predicted values of the masked patches.
        target_BMV: true values, usually standardised per patch.
        counted_BM: bool, False for patches that are padding. What they hold, even NaN, has no influence.

    Returns:
        The sum and the count, both float32 scalars. The count is 0, and so is the sum, where nothing counts.

    Source: He et al., "Masked autoencoders are scalable vision learners", 2022, section 3 (loss on masked patches).
    """
    difference_BMV = prediction_BMV.float() - target_BMV.float()
    # Zeroed before the square: afterwards, 0 * NaN would come back through the gradient.
    difference_BMV = torch.where(counted_BM[..., None], difference_BMV, 0.0)
    return difference_BMV.square().mean(dim=-1).sum(), counted_BM.sum(dtype=torch.float32)
