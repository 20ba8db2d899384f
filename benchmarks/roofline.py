"""What a step must move and compute, operation by operation, on the meta device; and how long a GPU takes for it.

A step is run without content, and every operation of it is noted: floating-point operations, bytes read, bytes written.
As written, every operation is a kernel; compiled, they are joined as torch's compiler does (`fusing.py`). A kernel
takes as long as its products at a share of the peak, or its bytes at a share of the bandwidth, whichever is
more; a step takes as long as its kernels, or as the host takes to launch them, whichever is more. Where the host waits
for the device, as it does to learn a number that lies there, it launches nothing more until all is done.

Memory: what is alive at the fullest moment of a step as written, each storage once. What the allocator cannot use, and
what a kernel needs inside itself, comes on top.

What this cannot know: how near to the peak a convolution of few channels gets, caches, and clocks that fall under load.
"""

from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import arms  # noqa: F401  # puts the checkout on the path
import torch
from fusing import WRITTEN, Kernel, kernels
from tape import Operation, Tape, touched
from torch import Tensor

from voxprior.engine import estimate
from voxprior.engine.step import networks, reduce_terms
from voxprior.maths.crops import cut

# Published: dense bf16, TF32 (what torch uses for float32 convolutions), float32 without tensor cores (for float32
# matrix products), bandwidth, memory.
# Source: NVIDIA's data sheets of H100 SXM and H200 SXM.
GPUS = {
    "H100": {"bf16": 989e12, "tf32": 494.5e12, "fp32": 67e12, "bytes_per_second": 3.35e12, "memory_bytes": 80e9},
    "H200": {"bf16": 989e12, "tf32": 494.5e12, "fp32": 67e12, "bytes_per_second": 4.8e12, "memory_bytes": 141e9},
}
# Assumed, and to be replaced by the first run on a GPU.
PRODUCT_SHARE, BANDWIDTH_SHARE, MEMORY_SHARE = 0.65, 0.8, 0.9
LAUNCH_S = {"fp32 eager": 8e-6, "bf16 eager": 8e-6, "bf16 compiled": 3e-6}  # of the host, per kernel
TAP_OPERATIONS = 12  # of the kernel that cuts views, per voxel read; on the ordinary cores, at a half of their peak


# What a kernel is called after: the first kind of which it holds an operation.
KINDS = {
    "attention": ("together",),
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "convolutions": ("convolution", "convolution_backward"),
    "cutting views": ("cut",),
    "GELU": ("gelu", "gelu_backward"),
    "norms": ("native_layer_norm", "native_group_norm", "native_batch_norm", "rsqrt", "var", "mean"),
    "statistics": ("sum",),
    "weights and gradients to another type": ("_to_copy",),
}


def kind_of(operations: list[Operation], group: Kernel) -> str:
    """Says what a kernel is for."""
    names = {operations[at].name.removesuffix("_backward") for at in group.operations}
    names |= {operations[at].kind.split()[0] for at in group.operations} & {"together"}
    if len(names) > 1:
        names.discard("_to_copy")
    return next((kind for kind, known in KINDS.items() if names & set(known)), "other")


@dataclass
class Sum:
    """What kernels add up to."""

    seconds: float = 0.0
    bound: float = 0.0
    bytes: int = 0
    kernels: int = 0
    moving: float = 0.0  # seconds in kernels that the bandwidth limits
    waits: int = 0
    spans: list[tuple[float, int, bool]] = field(default_factory=list)  # of each kernel: seconds, launches, waits
    by_part: dict[str, float] = field(default_factory=dict)
    by_kind: dict[str, float] = field(default_factory=dict)


def add_up(operations: list[Operation], groups: list[Kernel], gpu: dict[str, float]) -> Sum:
    """Adds up the time of kernels on a GPU."""
    total = Sum()
    for group in groups:
        products = ideal = 0.0
        for at in group.operations:
            operation = operations[at]
            convolves = "tf32" if operation.name.startswith("convolution") else "fp32"
            peak = gpu["bf16" if operation.low else convolves]
            products += operation.flops / (PRODUCT_SHARE * peak)
            ideal += operation.flops / peak
        moving = group.bytes / (BANDWIDTH_SHARE * gpu["bytes_per_second"])
        took = max(products, moving)
        total.seconds += took
        total.bound += max(ideal, group.bytes / gpu["bytes_per_second"])
        total.bytes += group.bytes
        launches = max(operations[at].launches for at in group.operations)
        waits = any(operations[at].waits for at in group.operations)
        total.spans.append((took, launches, waits))
        total.kernels += launches
        total.waits += waits
        total.moving += moving if moving >= products else 0.0
        part = operations[group.operations[0]].part
        total.by_part[part] = total.by_part.get(part, 0.0) + took
        kind = kind_of(operations, group)
        total.by_kind[kind] = total.by_kind.get(kind, 0.0) + took
    return total


def clock(spans: list[tuple[float, int, bool]], launch_s: float) -> float:
    """Says how long kernels take from an idle device on: each begins when it is launched and the one before is done.

    Where the host waits, it launches the next one when all is done.
    """
    host = device = 0.0
    for seconds, launches, waits in spans:
        host += launches * launch_s
        device = max(device, host) + seconds
        if waits:
            host = device
    return max(host, device)


_fused = estimate._Fused  # as it is; while a step is recorded the next one stands in its place


class _Attention(torch.autograd.Function):
    """Fused attention as one kernel on the tape."""

    tape: Tape

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        with _Attention.tape.one():
            return _fused.forward(ctx, *given)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with _Attention.tape.one():
            return _fused.backward(ctx, gradient)


def _step_vox(model: Any, size_zyx: tuple[int, ...], side: int) -> float:
    """Tells how many voxels of the region a view's voxel spans, on average of what is drawn."""
    for kind in (getattr(model, "whole", None), getattr(model, "part", None)):
        if kind is not None and kind.size_zyx == tuple(size_zyx):
            return max(1.0, sum(kind.share) / 2 * side / size_zyx[-1])
    return sum(model.config.scale) / 2


def _in_one(tape: Tape, model: Any) -> Any:
    """Has views be cut as the GPU's kernel does: reads the region, writes the views."""

    def cutting(volume: Tensor, lo: Tensor, hi: Tensor, size: Any, *rest: Any) -> Tensor:
        samples, channels, *sides = volume.shape
        made = volume.new_empty((samples, lo.shape[1], channels, *size), dtype=torch.float32)
        taps = (2 * _step_vox(model, size, sides[-1])) ** 3
        place = made.untyped_storage()._cdata
        tape.hold([made, volume])
        operation = Operation("cut", "product", 0, False, {volume.untyped_storage()._cdata: touched(volume)}, {}, 1)
        operation.writes, operation.part = {place: touched(made)}, tape.part
        # Written as products of the ordinary cores, of which a half is reached.
        operation.flops = int(made.numel() * taps * TAP_OPERATIONS * PRODUCT_SHARE / 0.5)
        tape.operations.append(operation)
        return made

    return cutting


def record(model: Any, region: Any, samples: int, precision: str, kernel: bool = True) -> Tape:
    """Notes views, forward and backward pass of a step; `kernel`: views are cut by `maths/cutting.py`."""
    from voxprior.methods import glmae, twoviews

    batch, key_B = estimate.fake_batch(region, samples, channels=model.encoder.channels_in)
    tape = Tape()
    tape.hold([*model.parameters(), *model.buffers(), *batch.values()])
    _Attention.tape = tape
    with tape:
        tape.part = "views"
        way = _in_one(tape, model) if kernel else cut
        for change in (part for part in model.modules() if getattr(part, "compiled", False)):
            change.register_forward_pre_hook(lambda *_: setattr(tape, "part", "change"))
            change.register_forward_hook(lambda *_: setattr(tape, "part", "views"))
        with torch.no_grad(), mock.patch.object(glmae, "cut", way), mock.patch.object(twoviews, "cut", way):
            views = model.train().views(batch, key_B)
        tape.part = "between"
        for _, network in networks(model):
            network.register_forward_pre_hook(lambda *_: setattr(tape, "part", "forward"))
            network.register_forward_hook(lambda *_: setattr(tape, "part", "between"))
        with mock.patch.object(estimate, "_Fused", _Attention), estimate._AsOnAGpu(precision == "bf16"):
            loss, _, _ = reduce_terms(model(views, 0.5))
        tape.part = "backward"
        loss.backward()
    return tape


def update_bytes(cost: estimate.Cost) -> int:
    """Counts what clipping, optimiser and teacher move: norm 1, scaling 2, AdamW 7, teacher 3 times the float32."""
    trained = 4 * cost.parameters
    return 10 * trained + 3 * 4 * cost.teacher


def predict(model: Any, region: Any, samples: int, cost: estimate.Cost) -> dict[str, Any]:
    """Predicts a step as written in float32 and bfloat16, and compiled, on each GPU."""
    told: dict[str, Any] = {}
    update = update_bytes(cost)
    for way, launch_s in LAUNCH_S.items():
        compiled = way.endswith("compiled")
        tape = record(model, region, samples, way[:4], kernel=compiled)
        operations = tape.operations
        groups = kernels(operations, compiled)
        for name, gpu in GPUS.items():
            found = add_up(operations, groups, gpu)
            updating = update / (BANDWIDTH_SHARE * gpu["bytes_per_second"])
            device = found.seconds + updating
            # What lies outside of networks is launched one by one, from Python.
            apart = sum(operations[group.operations[0]].part in WRITTEN for group in groups) if compiled else 0
            launching = found.kernels * launch_s + apart * (LAUNCH_S["bf16 eager"] - LAUNCH_S["bf16 compiled"])
            seconds = max(device, launching)
            told.setdefault(name, {})[way] = {
                "ms": 1000 * seconds,
                "ms_bound": 1000 * (found.bound + update / gpu["bytes_per_second"]),
                "mfu": cost.flops / seconds / gpu["bf16"],
                "launch_ms": 1000 * launching,
                "moving_share": (found.moving + updating) / device,
                "views_share": sum(found.by_part.get(part, 0.0) for part in ("views", "change")) / device,
            }
            if compiled:
                by = {**found.by_kind, "clipping, optimiser, teacher": updating}
                ranked = sorted(by.items(), key=lambda pair: -pair[1])
                told[name][way]["ms_by_kind"] = {kind: 1000 * seconds for kind, seconds in ranked}
        told[way] = {"bytes": found.bytes + update, "kernels": found.kernels, "kernels_apart": apart}
        if not compiled:
            told[way]["peak_memory_bytes"] = tape.peak_bytes + cost.optimiser_bytes
    return told


def fits(memory_bytes: dict[int, int], gpu: dict[str, float]) -> int:
    """Says how many samples a step fit a GPU's memory, from what two numbers of them take."""
    (few, small), (many, large) = sorted(memory_bytes.items())
    each = (large - small) / (many - few)
    return max(0, int((MEMORY_SHARE * gpu["memory_bytes"] - (small - few * each)) / each))
