"""The ways to install agree with one another and with the lock.

No conda channel is asked: that the packages exist there is not shown.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_FILES = [ROOT / "environment.yml", ROOT / "workflow" / "envs" / "voxprior.yaml"]


def pins() -> dict[str, set[str]]:
    """Versions that constraints.txt pins, per package (more than one where they differ by Python)."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(requirement.name.lower().replace("_", "-"), set()).add(str(requirement.specifier)[2:])
    return found


def specs(path: Path) -> list[str]:
    return [entry for entry in yaml.safe_load(path.read_text())["dependencies"] if isinstance(entry, str)]


def pip_entries(path: Path) -> list[str]:
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    return [line for entry in dependencies if isinstance(entry, dict) for line in entry["pip"]]


def test_the_lock_satisfies_every_declared_dependency():
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for some in extras.values() for text in some)]:
        wanted = Requirement(text)
        if wanted.name == PROJECT["name"]:  # its own extras
            assert wanted.extras <= extras.keys()
            continue
        versions = pinned[wanted.name.lower().replace("_", "-")]
        assert all(wanted.specifier.contains(version) for version in versions), text


def test_one_channel_and_one_python_everywhere():
    """Both conda files, make, the lock and the containers name the Python that the project takes."""
    said = {}
    for path in CONDA_FILES:
        content = yaml.safe_load(path.read_text())
        assert content["channels"] == ["conda-forge"], "nodefaults or a second channel: conda reads them in its own way"
        assert "pip" in specs(path)
        (said[path.name],) = [spec.split("=")[1] for spec in specs(path) if spec.startswith("python=")]
    makefile = (ROOT / "Makefile").read_text()
    said["make"] = re.search(r"^PYTHON \?= python(\S+)", makefile, re.M)[1]
    said["make lock"] = re.search(r"--python-version (\S+)", makefile)[1]
    said["install.sh"] = re.search(r"PYTHON:-python([\d.]+)", (ROOT / "workflow/envs/install.sh").read_text())[1]
    said["Dockerfile"] = re.search(r"^FROM python:(\d+\.\d+)", (ROOT / "containers/Dockerfile").read_text(), re.M)[1]
    said["voxprior.def"] = re.search(r"^From: python:(\d+\.\d+)", (ROOT / "containers/voxprior.def").read_text(), re.M)[
        1
    ]
    assert len(set(said.values())) == 1, said
    assert SpecifierSet(PROJECT["requires-python"]).contains(said["make"])


def test_every_way_installs_by_the_same_lock():
    assert pip_entries(ROOT / "environment.yml") == ["-c constraints.txt", "-e .[test]"]
    assert pip_entries(ROOT / "workflow/envs/voxprior.yaml") == [], "paths break: Snakemake copies the file elsewhere"
    for name in (
        "Makefile",
        "workflow/envs/voxprior.post-deploy.sh",
        "containers/Dockerfile",
        "containers/voxprior.def",
    ):
        assert "workflow/envs/install.sh" in (ROOT / name).read_text(), f"{name} installs in a way of its own"


def test_every_conda_spec_is_strict_and_admits_the_lock():
    rattler = pytest.importorskip("rattler", reason="py-rattler is not installed: pip install voxprior[conda]")
    for path in CONDA_FILES:
        for spec in specs(path):
            parsed = rattler.MatchSpec(spec, strict=True)
            assert parsed.name is not None
            for version in pins().get(spec.split("=")[0], set()):
                assert parsed.version is None or rattler.VersionSpec(str(parsed.version)).matches(
                    rattler.Version(version)
                )
    with pytest.raises(Exception, match="incompatible"):
        rattler.MatchSpec("monai=1.6.*", strict=True)


def test_every_pip_entry_is_one():
    for path in CONDA_FILES:
        for entry in pip_entries(path):
            option, _, rest = entry.partition(" ")
            if option == "-c":
                assert (path.parent / rest).is_file(), f"{path.name}: {rest} is not beside it"
            elif option == "-e":
                folder, extra = re.fullmatch(r"([^\[]+)(?:\[(.+)\])?", rest).groups()
                assert (path.parent / folder / "pyproject.toml").is_file()
                assert set((extra or "").split(",")) - {""} <= PROJECT["optional-dependencies"].keys()
            else:
                Requirement(entry)


def mocked_channel(folder: Path) -> Path:
    """Writes a channel that lists packages and holds none: Pythons, the lock's packages, and two programs."""
    rows = [("python", version, []) for version in ("3.10.18", "3.11.13", "3.12.11", "3.13.5")]
    rows += [("git", "2.51.0", []), ("make", "4.4.1", [])]
    rows += [(name, version, ["python >=3.11,<3.13"]) for name, some in pins().items() for version in some]
    packages = {
        f"{name}-{version}-0.conda": {
            "name": name, "version": version, "build": "0", "build_number": 0, "depends": depends, "subdir": "noarch",
            "sha256": "0" * 64, "size": 1,
        }
        for name, version, depends in rows
    }  # fmt: skip
    content = {"info": {"subdir": "noarch"}, "packages": {}, "packages.conda": packages, "repodata_version": 1}
    (folder / "noarch").mkdir(parents=True)
    (folder / "noarch" / "repodata.json").write_text(json.dumps(content))
    return folder


def test_a_solver_finds_an_environment_and_sees_a_contradiction(tmp_path):
    rattler = pytest.importorskip("rattler", reason="py-rattler is not installed: pip install voxprior[conda]")
    channel = rattler.Channel(mocked_channel(tmp_path / "channel").as_uri())

    def solved(wanted: list[str]) -> dict[str, str]:
        async def ask() -> dict[str, str]:
            gateway = rattler.Gateway(cache_dir=tmp_path / "cache")
            found = await rattler.solve([channel], wanted, gateway=gateway, platforms=[rattler.Platform("noarch")])
            return {record.name.normalized: str(record.version) for record in found}

        return asyncio.run(ask())

    for path in CONDA_FILES:
        found = solved([*specs(path), f"torch=={next(iter(pins()['torch']))}"])
        assert found["python"].startswith("3.11."), path
        assert found["pip"] in pins()["pip"]
        with pytest.raises(Exception, match="python"):
            solved([*specs(path), "python>=3.12"])


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs install.sh with a uv that only tells how it was called."""
    environment = tmp_path / "env"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin" / "uv"
    uv.write_text(
        '#!/bin/sh\necho "$@"; echo "links=${UV_FIND_LINKS-unset} index=${UV_DEFAULT_INDEX-unset}"\n'
        'echo "certificates=${SSL_CERT_FILE-unset}"\n[ -z "$FAILS" ]\n'
    )
    uv.chmod(0o755)
    links, index = ("UV_FIND_LINKS", "PIP_FIND_LINKS"), ("UV_DEFAULT_INDEX", "PIP_INDEX_URL")
    for name in (*links, *index, "SSL_CERT_FILE", "PIP_CERT", "TORCH_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def run(project: Path = ROOT, *extra: str, **settings: str) -> subprocess.CompletedProcess[str]:
        given = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **settings}
        command = ["sh", str(project / "workflow/envs/install.sh"), str(environment), *extra]
        return subprocess.run(command, capture_output=True, text=True, env=given)

    return run


def test_uv_is_given_the_lock_and_what_pip_was_told(install):
    settings = {"PIP_FIND_LINKS": "/wheels", "PIP_INDEX_URL": "http://mirror/simple"}
    plain = install(ROOT, "test,dicom", **settings).stdout
    assert plain.splitlines()[0].endswith(f"--compile-bytecode -c {ROOT}/constraints.txt -e {ROOT}[test,dicom]")
    assert plain.splitlines()[1] == "links=/wheels index=http://mirror/simple"
    bare = install(ROOT, TORCH_BACKEND="cpu", PIP_NO_INDEX="1").stdout
    assert "--torch-backend cpu --no-index" in bare and f"-e {ROOT}\n" in bare
    assert "links=unset index=unset" in bare, "an empty variable is no setting"


def test_uv_is_told_what_a_file_of_pips_says(install, tmp_path):
    """Not the user's own file, which `pip config get` would look at alone."""
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nfind-links = /wheels\n    /more\nindex-url = http://mirror/simple\ncert = /house.pem\n")
    said = install(PIP_CONFIG_FILE=str(file)).stdout.splitlines()
    assert said[1:] == ["links=/wheels /more index=http://mirror/simple", "certificates=/house.pem"]
    assert install().stdout.splitlines()[1:] == ["links=unset index=unset", "certificates=unset"]


def test_a_failed_installation_says_what_to_do(install):
    failed = install(FAILS="1")
    assert failed.returncode == 1
    assert "could not be installed" in failed.stderr and "docs/environments.md" in failed.stderr


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_of_a_project_that_is_read_only_a_copy_is_installed(install, tmp_path):
    project = tmp_path / "shared"
    shutil.copytree(
        ROOT, project, ignore=shutil.ignore_patterns(".git", "tests", "docs", ".snakemake", "results", "data")
    )
    project.chmod(0o555)
    said = install(project).stdout
    assert f"-e {tmp_path}/env/share/voxprior" in said
    assert (tmp_path / "env/share/voxprior/src/voxprior/cards.py").is_file()


def test_every_dependency_is_explained():
    decisions = (ROOT / "docs" / "decisions.md").read_text().lower()
    for text in PROJECT["dependencies"]:
        name = Requirement(text).name.lower()
        assert re.search(rf"\b{re.escape(name)}\b", decisions), f"{name} is not explained in docs/decisions.md"
