"""Places weights from elsewhere: another study's, a whole network's, or those of scans with other channels.

The gate is that of `nets/transfer.py`: the encoder is placed whole, or nothing is. Of a decoder what fits is taken, and
only where it was asked for; the load report names what was left out.

Axes: O outputs, V values of a patch or 1, C channels.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.nets.transfer import place

State = dict[str, Tensor]
_PREFIX = "encoder."


@dataclass(frozen=True)
class Taking:
    """How a file is taken over.

    where: the file, for sentences. expected: names that its encoder must have. channels: of the study's scans.
    trained_channels: of the images it was trained on, where the study says so. decoder: take that too.
    """

    where: str
    expected: Collection[str]
    channels: int = 1
    trained_channels: int | None = None
    decoder: bool = False


def split_state(state: State) -> tuple[State, State]:
    """Tells the encoder, without its prefix, from the rest: all is encoder where none has the prefix."""
    if not any(name.startswith(_PREFIX) for name in state):
        return state, {}
    encoder = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    return encoder, {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}


def inflate(weight: Tensor, before: int, after: int) -> Tensor:
    """Makes a stem's weight fit another number of channels: summed over the old ones, repeated, divided by the new.

    An image that is the same in all channels then gives the same features as before. The channel is what runs fastest
    along the second axis, as in a convolution, and in a layer on patches as `maths.patches.patchify` cuts them.

    Source: Carreira and Zisserman, "Quo vadis, action recognition?", 2017, section 3.1 (inflating by repeating and
    dividing), along channels.

    Args:
        weight: (O, V * before, ...).
        before: channels it was trained on.
        after: channels it is to take.

    Returns:
        (O, V * after, ...).
    """
    weight_OVC = weight.unflatten(1, (-1, before)).sum(2, keepdim=True) / after
    return weight_OVC.expand(-1, -1, after, *[-1] * (weight.dim() - 2)).flatten(1, 2).contiguous()


def place_file(state: State, network: nn.Module, taking: Taking) -> dict[str, Any]:
    """Places a file's tensors into a segmentation network; returns the load report of `docs/formats.md`.

    Raises:
        Refusal: the encoder cannot be placed whole, or a decoder was asked for and there is none that fits.
    """
    target = network.state_dict()
    encoder, rest = split_state(state)
    inflated: list[str] = []
    if taking.trained_channels is not None:
        for part, prefix in ((encoder, _PREFIX), (rest, "")):
            for name, tensor in part.items():
                if _is_stem(tensor, target.get(prefix + name), taking.trained_channels, taking.channels):
                    part[name] = inflate(tensor, taking.trained_channels, taking.channels)
                    inflated.append(prefix + name)
    _refuse_another(encoder, network, taking)
    fitting = {name: tensor for name, tensor in rest.items() if _fits(tensor, target.get(name))}
    if taking.decoder and not fitting:
        has = "holds no decoder" if not rest else f"has no tensor of its decoder ({len(rest)}) that the network has too"
        raise Refusal(f"{taking.where} {has}: leave out 'decoder: true' in the study's files")
    if lost := [name for name in taking.expected if name not in encoder]:
        raise Refusal(
            f"{taking.where} lacks {len(lost)} of the {len(taking.expected)} tensors that an encoder of the study's "
            f"backbone has ({', '.join(lost[:3])}): give a file of the whole encoder, of the same backbone"
        )
    try:
        report = place(encoder, network, decoder_state=fitting if taking.decoder else {})
    except Refusal as refusal:
        raise Refusal(f"{taking.where}: {refusal}") from None
    dropped = {name: tensor for name, tensor in rest.items() if not (taking.decoder and name in fitting)}
    numbers = sum(tensor.numel() for tensor in state.values())
    unused = sum(tensor.numel() for tensor in dropped.values())
    return report | {
        "decoder_tensors": len(rest),
        "inflated": [name for name in inflated if name not in dropped],
        "dropped": list(dropped),
        "dropped_parameters": unused,
        "dropped_parameter_share": unused / numbers,
    }


def _fits(tensor: Tensor, target: Tensor | None) -> bool:
    return target is not None and target.shape == tensor.shape


def _is_stem(tensor: Tensor, target: Tensor | None, before: int, after: int) -> bool:
    """Tells a weight that has its shape from the number of channels, and would fit with the other number."""
    if target is None or tensor.dim() < 2 or tensor.shape[1] % before or before == after:
        return False
    return (tensor.shape[0], tensor.shape[1] // before * after, *tensor.shape[2:]) == tuple(target.shape)


def _refuse_another(encoder: State, network: nn.Module, taking: Taking) -> None:
    """Says it plainly where the first layer takes other input: other channels, or another patch.

    Raises:
        Refusal: the encoder's first tensor has another second axis and is the network's in all others.
    """
    names = iter(network.encoder.state_dict())  # type: ignore[union-attr]
    name = next(name for name in names if name.endswith("weight"))  # learnt positions come before the first layer
    tensor, wanted = encoder.get(name), network.state_dict()[_PREFIX + name]
    if tensor is None or tensor.dim() != wanted.dim() or tensor.shape[1] == wanted.shape[1]:
        return
    if (tensor.shape[0], *tensor.shape[2:]) != (wanted.shape[0], *wanted.shape[2:]):
        return
    if wanted.dim() > 2:
        raise Refusal(
            f"{taking.where} was trained on images of {tensor.shape[1]} channels and the study's scans have "
            f"{taking.channels} ({name}): say 'channels: {tensor.shape[1]}' for it in the study's files, and its stem "
            "is summed, repeated and divided"
        )
    side = round((wanted.shape[1] // taking.channels) ** (1 / 3))
    raise Refusal(
        f"{taking.where} takes {tensor.shape[1]} values a patch ({name}) where the study's backbone takes "
        f"{wanted.shape[1]}, those of {side}x{side}x{side} voxels with {taking.channels} channels: choose a backbone "
        "with its patch or, if it was trained on another number of channels, say 'channels' for it in the study's files"
    )
