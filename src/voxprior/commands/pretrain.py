"""`voxprior pretrain`: one method, one backbone, one fold, no labels."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

_PICTURES = 3


def run(
    card_path: Path,
    indexes: list[Path],
    splits: Path,
    output: Path,
    work: Path,
    threads: int,
    device: str | tuple[str, str],
) -> None:
    """Pretrains and writes `encoder.safetensors`, journal, clock, `pictures.npz` and `summary.json` into `output`.

    `indexes`: the study's own dataset first, then those that are only pretrained on, all of their cases.
    `device`: its name, or that and how to compile (`engine.ways.Asked`). One of several processes, as the environment
    says, takes its share of each batch; the first of them writes.

    Raises:
        Refusal: the method does not take the backbone, the fold is not in the splits, or the loss is not finite.
        Resumable: a signal came; the same command goes on.
    """
    from voxprior import cards, methods
    from voxprior.data.cache import content_key
    from voxprior.data.loaders import regions
    from voxprior.engine import device as devices
    from voxprior.engine import group, kept, summary, ways
    from voxprior.engine.estimate import steps_for
    from voxprior.engine.loop import train
    from voxprior.engine.step import Plan

    card: cards.PretrainCard = cards.read_card("pretrain", card_path)
    asked = ways.asked_of(device)
    where = devices.pick(asked.device, threads)
    index, pool, others = _pool(indexes, splits, card.fold)
    key, reads = cards.card_hash(card), content_key(index, pool, *(content_key(*other) for other in others))
    size, cuda = card.pretrain.batch_size, where.type == "cuda"
    with group.joined(where) as here:
        if group.first_says(lambda: kept.give_back(output, work, key, reads)):
            return
        model, region, rules = build(card, card_path)
        _check_sizes(card, ((index, pool), *others))
        recipe, steps = recipe_of(card, card_path), steps_for(card.pretrain.voxels, size, model.student_voxels)
        stream = regions(
            index, pool, region, seed=card.pretrain.seed, batch_size=size, steps=steps, pin=cuda, others=others,
            # On the CPU workers would take the cores that compute.
            workers="auto" if cuda else 0, cores=max(1, threads // here.local_size), **group.share(),
        )  # fmt: skip
        how = ways.choose(asked, where, card.pretrain.precision, steps, partial(_count, card, card_path, here.size))
        how |= {"rules": rules, "reads": reads}
        plan = Plan(steps, recipe, key, work, where, card.pretrain.precision, f"pretrain {card.method}", **how)
        before = _measures(model)
        outcome = train(model, lambda start: replace(stream, start_step=start), plan)
    if here.rank:
        return
    content = card.model_dump(mode="json")
    _write_encoder(output / "encoder.safetensors", model, {"card": content, "card_hash": key}, [(index, pool), *others])
    first = next(iter(replace(stream, batch_size=_PICTURES, steps=1, rank=0, world_size=1)))
    _write_pictures(output / "pictures.npz", model, first, plan)
    told = summary.summarise("pretrain", content, plan, outcome, model, size, _inputs(indexes, splits))
    told |= {"title": methods.load(card.method).TITLE, "recipe": recipe.model_dump(mode="json")}
    told |= {"measured": {"start": before, "end": _measures(model)}, "moved": _moved(model, build(card, card_path)[0])}
    summary.publish(output, plan, told, ["encoder.safetensors", "pictures.npz"])


Others = tuple[tuple[Path, tuple[str, ...]], ...]


def _pool(indexes: list[Path], splits: Path, number: int) -> tuple[Path, list[str], Others]:
    """Lists what the fold's pretraining may see: (own index, its cases, other indexes with all of theirs)."""
    from voxprior.data.cache import read_index
    from voxprior.data.files import read_fold

    fold = read_fold(splits, number)
    if not fold["pool"]:
        raise Refusal(f"{splits} has no cases to pretrain on in fold {number}: run 'split' again with more patients")
    own, *rest = indexes
    others = ((path, tuple(case["case"] for case in read_index(path)["cases"])) for path in rest)
    return own, list(fold["pool"]), tuple(others)


def _inputs(indexes: list[Path], splits: Path) -> dict[str, Any]:
    from voxprior.data.files import sha256_of

    own, *others = map(sha256_of, indexes)
    return {"index_sha256": own, "pool_sha256": others, "splits_sha256": sha256_of(splits), "encoder_sha256": None}


def _check_sizes(card: Any, pools: Sequence[tuple[Path, Sequence[str]]]) -> None:
    """Refuses pools whose volumes the method cannot use, before the first step."""
    for index, pool in pools:
        _check_size(card, index, pool)


def _check_size(card: Any, index: Path, pool: Sequence[str]) -> None:
    from voxprior import methods
    from voxprior.data.cache import read_index
    from voxprior.nets.backbones import Backbone

    wanted = set(pool)
    entries = [entry for entry in read_index(index)["cases"] if entry["case"] in wanted]
    unit = Backbone(card.backbone, card.family, card.architecture, card.channels).unit_vox
    if small := [entry["case"] for entry in entries if min(entry["shape_zyx"]) < unit]:
        raise Refusal(
            f"{index}: {len(small)} of {len(entries)} volumes are smaller than one patch of {unit} voxels of "
            f"{card.backbone} ({', '.join(small[:3])}): prepare at a finer spacing, or choose a backbone of smaller "
            "patches"
        )
    method = methods.load(card.method)
    if not hasattr(method, "suits"):
        return
    shapes, spacings = ([tuple(entry[key]) for entry in entries] for key in ("shape_zyx", "spacing_zyx_mm"))
    if reason := method.suits(method.Config(**card.config), shapes, spacings):
        raise Refusal(f"{index}: {card.method}: {reason}")


def build(card: Any, card_path: Path, on: str = "cpu") -> tuple[Any, Any, Any]:
    """Builds the method's model on a device: (model, region that the loader reads, the method's parameter rules)."""
    import torch

    from voxprior import methods
    from voxprior.nets.backbones import Backbone
    from voxprior.strict import validated

    method = methods.load(card.method)
    backbone = Backbone(card.backbone, card.family, card.architecture, card.channels)
    if reason := method.accepts(backbone):
        raise Refusal(f"{card_path}: {reason}")
    config = validated(method.Config, card.config, f"{card_path}: config", "write a correct card")
    # The one use of the global generator: torch's layers draw their first weights from it and take no other. What
    # follows draws from counted chance, so nothing after this line depends on the generator's state.
    torch.manual_seed(card.pretrain.seed)
    with torch.device(on):
        model = method.Model(config, backbone.encoder())
    rules = method.parameter_groups(config) if hasattr(method, "parameter_groups") else None
    return model, method.region(config, backbone), rules


def recipe_of(card: Any, card_path: Path) -> Any:
    """Takes the card's recipe with what the method itself asks for: `recipe(config, batch_size)`, where it has one."""
    from voxprior import methods
    from voxprior.configuration import Recipe
    from voxprior.strict import validated

    method = methods.load(card.method)
    if not hasattr(method, "recipe"):
        return card.recipe
    own = method.recipe(method.Config(**card.config), card.pretrain.batch_size) or {}
    content = {**card.recipe.model_dump(), **own}
    return validated(Recipe, content, f"{card_path}: recipe of {card.method}", "correct the method's numbers")


def _count(card: Any, card_path: Path, processes: int) -> Any:
    """Counts a step of one of the processes on the meta device."""
    from voxprior.engine import estimate

    model, region, _ = build(card, card_path, on="meta")
    samples = -(-card.pretrain.batch_size // processes)
    return estimate.cost(model, region, samples, card.pretrain.precision, recipe_of(card, card_path))


def _measures(model: Any) -> dict[str, float]:
    """Asks the method what it measures about its network, if anything; uncompiled, for it is of another size."""
    from voxprior.engine.step import as_written

    with as_written("torch._dynamo" in sys.modules):
        return dict(model.measures()) if hasattr(model, "measures") else {}


def _moved(model: Any, fresh: Any) -> dict[str, float]:
    """Tells how far encoder and teacher moved from their first weights, which the seed gives again; 0.1 = 10 %."""
    from voxprior.maths.ema import relative_distance

    moved = {}
    for name in ("encoder", "teacher"):
        if (network := getattr(model, name, None)) is not None:
            here = {key: tensor.cpu() for key, tensor in network.state_dict().items()}
            moved[name] = relative_distance(here, getattr(fresh, name).state_dict())
    return moved


def _write_encoder(path: Path, model: Any, about: dict[str, Any], learned: Sequence[Any]) -> None:
    from voxprior.data.seen import of_cases
    from voxprior.engine.device import versions
    from voxprior.nets.weights import write_weights

    inherited = model.encoder_state() if hasattr(model, "encoder_state") else model.encoder.state_dict()
    about = about | {"seen": of_cases(learned, labels=False).to_json(), "tensors": list(inherited)}
    write_weights(path, inherited, about | {"versions": versions()})


def _write_pictures(path: Path, model: Any, first: tuple[int, Any, dict[str, Any]], plan: Any) -> None:
    """Shows up to three crops; a method without pictures leaves none."""
    import numpy as np
    import torch

    from voxprior.engine.device import autocast
    from voxprior.engine.step import as_written
    from voxprior.whole import whole

    _, key_B, batch = first
    batch = {name: tensor.to(plan.device) for name, tensor in batch.items()}
    size = torch.tensor(batch["region_BCZYX"].shape[2:], device=plan.device)
    full_B = (batch["valid_lo_B3"] == 0).all(1) & (batch["valid_hi_B3"] == size).all(1)
    shown: dict[str, Any] = {}
    if hasattr(model, "pictures"):
        model.eval()
        # Another batch size and mode: not worth compiling again.
        with as_written(plan.compiler is not None), torch.no_grad(), autocast(plan.device, plan.precision):
            shown = model.pictures(model.views(batch, key_B.to(plan.device)))
    arrays = {name: value[:_PICTURES].float().cpu().numpy() for name, value in shown.items()}
    with whole(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays, valid=full_B[:_PICTURES].cpu().numpy())
