"""The Slurm profile on a real Slurm of one node: a study, a time limit, too little memory, Ctrl-C, scancel."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import date, datetime
from hashlib import sha256
from importlib import metadata
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
    configured = Path("/etc/slurm/slurm.conf")
    runs = shutil.which("pgrep") and subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True).returncode == 0
    if configured.exists() and (runs or not configured.is_symlink()):
        return "this machine has a Slurm already"
    return None


REASON = missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def gpus(job: dict[str, str]) -> int:
    return int(re.search(r"gpu:(\d+)", job.get("TresPerJob", "gpu:0")).group(1))


def memory(job: dict[str, str]) -> str:
    """Reads what Slurm writes as 1500M or 1.5G."""
    return re.search(r"mem=([^,]+)", job["TRES"]).group(1)


class Cluster:
    """The node, its list of the jobs that ended, and what is told about them in the docs."""

    def __init__(self, folder: Path, up_s: float) -> None:
        self.folder = folder
        version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
        plugin = metadata.version("snakemake-executor-plugin-slurm")
        where = {"slurm": version, "plugin": plugin, "snakemake": metadata.version("snakemake")}
        self.told = {"date": f"{date.today()}", "cores": os.cpu_count(), **where, "up_s": round(up_s, 1), "runs": []}

    def tell(self, what: str, seconds: float, jobs: list[dict[str, str]]) -> None:
        """Notes a run: how long it took, and for each of its jobs state, limits, and seconds."""
        rows = []
        for job in jobs:
            began, end = (datetime.fromisoformat(job[key]) for key in ("StartTime", "EndTime"))
            rows.append({"state": job["JobState"], "limit": job["TimeLimit"], "memory": memory(job)})
            rows[-1] |= {"gpus": gpus(job), "seconds": (end - began).seconds}
        self.told["runs"].append({"what": what, "seconds": round(seconds), "jobs": rows})

    def ended(self) -> list[dict[str, str]]:
        """Lists what the controller remembers of the jobs that ended, in the order in which they were sent."""
        told = subprocess.run(["scontrol", "--oneliner", "show", "jobs"], capture_output=True, text=True, check=True)
        jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in told.stdout.splitlines() if "JobId" in line]
        gone = [job for job in jobs if job["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")]
        return sorted(gone, key=lambda job: int(job["JobId"]))

    def trained(self) -> list[dict[str, str]]:
        return [job for job in self.ended() if gpus(job)]

    def queue(self) -> list[str]:
        told = subprocess.run(["squeue", "--noheader", "--format=%i %T %k"], capture_output=True, text=True, check=True)
        return told.stdout.splitlines()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    began = time.monotonic()
    subprocess.run([NODE, "up", folder], check=True)
    one = Cluster(folder, time.monotonic() - began)
    yield one
    if path := os.environ.get("VOXPRIOR_RECORD"):
        Path(path).write_text(json.dumps(one.told, indent=1) + "\n")
    subprocess.run([NODE, "down", folder], check=True)
    assert not any(Path("/etc/slurm", name).is_symlink() for name in ("slurm.conf", "gres.conf"))


# What fits this node. The rest is the profile's own. Slurm warns up to 30 s earlier than it is told to.
CHANGES = {
    "slurm-init-seconds-before-status-checks": 8,
    "latency-wait": 10,
    "default-resources": {"slurm_extra": "'--signal=USR1@15'"},
    "set-threads": dict.fromkeys(("intake", "prepare", "pretrain", "finetune"), 1),
}
SETS = {rule: {"mem_mb": 1200} for rule in ("intake", "prepare", "compare", "score")}
SETS |= {rule: {"mem_mb": 1500} for rule in ("finetune", "predict")}
SETS |= {"pretrain": {"mem_mb": 1200, "gpu": 2}}


def command(folder: Path, *targets: str, **limits: str) -> list[str]:
    """Names the command; `limits` are resources of `finetune`. On the command line they would replace the profile's."""
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text()) | CHANGES
    for rule, small in {**SETS, "finetune": {**SETS["finetune"], **limits}}.items():
        profile["set-resources"][rule] |= small
    place = folder.parent / f"{folder.name} profile"
    place.mkdir(exist_ok=True)
    (place / "config.yaml").write_text(yaml.safe_dump(profile))
    start = [sys.executable, "-m", "snakemake", *targets, "-s", str(ROOT / "Snakefile"), "--directory", str(folder)]
    return [*start, "--workflow-profile", str(place)]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1"}


def heed_ctrl_c() -> None:
    """Undoes that a shell which starts us in the background has SIGINT ignored for all below it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def started(folder: Path, *targets: str, **limits: str):
    """Starts Snakemake; what it says goes to a file."""
    with open(folder / "said.txt", "w") as said:
        told = {"stdout": said, "stderr": subprocess.STDOUT, "cwd": ROOT, "env": environment()}
        yield subprocess.Popen(command(folder, *targets, **limits), preexec_fn=heed_ctrl_c, **told)


def snake(folder: Path, *targets: str, timeout_s: float = 900, **limits: str) -> tuple[int, str]:
    """Runs to the end; kills what hangs, and fails with what it said."""
    with started(folder, *targets, **limits) as process:
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
    cluster.tell("a small study, to its report", time.monotonic() - began, cluster.ended())
    return folder, cluster.ended(), text


def test_a_study_runs_to_its_report(finished, snakemake, jobs):
    folder, ended, text = finished
    assert (folder / "results/report.html").exists()
    assert {job["JobState"] for job in ended} == {"COMPLETED"}
    assert len(list(folder.glob("results/finetune/*/*/*/*/*/scores.csv"))) == 4
    assert jobs(snakemake(folder, "-n").text) == {}, "another profile finds nothing to do"
    assert [gpus(job) for job in ended].count(2) == 1, "what the profile asks for a pretraining"
    (cells,) = [job for job in ended if gpus(job) == 1]
    assert (cells["NumCPUs"], memory(cells)) == ("1", "1500M"), "four cells are one job, and take turns"
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


def wait_for_training(folder: Path, cluster: Cluster, seconds: float = 120) -> None:
    """Waits until the training has logged, and the check is done: cancelled, it would have all after it run again."""
    journal, until = folder / "work" / "results" / CELL / "journal.jsonl", time.monotonic() + seconds
    while not (journal.exists() and journal.read_text().count("\n") > 1) or len(cluster.queue()) > 1:
        assert time.monotonic() < until, f"no training began: {cluster.queue()}"
        time.sleep(0.2)


def twin(folder: Path, place: Path) -> subprocess.Popen:
    """Trains the same card beside Slurm, without a break, into `place`."""
    given = {"card": f"results/cards/{CELL}.json", "index": "results/prepared/phantoms/index.json"}
    given |= {"splits": "results/splits.json", "output": str(place), "work": f"{place} work"}
    words = [word for name, path in given.items() for word in (f"--{name}", path)]
    start = [sys.executable, "-m", "voxprior", "finetune", "--threads", "1", *words]
    return subprocess.Popen(start, cwd=folder, env=environment(), stderr=subprocess.DEVNULL)


def test_a_time_limit_warns_saves_and_resumes_to_the_same_bits(longer, cluster, tmp_path):
    folder, began = longer(45), time.monotonic()
    before = len(cluster.trained())
    with started(folder, TARGET, runtime="min(attempt, 3)") as process:
        try:
            wait_for_training(folder, cluster)
            other = twin(folder, tmp_path / "twin")
            assert process.wait(600) == 0, (folder / "said.txt").read_text()
        finally:
            process.kill()
    tries = cluster.trained()[before:]
    cluster.tell("a fine-tuning that runs into its time limit", time.monotonic() - began, tries)
    assert [job["TimeLimit"] for job in tries] == [f"00:0{n}:00" for n in (1, 2, 3, 3)][: len(tries)]
    *failed, last = [job["JobState"] for job in tries]
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
    code, text = snake(folder, TARGET, mem_mb="min(250 * attempt * attempt, 2500)")
    assert code == 0, text
    tries = cluster.trained()[before:]
    assert [memory(job) for job in tries] == ["250M", "1000M", "2250M"][: len(tries)] and len(tries) > 1
    assert tries[0]["JobState"] != "COMPLETED" and tries[-1]["JobState"] == "COMPLETED"
    cluster.tell("one with too little memory", time.monotonic() - began, tries)
    assert "exceeded memory limit" in (cluster.folder / "log/slurmd.log").read_text()


def test_ctrl_c_cancels_the_jobs_and_the_same_command_goes_on(longer, cluster):
    folder, began = longer(20), time.monotonic()
    with started(folder, TARGET) as process:
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
    assert cluster.trained()[-1]["JobState"] == "CANCELLED"
    assert list((folder / "work/results" / CELL).glob("state-*.pt")), "saved between SIGTERM and SIGKILL"
    code, text = snake(folder, TARGET)
    assert code == 0, text
    cluster.tell("Ctrl-C, and the same command again", time.monotonic() - began, cluster.trained()[-2:])
    assert "goes on at step" in (folder / f"results/logs/{CELL}.log").read_text()


def test_a_job_cancelled_by_hand_is_sent_again_and_resumes(longer, cluster):
    folder, began = longer(20), time.monotonic()
    with started(folder, TARGET) as process:
        try:
            wait_for_training(folder, cluster)
            (job,) = [line.split()[0] for line in cluster.queue() if "finetune" in line]
            subprocess.run(["scancel", job], check=True)
            assert process.wait(200) == 0, (folder / "said.txt").read_text()
        finally:
            process.kill()
    assert [job["JobState"] for job in cluster.trained()[-2:]] == ["CANCELLED", "COMPLETED"]
    cluster.tell("a job that scancel ended", time.monotonic() - began, cluster.trained()[-2:])
    assert "goes on at step" in (folder / f"results/logs/{CELL}.log").read_text()
