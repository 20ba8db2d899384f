"""What stands beside the scores in a report: how many cases reached each step, what it cost, what it was made from."""

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from voxprior.study import gather
from voxprior.study.cells import arms_of, cells_of, pretrained, pretrainings_of, variant_title

Rows = list[dict[str, Any]]


def datasets_of(study: dict[str, Any]) -> list[str]:
    """Lists the datasets of a study: its own, those that are only pretrained on, those that are only predicted."""
    return [study["dataset"], *study["pool"], *study["external"]]


def titles(results: Path, study: dict[str, Any]) -> dict[str, str]:
    """Names every init as its pretraining names itself, files and variants as the study does; scratch first."""
    found = {"scratch": "From scratch"}
    found |= {name: file["title"] or name for name, file in study.get("files", {}).items()}
    for backbone, init in pretrained(study):
        first = gather.pretrain_folder(results, pretrainings_of(study, backbone, init)[0])
        summary = gather.read_json(first / "summary.json")
        found[init] = variant_title(study, init) or summary.get("title") or init
    return found


def case_counts(results: Path, study: dict[str, Any]) -> Rows:
    """Counts cases at every step, per dataset: step, number, remark."""
    rows: Rows = []
    for dataset in datasets_of(study):
        cases = gather.read_table(results / "intake" / dataset / "cases.csv")
        aside = gather.read_table(results / "intake" / dataset / "quarantine.csv")
        index = gather.read_json(results / "prepared" / dataset / "index.json")
        people = cases["person"].nunique()
        steps = [
            ("found", len(cases) + len(aside), ""),
            ("set aside at intake", len(aside), "reasons below" if len(aside) else ""),
        ]
        steps += [
            (
                "usable",
                len(cases),
                f"{(cases['label'] != '').sum()} labelled; {people} {'person' if people == 1 else 'people'}",
            )
        ]
        steps += [("prepared", len(index["cases"]), "oriented, resampled, cached")]
        rows += [{"dataset": dataset, "step": step, "cases": count, "remark": remark} for step, count, remark in steps]
        if dataset == study["dataset"]:
            rows += _split_counts(gather.read_json(results / "splits.json"), dataset)
    return rows


def _split_counts(splits: dict[str, Any], dataset: str) -> Rows:
    rows: Rows = []
    for fold in splits["folds"]:
        of = f", fold {fold['fold']}" if len(splits["folds"]) > 1 else ""
        named = [("pretraining pool", fold["pool"], "labels unused"), ("validation", fold["val"], "")]
        named += [
            (f"budget {budget}", chosen, "labelled, for fine-tuning") for budget, chosen in fold["budgets"].items()
        ]
        named += [("test", fold["test"], "never seen in any training")]
        rows += [{"dataset": dataset, "step": step + of, "cases": len(c), "remark": note} for step, c, note in named]
    return rows


def quarantine(results: Path, study: dict[str, Any], most: int = 200) -> tuple[list[dict[Any, Any]], int]:
    """Lists up to `most` cases that were set aside, with the reasons, and counts the rest."""
    tables = [gather.read_table(results / "intake" / dataset / "quarantine.csv") for dataset in datasets_of(study)]
    table = pd.concat([table for table in tables if len(table)] or tables[:1])
    return table.head(most).to_dict("records"), max(0, len(table) - most)


def case_list_sha256(results: Path, dataset: str) -> str:
    """Hashes which scans a study is about: case names and voxel contents, in order of name."""
    cases = gather.read_table(results / "intake" / dataset / "cases.csv").sort_values("case")
    lines = "".join(f"{case} {content}\n" for case, content in zip(cases["case"], cases["content_sha256"], strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def runs(results: Path, study: dict[str, Any]) -> pd.DataFrame:
    """Reads the summary of every training: one row each, cell first, then the summary's own entries.

    A pretraining has budget 0 and no `seed`; what does not come from a pretraining has no `pretrain_seed`.
    """
    rows = []
    for backbone, init in arms_of(study):
        for run in pretrainings_of(study, backbone, init):
            place = gather.pretrain_folder(results, run)
            rows.append({**run, "budget": 0, "folder": place, **gather.read_json(place / "summary.json")})
        for cell in cells_of(study, backbone, init):
            place = gather.cell_folder(results, cell)
            rows.append({**cell, "folder": place, **gather.read_json(place / "summary.json")})
    table = pd.DataFrame(rows).astype({"pretrain_seed": "Int64", "seed": "Int64"})
    # A run of several processes took as many devices for its time; older summaries do not say.
    own = table["device_seconds"] if "device_seconds" in table else float("nan")
    return table.assign(device_seconds=own).assign(device_seconds=lambda t: t["device_seconds"].fillna(t["seconds"]))


def costs(table: pd.DataFrame) -> Rows:
    """Averages the cost of a run over folds and seeds; total hours, and the largest memory."""
    rows: Rows = []
    # Energy is known where the machine tells it: `energy_joules` of a summary.
    joules = table["energy_joules"] if "energy_joules" in table else float("nan")
    table = table.assign(flops=table["flops_per_step"] * table["steps"], energy_joules=joules)
    for (stage, backbone, init, budget), some in table.groupby(["stage", "backbone", "init", "budget"], sort=False):
        row = {"stage": stage, "backbone": backbone, "init": init, "budget": budget, "runs": len(some)}
        row |= {name: some[name].mean() for name in ("seconds", "voxels_seen", "flops", "energy_joules")}
        row |= {"hours": some["device_seconds"].sum() / 3600, "memory": some["peak_memory_bytes"].max()}
        row["no_energy"] = bool(some["energy_joules"].isna().all())
        rows.append(row | {"device": ", ".join(sorted(set(some["device"])))})
    return rows


def device_hours(table: pd.DataFrame) -> dict[str, float]:
    """Adds up training time by kind of device: {"GPU": hours, "CPU": hours}."""
    on_cpu = table["device"].str.lower().str.startswith("cpu")
    hours = table["device_seconds"] / 3600
    return {"GPU": float(hours[~on_cpu].sum()), "CPU": float(hours[on_cpu].sum())}


def pretraining_hours(table: pd.DataFrame) -> dict[str, dict[str, tuple[float, str]]]:
    """Says what one pretraining of each backbone and init took: hours, mean over folds and seeds, and GPU or CPU."""
    found: dict[str, dict[str, tuple[float, str]]] = {}
    rows = table[table["stage"] == "pretrain"]
    for (backbone, init), some in rows.groupby(["backbone", "init"], sort=False):
        kind = "CPU" if some["device"].str.lower().str.startswith("cpu").all() else "GPU"
        found.setdefault(str(backbone), {})[str(init)] = (float(some["device_seconds"].mean()) / 3600, kind)
    return found


def job_costs(results: Path) -> Rows:
    """Adds up Snakemake's measurements per kind of job; empty where the study was not run by Snakemake."""
    jobs = gather.read_benchmarks(results)
    rows: Rows = []
    for stage, some in jobs.groupby(jobs["job"].str.split("/").str[0], sort=False):
        # Not measured at all is not zero.
        hours = {name: some[name].sum(min_count=1) / 3600 for name in ("s", "cpu_time")}
        row = {"stage": stage, "jobs": len(some), "wall_hours": hours["s"], "cpu_hours": hours["cpu_time"]}
        rows.append(row | {"memory_mib": some["max_rss"].max()})
    return rows


def changes(summary: dict[str, Any]) -> Rows:
    """Lists what a pretraining measured before its first and after its last step: what, start, end.

    `share` marks how far a network moved from its first weights, in lengths of these. A summary of an older version
    has neither.
    """
    measured = summary.get("measured") or {}
    start, end = measured.get("start", {}), measured.get("end", {})
    rows: Rows = [
        {"what": f"{network}, moved by", "start": 0.0, "end": distance, "share": True}
        for network, distance in (summary.get("moved") or {}).items()
    ]
    for name in [*start, *(name for name in end if name not in start)]:
        values = {"start": start.get(name, float("nan")), "end": end.get(name, float("nan"))}
        rows.append({"what": name.replace("_", " "), **values, "share": False})
    return rows


def load_reports(results: Path, study: dict[str, Any]) -> Rows:
    """Reads what was loaded into the segmentation network, once per backbone and init (largest budget, first seed)."""
    rows: Rows = []
    for backbone, init in arms_of(study):
        if init != "scratch":  # also of a file: it says what was loaded from it
            cell = cells_of(study, backbone, init, max(study["split"]["budgets"]))[0]
            report = gather.read_json(gather.cell_folder(results, cell) / "load_report.json")
            rows.append({"backbone": backbone, "init": init, **report})
    return rows


def origins(results: Path, study: dict[str, Any], table: pd.DataFrame) -> list[tuple[str, str]]:
    """Lists what the numbers were made from and with: (what, which)."""
    versions: dict[str, set[str]] = {}
    for some in table["versions"]:
        for name, version in some.items():
            versions.setdefault(name, set()).add(str(version))
    inputs = pd.DataFrame(list(table["inputs"]))
    splits = gather.read_json(results / "splits.json")
    return [
        ("code (git commit)", " and ".join(sorted({str(commit) for commit in table["git_commit"]}))),
        *((name, " and ".join(sorted(some))) for name, some in versions.items()),
        *((f"case list of {d}", case_list_sha256(results, d)) for d in datasets_of(study)),
        ("index of prepared cases", " and ".join(sorted(set(inputs["index_sha256"].dropna())))),
        ("splits", splits["sha256"]),
        ("splits that the runs read", " and ".join(sorted(set(inputs["splits_sha256"].dropna())))),
    ]
