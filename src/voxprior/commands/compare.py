"""compare: gathers all scores of a study into tables with intervals."""

from pathlib import Path


def run(card: Path, splits: Path, results: Path, output: Path) -> None:
    """Reads the scores of every cell on the card and writes the tables (`docs/formats.md`, "tables") into `output`.

    Raises:
        Refusal: a cell has no scores, or has not scored exactly its test cases.
    """
    import numpy as np
    import pandas as pd

    from voxprior.cards import read_card
    from voxprior.study import cases, compare, dictionary, gather, layout, standings, tables
    from voxprior.whole import write_json, write_text

    content = read_card("compare", card)
    scores = gather.read_scores(results, content.cells, content.study, content.dataset)
    gather.demand_cases(scores, gather.read_json(splits))
    leaks = len(gather.read_leakage(results))
    settings = compare.Settings(**content.compare.model_dump(), simulated=content.simulated, leaks=leaks)
    stamp = pd.Categorical.from_codes(np.zeros(len(scores), np.int8), pd.Index([settings.stamp]))
    tables.write_table(output, "scores", scores.assign(stamp=stamp))
    tables.write_table(output, "cases", cases.case_table(scores).assign(stamp=settings.stamp))
    arms, count = layout.lay_out(scores), len(scores)
    del scores, stamp  # the arrays hold all that follows needs, in a tenth of the memory
    curves = compare.curves(arms, settings)
    by_budget = curves.query("cohort == 'test' and metric == 'dice' and `class` == 'mean'")
    made = {
        "curves": curves,
        "contrasts": compare.contrasts(arms, settings, content.variants),
        "labels_saved": standings.saved_table(arms, settings),
        "ranks": standings.rank_table(arms, settings),
        "variance": standings.variance_table(arms, settings),
        "dice_by_budget": by_budget.assign(arm=by_budget["backbone"] + " " + by_budget["init"])
        .pivot(index="budget", columns="arm", values="mean")
        .reset_index()
        .assign(stamp=settings.stamp),
    }
    for name, table in made.items():
        tables.write_table(output, name, table)
    write_text(output / "dictionary.csv", dictionary.dictionary().to_csv(index=False, lineterminator="\n"))
    write_json(output / "metrics.json", compare.mean_dice(curves))
    print(f"{len(content.cells)} cells, {count} scores, {len(curves)} means, {len(made['contrasts'])} contrasts")
