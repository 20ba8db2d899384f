def manifest(wildcards):
    simulated = RESOLVED["datasets"][wildcards.dataset]["simulate"]
    return f"data/{'simulated' if simulated else 'raw'}/{wildcards.dataset}/manifest.json"


rule intake:
    message:
        "List and check the cases of {wildcards.dataset}"
    input:
        card=f"{R}/cards/intake/{{dataset}}.json",
        manifest=manifest,
    output:
        cases=f"{R}/intake/{{dataset}}/cases.csv",
        quarantine=f"{R}/intake/{{dataset}}/quarantine.csv",
    log:
        f"{R}/logs/intake/{{dataset}}.log",
    benchmark:
        f"{R}/benchmarks/intake/{{dataset}}.tsv"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=120,
    conda:
        "../envs/voxprior.yaml"
    shell:
        "voxprior intake --card {input.card} --manifest {input.manifest} --cases {output.cases}"
        " --quarantine {output.quarantine} > {log} 2>&1"


rule prepare:
    message:
        "Orient, resample, scale and cache {wildcards.dataset}"
    input:
        card=f"{R}/cards/prepare/{{dataset}}.json",
        cases=f"{R}/intake/{{dataset}}/cases.csv",
    output:
        f"{R}/prepared/{{dataset}}/index.json",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    benchmark:
        f"{R}/benchmarks/prepare/{{dataset}}.tsv"
    threads: 2
    resources:
        mem_mb=6000,
        runtime=12 * 60,
    conda:
        "../envs/voxprior.yaml"
    shell:
        "voxprior prepare --card {input.card} --cases {input.cases} --output {output} --workers {threads}"
        " > {log} 2>&1"
