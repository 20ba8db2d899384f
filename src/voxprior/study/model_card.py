"""The model card: what a study's segmentation models are for, what made them, how well they do, where they end."""

from pathlib import Path
from typing import Any

import jinja2

from voxprior.maths.regions import chosen, union
from voxprior.study import cells, facts, gather, wording
from voxprior.study.backbone import by_metric
from voxprior.study.compare import stamp_of


def build(config: dict[str, Any], results: Path) -> str:
    """Builds the card of all models of a finished study, as Markdown.

    Args:
        config: the resolved study (`configuration.Resolved` as plain data).
        results: its results folder, with tables.

    Raises:
        Refusal: something that a finished study has is missing.
    """
    study = config["study"]
    cases = gather.read_table(results / "intake" / study["dataset"] / "cases.csv")
    curves = gather.read_table(results / "tables" / "curves.csv").query("`class` == 'mean'")
    simulated = config["datasets"][study["dataset"]].get("simulate") is not None
    titles, leaks = facts.titles(results, study), gather.read_leakage(results)
    context = {
        "study": study,
        "title": study["title"] or study["study"],
        "simulated": simulated,
        "leaks": leaks,
        "stamp": stamp_of(simulated, len(leaks)),
        "dataset": config["datasets"][study["dataset"]],
        "external": {name: config["datasets"][name] for name in study["external"]},
        "patients": cases["patient"].nunique(),
        "people": cases["person"].nunique(),
        "folds": gather.read_json(results / "splits.json")["folds"],
        "cases_sha256": facts.case_list_sha256(results, study["dataset"]),
        "backbones": [
            {
                **config["backbones"][name],
                "name": name,
                "sizes": config["backbones"][name][config["backbones"][name]["family"]],
                "inits": wording.listed([titles[init] for init in study["inits"][name]]),
                "scores": by_metric(curves.query("backbone == @name"), "mean"),
            }
            for name in study["inits"]
        ],
        "titles": titles,
        "unions": _unions(config),
        "example": gather.cell_folder(results, cells.cells_of(study, *cells.arms_of(study)[-1])[-1]),
        "results": results,
        "words": wording,
    }
    return _render(context)


def _unions(config: dict[str, Any]) -> list[str]:
    """Says which labels, in the study's numbers, make up each class; [] where classes do not overlap."""
    classes, values = config["study"]["classes"], config["datasets"][config["study"]["dataset"]]["classes"]
    overlapping = chosen(classes, values)
    named = [(name, union(overlapping, number)) for number, name in enumerate(classes, 1)]
    return [f"{name.replace('_', ' ')} {' + '.join(map(str, painted))}" for name, painted in named if overlapping]


def _plain(text: str) -> str:
    """Makes text of a configuration safe inside a paragraph or a table cell of Markdown."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "\\|")


def _render(context: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown; what others wrote passes `plain`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plain"] = _plain
    return environment.get_template("model_card.md.j2").render(context)
