"""Publishing to MLflow: complete, idempotent, and never in the way."""

import json

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


def test_a_dead_store_costs_a_warning_and_nothing_else(study, capsys):
    broken = study.parent / "broken.db"
    broken.write_text("this is no database")
    tracked = published(study, f"sqlite:///{broken}")
    assert tracked["runs"] == {}
    assert "pending" in tracked
    assert "run `make track` to publish them later" in capsys.readouterr().err
