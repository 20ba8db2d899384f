"""The Kubernetes profile, with a stand-in for `kubectl` that runs each pod as a process of this machine.

What it proves: manifests, resources, states, the warning, resuming. What it cannot: anything that a real cluster does.
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
JOB = ROOT / "workflow/profiles/kubernetes/job.sh"

KUBECTL = """
import json, os, subprocess, sys, uuid, pathlib, yaml

folder = pathlib.Path(os.environ["PODS"])
verb, rest = sys.argv[3], sys.argv[4:]  # after --namespace NAME
if verb == "create":
    job = yaml.safe_load(sys.stdin)
    name = job["metadata"]["generateName"] + uuid.uuid4().hex[:5]
    (folder / f"{name}.json").write_text(json.dumps(job))
    (pod,) = job["spec"]["template"]["spec"]["containers"]
    ran = "import subprocess, sys; print(subprocess.run(sys.argv[1:]).returncode)"
    with open(folder / f"{name}.code", "w") as code, open(folder / f"{name}.log", "w") as log:
        subprocess.Popen(
            [sys.executable, "-c", ran, *pod["command"]],
            cwd=pod["workingDir"], stdout=code, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )
    print(name, end="")
elif verb == "get":
    code = (folder / f"{rest[1]}.code").read_text().split()[-1:]
    print({"": f"{rest[1]}//", "0": f"{rest[1]}/1/"}.get("".join(code), f"{rest[1]}//1"), end="")
"""


@pytest.fixture
def pods(tmp_path, monkeypatch):
    """A folder in which the stand-in keeps what it was sent."""
    folder = tmp_path / "pods"
    folder.mkdir()
    (tmp_path / "kubectl.py").write_text(KUBECTL)
    monkeypatch.setenv("PODS", str(folder))
    monkeypatch.setenv("KUBECTL", f"{sys.executable} {tmp_path / 'kubectl.py'}")
    monkeypatch.setenv("VOXPRIOR_POD_IMAGE", "registry.example/voxprior:0.1.0")
    monkeypatch.setenv("VOXPRIOR_CLAIM", "scans")
    monkeypatch.setenv("VOXPRIOR_MOUNT", str(tmp_path.resolve()))
    return folder


def job(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([JOB, *map(str, words)], cwd=cwd, capture_output=True, text=True)


def ended(name: str, cwd: Path) -> str:
    until = time.monotonic() + 20
    while (told := job("status", name, cwd=cwd).stdout.strip()) == "running" and time.monotonic() < until:
        time.sleep(0.05)
    return told


def test_a_manifest_holds_limits_volume_and_deadline(pods, tmp_path):
    script = tmp_path / "job script.sh"
    script.write_text("exit 0\n")
    name = job("submit", "score_all", 4, 16000, 90, 1, script, cwd=tmp_path).stdout
    assert name.startswith("voxprior-score-all-")
    spec = json.loads((pods / f"{name}.json").read_text())["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"cpu": "4", "memory": "16000M", "nvidia.com/gpu": "1"}}
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": str(tmp_path.resolve())}]
    assert container["workingDir"] == str(tmp_path.resolve())
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "scans"}
    assert pod["securityContext"] == {"runAsUser": os.getuid(), "runAsGroup": os.getgid()}
    assert (spec["backoffLimit"], pod["activeDeadlineSeconds"], pod["restartPolicy"]) == (0, 5400, "Never")
    assert ended(name, tmp_path) == "success"
    without = job("submit", "GROUP", 1, 500, 10, 0, script, cwd=tmp_path).stdout
    content = json.loads((pods / f"{without}.json").read_text())
    assert content["metadata"]["generateName"] == "voxprior-group-"
    assert "nvidia.com/gpu" not in content["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("version", ["1.25", "1.30", "1.37"])
def test_what_is_sent_is_what_kubernetes_knows(version, pods, tmp_path):
    """The published schemas of the API, strict: a key that is not in them is refused."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    from kubernetes_validate import ValidationError

    script = tmp_path / "job script.sh"
    script.write_text("exit 0\n")
    for gpus in (0, 2):
        name = job("submit", "GROUP", 4, 16000, 90, gpus, script, cwd=tmp_path).stdout
        content = json.loads((pods / f"{name}.json").read_text())
        validate(content, version, strict=True)
    content["spec"]["template"]["spec"]["activeDeadline"] = 5
    with pytest.raises(ValidationError, match="activeDeadline"):
        validate(content, version, strict=True)
    del content["spec"]["template"]["spec"]["activeDeadline"]
    content["spec"]["backoffLimit"] = "0"
    with pytest.raises(ValidationError, match="not of type"):
        validate(content, version, strict=True)


def test_nothing_is_sent_from_a_folder_that_is_not_on_the_volume(pods, tmp_path, monkeypatch):
    monkeypatch.setenv("VOXPRIOR_MOUNT", str(tmp_path / "volume"))
    done = job("submit", "score", 1, 500, 10, 0, "x", cwd=tmp_path)
    assert done.returncode == 2 and "start Snakemake on the volume" in done.stderr
    assert not list(pods.iterdir())
    monkeypatch.delenv("VOXPRIOR_CLAIM")
    assert "VOXPRIOR_CLAIM: names the volume claim" in job("submit", "s", 1, 5, 1, 0, "x", cwd=tmp_path).stderr


def test_states_are_told_apart(pods, tmp_path, monkeypatch):
    script = tmp_path / "job.sh"
    script.write_text("exit 3\n")
    name = job("submit", "score", 1, 500, 10, 0, script, cwd=tmp_path).stdout
    assert ended(name, tmp_path) == "failed"
    monkeypatch.setenv("KUBECTL", "true")
    assert job("status", name, cwd=tmp_path).stdout == "failed\n", "deleted by hand"
    monkeypatch.setenv("KUBECTL", "false")
    assert job("status", name, cwd=tmp_path).stdout == "running\n", "the cluster does not answer"


def test_the_pods_sigterm_becomes_the_warning_and_the_jobs_exit_code_stays(tmp_path):
    (tmp_path / "inner.py").write_text(
        "import signal, sys, time\n"
        "def save(*_): print('saved', flush=True); sys.exit(75)\n"
        "signal.signal(signal.SIGUSR1, save); print('ready', flush=True); time.sleep(20)\n"
    )
    script = tmp_path / "job.sh"
    script.write_text(f"sh -c '{sys.executable} {tmp_path}/inner.py; exit $?'\nexit $?\n")
    pod = subprocess.Popen([JOB, "run", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert pod.stdout.readline() == "ready\n"
    pod.send_signal(signal.SIGTERM)
    assert pod.communicate(timeout=10)[0] == "saved\n"
    assert pod.returncode == 75


@pytest.mark.slow
@pytest.mark.skipif(find_spec("snakemake_executor_plugin_cluster_generic") is None, reason="the plugin is missing")
def test_a_study_runs_through_the_profile(pods, tmp_path, write_study):
    folder = write_study(tmp_path / "shared", inits={"mini_vit": ["scratch"]}, pool=[], methods={})
    (folder / "workflow").symlink_to(ROOT / "workflow")
    command = [sys.executable, "-m", "snakemake", "results/tables/metrics.json", "-s", str(ROOT / "Snakefile")]
    command += ["--workflow-profile", "kubernetes", "--directory", str(folder), "--latency-wait", "10"]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    more = ["--seconds-between-status-checks", "1", "--set-threads", "finetune=1", "intake=1", "prepare=1"]
    done = subprocess.run([*command, *more], cwd=folder, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    sent = [json.loads(path.read_text()) for path in pods.glob("*.json")]
    limits = [job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for job in sent]
    assert sum("nvidia.com/gpu" in limit for limit in limits) == 1, "four cells are one job on one GPU"
    assert max(int(limit["memory"].rstrip("M")) for limit in limits) == 16000, "and take turns"


def test_nothing_runs_where_jobs_share_no_files(tmp_path, snakemake):
    given = ["--configfile", str(ROOT / "config/config.yaml"), "--shared-fs-usage", "none"]
    done = snakemake(tmp_path, "-n", *given)
    assert done.returncode != 0 and "jobs share no files" in done.text


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_the_profiles_say_what_the_default_one_says(name):
    """Another profile replaces the default one as a whole: what is left out is lost."""
    default, other = (
        yaml.safe_load((ROOT / f"workflow/profiles/{folder}/config.yaml").read_text()) for folder in ("default", name)
    )
    for key in set(default) - {"resources", "retries"}:
        assert other[key] == default[key], key
    assert other["retries"] >= default["retries"]
    rules = {path.stem for path in (ROOT / "workflow/rules").glob("*.smk")} | {"intake", "report", "simulate"}
    assert {*other["set-resources"], *other["set-threads"], *other["groups"]} <= rules
