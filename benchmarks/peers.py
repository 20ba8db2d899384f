"""The authors' own training steps, from their checkouts, at any size and on any device.

A step is what the authors' script does between two batches: forward, backward, its own optimiser step, and EMA. The
checkouts lie below the folder that VOXPRIOR_PEERS names (SelfMedMAE, AnatoMask, by repository name); they need timm.
"""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


@dataclass
class Step:
    """A training step, and what it works on."""

    take: Callable[[], Any]
    modules: list[nn.Module] = field(default_factory=list)  # the model, then a teacher
    optimiser: torch.optim.Optimizer | None = None

    def __call__(self) -> Any:
        """Takes it."""
        return self.take()


@dataclass(frozen=True)
class Arm:
    """One of the authors' steps beside ours. `shipped`: in the precision of their script."""

    method: str
    repository: str
    precision: str
    samples: int  # of the papers' size

    @property
    def name(self) -> str:
        """Names it in tables and files."""
        return f"{self.method} {self.precision} x{self.samples}"

    def absent(self, there: Path | None) -> str | None:
        """Says why it cannot be had, or None where its checkout is there."""
        if there is None or not (there / self.repository).exists():
            return f"no checkout of {self.repository} below VOXPRIOR_PEERS"
        return None


# What users would run first. SelfMedMAE's authors take six crops a step; 24 is what ours takes.
ARMS = [
    Arm("anatomask", "AnatoMask", "shipped", 4),
    Arm("mae", "SelfMedMAE", "shipped", 6),
    Arm("anatomask", "AnatoMask", "bf16", 4),
    Arm("mae", "SelfMedMAE", "shipped", 24),
    Arm("spark", "AnatoMask", "shipped", 4),
]


@dataclass(frozen=True)
class Size:
    """What a step is taken at. `low`: matrix products under autocast, in float16 for SelfMedMAE as it is shipped."""

    device: torch.device
    samples: int
    crop_vox: tuple[int, int, int]
    width: int = 384  # of the transformer
    heads: int = 6
    decoder: tuple[int, int, int] = (384, 4, 6)  # of the transformer: width, depth, heads
    dims: tuple[int, ...] = (8, 16, 32, 64, 128)  # of the convolutions' stages
    decoder_width: int = 128  # of the convolutions
    low: bool = False


def folder() -> Path | None:
    """Tells where the checkouts are."""
    return Path(os.environ["VOXPRIOR_PEERS"]) if os.environ.get("VOXPRIOR_PEERS") else None


def taken(arm: Arm, there: Path, device: torch.device, paper: bool) -> Step:
    """Makes the step of an arm, at the paper's size or a tiny one of two samples."""
    crop, samples = ((112, 112, 128), arm.samples) if paper else ((32, 32, 32), 2)
    sizes: dict[str, Any] = {"width": 48, "heads": 2, "decoder": (48, 1, 2), "decoder_width": 64}
    if paper:
        sizes = {"dims": (32, 64, 128, 256, 512), "decoder_width": 512, "width": 768, "heads": 12}
        sizes["decoder"] = (384, 8, 12)
    if arm.method == "mae":
        crop = (96, 96, 96) if paper else crop
        # In float16 with a scaler, as its trainer does on a GPU.
        low = device.type != "cpu"
        return selfmedmae(there, Size(device, samples, crop, low=low, **sizes))
    make = official_anatomask if arm.method == "anatomask" else official_spark
    return make(there, Size(device, samples, crop, low=arm.precision == "bf16", **sizes))


def selfmedmae(peers: Path, size: Size) -> Step:
    """Makes SelfMedMAE's step: MAE3D of `lib/models`, AdamW of its trainer, keep 25 %."""
    sys.path[:0] = [str(peers / "SelfMedMAE"), str(peers / "SelfMedMAE" / "lib")]
    from lib.models.mae3d import MAE3D
    from lib.networks.mae_vit import MAEViTDecoder, MAEViTEncoder

    width, depth, heads = size.decoder
    args = SimpleNamespace(
        input_size=size.crop_vox[0], patch_size=16, in_chans=1, mask_ratio=0.75, pos_embed_type="sincos",
        patchembed="PatchEmbed3D", encoder_embed_dim=size.width, encoder_depth=12, encoder_num_heads=size.heads,
        decoder_embed_dim=width, decoder_depth=depth, decoder_num_heads=heads,
    )  # fmt: skip
    model = MAE3D(MAEViTEncoder, MAEViTDecoder, args).to(size.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    volume = torch.rand(size.samples, 1, *size.crop_vox, device=size.device)
    scaler = torch.amp.GradScaler(size.device.type, enabled=size.low)

    def step() -> None:
        with torch.autocast(size.device.type, torch.float16) if size.low else nullcontext():
            loss = model(volume, return_image=False)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        loss.item()

    return Step(step, [model], optimiser)


def _stunet(scripts: Path, size: Size) -> tuple[nn.Module, nn.Module]:
    """Builds the AnatoMask repository's sparse encoder and decoder at our size."""
    if str(scripts) not in sys.path:
        sys.path.insert(0, str(scripts))
    from decoder3D import LightDecoder
    from encoder3D import SparseEncoder
    from STUNet_head import STUNet

    pools, kernels = [[2, 2, 2]] * 4 + [[1, 1, 1]], [[3, 3, 3]] * 6
    head = STUNet(1, 1, [1] * 6, [*size.dims, size.dims[-1]], pools, kernels, enable_deep_supervision=True)
    encoder = SparseEncoder(head, input_size=size.crop_vox, sbn=False)
    decoder = LightDecoder(encoder.downsample_ratio, sbn=False, width=size.decoder_width, out_channel=1)
    return encoder.to(size.device), decoder.to(size.device)


def official_spark(peers: Path, size: Size) -> Step:
    """Makes the AnatoMask repository's SparK step, as in its script of that name."""
    encoder, decoder = _stunet(_scripts(peers), size)
    from spark3D import SparK

    model = SparK(encoder, decoder, mask_ratio=0.6, densify_norm="in").to(size.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-5)
    volume = torch.rand(size.samples, 1, *size.crop_vox, device=size.device)

    def step() -> None:
        with torch.autocast(size.device.type, torch.bfloat16, enabled=size.low):
            loss = model(volume)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12).item()
        optimiser.step()
        loss.item()

    return Step(step, [model], optimiser)


def official_anatomask(peers: Path, size: Size) -> Step:
    """Makes the official AnatoMask step in the middle of its run: teacher, mask, student, EMA, in that order."""
    encoder, decoder = _stunet(_scripts(peers), size)
    from AnatoMask import SparK
    from timm.utils import ModelEma

    model = SparK(encoder, decoder, mask_ratio=0.6, densify_norm="in").to(size.device).train()
    teacher = ModelEma(model, decay=0.999, device=size.device, resume="")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-5)
    volume, epochs = torch.rand(size.samples, 1, *size.crop_vox, device=size.device), 1000

    def step() -> None:
        shown = model.mask(size.samples, size.device)
        with torch.autocast(size.device.type, torch.bfloat16, enabled=size.low):
            with torch.no_grad():
                target, painted = teacher.ema(volume, active_b1ff=shown)
                hidden = shown.logical_not().int().view(size.samples, -1)
                error = ((painted - target) ** 2).mean(dim=2) * hidden
            chosen, _ = teacher.ema.generate_mask(error, guide=True, epoch=epochs // 2, total_epoch=epochs - 1)
            loss, _ = model.forward_loss(*model(volume, active_b1ff=chosen), chosen)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12).item()
        optimiser.step()
        teacher.update(model)
        loss.item()

    return Step(step, [model, teacher.ema], optimiser)


def _scripts(peers: Path) -> Path:
    return peers / "AnatoMask" / "nnunetv2/training/nnUNetTrainer/variants/pretrain"
