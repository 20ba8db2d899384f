"""A study's cases and cells as nnU-Net describes them: dataset.json, splits_final.json, and commands.

nnU-Net numbers its folds in the order of `splits_final.json`; each fold and label budget of the study is one of them.

Source: nnU-Net, `dataset_format.md`, `region_based_training.md`, `ignore_label.md` and `manual_data_splits.md` of its
documentation (Apache-2.0).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from voxprior.maths.regions import chosen, union

ENDING = ".nii.gz"


def describe(
    study: Mapping[str, Any], dataset: Mapping[str, Any], cases: int, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Builds dataset.json.

    Args:
        study: the study, resolved; its classes are 1, 2, ... in order, painted so where they overlap.
        dataset: its dataset, resolved; what it ignores is the number after the last class.
        cases: number of labelled cases.
        hashes: what the cells are made from, kept for whoever compares.
    """
    channels, classes = dataset.get("channels", ["image"]), study["classes"]
    overlapping = chosen(classes, dataset["classes"])
    numbers = range(1, len(classes) + 1)
    labels = {name: union(overlapping, n) if overlapping else n for n, name in zip(numbers, classes, strict=True)}
    named = ["CT"] if dataset["modality"] == "ct" and len(channels) == 1 else channels  # "CT" chooses the intensities
    return {
        "channel_names": {str(number): name for number, name in enumerate(named)},
        "labels": {"background": 0} | labels | ({"ignore": len(classes) + 1} if dataset.get("ignore") else {}),
        **({"regions_class_order": list(numbers)} if overlapping else {}),
        "numTraining": cases,
        "file_ending": ENDING,
        "name": study["study"],
        "description": dataset["title"],
        "licence": dataset["licence"],
        "reference": dataset.get("citation", ""),
        "voxprior": dict(hashes),
    }


def splits(folds: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, list[str]]], list[dict[str, int]]]:
    """Lists training and validation cases of every fold and budget: (splits_final.json, which cell each one is).

    nnU-Net segments and scores the validation cases when it has trained, so the fold's test cases stand there. It picks
    nothing by them as long as the last checkpoint is used, which is its default.
    """
    listed: list[dict[str, list[str]]] = []
    cells: list[dict[str, int]] = []
    for fold in folds:
        for budget, train in fold["budgets"].items():
            cells.append({"nnunet_fold": len(listed), "fold": int(fold["fold"]), "budget": int(budget)})
            listed.append({"train": list(train), "val": list(fold["test"])})
    return listed, cells


def train_commands(number: int, name: str, cells: Sequence[Mapping[str, int]]) -> list[str]:
    """Writes the command lines that plan, put the splits in place, and train every cell from scratch."""
    folder = f"Dataset{number:03d}_{name}"
    lines = [
        f"nnUNetv2_plan_and_preprocess -d {number} -pl nnUNetPlannerResEncL -c 3d_fullres",
        f'cp "$nnUNet_raw/{folder}/splits_final.json" "$nnUNet_preprocessed/{folder}/"',
    ]
    for cell in cells:
        train = f"nnUNetv2_train {number} 3d_fullres {cell['nnunet_fold']} -p nnUNetResEncUNetLPlans"
        lines.append(f"{train}  # fold {cell['fold']}, {cell['budget']} labelled")
    return lines
