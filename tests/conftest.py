"""A finished study, as its steps write it: random numbers and balls for organs, no training."""

import csv
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from voxprior.study import cells as names

CLASSES = ["liver", "spleen"]
TEST, POOL = [f"00{i}" for i in range(5)], [f"p{i}" for i in range(8)]
SPACING_XYZ = (1.5, 1.5, 3.0)


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_rows(path: Path, rows: list[dict], columns: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_image(path: Path, array_ZYX: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array_ZYX)
    image.SetSpacing(SPACING_XYZ)
    SimpleITK.WriteImage(image, str(path))
    return str(path)


def organs(shift: float) -> np.ndarray:
    """Two balls in a volume; a prediction is the same with a shift."""
    z, y, x = np.meshgrid(
        *[np.arange(n) * s for n, s in zip((28, 60, 72), (3.0, 1.5, 1.5), strict=True)], indexing="ij"
    )
    labels = np.zeros(z.shape, np.uint8)
    labels[(z - 40 - shift) ** 2 + (y - 40) ** 2 + (x - 38 - shift) ** 2 < 24**2] = 1
    labels[(z - 45) ** 2 + (y - 50 - shift) ** 2 + (x - 80) ** 2 < 14**2] = 2
    return labels


def resolved(results: Path, simulated: bool, budgets: list[int], inits: dict[str, list[str]]) -> dict:
    recipe = {"lr": 1e-3}
    layout = {"kind": "folder", "images": "{case}.nii.gz", "labels": "{case}_label.nii.gz"}
    dataset = {
        "title": "Abdominal CT of many",
        "modality": "ct",
        "source": {"kind": "folder", "path": "scans"},
        "layout": layout,
        "classes": {"liver": [1], "spleen": [2]},
        "licence": "CC BY-SA 4.0",
        "licence_url": "https://creativecommons.org/licenses/by-sa/4.0/",
        "citation": "Somebody et al., 2020",
        "origin": "One hospital, <b>portal</b> venous phase.",
        "simulate": {"patients": 13} if simulated else None,
    }
    backbone = {"family": "vit", "vit": {}, "pretrain": recipe, "scratch": recipe, "finetune": recipe}
    study = {
        "study": "fake",
        "title": "Abdominal organs on CT",
        "results": str(results),
        "dataset": "here",
        "external": ["elsewhere"],
        "classes": CLASSES,
        "prepare": {"spacing_zyx_mm": (3.0, 3.0, 3.0), "intensity": {"kind": "window", "low": -160, "high": 240}},
        "split": {"test": len(TEST), "budgets": budgets},
        "inits": inits,
        "pretrain": {"voxels": 10**7},
        "finetune": {"steps": 100, "crop_vox": (32, 32, 32), "seeds": [0, 1]},
    }
    titles = {"vit_tiny": "ViT, tiny", "stunet_tiny": "STU-Net, tiny"}
    return {
        "study": study,
        "datasets": {"here": dataset, "elsewhere": {**dataset, "title": "CT of another person", "simulate": None}},
        "backbones": {name: {**backbone, "title": titles[name]} for name in inits},
        "methods": {init: {} for some in inits.values() for init in some if init != "scratch"},
    }


def summary(stage: str, card: dict, chance: np.random.Generator, title: str | None = None) -> dict:
    steps = 100
    return {
        "format": 1,
        "stage": stage,
        "card_hash": f"{chance.integers(1 << 62):016x}",
        "card": card,
        **({"title": title} if title else {}),
        "steps": steps,
        "voxels_seen": 10**7,
        "parameters": 3_210_000,
        "seconds": float(chance.uniform(60, 4000)),
        "peak_memory_bytes": int(chance.uniform(1e9, 3e9)),
        "device": "cpu" if stage == "pretrain" else "NVIDIA H100",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "voxprior": "0.1.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "flops_per_step": 4.2e10,
        "final": {"loss": 0.3},
        "inputs": {"index_sha256": "a" * 64, "splits_sha256": "b" * 64, "encoder_sha256": None},
    }


TITLES = {"mae": "MAE3D", "glmae": "GL-MAE", "byol": "BYOL", "pgl": "PGL", "spark": "SparK", "anatomask": "AnatoMask"}
TEN = {
    "vit_tiny": ["scratch", "mae", "glmae", "byol", "pgl"],
    "stunet_tiny": ["scratch", "spark", "anatomask", "byol", "pgl"],
}
GLMAE_TERMS = ["global_reconstruction", "local_reconstruction", "global_to_global", "global_to_local"]
MONITORS = {
    "glmae": [*GLMAE_TERMS, "teacher_entropy", "centre_norm", "feature_std", "effective_rank"],
    "anatomask": ["reconstruction", "hard_share", "mask_overlap"],
    "byol": ["cosine", "feature_deviation", "feature_rank", "overlap_iou", "fallback_share"],
    "pgl": ["alignment", "feature_deviation", "feature_rank", "overlap_iou", "fallback_share", "valid_share"],
}


def journal(chance: np.random.Generator, start: float, monitors: list[str] | None = None) -> str:
    lines = []
    for step in range(0, 100, 2):
        loss = start * np.exp(-step / 40) + 0.1 * chance.random() + 0.05
        others = {name: loss / (n + 2) + n for n, name in enumerate(monitors or ["reconstruction"])}
        if not monitors:
            others = {"reconstruction": loss}
        record = {"step": step, "progress": step / 99, "loss": loss, **others, "lr": 1e-3}
        lines.append(json.dumps(record | {"grad_norm": 1.0 + 0.2 * chance.random()}))
    return "\n".join(lines) + "\n"


def two_views(crop: np.ndarray) -> dict[str, np.ndarray]:
    """Two boxes of each crop, the second mirrored along X, and the corners of a grid that lies in both."""
    points_a = np.stack(np.meshgrid(*[np.arange(4.0, 24.0, 8.0) + shift for shift in (0.5, 0, 0)], indexing="ij"), -1)
    points_a = np.tile(points_a.reshape(1, -1, 3), (len(crop), 1, 1)).astype("f4")
    points_a[:, 0] = np.nan
    points_b = points_a - np.array([0, 4, 4], "f4")
    points_b[..., 2] = 24 - points_b[..., 2]
    views = {"view_a": crop[:, 4:28, :24, :24], "view_b": crop[:, 4:28, 4:28, 4:28][..., ::-1]}
    return {**views, "points_view_a": points_a, "points_view_b": points_b}


def pictures_of(method: str, chance: np.random.Generator) -> dict[str, np.ndarray]:
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij")
    crop = np.stack([np.clip(1.2 - np.sqrt(z**2 + y**2 + (x - s) ** 2), 0, 1) for s in (0, 0.3, -0.3)]).astype("f4")
    if method in ("byol", "pgl"):
        views = two_views(crop)
        return views if method == "pgl" else {name: views[name] for name in ("view_a", "view_b")}
    hidden = (np.indices((32, 32)) // 8).sum(0) % 2 == 0
    recon = np.clip(crop + chance.normal(0, 0.05, crop.shape), 0, 1).astype("f4")
    shown = {"input": crop, "masked_input": np.where(hidden, 0, crop), "reconstruction": recon}
    if method == "glmae":
        shown |= {f"local_{name}": picture[:, 8:24, 8:24, 8:24] for name, picture in list(shown.items())}
    if method == "anatomask":
        error = chance.random((3, 4, 4, 4), "f4").repeat(8, 1).repeat(8, 2).repeat(8, 3)
        shown["teacher_error"] = error
    return shown


def write_pretraining(folder: Path, backbone: str, method: str, chance: np.random.Generator) -> None:
    card = {"method": method, "backbone": backbone, "fold": 0}
    told = summary("pretrain", card, chance, TITLES.get(method))
    if method in MONITORS:
        told["moved"] = {"encoder": 0.31, "teacher": 0.092}
    if method == "pgl":
        told["measured"] = {
            stage: {f"offset_{a}_vox": 0.5 + drift for a in "zyx"} | {f"offset_drift_{a}_vox": drift for a in "zyx"}
            for stage, drift in (("start", 0.0), ("end", -0.0625))
        }
    write(folder / "summary.json", told)
    write(folder / "journal.jsonl", journal(chance, 1.0, MONITORS.get(method)))
    np.savez_compressed(folder / "pictures.npz", **pictures_of(method, chance), valid=np.array([True, True, False]))


def write_cell(folder: Path, cell: dict, chance: np.random.Generator) -> None:
    """Writes what fine-tuning, prediction and scoring leave."""
    card = {key: value for key, value in cell.items() if key != "pretrain_seed"}
    write(folder / "summary.json", summary("finetune", {**card, "classes": CLASSES}, chance))
    write(folder / "journal.jsonl", journal(chance, 1.5))
    placed = 0 if cell["init"] == "scratch" else 48
    report = {"encoder_tensors": placed, "placed": placed, "placed_share": 1.0, "dropped": [], "network_tensors": 80}
    report |= {"network_parameters": 3_000_000, "placed_parameters": placed * 50_000, "fresh": ["head.weight"]}
    write(folder / "load_report.json", {**report, "placed_parameter_share": placed * 50_000 / 3e6})
    better = {"scratch": 0.0, "glmae": 0.1, "pgl": 0.088, "byol": 0.07}.get(cell["init"], 0.08)
    gain = better / cell["budget"] ** 0.5
    rows, listed = [], []
    for dataset, case in [*product(["here"], TEST), ("elsewhere", "e0")]:
        for number, name in enumerate(CLASSES):
            hard = TEST.index(case) * 0.04 if case in TEST else 0.2
            dice = np.clip(
                0.9 - 0.25 / cell["budget"] ** 0.5 - hard - 0.1 * number + gain + chance.normal(0, 0.02), 0, 1
            )
            flag = {("004", 1): "both_empty", ("003", 1): "missed"}.get((case, number), "")
            values = {"dice": dice, "nsd": dice**1.5, "hd95_mm": 20 * (1 - dice)}
            for metric, value in values.items():
                text = "" if flag == "both_empty" else f"{ {'hd95_mm': 170.0}.get(metric, 0.0) if flag else value:.8g}"
                given = {"dataset": dataset, "case": case, "patient": case, "class": name}
                rows.append(given | {"metric": metric, "value": text, "flag": flag})
        file = f"predictions/{dataset}_{case}.nii.gz"
        if case in TEST:
            write_image(folder / file, organs(chance.uniform(2, 8)))
        listed.append({"dataset": dataset, "case": case, "file": file, "seconds": 2.0, "volume_ml": [1.0, 2.0]})
    write_rows(folder / "scores.csv", rows)
    write(folder / "predictions.json", {"format": 1, "card_hash": "x", "model_sha256": "y", "cases": listed})


def write_data(root: Path, chance: np.random.Generator, simulated: bool) -> None:
    """Writes raw scans, case tables, indexes."""
    for dataset, cases in (("here", [*TEST, *POOL]), ("elsewhere", ["e0"])):
        rows, entries = [], []
        for case in cases:
            image, label = "", f"scans/{case}_label.nii.gz"
            if case in TEST:
                labels = organs(0)
                scan = (labels.astype(float) * 60 - 20 + chance.normal(0, 15, labels.shape)).astype(np.int16)
                image = write_image(root / "scans" / f"{case}.nii.gz", scan)
                label = write_image(root / "scans" / f"{case}_label.nii.gz", labels)
            rows.append({"case": case, "dataset": dataset, "patient": case, "person": "one" if simulated else case})
            rows[-1] |= {"image": image, "label": label if case != "p7" else "", "simulated": str(simulated).lower()}
            rows[-1] |= {"shape_zyx": "28 60 72", "content_sha256": f"{chance.integers(1 << 62):064x}", "repairs": ""}
            entries.append({"case": case, "patient": case, "raw_image": image, "raw_label": label})
        write_rows(root / f"results/intake/{dataset}/cases.csv", rows)
        aside = {"case": "bad_1", "dataset": dataset, "file": f"scans/{'very_long_name_' * 6}bad_1.nii.gz"}
        aside |= {"defect": "holds 12 voxels that are NaN or infinite", "advice": "export the scan again"}
        aside["picture"] = "results/intake/here/quarantine/bad_1.png"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.eye(9, dtype=np.uint8) * 255), str(root / "picture.png"))
        (root / aside["picture"]).parent.mkdir(parents=True, exist_ok=True)
        (root / "picture.png").replace(root / aside["picture"])
        columns = list(aside)
        write_rows(root / f"results/intake/{dataset}/quarantine.csv", [aside] if dataset == "here" else [], columns)
        index = {"format": 1, "dataset": dataset, "key": "k", "quantum": 1e-4, "simulated": simulated, "cases": entries}
        write(root / f"results/prepared/{dataset}/index.json", index)


def write_study(
    root: Path, simulated: bool = False, budgets=(1, 4), inits=None, leaks=None, pretrain_seeds=(0,), files=None
) -> Path:
    """Writes a finished study below `root` and returns its results folder (relative paths count from `root`)."""
    chance = np.random.default_rng(0)
    results = root / "results"
    inits = inits or {"vit_tiny": ["scratch", "mae"], "stunet_tiny": ["scratch", "spark"]}
    config = resolved(results, simulated, list(budgets), inits)
    config["study"] |= {"pretrain": {"voxels": 10**7, "seeds": list(pretrain_seeds)}, "files": files or {}}
    config["methods"] = {name: numbers for name, numbers in config["methods"].items() if name not in (files or {})}
    arms = [(backbone, init) for backbone, some in inits.items() for init in some]
    cells = [cell for arm in arms for cell in names.cells_of(config["study"] | {"split": {"budgets": budgets}}, *arm)]
    write(results / "config.json", config)
    compare = {"confidence": 0.95, "resamples": 500, "seed": 0}
    card = {"study": "fake", "title": "Abdominal organs on CT", "dataset": "here", "external": ["elsewhere"]}
    card |= {"classes": CLASSES, "compare": compare, "simulated": simulated, "cells": cells}
    write(results / "cards/compare.json", card)
    write_data(root, chance, simulated)
    fold = {"fold": 0, "test": TEST, "val": ["p6"], "train": POOL[:6], "pool": [*POOL[:6], "p7"]}
    fold["budgets"] = {str(budget): POOL[: min(budget, 6)] for budget in budgets}
    write(results / "leakage.json", {"format": 1, "allowed": bool(leaks), "cases": {}, "found": leaks or []})
    write(results / "splits.json", {"format": 1, "sha256": "c" * 64, "folds": [fold]})
    for backbone, init in arms:
        for run in names.pretrainings_of(config["study"], backbone, init):
            folder = results / "pretrain" / names.pretraining_name(run)
            folder.mkdir(parents=True)
            write_pretraining(folder, backbone, init, chance)
    for cell in cells:
        place = names.cell_name(cell)
        write_cell(results / "finetune" / place, cell, chance)
        head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
        write(
            results / f"benchmarks/finetune/{place}.tsv", head + "61.5\t0:01:01\t900.1\t2.0\t2\t2\t0\t0\t98.0\t60.2\n"
        )
        write(results / f"benchmarks/score/{place}.tsv", head + "0.9\t0:00:00\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA\n")
    return results


@pytest.fixture
def make_study(tmp_path, monkeypatch):
    """Gives `write_study`, in a folder that is also the working folder."""
    monkeypatch.chdir(tmp_path)
    return lambda **options: write_study(tmp_path, **options)


@pytest.fixture(scope="session", name="write_study")
def writer_of_studies():
    """Gives `write_study` itself: the caller says where, and sets the working folder."""
    return write_study


@pytest.fixture(scope="session")
def make_statistics():
    """Gives `write_statistics`, with its chance fixed."""
    return lambda results: write_statistics(results, np.random.default_rng(0))


def write_statistics(results: Path, chance: np.random.Generator) -> None:
    """Adds what statistics write beside the curves: verdicts, labels saved, ranks, variance. Valid, and made up.

    Tables that are already there and hold verdicts are kept.
    """
    import pandas as pd

    tables = results / "tables"
    contrasts = pd.read_csv(tables / "contrasts.csv", keep_default_na=False, na_values={"low": [""], "high": [""]})
    curves = pd.read_csv(tables / "curves.csv", keep_default_na=False, na_values={"low": [""], "high": [""]})
    half = (contrasts["high"] - contrasts["low"]) / 2
    contrasts["effect"] = contrasts["difference"] / 0.05
    contrasts["effect_low"], contrasts["effect_high"] = contrasts["effect"] - 0.3, contrasts["effect"] + 0.3
    contrasts["p"] = np.exp(-np.abs(contrasts["difference"]) / half * 2)
    contrasts["p_holm"] = np.minimum(1, contrasts["p"] * 6)
    contrasts["margin"] = np.where(contrasts["metric"] == "hd95_mm", np.nan, 0.005)
    word = np.where(contrasts["low"] > 0, "better", np.where(contrasts["high"] < 0, "worse", "not separated"))
    inside = (contrasts["low"] > -0.005) & (contrasts["high"] < 0.005)
    contrasts["verdict"] = np.where(contrasts["low"].isna(), "", np.where(inside, "equivalent", word))
    contrasts["false_claim"], contrasts["smallest"] = contrasts["p"] / 2, 2.8 * half / 1.96
    contrasts.to_csv(tables / "contrasts.csv", index=False)

    mean = curves[(curves["cohort"] == "test") & (curves["class"] == "mean")]
    arms = mean[["dataset", "cohort", "backbone", "init", "budget", "metric", "stamp"]]
    saved = mean[mean["init"] != "scratch"][["dataset", "backbone", "init", "metric", "budget"]].copy()
    saved["kind"] = chance.choice(["about", "above", "below"], len(saved), p=[0.7, 0.2, 0.1])
    saved["labels"] = saved["budget"] * 2.3
    saved["low"], saved["high"] = saved["labels"] * 0.7, saved["labels"] * 1.6
    saved["high_kind"], saved["stamp"] = "about", ""
    saved.to_csv(tables / "labels_saved.csv", index=False)
    ranks = pd.concat([arms.assign(scheme=scheme) for scheme in ("rank_of_means", "mean_of_ranks")])
    ranks["rank"] = ranks.groupby(["backbone", "budget", "metric", "scheme"]).cumcount() + 1
    ranks["low"], ranks["high"] = np.maximum(1, ranks["rank"] - 1), ranks["rank"] + 1
    ranks.to_csv(tables / "ranks.csv", index=False)
    shares = {"patient": 0.7, "pretrain_seed": np.nan, "seed": 0.1, "rest": 0.2}
    parts = [arms.assign(source=source, variance=0.01 * share, share=share) for source, share in shares.items()]
    pd.concat(parts).to_csv(tables / "variance.csv", index=False)
