rule score:
    input:
        card=f"{R}/cards/score.json",
        predictions=f"{R}/finetune/{CELL}/predictions.json",
        cases=expand(f"{R}/intake/{{dataset}}/cases.csv", dataset=SCORED),
    output:
        f"{R}/finetune/{CELL}/scores.csv",
    log:
        f"{R}/logs/score/{CELL}.log",
    benchmark:
        f"{R}/benchmarks/score/{CELL}.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        cases=" ".join(f"--cases {R}/intake/{name}/cases.csv" for name in SCORED),
    message:
        "Score {wildcards.backbone} from {wildcards.init}, {wildcards.budget} labels, in each scan's own grid"
    shell:
        "voxprior score --card {input.card} --predictions {input.predictions} {params.cases} --output {output}"
        " > {log} 2>&1"
