"""`voxprior cost` or `voxprior pretrain --dry-run`: what a pretraining would cost; no scan, nothing is computed."""

from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

_VOXELS, _BATCH_SIZE = 200_000_000_000, 4  # what the studies for GPUs ask for


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
    hours = steps * cost.flops / (mfu * peak_tflops * 1e12) / 3600
    given = f"{card.method} on {card.backbone}" + ("" if card_path else f", preset {preset}")
    print(
        f"{load(card.method).TITLE}: {given}, {asked.batch_size} samples a step, {asked.precision}, {recipe.optimiser}"
    )
    for name, text in _lines(cost, model.student_voxels, steps, asked):
        print(f"  {name:<11}{text}")
    print(f"  GPU hours  {hours:,.2f} at {mfu:.0%} of {peak_tflops:g} TFLOP/s")


def _lines(cost: Any, voxels_per_sample: int, steps: int, asked: Any) -> list[tuple[str, str]]:
    """Says in words what was counted."""
    gib = {
        "weights": cost.weight_bytes,
        "gradients": cost.gradient_bytes,
        "optimiser": cost.optimiser_bytes,
        "kept for the backward pass": cost.saved_bytes,
        "scans and views": cost.input_bytes,
    }
    parts = ", ".join(f"{name} {size / 2**30:,.2f}" for name, size in gib.items())
    decoder = f", {cost.decoder_flops / cost.flops:.0%} of them in the decoder" if cost.decoder_flops else ""
    seen = steps * asked.batch_size * voxels_per_sample
    return [
        ("parameters", f"{cost.parameters:,} trained; encoder {cost.encoder:,}; teacher {cost.teacher:,}"),
        ("FLOPs", f"{cost.flops:,} a step{decoder} (matrix products, convolutions, attention; two per multiply-add)"),
        ("memory", f"{cost.memory_bytes / 2**30:,.2f} GiB at least: {parts}"),
        ("voxels", f"{voxels_per_sample:,} a sample enter the student; {seen:,} in the run"),
        ("steps", f"{steps:,}"),
    ]


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
