"""`voxprior pretrain --dry-run` (or `cost`) and `voxprior finetune --dry-run` (or `cost-finetune`).

What a training would cost; no scan is read, nothing is computed.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from voxprior.errors import Refusal

_VOXELS, _BATCH_SIZE, _STEPS = 200_000_000_000, 4, 25_000  # what the studies for GPUs ask for


def run(
    card_path: Path | None,
    method: str | None,
    backbone: str | None,
    preset: str,
    voxels: int | None,
    batch_size: int | None,
    mfu: float,
    peak_tflops: float,
) -> None:
    """Prints parameters, operations and memory of a step, the number of steps, and the GPU hours that they take.

    Args:
        card_path: a run card, complete; or None, and then
        method: a file of config/methods, and
        backbone: a file of config/backbones.
        preset: of the method.
        voxels: budget in place of the card's, or of 200 billion.
        batch_size: samples a step in place of the card's, or of 4.
        mfu: share of the device's peak that is reached.
        peak_tflops: the device's peak.

    Raises:
        Refusal: neither a card nor both names are given, a name is not known, or the method does not take the backbone.
    """
    from voxprior.commands.pretrain import build, recipe_of
    from voxprior.engine import estimate
    from voxprior.methods import load

    if (card_path is None) == (method is None or backbone is None):
        raise Refusal("a dry run needs either --card, or --method and --backbone: give one of the two")
    card, where = _card(card_path) if card_path else _named(str(method), str(backbone), preset)
    changed = {"voxels": voxels or card.pretrain.voxels, "batch_size": batch_size or card.pretrain.batch_size}
    card = card.model_copy(update={"pretrain": card.pretrain.model_copy(update=changed)})
    model, region, _ = build(card, where, on="meta")
    recipe, asked = recipe_of(card, where), card.pretrain
    cost = estimate.cost(model, region, asked.batch_size, asked.precision, recipe)
    steps = estimate.steps_for(asked.voxels, asked.batch_size, model.student_voxels)
    given = f"{card.method} on {card.backbone}" + ("" if card_path else f", preset {preset}")
    print(
        f"{load(card.method).TITLE}: {given}, {asked.batch_size} samples a step, {asked.precision}, {recipe.optimiser}"
    )
    seen = f"{model.student_voxels:,} a sample enter the student; "
    seen += f"{steps * asked.batch_size * model.student_voxels:,} in the run"
    parameters = f"{cost.parameters:,} trained; encoder {cost.encoder:,}; teacher {cost.teacher:,}"
    _say(cost, parameters, seen, steps, (mfu, peak_tflops))


class Made(NamedTuple):
    """What a fine-tuning is counted with: crop and classes without a card; steps and batch in place of the card's."""

    crop: tuple[int, int, int] = (96, 96, 96)
    classes: int = 14
    steps: int | None = None
    batch_size: int | None = None


def run_finetune(card_path: Path | None, backbone: str | None, made: Made, mfu: float, peak_tflops: float) -> None:
    """Prints the same of a fine-tuning.

    Args:
        card_path: a run card, complete; or None, and then
        backbone: a file of config/backbones.
        made: what is not taken from the card.
        mfu: share of the device's peak that is reached.
        peak_tflops: the device's peak.

    Raises:
        Refusal: neither a card nor a backbone is given, the name is not known, or the network does not take the crop.
    """
    from voxprior import cards
    from voxprior.commands.finetune import count

    if (card_path is None) == (backbone is None):
        raise Refusal("a dry run needs either --card or --backbone: give one of the two")
    card = cards.read_card("finetune", card_path) if card_path else _finetuning(str(backbone), made)
    changed = {"steps": made.steps or card.steps, "batch_size": made.batch_size or card.batch_size}
    card = card.model_copy(update=changed)
    cost, side = count(card), "x".join(map(str, card.crop_vox))
    print(
        f"fine-tuning: {card.backbone}, {card.batch_size} crops of {side} a step, {len(card.classes)} classes, "
        f"{card.precision}, {card.recipe.optimiser}"
    )
    z, y, x = card.crop_vox
    parameters = f"{cost.parameters:,} trained; encoder {cost.encoder:,}"
    seen = f"{z * y * x:,} a crop; {card.steps * card.batch_size * z * y * x:,} in the run"
    _say(cost, parameters, seen, card.steps, (mfu, peak_tflops))


def _say(cost: Any, parameters: str, seen: str, steps: int, speed: tuple[float, float]) -> None:
    """Prints what was counted, and the hours at a share of a peak in TFLOP/s."""
    gib = {
        "weights": cost.weight_bytes,
        "gradients": cost.gradient_bytes,
        "optimiser": cost.optimiser_bytes,
        "kept for the backward pass": cost.saved_bytes,
        "scans and views": cost.input_bytes,
    }
    parts = ", ".join(f"{name} {size / 2**30:,.2f}" for name, size in gib.items())
    mfu, peak_tflops = speed
    decoder = f", {cost.decoder_flops / cost.flops:.0%} of them in the decoder" if cost.decoder_flops else ""
    hours = steps * cost.flops / (mfu * peak_tflops * 1e12) / 3600
    for name, text in (
        ("parameters", parameters),
        ("FLOPs", f"{cost.flops:,} a step{decoder} (matrix products, convolutions, attention; two per multiply-add)"),
        ("memory", f"{cost.memory_bytes / 2**30:,.2f} GiB at least: {parts}"),
        ("voxels", seen),
        ("steps", f"{steps:,}"),
        ("GPU hours", f"{hours:,.2f} at {mfu:.0%} of {peak_tflops:g} TFLOP/s"),
    ):
        print(f"  {name:<11}{text}")


def _card(path: Path) -> tuple[Any, Path]:
    from voxprior import cards

    return cards.read_card("pretrain", path), path


def _named(method: str, backbone: str, preset: str) -> tuple[Any, Path]:
    """Fills in a card from the names, as the workflow does: (card, the method's file)."""
    from voxprior.cards import PretrainCard, PretrainRun
    from voxprior.commands.named import numbers
    from voxprior.configuration import Backbone
    from voxprior.methods import METHODS, load
    from voxprior.strict import validated

    if method not in METHODS:
        raise Refusal(f"no method is called {method!r}: choose from {', '.join(METHODS)}")
    presets, where = numbers("methods", method)
    if preset not in presets:
        raise Refusal(f"{where} has no preset {preset!r}: choose from {', '.join(presets)}")
    config = validated(load(method).Config, presets[preset] or {}, f"{where}: {preset}", "correct the file")
    sizes, file = numbers("backbones", backbone)
    found = validated(Backbone, sizes, str(file), "correct the file")
    card = PretrainCard(
        method=method, config=config.model_dump(), backbone=backbone, family=found.family,
        architecture=found.sizes.model_dump(), recipe=found.pretrain, fold=0,
        pretrain=PretrainRun(voxels=_VOXELS, batch_size=_BATCH_SIZE, precision="bf16"),
    )  # fmt: skip
    return card, where


def _finetuning(backbone: str, made: Made) -> Any:
    """Fills in a fine-tuning from scratch in bfloat16."""
    from voxprior.cards import FinetuneCard
    from voxprior.commands.named import numbers
    from voxprior.configuration import Backbone
    from voxprior.nets import backbones
    from voxprior.strict import validated

    sizes, file = numbers("backbones", backbone)
    found = validated(Backbone, sizes, str(file), "correct the file")
    unit = backbones.Backbone(backbone, found.family, found.sizes.model_dump()).segmenter_unit_vox
    if any(side % unit for side in made.crop):
        raise Refusal(f"{backbone} takes crops in multiples of {unit} voxels: change --crop")
    content = {
        "init": "scratch", "backbone": backbone, "family": found.family, "architecture": found.sizes.model_dump(),
        "recipe": found.scratch.model_dump(), "classes": [f"class{n}" for n in range(made.classes)],
        "steps": _STEPS, "batch_size": 2, "crop_vox": made.crop, "foreground": 0.5, "precision": "bf16",
        "prepare": {"spacing_zyx_mm": (1, 1, 1), "intensity": {"kind": "window", "low": 0, "high": 1}},
        "budget": 1, "fold": 0, "seed": 0,
    }  # fmt: skip
    return FinetuneCard.model_validate_json(json.dumps(content))
