"""A UNETR-type decoder for transformers with patches of any power of two.

MONAI's UNETR is fixed to patches of 16: its four up-sampling steps are written out. Volumes of 35x50x35 voxels leave
3x4x3 tokens at that size, so small studies need patches of 8, and the decoder must have as many steps as the patch has
powers of two. Otherwise it is the same network: an input path at full resolution, taps of the transformer brought up by
transposed convolutions, and concatenation with a residual block at each level.

Axes: B samples, C channels, Z Y X voxels. Level l has 1 / 2^l of the full resolution and channels * 2^l channels;
level 0 is the volume itself, level log2(patch) the token grid.

Source: Hatamizadeh et al., "UNETR: Transformers for 3D medical image segmentation", 2022, section 3.
"""

import torch
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.nets.vit import ViT


class Residual(nn.Module):
    """Two 3x3x3 convolutions with instance norm and leaky ReLU around a shortcut: (B, I, ...) -> (B, O, ...)."""

    recomputed = True  # where memory is short (`engine/recompute.py`)

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # Instance norm removes any constant, so the convolutions have no bias.
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
            nn.InstanceNorm3d(outputs, affine=True),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, bias=False), nn.InstanceNorm3d(outputs, affine=True)
            )
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, features_BCZYX: Tensor) -> Tensor:
        """Refines features at one resolution."""
        return self.activation(self.body(features_BCZYX) + self.shortcut(features_BCZYX))


def double(inputs: int, outputs: int) -> nn.Module:
    """Doubles the resolution by a transposed convolution with kernel = stride = 2."""
    return nn.ConvTranspose3d(inputs, outputs, 2, stride=2, bias=False)


class Climb(nn.Sequential):
    """Brings a tap up by `steps` levels: a transposed convolution each, and after the first a residual block each."""

    def __init__(self, inputs: int, outputs: int, steps: int) -> None:
        layers = [double(inputs, outputs)]
        for _ in range(steps - 1):
            layers += [double(outputs, outputs), Residual(outputs, outputs)]
        super().__init__(*layers)


class Merge(nn.Module):
    """Doubles the resolution, puts the skip beside it, and refines both."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = double(inputs, outputs)
        self.refine = Residual(2 * outputs, outputs)

    def forward(self, deep_BCZYX: Tensor, skip_BCZYX: Tensor) -> Tensor:
        """Joins what comes from below with what comes across."""
        return self.refine(torch.cat([self.up(deep_BCZYX), skip_BCZYX], dim=1))


class Unetr(nn.Module):
    """Segments a volume: (B, C, Z, Y, X) -> logits (B, classes, Z, Y, X), one tensor in training as in evaluation.

    Args:
        encoder: the transformer that pretraining hands over; `.encoder` afterwards.
        classes: number of logits, background included.
        channels: channels at full resolution.

    Raises:
        Refusal: the patch is not a power of two, or the transformer has too few blocks to tap.
    """

    def __init__(self, encoder: ViT, classes: int, channels: int) -> None:
        super().__init__()
        levels = encoder.unit_vox.bit_length() - 1
        if encoder.unit_vox != 2**levels or levels < 1:
            raise Refusal(
                f"UNETR doubles its way up from a patch of {encoder.unit_vox}: choose 2, 4, 8, 16 or 32 voxels"
            )
        self.encoder = encoder
        self.after = encoder.tap_blocks(levels - 1)
        self.shallow = Residual(encoder.channels_in, channels)
        # The earliest tap climbs highest: entry i serves level i + 1.
        self.climbs = nn.ModuleList(
            Climb(encoder.width, channels * 2**level, levels - level) for level in range(1, levels)
        )
        below = [channels * 2**level for level in range(1, levels)] + [encoder.width]
        self.merges = nn.ModuleList(Merge(below[level], channels * 2**level) for level in range(levels))
        self.head = nn.Conv3d(channels, classes, 1)

    def forward(self, volume_BCZYX: Tensor) -> Tensor:
        """Computes logits at full resolution.

        Raises:
            Refusal: a side of the volume is not a multiple of the patch.
        """
        *tapped, deep = self.encoder.taps(volume_BCZYX, self.after)
        skips = [self.shallow(volume_BCZYX)] + [climb(tap) for climb, tap in zip(self.climbs, tapped, strict=True)]
        for merge, skip in zip(reversed(self.merges), reversed(skips), strict=True):
            deep = merge(deep, skip)
        return self.head(deep)
