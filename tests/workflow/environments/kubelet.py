"""Stands in for a cluster: `kubectl`, and the one node's kubelet, which runs each job's pod in a container by podman.

    kubelet.py --namespace NAME create|get|delete ...     what job.sh calls; reads and writes files in the folder PODS
    kubelet.py serve FOLDER                               as root: plays pods, meets deadlines, notes how they ended

podman knows pods and claims, and no Jobs: a Job's pod template is played as a Pod. At its deadline a pod gets SIGTERM
and, after its grace, SIGKILL. A test that cannot wait for the clock writes NAME.late.
"""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import yaml


def write(path: Path, content: dict) -> None:
    """Writes a file as a whole: the other side reads it at any time."""
    path.with_suffix(".new").write_text(json.dumps(content))
    path.with_suffix(".new").rename(path)


# ------------------------------------------------------------------------------------------------------ kubectl
def create(folder: Path) -> None:
    job = yaml.safe_load(sys.stdin)
    name = job["metadata"]["generateName"] + uuid.uuid4().hex[:5]
    write(folder / f"{name}.job", job)
    print(name, end="")


def get(folder: Path, name: str) -> None:
    if (folder / f"{name}.job").exists():
        path = folder / f"{name}.ended"
        ended = json.loads(path.read_text()) if path.exists() else None
        # A pod that had to end has failed, whatever its code.
        good = ended is not None and ended["code"] == 0 and ended["why"] is None
        print(f"{name}/{1 if good else ''}/{1 if ended and not good else ''}", end="")


# ------------------------------------------------------------------------------------------------------ the node
def podman(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *words], capture_output=True, text=True)


def play(folder: Path, name: str) -> None:
    job = json.loads((folder / f"{name}.job").read_text())
    spec, metadata = job["spec"]["template"]["spec"], {"name": name, "labels": job["metadata"]["labels"]}
    manifest = folder / f"{name}.yaml"
    manifest.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
    limits = spec["containers"][0]["resources"]["limits"]
    facts = {"began": time.time(), "memory": limits["memory"], "deadline_s": spec["activeDeadlineSeconds"]}
    began, container = time.monotonic(), f"{name}-{spec['containers'][0]['name']}"
    played = podman("kube", "play", "--network", "host", str(manifest))
    if played.returncode:
        return write(folder / f"{name}.ended", {**facts, "code": 125, "why": played.stdout + played.stderr})
    why = None
    while podman("inspect", "--format", "{{.State.Status}}", container).stdout.strip() == "running":
        late = time.monotonic() - began > spec["activeDeadlineSeconds"] or (folder / f"{name}.late").exists()
        if late or (folder / f"{name}.delete").exists():
            why = "DeadlineExceeded" if late else "deleted"
            podman("stop", "--time", str(spec["terminationGracePeriodSeconds"]), container)
        time.sleep(1)
    code = podman("inspect", "--format", "{{.State.ExitCode}}", container).stdout
    with open(folder / f"{name}.log", "w") as log:
        subprocess.run(["podman", "logs", container], stdout=log, stderr=subprocess.STDOUT)
    podman("pod", "rm", "--force", name)
    facts |= {"name": name, "code": int(code), "why": why}
    write(folder / f"{name}.ended", {**facts, "seconds": round(time.monotonic() - began)})


def serve(folder: Path) -> None:
    """Plays every pod that is asked for, until it is ended."""
    seen: set[str] = set()
    while True:
        for path in sorted(folder.glob("*.job")):
            if path.stem not in seen:
                seen.add(path.stem)
                threading.Thread(target=play, args=(folder, path.stem), daemon=True).start()
        time.sleep(0.2)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]))
    else:
        verb, names = sys.argv[3], [word for word in sys.argv[4:] if not word.startswith("-")]
        folder = Path(os.environ["PODS"])
        if verb == "create":
            create(folder)
        elif verb == "get":
            get(folder, names[1])
        else:
            for name in names:
                (folder / f"{name}.delete").touch()
