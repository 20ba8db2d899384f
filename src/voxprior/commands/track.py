"""`voxprior track`: publishes a study's runs to MLflow, at any time.

The journals (JSONL) are the truth; the store is a view of them that can be made again at any time. What the store shows
of a run is said in `study/published.py`; here it is brought there. One experiment per study, flat runs with tags,
because the UI draws no charts for nested ones. Each run carries the stamp of its files: what has not changed is neither
read nor sent again. The runs of jobs that still work get what is new, and are finished later.

A dead, locked or absent store costs a warning, some seconds and nothing else.
"""

import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

NAME = "voxprior.run"  # the run's place below the results folder
STATE = "voxprior.published"  # what of it is in the store; written last
REPLACED = "replaced"
BATCH = 1000  # all that MLflow takes in one call
PARAMS = 100  # of these, parameters
STALLED_S = 1800.0
# MLflow would try a server that does not answer for a quarter of an hour.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
LOCK_WAIT_S = 5.0
EXPERIMENT = """\
{title}{stamp}. Begin here: {links}

Runs are flat; the tag `stage` says what each is:

* `finetune`: a segmentation network trained on `budget` labelled cases, from `init`. `test/dice` is its mean Dice on \
the test cases; one bar or row is one seed, or a mean over seeds.
* `pretrain`: an encoder trained without labels.
* `arm`: mean scores of one init by the number of labels.
* `study`: report, tables and figures are among its artifacts.

Steps of curves are voxels seen. `replaced = yes` marks runs of an earlier version of the study. Intervals and tests \
stand in the report: single runs prove nothing.
"""


def run(config: Path, results: Path, output: Path, store: str, create: bool, work: Path = Path("work")) -> None:
    """Creates the store, and unless `create` is all that was asked for, publishes every run, finished or not.

    Args:
        config: the resolved study (JSON).
        results: the study's results folder.
        output: JSON that lists the MLflow run id of each run, or why there is none.
        store: MLflow tracking URI.
        create: only create the store. On a fresh SQLite file racing writers kill one another.
        work: the folder of running jobs' state, without the name of the results folder.
    """
    from voxprior.whole import write_json

    resolved = json.loads(config.read_text(encoding="utf-8"))
    written: dict[str, Any] = {"format": 1, "store": store, "runs": {}}
    # Whatever the store raises (SQL, HTTP, disk, a missing server) must not stop or change a study.
    try:
        client, experiment = open_store(store, resolved)
        written["experiment"] = experiment  # the report links to it before anything is published
        if not create:
            publish_all(client, experiment, resolved, results, work, written["runs"])
            if (version := register(client, resolved, results, written["runs"])) is not None:
                written["model"] = version
            server = store.startswith("http")
            page = f"{store if server else 'http://127.0.0.1:5000'}/{first_view(resolved['study'], experiment)}"
            told = f"{len(written['runs'])} runs in MLflow{'' if server else ', served by `make ui`'}: {page}"
            print(f"voxprior: {told}", file=sys.stderr)
            written["page"] = page
    except Exception as error:
        written["pending"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(
            f"voxprior: warning: MLflow store {store} could not be used ({written['pending']}): the results are "
            "complete without it; run `make track` to publish them later",
            file=sys.stderr,
        )
    write_json(output, written, sort_keys=True)


def probe(store: str) -> None:
    """Raises at once what a database that is locked, read-only or none would say: MLflow would ask ten times."""
    import sqlite3

    place = store.removeprefix("sqlite:///")
    if place == store or place == ":memory:":
        return
    if not place.startswith("file:"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(place, timeout=LOCK_WAIT_S, uri=place.startswith("file:"))
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE voxprior_probe (x)")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def open_store(store: str, resolved: dict[str, Any]) -> tuple[Any, str]:
    """Connects to the store, creating the database and the study's experiment where they are missing."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    probe(store)
    from mlflow import MlflowClient

    study = resolved["study"]
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    known = client.get_experiment_by_name(study["study"])
    # Beside the database; a server keeps its own place.
    place = Path("mlartifacts", study["study"]).resolve().as_uri() if store.startswith("sqlite") else None
    experiment = known.experiment_id if known else client.create_experiment(study["study"], artifact_location=place)
    for key, value in experiment_tags(resolved, str(experiment)).items():
        if known is None or known.tags.get(key) != value:
            client.set_experiment_tag(experiment, key, value)
    return client, str(experiment)


def experiment_tags(resolved: dict[str, Any], experiment: str) -> dict[str, str]:
    """Makes the experiment's description, with links to its saved views, and these views."""
    from voxprior.study.views import views

    study = resolved["study"]
    simulated = ((resolved.get("datasets") or {}).get(study["dataset"]) or {}).get("simulate") is not None
    stamp = " (simulated patients: a pipeline check, no evidence for any method)" if simulated else ""
    offered = views(study)
    links = ", ".join(f"[{view.link}]({view.address(experiment)})" for view in offered if view.link)
    text = EXPERIMENT.format(title=study.get("title") or study["study"], stamp=stamp, links=links)
    # The kind makes the page open on runs, not on language models.
    tags = {"mlflow.note.content": text, "mlflow.experimentKind": "custom_model_development"}
    return tags | dict(view.tag() for view in offered)


def first_view(study: dict[str, Any], experiment: str) -> str:
    """Names the address to begin with, from the hash on."""
    from voxprior.study.views import views

    return views(study)[0].address(experiment)


def publish_all(
    client: Any, experiment: str, resolved: dict[str, Any], results: Path, work: Path, ids: dict[str, str]
) -> None:
    """Brings the store up to date with the files; fills `ids` with the MLflow run id of each run by its name."""
    from voxprior.study import published
    from voxprior.study.live import working_folder

    known = stored(client, experiment)
    for place in published.places(results, working_folder(resolved["study"], work)):
        status = _status(place)
        runs = known.pop(place.name, [])
        current = [run for run in runs if run.data.tags.get(REPLACED) != "yes"]
        # Two at once are what two publishers left who worked at the same time: `publish` keeps one.
        if len(current) == 1 and _state(current[0]) | {"files": place.stamp, "status": status} == _state(current[0]):
            ids[place.name] = current[0].info.run_id
            continue
        told = _read(place, resolved, results)
        if told is not None:
            ids[place.name] = publish(client, experiment, place, told, status, runs)
    for runs in known.values():  # of cells that are no longer in the study
        for old in runs:
            replace(client, old)


def stored(client: Any, experiment: str) -> dict[str, list[Any]]:
    """Lists the experiment's runs by their place; one search for all."""
    found: dict[str, list[Any]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for run in page:
            if NAME in run.data.tags:
                found.setdefault(run.data.tags[NAME], []).append(run)
        token = page.token
        if not token:
            return found


def _state(run: Any) -> dict[str, Any]:
    return dict(json.loads(run.data.tags.get(STATE, "{}")))


def _status(place: Any) -> str:
    """MLflow's word: KILLED for a job whose journal has not grown for half an hour; it may go on."""
    import time

    if not place.running:
        return "FINISHED"
    silent_s = time.time() - (place.folder / "journal.jsonl").stat().st_mtime
    return "KILLED" if silent_s > STALLED_S else "RUNNING"


def _read(place: Any, resolved: dict[str, Any], results: Path) -> Any:
    """Reads a run; None where a job's card is gone, which is then no run of this study."""
    from voxprior import cards
    from voxprior.errors import Refusal
    from voxprior.study import published

    if place.stage in ("arm", "study"):
        return published.read_study(place, resolved)
    if not place.running:
        summary = json.loads((place.folder / "summary.json").read_text(encoding="utf-8"))
        return published.read(place, resolved, summary["card"], summary["card_hash"])
    try:
        card = cards.read_card(place.stage, results / "cards" / f"{place.name}.json")
    except Refusal:
        return None
    return published.read(place, resolved, card.model_dump(mode="json"), cards.card_hash(card))


def publish(client: Any, experiment: str, place: Any, told: Any, status: str, runs: list[Any]) -> str:
    """Publishes one run and returns its MLflow run id.

    The stored run of the same card is continued where it holds the first of the same points; else it is made anew.
    Runs of other cards are kept and marked as replaced.
    """
    from mlflow.entities import Metric, Param, RunTag

    current = None
    for old in runs:
        state = _state(old)
        if old.data.tags.get("card_hash", "") != told.card_hash:
            replace(client, old)
        elif current is None and state and state["sha256"] == _digest(told.points[: state["points"]]):
            current = old
        else:
            client.delete_run(old.info.run_id)
    tags = {**told.tags, "mlflow.note.content": told.note, "mlflow.source.name": f"voxprior {place.stage}"}
    tags |= {"mlflow.source.type": "LOCAL", "mlflow.source.git.commit": told.tags.get("git_commit", "")}
    tags = {NAME: place.name, **{key: value for key, value in tags.items() if value}}
    if current is None:
        began = int((told.ended - told.seconds) * 1000)
        current = client.create_run(experiment, start_time=began, run_name=told.title, tags=tags)
    run_id, began = str(current.info.run_id), current.info.start_time
    _put_files(client, run_id, told)
    if status != "RUNNING":
        client.set_terminated(run_id, status, began + int(told.seconds * 1000))
    elif current.info.status != status:
        client.update_run(run_id, status=status)
    sent = int(_state(current).get("points", 0))
    metrics = [Metric(name, value, began + int(s * 1000), step) for name, value, step, s in told.points[sent:]]
    metrics.sort(key=lambda metric: not metric.key.startswith("test/"))  # the page compares runs by the first it finds
    params = [Param(key, value) for key, value in told.params.items() if key not in current.data.params]
    while len(metrics) + min(len(params), PARAMS) + len(tags) >= BATCH or len(params) > PARAMS:
        client.log_batch(run_id, params=params[:PARAMS], metrics=metrics[: BATCH - PARAMS])
        params, metrics = params[PARAMS:], metrics[BATCH - PARAMS :]
    # The state comes with the last of the rest: what was cut off lacks it, and is sent again; equal points count once.
    state = {"files": place.stamp, "status": status, "points": len(told.points), "sha256": _digest(told.points)}
    changed = {key: value for key, value in tags.items() if current.data.tags.get(key) != value}
    changed |= {STATE: json.dumps(state)} | (
        {"mlflow.runName": told.title} if told.title != current.info.run_name else {}
    )
    client.log_batch(run_id, metrics, params, [RunTag(key, value) for key, value in changed.items()])
    return run_id


def _digest(points: list[Any]) -> str:
    return sha256(json.dumps([point[:3] for point in points]).encode()).hexdigest()[:16]


def _put_files(client: Any, run_id: str, told: Any) -> None:
    """Logs a run's dataset, its files, and its pictures as one figure."""
    from mlflow.entities import Dataset, DatasetInput

    if told.dataset is not None:
        name, digest = told.dataset
        client.log_inputs(run_id, datasets=[DatasetInput(Dataset(name, digest, "local", json.dumps({"uri": name})))])
    for path in told.artifacts:
        folder = path.parent.name if path.parent.name in ("tables", "figures") else None
        client.log_artifact(run_id, str(path), folder)
    if told.pictures is not None:
        from voxprior.study import gather, pictures

        figure = pictures.sheet(gather.read_pictures(told.pictures) or {}, told.title)
        if figure is not None:
            client.log_figure(run_id, figure, "pictures.png")


def replace(client: Any, run: Any) -> None:
    """Marks a run whose card or cell the study no longer has; it stays to be looked at."""
    if run.data.tags.get(REPLACED) != "yes":
        client.set_tag(run.info.run_id, REPLACED, "yes")
    if run.info.status == "RUNNING":
        client.set_terminated(run.info.run_id, "KILLED")


def register(client: Any, resolved: dict[str, Any], results: Path, ids: dict[str, str]) -> dict[str, Any] | None:
    """Registers the study's chosen model with its model card, once per model; tells its name and version."""
    from mlflow.exceptions import MlflowException

    from voxprior.study import chosen

    study = resolved["study"]
    if "inits" not in study or (model := chosen.choose(resolved, results)) is None:
        return None
    digest = sha256(model.weights.read_bytes()).hexdigest()
    try:
        client.get_registered_model(study["study"])
    except MlflowException:
        client.create_registered_model(study["study"])
    name, run_id = study["study"], ids[model.name]
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((one for one in versions if one.tags.get("sha256") == digest and one.run_id == run_id), None)
    if version is None:
        for path in [model.weights, *([model.card] if model.card else [])]:
            client.log_artifact(run_id, str(path), "model")
        source = client.get_run(run_id).info.artifact_uri + "/model"
        version = client.create_model_version(
            name, source, run_id, tags={**model.tags, "sha256": digest}, await_creation_for=None
        )
    if version.description != model.description:
        client.update_model_version(name, version.version, model.description)
        client.update_registered_model(name, model.description)
    client.set_registered_model_alias(name, "chosen", version.version)
    return {"name": name, "version": int(version.version), "run": run_id}
