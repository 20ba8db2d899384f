"""The authors' steps counted as they are written, on the meta device: operations, waits of the host, memory, time.

Their code runs unchanged, at the papers' sizes, without content and without a GPU. What a meta tensor cannot answer is
answered beside it: how many voxels a mask shows (its ratio says so), and numbers that the host reads (zeros, or
0, 1, 2 ... for a list of indices). Each such answer is a moment at which the host would wait for the device, and so is
every copy between the two that is not `non_blocking`. The step is not compiled: every operation is a kernel.

An operation that gathers or scatters by indices is taken for one kernel that moves what is indexed once, in whole
cache lines. torch's are slower (single values that lie apart, indices that are sorted first), so the authors' times are
bounds from below.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import peers
import roofline
import tape as tapes
import torch
from peers import Arm, Step
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from voxprior.engine import estimate
from voxprior.engine.estimate import META

LAUNCH_S = roofline.LAUNCH_S["bf16 eager"]  # the same at all precisions
# Of 392 mask units of a crop, 157 are shown: round(392 * 0.4). SelfMedMAE asks for no places.
SHOWN = {"anatomask": 157 / 392, "spark": 157 / 392, "mae": 1.0}
# What autocast computes in float32 beside what `estimate` knows. Source: torch's documentation of autocast.
_PRECISE = {torch.pow, Tensor.pow, Tensor.__pow__, torch.exp, Tensor.exp, torch.rsqrt, Tensor.rsqrt}


class Answers(tapes.Tape):
    """Notes a step, and answers what a tensor without content cannot.

    Args:
        shown: the share of entries that are True in every mask whose places are asked for.
    """

    def __init__(self, shown: float) -> None:
        super().__init__()
        self.shown = shown

    def run(self, function: Any, given: Any, named: dict[str, Any], inputs: list[Tensor]) -> Any:
        """Runs one operation, or answers it, and notes where the host waits."""
        name = function.overloadpacket.__name__
        there = bool(inputs) and inputs[0].device == META
        if there and name == "nonzero":
            count = round(self.shown * inputs[0].numel())
            made = inputs[0].new_empty((count, inputs[0].dim()), dtype=torch.int64)
            self._note_alone("nonzero", inputs, [made])
            return made
        if there and name == "_local_scalar_dense":
            self._note_alone("item", [], [])
            return 0 if not inputs[0].is_floating_point() else 0.0
        if name == "_to_copy" and (to := named.get("device")) is not None and to != inputs[0].device:
            if not named.get("non_blocking"):
                self._note_alone("copy", [], [])
            if to.type == "cpu":
                return torch.arange(inputs[0].numel()).view(inputs[0].shape).to(named.get("dtype") or inputs[0].dtype)
        if there and name == "_amp_foreach_non_finite_check_and_unscale_":
            return None  # changes gradients in place
        return super().run(function, given, named, inputs)

    def _note_alone(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Notes an operation for which the host waits."""
        self.hold((*inputs, *outputs))
        reads, writes = (
            {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
            for tensors in (inputs, outputs)
        )
        self.operations.append(tapes.Operation(name, "alone", 0, False, reads, writes, 1, part=self.part, waits=True))

    def note(self, function: Any, given: Any, named: Any, made: Any, inputs: Any, outputs: Any) -> None:
        """Notes one operation, unless `run` did."""
        if function.overloadpacket.__name__ not in ("nonzero", "_local_scalar_dense"):
            super().note(function, given, named, made, inputs, outputs)


class Autocast(TorchFunctionMode):
    """Gives meta tensors what autocast gives those of a GPU; a weight is cast once."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.cast: dict[int, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        """Casts the arguments of what autocast knows."""
        named = named or {}
        to = self.dtype if function in estimate._PRODUCTS else None
        if function in estimate._STATISTICS or function in _PRECISE:
            to = torch.float32
        if to is not None:
            given = tuple(self._to(part, to) for part in given)
            named = {name: self._to(part, to) for name, part in named.items()}
        return function(*given, **named)

    def _to(self, value: Any, to: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == to:
            return value
        if not isinstance(value, nn.Parameter) or not value.requires_grad:
            return value.to(to)
        if id(value) not in self.cast:
            self.cast[id(value)] = value.to(to)
        return self.cast[id(value)]


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Has torch treat the meta device as a GPU: autocast, and operations on lists of tensors in the optimiser."""

    def autocast(device: str, dtype: torch.dtype = torch.bfloat16, enabled: bool = True) -> Any:
        return Autocast(dtype) if enabled else nullcontext()

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "autocast", autocast))
        for place in (sys.modules["torch.optim.optimizer"], torch.utils._foreach_utils):
            name = "_get_foreach_kernels_supported_devices"
            stack.enter_context(mock.patch.object(place, name, return_value=["cuda", "meta"]))
        yield


def note(step: Step, shown: float) -> Answers:
    """Notes the second step: the first one makes what the optimiser remembers, and gradients that lie there."""
    with as_on_a_gpu():
        with Answers(shown):
            step()
        tape = Answers(shown)
        for module in step.modules:
            tape.hold([*module.parameters(), *module.buffers()])
            tape.hold(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
        remembered = step.optimiser.state.values() if step.optimiser else []
        tape.hold(part for state in remembered for part in state.values() if part.device == META)
        with tape:
            step()
    return tape


def flops(tape: tapes.Tape) -> int:
    """Adds up floating-point operations."""
    return sum(operation.flops for operation in tape.operations)


def predict(arm: Arm, there: Path, paper: bool = True) -> dict[str, Any]:
    """Predicts one of the authors' steps: operations, waits, memory, and milliseconds on each GPU."""
    with redirect_stdout(sys.stderr):  # their networks print
        step = peers.taken(arm, there, META, paper)
        tape = note(step, SHOWN[arm.method])
    groups = roofline.kernels(tape.operations, compiled=False)
    told: dict[str, Any] = {"samples": arm.samples, "repository": arm.repository, "flops": flops(tape)}
    told["peak_memory_bytes"] = tape.peak_bytes
    for name, gpu in roofline.GPUS.items():
        found = roofline.add_up(tape.operations, groups, gpu)
        seconds = roofline.clock(found.spans, LAUNCH_S)
        told[name] = {
            "ms": 1000 * seconds,
            "device_ms": 1000 * found.seconds,
            "launch_ms": 1000 * found.kernels * LAUNCH_S,
            "samples_per_second": arm.samples / seconds,
        }
        told |= {"kernels": found.kernels, "waits": found.waits, "bytes": found.bytes}
    return told
