"""`voxprior finetune`: a segmentation network on one label budget, from a pretrained encoder or from scratch."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

_LEAST_CROPS, _MOST_CROPS = 4, 64  # of the val patients, two each


def run(
    card_path: Path,
    index: Path,
    splits: Path,
    output: Path,
    work: Path,
    encoder: Path | None,
    threads: int,
    device: str | tuple[str, str],
) -> None:
    """Fine-tunes and writes `model.safetensors`, `load_report.json`, journal, clock and `summary.json` into `output`.

    `device`: its name, or that and how to compile (`engine.ways.Asked`). One of several processes, as the environment
    says, takes its share of each batch; the first of them writes.

    Raises:
        Refusal: the encoder does not belong to the card or does not fit, the budget is not in the splits, or the loss
            is not finite.
        Resumable: a signal came; the same command goes on.
    """
    from voxprior import cards
    from voxprior.data.cache import content_key
    from voxprior.data.files import sha256_of
    from voxprior.engine import device as devices
    from voxprior.engine import group, kept, summary, ways
    from voxprior.engine.loop import Plan, train
    from voxprior.nets.transfer import loaded
    from voxprior.segment import model as segment
    from voxprior.segment import rates

    card: cards.FinetuneCard = cards.read_card("finetune", card_path)
    asked = ways.asked_of(device)
    where = devices.pick(asked.device, threads)
    fold = _fold(splits, card.fold, card.budget)
    cases, watched = list(fold["budgets"][str(card.budget)]), list(fold["val"] if card.validations else [])
    made_from = {"index": index, "splits": splits, "encoder": encoder}
    inputs = {f"{kind}_sha256": sha256_of(path) if path else None for kind, path in made_from.items()}
    seen = content_key(index, watched) if watched else None  # the journal tells of them too
    key, reads = cards.card_hash(card), content_key(index, cases, inputs["encoder_sha256"], seen)
    if not card.ema:
        (output / "last.safetensors").unlink(missing_ok=True)  # of an earlier run
    with group.joined(where) as here:
        if group.first_says(lambda: kept.give_back(output, work, key, reads)):
            return
        network, report = _build(card, card_path, encoder)
        if here.rank == 0:
            print(f"{card.init} on {card.backbone}: {loaded(report)}", file=sys.stderr)
        config = _config(card)
        model, region = segment.Model(config, network), segment.region(config)
        batches = partial(_batches, card, index, cases, region, where.type == "cuda", threads // here.local_size)
        name = f"finetune {card.init}"
        rules = rates.rules(card.recipe, network.encoder, set(network.state_dict()) - set(report["fresh"]))
        how = ways.choose(asked, where, card.precision, card.steps, lambda: count(card, here.size))
        plan = Plan(card.steps, card.recipe, key, work, where, card.precision, name, rules=rules, reads=reads, **how)
        outcome = train(model, batches, plan, _watch(card, index, watched, region, where))
    if here.rank:
        return
    written = _write(output, model, card, index, {"card_hash": key, **_learned(index, cases, encoder)}, report)
    told = summary.summarise("finetune", card.model_dump(mode="json"), plan, outcome, model, card.batch_size, inputs)
    summary.publish(output, plan, told, written)


def _batches(card: Any, index: Path, cases: list[str], region: Any, cuda: bool, cores: int, start: int) -> Any:
    """Makes the stream of this process's labelled crops from step `start` on."""
    from voxprior.data.loaders import regions
    from voxprior.engine import group

    return regions(
        index, cases, region, seed=card.seed, batch_size=card.batch_size, steps=card.steps, start_step=start,
        workers="auto" if cuda else 0, cores=max(1, cores), pin=cuda, labels=True, foreground=card.foreground,
        **group.share(),
    )  # fmt: skip


def _config(card: Any) -> Any:
    """Makes the training's configuration (`segment.model.Config`)."""
    from voxprior.maths.regions import memberships
    from voxprior.segment.ensemble import has_sides
    from voxprior.segment.model import Config

    flip_zyx = (0.0, 0.0, 0.0 if has_sides(card.classes) else 0.5)
    overlapping = tuple(tuple(classes) for classes in memberships(card.regions))
    return Config(card.crop_vox, flip_zyx, ema=card.ema, regions=overlapping)


def count(card: Any, processes: int = 1) -> Any:
    """Counts a step of one of the processes on the meta device (`engine.estimate.Cost`)."""
    import torch

    from voxprior.engine import estimate
    from voxprior.nets.backbones import Backbone
    from voxprior.segment import model as segment

    config, backbone = _config(card), Backbone(card.backbone, card.family, card.architecture, card.channels)
    with torch.device("meta"):
        model = segment.Model(config, backbone.segmenter(card.outputs, card.crop_vox))
    samples = -(-card.batch_size // processes)
    return estimate.cost(model, segment.region(config), samples, card.precision, card.recipe, labels=True)


def _watch(card: Any, index: Path, cases: list[str], region: Any, where: Any) -> Any:
    """Says what is measured on the split's val patients, on the same few crops each time; None: nothing is.

    Raises:
        Refusal: a run is to end early by patients that are not there.
    """
    from voxprior.data.loaders import regions
    from voxprior.engine import group
    from voxprior.engine.device import autocast
    from voxprior.engine.loop import Watch
    from voxprior.segment.model import crop_dice

    if not cases:
        if card.patience:
            raise Refusal(
                f"{index}: patience {card.patience} asks for val patients and validations, and there are none: set "
                "split.val and finetune.validations, or patience to 0"
            )
        return None
    crops = min(max(_LEAST_CROPS, 2 * len(cases)), _MOST_CROPS)
    kept: list[Any] = []

    def measure(model: Any) -> dict[str, float]:
        if not kept:
            steps = -(-crops // card.batch_size)
            found = regions(
                index, cases, region, seed=0, batch_size=card.batch_size, steps=steps, labels=True,
                foreground=card.foreground, **group.share(),
            )  # fmt: skip
            kept.extend(batch for _, _, batch in found)
        with autocast(where, card.precision):
            return crop_dice(model, kept)

    return Watch(card.validations, measure, card.patience)


def _learned(index: Path, cases: list[str], encoder: Path | None) -> dict[str, Any]:
    """Says what the model has learned from: its cases by name, and hashes of all scans, those of its encoder too."""
    from voxprior.data.cache import read_index
    from voxprior.data.seen import of_cases

    used = set(cases)
    hashes = {case["case"]: case["image_sha256"] for case in read_index(index)["cases"] if case["case"] in used}
    return {"training_cases": hashes, "seen": of_cases([(index, cases)], labels=True, start=encoder).to_json()}


def _write(output: Path, model: Any, card: Any, index: Path, about: dict[str, Any], report: Any) -> list[str]:
    """Writes the weights that are predicted with, averaged ones with the last beside them, and the load report.

    Returns:
        The files' names.
    """
    from voxprior.data.cache import read_index
    from voxprior.engine import device as devices
    from voxprior.maths.regions import memberships
    from voxprior.nets.weights import write_weights
    from voxprior.whole import write_json

    content = card.model_dump(mode="json")
    about = {"card": content, "classes": card.classes, "prepare": content["prepare"], **about}
    about |= {"window": list(card.crop_vox), "versions": devices.versions()}
    about |= {"format": 1, "weights": "averaged" if card.ema else "last"}
    about |= {"regions": memberships(card.regions)} if card.regions else {}
    about |= {key: read_index(index).get(key) for key in ("data", "channels")}
    write_weights(output / "model.safetensors", model.chosen.state_dict(), about)
    if card.ema:
        write_weights(output / "last.safetensors", model.network.state_dict(), {**about, "weights": "last"})
    write_json(output / "load_report.json", report)
    return ["model.safetensors", "load_report.json", *(["last.safetensors"] if card.ema else [])]


def _fold(splits: Path, number: int, budget: int) -> dict[str, Any]:
    """Finds the fold, which must have the budget."""
    from voxprior.data.files import read_fold

    fold = read_fold(splits, number)
    if str(budget) not in fold["budgets"]:
        raise Refusal(f"{splits} has no budget of {budget} in fold {number}: run 'split' again with this budget")
    return fold


def _build(card: Any, card_path: Path, encoder: Path | None) -> tuple[Any, dict[str, Any]]:
    """Builds the network, from the encoder where there is one: (network, load report)."""
    import torch

    from voxprior.nets.backbones import Backbone
    from voxprior.nets.transfer import load_report, place

    if (card.init == "scratch") != (encoder is None):
        advice = "leave out --encoder" if encoder else "give its encoder with --encoder"
        raise Refusal(f"{card_path} is a card of init {card.init}: {advice}")
    backbone = Backbone(card.backbone, card.family, card.architecture, card.channels)
    # The one use of the global generator: torch's layers draw their first weights from it and take no other. The same
    # seed gives every init the same fresh decoder.
    torch.manual_seed(card.seed)
    network = backbone.segmenter(card.outputs, card.crop_vox)
    if encoder is None:
        return network, load_report(network)
    if card.init_file is not None:
        return network, _take_file(encoder, card, network, backbone)
    state, expected = _read_encoder(encoder, card)
    return network, place(state, network, expected)


def _read_encoder(path: Path, card: Any) -> tuple[dict[str, Any], list[str]]:
    """Reads the pretrained tensors and the names of all that were handed on.

    Nothing but safetensors is opened, and only the card's own pretraining is taken.
    """
    from voxprior.nets.weights import read_weights

    state, about = read_weights(path, "run the pretraining again")
    if card.init_card is not None and about.get("card_hash") != card.init_card:
        raise Refusal(
            f"{path} was made by the pretraining card {about.get('card_hash')}, not by {card.init_card}: run the "
            "pretraining again"
        )
    return state, about.get("tensors", list(state))


def _take_file(path: Path, card: Any, network: Any, backbone: Any) -> dict[str, Any]:
    """Takes over a file of weights that the study names, and no other: the load report.

    Raises:
        Refusal: its content is not what the card names, it is of another backbone, or it does not fit.
    """
    import torch

    from voxprior.data.files import sha256_of
    from voxprior.nets.foreign import Taking, place_file
    from voxprior.nets.weights import read_weights

    if (sha256 := sha256_of(path)) != card.init_file.sha256:
        raise Refusal(f"{path} has changed since its card was written (SHA-256 {sha256[:16]}…): run the study again")
    state, about = read_weights(path, "give a safetensors file")
    made_by = about.get("card") or about
    if made_by.get("architecture") and (other := _other_sizes(made_by, card)):
        raise Refusal(
            f"{path} holds an encoder of {made_by.get('backbone', 'another backbone')} ({other}), which does not fit "
            f"{card.backbone}: fine-tune it on its own backbone"
        )
    warnings = _other_spacing(path, made_by, card)
    for warning in warnings:
        print(f"voxprior: warning: {warning}", file=sys.stderr)
    with torch.device("meta"):
        expected = list(backbone.encoder().state_dict())
    taking = Taking(str(path), expected, card.channels, card.init_file.channels, card.init_file.decoder)
    report = place_file(state, network, taking)
    return report | ({"warnings": warnings} if warnings else {})


def _other_sizes(made_by: dict[str, Any], card: Any) -> str:
    """Names what of a file's architecture is not the card's; what shapes cannot tell too, as the number of heads."""
    if made_by.get("family", card.family) != card.family:
        return f"family {made_by['family']} where the study has {card.family}"
    theirs, ours = made_by["architecture"], card.architecture
    # The decoder is not the encoder's, and a CNN may have been pretrained to another depth: tensors tell.
    names = [name for name in ours if name in theirs and name not in ("decoder_channels", "pretrained_stages")]
    return ", ".join(f"{n} {theirs[n]} where the study has {ours[n]}" for n in names if theirs[n] != ours[n])


def _other_spacing(path: Path, made_by: dict[str, Any], card: Any) -> list[str]:
    """Says where a file was trained on voxels of another size: it fits all the same, and looks at another scale."""
    spacing_mm = (made_by.get("prepare") or {}).get("spacing_zyx_mm")
    if not spacing_mm or tuple(spacing_mm) == tuple(card.prepare.spacing_zyx_mm):
        return []
    theirs, ours = (" x ".join(f"{side:g}" for side in some) for some in (spacing_mm, card.prepare.spacing_zyx_mm))
    return [
        f"{path} was trained on voxels of {theirs} mm (Z Y X), the study has {ours} mm: its features see another scale"
    ]
