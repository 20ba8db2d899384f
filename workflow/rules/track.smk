rule store:
    input:
        config=f"{R}/config.json",
    output:
        f"{R}/store.json",
    log:
        f"{R}/logs/store.log",
    benchmark:
        f"{R}/benchmarks/store.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Create the MLflow store before anything writes to it"
    shell:
        f"voxprior track --config {{input.config}} --results {R} --output {{output}} --create > {{log}} 2>&1"


rule track:
    input:
        config=f"{R}/config.json",
        store=ancient(f"{R}/store.json"),
        report=f"{R}/report.html",
    output:
        f"{R}/tracked.json",
    log:
        f"{R}/logs/track.log",
    benchmark:
        f"{R}/benchmarks/track.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=60,
    message:
        "Publish the runs to MLflow"
    shell:
        f"voxprior track --config {{input.config}} --results {R} --output {{output}} > {{log}} 2>&1"
