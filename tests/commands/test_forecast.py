"""The forecast's arithmetic, on a probe that was made up; the probe itself runs in tests/workflow."""

import json
from pathlib import Path

import pytest
import yaml

from voxprior.commands import forecast, probe
from voxprior.commands.probe import Job, Probe, Size, Training
from voxprior.errors import Refusal

ROOT = Path(__file__).parents[2]
SIZE = Size((40, 60, 60), (3.0, 2.0, 2.0))
CELLS = 2 * 2  # budgets, seeds


def training(**changes) -> Training:
    job = Job(seconds=10.0, cpu_seconds=5.0, memory_bytes=1e9)
    given = {"job": job, "steps": 16, "step_s": 0.25, "look_s": 1.0, "voxels": 100_000, "files_bytes": 1000}
    return Training(**{**given, "state_bytes": 2000, "gpu_bytes": 0, "device": "cpu, 1 threads", **changes})


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The default study with two inits, in a folder where intake has found 12 scans, and 3 of another dataset."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    content["inits"] = {"stunet_tiny": ["scratch", "spark"]}
    content["pretrain"]["voxels"] = 10_000_000
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    for name, count in (("chest_ct", 12), ("chest_ct_other", 3)):
        folder = tmp_path / "results" / "intake" / name
        folder.mkdir(parents=True)
        rows = [f"case{n},label.nii.gz,40 60 60,3 2 2" for n in range(count)]
        (folder / "cases.csv").write_text("\n".join(["case,label,shape_zyx,spacing_zyx_mm", *rows]) + "\n")
    return tmp_path / "config.yaml"


@pytest.fixture
def made_up(monkeypatch):
    """A probe that was not run."""
    done = Probe(
        pretrain={("stunet_tiny", "spark"): training()},
        finetune={("stunet_tiny", "scratch"): training(), ("stunet_tiny", "spark"): training(step_s=0.5)},
        predict={"stunet_tiny": (Job(10.0, 10.0, 5e8), 2.0)},
        score=(Job(3.0, 3.0, 0.0), 1.0),
        prepare=(Job(4.0, 4.0, 3e8), 2.0),
        cached_bytes=2.0,
        label_bytes=5000,
    )
    monkeypatch.setattr(probe, "write", lambda *given: None)
    monkeypatch.setattr(probe, "run", lambda *given: done)
    return done


def test_jobs_are_counted_and_a_job_is_its_start_its_steps_and_its_looks(study, made_up, tmp_path):
    told = forecast.forecast(study, tmp_path / "probe")
    rows = {(row["stage"], row["what"].split(" ")[0]): row for row in told["rows"]}
    spark = rows["pretrain", "spark"]
    start = 10.0 - 16 * 0.25 - 1.0
    assert (spark["jobs"], spark["seconds"]) == (1, pytest.approx(start + 100 * 0.25)), "100 steps pay 10 M voxels"
    assert spark["cpu_seconds"] == pytest.approx(spark["seconds"] / 2)
    assert spark["disk_bytes"] == 3000
    tuned = rows["finetune", "scratch"]
    assert (tuned["jobs"], tuned["seconds"]) == (CELLS, pytest.approx(start + 120 * 0.25 + 10 * 1.0))
    assert rows["finetune", "spark"]["seconds"] == pytest.approx(10.0 - 16 * 0.5 - 1.0 + 120 * 0.5 + 10 * 1.0)
    six = rows["predict", "6"]  # three test cases, three of the other dataset, all as large as the probed ones
    assert (six["jobs"], six["seconds"]) == (2 * CELLS, pytest.approx(4.0 + 6 * 2.0))
    assert rows["score", "6"]["seconds"] == pytest.approx(2.0 + 6 * 1.0)
    prepared = rows["prepare", "15"]
    assert (prepared["jobs"], prepared["seconds"]) == (2, pytest.approx(2.0 + 15 * 2.0 / 2))
    assert prepared["disk_bytes"] == 15 * (20 * 20 * 20) * 2.0
    hours = sum(row["jobs"] * row["seconds"] for row in told["rows"]) / 3600
    assert told["total"]["hours"] == pytest.approx(hours)
    assert told["cases"] == {"chest_ct": 12, "chest_ct_other": 3}


def test_more_seeds_of_a_pretraining_are_more_jobs(study, made_up, tmp_path):
    content = yaml.safe_load(study.read_text())
    given = {**content, "pretrain": {**content["pretrain"], "seeds": [0, 1, 2]}}
    from voxprior.configuration import Study

    checked = Study.model_validate(content)
    assert forecast._per_arm(checked, given, "stunet_tiny", "spark") == (3, 3 * CELLS)
    assert forecast._per_arm(checked, given, "stunet_tiny", "scratch") == (0, CELLS)


def test_the_table_is_printed_and_written(study, made_up, tmp_path, capsys):
    forecast.run(study, tmp_path / "told.json")
    said = capsys.readouterr().out
    assert "spark on stunet_tiny, 100 steps" in said and "hours one after another" in said
    assert "GPU memory" not in said
    assert json.loads((tmp_path / "told.json").read_text())["format"] == 1


def test_on_a_gpu_its_memory_is_told(study, made_up, monkeypatch, capsys):
    there = training(gpu_bytes=3 << 30, device="NVIDIA H100 80GB HBM3")
    done = made_up._replace(
        pretrain=dict.fromkeys(made_up.pretrain, there), finetune=dict.fromkeys(made_up.finetune, there)
    )
    monkeypatch.setattr(probe, "run", lambda *given: done)
    forecast.run(study)
    said = capsys.readouterr().out
    assert "GPU memory" in said and "3.00 GiB" in said and "hours GPU" in said


def test_without_intake_or_study_the_next_command_is_named(study, tmp_path):
    (tmp_path / "results/intake/chest_ct_other/cases.csv").unlink()
    with pytest.raises(Refusal, match="--until intake"):
        forecast.forecast(study, tmp_path / "probe")
    with pytest.raises(Refusal, match="nowhere.yaml is missing"):
        forecast.forecast(tmp_path / "nowhere.yaml", tmp_path / "probe")


def test_a_large_scan_is_written_in_its_size_with_every_class(tmp_path):
    import SimpleITK
    from numpy import unique

    probe._write_case(tmp_path, "one", Size((30, 110, 100), (5.0, 0.8, 0.8)), ["ct", "pet"], 4, seed=0)
    labels = SimpleITK.ReadImage(str(tmp_path / "labels" / "one.nii.gz"))
    assert labels.GetSize() == (100, 110, 30) and labels.GetSpacing() == pytest.approx((0.8, 0.8, 5.0))
    assert set(unique(SimpleITK.GetArrayFromImage(labels))) == {0, 1, 2, 3, 4}
    assert {path.parent.name for path in tmp_path.glob("*/one.nii.gz")} == {"ct", "pet", "labels"}


def test_the_small_study_keeps_what_costs_and_shortens_what_is_long():
    study = yaml.safe_load((ROOT / "config" / "studies" / "hippocampus.yaml").read_text())
    small = probe._small(study, {"vit_tiny": ["scratch", "mae"]}, Path())
    assert small["methods"] == study["methods"] and small["finetune"]["crop_vox"] == study["finetune"]["crop_vox"]
    assert small["pretrain"]["batch_size"] == 4 and small["pretrain"]["voxels"] == 16 * 4 * 40 * 56 * 40
    assert (small["finetune"]["steps"], small["finetune"]["validations"], small["finetune"]["seeds"]) == (16, 1, [0])
    assert small["split"] == {"test": 2, "val": 1, "budgets": [1]}


def test_a_probe_leaves_out_the_variants_that_it_does_not_train():
    study = yaml.safe_load((ROOT / "config" / "studies" / "hippocampus.yaml").read_text())
    variant = {"method": "mae", "decoder_depth": 1}
    changed = study | {"methods": study["methods"] | {"slim": variant}}
    assert probe._small(changed, {"vit_tiny": ["scratch", "mae"]}, Path())["methods"] == study["methods"]
    assert probe._small(changed, {"vit_tiny": ["scratch", "slim"]}, Path())["methods"]["slim"] == variant
