"""Which parameters of a segmentation network learn, how fast, and from when on: rules for `engine.step`.

Only what came from the pretrained encoder is treated in a way of its own. Stages below it that start fresh learn like
the decoder.
"""

import re
from collections.abc import Collection
from typing import Any, Literal, Protocol

Rules = dict[str, dict[str, float]]


class Transfer(Protocol):
    """The fields of `configuration.FinetuneRecipe` that say how an encoder is taken over."""

    transfer: Literal["full", "linear_probe", "decoder_first"]
    frozen: float
    layer_decay: float
    encoder_lr: float


def layer_rate(layer: int, layers: int, decay: float) -> float:
    """Computes the factor of a layer's learning rate: decay ** (layers - layer).

    Source: Bao et al., "BEiT", 2022, appendix, in the form of MAE's released code (He et al. 2022, `lr_decay.py`): the
    patch embedding is layer 0, block i is layer i + 1, and a network of L blocks has L + 1 layers. Stages of a CNN
    count in the same way from 0.

    Args:
        layer: 0 is nearest to the input.
        layers: how many there are; what comes after them has the factor 1.
        decay: in (0, 1].
    """
    return float(decay ** (layers - layer))


def layers_of(encoder: Any) -> list[str]:
    """Lists what parameter names begin with, a layer or stage each, input first.

    An encoder may say it itself (`layers`); otherwise names up to their first number are a layer: `stem.convs.0.`,
    `stages.0.`, `stages.1.`, ...
    """
    if hasattr(encoder, "layers"):
        return list(encoder.layers)
    starts = (re.match(r".*?\.\d+\.|[^.]+\.", name) for name in encoder.state_dict())
    return list(dict.fromkeys(start.group() for start in starts if start))


def rules(recipe: Transfer, encoder: Any, placed: Collection[str]) -> Rules | None:
    """Makes the rules by which the parameters of `segment.model.Model` learn; None where all learn alike.

    Args:
        recipe: how the encoder is taken over.
        encoder: the network's.
        placed: the network's tensors that hold pretrained values, as `encoder.…`.
    """
    if recipe.transfer == "full" and recipe.layer_decay == recipe.encoder_lr == 1.0:
        return None
    names = [name.removeprefix("encoder.") for name in placed if name.startswith("encoder.")]
    layers = [start for start in layers_of(encoder) if any(name.startswith(start) for name in names)]
    made: Rules = {}
    for name in names:
        layer = next((number for number, start in enumerate(layers) if name.startswith(start)), len(layers))
        rule = {"rate": recipe.encoder_lr * layer_rate(layer, len(layers), recipe.layer_decay)}
        if recipe.transfer == "linear_probe":
            rule["rate"] = 0.0
        elif recipe.transfer == "decoder_first":
            rule["from"] = recipe.frozen
        made[f"^network\\.encoder\\.{re.escape(name)}$"] = rule
    return made
