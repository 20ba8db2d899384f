rule predict:
    message:
        "Segment the test cases: {wildcards.backbone} from {wildcards.init}, {wildcards.budget} labels"
    input:
        card=f"{R}/cards/predict/fold{{fold}}.json",
        model=f"{R}/finetune/{CELL}/model.safetensors",
        index=expand(f"{R}/prepared/{{dataset}}/index.json", dataset=DATASETS),
        splits=f"{R}/splits.json",
    output:
        f"{R}/finetune/{CELL}/predictions.json",
    params:
        index=lambda w, input: " ".join(f"--index {path}" for path in input.index),
    log:
        f"{R}/logs/predict/{CELL}.log",
    benchmark:
        f"{R}/benchmarks/predict/{CELL}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=12 * 60,
        gpu=GPU,
    conda:
        "../envs/voxprior.yaml"
    shell:
        "voxprior predict --card {input.card} --model {input.model} {params.index} --splits {input.splits}"
        " --output {output} --threads {threads} > {log} 2>&1"
