MIRROR = f"--mirror '{STUDY['mirror']}'" if STUDY["mirror"] else ""


rule fetch:
    input:
        card=f"{R}/cards/fetch/{{dataset}}.json",
        check=ancient(f"{R}/check.json"),
    output:
        "data/raw/{dataset}/manifest.json",
    log:
        f"{R}/logs/fetch/{{dataset}}.log",
    benchmark:
        f"{R}/benchmarks/fetch/{{dataset}}.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=24 * 60,
    params:
        scans=lambda w: listing(RESOLVED["datasets"][w.dataset]["source"]),
    message:
        "Fetch {wildcards.dataset}"
    shell:
        f"voxprior fetch --card {{input.card}} --output {{output}} {MIRROR} > {{log}} 2>&1"


rule simulate:
    input:
        card=f"{R}/cards/simulate/{{dataset}}.json",
        manifest="data/raw/{dataset}/manifest.json",
    output:
        "data/simulated/{dataset}/manifest.json",
    log:
        f"{R}/logs/simulate/{{dataset}}.log",
    benchmark:
        f"{R}/benchmarks/simulate/{{dataset}}.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    message:
        "Simulate patients from {wildcards.dataset}: one person, a pipeline check"
    shell:
        "voxprior simulate --card {input.card} --manifest {input.manifest} --output {output} > {log} 2>&1"
