rule pretrain:
    input:
        card=f"{R}/cards/pretrain/{PRETRAINING}.json",
        index=expand(f"{R}/prepared/{{dataset}}/index.json", dataset=[STUDY["dataset"], *STUDY["pool"]]),
        splits=f"{R}/splits.json",
    output:
        encoder=f"{R}/pretrain/{PRETRAINING}/encoder.safetensors",
        journal=f"{R}/pretrain/{PRETRAINING}/journal.jsonl",
        clock=f"{R}/pretrain/{PRETRAINING}/clock.jsonl",
        pictures=f"{R}/pretrain/{PRETRAINING}/pictures.npz",
        summary=f"{R}/pretrain/{PRETRAINING}/summary.json",
    log:
        f"{R}/logs/pretrain/{PRETRAINING}.log",
    benchmark:
        f"{R}/benchmarks/pretrain/{PRETRAINING}.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=24 * 60,
        gpu=GPU,
    params:
        folder=subpath(output.summary, parent=True),
        index=lambda w, input: " ".join(f"--index {path}" for path in input.index),
    message:
        "Pretrain {wildcards.init} on {wildcards.backbone}, without labels"
    shell:
        "voxprior pretrain --card {input.card} {params.index} --splits {input.splits}"
        " --output {params.folder} --work work/{params.folder} --threads {threads} --processes {resources.gpu}"
        " > {log} 2>&1"
