"""The ways to install agree with one another. No conda channel is asked: that the packages exist there is not shown."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, set[str]]:
    """Versions that constraints.txt pins, per package (more than one where they differ by Python)."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(requirement.name.lower().replace("_", "-"), set()).add(str(requirement.specifier)[2:])
    return found


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


def test_both_conda_files_name_one_python_that_the_project_takes():
    versions = set()
    for path in (ROOT / "environment.yml", ROOT / "workflow" / "envs" / "voxprior.yaml"):
        content = yaml.safe_load(path.read_text())
        assert content["channels"] == ["conda-forge"]
        specs = [spec for spec in content["dependencies"] if isinstance(spec, str)]
        versions |= {spec.split("=")[1] for spec in specs if spec.startswith("python=")}
        assert "pip" in specs
    assert len(versions) == 1
    assert SpecifierSet(PROJECT["requires-python"]).contains(versions.pop())


def test_the_conda_environment_installs_by_the_same_lock():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    assert pip == ["-c constraints.txt", "-e .[test]"]
    script = (ROOT / "workflow" / "envs" / "voxprior.post-deploy.sh").read_text()
    assert re.search(r'-c "\$VOXPRIOR_HOME/constraints.txt" "\$VOXPRIOR_HOME"', script)


def test_every_dependency_is_explained():
    decisions = (ROOT / "docs" / "decisions.md").read_text().lower()
    for text in PROJECT["dependencies"]:
        name = Requirement(text).name.lower()
        assert re.search(rf"\b{re.escape(name)}\b", decisions), f"{name} is not explained in docs/decisions.md"
