RESOLVED = resolve(dict(config))
STUDY = RESOLVED["study"]
R = STUDY["results"]
SCORED = [STUDY["dataset"], *STUDY["external"]]
DATASETS = [*SCORED, *STUDY["pool"]]
IGNORED = {name: RESOLVED["datasets"][name]["ignore"] for name in SCORED if RESOLVED["datasets"][name]["ignore"]}
TAKEN_IN = ("layout", "simulated", "classes", "modality", "patient", "person")
BUDGET = {key: value for key, value in STUDY["pretrain"].items() if key != "seeds"}
UNKNOWN = {"ignore": IGNORED} if IGNORED else {}
VALUES = {name: class_values(name) for name in SCORED}
OWN = VALUES[STUDY["dataset"]]
REGIONS = {"regions": OWN} if len(set().union(*OWN)) < sum(len(set(some)) for some in OWN) else {}  # overlap
FOLDS = range(STUDY["split"]["folds"])
SURE = {"confidence": True} if "calibration_error" in STUDY["score"]["metrics"] else {}
FILES = {name: file_card(file) for name, file in STUDY["files"].items()}
LEARNED = {"files": {name: file["sha256"] for name, file in FILES.items()}} if FILES else {}
VARIANTS = {name: base for base, some in RESOLVED.get("variants", {}).items() for name in some}
VARIED = {"variants": VARIANTS} if VARIANTS else {}
# The numbers of inits that are pretrained here: neither scratch nor files.
METHODS = RESOLVED["methods"] | {name: RESOLVED["variants"][base][name] for name, base in VARIANTS.items()}
CELL = "{backbone}/{init}/budget{budget}/fold{fold}/{network}"  # pretrain<p>_seed<s>, or seed<s> without a pretraining
CELLS = [
    {"backbone": backbone, "init": init, "budget": budget, "fold": fold, "pretrain_seed": pretrain_seed, "seed": seed}
    for backbone, inits in STUDY["inits"].items()
    for init in inits
    for budget in STUDY["split"]["budgets"]
    for fold in FOLDS
    for pretrain_seed in (STUDY["pretrain"]["seeds"] if init in METHODS else [None])
    for seed in STUDY["finetune"]["seeds"]
]
PRETRAINING = "{backbone}/{init}/fold{fold}/seed{pretrain_seed}"
PRETRAININGS = [
    {"backbone": backbone, "init": init, "fold": fold, "pretrain_seed": pretrain_seed}
    for backbone, inits in STUDY["inits"].items()
    for init in inits
    if init in METHODS
    for fold in FOLDS
    for pretrain_seed in STUDY["pretrain"]["seeds"]
]
ENCODERS = {
    cell_name(cell): f"{R}/pretrain/{PRETRAINING}/encoder.safetensors".format(**cell)
    for cell in CELLS
    if cell["init"] in METHODS
}
CARDS = all_cards()
MANIFESTS = {
    name: "data/{}/{}/manifest.json".format("simulated" if f"simulate/{name}" in CARDS else "raw", name)
    for name in DATASETS
}


rule card:
    output:
        f"{R}/cards/{{card}}.json",
    log:
        f"{R}/logs/card/{{card}}.log",
    conda:
        "../envs/voxprior.yaml"
    params:
        text=lambda w: json.dumps(CARDS[w.card], sort_keys=True, indent=1),
    message:
        "Card {wildcards.card}: all that the run's numbers depend on"
    shell:
        "printf '%s' {params.text:q} > {output}.part 2> {log} && mv {output}.part {output}"


rule config_file:
    output:
        f"{R}/config.json",
    log:
        f"{R}/logs/config.log",
    conda:
        "../envs/voxprior.yaml"
    params:
        text=lambda w: json.dumps(RESOLVED, sort_keys=True, indent=1),
    message:
        "The study with every name replaced by its numbers"
    shell:
        "printf '%s' {params.text:q} > {output}.part 2> {log} && mv {output}.part {output}"


rule check:
    input:
        config=f"{R}/config.json",
    output:
        f"{R}/check.json",
    log:
        f"{R}/logs/check.log",
    benchmark:
        f"{R}/benchmarks/check.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Refuse impossible combinations before any work"
    shell:
        "voxprior check --config {input.config} --output {output} > {log} 2>&1"
