"""A Slurm of one node, and the profile with what fits it."""

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
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
NODE = Path(__file__).parent / "node.sh"


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


class Job(dict):
    """What the controller says of a job."""

    @property
    def state(self) -> str:
        return self["JobState"]

    @property
    def gpus(self) -> int:
        return int(re.search(r"gpu:(\d+)", self.get("TresPerJob", "gpu:0")).group(1))

    @property
    def memory(self) -> str:
        """As Slurm writes it: 1500M or 1.5G."""
        return re.search(r"mem=([^,]+)", self["TRES"]).group(1)

    @property
    def seconds(self) -> int:
        began, end = (datetime.fromisoformat(self[key]) for key in ("StartTime", "EndTime"))
        return (end - began).seconds


# What fits this node. The rest is the profile's own. Slurm warns up to 30 s earlier than it is told to.
CHANGES = {
    "slurm-init-seconds-before-status-checks": 8,
    "latency-wait": 10,
    "default-resources": {"slurm_extra": "'--signal=USR1@15'"},
    "set-threads": dict.fromkeys(("intake", "prepare", "pretrain", "finetune"), 1),
}
SETS = {rule: {"mem_mb": 1200} for rule in ("intake", "prepare", "compare", "score")}
SETS |= {rule: {"mem_mb": 1500} for rule in ("finetune", "predict")}


def command(folder: Path, *targets: str, gpus: int = 2, **limits: Any) -> list[str]:
    """Names the command; `limits` are resources of `finetune`. On the command line they would replace the profile's.

    `gpus`: of a pretraining, each with a process of its own.
    """
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text()) | CHANGES
    changed = {"finetune": {**SETS["finetune"], **limits}, "pretrain": {"mem_mb": 1200 * gpus, "gpu": gpus}}
    for rule, small in {**SETS, **changed}.items():
        profile["set-resources"][rule] |= small
    place = folder.parent / f"{folder.name} profile"
    place.mkdir(exist_ok=True)
    (place / "config.yaml").write_text(yaml.safe_dump(profile))
    start = [sys.executable, "-m", "snakemake", *targets, "-s", str(ROOT / "Snakefile"), "--directory", str(folder)]
    return [*start, "--workflow-profile", str(place)]


def heed_ctrl_c() -> None:
    """Undoes that a shell which starts us in the background has SIGINT ignored for all below it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Cluster:
    """The node, the jobs that ended on it, and what is told about them in the docs."""

    def __init__(self, folder: Path, up_s: float) -> None:
        self.folder = folder
        version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
        plugin = metadata.version("snakemake-executor-plugin-slurm")
        where = {"slurm": version, "plugin": plugin, "snakemake": metadata.version("snakemake")}
        self.told = {"date": f"{date.today()}", "cores": os.cpu_count(), **where, "up_s": round(up_s, 1), "runs": []}

    def tell(self, what: str, seconds: float, jobs: list[Job], **more: object) -> None:
        """Notes a run: how long it took, and for each of its jobs state, limits, and seconds."""
        rows = []
        for job in jobs:
            rows.append({"state": job.state, "limit": job["TimeLimit"], "memory": job.memory})
            rows[-1] |= {"gpus": job.gpus, "seconds": job.seconds}
        self.told["runs"].append({"what": what, "seconds": round(seconds), **more, "jobs": rows})

    def ended(self) -> list[Job]:
        """Lists what the controller remembers of the jobs that ended, in the order in which they were sent."""
        told = subprocess.run(["scontrol", "--oneliner", "show", "jobs"], capture_output=True, text=True, check=True)
        jobs = [Job(re.findall(r"(\w+)=(\S*)", line)) for line in told.stdout.splitlines() if "JobId" in line]
        gone = [job for job in jobs if job.state not in ("PENDING", "RUNNING", "COMPLETING")]
        return sorted(gone, key=lambda job: int(job["JobId"]))

    def trained(self) -> list[Job]:
        return [job for job in self.ended() if job.gpus]

    def queue(self) -> list[str]:
        told = subprocess.run(["squeue", "--noheader", "--format=%i %T %k"], capture_output=True, text=True, check=True)
        return told.stdout.splitlines()

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, "OMP_NUM_THREADS": "1"}

    @contextmanager
    def started(self, folder: Path, *targets: str, **limits: Any):
        """Starts Snakemake; what it says goes to a file."""
        with open(folder / "said.txt", "w") as said:
            told = {"stdout": said, "stderr": subprocess.STDOUT, "cwd": ROOT, "env": self.environment()}
            yield subprocess.Popen(command(folder, *targets, **limits), preexec_fn=heed_ctrl_c, **told)

    def snake(self, folder: Path, *targets: str, timeout_s: float = 900, **limits: Any) -> tuple[int, str]:
        """Runs to the end; kills what hangs, and fails with what it said."""
        with self.started(folder, *targets, **limits) as process:
            try:
                code = process.wait(timeout_s)
            finally:
                process.kill()
                text = (folder / "said.txt").read_text()
                print(text[-3000:])
        return code, text


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if (reason := missing()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    began = time.monotonic()
    subprocess.run([NODE, "up", folder], check=True)
    one = Cluster(folder, time.monotonic() - began)
    yield one
    if path := os.environ.get("VOXPRIOR_RECORD"):
        Path(path).write_text(json.dumps(one.told, indent=1) + "\n")
    subprocess.run([NODE, "down", folder], check=True)
    assert not any(Path("/etc/slurm", name).is_symlink() for name in ("slurm.conf", "gres.conf"))
