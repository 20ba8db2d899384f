"""`--use-conda` end to end, by a stand-in for conda with rattler's solver and a local channel."""

import json
import os
import shutil
import subprocess
import time
from datetime import date
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
# Tells of every Python that starts in the environment.
WITNESS = "import os, sys\nopen(os.path.join(sys.prefix, 'started'), 'a').write(' '.join(sys.argv[1:2]) + '\\n')\n"
SMALLER = {"inits": {"mini_vit": ["scratch", "mae"]}, "methods": {}, "split": {"test": 2, "val": 1, "budgets": [1]}}
# A post-deploy script that installs nothing.
SMALL = '#!/usr/bin/env bash\nprintf "%s" "$VOXPRIOR_HOME" > "$CONDA_PREFIX/deployed"\n'


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project whose environment holds Python and pip alone."""
    folder = tmp_path / "a project with spaces"
    for name in ("workflow", "config"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "workflow/envs/voxprior.post-deploy.sh").write_text(SMALL)
    return folder


def environment(folder: Path) -> Path:
    """Finds the one environment below a working folder."""
    (found,) = [path for path in (folder / ".snakemake" / "conda").iterdir() if (path / "bin").is_dir()]
    return found


def test_a_module_in_another_folder_finds_the_project(conda, project, tmp_path, snakemake, write_study):
    study = write_study(tmp_path / "elsewhere")
    lines = [
        'configfile: "config/config.yaml"',
        f"module voxprior:\n    snakefile: {str(project / 'workflow' / 'Snakefile')!r}\n    config: config",
        "use rule * from voxprior",
    ]
    (study / "Snakefile").write_text("\n".join(lines) + "\n")
    asked = ["results/check.json", "--cores", "1", "--use-conda"]
    done = snakemake(study, *asked, snakefile=study / "Snakefile")
    assert done.returncode == 0, done.text
    made = environment(study)
    assert (made / "deployed").read_text() == str(project)
    said = subprocess.run([made / "bin/python", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert Path(said.stdout.strip()) == made
    assert not list(made.glob("conda-meta/git-*")) and list(made.glob("conda-meta/pip-*"))


def test_a_channel_without_the_python_is_refused_with_its_name(conda, project, tmp_path, snakemake, write_study):
    spec = project / "workflow/envs/voxprior.yaml"
    spec.write_text(spec.read_text().replace("python=3.11", "python=3.99"))
    done = snakemake(write_study(tmp_path / "s"), "--cores", "1", "--use-conda", snakefile=project / "Snakefile")
    assert done.returncode != 0
    assert "python" in done.text and "3.99" in done.text


def test_without_an_index_the_installation_says_what_to_do(conda, channel, tmp_path, snakemake, write_study):
    """The stand-in's environment is made; the packages of the lock cannot be."""
    nowhere = dict.fromkeys(("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), "http://127.0.0.1:9/simple")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_EXTRA_INDEX_URL", "UV_INDEX"):
            patch.delenv(name, raising=False)
        for name, value in {
            **nowhere,
            "PIP_CONFIG_FILE": os.devnull,
            "UV_NO_CACHE": "1",
            "UV_HTTP_RETRIES": "0",
        }.items():
            patch.setenv(name, value)
        done = snakemake(write_study(tmp_path / "s"), "--cores", "1", "--use-conda")
    assert done.returncode != 0
    assert "could not be installed into" in done.text and "PIP_FIND_LINKS" in done.text
    assert not list((tmp_path / "s/.snakemake/conda").glob("*/bin")), "a half-made environment would be used next time"


def test_the_small_study_runs_in_an_environment_of_the_whole_lock(conda, tmp_path, snakemake, write_study, jobs):
    study = write_study(tmp_path / "study", **SMALLER)
    first = snakemake(study, "--cores", "2", "--until", "prepare")
    assert first.returncode == 0, first.text
    assert "prepare" not in jobs(snakemake(study, "-n", "--use-conda").text), "switching it on recomputes nothing"

    began = time.monotonic()
    made = snakemake(study, "--cores", "2", "--use-conda", "--conda-create-envs-only")
    assert made.returncode == 0, made.text
    print(f"environment of the whole lock: {time.monotonic() - began:.0f} s")
    inside = environment(study)
    assert (inside / "bin" / "voxprior").is_file()
    (packages,) = inside.glob("lib/python3.*/site-packages")
    (packages / "sitecustomize.py").write_text(WITNESS)

    done = snakemake(study, "--cores", "2", "--use-conda")
    assert done.returncode == 0, done.text
    started = (inside / "started").read_text().split()
    assert {"pretrain", "finetune", "predict-test", "score", "compare", "report", "track"} <= set(started)
    assert (study / "results/report.html").is_file()
    for flags in ([], ["--use-conda"]):
        assert jobs(snakemake(study, "-n", *flags).text) == {}, flags


def test_the_default_study_runs_in_it_to_the_same_scores(conda, snakemake, jobs, default_study, scores):
    began = time.monotonic()
    made = snakemake(default_study, "--cores", "2", "--use-conda", "--conda-create-envs-only")
    assert made.returncode == 0, made.text
    told = {"date": f"{date.today()}", "cores": os.cpu_count(), "environment_s": round(time.monotonic() - began)}
    inside = environment(default_study)
    (packages,) = inside.glob("lib/python3.*/site-packages")
    told["packages"] = len(list(packages.glob("*.dist-info")))
    (packages / "sitecustomize.py").write_text(WITNESS)
    began = time.monotonic()
    done = snakemake(default_study, "--cores", "2", "--use-conda")
    assert done.returncode == 0, done.text
    told |= {"study_s": round(time.monotonic() - began), "jobs": len((inside / "started").read_text().splitlines())}
    assert jobs(snakemake(default_study, "-n").text) == {}, "without it nothing is to be done"
    told |= scores(default_study)
    Path(os.environ["VOXPRIOR_RECORD"]).write_text(json.dumps(told, indent=1) + "\n")
    assert told["unlike"] == [], "the same numbers as in another environment of the same lock"


def test_environment_yml_becomes_an_environment(conda, tmp_path):
    """`conda env create -f environment.yml`, with a project of one module in place of ours and its lock."""
    shutil.copy(ROOT / "environment.yml", tmp_path)
    (tmp_path / "constraints.txt").write_text("einops==0.8.1\n")
    lines = ["[project]", 'name = "voxprior"', 'version = "0.1.0"', "[project.optional-dependencies]"]
    (tmp_path / "pyproject.toml").write_text(
        "\n".join([*lines, 'test = ["einops"]', "[tool.setuptools]", "packages = []"])
    )
    prefix = tmp_path / "made"
    command = ["conda", "env", "create", "--file", tmp_path / "environment.yml", "--prefix", prefix]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = subprocess.run(
        [prefix / "bin/python", "-c", "import einops; print(einops.__version__)"], capture_output=True
    )
    assert said.stdout.split() == [b"0.8.1"]
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {path.name.rsplit("-", 2)[0] for path in prefix.glob("conda-meta/*.json")} == {
        spec.split("=")[0] for spec in wanted if isinstance(spec, str)
    }
