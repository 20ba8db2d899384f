"""Runs a study in small, to time it: its own networks and methods through its own workflow, on made-up scans.

The scans are phantoms of the size of the study's median case, so nothing depends on what was computed before, and what
is measured is what will run: the same commands, started in the same way, with the same crops, batches and precision.

Axes: Z Y X voxels.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from voxprior.errors import Refusal

_STEPS = 16  # of a probed training; two of them are counted, and slower
_CASES = 4  # two to test on, one to look at, one to train on; one more to tell starting from working
_COARSE = 48  # longest side of the phantom that a large one is enlarged from


class Size(NamedTuple):
    """A scan as it comes: voxels and their size."""

    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]

    @property
    def voxels(self) -> int:
        """Counts the voxels."""
        z, y, x = self.shape_zyx
        return z * y * x

    def prepared(self, spacing_zyx_mm: tuple[float, float, float]) -> tuple[int, int, int]:
        """Tells how many voxels a side has when it is prepared."""
        sides = zip(self.shape_zyx, self.spacing_zyx_mm, spacing_zyx_mm, strict=True)
        z, y, x = (max(1, round(side * old / new)) for side, old, new in sides)
        return z, y, x


class Job(NamedTuple):
    """What one job took: time and processor time, memory of its processes, all by Snakemake's benchmark."""

    seconds: float
    cpu_seconds: float
    memory_bytes: float


class Training(NamedTuple):
    """A probed training. `look_s`: one look at the val patients; `voxels`: of a step; bytes on disk and on the GPU."""

    job: Job
    steps: int
    step_s: float
    look_s: float
    voxels: int
    files_bytes: int
    state_bytes: int
    gpu_bytes: int
    device: str

    @property
    def start_s(self) -> float:
        """Tells what a job takes besides its steps: imports, first and counted steps, files."""
        return max(0.0, self.job.seconds - self.steps * self.step_s - self.look_s)


class Probe(NamedTuple):
    """All that was measured. Keys are (backbone, init); `case_s`: seconds of one more case."""

    pretrain: dict[tuple[str, str], Training]
    finetune: dict[tuple[str, str], Training]
    predict: dict[str, tuple[Job, float]]
    score: tuple[Job, float]
    prepare: tuple[Job, float]
    cached_bytes: float
    label_bytes: float


# ------------------------------------------------------------------------------------------------- the small study
def write(folder: Path, study: dict[str, Any], size: Size, channels: list[str], given: Path) -> None:
    """Writes scans, datasets and the study itself into a folder.

    Args:
        folder: an empty one.
        study: the real study, as its file has it.
        size: of the scans.
        channels: of the scans.
        given: the folder in which the real study runs, whose `config/` may have files of its own.
    """
    import yaml

    if (given / "config").is_dir():
        left_out = shutil.ignore_patterns("config.yaml")
        shutil.copytree(given / "config", folder / "config", ignore=left_out, dirs_exist_ok=True)
    for name, cases, start in (("probed", _CASES, 0), ("more", 1, _CASES)):
        for number in range(start, start + cases):
            _write_case(folder / "scans" / name, f"case_{number}", size, channels, len(study["classes"]), number)
        content = {
            "title": "Phantoms", "modality": "other", "licence": "CC0-1.0", "channels": channels,
            "source": {"kind": "folder", "path": f"scans/{name}"},
            "layout": {"kind": "folder", "images": "{channel}/{case}.nii.gz", "labels": "labels/{case}.nii.gz"},
            "classes": {word: [place + 1] for place, word in enumerate(study["classes"])},
        }  # fmt: skip
        path = folder / "config" / "datasets" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")


def _write_case(folder: Path, name: str, size: Size, channels: list[str], classes: int, seed: int) -> None:
    """Writes a phantom and its labels, enlarged from a coarse one: a whole body of a CT would not fit into memory."""
    import numpy as np

    from voxprior.data import phantoms, volume

    shrink = max(1.0, max(size.shape_zyx) / _COARSE)
    z, y, x = (max(8, round(side / shrink)) for side in size.shape_zyx)
    coarse, coarse_labels = phantoms.make(seed, (z, y, x), classes)
    places = np.ix_(*[np.arange(n) * small // n for n, small in zip(size.shape_zyx, coarse.shape, strict=True)])
    grid = phantoms.grid_of(size.shape_zyx, size.spacing_zyx_mm)
    chance = np.random.default_rng(seed)
    for channel in channels:
        scan = coarse[places]
        for plane in scan:  # in place: noise in one piece would be four times the scan
            plane += chance.integers(-30, 31, plane.shape, dtype=np.int16)
        volume.write_image(volume.from_array(scan, grid), folder / channel / f"{name}.nii.gz")
    volume.write_image(volume.from_array(coarse_labels[places], grid), folder / "labels" / f"{name}.nii.gz")


def _small(study: dict[str, Any], inits: dict[str, list[str]], given: Path) -> dict[str, Any]:
    """Shortens a study to one cell of each of some inits."""
    crop, batch = study["finetune"]["crop_vox"], study["pretrain"].get("batch_size", 2)
    seen = _STEPS * batch * crop[0] * crop[1] * crop[2]
    small = {
        key: value
        for key, value in study.items()
        if key in ("classes", "prepare", "preset", "methods", "recipes", "predict", "score", "title")
    }
    small |= {"study": "probe", "results": "results", "dataset": "probed", "external": ["more"], "inits": inits}
    small["split"] = {"test": 2, "val": 1, "budgets": [1]}
    some = {name for on in inits.values() for name in on}
    files = {name: file for name, file in (study.get("files") or {}).items() if name in some}
    changed = study.get("methods") or {}
    small["methods"] = {name: own for name, own in changed.items() if name in some or "method" not in (own or {})}
    small["files"] = {name: {**file, "path": str((given / file["path"]).resolve())} for name, file in files.items()}
    small["pretrain"] = {**study["pretrain"], "voxels": min(seen, study["pretrain"]["voxels"])}
    steps = min(_STEPS, study["finetune"]["steps"])
    small["finetune"] = {**study["finetune"], "steps": steps, "seeds": [0], "patience": 0}
    small["finetune"]["validations"] = min(1, study["finetune"].get("validations", 1))
    if "seeds" in small["pretrain"]:
        small["pretrain"]["seeds"] = [0]
    return small


def _snakemake(folder: Path, config: dict[str, Any], *wanted: str) -> None:
    """Runs part of the workflow, one job at a time.

    Raises:
        Refusal: a job failed; the sentence says where its output lies.
    """
    import yaml

    from voxprior.commands.named import PROJECT

    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "-s", str(PROJECT / "Snakefile"), "--directory", str(folder)]
    done = subprocess.run([*command, "--cores", "1", *wanted], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "voxprior:" in line or "Error" in line]
        words = said[0].strip() if said else "Snakemake ended with " + str(done.returncode)
        raise Refusal(f"the probe stopped at {wanted[-1]}: {words}: mend the study, `snakemake -n` shows its plan")


def run(folder: Path, study: dict[str, Any], files: set[str], given: Path) -> Probe:
    """Runs the small study in a folder that `write` filled, and reads what it took.

    Args:
        folder: where it runs.
        study: the real study, as its file has it.
        files: its inits that are files of weights.
        given: the folder in which the real study runs.

    Raises:
        Refusal: a job failed.
    """
    learned = {b: [init for init in on if init != "scratch" and init not in files] for b, on in study["inits"].items()}
    _tell("pretraining each method for some steps")
    if any(learned.values()):
        _snakemake(folder, _small(study, {b: on for b, on in learned.items() if on}, given), "--until", "pretrain")
    # A fine-tuning costs the same from any encoder; from scratch it has a recipe of its own.
    chosen = {b: _few(on, learned[b]) for b, on in study["inits"].items()}
    _tell("fine-tuning each backbone for some steps, segmenting two cases")
    small = _small(study, chosen, given)
    _snakemake(folder, small, "--until", "predict")
    _snakemake(folder, small, "results/cards/score.json")
    _tell("scoring")
    return _read(folder, folder / "results")


def _few(inits: list[str], learned: list[str]) -> list[str]:
    return [*(["scratch"] if "scratch" in inits else []), *learned[:1]] or inits[:1]


def _tell(what: str) -> None:
    print(f"probe: {what}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- what it took
def read_job(path: Path) -> Job:
    """Reads a benchmark of Snakemake; what it did not get to see of a very short job is 0."""
    with open(path, encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file, delimiter="\t"))

    def number(name: str) -> float:
        return float(row[name]) if row.get(name) not in (None, "", "NA", "-") else 0.0

    return Job(number("s"), number("cpu_time"), number("max_rss") * 2**20)


def _read(folder: Path, results: Path) -> Probe:
    found: dict[str, dict[tuple[str, str], Training]] = {"pretrain": {}, "finetune": {}}
    predict = {}
    for path in sorted(results.glob("*/**/summary.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        card, place = told["card"], path.parent.relative_to(results)
        key = (card["backbone"], place.parts[2])  # the init's name: of a variant, not its method's
        found[told["stage"]][key] = _training(path.parent, told, folder / "work" / results.name / place)
        if told["stage"] == "finetune" and (made := path.parent / "predictions.json").exists():
            *_, last = json.loads(made.read_text(encoding="utf-8"))["cases"]
            job = read_job(results / "benchmarks" / "predict" / place.relative_to("finetune").with_suffix(".tsv"))
            predict[card["backbone"]] = (job, last["seconds"])
    return Probe(
        pretrain=found["pretrain"],
        finetune=found["finetune"],
        predict=predict,
        score=_score(folder, results),
        prepare=_prepare(results),
        cached_bytes=_per_voxel(results),
        label_bytes=max(path.stat().st_size for path in (folder / "scans/probed/labels").iterdir()),
    )


def _training(folder: Path, told: dict[str, Any], work: Path) -> Training:
    """Reads a training's summary and clock: a step is the mean of those that are not counted for FLOPs."""
    results = next(parent for parent in folder.parents if parent.name == "results")
    lines = (folder / "clock.jsonl").read_text(encoding="utf-8").splitlines()
    clock = {line["step"]: line["seconds"] for line in map(json.loads, lines)}
    steps = told["steps"]
    took = {step: clock[step] - clock[step - 1] for step in clock if step and step - 1 in clock}
    last = took.pop(steps - 1, 0.0) if told["stage"] == "finetune" and told["card"]["validations"] else None
    took.pop(steps // 2, None)
    step_s = sum(took.values()) / len(took) if took else told["seconds"] / steps
    benchmark = results / "benchmarks" / folder.relative_to(results)
    return Training(
        job=read_job(benchmark.with_name(benchmark.name + ".tsv")),
        steps=steps,
        step_s=step_s,
        look_s=max(0.0, last - step_s) if last is not None else 0.0,
        voxels=told["voxels_seen"] // steps,
        files_bytes=bytes_below(folder, leaving=("predictions",)),
        state_bytes=bytes_below(work, leaving=("finished",)),
        gpu_bytes=0 if told["device"].startswith("cpu") else told["peak_memory_bytes"],
        device=told["device"],
    )


def bytes_below(folder: Path, leaving: tuple[str, ...] = ()) -> int:
    """Adds up the files of a folder, linked ones once."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not set(leaving) & set(path.relative_to(folder).parts):
            about = path.stat()
            found[about.st_ino] = about.st_size
    return sum(found.values())


def _per_voxel(results: Path) -> float:
    """Tells how many bytes of cache a prepared voxel takes, image and labels."""
    folder = results / "prepared" / "probed"
    entries = json.loads((folder / "index.json").read_text(encoding="utf-8"))["cases"]
    voxels = sum(z * y * x for z, y, x in (entry["shape_zyx"] for entry in entries))
    return bytes_below(folder / "volumes") / voxels


def _prepare(results: Path) -> tuple[Job, float]:
    """Tells what preparing one case took as a job, and what each further one took."""
    one, many = (read_job(results / "benchmarks" / "prepare" / f"{name}.tsv") for name in ("more", "probed"))
    return one, max(0.0, many.seconds - one.seconds) / (_CASES - 1)


def timed(command: list[str], folder: Path) -> Job:
    """Runs a command and tells what it took; its memory is not told."""
    import resource
    import time

    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Job(time.monotonic() - began, cpu, 0.0)


def _score(folder: Path, results: Path) -> tuple[Job, float]:
    """Scores one case and two, each against the other's labels: borders of an untrained network are all over."""
    listed = next(results.glob("finetune/**/predictions.json"))
    told = json.loads(listed.read_text(encoding="utf-8"))
    labels = sorted((folder / "scans/probed/labels").iterdir())
    for entry in told["cases"]:
        entry["file"] = str(next(path for path in labels if entry["case"] not in path.name))
    took = []
    for count in (1, 2):
        given = folder / f"score{count}.json"
        given.write_text(json.dumps({**told, "cases": told["cases"][:count]}), encoding="utf-8")
        command = [sys.executable, "-m", "voxprior", "score", "--card", str(results / "cards/score.json")]
        command += ["--cases", str(results / "intake/probed/cases.csv"), "--predictions", str(given)]
        took.append(timed([*command, "--output", str(folder / "scores.csv")], folder))
    return took[0], max(0.0, took[1].seconds - took[0].seconds)
