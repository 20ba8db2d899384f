"""How near `voxprior doctor --forecast` comes: a study is forecast, then run, and both are compared stage by stage.

    python benchmarks/forecast.py --config study.yaml --folder a/folder --output forecast.json

Both are taken in processor time, so that neighbours on the machine count for neither: a `sitecustomize` that all jobs
import makes their clock the processor's, and notes at their end what they took. Runs in a folder of its own (--folder),
where a second call finds the finished study and only forecasts again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import machine  # noqa: E402
import torch  # noqa: E402

from voxprior.commands import forecast, probe  # noqa: E402

GOAL = 0.3  # away from what was measured
# Runs before anything of a job: times that it takes become processor times, and at its end it says where it wrote to.
SITE = """
import atexit, json, os, sys, time
if any("voxprior" in word for word in sys.argv[:1] + sys.orig_argv[:3]) and "snakemake" not in sys.orig_argv:
    time.monotonic = time.process_time

    def tell():
        import resource
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() + spent.ru_utime + spent.ru_stime
        peak = 1024 * max(spent.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        with open(os.environ["FORECAST_NOTES"], "a") as file:
            file.write(json.dumps({"log": os.readlink("/proc/self/fd/1"), "cpu_s": cpu, "peak_bytes": peak}) + "\\n")

    atexit.register(tell)
"""


def notes() -> dict[str, probe.Job]:
    """Reads what jobs noted, by their logs."""
    path = Path(os.environ["FORECAST_NOTES"])
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return {line["log"]: probe.Job(line["cpu_s"], line["cpu_s"], line["peak_bytes"]) for line in lines}


def noted(path: Path) -> probe.Job:
    """Finds a job by its benchmark file, in place of reading that."""
    parts = ["logs" if part == "benchmarks" else part for part in path.resolve().with_suffix(".log").parts]
    return notes()[str(Path(*parts))]


def timed(command: list[str], folder: Path) -> probe.Job:
    """Runs a command in place of `probe.timed`."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, cwd=folder)
        return notes()[log.name]._replace(memory_bytes=0.0)  # a child begins with its parent's peak


def run_study(folder: Path, config: Path, *more: str) -> None:
    """Runs the study itself."""
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "--directory", folder, "--cores", "1"]
    subprocess.run([*command, "--configfile", config, *more], check=True, cwd=folder)


def measured(results: Path) -> dict[str, dict[str, float]]:
    """Adds up the jobs of each stage."""
    found: dict[str, dict[str, float]] = {}
    for log, job in notes().items():
        if not log.startswith(f"{results.resolve()}/logs/"):
            continue
        stage = Path(log).relative_to(results.resolve() / "logs").parts[0].removesuffix(".log")
        one = found.setdefault(stage, {"jobs": 0, "cpu_s": 0.0, "peak_bytes": 0.0})
        one["jobs"] += 1
        one["cpu_s"] += job.cpu_seconds
        one["peak_bytes"] = max(one["peak_bytes"], job.memory_bytes)
    return found


def disk(results: Path) -> dict[str, int]:
    """Measures what the stages left."""
    work = results.parent / "work" / results.name
    kinds = {stage: (results / stage, work / stage) for stage in ("pretrain", "finetune")}
    found = {
        stage: probe.bytes_below(files, ("predictions",)) + probe.bytes_below(state, ("finished",))
        for stage, (files, state) in kinds.items()
    }
    maps = results.glob("finetune/**/predictions/*.nii.gz")
    return {**found, "prepare": probe.bytes_below(results / "prepared"), "predict": sum(p.stat().st_size for p in maps)}


def compare(told: dict[str, Any], results: Path) -> list[dict[str, Any]]:
    """Puts the forecast beside what was measured: a line per stage, then one per training, then the whole."""
    real, left = measured(results), disk(results)
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in told["rows"]):
        rows = [row for row in told["rows"] if row["stage"] == stage]
        said = sum(row["jobs"] * row["cpu_seconds"] for row in rows)
        line = {"what": stage, "jobs": real[stage]["jobs"], "forecast_s": said, "measured_s": real[stage]["cpu_s"]}
        line["forecast_peak_bytes"], line["peak_bytes"] = (
            max(r["memory_bytes"] for r in rows),
            real[stage]["peak_bytes"],
        )
        line["forecast_disk_bytes"], line["disk_bytes"] = sum(r["disk_bytes"] for r in rows), left.get(stage, 0)
        lines.append(line)
    whole = {"what": "all of these"} | {
        key: sum(line[key] for line in lines)
        for key in ("jobs", "forecast_s", "measured_s", "forecast_disk_bytes", "disk_bytes")
    }
    lines.append(whole)
    for line in lines:
        line["ratio"] = line["forecast_s"] / line["measured_s"]
        line["met"] = abs(line["ratio"] - 1) <= GOAL
    return lines


def main() -> None:
    """Forecasts, runs, compares, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a study")
    parser.add_argument("--folder", type=Path, required=True, help="where it runs")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    site = Path(tempfile.mkdtemp())
    (site / "sitecustomize.py").write_text(SITE)
    os.environ["PYTHONPATH"] = f"{site}{os.pathsep}{ROOT / 'src'}"
    os.environ["FORECAST_NOTES"] = str(asked.folder.resolve() / "notes.jsonl")
    probe.read_job, probe.timed = noted, timed
    config, output = asked.config.resolve(), asked.output.resolve()
    os.chdir(asked.folder)
    run_study(Path.cwd(), config, "--until", "intake")
    told = forecast.forecast(config, Path("probe").resolve())
    run_study(Path.cwd(), config)
    lines = compare(told, Path(told["results"]))
    about = {"threads": 1, **machine.describe(torch.device("cpu"))}
    machine.write(output, {**about, "goal": GOAL, "study": told["study"], "lines": lines, "forecast": told})
    for line in lines:
        print(
            f"{line['what']:<14}{line['forecast_s']:>9.1f} s forecast {line['measured_s']:>9.1f} s  {line['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
