"""The report: one HTML file that opens anywhere, needs nothing else, and says first what the study shows.

`build` gathers everything into one dictionary and hands it to the templates, one a section; how things look is their
affair. Statistics come from the tables. Where a table of an older study lacks something, the page says how to renew it.
"""

import importlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from voxprior.errors import Refusal
from voxprior.study import cells, dictionary, facts, figures, gather, headline, lineage, looks, trainings, wording
from voxprior.study.backbone import Backbone
from voxprior.study.compare import stamp_of
from voxprior.study.drawn import Drawn, data_url

PICTURED = 40  # cases set aside that are shown: about 2 MB
LONG = 16  # rows of a table beyond which it waits behind its heading
Look = looks.Look
TABLES = ("curves", "contrasts", "labels_saved", "ranks", "variance")
VERDICTS = ["effect", "effect_low", "effect_high", "p", "p_holm", "margin", "false_claim", "smallest"]


class Report(NamedTuple):
    """The page, and what belongs beside it: figures and tables for a paper (path -> content)."""

    html: str
    files: dict[str, bytes]


def build(config: dict[str, Any], results: Path, shown: list[Look], beside: Path | None = None) -> Report:
    """Builds the report of a finished study.

    Args:
        config: the resolved study (`configuration.Resolved` as plain data).
        results: its results folder, with tables.
        shown: test cases to look at, see `looks.picked_cases`.
        beside: the folder that the page will lie in, for its links; `results` itself unless given.

    Raises:
        Refusal: something that a finished study has is missing.
    """
    study = config["study"]
    tables = read_tables(results)
    titles, runs = facts.titles(results, study), facts.runs(results, study)
    simulated = config["datasets"][study["dataset"]].get("simulate") is not None
    cases_sha256 = facts.case_list_sha256(results, study["dataset"])
    stamp = stamp_of(simulated, len(gather.read_leakage(results)))
    mark = " \u00b7 ".join([study["study"], f"cases {cases_sha256[:10]}", *([stamp] if stamp else [])])
    drawn = Drawn(mark, titles)
    hours = facts.pretraining_hours(runs)
    backbones = [
        Backbone(config, name, tables, drawn, simulated).gathered(hours.get(name, {})) for name in study["inits"]
    ]
    context = {
        "study": study,
        "title": study["title"] or study["study"],
        "simulated": simulated,
        "stamp": stamp,
        "titles": titles,
        "backbones": backbones,
        "backbone_titles": {name: config["backbones"][name]["title"] for name in study["inits"]},
        "renew": renewal(results, tables, simulated),
        "looks": looks.shown(shown, results, study, titles),
        "pretrainings": [
            trainings.pretraining(results, cells.pretrainings_of(study, *arm), drawn) for arm in cells.pretrained(study)
        ],
        "finetunings": [trainings.finetuning(results, study, name, drawn) for name in study["inits"]],
        "networks": wording.networks(study),
        "loads": facts.load_reports(results, study),
        "costs": facts.costs(runs),
        "device_hours": facts.device_hours(runs),
        "jobs": facts.job_costs(results),
        "methods": methods_text(config, tables),
        **_data(config, results),
        **_lineage(results, study, runs, beside or results),
    }
    return Report(_render(context), drawn.files)


def _data(config: dict[str, Any], results: Path) -> dict[str, Any]:
    """Gathers where the cases come from, and what became of them."""
    study = config["study"]
    rest, left_out = facts.quarantine(results, study)
    leakage = gather.read_json(results / "leakage.json")
    return {
        "datasets": config["datasets"],
        "people": gather.read_table(results / "intake" / study["dataset"] / "cases.csv")["person"].nunique(),
        "tested": len({case for fold in gather.read_json(results / "splits.json")["folds"] for case in fold["test"]}),
        "counts": facts.case_counts(results, study),
        "quarantine": [{**row, "src": _drawn_aside(row, number)} for number, row in enumerate(rest)],
        "quarantine_left_out": left_out,
        "leakage": leakage,
        "leaks": leakage["found"],
        "classes": wording.listed([name.replace("_", " ") for name in study["classes"]]),
    }


def _lineage(results: Path, study: dict[str, Any], runs: pd.DataFrame, beside: Path) -> dict[str, Any]:
    """Gathers what the numbers were made from, with links from where the page lies."""
    places, store = lineage.Places(results, beside), lineage.read_store(results)
    return {
        "origins": facts.origins(results, study, runs),
        "steps": _steps(places, study),
        "made": lineage.arms(runs, places, store),
        "runs": len(runs),
    }


def _render(context: dict[str, Any]) -> str:
    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["init_title"] = context["titles"].get
    environment.filters["metric_title"] = figures.METRICS.get
    environment.globals |= {"words": wording, "headline": headline, "anchor": lineage.anchor, "isnan": math.isnan}
    environment.globals |= {"series": figures.SERIES, "sources": figures.SOURCES, "metric_titles": figures.METRICS}
    return environment.get_template("report.html.j2").render(context, long=LONG)


def read_tables(results: Path) -> dict[str, pd.DataFrame | None]:
    """Reads the tables of a study; of an older one some are None, and verdicts that it lacks are empty.

    Raises:
        Refusal: curves or contrasts are missing, or a table lacks a column that no older version did without.
    """
    tables: dict[str, pd.DataFrame | None] = {
        name: gather.read_statistics(results / "tables" / f"{name}.csv") for name in TABLES
    }
    for name in ("curves", "contrasts"):
        if tables[name] is None:
            gather.read_table(results / "tables" / f"{name}.csv")  # refuses
    contrasts = tables["contrasts"]
    assert contrasts is not None
    for name in [name for name in VERDICTS if name not in contrasts]:
        contrasts[name] = math.nan
    if "verdict" not in contrasts:
        contrasts["verdict"] = ""
    for name, table in tables.items():
        lacking = [] if table is None else [column for column in dictionary.TABLES[name] if column not in table]
        if lacking:
            raise Refusal(
                f"{results / 'tables' / name}.csv has no column '{lacking[0]}', another version wrote it: run "
                "'compare' again"
            )
    return tables


def renewal(results: Path, tables: dict[str, pd.DataFrame | None], simulated: bool) -> str:
    """Names the command that renews tables of an older version; empty where nothing is missing."""
    contrasts = tables["contrasts"]
    older = contrasts is not None and len(contrasts) and not simulated and not contrasts["verdict"].any()
    if not older and all(table is not None for table in tables.values()):
        return ""
    return (
        f"voxprior compare --card {results}/cards/compare.json --splits {results}/splits.json --results {results} "
        f"--output {results}/tables"
    )


def methods_text(config: dict[str, Any], tables: dict[str, pd.DataFrame | None]) -> list[str]:
    """Gets the paragraphs that describe what was run; none where this version has no writer for them."""
    try:
        writer = importlib.import_module("voxprior.study.methods_text")
    except ModuleNotFoundError as error:
        if error.name != "voxprior.study.methods_text":
            raise
        return []
    return list(writer.build(config, {name: table for name, table in tables.items() if table is not None}))


def _steps(places: lineage.Places, study: dict[str, Any]) -> list[tuple[str, list[lineage.Link]]]:
    """Links what every number rests on, step by step, per dataset."""
    found = []
    for dataset in facts.datasets_of(study):
        wanted = [
            ("fetched by", f"cards/fetch/{dataset}.json"),
            ("intake", f"cards/intake/{dataset}.json"),
            ("cases", f"intake/{dataset}/cases.csv"),
            ("set aside", f"intake/{dataset}/quarantine.csv"),
            ("prepare", f"cards/prepare/{dataset}.json"),
            ("index of prepared cases", f"prepared/{dataset}/index.json"),
        ]
        found.append((dataset, [link for name, path in wanted if (link := places.link(name, path))]))
    wanted = [("split", "cards/split.json"), ("splits", "splits.json"), ("leakage", "leakage.json")]
    wanted += [
        ("study", "config.json"),
        ("scores of all cells", "tables/scores.csv"),
        ("compare", "cards/compare.json"),
    ]
    found.append(("all", [link for name, path in wanted if (link := places.link(name, path))]))
    return found


def _drawn_aside(row: dict[Any, Any], number: int) -> str:
    """Embeds the picture that intake drew of a case it set aside; empty where there is none, or it is one too many."""
    path = Path(str(row.get("picture") or ""))
    if number >= PICTURED or path.suffix != ".png" or not path.is_file():
        return ""
    return data_url(path.read_bytes(), "png")
