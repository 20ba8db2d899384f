rule predict:
    input:
        card=f"{R}/cards/predict/fold{{fold}}.json",
        model=f"{R}/finetune/{CELL}/model.safetensors",
        index=expand(f"{R}/prepared/{{dataset}}/index.json", dataset=SCORED),
        splits=f"{R}/splits.json",
    output:
        f"{R}/finetune/{CELL}/predictions.json",
    log:
        f"{R}/logs/predict/{CELL}.log",
    benchmark:
        f"{R}/benchmarks/predict/{CELL}.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=12 * 60,
        gpu=GPU,
    params:
        index=" ".join(f"--index {R}/prepared/{name}/index.json" for name in SCORED),
    message:
        "Segment the test cases: {wildcards.backbone} from {wildcards.init}, {wildcards.budget} labels"
    shell:
        "voxprior predict-test --card {input.card} --model {input.model} {params.index} --splits {input.splits}"
        " --output {output} --threads {threads} > {log} 2>&1"
