"""Training steps on one CPU thread, ours beside the authors' code, in one run: `python benchmarks/steps.py`.

Every arm takes a step in turn, round after round, and what is quoted is the median over the rounds of the ratio of
processor times within a round: what else the machine does then weighs on both. All in float32, two samples a step.

The authors' code is measured where it is checked out below the folder that VOXPRIOR_PEERS names (SelfMedMAE,
AnatoMask, by repository name); it needs timm. What is missing is said and left out. A step is what the authors' script
does between two batches: forward, backward, its own optimiser step, and EMA. Ours also draws flips and masks from keys,
clips the gradient, and watches that the loss is finite.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arms
import torch
from machine import describe, write
from torch import nn

from voxprior.engine.flops import counter
from voxprior.methods import METHODS
from voxprior.nets.backbones import Backbone

CPU = torch.device("cpu")
SAMPLES = 2
DIMS = [8, 16, 32, 64, 128]
# (ours, theirs, goal): the ratio of processor times that we want to stay under.
GOALS = [
    ("mae", "SelfMedMAE", 0.90),
    ("anatomask", "AnatoMask", 0.75),
    ("anatomask", "spark", 1.40),
    ("spark", "AnatoMask's SparK", None),
    ("AnatoMask", "AnatoMask's SparK", None),
]
Step = Callable[[], Any]


def ours(method: str) -> Step | None:
    """Makes our step at the size that the authors' code gets; None where the method is not in this checkout."""
    if method not in METHODS:
        return None
    module = arms.load(method)
    if method == "mae":
        sizes = {"patch_vox": 16, "width": 384, "depth": 12, "heads": 6, "mlp_ratio": 4.0, "decoder_channels": 16}
        backbone = Backbone("vit_small", "vit", sizes)
        config = module.Config(crop_vox=(96, 96, 96), decoder_width=384, decoder_depth=4, decoder_heads=6)
    else:
        backbone = Backbone("stunet", "cnn", {"channels": DIMS, "blocks": 1, "pretrained_stages": 5})
        config = module.Config(crop_vox=(48, 48, 48), decoder_width=128)
    learner = arms.learner_of(method, backbone, config, arms.plan(CPU))
    batch, key_B = arms.batch_of(method, backbone, config, SAMPLES, CPU)
    middle = arms.TOTAL_STEPS // 2 + 1  # where AnatoMask's teacher is asked
    return lambda: learner.step(middle, key_B, batch)


def selfmedmae(peers: Path) -> Step:
    """Makes SelfMedMAE's step: MAE3D of `lib/models`, AdamW of its trainer, keep 25 %."""
    sys.path[:0] = [str(peers / "SelfMedMAE"), str(peers / "SelfMedMAE" / "lib")]
    from lib.models.mae3d import MAE3D
    from lib.networks.mae_vit import MAEViTDecoder, MAEViTEncoder

    args = SimpleNamespace(
        input_size=96, patch_size=16, in_chans=1, mask_ratio=0.75, pos_embed_type="sincos", patchembed="PatchEmbed3D",
        encoder_embed_dim=384, encoder_depth=12, encoder_num_heads=6,
        decoder_embed_dim=384, decoder_depth=4, decoder_num_heads=6,
    )  # fmt: skip
    model = MAE3D(MAEViTEncoder, MAEViTDecoder, args).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    volume = torch.rand(SAMPLES, 1, 96, 96, 96)

    def step() -> None:
        loss = model(volume, return_image=False)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def _stunet(folder: Path) -> tuple[nn.Module, nn.Module]:
    """Builds the AnatoMask repository's sparse encoder and decoder at our size."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    from decoder3D import LightDecoder
    from encoder3D import SparseEncoder
    from STUNet_head import STUNet

    pools, kernels = [[2, 2, 2]] * 4 + [[1, 1, 1]], [[3, 3, 3]] * 6
    head = STUNet(1, 1, [1] * 6, [*DIMS, 128], pools, kernels, enable_deep_supervision=True)
    encoder = SparseEncoder(head, input_size=(48, 48, 48), sbn=False)
    return encoder, LightDecoder(encoder.downsample_ratio, sbn=False, width=128, out_channel=1)


def official_spark(peers: Path) -> Step:
    """Makes the AnatoMask repository's SparK step, as in its script of that name."""
    encoder, decoder = _stunet(_scripts(peers))
    from spark3D import SparK

    model = SparK(encoder, decoder, mask_ratio=0.6, densify_norm="in").train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-5)
    volume = torch.rand(SAMPLES, 1, 48, 48, 48)

    def step() -> None:
        loss = model(volume)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12).item()
        optimiser.step()
        loss.item()

    return step


def official_anatomask(peers: Path) -> Step:
    """Makes the official AnatoMask step in the middle of its run: teacher, mask, student, EMA, in that order."""
    encoder, decoder = _stunet(_scripts(peers))
    from AnatoMask import SparK
    from timm.utils import ModelEma

    model = SparK(encoder, decoder, mask_ratio=0.6, densify_norm="in").train()
    teacher = ModelEma(model, decay=0.999, device=CPU, resume="")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-5)
    volume, epochs = torch.rand(SAMPLES, 1, 48, 48, 48), 1000

    def step() -> None:
        shown = model.mask(SAMPLES, CPU)
        with torch.no_grad():
            target, painted = teacher.ema(volume, active_b1ff=shown)
            hidden = shown.logical_not().int().view(SAMPLES, -1)
            error = ((painted - target) ** 2).mean(dim=2) * hidden
        chosen, _ = teacher.ema.generate_mask(error, guide=True, epoch=epochs // 2, total_epoch=epochs - 1)
        loss, _ = model.forward_loss(*model(volume, active_b1ff=chosen), chosen)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12).item()
        optimiser.step()
        teacher.update(model)
        loss.item()

    return step


def _scripts(peers: Path) -> Path:
    return peers / "AnatoMask" / "nnunetv2/training/nnUNetTrainer/variants/pretrain"


def gather(peers: Path | None) -> tuple[dict[str, Step], dict[str, str]]:
    """Makes the steps of all arms that are there, and says why the others are not."""
    steps: dict[str, Step] = {}
    absent: dict[str, str] = {}
    for method in ("mae", "spark", "anatomask"):
        if (step := ours(method)) is not None:
            steps[method] = step
        else:
            absent[method] = "not in this checkout"
    for name, folder, make in (
        ("SelfMedMAE", "SelfMedMAE", selfmedmae),
        ("AnatoMask's SparK", "AnatoMask", official_spark),
        ("AnatoMask", "AnatoMask", official_anatomask),
    ):
        if peers is None or not (peers / folder).exists():
            absent[name] = f"no checkout of {folder} below VOXPRIOR_PEERS"
            continue
        try:
            steps[name] = make(peers)
        except ImportError as error:
            absent[name] = f"its code does not import here: {error}"
    return steps, absent


def measure(steps: dict[str, Step], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Takes every step in turn: processor seconds by arm and round."""
    took: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + warm):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if number >= warm:
                took[name].append(time.process_time() - began)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=arms.ROOT / "docs/results/benchmarks/steps_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peers = Path(os.environ["VOXPRIOR_PEERS"]) if os.environ.get("VOXPRIOR_PEERS") else None
    steps, absent = gather(peers)
    for name, reason in absent.items():
        print(f"{name}: {reason}", file=sys.stderr)
    flops = {}
    for name, step in steps.items():
        with counter() as counted:
            step()
        flops[name] = counted.get_total_flops()
    took = measure(steps, options.rounds)
    ratios = []
    for mine, other, goal in GOALS:
        if mine in took and other in took:
            each = [a / b for a, b in zip(took[mine], took[other], strict=True)]
            ratio = statistics.median(each)
            met = None if goal is None else ratio <= goal
            ratios.append({"of": mine, "to": other, "ratio": ratio, "goal": goal, "met": met, "low": min(each)})
            ratios[-1] |= {"high": max(each), "flops_ratio": flops[mine] / flops[other]}
            print(f"{mine} / {other}: {ratio:.3f} ({min(each):.2f} to {max(each):.2f}), goal {goal}")
    medians = {
        name: {"cpu_seconds": statistics.median(took[name]), "gflop": flops[name] / 1e9, "rounds": took[name]}
        for name in steps
    }
    write(
        options.output,
        {"format": 1, **describe(CPU), "threads": 1, "arms": medians, "ratios": ratios, "absent": absent},
    )


if __name__ == "__main__":
    main()
