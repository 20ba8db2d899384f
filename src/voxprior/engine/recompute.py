"""Activation checkpointing: blocks keep their input alone and are computed again in the backward pass.

A third more computing for a fraction of the memory; the numbers are the same, for nothing in a block is drawn by chance
and recomputing runs under the autocast of the first time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxprior.engine.flops import uncounted

watchers: list[Callable[[Tensor], object]] = []  # are shown what blocks keep: torch's own hooks do not see it
around: list[Callable[[], AbstractContextManager[Any]]] = []  # what the first computing was in, other than autocast


@contextmanager
def _repeating() -> Iterator[None]:
    """Work that is only repeated is no useful work, and is not counted (`engine/flops.py`)."""
    with ExitStack() as stack:
        for make in (uncounted, *around):
            stack.enter_context(make())
        yield


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _repeating()


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        for watcher in watchers:
            for tensor in arguments:
                if isinstance(tensor, Tensor):
                    watcher(tensor)
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if not torch.compiler.is_compiling():
            options["context_fn"] = _contexts
        return checkpoint(forward, *arguments, **options)

    return called


def recompute_blocks(model: nn.Module) -> int:
    """Has every block of the model that says `recomputed = True` be computed twice, in place; returns how many.

    Names of parameters stay as they are. Before the networks are compiled.
    """
    blocks = [part for part in model.modules() if getattr(part, "recomputed", False)]
    for block in blocks:
        if any(parameter.requires_grad for parameter in block.parameters()):
            block.forward = _again(block.forward)
    return len(blocks)
