rule finetune:
    input:
        card=f"{R}/cards/finetune/{CELL}.json",
        index=f"{R}/prepared/{STUDY['dataset']}/index.json",
        splits=f"{R}/splits.json",
        # A file of the study's is known by the hash on the card, not by its time.
        encoder=lambda w: (
            ancient(STUDY["files"][w.init]["path"]) if w.init in FILES else ENCODERS.get(CELL.format(**w), [])
        ),
    output:
        model=f"{R}/finetune/{CELL}/model.safetensors",
        journal=f"{R}/finetune/{CELL}/journal.jsonl",
        clock=f"{R}/finetune/{CELL}/clock.jsonl",
        loaded=f"{R}/finetune/{CELL}/load_report.json",
        summary=f"{R}/finetune/{CELL}/summary.json",
    log:
        f"{R}/logs/finetune/{CELL}.log",
    benchmark:
        f"{R}/benchmarks/finetune/{CELL}.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=24 * 60,
        gpu=GPU,
    params:
        folder=f"{R}/finetune/{CELL}",
        encoder=lambda w, input: f"--encoder '{input.encoder}'" if input.encoder else "",
    message:
        "Fine-tune {wildcards.backbone} from {wildcards.init} with {wildcards.budget} labelled cases"
    shell:
        "voxprior finetune --card {input.card} --index {input.index} --splits {input.splits} {params.encoder}"
        " --output {params.folder} --work work/{params.folder} --threads {threads} --processes {resources.gpu}"
        " > {log} 2>&1"
