"""Measures the report of a large study: `python benchmarks/report.py`.

Makes a study of 4,500 cells without training anything: 10 arms, 9 budgets, 5 folds, 10 seeds, 14 classes, 50 test
cases, a dataset from elsewhere, scans made of noise and balls, 60 cases set aside with their pictures. Writes its
report in a process of its own, and tells size, time and memory. Promised: at most 20 MiB.
"""

import argparse
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxprior.study.cells import cell_name

ROOT = Path(__file__).parents[1]
BUDGETS, FOLDS, SEEDS = [1, 2, 4, 8, 16, 24, 32, 48, 64], 5, 10
CLASSES = [f"organ_{number}" for number in range(1, 15)]
CASES, SHAPE = [f"case_{number:03d}" for number in range(50)], (120, 200, 240)
LIMIT_MIB = 20


def fakes() -> Any:
    """Loads the makers of fake studies that the tests use."""
    spec = importlib.util.spec_from_file_location("fakes", ROOT / "tests/conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def balls(shift: int) -> np.ndarray:
    """Fourteen balls in a volume, (Z, Y, X) uint8."""
    labels = np.zeros(SHAPE, np.uint8)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for number in range(14):
        centre = (25 + 5 * number + shift, 40 + 28 * (number % 5), 40 + 38 * (number // 3) + shift)
        away = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
        labels[away < (8 + number) ** 2] = number + 1
    return labels


def study_of(made: Any, results: Path) -> dict[str, Any]:
    """Makes the configuration of the large study."""
    config: dict[str, Any] = made.resolved(results, False, BUDGETS, made.TEN)
    study = config["study"]
    study["classes"] = CLASSES
    study["split"] = {"test": len(CASES), "budgets": BUDGETS, "folds": FOLDS}
    study["finetune"]["seeds"] = list(range(SEEDS))
    for dataset in config["datasets"].values():
        dataset["classes"] = {name: [number] for number, name in enumerate(CLASSES, start=1)}
    return config


def write_data(made: Any, root: Path, chance: np.random.Generator) -> None:
    """Writes scans of ten cases, tables of all, pictures of what was set aside."""
    for dataset, cases in (("here", [*CASES, *[f"pool_{n:03d}" for n in range(80)]]), ("elsewhere", CASES[:20])):
        rows = []
        for number, case in enumerate(cases):
            row = {"case": case, "dataset": dataset, "patient": case, "person": case, "simulated": "false"}
            row |= {"image": f"scans/{case}.nii.gz", "label": f"scans/{case}_label.nii.gz", "shape_zyx": "120 200 240"}
            rows.append(row | {"content_sha256": f"{number:064x}", "repairs": ""})
        made.write_rows(root / f"results/intake/{dataset}/cases.csv", rows)
        aside = []
        for number in range(60 if dataset == "here" else 0):
            picture = root / f"results/intake/{dataset}/quarantine/bad_{number}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            noise = chance.normal(110, 40, (160, 480)).clip(0, 255).astype(np.uint8)
            made.SimpleITK.WriteImage(made.SimpleITK.GetImageFromArray(noise), str(picture))
            row = {"case": f"bad_{number}", "dataset": dataset, "file": f"scans/bad_{number}.nii.gz"}
            row |= {"defect": "holds 12 voxels that are NaN or infinite", "advice": "export the scan again"}
            aside.append(row | {"picture": str(picture.relative_to(root))})
        columns = ["case", "dataset", "file", "defect", "advice", "picture"]
        made.write_rows(root / f"results/intake/{dataset}/quarantine.csv", aside, columns)
        made.write(root / f"results/prepared/{dataset}/index.json", {"cases": [{"case": case} for case in cases]})
    labels = balls(0)
    scan = (labels.astype(float) * 12 - 60 + chance.normal(0, 15, labels.shape)).astype(np.int16)
    for case in CASES:
        for name, array in ((f"{case}.nii.gz", scan), (f"{case}_label.nii.gz", labels)):
            if case == CASES[0]:
                made.write_image(root / "scans" / name, array)
            else:
                (root / "scans" / name).symlink_to(name.replace(case, CASES[0]))


def write_runs(made: Any, results: Path, chance: np.random.Generator) -> int:
    """Writes what trainings leave: journals, summaries, cards, logs; predictions of the largest budget's first seed."""
    shared = results / "shared"
    for number in range(2):
        made.write_image(shared / f"{number}.nii.gz", balls(2 + number))
    for backbone, inits in made.TEN.items():
        for init, fold in product([init for init in inits if init != "scratch"], range(FOLDS)):
            folder = results / f"pretrain/{backbone}/{init}/fold{fold}/seed0"
            folder.mkdir(parents=True)
            made.write_pretraining(folder, backbone, init, chance)
    journal = made.journal(chance, 1.5)
    cells = 0
    for backbone, inits in made.TEN.items():
        for init, budget, fold, seed in product(inits, BUDGETS, range(FOLDS), range(SEEDS)):
            start = None if init == "scratch" else 0
            cell = {"backbone": backbone, "init": init, "budget": budget, "fold": fold, "pretrain_seed": start}
            place = f"finetune/{cell_name(cell | {'seed': seed})}"
            folder = results / place
            report = {"encoder_tensors": 48, "placed": 48, "placed_parameter_share": 0.8, "dropped": []}
            made.write(folder / "summary.json", made.summary("finetune", cell, chance))
            made.write(folder / "journal.jsonl", journal)
            made.write(folder / "load_report.json", report)
            made.write(folder / "scores.csv", "")
            made.write(results / f"cards/{place}.json", {})
            made.write(results / f"logs/{place}.log", "")
            shown = CASES if budget == BUDGETS[-1] and seed == 0 else []
            file = os.path.relpath(shared / f"{len(init) % 2}.nii.gz", folder)
            listed = [{"dataset": "here", "case": case, "file": file} for case in shown]
            made.write(folder / "predictions.json", {"cases": listed})
            cells += 1
    return cells


def write_tables(made: Any, results: Path, chance: np.random.Generator) -> None:
    """Writes the tables as `compare` and its statistics do."""
    arms = [(b, init, budget) for b, inits in made.TEN.items() for init in inits for budget in BUDGETS]
    metrics = ["dice", "nsd", "hd95_mm"]
    curves = [
        (dataset, cohort, *arm, name, metric, 0.5 + 0.4 * chance.random())
        for (dataset, cohort) in (("here", "test"), ("elsewhere", "external"))
        for arm, name, metric in product(arms, ["mean", *CLASSES], metrics)
    ]
    keys = ["dataset", "cohort", "backbone", "init", "budget"]
    table = pd.DataFrame(curves, columns=[*keys, "class", "metric", "mean"])
    table = table.assign(
        low=table["mean"] - 0.02, high=table["mean"] + 0.02, cases=50, seeds=SEEDS, excluded=0, stamp=""
    )
    (results / "tables").mkdir()
    table.to_csv(results / "tables/curves.csv", index=False)
    planned = {"glmae": "mae", "anatomask": "spark", "pgl": "byol"}
    rows = [
        ("here", "test", backbone, init, against, budget, metric, chance.normal(0.01, 0.02))
        for (backbone, init, budget), metric in product(arms, metrics)
        for against in ("scratch", planned.get(init, ""))
        if init != "scratch" and against
    ]
    table = pd.DataFrame(rows, columns=[*keys[:4], "against", "budget", "metric", "difference"])
    table = table.assign(low=table["difference"] - 0.01, high=table["difference"] + 0.01, cases=50, stamp="")
    table.to_csv(results / "tables/contrasts.csv", index=False)
    cases = [("here", "test", *arm, case, "dice", chance.random()) for arm, case in product(arms, CASES)]
    table = pd.DataFrame(cases, columns=[*keys, "case", "metric", "value"])
    table.to_csv(results / "tables/cases.csv", index=False)
    made.write_statistics(results, chance)


def write_study(root: Path) -> int:
    """Writes the whole study below `root`; says how many cells it has."""
    made, chance = fakes(), np.random.default_rng(0)
    results = Path("results")
    made.write(results / "config.json", study_of(made, results))
    write_data(made, Path("."), chance)
    folds = [
        {"fold": k, "test": CASES[k::FOLDS], "val": [], "train": [], "pool": ["pool_000"] * 80,
         "budgets": {str(b): ["pool_000"] * b for b in BUDGETS}}
        for k in range(FOLDS)
    ]  # fmt: skip
    made.write(results / "splits.json", {"format": 1, "sha256": "c" * 64, "folds": folds})
    made.write(results / "leakage.json", {"format": 1, "allowed": False, "cases": {"here": 130}, "found": []})
    cells = write_runs(made, results, chance)
    write_tables(made, results, chance)
    return cells


def child(results: Path) -> None:
    """Writes the report and prints what it took."""
    from voxprior.commands import report

    began, since = time.process_time(), time.monotonic()
    report.run(results / "config.json", results, results / "report.html")
    told = {"cpu_seconds": time.process_time() - began, "seconds": time.monotonic() - since}
    print(json.dumps(told | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def measured(html: str) -> dict[str, Any]:
    """Tells of a page how large it is, and how much of that is pictures."""
    size = len(html.encode())
    images = sum(len(found) for found in re.findall(r"data:image/[a-z]+;base64,[^\"')]+", html))
    svg = sum(len(found) for found in re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    outside = re.findall(r'(?:src|xlink:href|<link[^>]*href)="(?!data:|#)([^"]+)"', html)
    return {"mib": size / 2**20, "images_mib": images / 2**20, "svg_mib": svg / 2**20, "loaded_from_elsewhere": outside}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=Path)
    parser.add_argument("--keep", type=Path, help="make the study here and leave it")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/report.json")
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    from machine import write

    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        output = options.output.resolve()
        os.chdir(root)
        cells = write_study(root)
        command = [sys.executable, str(Path(__file__).resolve()), "--child", "results"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took = json.loads(done.stdout.splitlines()[-1])
        page = measured(Path("results/report.html").read_text(encoding="utf-8"))
        beside = sum(path.stat().st_size for path in Path("results/figures").iterdir()) / 2**20
        told = {"format": 1, "cells": cells, **page, **took, "figures_mib": beside, "promised_mib": LIMIT_MIB}
        told["within_promise"] = page["mib"] <= LIMIT_MIB and not page["loaded_from_elsewhere"]
        write(output, told)
        print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
