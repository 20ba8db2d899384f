"""What `voxprior doctor` looks at around the package: driver, file systems, DVC, conda, containers, Slurm.

Each check yields (mark, what, text): mark is ok, warn or bad. What is not there and not needed is ok, and says what it
would be needed for.
"""

import configparser
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

Line = tuple[str, str, str]

LEAST_CONDA = (24, 7, 1)  # what Snakemake 9 asks for
# CUDA's major version -> the oldest driver on Linux that it runs on. Source: NVIDIA, "CUDA Compatibility".
_DRIVERS = {11: 450, 12: 525, 13: 580}
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
    "9p",
    "panfs",
}
_WAIT_S = 15


def ask(*command: str) -> tuple[int, str] | None:
    """Runs a program: (exit code, what it said); None where it is not there or does not answer."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, (done.stdout + done.stderr).strip()


def named(text: str) -> str:
    """Finds the first version number in a text; "" where there is none."""
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else ""


def numbers(version: str) -> tuple[int, ...]:
    """Makes a version comparable; () of none."""
    return tuple(int(part) for part in version.split(".") if part)


def driver(cuda: str | None) -> Iterator[Line]:
    """Compares NVIDIA's driver with what torch's CUDA asks for; nothing to say without either."""
    told = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if told is None or cuda is None:
        return
    code, said = told
    name = named(said)
    if code or not name:
        yield "bad", "driver", f"nvidia-smi fails ({said.splitlines()[0] if said else code}): mend the driver"
        return
    least = _DRIVERS.get(numbers(cuda)[0], 0)
    if numbers(name)[0] < least:
        text = f"{name} is older than CUDA {cuda} asks for, {least}: update it, or install torch for an older CUDA"
        yield "bad", "driver", text
    else:
        yield "ok", "driver", name


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """Tells the kind of file system a folder is on; None where the system does not say."""
    try:
        rows = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    place = folder.resolve()
    found = [(len(row[1]), row[2]) for row in rows if place.is_relative_to(row[1].replace("\\040", " "))]
    # Of two mounts at one place the later one is seen.
    return max(reversed(found), key=lambda pair: pair[0])[1] if found else None


def folders(store: str, mounts: Path = Path("/proc/mounts")) -> Iterator[Line]:
    """Says where running jobs keep their state, and warns of a SQLite store on a network file system."""
    kind = file_system(Path("work"), mounts)
    if kind is None:
        return
    shared = kind in _NETWORK or kind.startswith("fuse.")
    told = (
        "jobs of several machines can share it" if shared else "of this machine: jobs on other machines do not see it"
    )
    yield "ok", "work/", f"on {kind}, {told}"
    if store.startswith("sqlite:///"):
        below = file_system(Path(store.removeprefix("sqlite:///")).parent, mounts) or ""
        if below in _NETWORK or below.startswith("fuse."):
            text = f"SQLite on {below} loses locks: set MLFLOW_TRACKING_URI to a server, or to a file on a local disk"
            yield "warn", "MLflow", text


def dvc(folder: Path = Path()) -> Iterator[Line]:
    """Says whether there is a DVC remote for `make push` and `make pull`."""
    if not (folder / ".dvc").is_dir():
        yield "ok", "DVC", "not used in this folder"
        return
    read = configparser.ConfigParser()
    read.read([folder / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
    remote = read.get("core", "remote", fallback="").strip()
    known = {name.strip("'").removeprefix("remote").strip(' "') for name in read.sections() if "remote" in name}
    if remote and remote in known:
        yield "ok", "DVC", f"remote {remote}"
    else:
        text = f"the default remote {remote} is not defined" if remote else "no default remote"
        yield "warn", "DVC", f"{text}: `dvc remote add -d NAME PLACE`, before `make push` and `make pull`"


def conda() -> Iterator[Line]:
    """Says whether Snakemake can use conda."""
    told = ask("conda", "--version")
    if told is None:
        others = [name for name in ("mamba", "micromamba", "pixi") if shutil.which(name)]
        if others:
            yield "warn", "conda", f"only {', '.join(others)}, and --use-conda calls conda: install it beside"
        else:
            yield "ok", "conda", "none; only --use-conda asks for it"
        return
    name, least = named(told[1]), ".".join(map(str, LEAST_CONDA))
    if numbers(name) < LEAST_CONDA:
        yield "warn", "conda", f"{name or 'unknown version'}, and --use-conda asks for {least}: `conda update conda`"
    else:
        yield "ok", "conda", name


def containers() -> Iterator[Line]:
    """Says whether Snakemake can run jobs in an image, and whether the image that is named is there."""
    image = os.environ.get("VOXPRIOR_IMAGE", "")
    if image and "://" not in image and not Path(image).exists():
        yield "bad", "image", f"VOXPRIOR_IMAGE names {image}, which is missing: build it, or unset the variable"
    for name in ("apptainer", "singularity"):
        if (told := ask(name, "--version")) is not None:
            yield (
                "ok",
                "container",
                f"{name} {'.'.join(map(str, numbers(told[1])))}, {image or 'VOXPRIOR_IMAGE not set'}",
            )
            return
    others = [name for name in ("docker", "podman") if shutil.which(name)]
    if image:
        yield "bad", "container", "VOXPRIOR_IMAGE is set and neither apptainer nor singularity is there: install one"
    elif others:
        yield "ok", "container", f"{', '.join(others)}; `--sdm apptainer` asks for apptainer"
    else:
        yield "ok", "container", "no runtime; only images ask for one"


def slurm() -> Iterator[Line]:
    """Says whether Snakemake can submit to Slurm, and how it will learn what became of a job."""
    from importlib.metadata import PackageNotFoundError, version

    told = ask("sbatch", "--version")
    if told is None:
        yield "ok", "Slurm", "no client here"
        return
    if told[0]:
        yield (
            "warn",
            "Slurm",
            f"sbatch fails ({told[1].splitlines()[0] if told[1] else told[0]}): mend its configuration",
        )
        return
    name = named(told[1])
    try:
        plugin = version("snakemake-executor-plugin-slurm")
    except PackageNotFoundError:
        text = f"{name}, without its plugin: `pip install snakemake-executor-plugin-slurm`, see docs/cluster.md"
        yield "warn", "Slurm", text
        return
    yield "ok", "Slurm", f"{name}, plugin {plugin}"
    queue, accounts = ask("squeue", "--noheader"), ask("sacct", "--noheader", "--starttime", "now")
    if queue is None or queue[0]:
        yield "warn", "Slurm", "squeue fails: the controller does not answer; ask your administrators"
    elif accounts is None or accounts[0]:
        yield "warn", "Slurm", "no accounting (sacct fails): set `slurm-status-command: squeue` in the profile"
