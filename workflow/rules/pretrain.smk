rule pretrain:
    input:
        card=f"{R}/cards/pretrain/{{backbone}}/{{method}}/fold{{fold}}.json",
        index=expand(f"{R}/prepared/{{dataset}}/index.json", dataset=[STUDY["dataset"], *STUDY["pool"]]),
        splits=f"{R}/splits.json",
    output:
        encoder=f"{R}/pretrain/{{backbone}}/{{method}}/fold{{fold}}/encoder.safetensors",
        journal=f"{R}/pretrain/{{backbone}}/{{method}}/fold{{fold}}/journal.jsonl",
        clock=f"{R}/pretrain/{{backbone}}/{{method}}/fold{{fold}}/clock.jsonl",
        pictures=f"{R}/pretrain/{{backbone}}/{{method}}/fold{{fold}}/pictures.npz",
        summary=f"{R}/pretrain/{{backbone}}/{{method}}/fold{{fold}}/summary.json",
    log:
        f"{R}/logs/pretrain/{{backbone}}/{{method}}/fold{{fold}}.log",
    benchmark:
        f"{R}/benchmarks/pretrain/{{backbone}}/{{method}}/fold{{fold}}.tsv"
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
        "Pretrain {wildcards.method} on {wildcards.backbone}, without labels"
    shell:
        "voxprior pretrain --card {input.card} {params.index} --splits {input.splits}"
        " --output {params.folder} --work work/{params.folder} --threads {threads} --processes {resources.gpu}"
        " > {log} 2>&1"
