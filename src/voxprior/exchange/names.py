"""Accounts for every tensor of a foreign checkpoint: placed under a name of ours, or dropped with a reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxprior.errors import Refusal
from voxprior.nets.backbones import Backbone

_NAMED = 3  # tensors spelled out in a refusal


@dataclass
class Taken:
    """Tensors under our names, and why the others were left: {their name: reason}."""

    placed: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def described(about: Mapping[str, Any], path: Path) -> Backbone:
    """Builds the backbone that a file of ours says it belongs to.

    Raises:
        Refusal: the file says nothing of the kind.
    """
    card = about.get("card") or {}
    if missing := [key for key in ("backbone", "family", "architecture") if key not in card]:
        raise Refusal(f"{path} does not say its {' and '.join(missing)}: take a file that voxprior wrote")
    return Backbone(card["backbone"], card["family"], card["architecture"], card.get("channels", 1))


def encoder_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Names the tensors of a backbone's whole encoder, deepest stages included, and their shapes."""
    with torch.device("meta"):
        network = backbone.segmenter(2, (backbone.segmenter_unit_vox * 2,) * 3)
    names = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return {name.removeprefix("encoder."): shape for name, shape in names.items() if name.startswith("encoder.")}


def rename(state: Mapping[str, Tensor], rule: Callable[[str], tuple[str | None, str]], path: Path) -> Taken:
    """Gives every tensor the name that a rule has for it.

    Args:
        state: their names and tensors.
        rule: their name -> (our name, "") or (None, why it is dropped).
        path: for refusals.

    Raises:
        Refusal: two tensors that should be one differ.
    """
    taken = Taken()
    for name, tensor in state.items():
        ours, reason = rule(name)
        if ours is None:
            taken.dropped[name] = reason
        elif ours not in taken.placed:
            taken.placed[ours] = tensor
        elif torch.equal(taken.placed[ours], tensor):
            taken.dropped[name] = f"a copy of {ours}"
        else:
            raise Refusal(f"{path}: {name} differs from its copy elsewhere in the file: the checkpoint is damaged")
    return taken


def check(taken: Taken, backbone: Backbone, path: Path) -> None:
    """Refuses tensors that do not make up the backbone's encoder, all of it and nothing else.

    Raises:
        Refusal: a tensor is missing, unknown, of another shape, or not finite.
    """
    wanted = encoder_shapes(backbone)
    defects = [f"{name} is missing" for name in wanted if name not in taken.placed]
    for name, tensor in taken.placed.items():
        if name not in wanted:
            defects.append(f"{name} has no place")
        elif tuple(tensor.shape) != wanted[name]:
            defects.append(f"{name} has shape {tuple(tensor.shape)} where {backbone.name} has {wanted[name]}")
        elif not bool(torch.isfinite(tensor).all()):
            defects.append(f"{name} holds values that are not finite")
    if defects:
        more = f" and {len(defects) - _NAMED} more" if len(defects) > _NAMED else ""
        raise Refusal(
            f"{path} does not fit backbone {backbone.name} ({'; '.join(defects[:_NAMED])}{more}): "
            "name the backbone that the checkpoint was trained with"
        )
