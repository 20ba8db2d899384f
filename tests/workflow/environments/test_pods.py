"""The Kubernetes profile with real containers: podman plays each job's pod, in the image of containers/Dockerfile.

What it proves: the pod as it is sent runs in that image as the caller's user, on the volume, within its memory; a deadline
is met by a saved training that goes on. What it cannot: anything that the API, a scheduler or several nodes do.
"""

import json
import os
import re
import subprocess
import sys
import time
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
KUBELET = Path(__file__).parent / "kubelet.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("snakemake_executor_plugin_cluster_generic") is None, reason="the plugin is missing"),
]
USER = 4321
CELL = "finetune/mini_vit/scratch/budget1/fold0/seed0"
# What fits one machine. The rest is the profile's own.
CHANGES = {
    "latency-wait": 10,
    "seconds-between-status-checks": 1,
    "jobs": 1,
    "set-threads": dict.fromkeys(("intake", "prepare", "pretrain", "finetune"), 1),
}


@pytest.fixture(scope="module")
def volume(image, tmp_path_factory):
    """A folder that is the claim, with the project on it as a user of the cluster has it; no pod is left at the end."""
    folder = tmp_path_factory.mktemp("volume")
    for parent in (folder, *folder.parents):
        if parent.owner() == "root" and parent != Path("/") and str(parent) != "/tmp":
            parent.chmod(parent.stat().st_mode | 0o055)
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", folder / "voxprior"], check=True)
    for name in ("workflow", "Snakefile"):  # as they are here
        subprocess.run(["rm", "-rf", folder / "voxprior" / name], check=True)
        subprocess.run(["cp", "-R", ROOT / name, folder / "voxprior"], check=True)
    claim = f"voxprior-{os.getpid()}"
    made = ["podman", "volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", f"device={folder}", claim]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    yield folder, claim
    left = subprocess.run(["podman", "pod", "ps", "-q"], capture_output=True, text=True, check=True)
    subprocess.run(["podman", "volume", "rm", "--force", claim], check=True, stdout=subprocess.DEVNULL)
    assert not left.stdout, "every pod was removed"


class Cluster:
    """Runs Snakemake outside of the image, as a user of their own, and knows what was sent."""

    def __init__(self, image: str, folder: Path, claim: str, place: Path) -> None:
        self.pods, self.place, self.folder = place / "pods", place, folder
        self.pods.mkdir(parents=True)
        self.environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.environment |= {"PODS": str(self.pods), "KUBECTL": f"{sys.executable} {KUBELET}", "OMP_NUM_THREADS": "1"}
        self.environment |= {"VOXPRIOR_POD_IMAGE": image, "VOXPRIOR_CLAIM": claim, "VOXPRIOR_MOUNT": str(folder)}

    def start(self, study: Path, *targets: str, **limits: str) -> subprocess.Popen:
        project = self.folder / "voxprior"
        profile = yaml.safe_load((project / "workflow/profiles/kubernetes/config.yaml").read_text()) | CHANGES
        profile["set-resources"]["finetune"] |= limits
        for rule in profile["set-resources"].values():
            rule["mem_mb"] = rule["mem_mb"].replace("16000", "2000").replace("8000", "2000")
        (self.place / "config.yaml").write_text(yaml.safe_dump(profile))
        command = [sys.executable, "-m", "snakemake", *targets, "-s", str(project / "Snakefile")]
        command += ["--directory", str(study), "--workflow-profile", str(self.place)]
        said = (self.place / "said.txt").open("w")
        return subprocess.Popen(command, cwd=study, env=self.environment, stdout=said, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return (self.place / "said.txt").read_text()

    def sent(self) -> list[dict]:
        """Lists the jobs in the order in which they were sent."""
        paths = sorted(self.pods.glob("*.json"), key=lambda path: path.with_suffix(".said").stat().st_ctime)
        return [json.loads(path.read_text()) for path in paths]


def study_on(folder: Path, write_study, steps: int) -> Path:
    finetune = {"steps": steps, "batch_size": 2, "crop_vox": [24, 24, 24], "seeds": [0]}
    study = write_study(folder, inits={"mini_vit": ["scratch", "mae"]}, pool=[], finetune=finetune, methods={})
    (study / "workflow").symlink_to(folder.parent / "voxprior/workflow")
    return study


def test_a_study_runs_in_pods_to_its_report(image, volume, tmp_path, told, write_study, snakemake, jobs):
    folder, claim = volume
    cluster, study = Cluster(image, folder, claim, tmp_path), study_on(folder / "study", write_study, 30)
    began = time.monotonic()
    code = cluster.start(study).wait(900)
    assert code == 0, cluster.said()[-5000:]
    sent = cluster.sent()
    assert {job["code"] for job in sent} == {0}
    told["pods_s"], told["pods"] = round(time.monotonic() - began), len(sent)
    assert (study / "results/report.html").exists()
    assert len(list(study.glob("results/finetune/*/*/*/*/*/scores.csv"))) == 4
    assert jobs(snakemake(study, "-n").text) == {}, "another profile finds nothing to do"
