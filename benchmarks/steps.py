"""Training steps on one CPU thread, ours beside the authors' code, in one run: `python benchmarks/steps.py`.

Every arm takes a step in turn, round after round, and what is quoted is the median over the rounds of the ratio of
processor times within a round: what else the machine does then weighs on both. All in float32, two samples a step.

The authors' code is measured where it is checked out below the folder that VOXPRIOR_PEERS names (SelfMedMAE,
AnatoMask, by repository name); it needs timm. What is missing is said and left out. A step is what the authors' script
does between two batches: forward, backward, its own optimiser step, and EMA. Ours also draws flips and masks from keys,
clips the gradient, and watches that the loss is finite.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import arms
import peers
import torch
from machine import describe, write
from peers import Step

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
    return Step(lambda: learner.step(middle, key_B, batch))


def gather(there: Path | None) -> tuple[dict[str, Step], dict[str, str]]:
    """Makes the steps of all arms that are there, and says why the others are not."""
    steps: dict[str, Step] = {}
    absent: dict[str, str] = {}
    for method in ("mae", "spark", "anatomask"):
        if (step := ours(method)) is not None:
            steps[method] = step
        else:
            absent[method] = "not in this checkout"
    crops = dict.fromkeys(("AnatoMask's SparK", "AnatoMask"), peers.Size(CPU, SAMPLES, (48, 48, 48)))
    crops["SelfMedMAE"] = peers.Size(CPU, SAMPLES, (96, 96, 96))
    for name, repository, make in (
        ("SelfMedMAE", "SelfMedMAE", peers.selfmedmae),
        ("AnatoMask's SparK", "AnatoMask", peers.official_spark),
        ("AnatoMask", "AnatoMask", peers.official_anatomask),
    ):
        if there is None or not (there / repository).exists():
            absent[name] = f"no checkout of {repository} below VOXPRIOR_PEERS"
            continue
        try:
            steps[name] = make(there, crops[name])
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
    steps, absent = gather(peers.folder())
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
