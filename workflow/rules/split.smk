rule split:
    input:
        card=f"{R}/cards/split.json",
        index=f"{R}/prepared/{STUDY['dataset']}/index.json",
        cases=expand(f"{R}/intake/{{dataset}}/cases.csv", dataset=SCORED),
        pool=expand(f"{R}/intake/{{dataset}}/cases.csv", dataset=STUDY["pool"]),
        files=[ancient(file["path"]) for file in STUDY["files"].values()],  # known by the hashes on the card
    output:
        splits=f"{R}/splits.json",
        leakage=f"{R}/leakage.json",
    log:
        f"{R}/logs/split.log",
    benchmark:
        f"{R}/benchmarks/split.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        cases=lambda w, input: " ".join(f"--cases {path}" for path in input.cases),
        pool=lambda w, input: " ".join(f"--pool {path}" for path in input.pool),
        files=" ".join(f"--file '{name}={file['path']}'" for name, file in STUDY["files"].items()),
    message:
        "Split patients into test, validation and nested label budgets; look for scans on both sides"
    shell:
        "voxprior split --card {input.card} --index {input.index} {params.cases} {params.pool} {params.files}"
        " --output {output.splits} --leakage {output.leakage} > {log} 2>&1"
