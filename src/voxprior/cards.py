"""Pydantic models of the run cards; strict.

The workflow resolves a study (`configuration.py`) and writes one *card* per run: everything that the run's numbers
depend on, and nothing else. How many workers or which device ran it is not on the card.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from voxprior.configuration import (
    Compare,
    FinetuneRecipe,
    Layout,
    Predict,
    Prepare,
    PretrainBudget,
    Recipe,
    Score,
    Simulate,
    Source,
    Split,
)
from voxprior.strict import ChannelName, ClassName, Name, Positive, Share, Strict, ZyxVox, read_model


class FetchCard(Strict):
    """What fetching a dataset depends on."""

    dataset: Name
    source: Source


class SimulateCard(Strict):
    """What simulated patients depend on."""

    dataset: Name
    layout: Layout
    simulate: Simulate


class IntakeCard(Strict):
    """What the table of usable cases depends on."""

    dataset: Name
    layout: Layout
    channels: list[ChannelName] = Field(["image"], min_length=1)
    classes: dict[ClassName, list[Positive]]
    ignore: list[Positive] = Field([], exclude_if=lambda values: not values)  # cards of before keep their hash
    modality: Literal["ct", "mr", "other"] = Field("other", description="for the proposals of the fingerprint")
    patient: str | None = None
    person: str | None = None
    simulated: bool = False


class PrepareCard(Strict):
    """`classes[i]` lists the label values that become id i + 1; an empty list: not labelled in this dataset."""

    dataset: Name
    channels: list[ChannelName] = Field(["image"], min_length=1)
    classes: list[list[Positive]]
    ignore: list[Positive] = Field([], exclude_if=lambda values: not values)  # cards of before keep their hash
    prepare: Prepare


class SplitCard(Strict):
    """What the splits depend on."""

    split: Split
    allow_leakage: bool = False
    files: dict[Name, str] = Field(
        default={}, exclude_if=lambda files: not files, description="SHA-256 of files of weights"
    )


class PretrainRun(PretrainBudget):
    """One pretraining: the study's budget and batch, with one of its seeds."""

    seed: int = 0


class PretrainCard(Strict):
    """What a pretraining depends on."""

    method: Name
    config: dict[str, Any] = Field(description="the method's own Config, complete")
    backbone: Name
    family: Literal["vit", "cnn", "swin"]
    architecture: dict[str, Any] = Field(description="the fields of Vit, Cnn or Swin")
    channels: Positive = Field(default=1, description="of the images")
    recipe: Recipe
    pretrain: PretrainRun
    pool: list[Name] = Field(default=[], description="datasets that are pretrained on beside the study's own")
    fold: int


class InitFile(Strict):
    """What a file of weights holds, by its hash, and how it is taken over (`configuration.FileInit`)."""

    sha256: str
    channels: Positive | None = None
    decoder: bool = False


class FinetuneCard(Strict):
    """What a fine-tuning depends on."""

    init: Name
    init_card: str | None = Field(None, description="hash of the pretraining card; None for scratch and for files")
    init_file: InitFile | None = Field(None, description="for files")
    backbone: Name
    family: Literal["vit", "cnn", "swin"]
    architecture: dict[str, Any]
    channels: Positive = Field(default=1, description="of the images")
    recipe: FinetuneRecipe
    classes: list[ClassName]
    regions: list[list[Positive]] = Field(
        default=[],
        exclude_if=lambda values: not values,
        description="values of each class, where some belong to several",
    )
    steps: Positive
    batch_size: Positive
    crop_vox: ZyxVox
    foreground: Share
    precision: Literal["fp32", "bf16"]
    ema: Share = Field(
        0, description="half-life of averaged weights, which are predicted with; 0: the last weights are"
    )
    validations: int = Field(10, ge=0)
    patience: int = Field(0, ge=0)
    prepare: Prepare
    budget: Positive
    fold: int
    seed: int

    @property
    def outputs(self) -> int:
        """Channels of the network's output: one for background beside the classes, unless these overlap."""
        return len(self.classes) + (not self.regions)


class PredictCard(Strict):
    """What predictions depend on, besides the model."""

    predict: Predict
    confidence: bool = Field(False, exclude_if=lambda wanted: not wanted, description="probabilities are kept to score")
    fold: int


class ScoreCard(Strict):
    """`datasets[name][i]` lists the label values of class i + 1 in that dataset's files; empty: not scored there."""

    classes: list[ClassName]
    datasets: dict[Name, list[list[Positive]]]
    ignore: dict[Name, list[Positive]] = Field({}, exclude_if=lambda values: not values)
    regions: list[list[Positive]] = Field(default=[], exclude_if=lambda values: not values)  # as FinetuneCard's
    score: Score


class CompareCard(Strict):
    """What the tables depend on."""

    study: Name
    title: str
    dataset: Name
    external: list[Name]
    classes: list[ClassName]
    compare: Compare
    simulated: bool
    variants: dict[Name, Name] = Field(
        default={}, exclude_if=lambda names: not names, description="inits that are a method with other numbers: which"
    )
    cells: list[dict[str, Any]] = Field(description="backbone, init, budget, fold, pretrain_seed, seed of every cell")


CARDS: dict[str, type[Strict]] = {
    "fetch": FetchCard,
    "simulate": SimulateCard,
    "intake": IntakeCard,
    "prepare": PrepareCard,
    "split": SplitCard,
    "pretrain": PretrainCard,
    "finetune": FinetuneCard,
    "predict": PredictCard,
    "score": ScoreCard,
    "compare": CompareCard,
}


def card_hash(card: BaseModel | dict[str, Any]) -> str:
    """Names a card by its content: the first 16 hex digits of the SHA-256 of its canonical JSON."""
    content = card.model_dump(mode="json") if isinstance(card, BaseModel) else card
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def read_card(kind: str, path: str | Path) -> Any:
    """Reads and checks a run card.

    Raises:
        Refusal: missing, or it does not fit its model.
    """
    return read_model(CARDS[kind], path, f"write a correct card for '{kind}'")
