TABLES = ["scores", "cases", "curves", "contrasts", "labels_saved", "ranks", "variance", "dice_by_budget"]


rule compare:
    input:
        card=f"{R}/cards/compare.json",
        splits=f"{R}/splits.json",
        leakage=f"{R}/leakage.json",
        scores=[f"{R}/finetune/{cell_name(cell)}/scores.csv" for cell in CELLS],
    output:
        multiext(
            f"{R}/tables/",
            *[f"{name}.{ending}" for name in TABLES for ending in ("csv", "parquet")],
            "dictionary.csv",
            "metrics.json",
        ),
    log:
        f"{R}/logs/compare.log",
    benchmark:
        f"{R}/benchmarks/compare.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    message:
        "Gather all scores into tables with intervals"
    shell:
        f"voxprior compare --card {{input.card}} --splits {{input.splits}} --results {R} --output {R}/tables"
        " > {log} 2>&1"


rule report:
    input:
        config=f"{R}/config.json",
        tables=rules.compare.output,
        pretrained=[f"{R}/pretrain/{PRETRAINING}/summary.json".format(**run) for run in PRETRAININGS],
    output:
        card=report(f"{R}/model_card.md", caption="../report/model_card.rst", category="Models"),
        report=report(f"{R}/report.html", caption="../report/report.rst", category="Study"),
        figures=report(
            directory(f"{R}/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{R}/logs/report.log",
    benchmark:
        f"{R}/benchmarks/report.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    message:
        "Write the report"
    shell:
        f"voxprior report --config {{input.config}} --results {R} --output {{output.report}} > {{log}} 2>&1"
