"""`voxprior doctor --forecast`: hours, disk and memory that a study will take here, from a probe of a few minutes.

What is counted are jobs: their number times what one takes. How long the study takes by the clock depends on how many
run at once.

Axes: Z Y X voxels.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from voxprior.errors import Refusal

_CROPS = (4, 64)  # of the val patients: at least, at most (`commands/finetune.py`)


class Row(NamedTuple):
    """One line: `jobs` of a kind, each so many seconds; memory of one, disk of all, bytes."""

    stage: str
    what: str
    jobs: int
    seconds: float
    cpu_seconds: float
    memory_bytes: float
    gpu_bytes: float
    disk_bytes: float

    @property
    def hours(self) -> float:
        """Adds up the jobs."""
        return self.jobs * self.seconds / 3600


class Scans(NamedTuple):
    """The scans of a dataset as intake found them."""

    sizes: list[Any]
    labelled: int


def run(config: Path, output: Path | None = None, folder: Path | None = None) -> None:
    """Probes a study, prints a table, and writes it as JSON.

    Args:
        config: the study's file.
        output: where the JSON goes; None: nowhere.
        folder: where the probe works, and what it made stays; None: a temporary folder, which is removed.

    Raises:
        Refusal: the study is none, its scans have not been looked at, or the probe failed.
    """
    import tempfile
    from contextlib import nullcontext

    from voxprior.whole import write_json

    where = nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="voxprior-probe-")
    with where as place:
        told = forecast(config, Path(place))
    if output is not None:
        write_json(output, told)
    _print(told)


def forecast(config: Path, folder: Path) -> dict[str, Any]:
    """Probes a study in a folder: the content of the JSON file.

    Raises:
        Refusal: as `run`.
    """
    import os
    import time

    import yaml

    from voxprior.commands import probe
    from voxprior.configuration import Study
    from voxprior.strict import validated

    if not config.is_file():
        raise Refusal(f"{config} is missing: name the study's file with --config")
    given = yaml.safe_load(config.read_text(encoding="utf-8"))
    study = validated(Study, given, str(config), "correct the study")
    names = [study.dataset, *study.external, *study.pool]
    scans = {name: _scans(Path(study.results) / "intake" / name / "cases.csv", config) for name in names}
    own = sorted(scans[study.dataset].sizes, key=lambda size: size.voxels)
    middle = own[len(own) // 2]
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    probe.write(folder, given, middle, _channels(study.dataset), Path.cwd())
    probed = probe.run(folder, given, set(study.files), Path.cwd())
    rows = [
        _prepared(study, scans, probed, middle),
        *_pretrained(study, given, probed),
        *_finetuned(study, given, probed),
        *_judged(study, given, scans, probed, middle),
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = next(iter(probed.finetune.values())).device
    return {
        "format": 1,
        "study": study.study,
        "results": study.results,
        "device": device,
        "cores": cores,
        "cases": {name: len(found.sizes) for name, found in scans.items()},
        "probe_s": time.monotonic() - began,
        "rows": [{**row._asdict(), "hours": row.hours} for row in rows],
        "total": _total(rows),
    }


def _total(rows: list[Row]) -> dict[str, float]:
    return {
        "hours": sum(row.hours for row in rows),
        "cpu_hours": sum(row.jobs * row.cpu_seconds for row in rows) / 3600,
        "memory_bytes": max(row.memory_bytes for row in rows),
        "gpu_bytes": max(row.gpu_bytes for row in rows),
        "disk_bytes": sum(row.disk_bytes for row in rows),
    }


# ------------------------------------------------------------------------------------------------- the study
def _scans(path: Path, config: Path) -> Scans:
    """Reads how large a dataset's scans are.

    Raises:
        Refusal: intake has not looked at them.
    """
    import csv

    from voxprior.commands.probe import Size

    if not path.is_file():
        raise Refusal(
            f"{path} is missing, and with it the number and sizes of the scans: run "
            f"`snakemake --cores all --configfile {config} --until intake` first"
        )
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = []
    for row in rows:
        z, y, x = (int(side) for side in row["shape_zyx"].split())
        dz, dy, dx = (float(side) for side in row["spacing_zyx_mm"].split())
        sizes.append(Size((z, y, x), (dz, dy, dx)))
    return Scans(sizes, sum(bool(row["label"]) for row in rows))


def _channels(dataset: str) -> list[str]:
    from voxprior.commands.named import numbers

    return list(numbers("datasets", dataset)[0].get("channels", ["image"]))


def _per_arm(study: Any, given: dict[str, Any], backbone: str, init: str) -> tuple[int, int]:
    """Counts an arm's pretrainings and its fine-tunings."""
    learned = init != "scratch" and init not in study.files
    pretrainings = study.split.folds * len(given["pretrain"].get("seeds", [0])) if learned else 0
    cells = len(study.split.budgets) * len(study.finetune.seeds) * max(pretrainings, study.split.folds)
    return pretrainings, cells


def _arms(study: Any) -> Iterator[tuple[str, str]]:
    return ((backbone, init) for backbone, inits in study.inits.items() for init in inits)


# ------------------------------------------------------------------------------------------------- the stages
def _times(job: Any, seconds: float) -> tuple[float, float]:
    """Tells (seconds, processor seconds) of a job like the probed one that takes so long."""
    busy = job.cpu_seconds / job.seconds if job.cpu_seconds else 1.0
    return seconds, seconds * busy


def _prepared(study: Any, scans: dict[str, Scans], probed: Any, middle: Any) -> Row:
    """Counts a job per dataset, whose cases are as long as they are large."""
    first, case_s = probed.prepare
    sizes = [size for found in scans.values() for size in found.sizes]
    weight = sum(size.voxels for size in sizes) / middle.voxels
    seconds = max(first.seconds - case_s, 0.0) + weight * case_s / len(scans)
    voxels = sum(math.prod(size.prepared(study.prepare.spacing_zyx_mm)) for size in sizes)
    memory = first.memory_bytes
    return Row(
        "prepare", f"{len(sizes)} cases", len(scans), *_times(first, seconds), memory, 0, voxels * probed.cached_bytes
    )


def _pretrained(study: Any, given: dict[str, Any], probed: Any) -> Iterator[Row]:
    """Counts a row per backbone and method."""
    for backbone, init in _arms(study):
        jobs, _ = _per_arm(study, given, backbone, init)
        if not jobs:
            continue
        one = probed.pretrain[backbone, init]
        steps = max(2, math.ceil(study.pretrain.voxels / one.voxels))
        seconds = one.start_s + steps * one.step_s
        disk = jobs * (one.files_bytes + one.state_bytes)
        what = f"{init} on {backbone}, {steps:,} steps"
        yield Row("pretrain", what, jobs, *_times(one.job, seconds), one.job.memory_bytes, float(one.gpu_bytes), disk)


def _like(probed: Any, backbone: str, init: str) -> Any:
    """Finds the fine-tuning that was probed: this one, or from another encoder, or, last, from scratch."""
    of = {key[1]: one for key, one in probed.finetune.items() if key[0] == backbone}
    others = [one for name, one in of.items() if name != "scratch"]
    return of.get(init) or (others or list(of.values()))[0]


def _finetuned(study: Any, given: dict[str, Any], probed: Any) -> Iterator[Row]:
    """Counts a row per backbone and init."""
    tune = study.finetune
    least, most = _CROPS
    crops = min(max(least, 2 * study.split.val), most) / least
    for backbone, init in _arms(study):
        _, jobs = _per_arm(study, given, backbone, init)
        one = _like(probed, backbone, init)
        looks = tune.validations * one.look_s * crops if study.split.val else 0.0
        seconds = one.start_s + tune.steps * one.step_s + looks
        disk = jobs * (one.files_bytes + one.state_bytes)
        what = f"{init} on {backbone}, {tune.steps:,} steps"
        yield Row("finetune", what, jobs, *_times(one.job, seconds), one.job.memory_bytes, float(one.gpu_bytes), disk)


def _windows(study: Any, size: Any) -> int:
    from voxprior.segment.infer import window_starts

    sides = zip(size.prepared(study.prepare.spacing_zyx_mm), study.finetune.crop_vox, strict=True)
    return math.prod(len(window_starts(side, window, study.predict.overlap)) for side, window in sides)


def _judged(study: Any, given: dict[str, Any], scans: dict[str, Scans], probed: Any, middle: Any) -> Iterator[Row]:
    """Counts predictions, a row per backbone, and scores: test cases of a fold and labelled cases of other datasets."""

    def mean(of: Any, name: str) -> float:
        return sum(of(size) for size in scans[name].sizes) / len(scans[name].sizes)

    cases = {study.dataset: study.split.test} | {name: scans[name].labelled for name in study.external}
    windows = sum(count * mean(lambda s: _windows(study, s), name) for name, count in cases.items())
    voxels = sum(count * mean(lambda s: s.voxels, name) for name, count in cases.items())
    all_cells = 0
    for backbone, inits in study.inits.items():
        cells = sum(_per_arm(study, given, backbone, init)[1] for init in inits)
        all_cells += cells
        job, case_s = probed.predict[backbone]
        start = max(0.0, job.seconds - 3 * case_s)  # two test cases and one of the other dataset
        seconds = start + case_s * windows / _windows(study, middle)
        disk = cells * probed.label_bytes * voxels / middle.voxels
        gpu = max(float(one.gpu_bytes) for key, one in probed.finetune.items() if key[0] == backbone)
        what = f"{sum(cases.values())} cases by {backbone}"
        yield Row("predict", what, cells, *_times(job, seconds), job.memory_bytes, gpu, disk)
    job, case_s = probed.score
    seconds = max(0.0, job.seconds - case_s) + case_s * voxels / middle.voxels
    yield Row("score", f"{sum(cases.values())} cases", all_cells, *_times(job, seconds), job.memory_bytes, 0, 0)


# ------------------------------------------------------------------------------------------------- the table
def _print(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    gpu = not told["device"].startswith("cpu")
    table = Table(title=f"{told['study']} on {told['device']}, {told['cores']} cores", title_justify="left")
    for name in ("stage", "what"):
        table.add_column(name)
    for name in ("jobs", "one", "hours", "memory", *(["GPU memory"] if gpu else []), "disk"):
        table.add_column(name, justify="right")
    before = ""
    for row in told["rows"]:
        if before not in ("", row["stage"]):
            table.add_section()
        table.add_row(row["stage"] if row["stage"] != before else "", *_cells(row, gpu))
        before = row["stage"]
    table.add_section()
    total = told["total"]
    table.add_row("all", *_cells({**total, "what": "", "jobs": sum(row["jobs"] for row in told["rows"])}, gpu))
    console.print(table)
    kind = "GPU" if gpu else "one after another"
    console.print(
        f"{total['hours']:,.2f} hours {kind}; about {total['hours'] / (1 if gpu else told['cores']):,.2f} on this "
        f"machine. Not counted: fetching, intake, tables, report, Snakemake itself. The probe took "
        f"{told['probe_s'] / 60:.1f} minutes."
    )


def _cells(row: dict[str, Any], gpu: bool) -> list[str]:
    def gib(name: str) -> str:
        return f"{row[name] / 2**30:,.2f} GiB" if row[name] else ""

    one = f"{row['seconds']:,.1f} s" if "seconds" in row else ""
    memory = [gib("memory_bytes"), *([gib("gpu_bytes")] if gpu else [])]
    return [row["what"], f"{row['jobs']:,}", one, f"{row['hours']:,.3f}", *memory, gib("disk_bytes")]
