rule split:
    input:
        card=f"{R}/cards/split.json",
        index=f"{R}/prepared/{STUDY['dataset']}/index.json",
    output:
        f"{R}/splits.json",
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
    message:
        "Split patients into test, validation and nested label budgets"
    shell:
        "voxprior split --card {input.card} --index {input.index} --output {output} > {log} 2>&1"
