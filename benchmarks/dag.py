"""Plans studies of up to 4,500 fine-tunings and tells what Snakemake takes for it: `python benchmarks/dag.py`.

`study`: `snakemake -n` of the default study with more budgets, folds and seeds, against two workflows with as many jobs
and edges: `trivial`, whose rules have an input, an output and a command and nothing else, and `furnished`, whose rules
also have a log, a benchmark file, threads, resources, an environment and a message, as ours have. `run`: what Snakemake
takes beyond a job that does next to nothing, from writing so many cards with the profile's scheduler and with `ilp`,
which Snakemake takes by itself.
`watch`: a look of
`voxprior watch` at the study. Processor and wall seconds, and the largest memory.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
BUDGETS, FOLDS, INITS = 6, 5, 10  # with 15 seeds: 4,500 cells

TRIVIAL = """
CELLS = [(i, b, f, s) for i in range({inits}) for b in range({budgets}) for f in range({folds}) for s in range({seeds})]
P = "{{i}}/{{b}}/{{f}}/{{s}}"

rule all:
    input: [P.format(i=i, b=b, f=f, s=s).join(("r/score/", ".csv")) for i, b, f, s in CELLS]

rule card:
    output: "r/cards/{{card}}.json"
    shell: "true > {{output}}"

rule prepare:
    input: "r/cards/prepare.json"
    output: "r/index.json"
    shell: "true < {{input}} > {{output}}"

rule split:
    input: "r/cards/split.json", "r/index.json"
    output: "r/splits.json"
    shell: "true < {{input}} > {{output}}"

rule pretrain:
    input: "r/cards/pretrain/{{i}}/{{f}}.json", "r/index.json", "r/splits.json"
    output: "r/pretrain/{{i}}/{{f}}.st"
    shell: "true {{input}} > {{output}}"

rule finetune:
    input: f"r/cards/finetune/{{P}}.json", "r/index.json", "r/splits.json", "r/pretrain/{{i}}/{{f}}.st"
    output: f"r/finetune/{{P}}.st"
    shell: "true {{input}} > {{output}}"

rule predict:
    input: "r/cards/predict/{{f}}.json", f"r/finetune/{{P}}.st", "r/index.json", "r/splits.json"
    output: f"r/predict/{{P}}.json"
    shell: "true {{input}} > {{output}}"

rule score:
    input: "r/cards/score.json", f"r/predict/{{P}}.json", "r/index.json"
    output: f"r/score/{{P}}.csv"
    shell: "true {{input}} > {{output}}"
"""

FURNITURE = """
    log: "r/logs/{name}/{place}.log"
    benchmark: "r/benchmarks/{name}/{place}.tsv"
    conda: "env.yaml"
    threads: 1
    resources: mem_mb=4000, runtime=60, gpu=0
    message: "Something about {{wildcards}}"
"""


def furnished(text: str) -> str:
    """Adds to every rule with an output what a real workflow's rules have."""
    parts = []
    for rule in text.split("\nrule ")[1:]:
        name, made = rule.partition(":")[0], re.search(r"output: f?(.+)", rule)
        place = "/".join(re.findall(r"{[a-z]+}", made[1].replace("{P}", "{i}{b}{f}{s}"))) if made else ""
        more = FURNITURE.format(name=name, place=place or "one")
        parts.append(rule.replace("    shell:", more.strip("\n") + "\n    shell:") if made else rule)
    return "\nrule ".join([text.split("\nrule ")[0], *parts])


def measured(command: list[str], here: Path) -> dict[str, Any]:
    """Runs Snakemake: {cpu_s, wall_s, peak_bytes, jobs}, of it and of what it starts."""
    began = time.perf_counter()
    with open(here / "out.txt", "wb") as out:
        whole = [sys.executable, "-m", "snakemake", "--directory", str(here), *command]
        process = os.posix_spawn(sys.executable, whole, os.environ, file_actions=[
            (os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2),
        ])  # fmt: skip
        _, status, used = os.wait4(process, 0)
    text = (here / "out.txt").read_text(encoding="utf-8", errors="replace")
    jobs = re.search(r"^total +(\d+)", text, re.MULTILINE)
    if status or jobs is None:
        raise RuntimeError(f"snakemake {' '.join(command)} ended with {status}: {text[-2000:]}")
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "wall_s": round(time.perf_counter() - began, 1),
        "peak_bytes": used.ru_maxrss * 1024,
        "jobs": int(jobs[1]),
    }


def write_study(place: Path, seeds: int) -> Path:
    """Writes the default study with more cells."""
    study = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    study["split"] |= {"budgets": list(range(1, BUDGETS + 1)), "folds": FOLDS}
    study["finetune"]["seeds"] = list(range(seeds))
    place.write_text(yaml.safe_dump(study), encoding="utf-8")
    return place


def planned(seeds: int, rounds: int, compare: bool = True) -> dict[str, Any]:
    """Plans a study and the trivial workflow in turn; the processor times are the least of all rounds."""
    told: dict[str, Any] = {"cells": INITS * BUDGETS * FOLDS * seeds, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        study = write_study(here / "study.yaml", seeds)
        text = TRIVIAL.format(inits=INITS, budgets=BUDGETS, folds=FOLDS, seeds=seeds)
        (here / "trivial.smk").write_text(text, encoding="utf-8")
        (here / "furnished.smk").write_text(furnished(text), encoding="utf-8")
        (here / "env.yaml").write_text("channels: [conda-forge]\ndependencies: [python]\n", encoding="utf-8")
        ours = ["-n", "-s", str(ROOT / "Snakefile"), "--configfile", str(study)]
        others = {name: ["-n", "-s", str(here / f"{name}.smk")] for name in ("trivial", "furnished") if compare}
        for name, command in {"study": ours, **others}.items():
            runs = [measured(command, here) for _ in range(rounds)]
            told[name] = min(runs, key=lambda run: run["cpu_s"])
    return told | {f"ratio_to_{name}": round(told["study"]["cpu_s"] / told[name]["cpu_s"], 2) for name in others}


def network(init: str, seed: int) -> str:
    """Names a cell's folder."""
    return f"seed{seed}" if init == "scratch" else f"pretrain0_seed{seed}"


def cards(count: int, *more: str) -> dict[str, Any]:
    """Writes cards, one job each: what Snakemake takes for a job."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        study = write_study(here / "study.yaml", 15)
        backbones = yaml.safe_load(study.read_text(encoding="utf-8"))["inits"]
        wanted = [
            f"results/cards/finetune/{backbone}/{init}/budget{budget + 1}/fold{fold}/{network(init, seed)}.json"
            for seed in range(15)
            for backbone, inits in backbones.items()
            for init in inits
            for budget in range(BUDGETS)
            for fold in range(FOLDS)
        ][:count]
        command = [*wanted, "-s", str(ROOT / "Snakefile"), "--cores", "2", "--configfile", str(study), *more]
        told = measured(command, here)
    return told | {"ms_per_job": round(told["cpu_s"] / count * 1000, 1)}


def watched(seeds: int, rounds: int = 5) -> dict[str, Any]:
    """Looks at a study as `voxprior watch` does: processor ms a look, when nothing has begun and when all is scored."""
    from voxprior.study import live

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        study = yaml.safe_load(write_study(here / "study.yaml", seeds).read_text(encoding="utf-8"))
        config = {"study": study, "datasets": {name: {} for name in (study["dataset"], *study["external"])}}
        steps = list(live.steps(config, here / "results", here / "work"))
        told: dict[str, Any] = {"cells": sum(step.stage == "score" for step in steps)}
        for name in ("nothing_begun", "all_scored"):
            times = []
            for _ in range(rounds):
                began = time.process_time()
                live.look(steps)
                times.append(time.process_time() - began)
            told[f"{name}_ms"] = round(min(times) * 1000)
            for step in steps:
                step.output.parent.mkdir(parents=True, exist_ok=True)
                step.output.touch()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5, 15])
    parser.add_argument("--alone", type=int, nargs="*", default=[], help="seeds at which nothing is compared")
    parser.add_argument("--cards", type=int, nargs="+", default=[300, 900])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/dag_cpu.json")
    options = parser.parse_args()
    told: dict[str, Any] = {}
    told["goal"] = {"wall_s": 60, "peak_bytes": 1536 << 20, "ratio": 1.3, "ms_per_job": 50}
    told["plans"] = [planned(seeds, options.rounds, seeds not in options.alone) for seeds in options.seeds]
    told["run"] = [
        {"cards": count, "greedy": cards(count), "ilp": cards(count, "--scheduler", "ilp")} for count in options.cards
    ]
    told["watch"] = watched(max(options.seeds))
    # Imported last: a process that is started is given its parent's largest memory for a beginning.
    import snakemake
    import torch
    from machine import describe, write

    told = {"format": 1, **describe(torch.device("cpu")), "snakemake": snakemake.__version__, **told}
    print(json.dumps(told, indent=1))
    write(options.output, told)


if __name__ == "__main__":
    main()
