"""What the loader, a model and the training loop hand one another.

`Batch` is a plain dict of tensors; its keys stand in `methods/contract.py`.

Axes: B samples, C channels, Z Y X voxels.
"""

from typing import NamedTuple

from torch import Tensor

Batch = dict[str, Tensor]


class Term(NamedTuple):
    """One named part of the loss: the loop adds `weight * sum / count` after summing both over processes.

    A part of weight 0 is a *monitor*: reduced and logged like the others, and without any influence on the training.
    """

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # a tuple's own count() is not missed here
    weight: float = 1.0


def volume_from(batch: Batch) -> Tensor:
    """Turns the stored int16 region into float32 intensities in [0, 1]: (B, C, Z, Y, X)."""
    return batch["region_BCZYX"].float() * batch["quantum_B"][:, None, None, None, None]
