"""What a running study is doing, read from its JSONL, its logs and the presence and age of its files; nothing more.

Nothing is written and no process is asked, so that it works from any machine that sees the folder, also for jobs on a
cluster. Imports the standard library alone: it is read every other second beside jobs that need the machine.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from voxprior.study.cells import arms_of, cell_name, cells_of, pretrained, pretraining_name, pretrainings_of
from voxprior.whole import parse_lines

TAIL_BYTES = 8192
QUIET_S = 120.0  # a training that has logged nothing for this long, or for 20 times its usual pause, is marked
QUIET_LOG_S = 900.0  # other jobs tell less
PROGRESS = re.compile(r"(?P<done>\d+)/(?P<total>\d+), (?P<rate>[\d.e+-]+)/s")
HARMLESS = ("warning:", "goes on at step", "is not used", "not compiled", "are replayed as", "is given back")
DIED = re.compile(r"Traceback \(most recent call last\)|^(Killed|Segmentation fault|slurmstepd: error)", re.MULTILINE)


class Job(NamedTuple):
    """A job that has begun and has not written its output.

    `state`: running; starting (nothing logged yet); silent (nothing for suspiciously long); stopped (by a signal: the
    same command goes on); failed.
    """

    stage: str
    name: str
    state: str
    step: int | None = None  # steps, or cases, that are done
    total: int | None = None
    per_second: float | None = None
    voxels_per_second: float | None = None
    loss: float | None = None
    quiet_s: float = 0.0
    log: Path | None = None
    said: tuple[str, ...] = ()  # the last lines of its log

    @property
    def left_s(self) -> float | None:
        """Seconds to its end at its present speed."""
        if self.step is None or self.total is None or not self.per_second:
            return None
        return max(self.total - self.step, 0) / self.per_second


class Look(NamedTuple):
    """One look at a study: jobs of each stage (done, all), and the jobs that have begun and not ended."""

    stages: dict[str, tuple[int, int]]
    jobs: list[Job]

    @property
    def finished(self) -> bool:
        """Tells whether nothing is left to do."""
        return all(done == total for done, total in self.stages.values())


class Step(NamedTuple):
    """A job of the workflow: where its output, log and working state lie."""

    stage: str
    name: str
    output: Path
    log: Path
    work: Path | None = None
    cases: Path | None = None  # a folder with one file per finished case


def working_folder(study: dict[str, Any], work: Path) -> Path:
    """Names where a study's jobs keep their working state: its results folder's name below `work`."""
    return work / str(study.get("results", "results")).lstrip("/")


def home(study: dict[str, Any], results: Path) -> Path:
    """Finds the folder in which Snakemake runs: the results folder without the name that the study gives it."""
    named = Path(study.get("results", "results"))
    full = results.resolve()
    if named.is_absolute() or full.parts[-len(named.parts) :] != named.parts:
        return Path.cwd()
    return full.parents[len(named.parts) - 1]


def steps(config: dict[str, Any], results: Path, work: Path) -> Iterator[Step]:
    """Lists every job of a study, in the order of the workflow.

    Args:
        config: the resolved study.
        results: its results folder.
        work: its own folder of working state.
    """
    study, logs = config["study"], results / "logs"
    data = home(study, results) / "data"
    datasets = [study["dataset"], *study.get("external", []), *study.get("pool", [])]
    for dataset in datasets:
        yield Step("fetch", dataset, data / "raw" / dataset / "manifest.json", logs / f"fetch/{dataset}.log")
    for dataset in datasets:
        if config["datasets"][dataset].get("simulate"):
            place = data / "simulated" / dataset
            yield Step("simulate", dataset, place / "manifest.json", logs / f"simulate/{dataset}.log")
    for stage, file in (("intake", "cases.csv"), ("prepare", "index.json")):
        folder = "prepared" if stage == "prepare" else stage
        for dataset in datasets:
            yield Step(stage, dataset, results / folder / dataset / file, logs / f"{stage}/{dataset}.log")
    yield Step("split", "", results / "splits.json", logs / "split.log")
    for run in [run for arm in pretrained(study) for run in pretrainings_of(study, *arm)]:
        name = pretraining_name(run)
        place = f"pretrain/{name}"
        yield Step("pretrain", name, results / place / "summary.json", logs / f"{place}.log", work / place)
    cells = [cell_name(cell) for arm in arms_of(study) for cell in cells_of(study, *arm)]
    for stage, file in (("finetune", "summary.json"), ("predict", "predictions.json"), ("score", "scores.csv")):
        for name in cells:
            cell = results / "finetune" / name
            own = work / "finetune" / name if stage == "finetune" else None
            cases = cell / "predictions" if stage == "predict" else None
            yield Step(stage, name, cell / file, logs / f"{stage}/{name}.log", own, cases)
    yield Step("compare", "", results / "tables" / "curves.csv", logs / "compare.log")
    yield Step("report", "", results / "report.html", logs / "report.log")


def look(every: list[Step], now: float | None = None) -> Look:
    """Looks once at all jobs of a study.

    Args:
        every: what `steps` lists.
        now: seconds since 1970.
    """
    now = time.time() if now is None else now
    stages: dict[str, tuple[int, int]] = {}
    jobs = []
    scored: set[str] = set()
    # Backwards: a scored cell has been trained and predicted, and need not be asked about thrice.
    for step in reversed(every):
        known = step.name in scored and step.stage in ("finetune", "predict")
        done = known or step.output.exists()
        if done and step.stage == "score":
            scored.add(step.name)
        before = stages.get(step.stage, (0, 0))
        stages[step.stage] = (before[0] + done, before[1] + 1)
        if not done and (job := job_of(step, now)) is not None:
            jobs.append(job)
    return Look(dict(reversed(stages.items())), jobs[::-1])


def job_of(step: Step, now: float) -> Job | None:
    """Reads how far a job without output is; None where it has not begun."""
    journal = step.work / "journal.jsonl" if step.work else None
    logged, wrote = _changed(step.log), _changed(journal) if journal else None
    if logged is None and wrote is None:
        return None
    said = tuple(line for line in _tail(step.log).replace("\r", "\n").splitlines() if line.strip())[-4:]
    job = Job(step.stage, step.name, "running", log=step.log, said=said)
    # A log that is older than the journal tells of an earlier try.
    if logged is not None and logged >= (wrote or 0.0) - 5 and (state := _ending(said, _tail(step.log))) is not None:
        reached = _training(job, journal, 0.0, 0.0) if journal is not None and wrote is not None else job
        return reached._replace(state=state, quiet_s=now - logged)
    if journal is not None and wrote is not None and (logged is None or wrote >= logged - QUIET_S):
        return _training(job, journal, now - max(wrote, logged or 0.0), now - wrote)
    quiet = now - (logged or 0.0)
    job = job._replace(quiet_s=quiet, state="silent" if quiet > QUIET_LOG_S else "running" if said else "starting")
    told = list(PROGRESS.finditer(said[-1])) if said else []
    if told:
        done, total, rate = told[-1].group("done", "total", "rate")
        job = job._replace(step=int(done), total=int(total), per_second=float(rate))
    elif step.cases is not None and step.cases.is_dir():
        job = job._replace(step=sum(1 for path in step.cases.iterdir() if path.suffix == ".json"))
    return job


def _training(job: Job, journal: Path, quiet_s: float, since_s: float) -> Job:
    """Reads step, speed and loss of a training; silent beyond 20 of its usual pauses between two lines."""
    rows, clock = read_tail(journal), read_tail(journal.with_name("clock.jsonl"))
    if not rows:
        return job._replace(state="silent" if quiet_s > QUIET_LOG_S else "starting", quiet_s=quiet_s)
    last = rows[-1]
    total = round(last["step"] / last["progress"]) + 1 if last.get("progress") else None
    rate = pause = speed = None
    if len(clock) > 1 and clock[-1]["seconds"] > clock[0]["seconds"]:
        took = clock[-1]["seconds"] - clock[0]["seconds"]
        rate, pause = (clock[-1]["step"] - clock[0]["step"]) / took, took / (len(clock) - 1)
        speed = clock[-1].get("voxels_per_second")
    state = "silent" if quiet_s > max(QUIET_S, 20 * (pause or 0.0)) else "running"
    done, loss = last["step"] + 1, last.get("loss")
    return job._replace(
        state=state, step=done, total=total, per_second=rate, voxels_per_second=speed, loss=loss, quiet_s=since_s
    )


def _ending(said: tuple[str, ...], tail: str) -> str | None:
    """Tells from a log whether its job has failed or was stopped; None where it says neither."""
    last = said[-1] if said else ""
    if last.startswith("voxprior: "):
        if "was stopped by" in last:
            return "stopped"
        return None if any(words in last for words in HARMLESS) else "failed"
    return "failed" if DIED.search(tail) else None


def read_tail(path: Path) -> list[dict[str, Any]]:
    """Reads the last lines of a JSONL file; torn ones, at the beginning of the piece or at its end, are left out."""
    return [row for row in parse_lines(_tail(path)) if isinstance(row.get("step"), int)]


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
