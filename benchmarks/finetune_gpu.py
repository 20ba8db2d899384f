"""Fine-tuning steps on one GPU: `python benchmarks/finetune_gpu.py`, or what a roofline says of them: `--predict`.

A whole step is copy of the batch, augmentation, forward, backward, clipping, optimiser. Checked first: augmentation and
loss compiled against both as written, bfloat16 and recomputed blocks against float32. Then each way is timed as in
`gpu.py`, whose clock and limits these are: milliseconds, samples a second, share of the published peak, memory, and the
share of the step that augmentation takes. `--device cpu --size tiny` runs the same lines in a minute. Needs torch,
numpy, einops, pydantic and this checkout.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import arms
import gpu
import kept
import roofline
import torch
from machine import describe, write

from voxprior.engine import device as devices
from voxprior.engine import estimate
from voxprior.engine.recompute import recompute_blocks
from voxprior.engine.step import GRAPHS, Learner, reduce_terms
from voxprior.maths import chance
from voxprior.nets.backbones import Backbone
from voxprior.segment import model as segment

CLASSES = 14
# (family in arms.SIZES, side of the crop, crops a step)
ARMS = {"paper": [("vit", 96, 2), ("vit", 96, 4), ("cnn", 128, 2)], "tiny": [("vit", 32, 2), ("cnn", 32, 2)]}
WAYS = [("bf16", "compiled"), ("bf16", "eager"), ("fp32", "eager"), ("bf16", "graphs"), ("bf16", "recomputed")]
GOAL = 0.03  # of a step may be augmentation
TOLERANCES = {"views": 1e-3, "labels": 1e-3, "bf16": 0.02, "compiled": 1e-3, "recomputed": 1e-5}


def built(backbone: Backbone, side: int, device: torch.device) -> Any:
    """Builds the model, the same weights at every call."""
    config = segment.Config((side,) * 3, (0.0, 0.0, 0.5))
    torch.manual_seed(0)
    with torch.device(device):
        return segment.Model(config, backbone.segmenter(CLASSES + 1, config.crop_vox))


def batch_of(side: int, samples: int, device: torch.device) -> tuple[Any, Any]:
    """Makes scans of noise with labels in blocks, and their keys."""
    batch, key_B = estimate.fake_batch(segment.region(segment.Config((side,) * 3)), samples, device, labels=True)
    noise = chance.uniform(key_B, "benchmark", (1, side, side, side))
    place = torch.arange(side, device=device) // 8
    labels = (place[:, None, None] + place[:, None] + place) % (CLASSES + 1)
    batch |= {"region_BCZYX": (1000 * noise).to(torch.int16)}
    batch |= {"labels_BZYX": labels.to(torch.uint8).expand(samples, -1, -1, -1).contiguous()}
    return batch, key_B


def seen_and_loss(backbone: Backbone, side: int, device: torch.device, how: str) -> tuple[Any, float]:
    """Augments a batch and computes its loss, in float32 as written or `how`: (views, loss)."""
    return gpu.seen_and_loss(built(backbone, side, device).train(), *batch_of(side, 2, device), device, how)


def check(backbone: Backbone, side: int, options: Any) -> dict[str, Any]:
    """Compares with float32 as written: largest difference of views, share of other labels, losses; and a verdict."""
    device = torch.device(options.device)
    views, exact = seen_and_loss(backbone, side, device, "fp32")
    told: dict[str, Any] = {"loss": exact}
    for how in ("bf16", "compiled", "recomputed"):
        if how == "compiled" and options.no_compile:
            continue
        others, loss = seen_and_loss(backbone, side, device, how)
        told[how] = loss / exact - 1
        if how == "compiled":
            told["views"] = float((others.volume_BCZYX - views.volume_BCZYX).abs().max())
            told["labels"] = float((others.labels_BZYX != views.labels_BZYX).float().mean())
    told["right"] = all(abs(told[name]) <= most for name, most in TOLERANCES.items() if name in told)
    return told


def attempt(backbone: Backbone, side: int, samples: int, options: Any, way: tuple[str, str]) -> dict[str, Any]:
    """Measures one way."""
    device, (precision, how) = torch.device(options.device), way
    torch.compiler.reset()
    compiler = None if options.no_compile or how == "eager" else GRAPHS if how == "graphs" else "inductor"
    plan = arms.plan(device, precision, compiler, recompute=how == "recomputed")
    told = gpu.measure(Learner(built(backbone, side, device), plan), *batch_of(side, samples, device), samples,
                       options.rounds)  # fmt: skip
    return {"samples": samples, **told, "augmentation_share": told["views_ms"] / told["ms"]}


def record(model: Any, region: Any, samples: int, precision: str, part: str) -> list[Any]:
    """Notes augmentation, forward and backward pass; `part`: what augmentation is called, `views` are not compiled."""
    batch, key_B = estimate.fake_batch(region, samples, labels=True)
    tape = roofline.Tape()
    roofline._Attention.tape = tape
    with tape:
        tape.part = part
        with torch.no_grad():
            views = model.train().views(batch, key_B)
        tape.part = "forward"
        with mock.patch.object(estimate, "_Fused", roofline._Attention), estimate._AsOnAGpu(precision == "bf16"):
            loss, _, _ = reduce_terms(model(views, 0.5))
        tape.part = "backward"
        loss.backward()
    return tape.operations


def predict(backbone: Backbone, side: int, samples: int) -> dict[str, Any]:
    """Says what a step costs and how long it takes on each known GPU, with augmentation compiled and as written."""
    region, recipe = segment.region(segment.Config((side,) * 3)), arms.plan(estimate.META).recipe

    def counted(count: int, twice: bool = False) -> estimate.Cost:
        model = built(backbone, side, estimate.META)
        if twice:
            recompute_blocks(model)
        return estimate.cost(model, region, count, "bf16", recipe, labels=True)

    known, memory = counted(samples), {}
    memory = {samples: known.memory_bytes, 2 * samples: counted(2 * samples).memory_bytes}
    told: dict[str, Any] = {
        "parameters": known.parameters, "flops": known.flops, "memory_bytes": known.memory_bytes,
        "memory_bytes_compiled": kept.peak_bytes(built(backbone, side, estimate.META), region, samples,
                                                 known.optimiser_bytes, labels=True),
        "memory_bytes_recomputed": counted(samples, True).memory_bytes,
        "fits": {name: roofline.fits(memory, card) for name, card in roofline.GPUS.items()},
    }  # fmt: skip
    update = roofline.update_bytes(known)
    for way, launching, part in (
        ("bf16 compiled", "bf16 compiled", "augmentation"),
        ("bf16 compiled, augmentation as written", "bf16 compiled", "views"),
        ("bf16 eager", "bf16 eager", "views"),
        ("fp32 eager", "fp32 eager", "views"),
    ):
        operations = record(built(backbone, side, estimate.META), region, samples, way[:4], part)
        groups = roofline.kernels(operations, "compiled" in way)
        for name, card in roofline.GPUS.items():
            found = roofline.add_up(operations, groups, card)
            device_s = found.seconds + update / (roofline.BANDWIDTH_SHARE * card["bytes_per_second"])
            own = sum(operations[group.operations[0]].part == part for group in groups)
            launch_s = roofline.LAUNCH_S[launching] * found.kernels
            if way.endswith("written"):  # launched one by one, from Python
                launch_s += own * (roofline.LAUNCH_S["bf16 eager"] - roofline.LAUNCH_S["bf16 compiled"])
            seconds = max(device_s, launch_s)
            told.setdefault(name, {})[way] = {
                "ms": 1000 * seconds, "launch_ms": 1000 * launch_s, "samples_per_second": samples / seconds,
                "mfu": known.flops / seconds / card["bf16"], "augmentation_kernels": own,
                "augmentation_share": found.by_part.get(part, 0.0) / device_s,
                "kernels": found.kernels, "bytes": found.bytes + update,
            }  # fmt: skip
    return told


def run_predictions(output: Path, size: str) -> None:
    """Predicts every arm."""
    assumed = {"products": roofline.PRODUCT_SHARE, "bandwidth": roofline.BANDWIDTH_SHARE, "launch_s": roofline.LAUNCH_S}
    told: dict[str, Any] = {"format": 1, "measured": False, "size": size, "assumed": assumed, "gpus": roofline.GPUS}
    told |= {"torch": torch.__version__, "classes": CLASSES, "goal": GOAL, "arms": []}
    for family, side, samples in ARMS[size]:
        backbone = arms.SIZES[size][family]
        arm = {"backbone": backbone.name, "crop_vox": side, "samples": samples}
        told["arms"].append(arm | predict(backbone, side, samples))
        way = told["arms"][-1]["H100"]["bf16 compiled"]
        print(
            f"{backbone.name:<13}{side}^3 x {samples} {way['ms']:8.1f} ms {way['augmentation_share']:.1%}", flush=True
        )
        write(output, told)


def run_measurements(output: Path, options: Any) -> bool:
    """Checks and measures; tells whether all numbers that were checked are right."""
    ends, device = time.monotonic() + 60 * options.minutes, devices.pick(options.device, torch.get_num_threads())
    told: dict[str, Any] = {"format": 1, "size": options.size, "measured": True, **describe(device)}
    told |= {"classes": CLASSES, "goal": GOAL, "arms": []}
    for family, side, samples in ARMS[options.size]:
        backbone = arms.SIZES[options.size][family]
        arm: dict[str, Any] = {"backbone": backbone.name, "crop_vox": side, "samples": samples, "ways": {}}
        told["arms"].append(arm)
        gpu.alone(arm, "check", lambda b=backbone, s=side: check(b, s, options), ends)
        print(f"{backbone.name:<13}{arm['check']}", flush=True)
        for way in WAYS:
            if options.no_compile and way[1] in ("compiled", "graphs"):
                continue
            work = (lambda b, s, n, w: lambda: attempt(b, s, n, options, w))(backbone, side, samples, way)
            gpu.alone(arm["ways"], " ".join(way), work, ends)
            named = {"method": "finetune", "backbone": backbone.name}
            print(gpu.row(named, " ".join(way), arm["ways"][" ".join(way)]), flush=True)
            write(output, told)
    write(output, told)
    return all(arm["check"].get("right", True) for arm in told["arms"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(ARMS), default="paper")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins later than this")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    name = "finetune_gpu_predicted" if options.predict else f"finetune_{options.device.split(':')[0]}_{options.size}"
    output = options.output or arms.ROOT / "docs/results/benchmarks" / f"{name}.json"
    if options.predict:
        run_predictions(output, options.size)
        return
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: use --device cpu --size tiny, or --predict")
    if not run_measurements(output, options):
        sys.exit("some numbers are wrong: see `check` in the JSON")


if __name__ == "__main__":
    main()
