"""What a report shows of trainings: learning curves, monitors, pictures of what a pretraining does, what was loaded."""

from pathlib import Path
from typing import Any

import pandas as pd

from voxprior.study import cells, facts, figures, gather, pictures, wording
from voxprior.study.drawn import Drawn, data_url
from voxprior.study.slices import jpeg


def pretraining(results: Path, runs: list[cells.Cell], drawn: Drawn) -> dict[str, Any]:
    """Gathers learning curves of an arm's pretrainings, and monitors, changes and pictures of the first of them.

    Args:
        results: the study's results folder.
        runs: the arm's pretrainings, of all folds and seeds.
        drawn: takes the figures.
    """
    first, others = runs[0], runs[1:]
    backbone, init = first["backbone"], first["init"]
    folder = gather.pretrain_folder(results, first)
    journal, title = gather.read_journal(folder / "journal.jsonl"), drawn.titles[init]
    shown: dict[str, Any] = {"backbone": backbone, "title": title, "curve": None, "monitors": None}
    shown["others"] = len(others)
    shown["changes"] = facts.changes(gather.read_json(folder / "summary.json"))
    moved = [f"{row['what'].replace(',', '')} {wording.share(row['end'])}" for row in shown["changes"] if row["share"]]
    shown["said"] = "; ".join(moved)
    if len(journal):
        begin, end = journal["loss"].iloc[0], journal["loss"].iloc[-1]
        alt = f"Pretraining {title} on {backbone}: loss from {begin:.3g} to {end:.3g} over {len(journal)} logged steps"
        shown["said"] = "; ".join([f"loss from {begin:.3g} to {end:.3g}", *moved])
        faint = [gather.read_journal(gather.pretrain_folder(results, run) / "journal.jsonl") for run in others]
        if faint := [some for some in faint if len(some)]:
            alt += (
                f"; {len(faint)} more {'runs' if len(faint) > 1 else 'run'} of other seeds and folds, faint, ending at "
            )
            alt += wording.listed([f"{some['loss'].iloc[-1]:.3g}" for some in faint])
        plot = figures.learning_curves({init: journal}, drawn.titles, drawn.mark, {init: faint})
        shown["curve"] = drawn.add(f"pretrain_{backbone}_{init}", alt, plot)
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
    place = {"src": data_url(jpeg(column.image), "jpeg"), "width": width, "height": height}
    return {"name": column.name, "alt": alt, "marks": marks, **place}


def finetuning(results: Path, study: dict[str, Any], backbone: str, drawn: Drawn) -> dict[str, Any]:
    """Draws the fine-tuning losses of a backbone, for its smallest and largest budget: means over seeds and folds."""
    shown = []
    for budget in sorted({min(study["split"]["budgets"]), max(study["split"]["budgets"])}):
        journals = {}
        for init in [init for b, init in cells.arms_of(study) if b == backbone]:
            folders = [gather.cell_folder(results, cell) for cell in cells.cells_of(study, backbone, init, budget)]
            journal = pd.concat([gather.read_journal(folder / "journal.jsonl") for folder in folders])
            if len(journal):
                journals[init] = journal.groupby("step", as_index=False)[["progress", "loss"]].mean()
        if journals:
            ends = "; ".join(f"{drawn.titles[i]} ends at {j['loss'].iloc[-1]:.3g}" for i, j in journals.items())
            alt = f"Fine-tuning {backbone} with {budget} labelled cases, loss, mean over seeds: {ends}"
            plot = figures.learning_curves(journals, drawn.titles, drawn.mark)
            shown.append({**drawn.add(f"finetune_{backbone}_budget{budget}", alt, plot), "budget": budget})
    return {"backbone": backbone, "pictures": shown}
