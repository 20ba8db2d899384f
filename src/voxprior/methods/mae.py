"""MAE3D: hide most patches of a crop, encode what is left, predict the rest.

Papers: He et al., "Masked autoencoders are scalable vision learners", CVPR 2022 (the method; eq. ?, so section names
are given, without the text at hand); Zhou et al., "Self pre-training with masked autoencoders for medical image
classification and segmentation", ISBI 2023 (MAE3D, code "SelfMedMAE").

Verified in the public code of both: masking without replacement, the encoder sees visible patches only, shared mask
token, fixed sine-cosine positions, mean squared error on masked patches only, standardised targets. In SelfMedMAE's
alone: decoder of 8 blocks, 384 wide, 12 heads; ratio 0.75 in its configurations; flips of 0.2 per axis. No result of
either paper was reproduced.

Departures, and why:
- No class token: UNETR does not use one, so nothing would be handed on.
- Crops come from anywhere in the volume. SelfMedMAE centres them with the segmentation labels, which it must not see.
- Masked = round(ratio * N) exactly; `int(N * (1 - ratio))` may lose a patch.
- Targets use the unbiased variance, as MAE does; SelfMedMAE's layer norm uses the biased one (ratio V / (V - 1)).
- The decoder takes tokens in any order with the positions that belong to them, and predicts masked patches only. The
  loss is the same; sorting the tokens back and predicting visible ones would be thrown away.
- Patches that are padding count in no loss.

Axes: B samples, C channels, Z Y X voxels, N patches (Z-major), K visible, M masked patches, L tokens from the
encoder (K, and any that stand before them), V voxels of a patch, D width of the encoder, E width of the decoder.

Dictionary: paper word -> ours. kept / visible -> visible; removed / masked, `mask == 1` -> `masked_BN` True; latent ->
`token_BKD`; patch size 16 -> `patch_vox`; `norm_pix_loss` -> `standardise_target`; ROI -> crop; epochs -> progress.
"""

from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from voxprior.errors import Refusal
from voxprior.maths.boxes import Region
from voxprior.maths.losses import masked_patch_error
from voxprior.maths.masking import split, visible_count
from voxprior.maths.patches import destandardise, grid, patchify, standardise, take, unpatchify
from voxprior.maths.positions import check_width, position_table
from voxprior.methods.contract import Batch, Term
from voxprior.methods.crop import Crop
from voxprior.nets.backbones import Backbone
from voxprior.nets.vit import EPS, Block, ViT, start_weights

TITLE = "MAE3D"


class Config(BaseModel):
    """The numbers of MAE3D; the defaults are SelfMedMAE's, with MAE's unbiased target variance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(1, ge=1, description="raised when the same numbers give other results")
    crop_vox: tuple[int, int, int] = Field((96, 96, 96), description="Z Y X, multiples of the patch")
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of patches hidden from the encoder")
    flip: float = Field(0.2, ge=0, le=1, description="probability of a flip, per axis")
    decoder_width: int = Field(384, ge=6, description="a multiple of 6 and of decoder_heads")
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(12, ge=1)
    standardise_target: bool = Field(True, description="predict patches standardised with their own mean and variance")
    variance_eps: float = Field(1e-6, gt=0, description="added to a patch's variance; larger = noise counts for less")

    @model_validator(mode="after")
    def _decoder_fits(self) -> "Config":
        check_width(self.decoder_width, "decoder_width")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_width {self.decoder_width} is no multiple of decoder_heads {self.decoder_heads}")
        if min(self.crop_vox) < 1:
            raise ValueError(f"crop_vox {self.crop_vox} must be positive")
        return self


def accepts(backbone: Backbone) -> str | None:
    """Says why a backbone cannot be pretrained by MAE3D, or None where it can."""
    if backbone.family == "vit":
        return None
    what, advice = "a convolutional network", "use spark there"
    if backbone.family == "swin":
        what, advice = "a Swin", "start it from scratch or from a file"
    return f"MAE3D drops masked patches before the encoder, which {what} cannot do: {advice}"


def token_grid(config: Config, patch_vox: int) -> tuple[int, int, int]:
    """Counts the patches of a crop along each axis.

    Raises:
        Refusal: the crop is not a multiple of the patch, or is a single patch.
    """
    grid_zyx = grid(config.crop_vox, patch_vox)
    if grid_zyx == (1, 1, 1):
        raise Refusal(f"a crop of one patch of {patch_vox} voxels leaves nothing to hide: make crop_vox larger")
    return grid_zyx


def region(config: Config, backbone: Backbone) -> Region:
    """Asks the loader for exactly the crop.

    Raises:
        Refusal: the crop is not a multiple of the backbone's patch, or is a single patch.
    """
    token_grid(config, backbone.unit_vox)
    return Region(config.crop_vox)


class Views(NamedTuple):
    """What one step sees: the flipped crop, which patches are hidden, which hold real voxels, and the keys."""

    volume_BCZYX: Tensor
    masked_BN: Tensor
    valid_BN: Tensor
    key_B: Tensor


class Decoder(nn.Module):
    """The light transformer that predicts masked patches and is thrown away. He et al. 2022, section 3 "decoder"."""

    def __init__(self, width: int, depth: int, heads: int, inputs: int, values: int) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(inputs, width)
        self.mask_token_E = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, values)
        self.apply(start_weights)

    def assemble(
        self, token_BLD: Tensor, visible_BK: Tensor, masked_BM: Tensor, grid_zyx: tuple[int, int, int]
    ) -> Tensor:
        """Puts mask tokens behind the encoder's and adds to each patch the position it stands for: (B, L + M, E).

        The last K of `token_BLD` are the visible patches; what comes before them (a class token, say) has no position.
        """
        embedded_BLE = self.embed(token_BLD)
        hidden_BME = self.mask_token_E.to(embedded_BLE.dtype).expand(*masked_BM.shape, -1)
        position_NE = position_table(grid_zyx, self.width, token_BLD.device).to(self.mask_token_E.dtype)
        placed_BNE = take(position_NE[None], torch.cat([visible_BK, masked_BM], dim=1))
        if extra := token_BLD.shape[1] - visible_BK.shape[1]:
            placed_BNE = F.pad(placed_BNE, (0, 0, extra, 0))
        return torch.cat([embedded_BLE, hidden_BME], dim=1) + placed_BNE

    def forward(
        self, token_BLD: Tensor, visible_BK: Tensor, masked_BM: Tensor, grid_zyx: tuple[int, int, int]
    ) -> Tensor:
        """Predicts the masked patches in the order of `masked_BM`: (B, M, V)."""
        token_BNE = self.assemble(token_BLD, visible_BK, masked_BM, grid_zyx)
        for block in self.blocks:
            token_BNE = block(token_BNE)
        return self.head(self.norm(token_BNE[:, -masked_BM.shape[1] :]))


def show(
    patch_BNV: Tensor,
    masked_BM: Tensor,
    predicted_BMV: Tensor,
    grid_zyx: tuple[int, int, int],
    patch_vox: int,
    eps: float | None,
) -> dict[str, Tensor]:
    """Draws crops, what the network saw of them, and what it made of the rest.

    A network that predicts standardised patches knows neither their mean nor their contrast: both are taken from the
    true patch, as MAE's own figures do. So a reconstruction shows structure, not intensity.

    Args:
        patch_BNV: the true patches.
        masked_BM: indices of the hidden ones.
        predicted_BMV: what was predicted for them.
        grid_zyx: patches along each axis.
        patch_vox: side of a patch.
        eps: what standardising added to the variance; None: predictions are intensities.

    Returns:
        `input`, `masked_input` (masked patches at 0) and `reconstruction` (predictions where masked, the input
        elsewhere): (B, Z, Y, X) float32 in [0, 1].
    """
    predicted_BMV = predicted_BMV.float()
    if eps is not None:
        predicted_BMV = destandardise(predicted_BMV, take(patch_BNV, masked_BM), eps)
    place_BMV = masked_BM[..., None].expand_as(predicted_BMV)
    shown = {
        "input": patch_BNV,
        "masked_input": patch_BNV.scatter(1, place_BMV, 0.0),
        "reconstruction": patch_BNV.scatter(1, place_BMV, predicted_BMV),
    }
    return {name: unpatchify(of, grid_zyx, patch_vox)[:, 0].clamp(0, 1) for name, of in shown.items()}


class PatchError(nn.Module):
    """Compares what was predicted with the masked patches: a part of its own, so that it is compiled."""

    compiled = True

    def __init__(self, standardised: bool, variance_eps: float) -> None:
        super().__init__()
        self.standardised = standardised
        self.variance_eps = variance_eps

    def target(self, patch_BMV: Tensor) -> Tensor:
        """Returns what is to be predicted, float32. He et al. 2022, section 3 "reconstruction target"."""
        return standardise(patch_BMV, self.variance_eps) if self.standardised else patch_BMV.float()

    def forward(
        self, prediction_BMV: Tensor, patch_BNV: Tensor, masked_BM: Tensor, valid_BN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the sum of the errors of masked patches that are valid, and their number."""
        target_BMV = self.target(take(patch_BNV, masked_BM))
        return masked_patch_error(prediction_BMV, target_BMV, valid_BN.gather(1, masked_BM))


class Model(nn.Module):
    """MAE3D on the contract of `methods.contract`."""

    def __init__(self, config: Config, encoder: ViT) -> None:
        super().__init__()
        self.config = config
        self.error = PatchError(config.standardise_target, config.variance_eps)
        self.encoder = encoder
        self.patch_vox = encoder.unit_vox
        self.grid_zyx = token_grid(config, self.patch_vox)
        self.crop = Crop(config.crop_vox, self.patch_vox, config.mask_ratio, config.flip)
        z, y, x = self.grid_zyx
        self.visible = visible_count(z * y * x, config.mask_ratio)
        self.student_voxels = z * y * x * self.patch_vox**3
        self.decoder = Decoder(
            config.decoder_width,
            config.decoder_depth,
            config.decoder_heads,
            encoder.width,
            self.patch_vox**3 * encoder.channels_in,
        )

    def views(self, batch: Batch, key_B: Tensor) -> Views:
        """Flips the crop, hides patches and notes which patches are real. He et al. 2022, section 3 "masking"."""
        volume_BCZYX, masked_BN, valid_BN = self.crop(batch, key_B)
        return Views(volume_BCZYX, masked_BN, valid_BN, key_B)

    def forward(self, views: Views, progress: float) -> dict[str, Term]:
        """Encodes visible patches, predicts masked ones, and sums their error. `progress` plays no part."""
        patch_BNV = patchify(views.volume_BCZYX, self.patch_vox)
        visible_BK, masked_BM = split(views.masked_BN, self.visible)
        prediction_BMV = self.predict(patch_BNV, visible_BK, masked_BM)
        return {"reconstruction": Term(*self.error(prediction_BMV, patch_BNV, masked_BM, views.valid_BN))}

    def predict(self, patch_BNV: Tensor, visible_BK: Tensor, masked_BM: Tensor) -> Tensor:
        """Predicts the masked patches from the visible ones: (B, M, V). He et al. 2022, section 3, encoder, decoder."""
        token_BKD = self.encoder(patch_BNV, self.grid_zyx, visible_BK)
        return self.decoder(token_BKD, visible_BK, masked_BM, self.grid_zyx)

    def after_step(self, progress: float, total_steps: int) -> None:
        """Does nothing: no teacher follows this student."""

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Shows `input`, `masked_input` and `reconstruction`, see `show`."""
        patch_BNV = patchify(views.volume_BCZYX, self.patch_vox)
        visible_BK, masked_BM = split(views.masked_BN, self.visible)
        predicted_BMV = self.predict(patch_BNV, visible_BK, masked_BM)
        eps = self.config.variance_eps if self.config.standardise_target else None
        return show(patch_BNV, masked_BM, predicted_BMV, self.grid_zyx, self.patch_vox, eps)
