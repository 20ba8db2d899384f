rule store:
    message:
        "Create the MLflow store before anything writes to it"
    input:
        config=f"{R}/config.json",
    output:
        f"{R}/store.json",
    log:
        f"{R}/logs/store.log",
    benchmark:
        f"{R}/benchmarks/store.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    conda:
        "../envs/voxprior.yaml"
    shell:
        f"voxprior track --config {{input.config}} --results {R} --output {{output}} --create > {{log}} 2>&1"


rule track:
    message:
        "Publish the runs to MLflow"
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
    threads: 1
    resources:
        mem_mb=1000,
        runtime=60,
    conda:
        "../envs/voxprior.yaml"
    shell:
        f"voxprior track --config {{input.config}} --results {R} --output {{output}} > {{log}} 2>&1"
