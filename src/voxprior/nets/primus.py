"""Primus: a transformer of EVA-02's blocks whose decoder is too light to segment without it.

It is our ViT with other blocks: places turn queries and keys (rotary positions) beside learnt positions, the MLP is
gated (SwiGLU) and normalised inside, attention's output is normalised before it is projected, and each branch has a
learnt scale per channel. Patches are gathered before they are embedded, as in the ViT, so masked ones cost nothing.
The decoder is a transposed convolution per power of two of the patch, from the last tokens alone.

Departure: no stochastic depth (the authors' 0.2 in training), which would draw from chance that is not counted.

Axes: B samples, C channels, Z Y X voxels, N all tokens, K shown tokens, L tokens of a sample, D width, H heads,
E channels of a head, F = E / 2 pairs of them.

Source: Wald et al., "Primus: Enforcing attention usage for 3D medical image segmentation", 2025, arXiv 2503.01835;
Fang et al., "EVA-02", 2023, arXiv 2303.11331, for the blocks; first weights and the decoder's widths as in the package
dynamic-network-architectures 0.4.4 (Apache-2.0).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from voxprior.errors import Refusal
from voxprior.maths.patches import take
from voxprior.maths.positions import angle_table, turn
from voxprior.nets.vit import EPS, ViT

FIRST_SCALE = 0.1  # of a branch
_SPREAD = 0.02  # of first weights and positions
_SLOPE = 0.01  # of the leaky ReLU that the first weights of patch embedding and decoder are drawn for


class EvaBlock(nn.Module):
    """Pre-norm block: x + scale1 attention(norm1(x)), then x + scale2 mlp(norm2(x)). (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float = EPS) -> None:
        super().__init__()
        if width % heads:
            raise Refusal(
                f"a transformer width of {width} cannot be shared by {heads} heads: choose a divisor of {width}"
            )
        self.heads = heads
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)  # a constant in all keys changes no softmax
        self.v = nn.Linear(width, width)
        self.mixed_norm = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Linear(width, width)
        self.scale1_D = nn.Parameter(torch.full((width,), FIRST_SCALE))
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.gate = nn.Linear(width, hidden)
        self.fc1 = nn.Linear(width, hidden)
        self.hidden_norm = nn.LayerNorm(hidden, eps=eps)
        self.fc2 = nn.Linear(hidden, width)
        self.scale2_D = nn.Parameter(torch.full((width,), FIRST_SCALE))

    def forward(self, token_BLD: Tensor, cos_BLF: Tensor, sin_BLF: Tensor) -> Tensor:
        """Mixes the tokens, whose places are the angles of these cosines and sines."""
        normed_BLD = self.norm1(token_BLD)
        q, k, v = (
            rearrange(part(normed_BLD), "b l (h e) -> b h l e", h=self.heads) for part in (self.q, self.k, self.v)
        )
        mixed_BHLE = F.scaled_dot_product_attention(turn(q, cos_BLF, sin_BLF), turn(k, cos_BLF, sin_BLF), v)
        mixed_BLD = self.mixed_norm(rearrange(mixed_BHLE, "b h l e -> b l (h e)"))
        token_BLD = token_BLD + self.scale1_D * self.proj(mixed_BLD)
        normed_BLD = self.norm2(token_BLD)
        hidden_BLD = self.hidden_norm(F.silu(self.gate(normed_BLD)) * self.fc1(normed_BLD))
        return token_BLD + self.scale2_D * self.fc2(hidden_BLD)


class Primus(ViT):
    """Encodes patches into tokens: `ViT` with the blocks above. Arguments as there; `learnt_zyx` is not optional.

    Raises:
        Refusal: `width` is not a multiple of `heads`, or a head's of 6, or there is no grid of learnt positions.
    """

    block = EvaBlock

    def __init__(
        self,
        patch_vox: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 8 / 3,
        channels_in: int = 1,
        learnt_zyx: Sequence[int] | None = None,
        eps: float = EPS,
    ) -> None:
        if not learnt_zyx:
            raise Refusal("a Primus has learnt positions: set learnt_zyx to the tokens of its grid")
        super().__init__(patch_vox, width, depth, heads, mlp_ratio, channels_in, learnt_zyx, eps)
        self.pairs = width // heads // 2
        angle_table((1, 1, 1), self.pairs, self.embed.weight.device)  # refuses heads that three axes cannot share

    def start(self) -> None:
        """Draws the first weights as EVA's and Primus's code do: a branch is the smaller the deeper it lies."""
        self.apply(_start_linear)
        nn.init.trunc_normal_(self.position_ND, std=_SPREAD)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                for last in (block.proj, block.fc2):
                    cast(nn.Linear, last).weight.div_(math.sqrt(2.0 * number))
        _start_convolution(self.embed)

    def turns(self, grid_zyx: tuple[int, int, int], visible_BK: Tensor | None = None, extra: int = 0) -> list[Tensor]:
        """Returns cosines and sines of the places' angles, (B or 1, extra + K, F); what has no place is not turned."""
        angle_1NF = angle_table(grid_zyx, self.pairs, self.embed.weight.device)[None]
        angle_BLF = angle_1NF if visible_BK is None else take(angle_1NF, visible_BK)
        angle_BLF = F.pad(angle_BLF, (0, 0, extra, 0))
        return [angle_BLF.cos(), angle_BLF.sin()]


def _start_linear(module: nn.Module) -> None:
    """Draws a linear layer's weights from a normal distribution cut at +-2, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_SPREAD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _start_convolution(module: nn.Linear | nn.ConvTranspose3d) -> None:
    """Draws weights by He's rule for leaky ReLU, biases zero."""
    nn.init.kaiming_normal_(module.weight, a=_SLOPE)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel: (B, C, Z, Y, X) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features_BCZYX: Tensor) -> Tensor:
        """Normalises."""
        last_BZYXC = features_BCZYX.movedim(1, -1)
        return F.layer_norm(last_BZYXC, self.weight.shape, self.weight, self.bias, EPS).movedim(-1, 1)


def decoder_widths(width: int, classes: int, steps: int) -> list[int]:
    """Counts the decoder's channels: from the tokens' width down to the classes by equal factors, in multiples of 8.

    The factor would end at twice the classes; the last entry is the classes all the same.
    """
    factor = (width / (2 * classes)) ** (1 / steps)
    between = [max(8, round((width / factor**step + 1e-6) / 8) * 8) for step in range(1, steps)]
    return [width, *between, classes]


class PrimusNet(nn.Module):
    """Segments a volume: (B, C, Z, Y, X) -> logits (B, classes, Z, Y, X), one tensor in training as in evaluation.

    Raises:
        Refusal: the patch is not a power of two.
    """

    def __init__(self, encoder: Primus, classes: int) -> None:
        super().__init__()
        steps = encoder.unit_vox.bit_length() - 1
        if encoder.unit_vox != 2**steps or steps < 1:
            raise Refusal(f"Primus doubles its way up from a patch of {encoder.unit_vox}: choose 2, 4, 8 or 16 voxels")
        self.encoder = encoder
        widths = decoder_widths(encoder.width, classes, steps)
        self.rises = nn.ModuleList(nn.ConvTranspose3d(before, after, 2, stride=2) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(ChannelNorm(after) for after in widths[1:-1])
        for rise in self.rises:
            _start_convolution(cast(nn.ConvTranspose3d, rise))

    def forward(self, volume_BCZYX: Tensor) -> Tensor:
        """Computes logits at full resolution.

        Raises:
            Refusal: a side of the volume is not a multiple of the patch.
        """
        (feature_BCZYX,) = self.encoder.taps(volume_BCZYX, ())
        for rise, norm in zip(self.rises, self.norms, strict=False):
            feature_BCZYX = F.gelu(norm(rise(feature_BCZYX)))
        return self.rises[-1](feature_BCZYX)
