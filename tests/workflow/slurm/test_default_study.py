"""The default study on Slurm, whole: once, when what it took is recorded. A small one runs every time."""

import time
from collections import Counter

import pytest

pytestmark = pytest.mark.slurm


def test_the_default_study_runs_to_the_same_scores(cluster, snakemake, jobs, default_study, scores):
    began, before = time.monotonic(), len(cluster.ended())
    # One process a pretraining, as `make run` has it: sums of two are rounded in another order.
    code, text = cluster.snake(default_study, timeout_s=7200, gpus=1)
    assert code == 0, text
    ended = cluster.ended()[before:]
    assert Counter(job.state for job in ended) == {"COMPLETED": len(ended)}
    assert (default_study / "results/report.html").exists()
    assert jobs(snakemake(default_study, "-n").text) == {}, "another profile finds nothing to do"
    found = scores(default_study)
    cluster.tell("the default study, to its report", time.monotonic() - began, ended, **found)
    assert found["unlike"] == [], "the same numbers as without Slurm"
