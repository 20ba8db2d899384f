"""The decoder of STU-Net on its encoder: a segmentation network with deep supervision.

Axes: B samples, C channels (classes at the heads), Z Y X voxels.

Source: Huang et al., "STU-Net: scalable and transferable medical image segmentation models", 2023, arXiv 2304.06716;
parameter names (`upsample_layers`, `conv_blocks_localization`, `seg_outputs`, deepest first) are the authors'.
"""

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxprior.nets.residual import ResidualEncoder, stage


class Rise(nn.Module):
    """Enlarges features to the size of a skip by nearest voxel and changes their channels with a 1x1x1 convolution.

    STU-Net interpolates first. A 1x1x1 convolution and copying voxels commute, so the convolution runs on the small
    grid: the same numbers from an eighth of the work. No weight depends on the stride.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, kernel_size=1)

    def forward(self, feature_BCZYX: Tensor, size_zyx: torch.Size) -> Tensor:
        """Returns (B, channels_out, *size_zyx)."""
        return F.interpolate(self.conv(feature_BCZYX), size=size_zyx, mode="nearest")


class UNet(nn.Module):
    """Segments: volume (B, C, Z, Y, X) to logits (B, classes, Z, Y, X).

    In training mode it returns the logits of every decoder resolution, full resolution first (deep supervision); in
    evaluation mode those of full resolution alone. Any crop size is taken; the stride's multiples are exact halves.
    """

    def __init__(self, encoder: ResidualEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        up = encoder.channels[::-1]
        pairs = list(pairwise(up))
        self.upsample_layers = nn.ModuleList(Rise(low, high) for low, high in pairs)
        self.conv_blocks_localization = nn.ModuleList(
            stage(2 * high, high, encoder.blocks, stride=1) for _, high in pairs
        )
        self.seg_outputs = nn.ModuleList(nn.Conv3d(high, classes, kernel_size=1) for _, high in pairs)

    def forward(self, volume_BCZYX: Tensor) -> Tensor | list[Tensor]:
        """Returns logits at full resolution; in training those of every decoder resolution, full resolution first."""
        *skips, feature_BCZYX = self.encoder(volume_BCZYX)
        logits = []
        steps = zip(self.upsample_layers, self.conv_blocks_localization, self.seg_outputs, reversed(skips), strict=True)
        for rise, blocks, head, skip_BCZYX in steps:
            feature_BCZYX = torch.cat([rise(feature_BCZYX, skip_BCZYX.shape[2:]), skip_BCZYX], dim=1)
            for block in cast(nn.ModuleList, blocks):
                feature_BCZYX = block(feature_BCZYX)
            if self.training or skip_BCZYX is skips[0]:
                logits.append(head(feature_BCZYX))
        return logits[::-1] if self.training else logits[0]
