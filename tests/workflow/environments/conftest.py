"""A local conda channel with a stand-in for `conda` that reads it; the image of containers/Dockerfile, really built."""

import ast
import asyncio
import importlib.metadata
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
LEFT_OUT = shutil.ignore_patterns("site-packages", "test", "tests", "config-*", "__pycache__", "idlelib", "tkinter")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def stage_python(folder: Path) -> None:
    """Copies what an interpreter needs: the program, its shared library where it has one, the standard library."""
    base, name = Path(sys.base_prefix), "python{}.{}".format(*sys.version_info)
    _copy(Path(os.path.realpath(sys.executable)), folder / "bin" / name)
    for alias in ("python", "python3"):
        (folder / "bin" / alias).symlink_to(name)
    for library in base.glob(f"lib/lib{name}.so*"):
        _copy(library, folder / "lib" / library.name)
    shutil.copytree(base / "lib" / name, folder / "lib" / name, ignore=LEFT_OUT, symlinks=True)
    (folder / "lib" / name / "site-packages").mkdir()
    (folder / "lib" / name / "site-packages" / "README.txt").write_text("packages of this environment\n")


def stage_pip(folder: Path) -> None:
    """Copies the pip that is installed here, without its scripts: `python -m pip` is what is called."""
    packages = folder / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    for file in importlib.metadata.files("pip") or []:
        if ".." not in file.parts and file.suffix != ".pyc" and file.name != "RECORD":
            _copy(Path(str(file.locate())), packages / file)


def stage_command(folder: Path, name: str) -> None:
    """Links a program of this machine: what environment.yml asks for beside Python."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / name).symlink_to(shutil.which(name) or "/bin/false")


@pytest.fixture(scope="session")
def channel(tmp_path_factory) -> Path:
    """A channel folder with python, pip, git and make for this machine."""
    pytest.importorskip("rattler", reason="py-rattler is not installed: pip install voxprior[conda]")
    build = pytest.importorskip(
        "rattler_build", reason="py-rattler-build is not installed: pip install voxprior[conda]"
    )
    from rattler import Platform
    from rattler.index import index_fs

    folder, staged = tmp_path_factory.mktemp("channel"), tmp_path_factory.mktemp("staged")
    platform, python = str(Platform.current()), "{}.{}.{}".format(*sys.version_info)
    stage_python(staged / "python")
    stage_pip(staged / "pip")
    for name in ("git", "make"):
        stage_command(staged / name, name)
    versions = {"python": python, "pip": importlib.metadata.version("pip"), "git": "2.40", "make": "4.3"}
    needs = {"pip": ["python {}.{}.*".format(*sys.version_info)]}
    (folder / "noarch").mkdir()
    (folder / platform).mkdir()
    for name, version in versions.items():
        build.assemble_package(
            name, version, platform, "0", folder / platform, files_dir=staged / name, depends=needs.get(name),
            compression_level=1, detect_prefix=False,
        )  # fmt: skip
    asyncio.run(index_fs(folder, write_zst=False, write_shards=False))
    return folder


@pytest.fixture
def conda(channel, tmp_path_factory, monkeypatch) -> Path:
    """Puts the stand-in first on PATH; returns its folder."""
    root = tmp_path_factory.mktemp("conda")
    (root / "bin").mkdir()
    program = root / "bin" / "conda"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "frontend.py"}" "{root}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    activate = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"; hash -r\n'
    (root / "bin" / "activate").write_text(activate)
    monkeypatch.setenv("STANDIN_CHANNEL", str(channel))
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return root


# ------------------------------------------------------------------------------------------------------ the image
def podman(*words: object, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *map(str, words)], capture_output=True, text=True, **more)


# What a layer's command holds -> what the layer is; all others are the project.
LAYERS = {"ADD file": "base image", "apt-get": "git and gcc", "install.sh /app/env": "the packages", "": "the project"}


@pytest.fixture(scope="session")
def told():
    """What the docs tell of images; VOXPRIOR_RECORD names the file it is added to."""
    about: dict = {}
    yield about
    if about and (path := os.environ.get("VOXPRIOR_RECORD")):
        before = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        Path(path).write_text(json.dumps(before | about, indent=1) + "\n")


def index_settings(folder: Path) -> list[str]:
    """Hands this machine's package index to a build, as docs/environments.md says: by secrets and folders of wheels."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = [line.partition("=") for line in said.stdout.splitlines()]
    found = {key.split(".")[-1]: ast.literal_eval(value) for key, _, value in pairs}
    words = []
    if certificates := found.get("cert"):
        words += ["--secret", f"id=certificates,src={certificates}"]
        found["cert"] = "/run/secrets/certificates"
    for place in found.get("find-links", "").split():
        words += ["--volume", f"{place}:{place}:ro"] if Path(place).is_dir() else []
    kept = {key: found[key] for key in ("cert", "find-links", "index-url", "no-index", "trusted-host") if key in found}
    (folder / "pip.conf").write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in kept.items()))
    return [*words, "--secret", f"id=pip,src={folder / 'pip.conf'}"]


def layers(name: str) -> dict[str, int]:
    """Sums up an image's layers, in bytes, by what they hold."""
    found = dict.fromkeys(LAYERS.values(), 0)
    for layer in json.loads(podman("history", "--format", "json", name).stdout):
        found[next(kind for sign, kind in LAYERS.items() if sign in layer["CreatedBy"])] += layer["size"]
    return found


@pytest.fixture(scope="session")
def image(tmp_path_factory, told) -> str:
    """Builds containers/Dockerfile on the local image that VOXPRIOR_BASE_IMAGE names; returns the image's name.

    VOXPRIOR_BUILT_IMAGE names one that was built before, and nothing is built.
    """
    base, built = (os.environ.get(f"VOXPRIOR_{kind}_IMAGE") for kind in ("BASE", "BUILT"))
    if not (base or built):
        pytest.skip("VOXPRIOR_BASE_IMAGE names no image: tests/workflow/environments/base_image.sh makes one")
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("images are built by podman, as root")
    if podman("image", "exists", built or base).returncode:
        pytest.skip(f"podman has no image {built or base}: run tests/workflow/environments/base_image.sh")
    about = {"date": f"{date.today()}", "cores": os.cpu_count(), "podman": podman("--version").stdout.split()[-1]}
    name = built or "localhost/voxprior:tested"
    if not built:
        settings = index_settings(tmp_path_factory.mktemp("index"))
        settings += ["--build-arg", f"TORCH_BACKEND={os.environ.get('TORCH_BACKEND', '')}", "--network", "host"]
        began = time.monotonic()
        done = podman("build", *settings, "--from", base, "-f", "containers/Dockerfile", "-t", name, ".", cwd=ROOT)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        if "Using cache" not in done.stdout:
            about["build_s"] = round(time.monotonic() - began)
    told.update(about, layers=layers(name))
    return name
