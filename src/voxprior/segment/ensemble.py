"""Several networks, and mirrored windows, as one network: the mean of their logits.

Logits are averaged, and no probabilities. The mean is then taken window by window and needs no more memory than one
network, because adding windows up is linear too: the result is the mean of what each network says of the whole volume.
A model given twice changes nothing, and one model says the same alone and in a list. nnU-Net averages its folds in the
same way.

Axes: B windows, C channels or classes, Z Y X voxels. Volumes are LPS: x runs from the patient's right to the left.
"""

from collections.abc import Sequence
from itertools import chain, combinations

import torch
from torch import Tensor

from voxprior.segment.infer import Network

X = 2


def has_sides(classes: Sequence[str]) -> bool:
    """Tells whether a class exists on a left and a right: mirroring X would give it the other one's name."""
    return any({"left", "right"} & set(name.lower().split("_")) for name in classes)


def mirrored_axes(classes: Sequence[str]) -> tuple[int, ...]:
    """Lists the axes over which a model was mirrored when it was trained, and may be when it predicts: X, or none.

    Heads are never down in training, so Z and Y are left alone; classes with sides forbid X.
    """
    return () if has_sides(classes) else (X,)


def joined(networks: Sequence[Network], mirror: Sequence[int] = ()) -> Network:
    """Makes one network of several, each shown every window as it is and mirrored over each set of the axes.

    Args:
        networks: (B, channels, Z, Y, X) -> (B, classes, Z, Y, X).
        mirror: axes of Z Y X, by number.
    """
    if len(networks) == 1 and not mirror:
        return networks[0]
    ways = list(chain.from_iterable(combinations(mirror, count) for count in range(len(mirror) + 1)))

    def mean(windows_BCZYX: Tensor) -> Tensor:
        total: Tensor | None = None
        for axes in ways:
            places = [axis + 2 for axis in axes]
            shown_BCZYX = windows_BCZYX.flip(places) if places else windows_BCZYX
            for network in networks:
                logits_BCZYX = network(shown_BCZYX).float()
                logits_BCZYX = logits_BCZYX.flip(places) if places else logits_BCZYX
                # Not in place the first time: what the network returned is the network's.
                total = logits_BCZYX if total is None else torch.add(total, logits_BCZYX)
        assert total is not None
        return total / (len(ways) * len(networks))

    return mean
