rule intake:
    input:
        card=f"{R}/cards/intake/{{dataset}}.json",
        manifest=lambda w: MANIFESTS[w.dataset],
    output:
        cases=f"{R}/intake/{{dataset}}/cases.csv",
        quarantine=f"{R}/intake/{{dataset}}/quarantine.csv",
        fingerprint=f"{R}/intake/{{dataset}}/fingerprint.json",
    log:
        f"{R}/logs/intake/{{dataset}}.log",
    benchmark:
        f"{R}/benchmarks/intake/{{dataset}}.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=480,
    message:
        "List and check the cases of {wildcards.dataset}"
    shell:
        "voxprior intake --card {input.card} --manifest {input.manifest} --cases {output.cases}"
        " --quarantine {output.quarantine} --fingerprint {output.fingerprint} --workers {threads}"
        " > {log} 2>&1"


rule prepare:
    input:
        card=f"{R}/cards/prepare/{{dataset}}.json",
        cases=f"{R}/intake/{{dataset}}/cases.csv",
        fingerprint=f"{R}/intake/{{dataset}}/fingerprint.json",
        config=ancient(f"{R}/config.json"),  # only told on: no number depends on it
    output:
        f"{R}/prepared/{{dataset}}/index.json",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    benchmark:
        f"{R}/benchmarks/prepare/{{dataset}}.tsv"
    conda:
        "../envs/voxprior.yaml"
    threads: 2
    resources:
        mem_mb=6000,
        runtime=12 * 60,
    message:
        "Orient, resample, scale and cache {wildcards.dataset}"
    shell:
        "voxprior prepare --card {input.card} --cases {input.cases} --output {output} --workers {threads}"
        " --config {input.config} --fingerprint {input.fingerprint} > {log} 2>&1"
