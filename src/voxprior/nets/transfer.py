"""Places a pretrained encoder into a segmentation network: all of it, checked, or not at all.

A load that skips what does not match is how a comparison of pretrainings turns into one of random numbers.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from voxprior.errors import Refusal

_NAMED = 3  # defects spelled out in the refusal


def _defects(encoder_state: dict[str, Tensor], state: dict[str, Tensor], prefix: str) -> list[str]:
    """Says of each tensor that cannot be placed why."""
    defects = []
    for name, tensor in encoder_state.items():
        target = state.get(prefix + name)
        if target is None:
            defects.append(f"{name} is not in the network")
        elif target.shape != tensor.shape:
            defects.append(f"{name} has shape {tuple(tensor.shape)} where the network has {tuple(target.shape)}")
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            defects.append(f"{name} holds values that are not finite")
    return defects


def place(
    encoder_state: dict[str, Tensor], network: nn.Module, expected: Collection[str] = (), prefix: str = "encoder."
) -> dict[str, Any]:
    """Copies every tensor of a pretrained encoder into a network and reads each one back.

    Args:
        encoder_state: names and tensors as the encoder's `state_dict()` has them.
        network: what takes them; changed in place, or left untouched where this refuses.
        expected: names that must be among them: a partial file is refused.
        prefix: what the network puts before the encoder's names.

    Returns:
        The load report of `docs/formats.md`.

    Raises:
        Refusal: there is nothing to place, or a tensor is missing, or has no place, another shape, or values that are
            not finite.
    """
    state = network.state_dict()
    if not encoder_state:
        raise Refusal("the encoder file holds no tensors: run the pretraining again")
    if defects := _defects(encoder_state, state, prefix):
        raise Refusal(
            f"{len(defects)} of the encoder's {len(encoder_state)} tensors do not fit the segmentation network "
            f"({'; '.join(defects[:_NAMED])}): pretrain and fine-tune with the same backbone"
        )
    if lost := [name for name in expected if name not in encoder_state]:
        raise Refusal(
            f"the encoder file lacks {len(lost)} of its {len(expected)} tensors ({', '.join(lost[:_NAMED])}): run "
            "the pretraining again"
        )
    with torch.no_grad():
        for name, tensor in encoder_state.items():
            state[prefix + name].copy_(tensor)
    after = network.state_dict()
    placed = [
        prefix + name
        for name, tensor in encoder_state.items()
        if torch.equal(after[prefix + name].cpu(), tensor.to(after[prefix + name].dtype).cpu())
    ]
    if len(placed) < len(encoder_state):
        other = next(name for name in encoder_state if prefix + name not in placed)
        raise Refusal(f"{other} reads back other than it was placed: two tensors of the network share memory")
    return _report(network, len(encoder_state), placed)


def _report(network: nn.Module, encoder_tensors: int, placed: list[str]) -> dict[str, Any]:
    """Counts what was placed and what stays fresh."""
    names = list(network.state_dict())
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    taken = set(placed)
    placed_parameters = sum(count for name, count in sizes.items() if name in taken)
    return {
        "encoder_tensors": encoder_tensors,
        "placed": len(placed),
        "placed_share": len(placed) / encoder_tensors,
        "dropped": [],
        "network_tensors": len(names),
        "network_parameters": sum(sizes.values()),
        "placed_parameters": placed_parameters,
        "placed_parameter_share": placed_parameters / sum(sizes.values()),
        "fresh": [name for name in names if name not in taken],
    }
