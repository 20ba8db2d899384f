"""SparK in 3-D: a convolutional encoder sees part of a crop, a light decoder paints the rest.

Paper: Tian et al., "Designing BERT for convolutional networks: sparse and hierarchical masked modeling", ICLR 2023,
arXiv 2301.03580. The 3-D form follows Li et al., "AnatoMask", 2024, arXiv 2407.06468, which trains SparK as its
baseline on STU-Net.

Verified in the authors' code: mask unit = total stride, ratio 0.6, sparse convolution by masking outputs, mask tokens
per level, decoder blocks, sums of skips, standardised target (unbiased variance, 1e-6), loss on masked patches alone.
Not verified: the equation numbers (no text of the paper's body could be read), hence `eq. ?`.

Departures:
    decoder norm     GroupNorm, not BatchNorm: crops are few per process, and no statistics cross samples or processes;
                     `decoder_norm: batch` has the code's, of the batch at hand alone, for the teacher too.
    encoder norm     statistics per sample over its visible voxels; the 3-D code pools them over the batch, so that
                     samples leak into one another and fine-tuning meets another normalisation than pretraining.
    densified levels only those the decoder adds; the code also prepares full resolution and throws it away.
    augmentation     flips alone, so that all methods share one small set; the code adds rotation and scaling.
    padding          patches that are padding alone are outside the loss.

Axes: B samples, C channels, Z Y X voxels, N patches (mask units, Z-major), V values of one patch.

Words: mask unit, patch = patch; active = visible; inactive, masked = masked; densify = fill; mask embedding, mask
token = token; hierarchical encoder = encoder; LightDecoder = decoder.
"""

import math
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.maths import patches
from voxprior.maths.boxes import Region
from voxprior.methods.contract import Batch, Term
from voxprior.methods.crop import Crop
from voxprior.nets.backbones import Backbone
from voxprior.nets.batchnorm import MapStatistics
from voxprior.nets.residual import StagedEncoder
from voxprior.nets.sparse import InstanceNorm, Visible, visible_pyramid

TITLE = "SparK"


class Config(BaseModel):
    """SparK's numbers; the defaults are those of the 3-D code at STU-Net-B."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    crop_vox: tuple[int, int, int] = Field((112, 112, 128), description="sides are multiples of the mask unit")
    mask_ratio: float = Field(0.6, gt=0, lt=1)
    decoder_width: int = Field(512, ge=1, description="channels at the deepest level; halved at every level above")
    decoder_norm: Literal["group", "batch"] = Field(
        "group", description="batch: over all samples and processes, as in the authors' code"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring, per axis")


class Views(NamedTuple):
    """One augmented crop per sample, what is hidden of it, and which patches hold real voxels."""

    volume_BCZYX: Tensor
    masked_BN: Tensor
    valid_BN: Tensor


def accepts(backbone: Backbone) -> str | None:
    """Returns None where SparK can pretrain the backbone, else one sentence why not."""
    if backbone.family != "cnn":
        other = ", or mae" if backbone.family == "vit" else ""
        return f"SparK masks convolutions and {backbone.name} is a {backbone.family}: take a cnn backbone{other}"
    stages, pretrained = len(backbone.architecture["channels"]), backbone.architecture["pretrained_stages"]
    if not 2 <= pretrained <= stages:
        return f"SparK needs 2 to {stages} pretrained stages and {backbone.name} has {pretrained}: change the backbone"
    return None


def region(config: Config, backbone: Backbone) -> Region:
    """Asks the loader for the crop itself.

    Raises:
        Refusal: a side of the crop is no multiple of the backbone's mask unit, or there is nothing to hide.
    """
    cells = patches.grid(config.crop_vox, backbone.unit_vox)
    if math.prod(cells) < 2:
        raise Refusal(f"spark: crop_vox holds a single mask unit of {backbone.unit_vox} voxels: make the crop larger")
    return Region(config.crop_vox)


def patch_loss(predicted_BNV: Tensor, patch_BNV: Tensor) -> Tensor:
    """Computes the mean squared error of every patch against its standardised voxels: (B, N) float32 (eq. ?)."""
    return (predicted_BNV.float() - patches.standardise(patch_BNV)).square().mean(dim=-1)


class Fill(nn.Module):
    """Makes one level dense: normalises what is visible, puts the learnt token where nothing is, projects (eq. ?).

    The deepest level passes a 1x1x1 convolution, or none where its channels are the decoder's; others a 3x3x3 one.
    """

    def __init__(self, channels_in: int, channels_out: int, deepest: bool) -> None:
        super().__init__()
        self.norm = InstanceNorm(channels_in, eps=1e-6)
        self.token = nn.Parameter(torch.empty(1, channels_in, 1, 1, 1))
        nn.init.trunc_normal_(self.token, std=0.02, a=-0.02, b=0.02)
        kernel = 1 if deepest else 3
        same = deepest and channels_in == channels_out
        self.project = nn.Identity() if same else nn.Conv3d(channels_in, channels_out, kernel, padding=kernel // 2)

    def forward(self, feature_BCZYX: Tensor, visible: Visible) -> Tensor:
        """Returns the dense level, (B, channels_out, Z, Y, X)."""
        normed_BCZYX = self.norm(feature_BCZYX, visible)
        token_1C111 = self.token.to(normed_BCZYX.dtype)
        return self.project(torch.where(visible.voxels_B1ZYX, normed_BCZYX, token_1C111))


def _norm(kind: str, channels: int) -> nn.Module:
    return MapStatistics(channels) if kind == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)


class DecoderBlock(nn.Module):
    """Doubles the resolution and halves the channels: transposed convolution, then two 3x3x3 ones, each with a norm."""

    recomputed = True  # where memory is short (`engine/recompute.py`)

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(channels, channels, kernel_size=4, stride=2, padding=1)
        self.conv1 = nn.Conv3d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv3d(channels, channels // 2, kernel_size=3, padding=1, bias=False)
        self.norm2 = _norm(norm, channels // 2)
        nn.init.kaiming_normal_(self.up.weight, mode="fan_out")
        nn.init.zeros_(cast(Tensor, self.up.bias))
        for conv in (self.conv1, self.conv2):
            nn.init.trunc_normal_(conv.weight, std=0.02)

    def forward(self, feature_BCZYX: Tensor) -> Tensor:
        """Returns half the channels at twice the resolution."""
        feature_BCZYX = F.relu6(self.norm1(self.conv1(self.up(feature_BCZYX))))
        return self.norm2(self.conv2(feature_BCZYX))


class Decoder(nn.Module):
    """Paints a crop from the visible features of every stride but the first; discarded after pretraining."""

    def __init__(self, channels: tuple[int, ...], width: int, norm: str = "group", painted: int = 1) -> None:
        super().__init__()
        levels = len(channels) - 1
        if width % 2**levels:
            raise Refusal(f"decoder_width {width} cannot be halved {levels} times: make it a multiple of {2**levels}")
        self.fills = nn.ModuleList(Fill(c, width // 2**i, deepest=i == 0) for i, c in enumerate(reversed(channels[1:])))
        self.blocks = nn.ModuleList(DecoderBlock(width // 2**i, norm) for i in range(levels))
        self.head = nn.Conv3d(width // 2**levels, painted, kernel_size=1)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(cast(Tensor, self.head.bias))

    def forward(self, features: list[Tensor], visible: list[Visible]) -> Tensor:
        """Takes features and masks of the encoder's strides, finest first; returns (B, painted, Z, Y, X)."""
        painted_BCZYX: Tensor | float = 0.0
        levels = zip(self.fills, self.blocks, reversed(features[1:]), reversed(visible[1:]), strict=True)
        for fill, block, feature_BCZYX, level in levels:
            painted_BCZYX = block(painted_BCZYX + fill(feature_BCZYX, level))
        return self.head(painted_BCZYX)


def reconstruct(encoder: StagedEncoder, decoder: Decoder, volume_BCZYX: Tensor, masked_BN: Tensor) -> Tensor:
    """Predicts the standardised voxels of every patch from the visible ones alone: (B, N, V).

    A function of its arguments: nothing of masked patches reaches the result, whatever they hold.
    """
    cells_zyx = patches.grid(tuple(volume_BCZYX.shape), encoder.unit_vox)
    visible = visible_pyramid(masked_BN, cells_zyx, len(encoder.channels))
    painted_BCZYX = decoder(encoder(volume_BCZYX, visible), visible)
    return patches.patchify(painted_BCZYX, encoder.unit_vox)


class Model(nn.Module):
    """Trains an encoder by painting masked patches.

    Raises:
        Refusal: the crop is no multiple of the mask unit, or the decoder's width cannot be halved at every level.
    """

    def __init__(self, config: Config, encoder: StagedEncoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.decoder = Decoder(encoder.channels, config.decoder_width, config.decoder_norm, encoder.channels_in)
        self.cells_zyx = patches.grid(config.crop_vox, encoder.unit_vox)
        self.crop = Crop(config.crop_vox, encoder.unit_vox, config.mask_ratio, config.flip)
        self.student_voxels = math.prod(config.crop_vox)

    def views(self, batch: Batch, key_B: Tensor) -> Views:
        """Mirrors the crops and hides exactly `round(mask_ratio * N)` patches of each."""
        return Views(*self.crop(batch, key_B))

    def forward(self, views: Views, progress: float) -> dict[str, Term]:
        """Returns `reconstruction`: the loss summed over masked patches that are not padding, and their number."""
        predicted_BNV = reconstruct(self.encoder, self.decoder, views.volume_BCZYX, views.masked_BN)
        loss_BN = patch_loss(predicted_BNV, patches.patchify(views.volume_BCZYX, self.encoder.unit_vox))
        counted_BN = views.masked_BN & views.valid_BN
        return {"reconstruction": Term(torch.where(counted_BN, loss_BN, 0.0).sum(), counted_BN.sum().float())}

    def after_step(self, progress: float, total_steps: int) -> None:
        """Does nothing: no teacher follows."""

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Shows `input`, `masked_input` and `reconstruction`: each (B, Z, Y, X) float32 in [0, 1].

        For display only, predicted patches are given the true patch's mean and standard deviation, which the network
        never learns to predict, and visible patches, which no loss trains, are shown as they were.
        """
        unit_vox = self.encoder.unit_vox
        patch_BNV = patches.patchify(views.volume_BCZYX, unit_vox).float()
        predicted_BNV = reconstruct(self.encoder, self.decoder, views.volume_BCZYX, views.masked_BN).float()
        deviation_BN1, mean_BN1 = torch.std_mean(patch_BNV, dim=-1, keepdim=True)
        masked_BN1 = views.masked_BN[:, :, None]
        shown = {
            "input": patch_BNV,
            "masked_input": torch.where(masked_BN1, 0.0, patch_BNV),
            "reconstruction": torch.where(masked_BN1, predicted_BNV * deviation_BN1 + mean_BN1, patch_BNV),
        }
        return {
            name: patches.unpatchify(value_BNV, self.cells_zyx, unit_vox)[:, 0].clamp(0, 1)
            for name, value_BNV in shown.items()
        }
