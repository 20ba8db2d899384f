"""One small study from scans to report, twice: the second time there is nothing to do."""

import csv
import json
import re
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory, snakemake, write_study):
    """A finished study, in a folder with a space in its name."""
    folder = write_study(tmp_path_factory.mktemp("study") / "a path with spaces")
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.text
    print(done.text[-2000:])
    return folder


def edited(folder: Path, change) -> None:
    path = folder / "config" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture
def copy(finished, tmp_path):
    """A copy to edit; copy2 keeps the times, so nothing looks changed."""
    folder = tmp_path / "copy of it"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


def test_everything_is_there(finished):
    results = finished / "results"
    report = (results / "report.html").read_text()
    assert not re.search(r"""(src|srcset|poster|data)=["']?https?:|url\(\s*["']?https?:|@import|<link""", report), (
        "loads"
    )
    assert "not a medical device" in report.lower()
    metrics = json.loads((results / "tables" / "metrics.json").read_text())
    assert {backbone: set(of) for backbone, of in metrics.items()} == {
        "mini_vit": {"scratch", "mae", "glmae", "pgl"},
        "mini_cnn": {"scratch", "spark", "anatomask", "byol"},
    }
    reports = [json.loads(path.read_text()) for path in results.glob("finetune/*/*/*/*/*/load_report.json")]
    assert sorted({report["placed_share"] or 0 for report in reports}) == [0, 1.0]
    assert sum(report["placed_share"] == 1.0 for report in reports) == 6 * 4
    (prepared,) = {
        tuple(json.loads(path.read_text())["inputs"]["pool_sha256"])
        for path in results.glob("pretrain/*/*/fold0/seed0/summary.json")
    }
    assert prepared == (sha256((results / "prepared/archive/index.json").read_bytes()).hexdigest(),)
    scored = {row["dataset"] for row in csv.DictReader((results / "tables/scores.csv").read_text().splitlines())}
    assert scored == {"phantoms"}, "a pool is only pretrained on"
    tracked = json.loads((results / "tracked.json").read_text())
    kinds = Counter(name.split("/")[0] for name in tracked["runs"])
    assert kinds == {"finetune": 32, "pretrain": 6, "arm": 8, "study": 1}
    splits = json.loads((results / "splits.json").read_text())["folds"][0]
    assert not set(splits["pool"]) & {*splits["test"], *splits["val"]}
    assert set(splits["budgets"]["1"]) < set(splits["budgets"]["3"])


def test_nothing_to_do_the_second_time(finished, snakemake, jobs):
    assert jobs(snakemake(finished, "-n").text) == {}
    again = snakemake(finished, "--cores", "1")
    assert again.returncode == 0
    assert "Nothing to be done" in again.text


def test_stating_a_default_reruns_nothing_but_the_study_file(copy, snakemake, jobs):
    edited(copy, lambda config: config.update(score={"tolerance_mm": 2.0}))
    assert jobs(snakemake(copy, "-n").text) == {}


def test_one_methods_number_reruns_that_method_alone(copy, snakemake, jobs):
    edited(copy, lambda config: config["methods"].update(mae={"mask_ratio": 0.5}))
    planned = jobs(snakemake(copy, "-n").text)
    assert planned["pretrain"] == 1
    assert planned["finetune"] == planned["predict"] == planned["score"] == 4
    assert "prepare" not in planned
    assert "split" not in planned


def test_the_tolerance_reruns_scores_and_no_training(copy, snakemake, jobs):
    edited(copy, lambda config: config.update(score={"tolerance_mm": 1.0}))
    planned = jobs(snakemake(copy, "-n").text)
    assert planned["score"] == 32
    assert not {"pretrain", "finetune", "predict"} & set(planned)


def test_another_seed_adds_its_cells_and_leaves_the_others(copy, snakemake, jobs):
    edited(copy, lambda config: config["finetune"].update(seeds=[0, 1, 2]))
    planned = jobs(snakemake(copy, "-n").text)
    assert planned["finetune"] == 16
    assert "pretrain" not in planned


def test_a_damaged_scan_is_set_aside_and_the_others_go_on(tmp_path, snakemake, write_study):
    folder = write_study(tmp_path / "damaged")
    (folder / "scans" / "imagesTr" / "phantom_006.nii.gz").write_bytes(b"not an image")
    done = snakemake(folder, "--cores", "2", "--until", "prepare")
    assert done.returncode == 0, done.text
    quarantine = (folder / "results/intake/phantoms/quarantine.csv").read_text()
    assert "phantom_006" in quarantine
    index = json.loads((folder / "results/prepared/phantoms/index.json").read_text())
    assert len(index["cases"]) == 7
