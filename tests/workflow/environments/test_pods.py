"""The Kubernetes profile with real containers: podman plays each job's pod, in the image of containers/Dockerfile.

What it proves: the pods, as they are sent, run in that image as the caller's user, on the volume, within their memory;
a training that meets its deadline has saved and goes on. What it cannot: anything that the API, a scheduler or several
nodes do. Snakemake itself runs in the image too, as in a pod that someone logs into.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
KUBELET = Path(__file__).parent / "kubelet.py"
pytestmark = pytest.mark.slow
USER = 4321
CELL = "finetune/mini_vit/scratch/budget1/fold0/seed0"
# What fits one small machine. The rest is the profile's own.
CHANGES = {
    "latency-wait": 10,
    "jobs": 1,
    "seconds-between-status-checks": 2,
    "set-threads": dict.fromkeys(("intake", "prepare", "pretrain", "finetune"), 1),
}


class Cluster:
    """A volume with the project on it, its claim, and one node that plays pods."""

    def __init__(self, image: str, folder: Path) -> None:
        self.image, self.folder, self.pods, self.claim = image, folder, folder / "pods", f"claim-{folder.name}"
        self.pods.mkdir(mode=0o777)
        (folder / "voxprior").mkdir()
        for name in ("workflow", "config"):
            shutil.copytree(ROOT / name, folder / "voxprior" / name)
        shutil.copy(ROOT / "Snakefile", folder / "voxprior")
        shutil.copy(KUBELET, folder)
        bind = ["--opt", "type=none", "--opt", "o=bind", "--opt", f"device={folder}"]
        subprocess.run(["podman", "volume", "create", *bind, self.claim], check=True, stdout=subprocess.DEVNULL)
        self.node = subprocess.Popen([sys.executable, KUBELET, "serve", self.pods])

    def snakemake(self, study: Path, *words: str, **limits: str) -> subprocess.Popen:
        """Starts Snakemake in a container on the volume; `limits` are resources of `finetune`."""
        profile = yaml.safe_load((ROOT / "workflow/profiles/kubernetes/config.yaml").read_text()) | CHANGES
        for rule in profile["set-resources"].values():
            rule["mem_mb"] = re.sub(r"\d{4,}", "2000", rule["mem_mb"])
        profile["set-resources"]["finetune"] |= limits
        place = study / "profile"
        place.mkdir(exist_ok=True)
        (place / "config.yaml").write_text(yaml.safe_dump(profile))
        subprocess.run(["chown", "-R", f"{USER}:{USER}", self.folder], check=True)
        given = {"PODS": self.pods, "KUBECTL": f"python {self.folder / 'kubelet.py'}", "VOXPRIOR_MOUNT": self.folder}
        given |= {"VOXPRIOR_POD_IMAGE": self.image, "VOXPRIOR_CLAIM": self.claim, "OMP_NUM_THREADS": 1}
        run = ["podman", "run", "--rm", "--user", f"{USER}:{USER}", "--read-only", "--network", "none"]
        run += [word for key, value in given.items() for word in ("--env", f"{key}={value}")]
        run += ["--volume", f"{self.folder}:{self.folder}", "--workdir", str(study), self.image]
        run += ["snakemake", *words, "-s", str(self.folder / "voxprior/Snakefile"), "--workflow-profile", str(place)]
        said = (study / "said.txt").open("w")
        return subprocess.Popen(run, stdout=said, stderr=subprocess.STDOUT)

    def ended(self) -> list[dict]:
        """Lists how the pods ended, in the order in which they began."""
        return sorted(
            (json.loads(path.read_text()) for path in self.pods.glob("*.ended")), key=lambda one: one["began"]
        )

    def close(self) -> None:
        self.node.terminate()
        self.node.wait()
        named = ["podman", "pod", "ps", "--filter", "label=app=voxprior", "--quiet"]
        left = subprocess.run(named, capture_output=True, text=True, check=True).stdout.split()
        if left:
            subprocess.run(["podman", "pod", "rm", "--force", *left], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["podman", "volume", "rm", "--force", self.claim], check=True, stdout=subprocess.DEVNULL)
        assert not left, "every pod was removed"


@pytest.fixture(scope="module")
def cluster(image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("volume")
    for parent in folder.parents[:2]:  # pytest closes them for others
        parent.chmod(0o755)
    one = Cluster(image, folder)
    yield one
    one.close()


@pytest.fixture(scope="module")
def finished(cluster, told, write_study) -> Path:
    study = cluster.folder / "study"
    finetune = {"steps": 4, "batch_size": 2, "crop_vox": [24, 24, 24], "seeds": [0]}
    write_study(study, inits={"mini_vit": ["scratch"]}, pool=[], finetune=finetune, methods={})
    (study / "workflow").symlink_to(cluster.folder / "voxprior/workflow")
    began = time.monotonic()
    code = cluster.snakemake(study).wait(1800)
    assert code == 0, (study / "said.txt").read_text()[-5000:]
    told["pods_s"], told["pods"] = round(time.monotonic() - began), len(cluster.ended())
    return study


def test_a_study_runs_in_pods_to_its_report(finished, cluster):
    assert (finished / "results/report.html").exists()
    ended = cluster.ended()
    assert {(job["code"], job["why"]) for job in ended} == {(0, None)}
    assert len(list(finished.glob("results/finetune/*/*/*/*/*/scores.csv"))) == 2
    assert {path.lstat().st_uid for path in (finished / "results").rglob("*")} == {USER}
    assert (finished / "work/numba").is_dir(), "compiled once for all pods"


def test_memory_and_deadline_end_pods_and_the_training_goes_on(finished, cluster, told):
    """The first pod has too little memory, the second meets its deadline in training, the third ends the training."""
    path = finished / "config/config.yaml"
    study = yaml.safe_load(path.read_text())
    study["finetune"]["steps"] = 600
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    before, began = len(cluster.ended()), time.monotonic()
    target, journal = f"results/{CELL}/summary.json", finished / "work/results" / CELL / "journal.jsonl"
    shutil.rmtree(journal.parent)
    memory = "2500 if attempt > 1 else 250"
    process = cluster.snakemake(finished, target, "--rerun-triggers", "mtime", "params", mem_mb=memory)
    until = time.monotonic() + 1200
    while not (journal.exists() and journal.read_text().count("\n") > 1):
        assert process.poll() is None and time.monotonic() < until, (finished / "said.txt").read_text()[-5000:]
        time.sleep(0.2)
    (running,) = {path.stem for path in cluster.pods.glob("*.job")} - {
        path.stem for path in cluster.pods.glob("*.ended")
    }
    (cluster.pods / f"{running}.late").touch()
    assert process.wait(1200) == 0, (finished / "said.txt").read_text()[-5000:]
    first, second, third = [job for job in cluster.ended()[before:] if job["deadline_s"] >= 7200]
    # The cgroup kills the training and not the first process, so the container is not called out of memory.
    assert first["memory"] == "250M" and first["code"] != 0
    assert re.search(r"Killed +voxprior finetune", (cluster.pods / f"{first['name']}.log").read_text())
    assert second["why"] == "DeadlineExceeded" and second["memory"] == "2500M"
    assert third["code"] == 0 and third["deadline_s"] > second["deadline_s"], "more time at the next attempt"
    said = (cluster.pods / f"{running}.log").read_text() + (finished / "said.txt").read_text()
    assert re.search(r"was stopped by SIGUSR1 after step \d+, its state is saved", said), said[-5000:]
    assert "goes on at step" in (finished / f"results/logs/{CELL}.log").read_text()
    told["deadline_s"] = round(time.monotonic() - began)
    told["deadline"] = [
        {key: job[key] for key in ("memory", "deadline_s", "seconds", "why", "code")} for job in (first, second, third)
    ]
