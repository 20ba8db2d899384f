"""A model file of ours as a network with everything that whoever runs it elsewhere must know."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from voxprior.errors import Refusal
from voxprior.exchange.names import described
from voxprior.nets.weights import read_weights

_READ = {
    False: "the class with the largest value",
    True: "each class whose value is above 0, painted in this order; background where none is",
}


@dataclass(frozen=True)
class Model:
    """A segmentation network in evaluation mode, and its file's metadata (`docs/formats.md`, "encoder and model")."""

    network: nn.Module
    about: dict[str, Any]
    channels: int

    @property
    def window_zyx(self) -> tuple[int, int, int]:
        """The network's crop in voxels."""
        z, y, x = self.about["window"]
        return z, y, x

    @property
    def shape_czyx(self) -> tuple[int, int, int, int]:
        """Channels and window."""
        return (self.channels, *self.window_zyx)

    @property
    def regions(self) -> list[list[int]]:
        """Lists, per painted class, the classes it belongs to; [] where they do not overlap (`maths/regions.py`)."""
        return list(self.about.get("regions") or [])

    @property
    def outputs(self) -> list[str]:
        """Names the channels of the network's output."""
        return [*([] if self.regions else ["background"]), *self.about["classes"]]

    def layout(self) -> dict[str, Any]:
        """Describes input and output of the network in plain data."""
        spacing, intensity = self.about["prepare"]["spacing_zyx_mm"], self.about["prepare"]["intensity"]
        return {
            "input": {
                "name": "image",
                "axes": ["window", "channel", "z", "y", "x"],
                "shape": ["any", *self.shape_czyx],
                "type": "float32",
                "orientation": "z, y, x rise towards superior, posterior, left (LPS)",
                "spacing_zyx_mm": list(spacing),
                "intensity": intensity | {"to": [0, 1], "beyond": "cut off"},
                "channels": self.about["prepare"].get("channels", {}),
            },
            "output": {
                "name": "logits",
                "axes": ["window", "class", "z", "y", "x"],
                "classes": self.outputs,
                "then": f"{_READ[bool(self.regions)]}; overlapping windows added with Gaussian weights first",
                **({"regions": self.regions} if self.regions else {}),
            },
            "not": "a medical device",
        }


def read_model(path: Path) -> Model:
    """Reads a model file.

    Raises:
        Refusal: an encoder, no file of ours, or tensors that do not fit the card.
    """
    state, about = read_weights(path, "run the fine-tuning again")
    if missing := [key for key in ("classes", "window", "prepare") if key not in about]:
        raise Refusal(f"{path} has no {' and no '.join(missing)}: take model.safetensors of a fine-tuning")
    backbone = described(about, path)
    outputs = len(about["classes"]) + (not about.get("regions"))  # one for background, unless classes overlap
    network = backbone.segmenter(outputs, tuple(about["window"]))
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise Refusal(f"{path} does not fit the network its card describes: run the fine-tuning again") from None
    return Model(network.eval(), about, backbone.channels)
