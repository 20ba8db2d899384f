"""Backbones by name: how large an encoder is, and how it is built.

What an encoder offers (both families):

    unit_vox                 int: side of a token (ViT) or of a mask unit (CNN), in voxels
    width                    int: channels of the deepest features that are pretrained
    channels_in              int: channels of the volumes it takes
    layers                   list[str]: beginnings of parameter names, one a layer or stage, input first
    state_dict()             what segmentation inherits, all of it
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True)
class Backbone:
    """One backbone: family and the fields of `configuration.Vit` or `configuration.Cnn`."""

    name: str
    family: Literal["vit", "cnn"]
    architecture: dict[str, Any]
    channels: int = 1  # of the volumes

    @property
    def unit_vox(self) -> int:
        """Side of a token or mask unit in voxels; crops must be multiples of it."""
        if self.family == "vit":
            return int(self.architecture["patch_vox"])
        return int(2 ** (self.architecture["pretrained_stages"] - 1))

    @property
    def segmenter_unit_vox(self) -> int:
        """What the sides of a fine-tuning crop must be multiples of: the patch, or the deepest stride."""
        if self.family == "vit":
            return self.unit_vox
        return int(2 ** (len(self.architecture["channels"]) - 1))

    def encoder(self) -> nn.Module:
        """Builds the encoder as it is pretrained (a CNN without the stages below the mask unit)."""
        if self.family == "vit":
            from voxprior.nets.vit import ViT

            a = self.architecture
            return ViT(a["patch_vox"], a["width"], a["depth"], a["heads"], a["mlp_ratio"], self.channels)
        from voxprior.nets.residual import ResidualEncoder

        a = self.architecture
        return ResidualEncoder(a["channels"][: a["pretrained_stages"]], a["blocks"], self.channels)

    def segmenter(self, classes: int, crop_vox: tuple[int, int, int]) -> nn.Module:
        """Builds the segmentation network: volume (B, channels, Z, Y, X) -> logits (B, classes, Z, Y, X).

        Its `.encoder` takes the pretrained tensors by name. In training mode it returns a list of logits, full
        resolution first, where the decoder has deep supervision; in evaluation mode one tensor.
        """
        a = self.architecture
        if self.family == "vit":
            from voxprior.nets.decoders import Unetr
            from voxprior.nets.vit import ViT

            encoder = ViT(a["patch_vox"], a["width"], a["depth"], a["heads"], a["mlp_ratio"], self.channels)
            return Unetr(encoder, classes, a["decoder_channels"])
        from voxprior.nets.residual import ResidualEncoder
        from voxprior.nets.unet import UNet

        return UNet(ResidualEncoder(a["channels"], a["blocks"], self.channels), classes)
