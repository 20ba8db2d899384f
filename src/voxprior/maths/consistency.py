"""How far a student's embeddings lie from a teacher's: by soft assignments to prototypes, or by angle.

Everything is float32, under autocast too: cosines divided by a temperature of 0.04 do not survive eight bits.

Axes: B samples, P anchors of a sample (teacher), V views of a sample (student), K prototypes or channels.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Pairs = Literal["same", "all", "cross"]


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiplies matrices in float32 whatever autocast says."""
    # Both kinds are switched off by name, so that tensors without a device (meta) pass too.
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        return left.float() @ right.float()


def assign(anchor_BPK: Tensor, centre_K: Tensor, temperature: float) -> Tensor:
    """Turns a teacher's logits into probabilities: softmax((anchor - centre) / temperature), float32, detached.

    Source: Caron et al., "Emerging properties in self-supervised vision transformers" (DINO), 2021, section 3.1.
    """
    return ((anchor_BPK.detach().float() - centre_K) / temperature).softmax(dim=-1)


def entropy(probability_BPK: Tensor) -> Tensor:
    """Computes -sum_k q_k log q_k of each row, in nats: (B, P); between 0 (one prototype) and log K (all alike)."""
    return torch.special.entr(probability_BPK).sum(dim=-1)


def pair_sum(value_BPV: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Adds the pairs that count and says how many: `all` P V, `same` those with p = v, `cross` those without.

    `same` and `cross` need as many anchors as views.
    """
    _, anchors, views = value_BPV.shape
    if pairs != "all":
        same_PV = torch.eye(anchors, views, dtype=torch.bool, device=value_BPV.device)
        value_BPV = torch.where(same_PV if pairs == "same" else ~same_PV, value_BPV, 0.0)
    per_sample = {"all": anchors * views, "same": anchors, "cross": anchors * (views - 1)}[pairs]
    return value_BPV.sum(), value_BPV.new_full((), float(len(value_BPV) * per_sample))


def cross_entropy(
    probability_BPK: Tensor, logits_BVK: Tensor, temperature: float, pairs: Pairs
) -> tuple[Tensor, Tensor]:
    """Sums -sum_k q_k log softmax(logits / temperature)_k over the pairs of each sample, and counts them.

    The gradient of one pair with respect to the logits is (softmax(logits / temperature) - q) / temperature.
    Source: DINO, 2021, equation 2; there, pairs of the same view are left out.
    """
    log_BVK = (logits_BVK.float() / temperature).log_softmax(dim=-1)
    return pair_sum(-product(probability_BPK, log_BVK.mT), pairs)


def cosine_distance(anchor_BPK: Tensor, prediction_BVK: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Sums 2 - 2 cos(anchor, prediction) over the pairs of each sample, and counts them; anchors are detached.

    Source: Grill et al., "Bootstrap your own latent" (BYOL), 2020, equation 2.
    """
    anchor_BPK = F.normalize(anchor_BPK.detach().float(), dim=-1)
    prediction_BVK = F.normalize(prediction_BVK.float(), dim=-1)
    return pair_sum(2.0 - 2.0 * product(anchor_BPK, prediction_BVK.mT), pairs)


def likeness(anchor_BPK: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the cosines between anchors of different samples, and counts them; a mean of 1 is a collapse."""
    samples, anchors, _ = anchor_BPK.shape
    unit_BPK = F.normalize(anchor_BPK.detach().float(), dim=-1)
    sum_BK = unit_BPK.sum(dim=1)
    total = sum_BK.sum(dim=0).square().sum() - sum_BK.square().sum()
    return total, total.new_full((), float(samples * (samples - 1) * anchors**2))
