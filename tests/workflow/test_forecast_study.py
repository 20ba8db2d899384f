"""`doctor --forecast` on the small study: the probe runs, and its jobs are those that Snakemake plans."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
INITS = {"mini_vit": ["scratch", "mae"], "mini_cnn": ["scratch", "byol"]}


def test_the_forecast_of_a_small_study(tmp_path, snakemake, write_study, jobs):
    study = write_study(tmp_path / "study", inits=INITS)
    assert snakemake(study, "--cores", "2", "--until", "intake").returncode == 0
    command = [sys.executable, "-m", "voxprior", "doctor", "--forecast", "--json", "told.json"]
    done = subprocess.run(
        command, cwd=study, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "byol on mini_cnn" in done.stdout
    told = json.loads((study / "told.json").read_text())
    planned = jobs(snakemake(study, "-n").text)
    for stage in ("prepare", "pretrain", "finetune", "predict", "score"):
        rows = [row for row in told["rows"] if row["stage"] == stage]
        assert sum(row["jobs"] for row in rows) == planned[stage], stage
        assert all(row["seconds"] > 0.3 for row in rows), "starting Python alone takes that"
        assert stage == "score" or all(row["memory_bytes"] > 50 << 20 for row in rows)
    assert told["total"]["disk_bytes"] > 0
    assert not list(tmp_path.glob("voxprior-probe-*")), "the probe's folder is removed"
    assert not (study / "results" / "pretrain").exists(), "nothing of the study itself was run"
