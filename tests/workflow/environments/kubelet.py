"""Stands in for `kubectl` and what is behind it: plays each job's pod in a container, by podman.

`create` takes a Job and starts a keeper, who does what a kubelet does with its pod: plays it, looks at its deadline, ends it
with SIGTERM and, after the grace, SIGKILL, and notes how it ended. podman knows pods and claims, and no Jobs.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import yaml

FOLDER = Path(os.environ["PODS"])


def podman(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *words], capture_output=True, text=True)


def note(name: str, **facts: object) -> None:
    """Adds to what is known of a job."""
    path = FOLDER / f"{name}.json"
    whole = {**(json.loads(path.read_text()) if path.exists() else {}), **facts}
    path.with_suffix(".new").write_text(json.dumps(whole))
    path.with_suffix(".new").rename(path)


def create() -> None:
    job = yaml.safe_load(sys.stdin)
    name = job["metadata"]["generateName"] + uuid.uuid4().hex[:5]
    note(name, job=job)
    keeper = [sys.executable, __file__, "keep", name]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": (FOLDER / f"{name}.said").open("w")}
    subprocess.Popen(keeper, start_new_session=True, **quiet)
    print(name, end="")


def keep(name: str) -> None:
    job = json.loads((FOLDER / f"{name}.json").read_text())["job"]
    spec, metadata = job["spec"]["template"]["spec"], {"name": name, "labels": job["metadata"]["labels"]}
    manifest = FOLDER / f"{name}.yaml"
    manifest.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    note(name, keeper=os.getpid())
    began, container = time.monotonic(), f"{name}-{spec['containers'][0]['name']}"
    played = podman("kube", "play", "--network", "host", str(manifest))
    if played.returncode:
        return note(name, code=125, said=played.stdout + played.stderr)
    while podman("inspect", "--format", "{{.State.Status}}", container).stdout.strip() == "running":
        late = time.monotonic() - began > spec["activeDeadlineSeconds"]
        if late or asked:
            note(name, ended="DeadlineExceeded" if late else "deleted")
            podman("stop", "--time", str(spec["terminationGracePeriodSeconds"]), container)
        time.sleep(0.5)
    told = podman("inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", container).stdout.split()
    with open(FOLDER / f"{name}.log", "w") as log:
        subprocess.run(["podman", "logs", container], stdout=log, stderr=subprocess.STDOUT)
    podman("pod", "rm", "--force", name)
    note(name, code=int(told[0]), out_of_memory=told[1] == "true", seconds=round(time.monotonic() - began))


def get(name: str) -> None:
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return
    known = json.loads(path.read_text())
    # A pod that met its deadline has failed, whatever it ended with.
    good = known.get("code") == 0 and "ended" not in known
    print(f"{name}/{'1' if good else ''}/{'1' if 'code' in known and not good else ''}", end="")


def delete(names: list[str]) -> None:
    for name in names:
        known = json.loads((FOLDER / f"{name}.json").read_text())
        if "code" not in known and "keeper" in known:
            os.kill(known["keeper"], signal.SIGTERM)


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(sys.argv[2])
    else:
        verb, words = sys.argv[3], sys.argv[4:]  # after --namespace NAME
        names = [word for word in words if not word.startswith("-")]
        {"create": create, "get": lambda: get(names[1]), "delete": lambda: delete(names)}[verb]()
