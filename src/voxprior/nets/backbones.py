"""Backbones by name: how large an encoder is, and how it is built.

What an encoder offers (both families):

    unit_vox                 int: side of a token (ViT) or of a mask unit (CNN), in voxels
    width                    int: channels of the deepest features that are pretrained
    channels_in              int: channels of the volumes it takes
    layers                   list: beginnings of parameter names (str, or several in a tuple), one entry a layer or
                             stage, input first
    state_dict()             what segmentation inherits, all of it
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from voxprior.errors import Refusal

if TYPE_CHECKING:
    from voxprior.nets.residual import StagedEncoder
    from voxprior.nets.vit import ViT


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
            return self._vit()
        return self._staged(self.architecture["pretrained_stages"])

    def _vit(self) -> "ViT":
        """Builds the transformer."""
        from voxprior.nets.primus import Primus
        from voxprior.nets.vit import EPS, ViT

        a = self.architecture
        sizes = (a["patch_vox"], a["width"], a["depth"], a["heads"], a["mlp_ratio"], self.channels)
        return (Primus if self.is_primus else ViT)(*sizes, a.get("learnt_zyx"), a.get("norm_eps") or EPS)

    @property
    def is_primus(self) -> bool:
        """Tells a Primus from a ViT, which needs no `kind`."""
        return self.family == "vit" and self.architecture.get("kind") == "primus"

    @property
    def is_resenc(self) -> bool:
        """Tells a ResEnc from a STU-Net, which needs no `kind`."""
        return self.family == "cnn" and self.architecture.get("kind") == "resenc"

    def _staged(self, stages: int | None = None) -> "StagedEncoder":
        """Builds the convolutional encoder, or its first stages."""
        channels, blocks = self.architecture["channels"][:stages], self.architecture["blocks"]
        if self.is_resenc:
            from voxprior.nets.resenc import ResEnc

            return ResEnc(channels, blocks, self.channels)
        from voxprior.nets.residual import ResidualEncoder

        if not isinstance(blocks, int):
            raise Refusal(f"backbone {self.name}: STU-Net has one number of blocks for all stages: make blocks one")
        return ResidualEncoder(channels, blocks, self.channels)

    def segmenter(self, classes: int, crop_vox: tuple[int, int, int]) -> nn.Module:
        """Builds the segmentation network: volume (B, channels, Z, Y, X) -> logits (B, classes, Z, Y, X).

        Its `.encoder` takes the pretrained tensors by name. In training mode it returns a list of logits, full
        resolution first, where the decoder has deep supervision; in evaluation mode one tensor.
        """
        a = self.architecture
        if self.family == "vit":
            from voxprior.nets.decoders import Unetr
            from voxprior.nets.primus import Primus, PrimusNet

            vit = self._vit()
            return PrimusNet(vit, classes) if isinstance(vit, Primus) else Unetr(vit, classes, a["decoder_channels"])
        staged: Any = self._staged()
        if self.is_resenc:
            from voxprior.nets.resenc import ResEncUNet

            return ResEncUNet(staged, classes)
        from voxprior.nets.unet import UNet

        return UNet(staged, classes)
