"""`voxprior watch`: the jobs of a running study, live in a terminal, or once as plain text.

Reads files and nothing else, so it works over ssh, on a login node, beside any scheduler.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

SHOWN_FAILED = 4
COLOURS = {"running": "green", "starting": "cyan", "silent": "yellow", "stopped": "yellow", "failed": "red"}


def run(results: Path, work: Path | None, once: bool, every_s: float) -> None:
    """Shows the study until Ctrl-C, or until it is finished.

    Args:
        results: the study's results folder.
        work: the folder of running jobs' state; default: `work` where Snakemake runs.
        once: print plain text once, as is also done where the output is no terminal.
        every_s: seconds between two looks.

    Raises:
        Refusal: there is no study in `results`.
    """
    from voxprior.study import live

    config_file = results / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"{config_file} is missing: start the study, or name its results folder with --results") from None
    except ValueError:
        raise Refusal(f"{config_file} is damaged: delete it and start the study again") from None
    base = work if work is not None else live.home(config["study"], results) / "work"
    steps = list(live.steps(config, results, live.working_folder(config["study"], base)))
    if once or not sys.stdout.isatty():
        print(plain(config["study"], live.look(steps), machine(results)))
        return
    from rich.live import Live

    try:
        with Live(screen=True, auto_refresh=False) as screen:
            while True:
                seen = live.look(steps)
                screen.update(page(config["study"], seen, machine(results), screen.console.width), refresh=True)
                if seen.finished:
                    break
                time.sleep(every_s)
    except KeyboardInterrupt:
        return
    print(f"The study is finished: {results / 'report.html'}")


def machine(results: Path) -> list[str]:
    """Tells what this machine has left: graphics cards where there are any, memory, disk."""
    told = []
    if shutil.which("nvidia-smi"):
        wanted = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=3).stdout
        except (OSError, subprocess.TimeoutExpired):
            answer = ""
        for line in answer.splitlines():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) == 6 and fields[3].isdigit() and fields[4].isdigit():
                used, total = int(fields[3]) / 1024, int(fields[4]) / 1024
                told.append(f"GPU {fields[0]} {fields[1]}: {fields[2]} %, {used:.1f} of {total:.0f} GiB, {fields[5]} C")
    rest = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        sizes = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free, total = (int(sizes[name].split()[0]) / 2**20 for name in ("MemAvailable", "MemTotal"))
        rest.append(f"memory {free:.1f} of {total:.0f} GiB free")
    rest.append(f"disk {shutil.disk_usage(results).free / 2**30:.0f} GiB free")
    return [*told, ", ".join(rest)]


def clock(seconds: float | None) -> str:
    """Writes a duration as h:mm:ss, or as days and hours."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 2 * 24 * 60:
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def words(name: str) -> str:
    """Writes a run's path shorter: `mae 4 labels p0 s0 vit_tiny` for `vit_tiny/mae/budget4/fold0/pretrain0_seed0`."""
    from voxprior.study.cells import read_name

    run = read_name(name)
    if run is None:
        return name
    number = None if run.budget is None else f"{run.budget} label{'s' if run.budget != 1 else ''}"
    before = None if run.pretrain_seed is None else f"p{run.pretrain_seed}"
    parts = [
        run.init,
        number,
        before,
        None if run.seed is None else f"s{run.seed}",
        f"f{run.fold}" if run.fold else None,
    ]
    return " ".join(part for part in [*parts, run.backbone] if part)


def speed(job: Any) -> str:
    """Writes how fast a job is: steps or cases, and voxels where they are counted."""
    if job.per_second is None:
        return ""
    told = f"{job.per_second:.3g}/s"
    if not job.voxels_per_second:
        return told
    size, unit = next((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, "")) if job.voxels_per_second >= s)
    return f"{told} {job.voxels_per_second / (size or 1.0):.3g} {unit}vox/s"


def headline(study: dict[str, Any], seen: Any) -> str:
    """Says in one line how far the study is."""
    scored = seen.stages.get("score", (0, 0))
    states = [job.state for job in seen.jobs]
    told = [f"{states.count(state)} {state}" for state in COLOURS if state in states]
    return f"{study['study']}: {scored[0]} of {scored[1]} cells scored; {', '.join(told) or 'no job at work'}"


def plain(study: dict[str, Any], seen: Any, told: list[str]) -> str:
    """Writes one look as plain text: a line a job, and the last lines of logs of jobs that failed."""
    lines = [headline(study, seen), *told]
    lines.append(", ".join(f"{stage} {done}/{total}" for stage, (done, total) in seen.stages.items()))
    for job in seen.jobs:
        parts = [job.stage, job.name, job.state]
        if job.step is not None:
            share = f" {job.step / job.total:.0%}" if job.total else ""
            parts.append(f"{job.step}/{job.total or '?'}{share}")
        if job.state == "running" and job.per_second is not None:
            parts += [speed(job), f"{clock(job.left_s)} left" if job.left_s is not None else ""]
        parts += [f"loss {job.loss:.4g}"] if job.loss is not None else []
        parts += [f"nothing for {clock(job.quiet_s)}"] if job.state in ("silent", "stopped", "failed") else []
        lines.append("  ".join(part for part in parts if part))
    for job in [job for job in seen.jobs if job.state == "failed"]:
        lines += ["", f"{job.log}:", *(f"  {line}" for line in job.said)]
    return "\n".join(lines)


def page(study: dict[str, Any], seen: Any, told: list[str], width: int) -> Any:
    """Draws one look for a terminal of this width."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, expand=True, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column("job", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("", width=8 if width < 100 else 16)
    for title in ("", "speed", "left", "loss"):
        table.add_column(title, no_wrap=True, justify="right")
    # The working ones first; a table longer than the screen would push out what matters.
    order = list(COLOURS)
    jobs = sorted((job for job in seen.jobs if job.state != "failed"), key=lambda job: order.index(job.state))
    for job in jobs:
        style = COLOURS[job.state]
        share = job.step / job.total if job.step is not None and job.total else None
        bar = ProgressBar(total=1.0, completed=share, complete_style=style, finished_style=style) if share else ""
        working = job.state == "running"
        table.add_row(
            Text(job.stage, style=style),
            words(job.name),
            bar,
            f"{share:.0%}" if share is not None else f"{job.step} done" if job.step else "",
            (speed(job) if width >= 100 else speed(job).split(" ")[0]) if working else Text(job.state, style=style),
            clock(job.left_s) if working else f"for {clock(job.quiet_s)}" if job.state != "starting" else "",
            f"{job.loss:.4g}" if job.loss is not None else "",
        )
    parts: list[Any] = [Text(headline(study, seen), style="bold"), *(Text(line, style="dim") for line in told)]
    counts = Text("")
    for stage, (done, total) in seen.stages.items():
        counts.append(f"{stage} {done}/{total}  ", style="green" if done == total else "")
    parts += [counts, Text(""), table if jobs else Text("No job is at work.", style="dim")]
    failed = [job for job in seen.jobs if job.state == "failed"]
    for job in failed[:SHOWN_FAILED]:
        parts += [Text(""), Text(f"failed: {job.stage} {words(job.name)}  ({job.log})", style="red")]
        parts += [Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in job.said[-3:]]
    if len(failed) > SHOWN_FAILED:
        more = f"and {len(failed) - SHOWN_FAILED} more failed; `voxprior watch --once` lists them"
        parts.append(Text(more, style="red"))
    return Group(*parts)
