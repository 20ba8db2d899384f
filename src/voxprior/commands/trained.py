"""Model files: the network that one describes, and what it says of the data it was trained on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

FORMAT = 1
AGAIN = "run the fine-tuning again"


@dataclass(frozen=True)
class Trained:
    """A model file: its network on the CPU in evaluation mode, its fine-tuning card, and all it says of itself."""

    path: Path
    sha256: str
    network: Any
    card: Any
    about: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        """What is known of the training dataset (`docs/formats.md`, "index"); {} in files of older versions."""
        return dict(self.about.get("data") or {})

    @property
    def values(self) -> list[list[int]] | None:
        """Lists, per class, its values in the training dataset's files; None where the file does not say."""
        return self.data.get("values")

    @property
    def regions(self) -> list[list[int]]:
        """Lists, per painted class, the classes it belongs to; [] where they do not overlap (`maths/regions.py`)."""
        from voxprior.maths.regions import memberships

        return memberships(self.card.regions)

    def recipe(self) -> Any:
        """Makes the recipe by which scans are prepared as in training.

        Raises:
            Refusal: channels are scaled in their own ways and the file does not say in which order they come.
        """
        from voxprior.data import prepare

        names = self.about.get("channels") or [f"channel_{number}" for number in range(self.card.channels)]
        unknown = set(self.card.prepare.channels) - set(names)
        if unknown or len(names) != self.card.channels:
            raise Refusal(f"{self.path} does not say in which order its channels come: {AGAIN}")
        return prepare.recipe_of("", self.card.prepare, [], names)


def load(path: Path) -> Trained:
    """Reads a model file and builds its network.

    Raises:
        Refusal: no safetensors file of ours (a pickle is not opened), one of a newer version, or one whose tensors do
            not fit its card.
    """
    from voxprior import cards
    from voxprior.data.files import sha256_of
    from voxprior.nets.backbones import Backbone
    from voxprior.nets.weights import read_weights
    from voxprior.strict import validated

    state, about = read_weights(path, AGAIN)
    if about.get("format", FORMAT) != FORMAT:
        raise Refusal(f"{path} has format {about['format']} and this voxprior reads {FORMAT}: update voxprior")
    if "card" not in about:
        raise Refusal(f"{path} does not say which card it was trained by: {AGAIN}")
    if "tensors" in about:
        raise Refusal(f"{path} is an encoder, without a decoder: give the model.safetensors of a fine-tuning")
    card = validated(cards.FinetuneCard, json.dumps(about["card"]), f"{path}: its card", AGAIN)
    backbone = Backbone(card.backbone, card.family, card.architecture, card.channels)
    network = backbone.segmenter(card.outputs, card.crop_vox)
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise Refusal(f"{path} does not fit the network its card describes: {AGAIN}") from None
    return Trained(path, sha256_of(path), network.eval(), card, about)


def load_ensemble(paths: list[Path]) -> list[Trained]:
    """Reads several models that segment the same classes in the same windows of scans prepared alike.

    Raises:
        Refusal: as `load`; two of them cannot be one ensemble.
    """
    models = [load(path) for path in paths]
    first = models[0]
    for other in models[1:]:
        for what in ("classes", "regions", "channels", "prepare", "crop_vox"):
            if getattr(other.card, what) != getattr(first.card, what):
                raise Refusal(
                    f"{other.path} has another {what.replace('_vox', '')} than {first.path}: an ensemble is made of "
                    "folds and seeds of one study"
                )
        if other.values != first.values:
            raise Refusal(f"{other.path} has other label values than {first.path}: train both on one dataset")
    return models
