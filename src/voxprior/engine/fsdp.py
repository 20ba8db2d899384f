"""Weights, gradients and optimiser in parts, one on each process (FSDP2), for networks too large for one GPU.

A block's weights are gathered for as long as it computes. States and results are whole again: what a run saves does not
depend on how it was run. A network is divided from 500 million trainable parameters on (STU-Net-H has 1.5 billion, and
AdamW keeps 16 bytes for each); VOXPRIOR_SHARD_FROM names another number.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from voxprior.errors import Refusal

FROM = "VOXPRIOR_SHARD_FROM"
_FROM = 500_000_000


def wanted(model: nn.Module) -> bool:
    """Tells whether a model is to be divided: there are processes to divide it among, and it is large enough.

    Raises:
        Refusal: VOXPRIOR_SHARD_FROM is no number, or the method computes convolutions from weights of its own making.
    """
    if not dist.is_initialized():
        return False
    text = os.environ.get(FROM, str(_FROM))
    if not text.isdigit():
        raise Refusal(f"{FROM} is {text!r}: give a number of parameters, or unset it")
    if sum(p.numel() for p in model.parameters() if p.requires_grad) < int(text):
        return False
    if getattr(getattr(model, "config", None), "standardise_weights", False):
        raise Refusal(f"standardise_weights needs whole weights: set it to false, or {FROM} to a larger number")
    return True


def copy_of(model: nn.Module, device: torch.device) -> nn.Module:
    """Copies a model to the device, to be divided there. The model itself stays whole, and takes the result."""
    return copy.deepcopy(model).to(device)


def divide(module: nn.Module, device: torch.device) -> None:
    """Divides a module in place, block by block; gradients are added over processes and not averaged.

    A block is an entry of a ModuleList: a transformer's, a residual network's.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    blocks = [block for some in lists for block in some if not isinstance(block, nn.ModuleList)]
    for part in [*(block for block in blocks if any(True for _ in block.parameters())), module]:
        shared: Any = fully_shard(part, mesh=mesh)
        shared.set_gradient_divide_factor(1.0)
        shared.set_force_sum_reduction_for_comms(True)


@contextmanager
def opened(module: nn.Module) -> Iterator[None]:
    """Gathers what belongs to no block, while networks inside a divided module are called by themselves."""
    parts: Any = module
    parts.unshard()
    yield
    parts.reshard()


def is_part(value: Any) -> bool:
    """Tells whether a tensor is one process's part of a larger one."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def whole(content: Any) -> Any:
    """Gathers every divided tensor in dicts and lists, on the CPU; all processes must call it together."""
    if isinstance(content, dict):
        return {key: whole(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(whole(value) for value in content)
    return content.full_tensor().detach().cpu() if is_part(content) else content


def load_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Loads a whole optimiser state, of which each process keeps its parts."""
    from torch.distributed.tensor import distribute_tensor

    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {}
    for number, values in saved["state"].items():
        like: Any = parameters[number]
        state[number] = {
            name: distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
            if is_part(like) and isinstance(value, Tensor) and value.shape == like.shape
            else value
            for name, value in values.items()
        }
    optimiser.load_state_dict({**saved, "state": state})
