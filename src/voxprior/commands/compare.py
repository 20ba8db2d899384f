"""compare: gathers all scores of a study into tables with intervals."""

from pathlib import Path


def run(card: Path, splits: Path, results: Path, output: Path) -> None:
    """Reads the scores of every cell on the card and writes the tables (`docs/formats.md`, "tables") into `output`.

    Raises:
        Refusal: a cell has no scores, or has not scored exactly its test cases.
    """
    from voxprior.cards import read_card
    from voxprior.study import compare, gather
    from voxprior.whole import write_json, write_text

    content = read_card("compare", card)
    scores = gather.read_scores(results, content.cells, content.study, content.dataset)
    gather.demand_cases(scores, gather.read_json(splits))
    leaks = len(gather.read_leakage(results))
    settings = compare.Settings(**content.compare.model_dump(), simulated=content.simulated, leaks=leaks)
    curves = compare.curves(scores, settings)
    by_budget = curves.query("cohort == 'test' and metric == 'dice' and `class` == 'mean'")
    tables = {
        "scores": scores.assign(stamp=settings.stamp),
        "cases": compare.case_table(scores).assign(stamp=settings.stamp),
        "curves": curves,
        "contrasts": compare.contrasts(scores, settings),
        "dice_by_budget": by_budget.assign(arm=by_budget["backbone"] + " " + by_budget["init"])
        .pivot(index="budget", columns="arm", values="mean")
        .reset_index()
        .assign(stamp=settings.stamp),
    }
    for name, table in tables.items():
        text = table.to_csv(index=False, float_format="%.8g", lineterminator="\n")
        write_text(output / f"{name}.csv", text)
    write_json(output / "metrics.json", compare.mean_dice(curves))
    print(f"{len(content.cells)} cells, {len(scores)} scores, {len(curves)} means")
