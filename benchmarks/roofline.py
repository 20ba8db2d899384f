"""What a step must move and compute, operation by operation, on the meta device; and how long a GPU takes for it.

A step is run without content, and every operation of it is noted: floating-point operations, bytes read, bytes written.
As written, every operation is a kernel. Compiled, element-wise operations and what they end in are one kernel, which
reads what comes from outside and writes what is used outside: a greedy picture of what torch's compiler makes. A
kernel takes as long as its products at a share of the peak, or its bytes at a share of the bandwidth, whichever is
more; a step takes as long as its kernels, or as the host takes to launch them, whichever is more. Where the host waits
for the device, as it does to learn a number that lies there, it launches nothing more until all is done.

Memory: what is alive at the fullest moment of a step as written, each storage once. What the allocator cannot use, and
what a kernel needs inside itself, comes on top.

What this cannot know: how near to the peak a convolution of few channels gets, caches, and clocks that fall under load.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import arms  # noqa: F401  # puts the checkout on the path
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from voxprior.engine import estimate
from voxprior.engine.step import reduce_terms
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
PERSISTENT = 4096  # values that torch's compiler reduces and uses in one kernel
# An operation on a list of tensors is launched for so many chunks of so many numbers, and for so many tensors of one,
# two ... lists. Source: torch, aten/src/ATen/native/cuda/MultiTensorApply.cuh.
CHUNK, CHUNKS, TENSORS = 65536, 320, (110, 64, 48, 36, 30)
LOW = (torch.bfloat16, torch.float16)

_aten = torch.ops.aten
_NORMS = {"native_layer_norm", "native_group_norm", "native_batch_norm", "cudnn_batch_norm", "_softmax", "_log_softmax"}
_NORMS |= {f"{name}_backward" for name in ("native_layer_norm", "native_group_norm", "native_batch_norm")}
_NORMS |= {"_softmax_backward_data", "_log_softmax_backward_data", "_native_batch_norm_legit"}
_REDUCTIONS = {"sum", "mean", "var", "var_mean", "std", "std_mean", "amax", "max", "min", "norm", "linalg_vector_norm"}
_ALONE = {"sort", "argsort", "topk", "cumsum", "max_pool3d_with_indices", "avg_pool3d", "avg_pool3d_backward"}


@dataclass
class Operation:
    """One noted operation: what it reads and writes, by storage, in bytes."""

    name: str
    kind: str  # product, reduction, pointwise, alone
    flops: int
    low: bool  # in bfloat16 or float16
    reads: dict[int, int]
    writes: dict[int, int]
    voxels: int  # of its largest tensor
    reduced: int = 1  # values that become one
    part: str = ""
    launches: int = 1
    waits: bool = False  # the host, until the device has done it


@dataclass
class Kernel:
    """Operations that run as one."""

    operations: list[int] = field(default_factory=list)
    open: bool = True
    voxels: int = 0


def _touched(tensor: Tensor) -> int:
    """Counts the bytes of a tensor that are different ones: what is repeated by a stride of 0 is read once."""
    count = 1
    for side, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= side if stride else 1
    return min(count * tensor.element_size(), tensor.untyped_storage().nbytes())


def launches_of(name: str, lists: list[list[Tensor]]) -> int:
    """Counts the kernels that an operation launches: one, or what lists of tensors are divided into."""
    if not name.startswith(("_foreach", "_fused", "_amp_foreach")) or not lists:
        return 1
    tensors = max(lists, key=len)
    chunks = sum(math.ceil(tensor.numel() / CHUNK) for tensor in tensors)
    at_once = TENSORS[min(len(lists), len(TENSORS)) - 1]
    return max(1, math.ceil(chunks / CHUNKS), math.ceil(len(tensors) / at_once))


class Tape(TorchDispatchMode):
    """Notes every operation on the device that runs inside, and the most bytes that are alive there.

    What is on the CPU is the host's own work and is not noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.part = ""
        self.together: int | None = None
        self.peak_bytes = 0
        # As long as a storage is weakly held its address is not given to another one.
        self._seen: dict[int, StorageWeakRef] = {}
        self._alive: dict[int, int] = {}  # bytes

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that are there before they are used."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen[storage._cdata] = StorageWeakRef(storage)
                self._alive[storage._cdata] = storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))

    def _forget(self) -> None:
        """Takes off what is let go."""
        for place in [place for place in self._alive if self._seen[place].expired()]:
            del self._alive[place]

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        """Runs the operation and notes it, unless it only looks at its input in another way."""
        flat, _ = torch.utils._pytree.tree_flatten((given, named))
        inputs = [part for part in flat if isinstance(part, Tensor)]
        made = self.run(function, given, named or {}, inputs)
        outputs = [part for part in torch.utils._pytree.tree_flatten(made)[0] if isinstance(part, Tensor)]
        if all(tensor.device.type != "cpu" for tensor in (*inputs[:1], *outputs)):
            self.note(function, given, named or {}, made, inputs, outputs)
        return made

    def run(self, function: Any, given: Any, named: dict[str, Any], inputs: list[Tensor]) -> Any:
        """Runs one operation."""
        return function(*given, **named)

    def note(self, function: Any, given: Any, named: Any, made: Any, inputs: Any, outputs: Any) -> None:
        """Notes one operation."""
        places = {tensor.untyped_storage()._cdata for tensor in inputs}
        changes = function._schema.is_mutable
        fresh = [tensor for tensor in outputs if changes or tensor.untyped_storage()._cdata not in places]
        name = function.overloadpacket.__name__
        lists = [part for part in given if isinstance(part, list | tuple) and part and isinstance(part[0], Tensor)]
        if changes and not fresh:  # an operation on lists gives nothing back
            fresh = list(lists[0]) if lists else []
        if self.together is None:
            self._forget()
            self.hold((*inputs, *outputs))
        else:  # inside a fused kernel nothing of it is alive; what comes out is seen where it is used
            self._seen |= {s._cdata: StorageWeakRef(s) for s in (t.untyped_storage() for t in outputs)}
        if not fresh or name.startswith(("empty", "new_empty")):
            return
        flops = 0
        if function.overloadpacket in flop_registry:
            flops = int(flop_registry[function.overloadpacket](*given, **named, out_val=made))
        bare = name.rstrip("_")
        kind = "pointwise"
        if flops:
            kind = "product"
        elif bare in _ALONE:
            kind = "alone"
        elif bare in _NORMS or bare in _REDUCTIONS:
            kind = "reduction"
        largest = max((tensor.numel() for tensor in (*inputs, *fresh)), default=1)
        least = min(tensor.numel() for tensor in fresh) if bare in _REDUCTIONS else fresh[-1].numel()
        gathers = name in ("index_select", "gather", "index")
        reads: dict[int, int] = {}
        for tensor in inputs:
            place = tensor.untyped_storage()._cdata
            size = fresh[0].numel() * tensor.element_size() if gathers else _touched(tensor)
            reads[place] = max(reads.get(place, 0), min(size, _touched(tensor)))
        writes = {tensor.untyped_storage()._cdata: _touched(tensor) for tensor in fresh}
        low = any(tensor.dtype in LOW for tensor in inputs)
        reduced, launches = max(1, largest // max(1, least)), launches_of(name, lists)
        operation = Operation(name, kind, flops, low, reads, writes, largest, reduced, self.part, launches)
        if self.together is not None:
            operation.kind = f"together {self.together}"
        elif bare in _NORMS and reduced > PERSISTENT:
            # Statistics first, and then the whole input again: torch's own kernels and compiled ones do the same.
            statistic = -len(self.operations) - 1
            first = Operation(name, kind, 0, low, reads, {statistic: 8 * least}, largest, reduced, self.part)
            self.operations.append(first)
            operation.kind, operation.reduced, operation.reads = "pointwise", 1, {**reads, statistic: 8 * least}
        self.operations.append(operation)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Takes all operations inside for one kernel."""
        before, self.together = self.together, len(self.operations)
        try:
            yield
        finally:
            self.together = before


def kernels(operations: list[Operation], compiled: bool) -> list[Kernel]:
    """Groups operations: each on its own, or element-wise ones with what they end in."""
    groups: list[Kernel] = []
    writer: dict[int, tuple[int, bool]] = {}  # storage -> (group, whether it may be joined)
    joined: dict[str, int] = {}
    for at, operation in enumerate(operations):
        goal: int | None = None
        if operation.kind.startswith("together"):
            goal = joined.get(operation.kind)
        elif compiled and operation.kind in ("pointwise", "reduction") and operation.part != "views":
            sources = [writer[place] for place in operation.reads if place in writer]
            latest = max((group for group, _ in sources), default=-1)
            if sources and all(may for group, may in sources if group == latest):
                there = groups[latest]
                if there.open and operations[there.operations[0]].part == operation.part:
                    goal = latest if operation.voxels == there.voxels else None
        if goal is None:
            may = compiled and operation.kind in ("pointwise", "reduction")
            groups.append(Kernel(open=may, voxels=operation.voxels))
            goal = len(groups) - 1
            if operation.kind.startswith("together"):
                joined[operation.kind] = goal
        groups[goal].operations.append(at)
        ends = operation.kind == "reduction" and operation.reduced > PERSISTENT
        for place in operation.writes:
            writer[place] = (goal, not ends)
    return groups


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


def add_up(operations: list[Operation], groups: list[Kernel], gpu: dict[str, float]) -> Sum:
    """Adds up the time of kernels on a GPU."""
    home = {at: number for number, group in enumerate(groups) for at in group.operations}
    users: dict[int, set[int]] = {}
    for at, operation in enumerate(operations):
        for place in operation.reads:
            users.setdefault(place, set()).add(home[at])
    total = Sum()
    for number, group in enumerate(groups):
        written: dict[int, int] = {}
        read: dict[int, int] = {}
        products = ideal = 0.0
        for at in group.operations:
            operation = operations[at]
            for place, size in operation.reads.items():
                if place not in written:
                    read[place] = max(read.get(place, 0), size)
            written |= operation.writes
            convolves = "tf32" if operation.name.startswith("convolution") else "fp32"
            peak = gpu["bf16" if operation.low else convolves]
            products += operation.flops / (PRODUCT_SHARE * peak)
            ideal += operation.flops / peak
        kept = {place for place in written if users.get(place, {number}) - {number} or place not in users}
        size = sum(read.values()) + sum(written[place] for place in kept)
        moving = size / (BANDWIDTH_SHARE * gpu["bytes_per_second"])
        took = max(products, moving)
        total.seconds += took
        total.bound += max(ideal, size / gpu["bytes_per_second"])
        total.bytes += size
        launches = max(operations[at].launches for at in group.operations)
        waits = any(operations[at].waits for at in group.operations)
        total.spans.append((took, launches, waits))
        total.kernels += launches
        total.waits += waits
        total.moving += moving if moving >= products else 0.0
        part = operations[group.operations[0]].part
        total.by_part[part] = total.by_part.get(part, 0.0) + took
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
        operation = Operation("cut", "product", 0, False, {volume.untyped_storage()._cdata: _touched(volume)}, {}, 1)
        operation.writes, operation.part = {place: _touched(made)}, tape.part
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
        if change := getattr(model, "change", None):
            change.register_forward_pre_hook(lambda *_: setattr(tape, "part", "change"))
            change.register_forward_hook(lambda *_: setattr(tape, "part", "views"))
        with torch.no_grad(), mock.patch.object(glmae, "cut", way), mock.patch.object(twoviews, "cut", way):
            views = model.train().views(batch, key_B)
        tape.part = "forward"
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
            seconds = max(device, found.kernels * launch_s)
            told.setdefault(name, {})[way] = {
                "ms": 1000 * seconds,
                "ms_bound": 1000 * (found.bound + update / gpu["bytes_per_second"]),
                "mfu": cost.flops / seconds / gpu["bf16"],
                "launch_ms": 1000 * found.kernels * launch_s,
                "moving_share": (found.moving + updating) / device,
                "views_share": sum(found.by_part.get(part, 0.0) for part in ("views", "change")) / device,
            }
        told[way] = {"bytes": found.bytes + update, "kernels": found.kernels}
    return told


def fits(memory_bytes: dict[int, int], gpu: dict[str, float]) -> int:
    """Says how many samples a step fit a GPU's memory, from what two numbers of them take."""
    (few, small), (many, large) = sorted(memory_bytes.items())
    each = (large - small) / (many - few)
    return max(0, int((MEMORY_SHARE * gpu["memory_bytes"] - (small - few * each)) / each))
