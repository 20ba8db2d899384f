"""ResEnc, the residual encoder U-Net of nnU-Net's presets, with nnU-Net's names of parameters.

The encoder: a 3x3x3 stem, then stages of residual blocks, each but the first at half the resolution of the last. A
block's shortcut halves by an average over 2x2x2 voxels and changes channels by a 1x1x1 convolution with a norm. The
decoder: transposed convolutions and, per stage, 3x3x3 convolutions beside the skip, with deep supervision.

One set of modules serves dense and masked use, as in `nets/residual.py`: a block of 2x2x2 voxels lies in one mask unit,
so the average mixes nothing hidden into anything visible.

nnU-Net registers each convolution and norm twice (`conv` and `all_modules.0`) and the encoder once more inside the
decoder; here each has one name, the shorter one. `exchange/nnunet.py` writes the others.

Axes: B samples, C channels (classes at the heads), Z Y X voxels.

Source: Isensee et al., "nnU-Net revisited", MICCAI 2024, arXiv 2404.09556; He et al., "Bag of tricks for image
classification", 2019, arXiv 1812.01187, for the shortcut; names and first weights as in the package
dynamic-network-architectures 0.4.4 (Apache-2.0).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.nets.residual import SLOPE, StagedEncoder
from voxprior.nets.sparse import InstanceNorm, Visible, hide


class Layer(nn.Module):
    """A convolution and its instance norm: hidden voxels are 0 afterwards."""

    # Not named after the norm: `nets/receptive.py` finds norms by their names.

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=kernel > 1)
        self.norm = InstanceNorm(channels_out)

    def forward(self, feature_BCZYX: Tensor, visible: Visible | None = None) -> Tensor:
        """Returns the normalised convolution, without an activation."""
        return self.norm(self.conv(feature_BCZYX), visible)


class Stacked(nn.Module):
    """One normed 3x3x3 convolution and leaky ReLU: the stem, and each stage of the decoder."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([Layer(channels_in, channels_out)])

    def forward(self, feature_BCZYX: Tensor, visible: Visible | None = None) -> Tensor:
        """Returns the features at the same resolution."""
        for conv in self.convs:
            feature_BCZYX = F.leaky_relu(conv(feature_BCZYX, visible), SLOPE, inplace=True)
        return feature_BCZYX


class Block(nn.Module):
    """Adds two 3x3x3 convolutions to their input; where it opens a stage, the input is averaged and projected."""

    recomputed = True  # where memory is short (`engine/recompute.py`)

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Layer(channels_in, channels_out, stride=stride)
        self.conv2 = Layer(channels_out, channels_out)
        # A plain list: nnU-Net numbers the shortcut's parts, and the average comes first.
        self.skip = nn.ModuleList()
        if stride > 1:
            self.skip.append(nn.AvgPool3d(stride, stride))
        if channels_in != channels_out:
            self.skip.append(Layer(channels_in, channels_out, kernel=1))

    def forward(self, feature_BCZYX: Tensor, visible: Visible | None = None) -> Tensor:
        """Returns the block's features; hidden voxels are 0."""
        shortcut_BCZYX = feature_BCZYX
        for part in self.skip:
            averages = isinstance(part, nn.AvgPool3d)
            shortcut_BCZYX = part(shortcut_BCZYX) if averages else part(shortcut_BCZYX, visible)
        inner_BCZYX = F.leaky_relu(self.conv1(feature_BCZYX, visible), SLOPE, inplace=True)
        return F.leaky_relu(self.conv2(inner_BCZYX, visible).add_(shortcut_BCZYX), SLOPE, inplace=True)


class Stage(nn.Module):
    """Residual blocks at one resolution."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = Block(channels_in, channels_out, stride)
        self.blocks = nn.ModuleList([first, *(Block(channels_out, channels_out) for _ in range(blocks - 1))])

    def forward(self, feature_BCZYX: Tensor, visible: Visible | None = None) -> Tensor:
        """Returns the stage's features."""
        for block in self.blocks:
            feature_BCZYX = block(feature_BCZYX, visible)
        return feature_BCZYX


def start_weights(module: nn.Module) -> None:
    """Draws first weights as nnU-Net does: He for leaky ReLU, no bias, and blocks that begin as their shortcut."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Block):
        nn.init.zeros_(module.conv2.norm.weight)


class ResEnc(StagedEncoder):
    """nnU-Net's residual encoder, or its first stages.

    Args:
        channels: per stage.
        blocks: per stage, or one number for all; a longer list than `channels` is cut.
        channels_in: channels of a volume.

    Raises:
        Refusal: fewer numbers of blocks than stages.
    """

    stages_name = "stages"

    def __init__(self, channels: Sequence[int], blocks: int | Sequence[int], channels_in: int = 1) -> None:
        super().__init__(channels, channels_in)
        given = [blocks] * len(self.channels) if isinstance(blocks, int) else list(blocks)
        if len(given) < len(self.channels):
            raise Refusal(f"blocks {given} has fewer entries than the {len(self.channels)} stages: give one per stage")
        self.blocks = tuple(given[: len(self.channels)])
        self.stem = Stacked(channels_in, self.channels[0])
        before = (self.channels[0], *self.channels[:-1])
        self.stages = nn.ModuleList(
            Stage(c_in, c_out, count, stride=1 if i == 0 else 2)
            for i, (c_in, c_out, count) in enumerate(zip(before, self.channels, self.blocks, strict=True))
        )
        self.apply(start_weights)

    def forward(self, volume_BCZYX: Tensor, visible: list[Visible] | None = None) -> list[Tensor]:
        """Returns the features of every stage, full resolution first.

        Args:
            volume_BCZYX: (B, channels_in, Z, Y, X).
            visible: one mask per stage, or None: everything is visible.

        Raises:
            Refusal: a side is no multiple of the total stride, or the deepest stage is left with a single voxel.
        """
        if visible is None:
            self.check_size(volume_BCZYX)
        if any(side % self.unit_vox for side in volume_BCZYX.shape[2:]):
            size = "x".join(map(str, volume_BCZYX.shape[2:]))
            raise Refusal(f"ResEnc cannot halve a crop of {size}: make each side a multiple of {self.unit_vox} voxels")
        masks: list[Visible | None] = [*visible] if visible else [None] * len(self.channels)
        feature_BCZYX = self.stem(hide(volume_BCZYX, masks[0]), masks[0])
        features = []
        for stage, mask in zip(self.stages, masks, strict=True):
            feature_BCZYX = stage(feature_BCZYX, mask)
            features.append(feature_BCZYX)
        return features


class Decoder(nn.Module):
    """nnU-Net's decoder, deepest stage first."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        pairs = list(pairwise(reversed(channels)))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(low, high, 2, stride=2) for low, high in pairs)
        self.stages = nn.ModuleList(Stacked(2 * high, high) for _, high in pairs)
        self.seg_layers = nn.ModuleList(nn.Conv3d(high, classes, kernel_size=1) for _, high in pairs)
        self.apply(start_weights)


class ResEncUNet(nn.Module):
    """Segments: volume (B, C, Z, Y, X) to logits (B, classes, Z, Y, X).

    In training mode it returns the logits of every decoder resolution, full resolution first; in evaluation mode those
    of full resolution alone. Sides of the volume are multiples of the encoder's stride.
    """

    def __init__(self, encoder: ResEnc, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(encoder.channels, classes)

    def forward(self, volume_BCZYX: Tensor) -> Tensor | list[Tensor]:
        """Returns logits at full resolution; in training those of every decoder resolution, full resolution first."""
        *skips, feature_BCZYX = self.encoder(volume_BCZYX)
        d, logits = self.decoder, []
        for rise, stage, head, skip_BCZYX in zip(d.transpconvs, d.stages, d.seg_layers, reversed(skips), strict=True):
            feature_BCZYX = cast(Tensor, stage(torch.cat([rise(feature_BCZYX), skip_BCZYX], dim=1)))
            if self.training or skip_BCZYX is skips[0]:
                logits.append(head(feature_BCZYX))
        return logits[::-1] if self.training else logits[0]
