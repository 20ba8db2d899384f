"""The Slurm profile on a real Slurm of one node: a study, a time limit, too little memory, Ctrl-C, scancel."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).parent / "slurm_node.sh"
CELL = "finetune/mini_vit/scratch/budget1/fold0/seed0"
TARGET = f"results/{CELL}/summary.json"


def missing() -> str | None:
    """Says what is not there to run a Slurm with."""
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "sbatch")):
        return "Slurm is not installed: apt-get install slurmctld slurmd slurm-client"
    if os.geteuid() != 0:
        return "only root starts the Slurm of one node"
    if find_spec("snakemake_executor_plugin_slurm") is None:
        return "snakemake-executor-plugin-slurm is not installed"
    if Path("/etc/slurm/slurm.conf").exists():
        return "this machine has a Slurm already"
    return None


REASON = missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


class Cluster:
    """The node, and its own list of the jobs that ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ended(self) -> list[dict[str, str]]:
        lines = (self.folder / "log" / "jobs.txt").read_text().splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]

    def queue(self) -> list[str]:
        told = subprocess.run(["squeue", "--noheader", "--format=%i %T"], capture_output=True, text=True, check=True)
        return told.stdout.splitlines()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    began = time.monotonic()
    subprocess.run([NODE, "up", folder], check=True)
    print(f"\nthe node was up after {time.monotonic() - began:.1f} s")
    yield Cluster(folder)
    subprocess.run([NODE, "down", folder], check=True)
    assert not any(Path("/etc/slurm", name).is_symlink() for name in ("slurm.conf", "gres.conf"))


# What fits this node. The rest is the profile's own. Slurm warns up to 30 s earlier than it is told to.
CHANGES = {
    "slurm-init-seconds-before-status-checks": 2,
    "latency-wait": 10,
    "default-resources": {"slurm_extra": "'--signal=USR1@15'"},
    "set-threads": {},
}
MEMORY = {
    **dict.fromkeys(("intake", "prepare", "compare", "score", "pretrain"), {"mem_mb": 1200}),
    **dict.fromkeys(("finetune", "predict"), {"mem_mb": 1500}),
}


def command(folder: Path, *targets: str, **limits: str) -> list[str]:
    """Names the command; `limits` are resources of `finetune`. What the command line sets would replace whole tables."""
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text()) | CHANGES
    for rule, small in {**MEMORY, "finetune": {**MEMORY["finetune"], **limits}}.items():
        profile["set-resources"][rule] |= small
    place = folder.parent / f"{folder.name} profile"
    place.mkdir(exist_ok=True)
    (place / "config.yaml").write_text(yaml.safe_dump(profile))
    start = [sys.executable, "-m", "snakemake", *targets, "-s", str(ROOT / "Snakefile"), "--directory", str(folder)]
    return [*start, "--workflow-profile", str(place)]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1"}


def snake(folder: Path, *targets: str, timeout_s: float = 900, **limits: str) -> tuple[int, str]:
    """Runs to the end; kills what hangs, and fails with what it said."""
    with open(folder / "said.txt", "w+") as said:
        process = subprocess.Popen(
            command(folder, *targets, **limits), cwd=ROOT, env=environment(), stdout=said, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
            text = (folder / "said.txt").read_text()
            print(text[-3000:])
    return code, text


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory, write_study):
    """A finished study, in a folder with a space in its name, and Slurm's list of its jobs."""
    folder = tmp_path_factory.mktemp("study") / "a path with spaces"
    inits = {"mini_vit": ["scratch", "mae"]}
    finetune = {"steps": 30, "batch_size": 2, "crop_vox": [24, 24, 24], "seeds": [0]}
    write_study(folder, inits=inits, pool=[], finetune=finetune, methods={})
    began = time.monotonic()
    code, text = snake(folder)
    assert code == 0, text
    print(f"the study took {time.monotonic() - began:.0f} s")
    return folder, cluster.ended(), text


def test_a_study_runs_to_its_report(finished, snakemake, jobs):
    folder, ended, text = finished
    assert (folder / "results/report.html").exists()
    assert {job["JobState"] for job in ended} == {"COMPLETED"}
    assert len(list(folder.glob("results/finetune/*/*/*/*/*/scores.csv"))) == 4
    assert jobs(snakemake(folder, "-n").text) == {}, "another profile finds nothing to do"
    trained = [job for job in ended if "gres/gpu=1" in job["Tres"]]
    assert len(trained) == 2, "the pretraining, and all four cells as one job on one GPU"
    assert len(ended) == 12, "four scorings are one job too"
    assert "group_cell" in text


@pytest.fixture
def longer(finished, tmp_path):
    """Copies the study with fine-tunings that take about so many seconds, measured in the finished one."""
    source = finished[0]

    def make(seconds: float) -> Path:
        folder = tmp_path / "longer"
        shutil.copytree(source, folder, symlinks=True)
        clock = [json.loads(line) for line in (source / f"results/{CELL}/clock.jsonl").read_text().splitlines()]
        per_step = (clock[-1]["seconds"] - clock[0]["seconds"]) / (clock[-1]["step"] - clock[0]["step"])
        path = folder / "config/config.yaml"
        study = yaml.safe_load(path.read_text())
        study["finetune"]["steps"] = max(60, int(seconds / per_step))
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return folder

    return make


def wait_for_training(folder: Path, seconds: float = 120) -> None:
    journal, until = folder / "work" / "results" / CELL / "journal.jsonl", time.monotonic() + seconds
    while not (journal.exists() and journal.read_text().count("\n") > 1):
        assert time.monotonic() < until, "no training began"
        time.sleep(0.2)


def test_a_time_limit_warns_saves_and_resumes_to_the_same_bits(longer, cluster, tmp_path):
    folder = longer(60)
    before = len(cluster.ended())
    code, text = snake(folder, TARGET, runtime="min(attempt, 3)")
    assert code == 0, text
    tries = [job for job in cluster.ended()[before:] if "gres/gpu=1" in job["Tres"]]
    assert [job["TimeLimit"] for job in tries] == ["1", "2", "3"][: len(tries)], "each try may take longer"
    assert [job["JobState"] for job in tries] == ["FAILED"] * (len(tries) - 1) + ["COMPLETED"]
    assert len(tries) > 1, "the first ran into its limit"
    # Shown by show-failed-logs, and kept in the log of the last try.
    assert re.search(r"was stopped by SIGUSR1 after step \d+, its state is saved", text)
    assert "goes on at step" in (folder / f"results/logs/{CELL}.log").read_text()

    twin = [sys.executable, "-m", "voxprior", "finetune", "--threads", "1"]
    given = {"card": f"results/cards/{CELL}.json", "index": "results/prepared/phantoms/index.json"}
    given |= {"splits": "results/splits.json", "output": str(tmp_path / "twin"), "work": str(tmp_path / "work")}
    twin += [word for name, path in given.items() for word in (f"--{name}", path)]
    subprocess.run(twin, cwd=folder, env=environment(), check=True, capture_output=True)
    for name in ("model.safetensors", "journal.jsonl"):
        one, other = ((place / name).read_bytes() for place in (folder / f"results/{CELL}", tmp_path / "twin"))
        assert sha256(one).hexdigest() == sha256(other).hexdigest(), name


def test_too_little_memory_is_followed_by_more(longer, cluster):
    folder = longer(8)
    before = len(cluster.ended())
    code, text = snake(folder, TARGET, mem_mb="min(250 * attempt * attempt, 2500)")
    assert code == 0, text
    tries = [job for job in cluster.ended()[before:] if "gres/gpu=1" in job["Tres"]]
    asked = [int(re.search(r"mem=(\d+)M", job["Tres"]).group(1)) for job in tries]
    assert asked == [250, 1000, 2250][: len(tries)] and len(tries) > 1
    assert tries[0]["JobState"] != "COMPLETED" and tries[-1]["JobState"] == "COMPLETED"
    assert "exceeded memory limit" in (cluster.folder / "log/slurmd.log").read_text()


def test_ctrl_c_cancels_the_jobs_and_the_same_command_goes_on(longer, cluster):
    folder = longer(20)
    with open(folder / "said.txt", "w") as said:
        process = subprocess.Popen(
            command(folder, TARGET), cwd=ROOT, env=environment(), stdout=said, stderr=subprocess.STDOUT
        )
        try:
            wait_for_training(folder)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) != 0
        finally:
            process.kill()
    until = time.monotonic() + 30
    while cluster.queue():
        assert time.monotonic() < until, cluster.queue()
        time.sleep(0.2)
    assert cluster.ended()[-1]["JobState"] == "CANCELLED"
    assert list((folder / "work/results" / CELL).glob("state-*.pt")), "saved between SIGTERM and SIGKILL"
    code, text = snake(folder, TARGET)
    assert code == 0, text
    assert "goes on at step" in (folder / f"results/logs/{CELL}.log").read_text()


def test_a_job_cancelled_by_hand_is_sent_again_and_resumes(longer, cluster):
    folder = longer(20)
    with open(folder / "said.txt", "w") as said:
        process = subprocess.Popen(
            command(folder, TARGET), cwd=ROOT, env=environment(), stdout=said, stderr=subprocess.STDOUT
        )
        try:
            wait_for_training(folder)
            (job,) = [line.split()[0] for line in cluster.queue()]
            subprocess.run(["scancel", job], check=True)
            assert process.wait(200) == 0, (folder / "said.txt").read_text()
        finally:
            process.kill()
    assert [job["JobState"] for job in cluster.ended()[-2:]] == ["CANCELLED", "COMPLETED"]
    assert "goes on at step" in (folder / f"results/logs/{CELL}.log").read_text()
