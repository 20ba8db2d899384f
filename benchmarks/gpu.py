"""Every method at paper size on one device, checked and timed: `python benchmarks/gpu.py`. Needs torch, numpy, einops,
pydantic and this checkout, nothing else.

First whether the numbers are right: the kernel that cuts views against matrix products; then, for each method and
backbone family that it accepts, the loss of one batch in float32 as written on this device and on the CPU (the tiny
size), in bfloat16, compiled, and with recomputed blocks. Then whole training steps (copy of the batch, views, forward,
backward, clipping, optimiser, EMA), the ways that matter most first: median milliseconds by the device's own events,
samples per second, share of the device's published peak (MFU: FLOPs as voxprior.engine.flops counts them), most memory
held, and by torch's profiler the share of the time in which the device computes and the kernels launched. Then the
authors' own steps, where VOXPRIOR_PEERS names a folder with their checkouts.

Every part stands alone: what fails is written down with its reason, and the rest goes on. The JSON is written after
every part, and `--minutes` ends the run: what there was no time for says so.

`--device cpu --size tiny` runs the same code in a minute. `--predict` measures nothing: it counts FLOPs, bytes, kernels
and memory on the meta device and says how long a step would take (`roofline.py`).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import arms
import counted
import kept
import peers
import roofline
import torch
from machine import describe, write
from peers import Arm

from voxprior.engine import device as devices
from voxprior.engine import estimate
from voxprior.engine.recompute import recompute_blocks
from voxprior.engine.step import GRAPHS, Learner, compile_networks, reduce_terms
from voxprior.maths import crops
from voxprior.nets.backbones import Backbone

# (precision, how): what users get first, so that it is measured whatever the time allows.
WAYS = [
    ("bf16", "compiled"),
    ("bf16", "eager"),
    ("fp32", "eager"),
    ("bf16", "graphs"),
    ("bf16", "channels last"),
    ("bf16", "recomputed"),
    ("fp32", "compiled"),
]
TOLERANCES = {"cpu": 1e-3, "bf16": 0.02, "compiled": 1e-3, "recomputed": 1e-5}
WARM = 3  # steps that compile, choose kernels and fill the allocator


class Clock:
    """Times work on a device in milliseconds: by its events on CUDA, by the wall on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Waits until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

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
        self.wait()
        return [before.elapsed_time(after) for before, after in pairwise(events)]


def busy(device: torch.device, work: Any, rounds: int) -> dict[str, Any]:
    """Tells in which share of the time at least one kernel runs, and how many run in a round; None on a CPU."""
    if device.type != "cuda":
        return {"busy": None, "launches": None}
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(rounds):
            work()
        torch.cuda.synchronize(device)
    kernels = [event for event in seen.events() if event.device_type.name == "CUDA"]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    if not spans:
        return {"busy": None, "launches": None}
    covered, until = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return {"busy": covered / (until - spans[0][0]), "launches": round(len(spans) / rounds)}


def alone(told: dict[str, Any], name: str, work: Callable[[], Any], ends: float) -> Any:
    """Runs one part of the benchmark: what it tells, or why it could not, stands under its name."""
    if time.monotonic() > ends:
        told[name] = {"absent": "no time was left for it"}
        return None
    try:
        told[name] = work()
    except Exception as error:  # whatever it is: the parts after this one are worth as much
        short = " ".join(str(error).split())[:300]
        full = isinstance(error, torch.cuda.OutOfMemoryError)
        told[name] = {"absent": "does not fit the device's memory" if full else f"{type(error).__name__}: {short}"}
        print(f"{name}: {told[name]['absent']}", file=sys.stderr)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return told[name]


def check_kernel(device: torch.device) -> dict[str, Any]:
    """Compares views cut by the Triton kernel with those cut by matrix products, and times both."""
    if device.type != "cuda":
        return {"absent": "the kernel is for GPUs"}
    torch.manual_seed(0)
    region = torch.randint(0, 1000, (2, 1, 192, 192, 192), dtype=torch.int16, device=device)
    lo, side = torch.rand(2, 4, 3, device=device) * 60, 60 + torch.rand(2, 4, 3, device=device) * 70
    first = torch.zeros(2, 3, dtype=torch.int64, device=device)
    given = lo, lo + side, (96, 96, 96), first, first + 192, lo > 30, torch.full((2,), 1e-3, device=device)
    told: dict[str, Any] = {}
    views = {}
    for name, allowed in (("products", False), ("kernel", True)):
        crops.allow_kernel(allowed)
        views[name] = crops.cut(region, *given)
        told[f"{name}_ms"] = statistics.median(Clock(device).times(lambda: crops.cut(region, *given), 10))
    told["apart"] = float((views["kernel"] - views["products"]).abs().max())
    told["right"] = told["apart"] < 1e-4
    return told


def seen_and_loss(model: Any, batch: Any, key_B: Any, device: torch.device, how: str) -> tuple[Any, float]:
    """Makes the views of a batch and their loss in the middle of the run: in float32 as written, or `how`."""
    crops.allow_kernel(how == "compiled")
    if how == "compiled":
        torch.compiler.reset()
        compile_networks(model, "inductor")
    if how == "recomputed":
        recompute_blocks(model)
    with devices.autocast(device, "bf16" if how == "bf16" else "fp32"), torch.set_grad_enabled(how == "recomputed"):
        with torch.no_grad():
            views = model.views(batch, key_B)
        return views, float(reduce_terms(model(views, 0.5))[0].detach())


def one_loss(method: str, backbone: Backbone, size: str, device: torch.device, how: str) -> float:
    """Computes the loss of one batch of a method."""
    config = arms.config_of(method, size)
    batch, key_B = arms.batch_of(method, backbone, config, 2, device)
    model = arms.model_of(method, backbone, config).to(device).train()
    return seen_and_loss(model, batch, key_B, device, how)[1]


def check(method: str, backbone: Backbone, options: Any) -> dict[str, Any]:
    """Compares losses with the one in float32 as written: relative differences and a verdict."""
    device = torch.device(options.device)
    exact = one_loss(method, backbone, options.size, device, "fp32")
    told: dict[str, Any] = {"loss": exact}
    small = arms.SIZES["tiny"]["vit" if backbone.family == "vit" else "cnn"]
    there, here = (one_loss(method, small, "tiny", torch.device(on), "fp32") for on in (options.device, "cpu"))
    told["cpu"] = there / here - 1
    for how in ("bf16", "compiled", "recomputed"):
        if how == "compiled" and options.no_compile:
            continue
        told[how] = one_loss(method, backbone, options.size, device, how) / exact - 1
    told["right"] = all(abs(told[name]) <= most for name, most in TOLERANCES.items() if name in told)
    return told


def measure(learner: Learner, batch: Any, key_B: Any, samples: int, rounds: int) -> dict[str, Any]:
    """Times one arm in the middle of its run, with batches on the device, and with batches that come from the host."""
    device, at = learner.plan.device, arms.TOTAL_STEPS // 2
    learner.step(at, key_B, batch)  # counts the operations
    pinned = {name: tensor.cpu() for name, tensor in batch.items()}
    if device.type == "cuda":
        pinned = {name: tensor.pin_memory() for name, tensor in pinned.items()}
    key_host_B = key_B.cpu()

    def step() -> None:
        learner.step(at + 1, key_B, batch)

    clock = Clock(device)
    for _ in range(WARM):
        step()
    clock.wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    took = clock.times(step, rounds)
    fed = clock.times(lambda: learner.step(at + 1, key_host_B, pinned), rounds)
    told = {"ms": statistics.median(took), "ms_low": min(took), "ms_high": max(took), "flops": learner.flops}
    told["ms_from_host"] = statistics.median(fed)
    told["samples_per_second"] = 1000 * samples / told["ms"]
    peak = devices.peak_flops(device, learner.plan.precision)
    told["mfu"] = learner.flops / (told["ms"] / 1000) / peak if peak else None
    told["peak_memory_bytes"] = devices.peak_memory_bytes(device)
    views = clock.times(lambda: learner.views(key_B, batch), rounds)
    told["views_ms"] = statistics.median(views)
    return told | busy(device, step, min(rounds, 10))


def attempt(
    method: str, backbone: Backbone, options: Any, way: tuple[str, str], samples: int | None = None
) -> dict[str, Any]:
    """Measures one arm."""
    device, (precision, how) = torch.device(options.device), way
    config, samples = arms.config_of(method, options.size), samples or arms.samples_of(method, options.size)
    torch.compiler.reset()
    backend = {"eager": None, "graphs": GRAPHS}.get(how, "inductor")
    compiler = None if options.no_compile else backend
    how_run = arms.plan(device, precision, compiler, recompute=how == "recomputed")
    learner = arms.learner_of(method, backbone, config, how_run)
    if how == "channels last":
        learner.model.to(memory_format=torch.channels_last_3d)
    batch, key_B = arms.batch_of(method, backbone, config, samples, device)
    return {"samples": samples, **measure(learner, batch, key_B, samples, options.rounds)}


def authors(arm: Arm, options: Any, there: Path) -> dict[str, Any]:
    """Measures one of the authors' steps."""
    device = torch.device(options.device)
    step = peers.taken(arm, there, device, options.size == "paper")
    clock, samples = Clock(device), arm.samples if options.size == "paper" else 2
    for _ in range(WARM):
        step()
    clock.wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    took = clock.times(step, options.rounds)
    told = {"ms": statistics.median(took), "ms_low": min(took), "ms_high": max(took), "samples": samples}
    told["repository"] = arm.repository
    told["samples_per_second"] = 1000 * samples / told["ms"]
    told["peak_memory_bytes"] = devices.peak_memory_bytes(device)
    return told | busy(device, step, min(options.rounds, 5))


def beside(arm: Arm, told: dict[str, Any], make: Callable[[Backbone], dict[str, Any]]) -> dict[str, Any]:
    """Finds what our step of an arm took at as many samples as the authors', or makes it."""
    for mine in told["arms"]:
        found = mine if "ways" not in mine else mine["ways"].get(" ".join(WAYS[0]), {})
        if mine["method"] == arm.method and found.get("samples") == arm.samples:
            return {name: value for name, value in found.items() if name not in ("method", "backbone", "family")}
    ((_, backbone),) = arms.arms("paper", [arm.method])
    return make(backbone)


def predict(method: str, backbone: Backbone, size: str, samples: int | None = None) -> dict[str, Any]:
    """Says what a step in bfloat16 costs, how long it takes, and how many samples fit, on each known GPU."""
    config, samples = arms.config_of(method, size), samples or arms.samples_of(method, size)
    module, recipe = arms.load(method), arms.plan(estimate.META).recipe
    region = module.region(config, backbone)

    def built(recompute: bool = False) -> Any:
        with estimate.META:
            model = module.Model(config, backbone.encoder())
        if recompute:
            recompute_blocks(model)
        return model

    def cost(model: Any, count: int) -> estimate.Cost:
        return estimate.cost(model, region, count, "bf16", recipe)

    known, spared = cost(built(), samples), cost(built(True), samples)
    memory = {samples: known.memory_bytes, 2 * samples: cost(built(), 2 * samples).memory_bytes}
    told = {
        "samples": samples,
        "parameters": known.parameters,
        "flops": known.flops,
        "memory_bytes": known.memory_bytes,
        "memory_bytes_recomputed": spared.memory_bytes,
        "fits": {name: roofline.fits(memory, gpu) for name, gpu in roofline.GPUS.items()},
    }
    told |= roofline.predict(built(), region, samples, known)
    told["bf16 compiled"]["peak_memory_bytes"] = kept.peak_bytes(built(), region, samples, known.optimiser_bytes)
    return told


def row(arm: dict[str, Any], way: str, told: dict[str, Any]) -> str:
    """Writes one arm as a line."""
    head = f"{arm['method']:<10}{arm['backbone']:<13}{way:<20}"
    if "absent" in told:
        return head + told["absent"]
    shares = [f"{name} {told[name]:.0%}" for name in ("mfu", "busy") if told.get(name) is not None]
    memory = told["peak_memory_bytes"] / 2**30
    return f"{head}{told['ms']:9.1f} ms {told['samples_per_second']:8.1f}/s {memory:6.1f} GiB {' '.join(shares)}"


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(arms.SIZES), default="paper")
    parser.add_argument("--methods", default="all", help="names with commas")
    parser.add_argument("--ways", default="all", help="with commas, of: " + ", ".join(map(" ".join, WAYS)))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins later than this")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not options.predict and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: use --device cpu --size tiny, or --predict")
    return options


def run_predictions(output: Path, methods: list[str]) -> None:
    """Predicts every arm of the papers, and STU-Net-L and -H."""
    assumed = {"products": roofline.PRODUCT_SHARE, "bandwidth": roofline.BANDWIDTH_SHARE, "launch_s": roofline.LAUNCH_S}
    told: dict[str, Any] = {"format": 2, "measured": False, "size": "paper", "assumed": assumed, "gpus": roofline.GPUS}
    told |= {"torch": torch.__version__, "arms": []}
    for size in ("paper", "large"):
        for method, backbone in arms.arms(size, methods):
            if size == "large" and method not in ("spark", "anatomask"):
                continue
            arm = {"method": method, "backbone": backbone.name, "family": backbone.family}
            told["arms"].append(arm | predict(method, backbone, size))
            ms = told["arms"][-1]["H100"]["bf16 compiled"]["ms"]
            print(
                f"{method:<10}{backbone.name:<13}{told['arms'][-1]['flops'] / 1e12:8.3f} TFLOP {ms:8.1f} ms", flush=True
            )
            write(output, told)
    told["peers"], there = {}, peers.folder()
    for peer in (peer for peer in peers.ARMS if peer.method in methods):
        if (absent := peer.absent(there)) or there is None:
            told["peers"][peer.name] = {"absent": absent}
            continue
        found = counted.predict(peer, there)
        found["ours"] = beside(peer, told, lambda b, p=peer: predict(p.method, b, "paper", p.samples))
        told["peers"][peer.name] = found
        print(f"{peer.repository:<12}{peer.name:<23}{found['H100']['ms']:18.1f} ms", flush=True)
    write(output, told)


def run_measurements(output: Path, methods: list[str], options: Any) -> bool:
    """Checks and measures; tells whether all numbers that were checked are right."""
    ends = time.monotonic() + 60 * options.minutes
    device = devices.pick(options.device, torch.get_num_threads())
    told: dict[str, Any] = {"format": 2, "size": options.size, "measured": True, **describe(device), "arms": []}
    alone(told, "kernel", lambda: check_kernel(device), ends)
    here = arms.arms(options.size, methods)
    for method, backbone in here:
        arm: dict[str, Any] = {"method": method, "backbone": backbone.name, "family": backbone.family, "ways": {}}
        told["arms"].append(arm)
        alone(arm, "check", lambda m=method, b=backbone: check(m, b, options), ends)
        print(f"{method:<10}{backbone.name:<13}{arm['check']}", flush=True)
        write(output, told)
    asked = [" ".join(way) for way in WAYS] if options.ways == "all" else options.ways.split(",")
    for way in (way for way in WAYS if " ".join(way) in asked):
        if options.no_compile and way[1] in ("compiled", "graphs", "channels last"):
            continue
        for arm, (method, backbone) in zip(told["arms"], here, strict=True):
            name = " ".join(way)
            alone(arm["ways"], name, lambda m=method, b=backbone, w=way: attempt(m, b, options, w), ends)
            print(row(arm, name, arm["ways"][name]), flush=True)
            write(output, told)
    told["peers"], there = {}, peers.folder()
    for peer in (peer for peer in peers.ARMS if peer.method in methods):
        if (absent := peer.absent(there)) or there is None:
            told["peers"][peer.name] = {"absent": absent}
            continue
        alone(told["peers"], peer.name, lambda p=peer, f=there: authors(p, options, f), ends)
        print(row({"method": peer.repository, "backbone": ""}, peer.name, told["peers"][peer.name]), flush=True)
        if options.size == "paper" and "ms" in told["peers"][peer.name]:
            way = ("bf16", "eager") if options.no_compile else WAYS[0]
            make = lambda b, p=peer, w=way: attempt(p.method, b, options, w, p.samples)  # noqa: E731
            alone(told["peers"][peer.name], "ours", lambda p=peer, m=make: beside(p, told, m), ends)
        write(output, told)
    write(output, told)
    checks = [told["kernel"], *(arm["check"] for arm in told["arms"])]
    return all(found.get("right", True) for found in checks)


def main() -> None:
    options = parse()
    name = "gpu_predicted" if options.predict else f"{options.device.split(':')[0]}_{options.size}"
    output = options.output or arms.ROOT / "docs/results/benchmarks" / f"{name}.json"
    methods = arms.known(options.methods)
    if options.predict:
        run_predictions(output, methods)
    elif not run_measurements(output, methods, options):
        sys.exit("some numbers are wrong: see `check` and `kernel` in the JSON")


if __name__ == "__main__":
    main()
