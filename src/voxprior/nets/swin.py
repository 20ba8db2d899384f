"""MONAI's Swin transformer as an encoder of stages, and its SwinUNETR as the segmentation network.

Windows, shifts and blocks, and the decoder's blocks, are MONAI's own; here they are put together, so that an encoder
can end early, can be built without memory, and merges cells the same way whatever MONAI's version. Parameters have
MONAI's names: of `SwinUNETR.swinViT` in the encoder, of the rest of SwinUNETR in the decoder.

MONAI's arrays are X Y Z and ours Z Y X, and neither its merging nor its windows treat the axes alike: where a map is
smaller than a window, positions are looked up in the order of the axes. So the encoder turns the volume to X Y Z and
its maps back, and takes MONAI's weights as they are.

Stage 0 is the patch embedding at half the resolution; stage k, 1 to 4, has 1 / 2^(k + 1) of it and 2^k times the width.

Axes: B samples, C channels, Z Y X voxels, z y x cells, in this order or turned.

Source: Hatamizadeh et al., "Swin UNETR", 2022, arXiv 2201.01266; Tang et al., "Self-supervised pre-training of Swin
transformers", CVPR 2022, arXiv 2111.14791; MONAI 1.6 (Apache-2.0).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxprior.errors import Refusal
from voxprior.nets.residual import StagedEncoder
from voxprior.nets.sparse import Visible

# Which of a cell's eight children, X Y Z, a merged token is made of. Before version 1.5 MONAI took two of them twice
# and two never; weights of that time have learnt so.
CHILDREN = {
    "all": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "repeated": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}


class Merging(nn.Module):
    """Makes one cell of eight: (B, x, y, z, C) -> (B, x / 2, y / 2, z / 2, 2 C), sides rounded up."""

    def __init__(self, channels: int, children: str) -> None:
        super().__init__()
        self.children_xyz = CHILDREN[children]
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, cell_BxyzC: Tensor) -> Tensor:
        """Puts the children's channels side by side, normalises and reduces them."""
        x, y, z = cell_BxyzC.shape[1:4]
        cell_BxyzC = F.pad(cell_BxyzC, (0, 0, 0, z % 2, 0, y % 2, 0, x % 2))
        children = [cell_BxyzC[:, i::2, j::2, k::2] for i, j, k in self.children_xyz]
        return self.reduction(self.norm(torch.cat(children, -1)))


class Swin(StagedEncoder):
    """Encodes volumes into the normalised maps of every stage, half the resolution first.

    Args:
        width: channels of the patch embedding, a multiple of 12.
        depths: blocks per stage.
        heads: attention heads per stage.
        window: side of a window in cells.
        children: one of `CHILDREN`.
        channels_in: channels of a volume.
        stages: number of maps, patch embedding included.
    """

    first_stride = 2

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int = 7,
        children: str = "all",
        channels_in: int = 1,
        stages: int = 5,
    ) -> None:
        from monai.networks.nets.swin_unetr import BasicLayer

        super().__init__([width * 2**number for number in range(stages)], channels_in)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(channels_in, width, 2, stride=2)})
        for number in range(1, stages):
            channels, depth = width * 2 ** (number - 1), depths[number - 1]
            sizes = (channels, depth, heads[number - 1], (window,) * 3)
            layer = BasicLayer(*sizes, drop_path=[0.0] * depth, qkv_bias=True, downsample=None)
            layer.downsample = Merging(channels, children)
            for block in layer.blocks:
                block.recomputed = True  # type: ignore[assignment]  # where memory is short (`engine/recompute.py`)
            self.add_module(f"layers{number}", nn.ModuleList([layer]))
        for part in self.modules():
            if isinstance(index := getattr(part, "relative_position_index", None), Tensor):
                # Follows from the window: no weight, so no business of files, averages and load reports.
                del part.relative_position_index
                part.register_buffer("relative_position_index", index, persistent=False)

    def stage_start(self, stage: int) -> str:
        """Returns what the names of a stage's parameters begin with."""
        return f"layers{stage}." if stage else "patch_embed."

    @property
    def layers(self) -> list[str]:
        """Names what the stages' parameters begin with, input first."""
        return [self.stage_start(number) for number in range(len(self.channels))]

    def forward(self, volume_BCZYX: Tensor, visible: list[Visible] | None = None) -> list[Tensor]:
        """Returns the maps of every stage, (B, C, z, y, x), each cell normalised over its channels, without weights.

        Raises:
            Refusal: something is to be hidden, which windows that reach over it cannot do.
        """
        if visible is not None:
            raise Refusal("a Swin transformer cannot leave masked voxels out: take a cnn backbone to mask convolutions")
        map_BCxyz = self.patch_embed["proj"](volume_BCZYX.transpose(2, 4).contiguous())
        maps = [map_BCxyz]
        for number in range(1, len(self.channels)):
            layers: Any = getattr(self, f"layers{number}")
            map_BCxyz = layers[0](map_BCxyz.contiguous())
            maps.append(map_BCxyz)
        normed_BxyzC = [F.layer_norm(one.movedim(1, -1), one.shape[1:2]) for one in maps]
        return [one.permute(0, 4, 3, 2, 1).contiguous() for one in normed_BxyzC]


class SwinUnetr(nn.Module):
    """Segments a volume: (B, C, Z, Y, X) -> logits (B, classes, Z, Y, X), one tensor in training as in evaluation."""

    def __init__(self, encoder: Swin, classes: int) -> None:
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock

        super().__init__()
        self.encoder = encoder
        width = encoder.channels[0]

        def refine(channels_in: int, times: int) -> nn.Module:
            return UnetrBasicBlock(3, channels_in, times * width, 3, 1, "instance", res_block=True)

        def rise(channels_in: int, times: int) -> nn.Module:
            return UnetrUpBlock(3, channels_in, times * width, 3, 2, "instance", res_block=True)

        parts = {"encoder1": refine(encoder.channels_in, 1), "decoder1": rise(width, 1)}
        for name, times in (("encoder2", 1), ("encoder3", 2), ("encoder4", 4), ("encoder10", 16)):
            parts[name] = refine(times * width, times)
        for name, times in (("decoder5", 8), ("decoder4", 4), ("decoder3", 2), ("decoder2", 1)):
            parts[name] = rise(2 * times * width, times)
        parts["out"] = UnetOutBlock(3, width, classes)
        self.decoder = nn.ModuleDict(parts)

    def forward(self, volume_BCZYX: Tensor) -> Tensor:
        """Computes logits at full resolution.

        Raises:
            Refusal: a side is no multiple of 32, or the deepest map would be a single cell.
        """
        self.encoder.check_size(volume_BCZYX)
        if any(side % self.encoder.unit_vox for side in volume_BCZYX.shape[2:]):
            raise Refusal(f"SwinUNETR takes crops whose sides are multiples of {self.encoder.unit_vox} voxels")
        maps, part = self.encoder(volume_BCZYX), self.decoder
        deep = part["decoder5"](part["encoder10"](maps[4]), maps[3])
        for number in (4, 3, 2):
            deep = part[f"decoder{number}"](deep, part[f"encoder{number}"](maps[number - 2]))
        return part["out"](part["decoder1"](deep, part["encoder1"](volume_BCZYX)))
