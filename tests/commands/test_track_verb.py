"""Publishing to MLflow: complete, idempotent, and never in the way."""

import json
import shutil
from pathlib import Path

import pytest

from voxprior.commands import track


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A results folder with one finished fine-tuning and a report."""
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    cell = results / "finetune/vit_tiny/mae/budget4/fold0/seed1"
    cell.mkdir(parents=True)
    card = {"init": "mae", "backbone": "vit_tiny", "budget": 4, "fold": 0, "seed": 1, "recipe": {"lr": 0.001}}
    summary = {"card": card, "card_hash": "c0ffee", "steps": 60, "seconds": 2.5, "inputs": {"index_sha256": "abc"}}
    (cell / "summary.json").write_text(json.dumps(summary))
    (cell / "load_report.json").write_text("{}")
    rows = [{"step": step, "loss": 1 / (step + 1), "lr": 0.001} for step in range(3)]
    (cell / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cell / "scores.csv").write_text(
        "dataset,case,patient,class,metric,value,flag\nd,a,a,liver,dice,0.5,\nd,b,b,liver,dice,0.7,\n"
        "d,c,c,liver,dice,,both_empty\n"
    )
    (results / "report.html").write_text("<html></html>")
    config = {"study": {"study": "toy", "dataset": "d", "split": {"test": 1}, "pretrain": {}, "finetune": {}}}
    (results / "config.json").write_text(json.dumps(config))
    return results


def published(results, store):
    output = results / "tracked.json"
    track.run(results / "config.json", results, output, store, False)
    return json.loads(output.read_text())


def test_runs_are_flat_tagged_and_carry_metrics_with_steps(study):
    from mlflow import MlflowClient

    store = f"sqlite:///{study.parent}/mlflow.db"
    track.run(study / "config.json", study, study / "store.json", store, True)
    runs = published(study, store)["runs"]
    client = MlflowClient(store)
    run = client.get_run(runs["finetune/vit_tiny/mae/budget4/fold0/seed1"])
    assert run.info.status == "FINISHED"
    assert {key: run.data.tags[key] for key in ("study", "init", "backbone", "budget", "seed", "card_hash")} == {
        "study": "toy",
        "init": "mae",
        "backbone": "vit_tiny",
        "budget": "4",
        "seed": "1",
        "card_hash": "c0ffee",
    }
    assert run.data.params["recipe.lr"] == "0.001"
    assert run.data.metrics["d/dice/liver"] == pytest.approx(0.6)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2]
    assert [a.path for a in client.list_artifacts(runs["report"])] == ["report.html"]

    # Again: the same runs, none added. Changed scores: that run is renewed, the other kept.
    assert published(study, store)["runs"] == runs
    scores = next(study.rglob("scores.csv"))
    scores.write_text(scores.read_text().replace("0.7", "0.9"))
    again = published(study, store)["runs"]
    assert again["report"] == runs["report"]
    renewed = again["finetune/vit_tiny/mae/budget4/fold0/seed1"]
    assert client.get_run(renewed).data.metrics["d/dice/liver"] == pytest.approx(0.7)
    experiment = client.get_experiment_by_name("toy").experiment_id
    assert len(client.search_runs([experiment])) == 2


def test_a_pretraining_shows_its_monitors_measures_and_pictures(make_study):
    from mlflow import MlflowClient

    results = make_study(inits={"vit_tiny": ["scratch", "mae", "pgl"]}, budgets=(1,))
    store = f"sqlite:///{Path.cwd()}/mlflow.db"
    runs = published(results, store)["runs"]
    client = MlflowClient(store)
    run = client.get_run(runs["pretrain/vit_tiny/pgl/fold0"])
    journal = [json.loads(line) for line in (results / "pretrain/vit_tiny/pgl/fold0/journal.jsonl").open()]
    assert set(journal[0]) - {"step"} <= set(run.data.metrics)
    assert run.data.metrics["feature_rank"] == pytest.approx(journal[-1]["feature_rank"])
    drift = client.get_metric_history(run.info.run_id, "measured/offset_drift_x_vox")
    assert [(point.step, point.value) for point in drift] == [(0, 0.0), (100, -0.0625)]
    assert run.data.metrics["moved/teacher"] == pytest.approx(0.092)
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"summary.json", "pictures.png"}
    picture = Path(client.download_artifacts(run.info.run_id, "pictures.png")).read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert "load_report.json" in {
        a.path for a in client.list_artifacts(runs["finetune/vit_tiny/mae/budget1/fold0/seed0"])
    }
    # Other pictures are another content: the run is published anew.
    shutil.copy(
        results / "pretrain/vit_tiny/mae/fold0/pictures.npz", results / "pretrain/vit_tiny/pgl/fold0/pictures.npz"
    )
    assert published(results, store)["runs"]["pretrain/vit_tiny/pgl/fold0"] != run.info.run_id


def test_a_dead_store_costs_a_warning_and_nothing_else(study, capsys):
    broken = study.parent / "broken.db"
    broken.write_text("this is no database")
    tracked = published(study, f"sqlite:///{broken}")
    assert tracked["runs"] == {}
    assert "pending" in tracked
    assert "run `make track` to publish them later" in capsys.readouterr().err
