"""A small study in a folder of its own, run through the real workflow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def snakemake():
    """Runs Snakemake in a folder; returns the finished process with its output as text."""

    def run(folder: Path, *arguments: str, snakefile: Path = ROOT / "Snakefile") -> subprocess.CompletedProcess:
        given = {"PYTHONDONTWRITEBYTECODE", "VOXPRIOR_MIRROR"}
        environment = {key: value for key, value in os.environ.items() if key not in given}
        command = [sys.executable, "-m", "snakemake", "-s", str(snakefile), "--directory", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        done.text = done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def jobs():
    """Reads how often each rule would run from the table that Snakemake prints."""

    def read(text: str) -> dict[str, int]:
        if "Nothing to be done" in text:
            return {}
        table = text.split("Job stats:")[1].split("\n\n")[0]
        rows = [line.split() for line in table.splitlines() if len(line.split()) == 2]
        return {name: int(count) for name, count in rows if count.isdigit() and name not in ("total", "default", "all")}

    return read


BACKBONES = {
    "mini_vit": {
        "title": "ViT for tests",
        "family": "vit",
        "vit": {"patch_vox": 8, "width": 24, "depth": 2, "heads": 2, "decoder_channels": 4},
    },
    "mini_cnn": {
        "title": "CNN for tests",
        "family": "cnn",
        "cnn": {"channels": [4, 8, 8, 8], "pretrained_stages": 4},
    },
}
RECIPE = {"lr": 0.003}
STUDY = {
    "study": "toy",
    "title": "Phantoms",
    "results": "results",
    "dataset": "phantoms",
    "pool": ["archive"],
    "classes": ["one", "two", "three"],
    "prepare": {"spacing_zyx_mm": [2.0, 2.0, 2.0], "intensity": {"kind": "window", "low": -1000, "high": 1000}},
    "split": {"test": 2, "val": 1, "budgets": [1, 3]},
    "inits": {"mini_vit": ["scratch", "mae", "glmae", "pgl"], "mini_cnn": ["scratch", "spark", "anatomask", "byol"]},
    "preset": "tiny",
    "methods": {"pgl": {"view_vox": [16, 16, 16]}, "byol": {"view_vox": [16, 16, 16]}},  # phantoms are small
    "pretrain": {"voxels": 300_000, "batch_size": 2},
    "finetune": {"steps": 4, "batch_size": 2, "crop_vox": [24, 24, 24], "seeds": [0, 1]},
    "predict": {"overlap": 0.25},
}
DATASET = {
    "title": "Phantoms made by code",
    "modality": "ct",
    "source": {"kind": "folder", "path": "scans"},
    "layout": {"kind": "decathlon"},
    "classes": {"one": [1], "two": [2], "three": [3]},
    "licence": "CC0-1.0",
}
ARCHIVE = {
    "title": "More phantoms, without labels",
    "source": {"kind": "folder", "path": "archive"},
    "layout": {"kind": "folder", "images": "old {case}.nii.gz"},
}


@pytest.fixture(scope="session")
def write_study():
    """Writes phantoms and a study on them into a folder (paths with a space must do)."""

    def write(folder: Path, cases: int = 7, **changes) -> Path:
        from voxprior.data import phantoms, volume

        phantoms.write_decathlon(folder / "scans", cases=cases, unlabelled=1)
        for number in range(60, 63):  # only pretrained on
            scan = volume.from_array(phantoms.make(number)[0], phantoms.grid_of(phantoms.SHAPE_ZYX))
            volume.write_image(scan, folder / "archive" / f"old {number}.nii.gz")
        recipes = dict.fromkeys(("pretrain", "scratch", "finetune"), RECIPE)
        for kind, name, content in [
            ("datasets", "phantoms", DATASET),
            ("datasets", "archive", {**DATASET, **ARCHIVE}),
            *(("backbones", backbone, {**sizes, **recipes}) for backbone, sizes in BACKBONES.items()),
        ]:
            path = folder / "config" / kind / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(content))
        (folder / "config" / "config.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        return folder

    return write


@pytest.fixture
def default_study(tmp_path):
    """The default study's folder, empty yet. Only on demand, where `make run` has made scores to compare with."""
    if "VOXPRIOR_RECORD" not in os.environ or not (ROOT / "results/report.html").is_file():
        pytest.skip("the default study takes long: `make run`, then VOXPRIOR_RECORD=file; a small one always runs")
    folder = tmp_path / "study"  # without a space: Snakemake does not quote it where it installs into an environment
    shutil.copytree(ROOT / "config", folder / "config")
    return folder


@pytest.fixture
def scores():
    """Compares all scores of a default study with those of `make run`: how many, and those that differ in a byte."""

    def compare(folder: Path) -> dict[str, object]:
        made = sorted(path.relative_to(folder) for path in folder.glob("results/finetune/*/*/*/*/*/scores*.csv"))
        here = sorted(path.relative_to(ROOT) for path in ROOT.glob("results/finetune/*/*/*/*/*/scores*.csv"))
        assert made == here and made
        unlike = [str(path) for path in made if (folder / path).read_bytes() != (ROOT / path).read_bytes()]
        return {"scores": len(made), "unlike": unlike}

    return compare
