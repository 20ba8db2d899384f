"""Convolutional networks that see part of a volume: masks per stride, and instance statistics over visible voxels.

Convolutions run densely and hidden outputs are then set to zero, which equals a submanifold sparse convolution: the
visible set never grows from layer to layer. The mask is an argument (`None`: everything is visible), never module
state, so a teacher, a student and recomputed activations cannot disturb one another. Hidden values are dropped by
`where`, never multiplied by zero, so that not even NaN leaks out of them.

Axes: B samples, C channels, Z Y X voxels, N mask units (Z-major order); 1 an axis of one entry.

Source: Tian et al., "Designing BERT for convolutional networks: sparse and hierarchical masked modeling", 2023,
arXiv 2301.03580, for the convolution. The statistics are per sample and channel, unlike the released 3-D code's.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ZYX = (2, 3, 4)


class Visible(NamedTuple):
    """What is visible at one stride: `voxels_B1ZYX` bool; how many per sample, `count_B1111` float32, at least 1."""

    voxels_B1ZYX: Tensor
    count_B1111: Tensor


def visible_pyramid(masked_BN: Tensor, grid_zyx: tuple[int, int, int], stages: int) -> list[Visible]:
    """Repeats a mask to every stride of an encoder whose deepest voxels are the mask units: finest stride first.

    Built once per forward pass. A sample without visible units counts one voxel, so that its statistics stay finite.
    """
    unit_B1ZYX = ~masked_BN.unflatten(1, (1, *grid_zyx))
    shown_B1111 = unit_B1ZYX.sum(dim=(1, 2, 3, 4), keepdim=True)
    levels = []
    for stage in range(stages):
        side = 2 ** (stages - 1 - stage)
        voxels_B1ZYX = unit_B1ZYX
        for axis in (2, 3, 4):
            voxels_B1ZYX = voxels_B1ZYX.repeat_interleave(side, dim=axis)
        levels.append(Visible(voxels_B1ZYX, (shown_B1111 * side**3).clamp(min=1).float()))
    return levels


def hide(feature_BCZYX: Tensor, visible: Visible | None) -> Tensor:
    """Sets hidden voxels to zero, whatever they hold; returns the tensor itself where everything is visible."""
    if visible is None:
        return feature_BCZYX
    return torch.where(visible.voxels_B1ZYX, feature_BCZYX, 0.0)


class _Masked(torch.autograd.Function):
    """The norm of visible voxels with the gradient written out.

    Left to autograd it keeps the features in float32 and goes over them more often. Here they are kept in the type that
    they came in.

    Source of the gradient: Ioffe and Szegedy, "Batch normalization", 2015, arXiv 1502.03167, section 3, over the
    visible voxels of a sample and channel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        feature_BCZYX: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        voxels_B1ZYX: Tensor,
        count_B1111: Tensor,
        eps: float,
    ) -> Tensor:
        """Returns the normalised features, hidden ones 0."""
        # Hidden voxels are dropped once. What is subtracted from the rest and added to it is 0 there by a product of
        # finite numbers, which on a CPU takes a fifth of the time that choosing takes.
        shown_B1ZYX = voxels_B1ZYX.float()
        wide_BCZYX = torch.where(voxels_B1ZYX, feature_BCZYX.float(), 0.0)
        mean_BC111 = wide_BCZYX.sum(_ZYX, keepdim=True) / count_B1111
        centred_BCZYX = torch.addcmul(wide_BCZYX, mean_BC111, shown_B1ZYX, value=-1.0)
        if feature_BCZYX.dtype == torch.float32:
            variance_BC111 = centred_BCZYX.square().sum(_ZYX, keepdim=True) / count_B1111
        else:
            # Both sums in one pass. A difference of squares loses 2^-24 of the squared mean in float32; bfloat16 and
            # float16 have moved each value by up to 2^-8 and 2^-11 of itself before, the squares of which are more.
            square_BC111 = wide_BCZYX.square().sum(_ZYX, keepdim=True) / count_B1111
            variance_BC111 = (square_BC111 - mean_BC111.square()).clamp(min=0)
        inverse_BC111 = torch.rsqrt(variance_BC111 + eps)
        kept_BCZYX = centred_BCZYX if feature_BCZYX.dtype == torch.float32 else feature_BCZYX
        ctx.save_for_backward(kept_BCZYX, mean_BC111, inverse_BC111, weight_C, voxels_B1ZYX, count_B1111)
        scale_BC111 = inverse_BC111 * weight_C.view(-1, 1, 1, 1)
        # The feature stands first, so that the result lies in memory as it does.
        normed_BCZYX = torch.addcmul(centred_BCZYX * scale_BC111, bias_C.view(-1, 1, 1, 1), shown_B1ZYX)
        return normed_BCZYX.to(feature_BCZYX.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCZYX: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of features, weight and bias."""
        kept_BCZYX, mean_BC111, inverse_BC111, weight_C, voxels_B1ZYX, count_B1111 = ctx.saved_tensors
        shown_B1ZYX = voxels_B1ZYX.float()
        centred_BCZYX = kept_BCZYX
        if kept_BCZYX.dtype != torch.float32:
            centred_BCZYX = torch.where(voxels_B1ZYX, kept_BCZYX.float() - mean_BC111, 0.0)
        shown_gradient_BCZYX = gradient_BCZYX.float() * shown_B1ZYX
        along_BC111 = (shown_gradient_BCZYX * centred_BCZYX).sum(_ZYX, keepdim=True) * inverse_BC111
        total_BC111 = shown_gradient_BCZYX.sum(_ZYX, keepdim=True)
        scale_BC111 = inverse_BC111 * weight_C.view(-1, 1, 1, 1)
        share_BC111 = -scale_BC111 / count_B1111
        # d loss / d x = scale (g - mean(g) - x^ mean(g x^)), where x^ = centred / deviation.
        change_BCZYX = torch.addcmul(
            shown_gradient_BCZYX * scale_BC111, centred_BCZYX, share_BC111 * inverse_BC111 * along_BC111
        )
        change_BCZYX = torch.addcmul(change_BCZYX, share_BC111 * total_BC111, shown_B1ZYX)
        to_weight_C, to_bias_C = along_BC111.sum((0, 2, 3, 4)), total_BC111.sum((0, 2, 3, 4))
        return change_BCZYX.to(gradient_BCZYX.dtype), to_weight_C, to_bias_C, None, None, None


class InstanceNorm(nn.Module):
    """Normalises each sample and channel by the mean and biased variance of its visible voxels; hidden ones become 0.

    Names and numbers are those of `nn.InstanceNorm3d(affine=True)`, which it equals where everything is visible.
    Statistics are float32 under autocast.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, feature_BCZYX: Tensor, visible: Visible | None = None) -> Tensor:
        """Returns the normalised features, of the same shape and type; hidden voxels are 0."""
        if visible is None:
            return self._dense(feature_BCZYX)
        normed_BCZYX: Tensor = _Masked.apply(
            feature_BCZYX, self.weight, self.bias, visible.voxels_B1ZYX, visible.count_B1111, self.eps
        )
        return normed_BCZYX

    def _dense(self, feature_BCZYX: Tensor) -> Tensor:
        if feature_BCZYX.device.type == "cpu":
            # One group per channel is the same number; torch's CPU kernel for groups takes less than half the time.
            return F.group_norm(feature_BCZYX, self.weight.numel(), self.weight, self.bias, self.eps)
        return F.instance_norm(feature_BCZYX, weight=self.weight, bias=self.bias, eps=self.eps)
