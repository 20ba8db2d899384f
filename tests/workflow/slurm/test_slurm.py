"""The Slurm profile on a real Slurm of one node: a study, a time limit, too little memory, Ctrl-C, scancel."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slurm
CELL = "finetune/mini_vit/scratch/budget1/fold0/seed0"
TARGET = f"results/{CELL}/summary.json"


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory, write_study):
    """A finished study, in a folder with a space in its name, and Slurm's list of its jobs."""
    folder = tmp_path_factory.mktemp("study") / "a path with spaces"
    inits = {"mini_vit": ["scratch", "mae"]}
    finetune = {"steps": 30, "batch_size": 2, "crop_vox": [24, 24, 24], "seeds": [0]}
    write_study(folder, inits=inits, pool=[], finetune=finetune, methods={})
    began, before = time.monotonic(), len(cluster.ended())
    code, text = cluster.snake(folder)
    assert code == 0, text
    ended = cluster.ended()[before:]
    cluster.tell("a small study, to its report", time.monotonic() - began, ended)
    return folder, ended, text


def test_a_study_runs_to_its_report(finished, snakemake, jobs):
    folder, ended, text = finished
    assert (folder / "results/report.html").exists()
    assert {job.state for job in ended} == {"COMPLETED"}
    assert len(list(folder.glob("results/finetune/*/*/*/*/*/scores.csv"))) == 4
    assert jobs(snakemake(folder, "-n").text) == {}, "another profile finds nothing to do"
    assert [job.gpus for job in ended].count(2) == 1, "what the profile asks for a pretraining"
    (cells,) = [job for job in ended if job.gpus == 1]
    assert (cells["NumCPUs"], cells.memory) == ("1", "1500M"), "four cells are one job, and take turns"
    assert len(ended) == 12, "four scorings are one job too"
    assert "group_cell" in text


@pytest.fixture
def longer(finished, tmp_path):
    """Copies the study with fine-tunings that take about so many seconds, measured in the finished one."""
    source = finished[0]

    def make(seconds: float) -> Path:
        folder = tmp_path / "longer"
        shutil.copytree(source, folder, symlinks=True)
        shutil.rmtree(folder / "work" / "results" / CELL)
        clock = [json.loads(line) for line in (source / f"results/{CELL}/clock.jsonl").read_text().splitlines()]
        per_step = (clock[-1]["seconds"] - clock[0]["seconds"]) / (clock[-1]["step"] - clock[0]["step"])
        path = folder / "config/config.yaml"
        study = yaml.safe_load(path.read_text())
        study["finetune"]["steps"] = max(60, int(seconds / per_step))
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return folder

    return make


def wait_for_training(folder: Path, cluster, seconds: float = 120) -> None:
    """Waits until the training has logged, and the check is done: cancelled, it would have all after it run again."""
    journal, until = folder / "work" / "results" / CELL / "journal.jsonl", time.monotonic() + seconds
    while not (journal.exists() and journal.read_text().count("\n") > 1) or len(cluster.queue()) > 1:
        assert time.monotonic() < until, f"no training began: {cluster.queue()}"
        time.sleep(0.2)


def twin(folder: Path, place: Path, cluster) -> subprocess.Popen:
    """Trains the same card beside Slurm, without a break, into `place`."""
    given = {"card": f"results/cards/{CELL}.json", "index": "results/prepared/phantoms/index.json"}
    given |= {"splits": "results/splits.json", "output": str(place), "work": f"{place} work"}
    words = [word for name, path in given.items() for word in (f"--{name}", path)]
    start = [sys.executable, "-m", "voxprior", "finetune", "--threads", "1", *words]
    return subprocess.Popen(start, cwd=folder, env=cluster.environment(), stderr=subprocess.DEVNULL)


def test_a_time_limit_warns_saves_and_resumes_to_the_same_bits(longer, cluster, tmp_path):
    folder, began = longer(45), time.monotonic()
    before = len(cluster.trained())
    with cluster.started(folder, TARGET, runtime="min(attempt, 3)") as process:
        try:
            wait_for_training(folder, cluster)
            other = twin(folder, tmp_path / "twin", cluster)
            assert process.wait(600) == 0, (folder / "said.txt").read_text()
        finally:
            process.kill()
    tries = cluster.trained()[before:]
    cluster.tell("a fine-tuning that runs into its time limit", time.monotonic() - began, tries)
    assert [job["TimeLimit"] for job in tries] == [f"00:0{n}:00" for n in (1, 2, 3, 3)][: len(tries)]
    *failed, last = [job.state for job in tries]
    assert failed, "the first ran into its limit"
    assert set(failed) <= {"FAILED", "TIMEOUT"} and last == "COMPLETED"
    # Shown by show-failed-logs, and kept in the log of the last try.
    assert re.search(r"was stopped by SIGUSR1 after step \d+, its state is saved", (folder / "said.txt").read_text())
    assert "goes on at step" in (folder / f"results/logs/{CELL}.log").read_text()
    assert other.wait(200) == 0
    for name in ("model.safetensors", "journal.jsonl"):
        ours, theirs = ((place / name).read_bytes() for place in (folder / f"results/{CELL}", tmp_path / "twin"))
        assert sha256(ours).hexdigest() == sha256(theirs).hexdigest(), name


def test_too_little_memory_is_followed_by_more(longer, cluster):
    folder, began = longer(8), time.monotonic()
    before = len(cluster.trained())
    code, text = cluster.snake(folder, TARGET, mem_mb="min(250 * attempt * attempt, 2500)")
    assert code == 0, text
    tries = cluster.trained()[before:]
    assert [job.memory for job in tries] == ["250M", "1000M", "2250M"][: len(tries)] and len(tries) > 1
    assert tries[0].state != "COMPLETED" and tries[-1].state == "COMPLETED"
    cluster.tell("one with too little memory", time.monotonic() - began, tries)
    assert "exceeded memory limit" in (cluster.folder / "log/slurmd.log").read_text()


def test_ctrl_c_cancels_the_jobs_and_the_same_command_goes_on(longer, cluster):
    folder, began = longer(20), time.monotonic()
    with cluster.started(folder, TARGET) as process:
        try:
            wait_for_training(folder, cluster)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) != 0
        finally:
            process.kill()
    until = time.monotonic() + 30
    while cluster.queue():
        assert time.monotonic() < until, cluster.queue()
        time.sleep(0.2)
    assert cluster.trained()[-1].state == "CANCELLED"
    assert list((folder / "work/results" / CELL).glob("state-*.pt")), "saved between SIGTERM and SIGKILL"
    code, text = cluster.snake(folder, TARGET)
    assert code == 0, text
    cluster.tell("Ctrl-C, and the same command again", time.monotonic() - began, cluster.trained()[-2:])
    assert "goes on at step" in (folder / f"results/logs/{CELL}.log").read_text()


def test_a_job_cancelled_by_hand_is_sent_again_and_resumes(longer, cluster):
    folder, began = longer(20), time.monotonic()
    with cluster.started(folder, TARGET) as process:
        try:
            wait_for_training(folder, cluster)
            (job,) = [line.split()[0] for line in cluster.queue() if "finetune" in line]
            subprocess.run(["scancel", job], check=True)
            assert process.wait(200) == 0, (folder / "said.txt").read_text()
        finally:
            process.kill()
    assert [job.state for job in cluster.trained()[-2:]] == ["CANCELLED", "COMPLETED"]
    cluster.tell("a job that scancel ended", time.monotonic() - began, cluster.trained()[-2:])
    assert "goes on at step" in (folder / f"results/logs/{CELL}.log").read_text()
