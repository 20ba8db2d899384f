"""`voxprior track`: publishes a study's runs to MLflow.

The journals (JSONL) are the truth; the store is a view of them that can be made again at any time. Publishing is
idempotent: a run is found again by its card's hash and renewed only when its files have changed. One experiment per
study, flat runs with tags, because the UI draws no charts for nested ones. A dead, locked or absent store costs a
warning and nothing else.
"""

import json
import os
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

TAG = "voxprior.run"
CONTENT = "voxprior.content"
BATCH = 1000  # the largest number of metrics that MLflow takes in one call


def run(config: Path, results: Path, output: Path, store: str, create: bool) -> None:
    """Creates the store, and unless `create` is all that was asked for, publishes every finished run.

    Args:
        config: the resolved study (JSON).
        results: the study's results folder.
        output: JSON that lists the MLflow run id of each run, or why there is none.
        store: MLflow tracking URI.
        create: only create the store. On a fresh SQLite file racing writers kill one another.
    """
    from voxprior.whole import write_json

    study = json.loads(config.read_text(encoding="utf-8"))["study"]
    written: dict[str, Any] = {"format": 1, "store": store, "runs": {}}
    # Whatever the store raises (SQL, HTTP, disk, a missing server) must not stop or change a study.
    try:
        client, experiment = open_store(store, study["study"])
        if not create:
            for card, files in finished_runs(results, study):
                written["runs"][files["name"]] = publish(client, experiment, card, files)
    except Exception as error:
        written["pending"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(
            f"voxprior: warning: MLflow store {store} could not be used ({written['pending']}): the results are "
            "complete without it; run `make track` to publish them later",
            file=sys.stderr,
        )
    write_json(output, written, sort_keys=True)


def open_store(store: str, study: str) -> tuple[Any, str]:
    """Connects to the store, creating the database and the study's experiment where they are missing."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    known = client.get_experiment_by_name(study)
    if known is not None:
        return client, known.experiment_id
    # Beside the database; a server keeps its own place.
    place = Path("mlartifacts", study).resolve().as_uri() if store.startswith("sqlite") else None
    return client, client.create_experiment(study, artifact_location=place)


def finished_runs(results: Path, study: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields (tags and parameters, files) of every finished job, and of the study itself where it has a report."""
    for stage in ("pretrain", "finetune"):
        for summary_file in sorted((results / stage).rglob("summary.json")):
            summary = json.loads(summary_file.read_text(encoding="utf-8"))
            folder = summary_file.parent
            card = summary["card"]
            tags = {
                "study": study["study"],
                "stage": stage,
                "dataset": study["dataset"],
                "init": card.get("init") or card["method"],
                **{key: str(card[key]) for key in ("backbone", "budget", "fold", "seed") if key in card},
                "card_hash": summary["card_hash"],
                "dataset_hash": summary["inputs"]["index_sha256"],
                "git_commit": str(summary.get("git_commit")),
            }
            tags.setdefault("seed", str(card.get("pretrain", {}).get("seed", "")))
            files = {
                "name": str(folder.relative_to(results)),
                "title": title(stage, tags),
                "key": f"{stage}:{summary['card_hash']}:{folder.relative_to(results)}",
                "metrics": [*journal_metrics(folder), *final_metrics(folder, summary), *change_metrics(summary)],
                "artifacts": [path for path in (summary_file, folder / "load_report.json") if path.exists()],
                "pictures": folder / "pictures.npz",
            }
            yield {"tags": tags, "params": flat(card)}, files
    report = results / "report.html"
    if report.exists():
        tags = {"study": study["study"], "stage": "report", "dataset": study["dataset"]}
        tables = sorted((results / "tables").glob("*"))
        files = {
            "name": "report",
            "title": "report",
            "key": f"report:{study['study']}",
            "metrics": [],
            "artifacts": [report, *tables],
        }
        yield {"tags": tags, "params": flat({key: study[key] for key in ("split", "pretrain", "finetune")})}, files


def title(stage: str, tags: dict[str, str]) -> str:
    """Names a run so that the UI's narrow column still tells it from its neighbours."""
    if stage == "pretrain":
        return f"{tags['init']} pretraining, {tags['backbone']}"
    return f"{tags['init']} {tags['budget']} labels s{tags['seed']}, {tags['backbone']}"


def journal_metrics(folder: Path) -> list[tuple[str, float, int]]:
    """Reads (name, value, step) of everything numeric in the journal and in the clock."""
    points = []
    for name in ("journal.jsonl", "clock.jsonl"):
        path = folder / name
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            row = json.loads(line)
            step = int(row.pop("step"))
            points += [(key, float(value), step) for key, value in row.items() if isinstance(value, int | float)]
    return points


def change_metrics(summary: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Reads what a pretraining measured before its first and after its last step, and how far its networks moved."""
    last = int(summary["steps"])
    measured = summary.get("measured") or {}
    points = [
        (f"measured/{name}", float(value), step)
        for stage, step in (("start", 0), ("end", last))
        for name, value in measured.get(stage, {}).items()
    ]
    return points + [(f"moved/{name}", float(value), last) for name, value in (summary.get("moved") or {}).items()]


def final_metrics(folder: Path, summary: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Reads what stands at the end of a run: seconds, memory, and the mean score per class over the test cases."""
    import csv

    last = int(summary["steps"])
    names = [name for name in ("seconds", "peak_memory_bytes", "voxels_seen") if name in summary]
    points: list[tuple[str, float, int]] = [(name, float(summary[name]), last) for name in names]
    scores = folder / "scores.csv"
    if scores.exists():
        gathered: dict[str, list[float]] = {}
        with scores.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["value"]:
                    name = f"{row['dataset']}/{row['metric']}/{row['class']}"
                    gathered.setdefault(name, []).append(float(row["value"]))
        points += [(name, sum(values) / len(values), last) for name, values in sorted(gathered.items())]
    return points


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Flattens nested numbers to `a.b.c: text` as MLflow's parameters want it."""
    if isinstance(tree, dict):
        pairs = [flat(value, f"{prefix}{key}.").items() for key, value in tree.items()]
        return {key: value for some in pairs for key, value in some}
    return {prefix.rstrip("."): str(tree)[:6000]}


def publish(client: Any, experiment: str, card: dict[str, Any], files: dict[str, Any]) -> str:
    """Publishes one run unless the store already holds the same content; returns its MLflow run id."""
    from mlflow.entities import Metric, Param, RunTag

    digest = sha256(json.dumps([card, files["metrics"]], sort_keys=True).encode())
    pictures = [path for path in [files.get("pictures")] if path is not None and path.exists()]
    for path in [*files["artifacts"], *pictures]:
        digest.update(path.read_bytes())
    content = digest.hexdigest()
    quoted = files["key"].replace("'", "")
    for found in client.search_runs([experiment], f"tags.`{TAG}` = '{quoted}'"):
        if found.data.tags.get(CONTENT) == content and found.info.status == "FINISHED":
            return str(found.info.run_id)
        client.delete_run(found.info.run_id)
    run_id = client.create_run(experiment, run_name=files["title"], tags={TAG: quoted}).info.run_id
    tags = [RunTag(key, value) for key, value in card["tags"].items()]
    client.log_batch(run_id, tags=tags, params=[Param(key, value) for key, value in card["params"].items()][:100])
    stamp = client.get_run(run_id).info.start_time
    metrics = [Metric(name, value, stamp, step) for name, value, step in files["metrics"]]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    for path in files["artifacts"]:
        client.log_artifact(run_id, str(path))
    for path in pictures:
        if (figure := _sheet(path, files["title"])) is not None:
            client.log_figure(run_id, figure, "pictures.png")
    # Last: a run that was cut off half-way lacks the tag and is made anew.
    client.set_tag(run_id, CONTENT, content)
    client.set_terminated(run_id)
    return str(run_id)


def _sheet(path: Path, title: str) -> Any:
    """Draws a pretraining's pictures as one figure; None where its method shows none."""
    from voxprior.study import gather, pictures

    return pictures.sheet(gather.read_pictures(path) or {}, title)
