"""Publishes made-up studies of many runs to MLflow and tells what it takes: `python benchmarks/track.py`.

Each run has 200 logged steps of four curves, three metrics of three classes and eight test cases, as a fine-tuning
leaves them. Told are processor seconds, the size of the SQLite file, and what publishing again costs when nothing has
changed. `--profile` lists where the time goes.
"""

import argparse
import contextlib
import cProfile
import csv
import io
import json
import logging
import os
import pstats
import random
import resource
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = 200


def make(folder: Path, runs: int) -> dict:
    """Writes the results of `runs` fine-tunings and the resolved study."""
    inits = ["scratch", "mae", "glmae", "byol", "pgl"]
    budgets = [1, 2, 4, 8, 16, 32]
    seeds = list(range(max(1, round(runs / len(inits) / len(budgets)))))
    study = {"study": "many", "dataset": "d", "external": [], "results": "results", "inits": {"vit_tiny": inits}}
    study |= {"split": {"budgets": budgets, "folds": 1}, "finetune": {"seeds": seeds}, "pretrain": {}}
    chance = random.Random(0)
    rows = [
        {"step": n, "progress": n / (STEPS - 1)} | {k: chance.random() for k in ("loss", "dice", "ce", "grad_norm")}
        for n in range(STEPS)
    ]
    journal = "".join(json.dumps(row) + "\n" for row in rows)
    clock = "".join(json.dumps({"step": n, "seconds": n / 2, "voxels_per_second": 1e6}) + "\n" for n in range(STEPS))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["dataset", "case", "patient", "class", "metric", "value", "flag"])
    for case in range(8):
        for name in ("liver", "spleen", "kidney"):
            for metric in ("dice", "nsd", "hd95_mm"):
                table.writerow(["d", case, case, name, metric, round(chance.random(), 6), ""])
    card = {"batch_size": 2, "crop_vox": [96, 96, 96], "steps": STEPS, "precision": "fp32", "foreground": 0.5}
    card |= {"recipe": {"optimiser": "adamw", "lr": 0.001, "weight_decay": 0.05}, "classes": ["liver", "spleen"]}
    made = 0
    for seed in seeds:
        for init in inits:
            for budget in budgets:
                start = "" if init == "scratch" else "pretrain0_"
                place = folder / f"finetune/vit_tiny/{init}/budget{budget}/fold0/{start}seed{seed}"
                place.mkdir(parents=True)
                own = card | {"init": init, "backbone": "vit_tiny", "budget": budget, "fold": 0, "seed": seed}
                told = {"card": own, "card_hash": f"{made:016x}", "steps": STEPS, "seconds": 100.0}
                told |= {"voxels_seen": STEPS * 2 * 96**3, "inputs": {"index_sha256": "a" * 64}}
                for name, content in {"summary.json": json.dumps(told), "load_report.json": "{}"}.items():
                    (place / name).write_text(content)
                (place / "journal.jsonl").write_text(journal)
                (place / "clock.jsonl").write_text(clock)
                (place / "scores.csv").write_text(text.getvalue())
                made += 1
    folder.joinpath("config.json").write_text(json.dumps({"study": study, "datasets": {"d": {}}, "backbones": {}}))
    return {"runs": made}


def publish(folder: Path, profile: bool) -> dict[str, float]:
    """Publishes once; processor seconds and seconds."""
    from voxprior.commands import track

    began, wall = time.process_time(), time.monotonic()
    watcher = cProfile.Profile() if profile else contextlib.nullcontext()
    with watcher:
        store = f"sqlite:///{Path('mlflow.db').resolve()}"  # MLflow keeps connections by name
        track.run(folder / "config.json", folder, folder / "tracked.json", store, False)
    if profile:
        pstats.Stats(watcher).sort_stats("cumulative").print_stats(45)
    tracked = json.loads((folder / "tracked.json").read_text())
    assert "pending" not in tracked, tracked
    return {"cpu_s": round(time.process_time() - began, 2), "s": round(time.monotonic() - wall, 1)}


def measure(runs: int, profile: bool) -> dict:
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        folder = Path("results")
        told = make(folder, runs)
        told["first"] = publish(folder, profile)
        told["again"] = publish(folder, False)
        changed = sorted(folder.rglob("scores.csv"))[:10]
        for path in changed:
            path.write_text(path.read_text().replace("d,0,0,liver,dice,0", "d,0,0,liver,dice,1", 1))
        told["ten_changed"] = publish(folder, False)
        told["database_bytes"] = Path("mlflow.db").stat().st_size
        told["bytes_per_run"] = told["database_bytes"] // told["runs"]
        told["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.chdir("/")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 4500])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/track.json")
    options = parser.parse_args()
    output = options.output.resolve()
    logging.disable(logging.INFO)
    import mlflow

    content = {"format": 1, "date": date.today().isoformat(), "python": sys.version.split()[0]}
    content |= {"mlflow": mlflow.__version__, "logged_steps": STEPS, "studies": []}
    output.parent.mkdir(parents=True, exist_ok=True)
    for runs in options.runs:
        content["studies"].append(measure(runs, options.profile))
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
