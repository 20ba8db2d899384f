"""A vision transformer for volumes that computes only the tokens it is shown.

Raw patches are gathered first and embedded afterwards, so a masked patch costs nothing and nothing of it, not even a
NaN, can reach a token or a weight's gradient. There is no class token, and no learnt position unless asked for: the
state_dict is exactly what segmentation inherits.

Axes: B samples, C channels, Z Y X voxels, z y x tokens along each axis, N all tokens (Z-major), K shown tokens,
T extra tokens, V voxels of a patch, D width, H heads.

Source: Dosovitskiy et al., "An image is worth 16x16 words", 2021; He et al. 2022 (MAE) for the visible-only encoder;
Hatamizadeh et al., "UNETR", 2022, for the taps.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from voxprior.errors import Refusal
from voxprior.maths.patches import grid, patchify, take
from voxprior.maths.positions import check_width, position_table

EPS = 1e-6  # of LayerNorm, as in MAE; torch's default of 1e-5 gives visibly other features


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). (B, L, D) -> (B, L, D)."""

    recomputed = True  # where memory is short (`engine/recompute.py`)

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, eps: float = EPS) -> None:
        super().__init__()
        if width % heads:
            raise Refusal(
                f"a transformer width of {width} cannot be shared by {heads} heads: choose a divisor of {width}"
            )
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, int(mlp_ratio * width))
        self.fc2 = nn.Linear(int(mlp_ratio * width), width)

    def forward(self, token_BLD: Tensor) -> Tensor:
        """Mixes the tokens."""
        q, k, v = rearrange(self.qkv(self.norm1(token_BLD)), "b l (s h e) -> s b h l e", s=3, h=self.heads)
        mixed_BHLE = F.scaled_dot_product_attention(q, k, v)
        token_BLD = token_BLD + self.proj(rearrange(mixed_BHLE, "b h l e -> b l (h e)"))
        return token_BLD + self.fc2(F.gelu(self.fc1(self.norm2(token_BLD))))


def start_weights(module: nn.Module) -> None:
    """Draws a linear layer's weights by Xavier's uniform rule, biases zero. Source: He et al. 2022, appendix A.1."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class ViT(nn.Module):
    """Encodes patches into tokens.

    A subclass may have other blocks (`block`), give them more than the tokens (`turns`) and begin otherwise (`start`).

    Args:
        patch_vox: side of a patch in voxels.
        width: channels of a token, a multiple of 6 and of `heads`.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over `width`.
        channels_in: channels of a volume.
        learnt_zyx: tokens along each axis of a grid whose positions are learnt; None: fixed sines (`maths/positions`).
        eps: of the norms.

    Raises:
        Refusal: `width` is not a multiple of 6 or of `heads`.
    """

    block: type[nn.Module] = Block

    def __init__(
        self,
        patch_vox: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        channels_in: int = 1,
        learnt_zyx: Sequence[int] | None = None,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        check_width(width, "a transformer width")
        self.unit_vox = patch_vox
        self.width = width
        self.channels_in = channels_in
        self.embed = nn.Linear(patch_vox**3 * channels_in, width)  # equals a convolution with kernel = stride = patch
        self.blocks = nn.ModuleList(self.block(width, heads, mlp_ratio, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.learnt_zyx = tuple(learnt_zyx) if learnt_zyx else None
        if self.learnt_zyx:
            self.position_ND = nn.Parameter(
                position_table(grid(self.learnt_zyx, 1), width, self.embed.weight.device).clone()
            )
        self.start()

    def start(self) -> None:
        """Draws the first weights; learnt positions begin as sines."""
        self.apply(start_weights)

    def positions(self, grid_zyx: tuple[int, int, int]) -> Tensor:
        """Returns the positions of a grid's tokens, (N, D); learnt ones are interpolated for another grid."""
        if self.learnt_zyx is None:
            return position_table(grid_zyx, self.width, self.embed.weight.device).to(self.embed.weight.dtype)
        if self.learnt_zyx == tuple(grid_zyx):
            return self.position_ND
        known_1Dzyx = self.position_ND.T.unflatten(1, self.learnt_zyx)[None]
        return F.interpolate(known_1Dzyx, grid_zyx, mode="trilinear", align_corners=False)[0].flatten(1).T

    def turns(self, grid_zyx: tuple[int, int, int], visible_BK: Tensor | None = None, extra: int = 0) -> list[Tensor]:
        """Returns what the blocks take beside the tokens: nothing here.

        Args:
            grid_zyx: patches along each axis.
            visible_BK: which of them the tokens are; None: all.
            extra: tokens in front of them that have no place.
        """
        return []

    @property
    def layers(self) -> list[str | tuple[str, ...]]:
        """Names what the layers' parameters begin with, input first; the last norm belongs to none.

        Learnt positions belong to the first layer, as in BEiT.
        """
        return [("embed.", "position_ND"), *(f"blocks.{number}." for number in range(len(self.blocks)))]

    def tokens(self, patch_BNV: Tensor, grid_zyx: tuple[int, int, int], visible_BK: Tensor | None = None) -> Tensor:
        """Embeds the visible patches and adds their positions: (B, K, D); all patches where `visible_BK` is None."""
        position_ND = self.positions(grid_zyx)
        if visible_BK is None:
            return self.embed(patch_BNV) + position_ND
        return self.embed(take(patch_BNV, visible_BK)) + take(position_ND[None], visible_BK)

    def forward(
        self,
        patch_BNV: Tensor,
        grid_zyx: tuple[int, int, int],
        visible_BK: Tensor | None = None,
        extra_BTD: Tensor | None = None,
    ) -> Tensor:
        """Encodes the visible patches.

        Args:
            patch_BNV: raw patches, all of them, as `patchify` cuts them.
            grid_zyx: patches along each axis. Never guessed from N: 288 patches are 12x12x2 as well as 6x6x8.
            visible_BK: int64 indices of the patches that the network sees; None: all.
            extra_BTD: tokens of the method's own, put in front as they are (a class token, say).

        Returns:
            (B, T + K, D) normalised tokens, in the order of `visible_BK`.
        """
        token_BLD = self.tokens(patch_BNV, grid_zyx, visible_BK)
        turns = self.turns(grid_zyx, visible_BK, 0 if extra_BTD is None else extra_BTD.shape[1])
        if extra_BTD is not None:
            token_BLD = torch.cat([extra_BTD.to(token_BLD.dtype), token_BLD], dim=1)
        for block in self.blocks:
            token_BLD = block(token_BLD, *turns)
        return self.norm(token_BLD)

    def tap_blocks(self, count: int = 3) -> tuple[int, ...]:
        """Chooses after which blocks (1 = the first) to tap: 4, 7, 10 for three taps of twelve blocks, else scaled.

        Raises:
            Refusal: there are too few blocks for that many different taps.
        """
        depth = len(self.blocks)
        after = tuple(round(depth * (1 / 12 + 9 / 12 * i / count)) for i in range(1, count + 1))
        if len(set(after)) < count or min(after, default=1) < 1:
            raise Refusal(f"a transformer of {depth} blocks cannot be tapped {count} times: make it {count + 1} deep")
        return after

    def taps(self, volume_BCZYX: Tensor, after: tuple[int, ...] | None = None) -> list[Tensor]:
        """Encodes a whole volume and returns maps (B, D, z, y, x): after the given blocks, and the normalised last.

        Args:
            volume_BCZYX: sides are multiples of the patch.
            after: block numbers, 1 = the first; default `tap_blocks()`.

        Raises:
            Refusal: a side is not a multiple of the patch.
        """
        after = self.tap_blocks() if after is None else after
        z, y, x = grid_zyx = grid(tuple(volume_BCZYX.shape), self.unit_vox)
        token_BND = self.tokens(patchify(volume_BCZYX, self.unit_vox), grid_zyx)
        turns, tapped = self.turns(grid_zyx), []
        for number, block in enumerate(self.blocks, start=1):
            token_BND = block(token_BND, *turns)
            if number in after:
                tapped.append(token_BND)
        tapped.append(self.norm(token_BND))
        return [rearrange(token_BND, "b (z y x) d -> b d z y x", z=z, y=y, x=x) for token_BND in tapped]
