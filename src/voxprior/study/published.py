"""What a study shows of its runs in a tracking store: names, tags, parameters, thinned curves, final scores.

Nothing here knows the store (`commands/track.py` does); everything is read from the files of `docs/formats.md`. Curves
count their steps in voxels seen, so that runs of different batch and view size lie on one axis. Torn last lines are
left out: the files of running jobs are read as well.

**Thinning.** A run's progress is cut into equal stretches: 100 for a pretraining, 25 for a fine-tuning, of which a
study has many more. Of each stretch and curve the lowest and the highest value are kept, and always the first and the
last logged one: at most 202 and 52 points a curve, no spike is lost, and what was once published of a running job is
published of the finished one too. Terms of single classes (`dice_3`) stay in the journal.
"""

import csv
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from voxprior import whole
from voxprior.study.cells import pretrain_seeds, read_name, variant_title
from voxprior.study.views import at_labels

RULES = 1  # raised when the rules here change: finished runs are then published anew
STRETCHES = {"pretrain": 100, "finetune": 25}
OF_ONE_CLASS = re.compile(r".*_\d+$")
SIMULATED = "pipeline check: simulated patients are no evidence for any method"
FILES = ("summary.json", "journal.jsonl", "clock.jsonl", "scores.csv", "load_report.json", "pictures.npz")
LARGEST_BYTES = 50 << 20  # of a table that is put beside the report

Point = tuple[str, float, int, float]  # name, value, step, seconds since the run began


class Place(NamedTuple):
    """Where a run's files lie: `name` below the results folder, and the stamp by which a change is noticed."""

    stage: str
    name: str
    folder: Path
    running: bool
    stamp: str


class Run(NamedTuple):
    """One run as the store shows it. `points` only grow while a job runs; the store appends what is new."""

    card_hash: str
    title: str
    note: str
    tags: dict[str, str]
    params: dict[str, str]
    points: list[Point]
    artifacts: list[Path]
    pictures: Path | None
    dataset: tuple[str, str] | None  # name and digest
    seconds: float  # training time so far
    ended: float  # of its newest file, seconds since 1970


def stamp(files: list[Path]) -> str:
    """Names the state of files by their names, sizes and times of change; missing ones count as that."""
    seen: list[Any] = [RULES]
    for path in files:
        if path.is_file():
            seen.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    return sha256(json.dumps(seen).encode()).hexdigest()[:16]


def places(results: Path, work: Path) -> Iterator[Place]:
    """Finds all runs: finished ones by their summary, running ones by the journal below `work`.

    Args:
        results: the study's results folder.
        work: the folder of the same name below the one for working state.
    """
    for stage in STRETCHES:
        finished = {path.parent.relative_to(results).as_posix() for path in (results / stage).rglob("summary.json")}
        begun = {path.parent.relative_to(work).as_posix() for path in (work / stage).rglob("journal.jsonl")}
        for name in sorted(finished | begun):
            folder = (results if name in finished else work) / name
            if read_name(name.removeprefix(f"{stage}/")) is not None:
                files = [folder / file for file in FILES]
                yield Place(stage, name, folder, name not in finished, stamp(files))
    curves_of = results / "tables" / "curves.csv"
    for backbone, init in sorted(_mean_curves(curves_of)):
        yield Place("arm", f"arm/{backbone}/{init}", results, False, stamp([curves_of]))
    if (results / "report.html").is_file():
        yield Place("study", "study", results, False, stamp(_of_the_study(results)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the steps of a journal or a clock; a torn last line, of a job that writes or was killed, is left out."""
    return [row for row in whole.read_lines(path) if isinstance(row.get("step"), int)]


def read(place: Place, config: dict[str, Any], card: dict[str, Any], card_hash: str) -> Run:
    """Reads one run of a stage.

    Args:
        place: of a pretraining or a fine-tuning.
        config: the resolved study.
        card: the content of the run card.
        card_hash: its hash.
    """
    summary = {} if place.running else json.loads((place.folder / "summary.json").read_text(encoding="utf-8"))
    study = config["study"]
    journal, clock = read_lines(place.folder / "journal.jsonl"), read_lines(place.folder / "clock.jsonl")
    seconds = float(summary.get("seconds") or (clock[-1]["seconds"] if clock else 0.0))
    digest = str((summary.get("inputs") or {}).get("index_sha256") or "")
    named = read_name(place.name.removeprefix(f"{place.stage}/"))
    tags = {
        "study": study["study"],
        "stage": place.stage,
        "dataset": study["dataset"],
        "init": named.init if named else card.get("init") or card["method"],  # a variant's card names its method
        **{str(key): str(card[key]) for key in ("backbone", "budget", "fold", "seed") if key in card},
        "card_hash": card_hash,
        "dataset_hash": digest,
        "git_commit": str(summary.get("git_commit") or ""),
    }
    if named is not None and named.pretrain_seed is not None:
        tags["pretrain_seed"] = str(named.pretrain_seed)
    tags |= {"arm": f"{tags['init']} {tags['backbone']}", "replaced": "no"}
    if _simulated(config):
        tags["stamp"] = SIMULATED
    total = int(summary.get("steps") or total_steps(journal))
    points = curves(place.stage, journal, clock, _voxels_per_step(summary, clock, card, total), not place.running)
    if summary:
        last = int(summary.get("voxels_seen") or summary["steps"])
        points += _ends(summary, last, seconds)
        scores = means(place.folder / "scores.csv", study["dataset"])
        points += [(name, value, 0, seconds) for name, value in scores.items()]
    shown = {key: value for key, value in card.items() if key != "init_card"}  # a hash, that would lead comparisons
    files = [place.folder / file for file in ("summary.json", "load_report.json")]
    pictures = place.folder / "pictures.npz"
    newest = [path.stat().st_mtime for path in (place.folder / "clock.jsonl", files[0]) if path.is_file()]
    return Run(
        card_hash, title(tags, summary, study), note(tags, config, summary), tags, flat(shown), points,
        [path for path in files if path.is_file()], pictures if pictures.is_file() else None,
        (study["dataset"], digest[:16]) if digest else None, seconds, min(newest, default=0.0),
    )  # fmt: skip


def read_study(place: Place, config: dict[str, Any]) -> Run:
    """Reads what the tables and the report say, of the study as a whole or of one of its arms.

    An arm's curves have label budgets for steps.
    """
    study, results = config["study"], place.folder
    tags = {"study": study["study"], "stage": place.stage, "dataset": study["dataset"], "replaced": "no"}
    if _simulated(config):
        tags["stamp"] = SIMULATED
    if place.stage == "arm":
        _, backbone, init = place.name.split("/")
        tags |= {"backbone": backbone, "init": init, "arm": f"{init} {backbone}"}
        told = _mean_curves(results / "tables" / "curves.csv")[backbone, init]
        points = [(f"by labels/{metric}", value, budget, 0.0) for metric, budget, value in told]
        points += [(f"{at_labels(budget)}/{metric}", value, 0, 0.0) for metric, budget, value in told]
        text = "Means over test cases and all seeds. **The step is the number of labelled cases.**"
        made = (results / "tables" / "curves.csv").stat().st_mtime
        params = {"backbone": backbone, "init": init}
        return Run("", f"{init} {backbone}, by labels", text, tags, params, points, [], None, None, 0.0, made)
    wanted = ("split", "pretrain", "finetune", "prepare", "inits", "classes")
    text = "The study as a whole: **Artifacts** holds the report (`report.html`), tables, figures and the model card."
    params = flat({key: study[key] for key in wanted if key in study})
    made, files = (results / "report.html").stat().st_mtime, _of_the_study(results)
    return Run("", f"REPORT {study['study']}", text, tags, params, [], files, None, None, 0.0, made)


def _mean_curves(path: Path) -> dict[tuple[str, str], list[tuple[str, int, float]]]:
    """Reads mean scores of the test cohort from `curves.csv`: (backbone, init) -> (metric, budget, mean), by budget."""
    found: dict[tuple[str, str], list[tuple[str, int, float]]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["cohort"] == "test" and row["class"] == "mean" and row["mean"]:
                    point = (row["metric"], int(row["budget"]), round(float(row["mean"]), 4))
                    found.setdefault((row["backbone"], row["init"]), []).append(point)
    return {arm: sorted(points) for arm, points in found.items()}


def _of_the_study(results: Path) -> list[Path]:
    tables = [path for path in sorted((results / "tables").glob("*")) if path.stat().st_size <= LARGEST_BYTES]
    figures = sorted((results / "figures").glob("*"))
    return [path for path in [results / "report.html", results / "model_card.md", *tables, *figures] if path.is_file()]


def _simulated(config: dict[str, Any]) -> bool:
    dataset = (config.get("datasets") or {}).get(config["study"]["dataset"]) or {}
    return dataset.get("simulate") is not None


def title(tags: dict[str, str], summary: dict[str, Any], study: dict[str, Any]) -> str:
    """Names a run so that the narrow column of a list still tells it from its neighbours."""
    before = f" p{tags['pretrain_seed']}" if len(pretrain_seeds(study)) > 1 and "pretrain_seed" in tags else ""
    if tags["stage"] == "pretrain":
        fold = f" fold {tags['fold']}" if _several_folds(study) else ""
        name = variant_title(study, tags["init"]) or summary.get("title") or tags["init"]
        return f"pretrain {name}{before} {tags['backbone']}{fold}"
    fold = f" f{tags['fold']}" if _several_folds(study) else ""
    labels = "label" if tags["budget"] == "1" else "labels"
    return f"{tags['init']} {tags['budget']} {labels}{before} s{tags['seed']}{fold} {tags['backbone']}"


def _several_folds(study: dict[str, Any]) -> bool:
    return int((study.get("split") or {}).get("folds", 1)) > 1


def note(tags: dict[str, str], config: dict[str, Any], summary: dict[str, Any]) -> str:
    """Says in words what a run is."""
    backbone = ((config.get("backbones") or {}).get(tags["backbone"]) or {}).get("title") or tags["backbone"]
    told = f"**{SIMULATED[0].upper()}{SIMULATED[1:]}.**\n\n" if "stamp" in tags else ""
    if tags["stage"] == "pretrain":
        of = summary.get("title") or tags["init"]
        variant = variant_title(config["study"], tags["init"])
        name = f"{variant}, a variant of {of}," if variant else of
        return f"{told}{name} pretrains the encoder of {backbone} on scans of `{tags['dataset']}`, without labels."
    cases = f"{tags['budget']} labelled case{'s' if tags['budget'] != '1' else ''}"
    begins = "random weights" if tags["init"] == "scratch" else f"the encoder that `{tags['init']}` pretrained"
    return (
        f"{told}{backbone} learns to segment `{tags['dataset']}` from {cases}, beginning with {begins}. `test/...` are "
        "means over the test cases, each scored in its scan's own grid; `train/...` are losses."
    )


def total_steps(journal: list[dict[str, Any]]) -> int:
    """Reads a run's length from step and progress (= step / (total - 1)) of its last line; 0 where none tells."""
    last = journal[-1] if journal else {}
    return round(last["step"] / last["progress"]) + 1 if last.get("progress") else 0


def _voxels_per_step(summary: dict[str, Any], clock: list[dict[str, Any]], card: dict[str, Any], total: int) -> float:
    """Finds how many voxels a step adds: told by the summary or by the clock, else from the card (older runs)."""
    if summary.get("voxels_seen"):
        return float(summary["voxels_seen"]) / int(summary["steps"])
    if clock and clock[-1].get("voxels_seen"):
        return float(clock[-1]["voxels_seen"]) / (int(clock[-1]["step"]) + 1)
    if "crop_vox" in card:
        z, y, x = card["crop_vox"]
        return float(card["batch_size"] * z * y * x)
    budget = (card.get("pretrain") or {}).get("voxels")
    return float(budget) / total if budget and total else 1.0


def curves(
    stage: str, journal: list[dict[str, Any]], clock: list[dict[str, Any]], voxels: float, whole: bool
) -> list[Point]:
    """Thins the journal and the clock to points, stretch by stretch; while the job runs, of the finished stretches.

    Args:
        stage: sets the number of stretches.
        journal: logged steps, each with its progress.
        clock: the same steps' seconds and speed.
        voxels: seen in one step.
        whole: the run is finished: its last stretch too.
    """
    times = {row["step"]: row for row in clock}
    number = STRETCHES[stage]
    stretches: dict[int, list[dict[str, Any]]] = {}
    for row in journal:
        stretches.setdefault(int(row.get("progress", 0.0) * number), []).append(row | times.get(row["step"], {}))
    open_one = None if whole or not stretches else max(stretches)
    points: list[Point] = []
    for index in sorted(stretches):
        if index == open_one:
            continue
        rows = stretches[index]
        for name in dict.fromkeys(name for row in rows for name in row):
            if name in ("step", "progress", "seconds", "voxels_seen") or OF_ONE_CLASS.fullmatch(name):
                continue
            some = [row for row in rows if isinstance(row.get(name), int | float)]
            if not some:
                continue
            kept = {id(row): row for row in (min(some, key=lambda r: r[name]), max(some, key=lambda r: r[name]))}
            if rows[0] is stretches[min(stretches)][0]:
                kept[id(some[0])] = some[0]
            if whole and index == max(stretches):
                kept[id(some[-1])] = some[-1]
            for row in sorted(kept.values(), key=lambda r: int(r["step"])):
                seen = round((row["step"] + 1) * voxels)
                points.append((curve_name(stage, name), float(row[name]), seen, float(row.get("seconds", 0.0))))
    return points


def curve_name(stage: str, name: str) -> str:
    """Names a curve. Of a fine-tuning, `dice` is a loss, 1 - soft Dice, and must not be taken for a score."""
    if name in ("voxels_per_second", "mfu"):
        return f"speed/{name}"
    return f"train/{name}_loss" if stage == "finetune" and name in ("dice", "ce", "bce") else f"train/{name}"


def _ends(summary: dict[str, Any], last: int, seconds: float) -> list[Point]:
    """Reads what stands at the end of a run: its cost, and what a pretraining measured and how far it moved."""
    flops = float(summary.get("flops_per_step") or 0) * int(summary["steps"])
    told = {"cost/hours": seconds / 3600, "cost/petaflops": flops / 1e15}
    told["cost/peak_memory_gib"] = float(summary.get("peak_memory_bytes") or 0) / 2**30
    told["cost/voxels_seen"] = float(summary.get("voxels_seen") or 0)
    points = [(name, round(value, 4), 0, seconds) for name, value in told.items() if value]
    for when, values in (summary.get("measured") or {}).items():
        step = 0 if when == "start" else last
        points += [(f"measured/{name}", float(value), step, seconds) for name, value in values.items()]
    return points + [(f"moved/{n}", float(v), last, seconds) for n, v in (summary.get("moved") or {}).items()]


def means(path: Path, dataset: str) -> dict[str, float]:
    """Averages a cell's scores: over the classes of a case, then over cases, as the tables do; and per class.

    Test cases give `test/dice`, `test classes/dice liver`; those of another dataset `external <name>/dice`.
    """
    values: dict[str, dict[str, list[float]]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["value"]:
                    cohort = "test" if row["dataset"] == dataset else f"external {row['dataset']}"
                    of_class = f"{cohort} classes/{row['metric']} {row['class']}"
                    for name in (f"{cohort}/{row['metric']}", of_class):
                        values.setdefault(name, {}).setdefault(row["case"], []).append(float(row["value"]))
    return {name: round(fmean(map(fmean, cases.values())), 4) for name, cases in sorted(values.items())}


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Flattens nested numbers to `a.b.c: text`, as parameters can be searched."""
    if isinstance(tree, dict):
        return {key: text for name, value in tree.items() for key, text in flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): str(tree)[:6000]}
