"""`voxprior export`: a study's networks and cells in the formats of nnU-Net, MONAI and ONNX."""

import json
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

FORMATS = ("nnunet-checkpoint", "nnunet-dataset", "monai-bundle", "onnx", "torchscript")
CROPS = ("crop_vox", "view_vox", "global_vox")  # what methods call the boxes that their students see


def run(
    to: str,
    output: Path,
    weights: Path | None,
    results: Path | None,
    spacing_mm: tuple[float, float, float] | None,
    number: int,
    copy: bool,
    tolerance: float,
) -> None:
    """Writes one format.

    Args:
        to: one of `FORMATS`.
        output: file, or folder where the format is one.
        weights: `encoder.safetensors` or `model.safetensors`; all formats but nnunet-dataset.
        results: a study's results folder: what the numbers were made from; nnunet-dataset needs it.
        spacing_mm: of the prepared scans, Z Y X, where neither the file nor the study says it.
        number: of nnU-Net's dataset.
        copy: copies scans instead of linking them.
        tolerance: largest difference of an exported network from ours.

    Raises:
        Refusal: unknown format, something is missing, or the network has no place in the format.
    """
    if to not in FORMATS:
        raise Refusal(f"--to {to} is no format: choose from {', '.join(FORMATS)}")
    if to == "nnunet-dataset":
        from voxprior.commands.export_dataset import write

        if results is None:
            raise Refusal("--to nnunet-dataset exports a study: name its results folder with --results")
        return write(results, output, number, copy)
    if weights is None:
        raise Refusal(f"--to {to} exports a network: name encoder.safetensors or model.safetensors with --weights")
    study = _study(results)
    if to == "nnunet-checkpoint":
        _nnunet_checkpoint(weights, output, study, spacing_mm)
    elif to == "monai-bundle":
        from voxprior.commands.export_bundle import write as write_bundle

        write_bundle(weights, output, study, tolerance)
    else:
        from voxprior.commands.export_graph import write as write_graph

        write_graph(weights, output, to, tolerance)
    card = results / "model_card.md" if results else None
    if card is not None and card.is_file() and to != "monai-bundle":
        from voxprior.whole import write_text

        beside = output.with_name(output.stem + "_model_card.md")
        write_text(beside, card.read_text(encoding="utf-8"))
        print(f"{beside}: the study's model card")
    return None


def _study(results: Path | None) -> dict[str, Any] | None:
    """Reads the resolved study of a results folder: {"config", "results"}."""
    if results is None:
        return None
    path = results / "config.json"
    if not path.is_file():
        raise Refusal(f"{path} is missing: name the results folder of a study, or leave --results out")
    return {"config": json.loads(path.read_text(encoding="utf-8")), "results": results}


def _spacing(about: dict[str, Any], study: dict[str, Any] | None, given: Any) -> list[float] | None:
    """Finds the spacing that scans were prepared to, Z Y X in mm; None where nobody says it."""
    prepare = about.get("prepare") or (study["config"]["study"]["prepare"] if study else None)
    return list(given) if given else list(prepare["spacing_zyx_mm"]) if prepare else None


def _crop(about: dict[str, Any], unit_vox: int) -> list[int]:
    """Finds the crop that a network saw, Z Y X in voxels."""
    config = (about.get("card") or {}).get("config") or {}
    sizes = [about.get("window"), *(config.get(name) for name in CROPS)]
    return list(next((size for size in sizes if size), [unit_vox * 4] * 3))


def _nnunet_checkpoint(weights: Path, output: Path, study: dict[str, Any] | None, spacing_mm: Any) -> None:
    """Writes the checkpoint, and its plan as `adaptation_plan.json` beside it, where nnssl's users look for it."""
    from voxprior.exchange import nnunet
    from voxprior.exchange.names import described
    from voxprior.exchange.pickles import write_checkpoint
    from voxprior.nets.weights import read_weights
    from voxprior.whole import write_json

    state, about = read_weights(weights, "run the training again")
    backbone = described(about, weights)
    is_model = any(name.startswith("encoder.") for name in state)
    if not is_model:
        state = {f"encoder.{name}": tensor for name, tensor in state.items()}
    classes = len(about["classes"]) + (not about.get("regions")) if "classes" in about else 2
    tensors = nnunet.weights(backbone, state, classes)
    fresh = nnunet.fresh(backbone, state)
    dataset = study["config"]["study"]["dataset"] if study else "unknown"
    crop, spacing = _crop(about, backbone.segmenter_unit_vox), _spacing(about, study, spacing_mm)
    plan = nnunet.adaptation_plan(backbone, crop, spacing, dataset)
    method = (about.get("card") or {}).get("method")
    content = {
        "network_weights": tensors,
        "nnssl_adaptation_plan": plan,
        "citations": nnunet.citations(method),
        "trainer_name": f"voxprior_{method or 'finetune'}",
        "voxprior": json.dumps({**about, "placed": sorted(state), "fresh": fresh}),
    }
    write_checkpoint(output, content)
    write_json(output.with_name("adaptation_plan.json"), {**plan, "trainer_name": content["trainer_name"]})
    print(f"{output}: {len(state)} tensors of {weights} under {len(tensors)} names of nnU-Net")
    if fresh:
        print(f"{len(fresh)} tensors of deeper stages, which were not pretrained, have nnU-Net's first weights")
    if spacing is None:
        print("spacing: not known, nnU-Net takes the dataset's own (say it with --spacing-mm Z Y X)")
    patch = " x ".join(map(str, plan["recommended_downstream_patchsize"]))
    print(f"crop for nnU-Net: {patch} voxels (Z Y X)")
    print(f"nnUNetv2_preprocess_like_nnssl -d ID -n voxprior -pc {output} -am like_pretrained")
