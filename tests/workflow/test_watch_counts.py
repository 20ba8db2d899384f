"""`voxprior watch` counts the jobs that Snakemake counts."""

import json

from voxprior.study import live


def test_watch_and_snakemake_count_the_same_jobs(tmp_path, write_study, snakemake, jobs):
    folder = write_study(tmp_path / "with a space")
    assert snakemake(folder, "--cores", "1", "results/config.json").returncode == 0
    planned = jobs(snakemake(folder, "-n").text)
    config = json.loads((folder / "results/config.json").read_text())
    seen = live.look(list(live.steps(config, folder / "results", folder / "work/results")))
    counted = {stage: total for stage, (done, total) in seen.stages.items() if done == 0}
    assert counted == {name: number for name, number in planned.items() if name in seen.stages}
    assert {"pretrain", "finetune", "predict", "score", "compare", "report"} <= set(counted)
    assert seen.jobs == []
