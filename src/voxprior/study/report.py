"""The report: one HTML file that opens anywhere, needs nothing else, and says first what the study shows.

`build` gathers everything into one dictionary and hands it to the template; how things look is the template's affair.
"""

import base64
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from voxprior.study import facts, figures, gather, pictures, wording
from voxprior.study.compare import stamp_of

PICTURED = 40  # cases set aside that are shown: about 2 MB
METRICS = ["dice", "nsd", "hd95_mm"]
Picture = dict[str, str]


class Overlay(NamedTuple):
    """A test case as one init segments it: the scan, or the sentence that says why it cannot be shown."""

    backbone: str
    init: str
    which: str
    case: str
    scan: figures.Scan | None
    reason: str = ""


class Report(NamedTuple):
    """The page, and the figures on it as files of their own (name -> SVG)."""

    html: str
    figures: dict[str, str]


def build(config: dict[str, Any], results: Path, overlays: list[Overlay]) -> Report:
    """Builds the report of a finished study.

    Args:
        config: the resolved study (`configuration.Resolved` as plain data).
        results: its results folder, with tables.
        overlays: test cases to show, see `facts.picked_cases`.

    Raises:
        Refusal: something that a finished study has is missing.
    """
    study = config["study"]
    tables = {name: gather.read_table(results / "tables" / f"{name}.csv") for name in ("curves", "contrasts")}
    titles, trainings = facts.titles(results, study), facts.runs(results, study)
    simulated = config["datasets"][study["dataset"]].get("simulate") is not None
    cases_sha256 = facts.case_list_sha256(results, study["dataset"])
    leaks = gather.read_leakage(results)
    stamp = stamp_of(simulated, len(leaks))
    mark = " \u00b7 ".join([study["study"], f"cases {cases_sha256[:10]}", *([stamp] if stamp else [])])
    drawn = _Drawn(mark, titles)
    rest, left_out = facts.quarantine(results, study)
    context = {
        "study": study,
        "title": study["title"] or study["study"],
        "simulated": simulated,
        "leaks": leaks,
        "stamp": stamp,
        "people": gather.read_table(results / "intake" / study["dataset"] / "cases.csv")["person"].nunique(),
        "backbones": [_backbone(config, name, tables, drawn, simulated) for name in study["inits"]],
        "overlays": _overlays(overlays, titles),
        "pretrainings": [_pretraining(results, *arm, drawn) for arm in facts.pretrained(study)],
        "finetunings": [_finetuning(results, study, name, drawn) for name in study["inits"]],
        "loads": facts.load_reports(results, study),
        "counts": facts.case_counts(results, study),
        "quarantine": [{**row, "src": _drawn_aside(row, number)} for number, row in enumerate(rest)],
        "quarantine_left_out": left_out,
        "datasets": config["datasets"],
        "costs": facts.costs(trainings),
        "device_hours": facts.device_hours(trainings),
        "jobs": facts.job_costs(results),
        "origins": facts.origins(results, study, trainings),
        "cards": trainings[["stage", "backbone", "init", "budget", "fold", "seed", "card_hash"]].to_dict("records"),
        "titles": titles,
        "cases_sha256": cases_sha256,
        "words": wording,
        "classes": wording.listed([name.replace("_", " ") for name in study["classes"]]),
        "series": figures.SERIES,
    }
    return Report(_render(context), drawn.files)


def _render(context: dict[str, Any]) -> str:
    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(context)


class _Drawn:
    """Keeps the figures of the page, each also as a file of its own."""

    def __init__(self, mark: str, titles: dict[str, str]) -> None:
        self.mark, self.titles = mark, titles
        self.files: dict[str, str] = {}

    def add(self, name: str, alt: str, svg: str) -> Picture:
        """Keeps a figure under its name, and prepares it for the page."""
        self.files[name] = svg
        return {"svg": figures.inline(svg, alt), "alt": alt}


def _backbone(
    config: dict[str, Any], name: str, tables: dict[str, pd.DataFrame], drawn: _Drawn, simulated: bool
) -> dict[str, Any]:
    """Gathers what the page says about one backbone: curves, findings, contrasts, classes, external cohort."""
    study = config["study"]
    curves = tables["curves"].query("backbone == @name")
    contrasts = tables["contrasts"].query("backbone == @name")
    # All against scratch first, then what each method adds to the one it builds on.
    contrasts = contrasts.iloc[(contrasts["against"] != "scratch").argsort(kind="stable")]
    title = config["backbones"][name]["title"]
    titles = {init: drawn.titles[init] for init in drawn.titles if init in study["inits"][name]}
    own = curves[(curves["cohort"] == "test") & (curves["class"] == "mean")]
    pictures = []
    for metric in METRICS:
        rows = own[own["metric"] == metric]
        alt = f"{title}: {figures.METRICS[metric]} against labelled cases. " + "; ".join(
            f"{titles[row['init']]} with {row['budget']}: {wording.number(row['mean'], metric)}"
            for row in rows.to_dict("records")
        )
        svg = figures.budget_curves(rows, drawn.titles, metric, drawn.mark)
        pictures.append(drawn.add(f"budget_{name}_{metric}", alt, svg))
    dice = own[own["metric"] == "dice"]
    findings = contrasts[(contrasts["cohort"] == "test") & (contrasts["metric"] == "dice")].to_dict("records")
    smallest = min(study["split"]["budgets"])
    confidence = study["compare"]["confidence"]
    return {
        "name": name,
        "title": title,
        "family": config["backbones"][name]["family"],
        "pictures": pictures,
        "findings": []
        if simulated
        else [
            wording.finding(f, titles[f["init"]], confidence, _named(f["against"], titles))
            for f in findings
            if f["budget"] == smallest
        ],
        "contrasts": [
            {
                **row,
                "other": _named(row["against"], titles),
                "labels": ""
                if simulated or row["against"] != "scratch"
                else wording.labels_equal(dice, row["init"], row["budget"]),
            }
            for row in by_metric(contrasts[contrasts["cohort"] == "test"], "difference")
        ],
        "classes": by_metric(curves[curves["cohort"] == "test"], "mean"),
        "external": by_metric(curves[(curves["cohort"] == "external") & (curves["class"] == "mean")], "mean"),
    }


def _named(init: str, titles: dict[str, str]) -> str:
    """Names an init inside a sentence: `from scratch` reads badly after `against`."""
    return "scratch" if init == "scratch" else titles[init]


def by_metric(rows: pd.DataFrame, value: str) -> list[dict[str, Any]]:
    """Puts the metrics of one arm, budget and class into one row: {..., "dice": {value, low, high}, "nsd": ...}."""
    keys = [name for name in ("dataset", "init", "against", "budget", "class") if name in rows.columns]
    lines = []
    for key, some in rows.groupby(keys, sort=False):
        line: dict[str, Any] = dict(zip(keys, key, strict=True))
        for row in some.to_dict("records"):
            line[row["metric"]] = {"value": row[value], "low": row["low"], "high": row["high"]}
        line["cases"] = int(some["cases"].max())
        line["excluded"] = int(some["excluded"].max()) if "excluded" in some else 0
        lines.append(line)
    return lines


def _overlays(overlays: list[Overlay], titles: dict[str, str]) -> list[dict[str, Any]]:
    """Draws the picked cases and groups them: one entry per backbone and case, one picture per init."""
    grouped: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for overlay in overlays:
        title = titles[overlay.init]
        picture = {"title": title, "reason": overlay.reason, "src": "", "alt": ""}
        if overlay.scan is not None:
            picture["src"] = _data_url(figures.outlines(overlay.scan))
            picture["alt"] = (
                f"{overlay.which} test case {overlay.case}, {title}: axial, coronal and sagittal plane with the "
                "outlines of the label (blue) and the prediction (orange, dashed)"
            )
        grouped.setdefault((overlay.backbone, overlay.which, overlay.case), []).append(picture)
    return [{"backbone": b, "which": w, "case": c, "pictures": some} for (b, w, c), some in grouped.items()]


def _data_url(picture: figures.Picture) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(figures.jpeg(picture)).decode()


def _drawn_aside(row: dict[Any, Any], number: int) -> str:
    """Embeds the picture that intake drew of a case it set aside; empty where there is none, or it is one too many."""
    path = Path(str(row.get("picture") or ""))
    if number >= PICTURED or path.suffix != ".png" or not path.is_file():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _pretraining(results: Path, backbone: str, init: str, drawn: _Drawn) -> dict[str, Any]:
    """Gathers learning curve, monitors, what it changed, and pictures of one pretraining (its first fold)."""
    folder = gather.pretrain_folder(results, backbone, init, 0)
    journal, title = gather.read_journal(folder / "journal.jsonl"), drawn.titles[init]
    shown: dict[str, Any] = {"backbone": backbone, "title": title, "curve": None, "monitors": None}
    shown["changes"] = facts.changes(gather.read_json(folder / "summary.json"))
    if len(journal):
        first, last = journal["loss"].iloc[0], journal["loss"].iloc[-1]
        alt = f"Pretraining {title} on {backbone}: loss from {first:.3g} to {last:.3g} over {len(journal)} logged steps"
        svg = figures.learning_curves({init: journal}, drawn.titles, drawn.mark)
        shown["curve"] = drawn.add(f"pretrain_{backbone}_{init}", alt, svg)
        colour = figures.style_of(list(drawn.titles))[init][0]
        if (small := figures.monitors(journal, colour, drawn.mark)) is not None:
            alt = f"Pretraining {title} on {backbone}, over the run: " + "; ".join(
                f"{name.replace('_', ' ')} from {journal[name].iloc[0]:.3g} to {journal[name].iloc[-1]:.3g}"
                for name in figures.monitor_names(journal)
            )
            shown["monitors"] = drawn.add(f"monitors_{backbone}_{init}", alt, small)
    stored = gather.read_pictures(folder / "pictures.npz") or {}
    shown["columns"] = [_column(column, f"{title} on {backbone}") for column in pictures.columns(stored)]
    shown["padded"] = [str(row) for row, whole in enumerate(stored.get("valid", []), start=1) if not whole]
    return shown


def _column(column: pictures.Column, of: str) -> dict[str, Any]:
    """Prepares one column of pictures for the page: the image, and the marks that are drawn on it."""
    height, width = column.image.shape[:2]
    marks = [
        {
            "number": m.number,
            "x": round(m.right_px, 1),
            "y": round(m.down_px, 1),
            "colour": pictures.POINTS[m.number - 1],
        }
        for m in column.marks
    ]
    alt = f"{of}, {column.name}" + (f", with {len(marks)} numbered points" if marks else "")
    place = {"src": _data_url(column.image), "width": width, "height": height}
    return {"name": column.name, "alt": alt, "marks": marks, **place}


def _finetuning(results: Path, study: dict[str, Any], backbone: str, drawn: _Drawn) -> dict[str, Any]:
    """Draws the fine-tuning losses of a backbone, for its smallest and largest budget, the mean over seeds."""
    pictures = []
    for budget in sorted({min(study["split"]["budgets"]), max(study["split"]["budgets"])}):
        journals = {}
        for init in [init for b, init in facts.arms_of(study) if b == backbone]:
            folders = [gather.cell_folder(results, cell) for cell in facts.cells_of(study, backbone, init, budget)]
            journal = pd.concat([gather.read_journal(folder / "journal.jsonl") for folder in folders])
            if len(journal):
                journals[init] = journal.groupby("step", as_index=False)[["progress", "loss"]].mean()
        if journals:
            ends = "; ".join(f"{drawn.titles[i]} ends at {j['loss'].iloc[-1]:.3g}" for i, j in journals.items())
            alt = f"Fine-tuning {backbone} with {budget} labelled cases, loss, mean over seeds: {ends}"
            svg = figures.learning_curves(journals, drawn.titles, drawn.mark)
            picture = drawn.add(f"finetune_{backbone}_budget{budget}", alt, svg)
            pictures.append({**picture, "budget": budget})
    return {"backbone": backbone, "pictures": pictures}
