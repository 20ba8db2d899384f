"""A user's own folder with odd names: init-study, a run, and what two more scans bring. Commands: docs/own-data.md."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def add_scans(folder: Path, numbers: range, labelled: bool = True) -> None:
    """Writes scans and label maps under names that no layout knows, in a folder with a space."""
    from voxprior.data import phantoms, volume

    for number in numbers:
        voxels, labels = phantoms.make(number)
        grid = phantoms.grid_of(voxels.shape, orientation="RAS")
        volume.write_image(volume.from_array(voxels, grid), folder / "bilder" / f"CT {number} venös.nii.gz")
        if labelled:
            volume.write_image(volume.from_array(labels, grid), folder / "masken" / f"{number}-maske.nii.gz")


def init_study(study: Path, scans: Path) -> str:
    given = ["--images", str(scans / "bilder"), "--labels", str(scans / "masken"), "--name", "klinik"]
    command = [sys.executable, "-m", "voxprior", "init-study", *given, "--output", str(study)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return done.stdout


def shorten(study: Path) -> None:
    """Makes the written study a matter of seconds; everything else stays as init-study wrote it."""
    path = study / "config/studies/klinik.yaml"
    text = path.read_text()
    text = re.sub(r"voxels: \d+", "voxels: 60000", text)
    text = re.sub(r"steps: \d+ *$", "steps: 2", text, flags=re.MULTILINE)
    text = text.replace("vit_tiny: [scratch, mae]\n", "").replace("budgets: [1, 4]", "budgets: [1, 2]")
    path.write_text(text)


@pytest.fixture
def place(tmp_path):
    """(study folder, scans' folder): six labelled scans, one without labels, and something else beside them."""
    study, scans = tmp_path / "my study", tmp_path / "my study" / "Daten 2024"
    add_scans(scans, range(31, 37))
    add_scans(scans, range(90, 91), labelled=False)
    (scans / "old").mkdir()
    (scans / "old/huge.nii.gz").write_bytes(b"not ours")
    told = init_study(study, scans)
    assert "7 scans, 6 with labels" in told
    shorten(study)
    return study, scans


CONFIG = ("--configfile", "config/studies/klinik.yaml")


def config_of(study: Path) -> tuple[str, str]:
    return "--configfile", str(study / CONFIG[1])


def test_a_foreign_folder_is_prepared_and_two_more_scans_rerun_what_depends_on_them(place, snakemake, jobs):
    study, scans = place
    done = snakemake(study, "--cores", "1", "--until", "prepare", *config_of(study))
    assert done.returncode == 0, done.text
    manifest = (study / "data/raw/klinik/manifest.json").read_text()
    assert "huge.nii.gz" not in manifest
    index = study / "results/klinik/prepared/klinik/index.json"
    assert len(json.loads(index.read_text())["cases"]) == 7
    assert (study / "results/klinik/check.json").is_file()
    for path in scans.rglob("*.nii.gz"):
        path.touch()
    assert jobs(snakemake(study, "-n", "--until", "prepare", *config_of(study)).text) == {}
    volumes = study / "results/klinik/prepared/klinik/volumes"
    before = {path.name: path.stat().st_mtime_ns for path in volumes.iterdir()}
    add_scans(scans, range(40, 42))
    planned = jobs(snakemake(study, "-n", "--until", "prepare", *config_of(study)).text)
    assert planned == {"fetch": 1, "intake": 1, "prepare": 1}
    done = snakemake(study, "--cores", "1", "--until", "prepare", *config_of(study))
    assert done.returncode == 0, done.text
    assert len(json.loads(index.read_text())["cases"]) == 9
    after = {path.name: path.stat().st_mtime_ns for path in volumes.iterdir()}
    assert {name: after[name] for name in before} == before, "scans that were prepared are not prepared again"


MODULE = """\
configfile: "config/studies/klinik.yaml"


module voxprior:
    snakefile:
        {snakefile}
    config:
        config


use rule * from voxprior as voxprior_*


rule mine:
    default_target: True
    input:
        rules.voxprior_all.input,
    output:
        "mine.txt",
    shell:
        "wc -c {{input[0]:q}} > {{output}}"
"""


def as_module(study: Path) -> Path:
    """Writes a Snakefile of the user's own that takes voxprior as a module."""
    path = study / "Snakefile"
    path.write_text(MODULE.format(snakefile=json.dumps(str(ROOT / "workflow/Snakefile"))))
    return path


def test_the_workflow_plans_as_a_module(place, snakemake, jobs):
    study, _ = place
    done = snakemake(study, "-n", snakefile=as_module(study))
    assert done.returncode == 0, done.text
    planned = jobs(done.text)
    assert planned["mine"] == 1 and planned["voxprior_finetune"] == 4 and planned["voxprior_fetch"] == 1


@pytest.mark.slow
def test_from_a_foreign_folder_to_a_report_and_two_more_scans(place, snakemake, jobs, tmp_path):
    study, scans = place
    done = snakemake(study, "--cores", "2", *config_of(study))
    assert done.returncode == 0, done.text
    assert (study / "results/klinik/report.html").is_file()
    assert jobs(snakemake(study, "-n", *config_of(study)).text) == {}
    add_scans(scans, range(40, 42), labelled=False)
    planned = jobs(snakemake(study, "-n", *config_of(study)).text)
    assert not {"card", "check", "config_file", "store", "simulate"} & set(planned)
    assert planned["fetch"] == planned["intake"] == planned["prepare"] == planned["split"] == 1
    assert planned["finetune"] == 4 and planned["pretrain"] == 1
    done = snakemake(study, "--cores", "2", *config_of(study))
    assert done.returncode == 0, done.text
    # Two more scans to pretrain on: what starts from scratch has learned nothing new.
    logs = {path: path.read_text() for path in (study / "results/klinik/logs/finetune").rglob("*.log")}
    assert {path.relative_to(study).parts[5]: "is given back" in text for path, text in logs.items()} == {
        "scratch": True,
        "spark": False,
    }
    assert jobs(snakemake(study, "-n", *config_of(study)).text) == {}

    elsewhere = tmp_path / "new folder"
    shutil.copytree(study / "config", elsewhere / "config")
    dataset = elsewhere / "config/datasets/klinik.yaml"
    content = yaml.safe_load(dataset.read_text())
    dataset.write_text(yaml.safe_dump({**content, "source": {**content["source"], "path": str(scans)}}))
    done = snakemake(elsewhere, "--cores", "2", "mine.txt", snakefile=as_module(elsewhere))
    assert done.returncode == 0, done.text
    assert (elsewhere / "mine.txt").is_file() and (elsewhere / "results/klinik/report.html").is_file()
