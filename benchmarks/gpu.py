"""Every method at paper size on one device, checked and timed: `python benchmarks/gpu.py`. Needs torch, numpy, einops,
pydantic and this checkout, nothing else.

For each method and backbone family that it accepts, first whether the numbers are right: the loss of one batch in
float32 as written, in bfloat16 (within 2 %), and compiled (within 0.1 %). Then float32 and bfloat16, as written and
compiled: median milliseconds of a whole training step (views, forward, backward, clipping, optimiser, EMA) by the
device's own events, samples per second, share of the device's published peak (MFU: FLOPs as voxprior.engine.flops
counts them), most memory held, and the share of the time in which the device computes (torch's profiler). The JSON is
written after every arm, so that what was measured stays when a later one fails.

`--device cpu --size tiny` runs the same code in a minute. `--predict` measures nothing: it counts FLOPs and memory on
the meta device and says how long a step would take at a given share of a given peak.
"""

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import arms
import torch
from machine import describe, write

from voxprior.engine import device as devices
from voxprior.engine import estimate
from voxprior.engine.step import Learner, compile_networks
from voxprior.nets.backbones import Backbone

MODES = [(precision, compiled) for precision in ("fp32", "bf16") for compiled in (False, True)]
TOLERANCES = {"bf16": 0.02, "compiled": 1e-3}


class Clock:
    """Times work on a device in milliseconds: by its events on CUDA, by the wall on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def times(self, work: Any, rounds: int) -> list[float]:
        """Runs the work and tells what each round took; the host never waits in between."""
        if self.device.type != "cuda":
            marks = [time.perf_counter()]
            for _ in range(rounds):
                work()
                marks.append(time.perf_counter())
            return [1000 * (after - before) for before, after in pairwise(marks)]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        torch.cuda.synchronize(self.device)
        return [before.elapsed_time(after) for before, after in pairwise(events)]


def busy_share(device: torch.device, work: Any, rounds: int) -> float | None:
    """Tells in which share of the time at least one kernel runs on the device; None on a CPU."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(rounds):
            work()
        torch.cuda.synchronize(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end) for event in seen.events() if event.device_type.name == "CUDA"
    )
    if not spans:
        return None
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / (until - spans[0][0])


def one_loss(model: Any, batch: Any, key_B: Any, device: torch.device, precision: str) -> float:
    """Computes the loss of one batch in the middle of the run."""
    from voxprior.engine.step import reduce_terms

    with torch.no_grad(), devices.autocast(device, precision):
        return float(reduce_terms(model(model.views(batch, key_B), 0.5))[0])


def check(method: str, backbone: Backbone, config: Any, device: torch.device, backend: str | None) -> dict[str, Any]:
    """Compares the loss in bfloat16, and compiled, with float32 as written: relative differences and a verdict."""
    batch, key_B = arms.batch_of(method, backbone, config, 2, device)
    model = arms.model_of(method, backbone, config).to(device).train()
    exact = one_loss(model, batch, key_B, device, "fp32")
    told: dict[str, Any] = {"loss": exact, "bf16": one_loss(model, batch, key_B, device, "bf16") / exact - 1}
    if backend is not None:
        torch.compiler.reset()
        compile_networks(model, backend)
        told["compiled"] = one_loss(model, batch, key_B, device, "fp32") / exact - 1
    told["right"] = all(abs(told[name]) <= most for name, most in TOLERANCES.items() if name in told)
    return told


def measure(learner: Learner, batch: Any, key_B: Any, samples: int, rounds: int) -> dict[str, Any]:
    """Times one arm in the middle of its run."""
    device, at = learner.plan.device, arms.TOTAL_STEPS // 2
    learner.step(at, key_B, batch)  # counts the operations
    at += 1

    def step() -> None:
        learner.step(at, key_B, batch)

    for _ in range(3):  # compiles, chooses kernels, fills the allocator
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    took = Clock(device).times(step, rounds)
    told = {"ms": statistics.median(took), "ms_low": min(took), "ms_high": max(took), "flops": learner.flops}
    told["samples_per_second"] = 1000 * samples / told["ms"]
    peak = devices.peak_flops(device, learner.plan.precision)
    told["mfu"] = learner.flops / (told["ms"] / 1000) / peak if peak else None
    told["peak_memory_bytes"] = devices.peak_memory_bytes(device)
    told["busy"] = busy_share(device, step, min(rounds, 10))
    return told


def attempt(method: str, backbone: Backbone, options: Any, mode: tuple[str, str | None]) -> dict[str, Any]:
    """Measures one arm, or says that it does not fit the device's memory."""
    device, (precision, backend) = torch.device(options.device), mode
    config, samples = arms.config_of(method, options.size), arms.samples_of(method, options.size)
    told: dict[str, Any] = {"precision": precision, "compiled": backend is not None, "samples": samples}
    try:
        torch.compiler.reset()
        learner = arms.learner_of(method, backbone, config, arms.plan(device, precision, backend))
        batch, key_B = arms.batch_of(method, backbone, config, samples, device)
        told |= measure(learner, batch, key_B, samples, options.rounds)
    except torch.cuda.OutOfMemoryError:
        told["absent"] = "does not fit the device's memory"
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return told


def predict(method: str, backbone: Backbone, options: Any) -> dict[str, Any]:
    """Says what a step in bfloat16 costs, and how long it takes at the given share of the given peak."""
    config, samples = arms.config_of(method, options.size), arms.samples_of(method, options.size)
    with estimate.META:
        model = arms.load(method).Model(config, backbone.encoder())
    region, recipe = arms.load(method).region(config, backbone), arms.plan(estimate.META).recipe
    cost = estimate.cost(model, region, samples, "bf16", recipe)
    seconds = cost.flops / (options.mfu * options.peak_tflops * 1e12)
    return {
        "samples": samples,
        "parameters": cost.parameters,
        "flops": cost.flops,
        "memory_bytes": cost.memory_bytes,
        "ms": 1000 * seconds,
        "samples_per_second": samples / seconds,
    }


def row(arm: dict[str, Any], told: dict[str, Any]) -> str:
    """Writes one arm as a line."""
    head = (
        f"{arm['method']:<10}{arm['backbone']:<10}{told['precision']} {'compiled' if told['compiled'] else 'eager':<9}"
    )
    if "absent" in told:
        return head + told["absent"]
    shares = [f"{name} {told[name]:.0%}" for name in ("mfu", "busy") if told[name] is not None]
    memory = told["peak_memory_bytes"] / 2**30
    return f"{head}{told['ms']:9.1f} ms {told['samples_per_second']:8.1f}/s {memory:6.1f} GiB {' '.join(shares)}"


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(arms.SIZES), default="paper")
    parser.add_argument("--methods", default="all", help="names with commas")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not options.predict and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: use --device cpu --size tiny, or --predict")
    return options


def main() -> None:
    options = parse()
    name = "gpu_predicted" if options.predict else f"{options.device.split(':')[0]}_{options.size}"
    output = options.output or arms.ROOT / "docs/results/benchmarks" / f"{name}.json"
    told: dict[str, Any] = {"format": 1, "size": options.size, "arms": []}
    if options.predict:
        told |= {"measured": False, "mfu": options.mfu, "peak_tflops": options.peak_tflops, "torch": torch.__version__}
    else:
        told |= {"measured": True, **describe(devices.pick(options.device, torch.get_num_threads()))}
    backend = None if options.no_compile else options.backend
    for method, backbone in arms.arms(options.size, arms.known(options.methods)):
        arm: dict[str, Any] = {"method": method, "backbone": backbone.name, "family": backbone.family}
        told["arms"].append(arm)
        if options.predict:
            arm |= predict(method, backbone, options)
            print(f"{method:<10}{backbone.name:<13}{arm['flops'] / 1e12:8.3f} TFLOP {arm['ms']:8.1f} ms", flush=True)
        else:
            config = arms.config_of(method, options.size)
            arm["check"] = check(method, backbone, config, torch.device(options.device), backend)
            print(f"{method:<10}{backbone.name:<13}{'numbers are right' if arm['check']['right'] else arm['check']}")
            arm["modes"] = []
            for precision, compiled in MODES:
                if compiled and backend is None:
                    continue
                arm["modes"].append(attempt(method, backbone, options, (precision, backend if compiled else None)))
                print(row(arm, arm["modes"][-1]), flush=True)
                write(output, told)
        write(output, told)
    if any(not arm["check"]["right"] for arm in told["arms"] if "check" in arm):
        sys.exit("some numbers are wrong: see `check` in the JSON")


if __name__ == "__main__":
    main()
