"""The processes of one run: how they meet, what they agree on, how their gradients are added.

A run of several processes computes what one process computes: each takes its share of every batch, loss terms are
divided by counts of all (`step.reduce_terms`), and so gradients are *summed*, where torch's DDP by itself takes their
mean. Only process 0 writes. Everything here is nothing where there is one process.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from voxprior.engine import members
from voxprior.engine.members import Member

Said = TypeVar("Said")


def member() -> Member:
    """Tells which process of the group this one is; alone before they have met and after they have parted."""
    if not dist.is_initialized():
        return Member()
    return Member(dist.get_rank(), dist.get_world_size(), *_local())


def _local() -> tuple[int, int]:
    told = members.found()
    return told.local_rank, told.local_size


def share() -> dict[str, Any]:
    """Says to the loader which samples of each batch are this process's."""
    here = member()
    return {"rank": here.rank, "world_size": here.size}


@contextmanager
def joined(device: torch.device) -> Iterator[Member]:
    """Lets the processes that the environment tells of meet, and part at the end.

    Tensors on the CPU travel by gloo, on CUDA by nccl; both are there on CUDA, because what is agreed on must not wait
    for the device. After an error nobody says goodbye: the others notice a closed connection, where a farewell would
    wait for them.
    """
    here = members.found()
    if here.size == 1:
        yield here
        return
    if parent := os.environ.get(members.PARENT):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    file = os.environ.get(members.MEET)
    if file is None:
        os.environ.update(members.export(here))
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    method = f"file://{file}" if file else "env://"
    dist.init_process_group(backend, init_method=method, rank=here.rank, world_size=here.size, **options)
    yield here
    dist.barrier()
    dist.destroy_process_group()


def _end_with(parent: int) -> None:
    """Asks this process to save and end when its launcher is gone: nobody else would."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def first_says(ask: Callable[[], Said]) -> Said:
    """Asks in process 0 alone and tells all what it said: numbers, words, and lists and dicts of them."""
    if not dist.is_initialized():
        return ask()
    answer: list[Any] = [ask() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(answer, src=0)
    said: Said = answer[0]
    return said


def agree(asked: str | None, due: bool) -> tuple[str | None, bool]:
    """Agrees whether the run is to stop, by a signal that any process has heard, and whether process 0 wants to save.

    Signals reach processes at different steps; a state is one step's. Two numbers travel between hosts, no device
    waits.
    """
    if not dist.is_initialized():
        return asked, due
    number = signal.Signals[asked].value if asked else 0
    flags = torch.tensor([number, int(due and dist.get_rank() == 0)])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    number, wanted = flags.tolist()
    return (signal.Signals(number).name if number else None), bool(wanted)


def added(value: float | None) -> float | None:
    """Adds up what every process knows; None where one of them knows nothing."""
    if not dist.is_initialized():
        return value
    sums = torch.tensor([value or 0.0, float(value is None)], dtype=torch.float64)
    dist.all_reduce(sums)
    total, unknown = sums.tolist()
    return None if unknown else float(total)


def was_lost(error: RuntimeError) -> bool:
    """Tells whether an error says that another process of the group is gone."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


def _sum(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Adds a bucket of gradients over all processes; by itself DDP would also divide by their number."""
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    added: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return added


def add_gradients(parameters: list[nn.Parameter]) -> bool:
    """Adds up the gradients of a backward pass that has ended; tells whether every parameter had one."""
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
    return all(parameter.grad is not None for parameter in parameters)


def summing(module: nn.Module, all_used: bool) -> nn.Module:
    """Makes the backward pass of what `module` returns add up gradients over all processes, while it still runs.

    Args:
        module: its trainable parameters are reduced, in buckets.
        all_used: every one gets a gradient in every step. Not so where prototypes are frozen, stages lie below the map
            in use, or an encoder joins later; torch then looks for them in each step.
    """
    # A kernel of one voxel lies in memory in more than one way; torch copies its gradient and warns.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `broadcast_buffers` has a new name from torch 2.12 on
        parallel = nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=not all_used, gradient_as_bucket_view=True
        )
    parallel.register_comm_hook(None, _sum)
    return parallel
