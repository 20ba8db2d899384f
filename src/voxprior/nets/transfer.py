"""Places a pretrained encoder into a segmentation network: all of it, checked, or not at all.

A load that skips what does not match is how a comparison of pretrainings turns into one of random numbers.
"""

from collections.abc import Collection, Mapping
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
    encoder_state: dict[str, Tensor],
    network: nn.Module,
    expected: Collection[str] = (),
    prefix: str = "encoder.",
    decoder_state: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Copies every tensor of a pretrained encoder into a network and reads each one back.

    Args:
        encoder_state: names and tensors as the encoder's `state_dict()` has them.
        network: what takes them; changed in place, or left untouched where this refuses.
        expected: names that must be among them: a partial file is refused.
        prefix: what the network puts before the encoder's names.
        decoder_state: names and tensors of the network's other parts, to be copied as well.

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
    if defects := _defects(decoder := dict(decoder_state or {}), state, ""):
        raise Refusal(f"{len(defects)} tensors of the decoder do not fit ({'; '.join(defects[:_NAMED])}): leave it out")
    whole = {**{prefix + name: tensor for name, tensor in encoder_state.items()}, **decoder}
    with torch.no_grad():
        for name, tensor in whole.items():
            state[name].copy_(tensor)
    after = network.state_dict()
    placed = [
        name for name, tensor in whole.items() if torch.equal(after[name].cpu(), tensor.to(after[name].dtype).cpu())
    ]
    if len(placed) < len(whole):
        other = next(name for name in whole if name not in placed).removeprefix(prefix)
        raise Refusal(f"{other} reads back other than it was placed: two tensors of the network share memory")
    return load_report(network, len(encoder_state), placed)


def load_report(network: nn.Module, encoder_tensors: int = 0, placed: Collection[str] = ()) -> dict[str, Any]:
    """Counts what was placed, of an encoder of that many tensors, and what stays fresh; all is fresh from scratch."""
    names = list(network.state_dict())
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    taken = set(placed)
    placed_parameters, everything = sum(count for name, count in sizes.items() if name in taken), sum(sizes.values())
    return {
        "encoder_tensors": encoder_tensors,
        "placed": encoder_tensors,
        "placed_share": 1.0 if encoder_tensors else None,
        "decoder_tensors": len(placed) - encoder_tensors,
        "decoder_placed": len(placed) - encoder_tensors,
        "inflated": [],
        "dropped": [],
        "dropped_parameters": 0,
        "dropped_parameter_share": 0.0,
        "network_tensors": len(names),
        "network_parameters": everything,
        "placed_parameters": placed_parameters,
        "placed_parameter_share": placed_parameters / everything,
        "fresh": [name for name in names if name not in taken],
        "fresh_parameter_share": 1.0 - placed_parameters / everything,
    }


def loaded(report: Mapping[str, Any]) -> str:
    """Says in one line what a load report counts."""
    if not report["encoder_tensors"]:
        return f"from scratch: {report['network_parameters']:,} parameters, all fresh"
    parts = [f"{report['placed']} of {report['encoder_tensors']} encoder tensors"]
    if report["decoder_placed"]:
        parts.append(f"{report['decoder_placed']} of {report['decoder_tensors']} decoder tensors")
    parts = [f"{' and '.join(parts)} placed, {report['placed_parameter_share']:.1%} of the network's parameters"]
    if report["inflated"]:
        parts.append(f"{len(report['inflated'])} fitted to other channels ({', '.join(report['inflated'][:_NAMED])})")
    if report["dropped"]:
        parts.append(f"{len(report['dropped'])} dropped, {report['dropped_parameter_share']:.1%} of the file")
    return "; ".join([*parts, f"{len(report['fresh'])} tensors fresh, {report['fresh_parameter_share']:.1%}"])
