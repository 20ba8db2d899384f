"""The encoder of STU-Net: stages of residual convolution blocks, each stage at half the resolution of the last.

One set of modules serves dense use (segmentation, contrastive methods) and masked use (SparK, AnatoMask): pass the
masks of `nets.sparse.visible_pyramid`, or nothing.

Axes: B samples, C channels, Z Y X voxels.

Source: Huang et al., "STU-Net: scalable and transferable medical image segmentation models", 2023, arXiv 2304.06716.
Parameter names are those of the authors' `conv_blocks_context`, for exchanging weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.nets.sparse import InstanceNorm, Visible, hide

SLOPE = 0.01  # of LeakyReLU, which keeps hidden zeros zero


class ResidualBlock(nn.Module):
    """Adds two 3x3x3 convolutions to their input; `opens` a stage: the input passes a 1x1x1 convolution, no norm."""

    recomputed = True  # where memory is short (`engine/recompute.py`)

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, opens: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)
        self.norm1 = InstanceNorm(channels_out)
        self.conv2 = nn.Conv3d(channels_out, channels_out, kernel_size=3, padding=1)
        self.norm2 = InstanceNorm(channels_out)
        self.conv3 = nn.Conv3d(channels_in, channels_out, kernel_size=1, stride=stride) if opens else None

    def forward(self, feature_BCZYX: Tensor, visible: Visible | None = None) -> Tensor:
        """Returns the block's features; hidden voxels are 0."""
        # The norms hide what conv1 and conv2 wrote into hidden voxels; the shortcut has no norm and is hidden here.
        inner_BCZYX = F.leaky_relu(self.norm1(self.conv1(feature_BCZYX), visible), SLOPE, inplace=True)
        inner_BCZYX = self.norm2(self.conv2(inner_BCZYX), visible)
        shortcut_BCZYX = feature_BCZYX if self.conv3 is None else hide(self.conv3(feature_BCZYX), visible)
        return F.leaky_relu(inner_BCZYX.add_(shortcut_BCZYX), SLOPE, inplace=True)


def stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.ModuleList:
    """Builds one stage: a block that changes channels and resolution, then `blocks - 1` that keep them."""
    first = ResidualBlock(channels_in, channels_out, stride, opens=True)
    return nn.ModuleList([first, *(ResidualBlock(channels_out, channels_out) for _ in range(blocks - 1))])


class StagedEncoder(nn.Module, ABC):
    """What convolutional encoders have in common: stages, each at half the resolution of the last.

    Attributes:
        stages_name: what the list of stages is called among the parameters.
        channels: channels per stage.
        channels_in: channels of a volume.
        unit_vox: total stride; the side of a mask unit.
        width: channels of the deepest stage.
    """

    stages_name: str

    def __init__(self, channels: Sequence[int], channels_in: int = 1) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.channels_in = channels_in
        self.unit_vox = 2 ** (len(self.channels) - 1)
        self.width = self.channels[-1]

    def check_size(self, volume_BCZYX: Tensor) -> None:
        """Refuses a crop of which the deepest stage keeps a single voxel, which instance norm would turn into zero.

        Raises:
            Refusal: names the crop's size and what to do.
        """
        sides = [-(-side // self.unit_vox) for side in volume_BCZYX.shape[2:]]
        if max(sides) == 1:
            size = "x".join(map(str, volume_BCZYX.shape[2:]))
            raise Refusal(
                f"a crop of {size} voxels is one voxel after {len(self.channels)} stages: "
                f"make a side larger than {self.unit_vox} or take a backbone with fewer stages"
            )

    @abstractmethod
    def forward(self, volume_BCZYX: Tensor, visible: list[Visible] | None = None) -> list[Tensor]:
        """Returns the features of every stage, full resolution first."""


class ResidualEncoder(StagedEncoder):
    """STU-Net's context path."""

    stages_name = "conv_blocks_context"

    def __init__(self, channels: Sequence[int], blocks: int, channels_in: int = 1) -> None:
        super().__init__(channels, channels_in)
        self.blocks = blocks
        before = (channels_in, *self.channels[:-1])
        self.conv_blocks_context = nn.ModuleList(
            stage(c_in, c_out, blocks, stride=1 if i == 0 else 2)
            for i, (c_in, c_out) in enumerate(zip(before, self.channels, strict=True))
        )

    @property
    def layers(self) -> list[str]:
        """Names what the stages' parameters begin with, input first."""
        return [f"conv_blocks_context.{number}." for number in range(len(self.channels))]

    def forward(self, volume_BCZYX: Tensor, visible: list[Visible] | None = None) -> list[Tensor]:
        """Returns the features of every stage, full resolution first.

        Args:
            volume_BCZYX: (B, channels_in, Z, Y, X). Sides that are no multiple of the total stride are rounded up.
            visible: one mask per stage, or None: everything is visible.

        Raises:
            Refusal: the deepest stage is left with a single voxel, which instance norm would turn into zero.
        """
        if visible is None:
            self.check_size(volume_BCZYX)
        masks: list[Visible | None] = [*visible] if visible else [None] * len(self.channels)
        feature_BCZYX = hide(volume_BCZYX, masks[0])
        features = []
        for blocks, mask in zip(self.conv_blocks_context, masks, strict=True):
            for block in cast(nn.ModuleList, blocks):
                feature_BCZYX = block(feature_BCZYX, mask)
            features.append(feature_BCZYX)
        return features
