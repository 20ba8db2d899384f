"""How a training's numbers are computed on a GPU: compiled or as written, as CUDA graphs, blocks once or twice.

None of it changes what is computed, so none of it is on a card. What nobody asks for is chosen by a step counted on the
meta device, and said. The seconds behind the choice are estimates: they only have to be right where they are far apart.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from voxprior.engine import estimate, members
from voxprior.engine.device import can_compile, peak_flops, small_convolutions_err
from voxprior.engine.step import GRAPHS
from voxprior.errors import Refusal

COMPILE = ("auto", "off", "on", "graphs")
# Assumed, as in benchmarks/roofline.py, which predicts steps kernel by kernel, and finds 19 to 45 % of the peak and 23
# to 59 % of the kernels left by the compiler.
LAUNCH_S, COMPILED_LAUNCH_S, KERNELS_LEFT, REACHED = 8e-6, 3e-6, 0.5, 0.32
COMPILING_S = 60.0  # until the networks of a run are compiled


class Asked(NamedTuple):
    """What somebody asks of the machine: `device` as for `engine.device.pick`, `compiled` one of `COMPILE`."""

    device: str
    compiled: str = "auto"


def asked_of(device: str | tuple[str, str]) -> Asked:
    """Takes the name of a device alone for everything else left open.

    Raises:
        Refusal: it is not known how to compile so.
    """
    asked = Asked(device) if isinstance(device, str) else Asked(*device)
    if asked.compiled not in COMPILE:
        raise Refusal(f"--compile {asked.compiled} is not known: choose {', '.join(COMPILE)}")
    return asked


def written_s(cost: estimate.Cost, peak: float) -> float:
    """Estimates seconds of a step as it is written, on a device of `peak` operations a second."""
    return max(LAUNCH_S * cost.kernels, cost.flops / (0.5 * REACHED * peak))


def computing_s(cost: estimate.Cost, peak: float) -> float:
    """Estimates seconds that a GPU computes in a compiled step."""
    return cost.flops / (REACHED * peak)


def launching_s(cost: estimate.Cost) -> float:
    """Estimates seconds in which the host launches the kernels of a compiled step, while the GPU computes."""
    return COMPILED_LAUNCH_S * KERNELS_LEFT * cost.kernels


def choose(
    asked: Asked, where: torch.device, precision: str, steps: int, count: Callable[[], estimate.Cost]
) -> dict[str, Any]:
    """Chooses how a run is computed and says so: `compiler` and `recompute` of `engine.step.Plan`.

    Args:
        asked: what is asked for; auto: on CUDA networks are compiled where that is soon worth its time, and their CUDA
            graphs replayed where launching kernels would take longer than computing them.
        where: the device.
        precision: fp32 or bf16.
        steps: of the run.
        count: counts a step of this process (`engine.estimate.cost`); called for a GPU alone.

    Raises:
        Refusal: CUDA graphs are asked for where they cannot be.
    """
    if asked.compiled == "graphs" and where.type != "cuda":
        raise Refusal(f"--compile graphs is for GPUs and the device is {where}: use --compile on, or leave it out")
    if asked.compiled == "graphs" and members.found().size > 1:
        raise Refusal("--compile graphs is for one process, whose gradients nobody adds up: use --compile on")
    if precision == "bf16" and small_convolutions_err(where):
        _say("warning: torch's bfloat16 convolutions of 2 voxels a side have wrong gradients here: use fp32 for CNNs")
    if where.type != "cuda":
        return {"compiler": "inductor" if asked.compiled == "on" else None, "recompute": False}
    cost = count()
    short = short_of_memory(where, cost)
    if asked.compiled != "auto":
        return {"compiler": {"off": None, "on": "inductor"}.get(asked.compiled, GRAPHS), "recompute": short}
    return {"compiler": _compiler(where, peak_flops(where, precision), steps, cost, short), "recompute": short}


def short_of_memory(where: torch.device, cost: estimate.Cost) -> bool:
    """Tells whether blocks must be computed twice for a step to fit the GPU, and says so."""
    room = torch.cuda.get_device_properties(where).total_memory
    if short := estimate.short_of(room, cost):
        _say(
            f"warning: a step would take {cost.memory_bytes / 2**30:.0f} GiB of {room / 2**30:.0f}: blocks are "
            "computed again in the backward pass, which takes a third longer"
        )
    return short


def _compiler(where: torch.device, peak: float | None, steps: int, cost: estimate.Cost, short: bool) -> str | None:
    if not can_compile(where):
        _say("not compiled: torch.compile needs Triton and a C compiler here")
        return None
    if peak is None:
        return "inductor"
    computing, launching, written = computing_s(cost, peak), launching_s(cost), written_s(cost, peak)
    graphs = launching > computing and not short and members.found().size == 1
    saved = steps * (written - (computing if graphs else max(computing, launching)))
    if saved < COMPILING_S:
        _say(
            f"not compiled: it would save about {max(0.0, saved):.0f} s and take {COMPILING_S:.0f} (--compile on does)"
        )
        return None
    if graphs:
        _say(
            f"networks are replayed as CUDA graphs: a step computes for about {1000 * computing:.1f} ms and launches "
            f"for {1000 * launching:.1f} (--compile on does without)"
        )
    return GRAPHS if graphs else "inductor"


def _say(text: str) -> None:
    if members.found().rank == 0:
        print(f"voxprior: {text}", file=sys.stderr)
