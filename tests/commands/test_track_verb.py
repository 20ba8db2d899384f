"""Publishing to MLflow: complete, idempotent, and never in the way."""

import http.server
import json
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from voxprior.__main__ import main
from voxprior.commands import track


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An empty SQLite store: MLflow takes seconds to make its tables."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A results folder with one finished fine-tuning and a report."""
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    cell = results / "finetune/vit_tiny/mae/budget4/fold0/pretrain0_seed1"
    cell.mkdir(parents=True)
    card = {"init": "mae", "backbone": "vit_tiny", "budget": 4, "fold": 0, "seed": 1, "recipe": {"lr": 0.001}}
    summary = {
        "card": card,
        "card_hash": "c0ffee",
        "steps": 3,
        "seconds": 2.5,
        "voxels_seen": 300,
        "inputs": {"index_sha256": "abc"},
    }
    (cell / "summary.json").write_text(json.dumps(summary))
    (cell / "load_report.json").write_text("{}")
    rows = [{"step": step, "progress": step / 2, "loss": 1 / (step + 1), "lr": 0.001} for step in range(3)]
    (cell / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cell / "scores.csv").write_text(
        "dataset,case,patient,class,metric,value,flag\nd,a,a,liver,dice,0.5,\nd,b,b,liver,dice,0.7,\n"
        "d,c,c,liver,dice,,both_empty\n"
    )
    (results / "report.html").write_text("<html></html>")
    config = {"study": {"study": "toy", "dataset": "d", "split": {"test": 1}, "pretrain": {}, "finetune": {}}}
    (results / "config.json").write_text(json.dumps(config))
    return results


def run_voxels(results):
    return json.loads((results / "pretrain/vit_tiny/pgl/fold0/seed0/summary.json").read_text())["voxels_seen"]


def published(results, store):
    output = results / "tracked.json"
    track.run(results / "config.json", results, output, store, False)
    return json.loads(output.read_text())


def test_runs_are_flat_tagged_and_carry_metrics_with_steps(study, store):
    from mlflow import MlflowClient

    track.run(study / "config.json", study, study / "store.json", store, True)
    runs = published(study, store)["runs"]
    client = MlflowClient(store)
    run = client.get_run(runs["finetune/vit_tiny/mae/budget4/fold0/pretrain0_seed1"])
    assert run.info.status == "FINISHED"
    assert {
        key: run.data.tags[key] for key in ("study", "init", "backbone", "budget", "pretrain_seed", "seed", "card_hash")
    } == {
        "study": "toy",
        "init": "mae",
        "backbone": "vit_tiny",
        "budget": "4",
        "pretrain_seed": "0",
        "seed": "1",
        "card_hash": "c0ffee",
    }
    assert run.data.params["recipe.lr"] == "0.001"
    assert run.data.metrics["test classes/dice liver"] == pytest.approx(0.6)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [100, 200, 300]
    assert [a.path for a in client.list_artifacts(runs["study"])] == ["report.html"]

    # Again: the same runs, none added. Changed scores: that run is renewed, the other kept.
    assert published(study, store)["runs"] == runs
    scores = next(study.rglob("scores.csv"))
    scores.write_text(scores.read_text().replace("0.7", "0.9"))
    again = published(study, store)["runs"]
    assert again["study"] == runs["study"]
    renewed = again["finetune/vit_tiny/mae/budget4/fold0/pretrain0_seed1"]
    assert client.get_run(renewed).data.metrics["test classes/dice liver"] == pytest.approx(0.7)
    experiment = client.get_experiment_by_name("toy").experiment_id
    assert len(client.search_runs([experiment])) == 2


def test_a_pretraining_shows_its_monitors_measures_and_pictures(make_study, store):
    from mlflow import MlflowClient

    results = make_study(inits={"vit_tiny": ["scratch", "mae", "pgl"]}, budgets=(1,))
    runs = published(results, store)["runs"]
    client = MlflowClient(store)
    run = client.get_run(runs["pretrain/vit_tiny/pgl/fold0/seed0"])
    journal = [json.loads(line) for line in (results / "pretrain/vit_tiny/pgl/fold0/seed0/journal.jsonl").open()]
    assert {f"train/{name}" for name in set(journal[0]) - {"step", "progress"}} <= set(run.data.metrics)
    assert run.data.metrics["train/feature_rank"] == pytest.approx(journal[-1]["feature_rank"])
    drift = client.get_metric_history(run.info.run_id, "measured/offset_drift_x_vox")
    assert [(point.step, point.value) for point in drift] == [(0, 0.0), (run_voxels(results), -0.0625)]
    assert run.data.metrics["moved/teacher"] == pytest.approx(0.092)
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"summary.json", "pictures.png"}
    picture = Path(client.download_artifacts(run.info.run_id, "pictures.png")).read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert "load_report.json" in {
        a.path for a in client.list_artifacts(runs["finetune/vit_tiny/mae/budget1/fold0/pretrain0_seed0"])
    }
    # Other pictures: the same run, other content.
    shutil.copy(
        results / "pretrain/vit_tiny/mae/fold0/seed0/pictures.npz",
        results / "pretrain/vit_tiny/pgl/fold0/seed0/pictures.npz",
    )
    assert published(results, store)["runs"]["pretrain/vit_tiny/pgl/fold0/seed0"] == run.info.run_id
    assert Path(client.download_artifacts(run.info.run_id, "pictures.png")).read_bytes() != picture


def test_the_chosen_model_is_registered_once_with_its_card_and_the_rule(make_study, store):
    from mlflow import MlflowClient

    results = make_study(budgets=(1, 4))
    cell = results / "finetune/stunet_tiny/spark/budget4/fold0/pretrain0_seed1"
    (cell / "model.safetensors").write_bytes(b"weights")
    (results / "model_card.md").write_text("# Model card\n\n" + "Words. " * 900)
    (results / "report.html").write_text("<html></html>")
    tracked = published(results, store)
    assert tracked["model"] == {
        "name": "fake",
        "version": 1,
        "run": tracked["runs"][cell.relative_to(results).as_posix()],
    }
    assert published(results, store)["model"]["version"] == 1
    client = MlflowClient(store, store)
    version = client.get_model_version_by_alias("fake", "chosen")
    assert version.description.startswith("Chosen by a fixed rule and not by its scores")
    assert "# Model card" in version.description
    assert len(version.description) <= 5000
    assert (version.tags["init"], version.tags["budget"], version.tags["seed"]) == ("spark", "4", "1")
    held = {Path(a.path).name for a in client.list_artifacts(tracked["model"]["run"], "model")}
    assert held == {"model.safetensors", "model_card.md"}
    # Another model of the same card and cell (trained again) is another version.
    (cell / "model.safetensors").write_bytes(b"other weights")
    assert published(results, store)["model"]["version"] == 2


def test_the_experiment_says_what_it_holds_and_arms_show_scores_by_labels(study, store):
    from mlflow import MlflowClient

    head = "dataset,cohort,backbone,init,budget,class,metric,mean,low,high,cases,seeds,excluded,stamp\n"
    (study / "tables").mkdir()
    (study / "tables" / "curves.csv").write_text(
        head
        + "".join(
            f"d,{cohort},vit_tiny,{init},{budget},{name},dice,{mean},,,5,1,0,\n"
            for cohort, init, budget, name, mean in [
                ("test", "mae", 16, "mean", 0.8),
                ("test", "mae", 4, "mean", 0.61234),
                ("test", "mae", 4, "liver", 0.1),
                ("external", "mae", 4, "mean", 0.2),
                ("test", "scratch", 4, "mean", ""),
                ("test", "pgl", 4, "mean", 0.5),
            ]
        )
    )
    config = json.loads((study / "config.json").read_text())
    config["study"] |= {"title": "Toys", "split": {"budgets": [4, 16], "folds": 1}}
    config["datasets"] = {"d": {"simulate": {"patients": 3}}}
    (study / "config.json").write_text(json.dumps(config))
    runs = published(study, store)["runs"]
    assert {name for name in runs if name.startswith("arm/")} == {"arm/vit_tiny/mae", "arm/vit_tiny/pgl"}
    client = MlflowClient(store)
    history = client.get_metric_history(runs["arm/vit_tiny/mae"], "by labels/dice")
    assert [(point.step, point.value) for point in history] == [(4, 0.6123), (16, 0.8)]
    experiment = client.get_experiment("1")
    note = experiment.tags["mlflow.note.content"]
    assert note.startswith(
        "Toys (simulated patients: a pipeline check, no evidence for any method). Begin here: [scores]("
    )
    assert "viewStateShareKey=inits16&" in note
    assert {"mlflow.sharedViewState.scores", "mlflow.sharedViewState.inits4"} <= set(experiment.tags)
    for run in runs.values():
        assert client.get_run(run).data.tags["stamp"].startswith("pipeline check")


def grow(results, work, steps, total=190):
    """Writes the working state of a fine-tuning that has come to `steps` of `total`, with a torn last line."""
    place = "finetune/vit_tiny/mae/budget2/fold0/pretrain0_seed0"
    (work / place).mkdir(parents=True, exist_ok=True)
    rows = [{"step": n, "progress": n / (total - 1), "loss": 1 / (n + 1), "lr": 0.1} for n in range(steps)]
    clock = [
        {"step": n, "seconds": n / 10, "voxels_seen": (n + 1) * 8, "voxels_per_second": 80.0} for n in range(steps)
    ]
    torn = '{"step": 77, "los' if steps < total else ""
    (work / place / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    (work / place / "clock.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clock))
    return place


def test_a_running_job_is_shown_grows_and_is_finished_in_the_same_run(study, tiny_study, store):
    import os

    from mlflow import MlflowClient

    client = MlflowClient(store)
    work = study.parent / "work" / "results"
    place = grow(study, work, 50)
    card = study / "cards" / f"{place}.json"
    card.parent.mkdir(parents=True)
    shutil.copy(tiny_study.card("finetune", init="mae"), card)

    def shown():
        run = client.get_run(published(study, store)["runs"][place])
        return run.info.run_id, run.info.status, client.get_metric_history(run.info.run_id, "train/loss")

    first, status, begun = shown()
    assert (status, begun[0].step) == ("RUNNING", 8)
    assert shown()[2] == begun
    grow(study, work, 120)
    again, status, grown = shown()
    assert (again, status) == (first, "RUNNING")
    assert len(grown) > len(begun)
    an_hour_ago = time.time() - 3600
    os.utime(work / place / "journal.jsonl", (an_hour_ago, an_hour_ago))
    assert shown()[:2] == (first, "KILLED")
    # It goes on to its end, and Snakemake has the outputs.
    grow(study, work, 190)
    (study / place).mkdir(parents=True)
    for name in ("journal.jsonl", "clock.jsonl"):
        shutil.copy(work / place / name, study / place / name)
    from voxprior import cards

    content = cards.read_card("finetune", card)
    told = {"card": content.model_dump(mode="json"), "card_hash": cards.card_hash(content), "steps": 190}
    told |= {"seconds": 18.9, "voxels_seen": 190 * 8, "inputs": {"index_sha256": "abc"}}
    (study / place / "summary.json").write_text(json.dumps(told))
    last, status, ended = shown()
    assert (last, status) == (first, "FINISHED")
    assert {(point.step, point.value) for point in grown} <= {(point.step, point.value) for point in ended}
    assert (ended[-1].step, ended[-1].value) == (190 * 8, 1 / 190)
    assert len({(point.step, point.value) for point in ended}) == len(ended), "no point twice"
    assert len(client.search_runs(["1"], f"tags.`voxprior.run` = '{place}'")) == 1


def test_the_environment_names_the_store_for_the_workflow_too(study, store, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    words = [f"--config={study / 'config.json'}", f"--results={study}", f"--output={tmp_path / 'told.json'}"]
    monkeypatch.setattr("sys.argv", ["voxprior", "track", *words, "--create"])
    with pytest.raises(SystemExit, match="0"):
        main()
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["store"] == store and "pending" not in told


def test_runs_of_another_card_or_of_no_cell_stay_and_are_marked(study, store):
    from mlflow import MlflowClient

    client = MlflowClient(store)
    place = "finetune/vit_tiny/mae/budget4/fold0/pretrain0_seed1"
    before = published(study, store)["runs"][place]
    path = study / place / "summary.json"
    path.write_text(path.read_text().replace("c0ffee", "decaf0"))
    after = published(study, store)["runs"][place]
    assert after != before
    assert [client.get_run(run).data.tags["replaced"] for run in (before, after)] == ["yes", "no"]
    # The first card again: its run counts again.
    path.write_text(path.read_text().replace("decaf0", "c0ffee"))
    assert published(study, store)["runs"][place] == before
    assert [client.get_run(run).data.tags["replaced"] for run in (before, after)] == ["no", "yes"]
    shutil.rmtree(study / "finetune")
    assert place not in published(study, store)["runs"]
    assert client.get_run(before).data.tags["replaced"] == "yes"


@pytest.fixture
def fresh(monkeypatch):
    """MLflow in a process of its own: it keeps connections and settings for the process's life."""

    def run(results, store):
        import subprocess
        import sys

        code = (
            "import sys; from pathlib import Path; from voxprior.commands import track; r = Path(sys.argv[1]);"
            "track.run(r / 'config.json', r, r / 'tracked.json', sys.argv[2], False)"
        )
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, str(results), store], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "run `make track` to publish them later" in done.stderr
        return json.loads((results / "tracked.json").read_text()), time.monotonic() - began

    return run


def hashes(results):
    return {path: path.read_bytes() for path in results.rglob("*") if path.is_file() and path.name != "tracked.json"}


def test_what_two_publishers_at_once_left_double_is_one_run_again(study, store):
    from mlflow import MlflowClient

    client = MlflowClient(store)
    place = "finetune/vit_tiny/mae/budget4/fold0/pretrain0_seed1"
    first = client.get_run(published(study, store)["runs"][place])
    client.create_run("1", tags={key: value for key, value in first.data.tags.items() if key != track.STATE})
    kept = published(study, store)["runs"][place]
    (run,) = client.search_runs(["1"], f"tags.`voxprior.run` = '{place}'")
    assert run.info.run_id == kept
    assert run.data.metrics == first.data.metrics
    (found,) = client.search_runs(
        ["1"], "tags.stage = 'finetune' and params.budget = '4' and metrics.`test/dice` > 0.5"
    )
    assert found.info.run_id == kept


def test_stores_that_are_broken_read_only_locked_or_a_folder_cost_a_warning(study, store, capsys, monkeypatch):
    monkeypatch.setattr(track, "LOCK_WAIT_S", 0.2)
    before = hashes(study)
    good = Path(store.removeprefix("sqlite:///"))
    broken = study.parent / "broken.db"
    broken.write_text("this is no database")
    (study.parent / "folder.db").mkdir()
    locked = sqlite3.connect(good)
    locked.execute("BEGIN EXCLUSIVE")
    stores = {
        broken: "not a database",
        study.parent / "folder.db": "unable to open",
        good: "locked",
        f"file:{good}?mode=ro&uri=true": "readonly",
        "/proc/none/mlflow.db": "No such file",
    }
    for dead, reason in stores.items():
        if reason == "readonly":
            locked.close()
        began = time.monotonic()
        tracked = published(study, f"sqlite:///{dead}")
        assert tracked["runs"] == {}
        assert reason in tracked["pending"]
        assert "run `make track` to publish them later" in capsys.readouterr().err
        assert time.monotonic() - began < 5
    assert broken.read_text() == "this is no database"
    assert hashes(study) == before
    assert len(published(study, store)["runs"]) == 2, "a store that is back is filled"


class Server(http.server.BaseHTTPRequestHandler):
    """Answers every call with 500, or with nothing for a while."""

    silent_s = 0.0

    def do_GET(self):
        time.sleep(self.silent_s)
        self.send_response(500)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("silent_s", [0.0, 30.0])
def test_a_server_that_fails_or_hangs_costs_seconds_and_a_warning(study, fresh, monkeypatch, silent_s):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1" if silent_s else "10")
    handler = type("Handler", (Server,), {"silent_s": silent_s})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = hashes(study)
    tracked, _ = fresh(study, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    assert tracked["runs"] == {} and tracked["pending"]
    assert hashes(study) == before


def test_a_server_that_is_not_there_costs_a_warning(study, fresh):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert fresh(study, f"http://127.0.0.1:{port}")[0]["pending"]


def test_nobody_waits_for_a_silent_server_longer_than_some_seconds():
    """Two tries of ten seconds for the one call after which publishing ends."""
    assert int(track.PATIENCE["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 10
    assert int(track.PATIENCE["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 1
