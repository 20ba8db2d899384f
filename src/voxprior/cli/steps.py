"""Verbs that the workflow calls: cards and paths in, files out."""

import os
from pathlib import Path
from typing import Annotated

import typer

from voxprior.cli.options import Card, Compiled, Device, In, Output, Processes, Threads, Work, app, asked, there


@app.command()
def check(config: In, output: Output) -> None:
    """Refuse impossible combinations before any work."""
    from voxprior.commands import check as verb

    verb.run(config, output)


@app.command()
def fetch(card: Card, output: Output, mirror: str | None = None) -> None:
    """Fetch a dataset: hash-checked, resumable, from an index, a URL, a mirror or a folder."""
    from voxprior.commands import fetch as verb

    verb.run(card, output, mirror or os.environ.get("VOXPRIOR_MIRROR"))


@app.command()
def simulate(card: Card, manifest: In, output: Output) -> None:
    """Make simulated patients from one labelled scan."""
    from voxprior.commands import simulate as verb

    verb.run(card, manifest, output)


@app.command()
def intake(
    card: Card,
    manifest: In,
    cases: Output,
    quarantine: Output,
    fingerprint: Annotated[Path | None, typer.Option(help="what the scans are like; default: beside the cases")] = None,
    workers: Threads = 1,
) -> None:
    """List and check the cases of a dataset; set aside what cannot be used, with the reason."""
    from voxprior.commands import intake as verb

    verb.run(card, manifest, cases, quarantine, fingerprint, workers)


@app.command()
def prepare(
    card: Card,
    cases: In,
    output: Output,
    workers: Threads = 1,
    config: Annotated[Path | None, typer.Option(help="the study, for the dataset's licence", callback=there)] = None,
    fingerprint: Annotated[Path | None, typer.Option(help="what the scans are like", callback=there)] = None,
) -> None:
    """Orient, resample, scale and cache every case."""
    from voxprior.commands import prepare as verb

    verb.run(card, cases, output, workers, config, fingerprint)


@app.command()
def split(
    card: Card,
    index: In,
    cases: Annotated[list[Path], typer.Option(help="case tables, the study's own first", callback=there)],
    output: Output,
    leakage: Output,
    pool: Annotated[
        list[Path] | None, typer.Option(help="case tables that are only pretrained on", callback=there)
    ] = None,
    file: Annotated[list[str] | None, typer.Option(help="a file of weights, as name=path")] = None,
) -> None:
    """Split patients into test, validation and nested label budgets; refuse scored cases that are learned from."""
    from voxprior.commands import split as verb

    verb.run(card, index, cases, output, leakage, pool or [], file or [])


@app.command()
def pretrain(
    card: Card,
    index: Annotated[list[Path], typer.Option(help="the study's index first, then its pool's", callback=there)],
    splits: In,
    output: Output,
    work: Work,
    threads: Threads = 1,
    device: Device = "auto",
    compiled: Compiled = "auto",
    processes: Processes = 1,
) -> None:
    """Pretrain one method without labels; with --dry-run only say what it would cost (see cost --help)."""
    from voxprior.commands import launch
    from voxprior.commands import pretrain as verb

    launch.run(processes)
    verb.run(card, index, splits, output, work, threads, asked(device, compiled))


@app.command()
def finetune(
    card: Card,
    index: In,
    splits: In,
    output: Output,
    work: Work,
    encoder: Annotated[Path | None, typer.Option(callback=there)] = None,
    threads: Threads = 1,
    device: Device = "auto",
    compiled: Compiled = "auto",
    processes: Processes = 1,
) -> None:
    """Fine-tune an encoder, or start from scratch, on one label budget; with --dry-run only say what it would cost."""
    from voxprior.commands import finetune as verb
    from voxprior.commands import launch

    launch.run(processes)
    verb.run(card, index, splits, output, work, encoder, threads, asked(device, compiled))


@app.command("predict-test")
def predict_test(
    card: Card,
    model: In,
    index: Annotated[list[Path], typer.Option(help="the study's index first, then external ones", callback=there)],
    splits: In,
    output: Output,
    threads: Threads = 1,
    device: Device = "auto",
) -> None:
    """Segment a study's test cases in their own grids (a step of the workflow; for other scans see predict)."""
    from voxprior.commands import predict_test as verb

    verb.run(card, model, index, splits, output, threads, device)


@app.command()
def score(
    card: Card,
    predictions: In,
    cases: Annotated[list[Path], typer.Option(help="case tables", callback=there)],
    output: Output,
) -> None:
    """Score predictions against labels: Dice, NSD, HD95 per class and case, in the scan's own grid."""
    from voxprior.commands import score as verb

    verb.run(card, predictions, cases, output)


@app.command()
def compare(card: Card, splits: In, results: In, output: Output) -> None:
    """Gather all scores into tables with intervals."""
    from voxprior.commands import compare as verb

    verb.run(card, splits, results, output)


@app.command()
def report(config: In, results: In, output: Output) -> None:
    """Write the report, one self-contained HTML file."""
    from voxprior.commands import report as verb

    verb.run(config, results, output)


@app.command()
def track(
    config: In,
    results: Annotated[Path, typer.Option(help="the study's results folder; may still be missing")],
    output: Output,
    store: Annotated[
        str, typer.Option(help="MLflow tracking URI", envvar="MLFLOW_TRACKING_URI")
    ] = "sqlite:///mlflow.db",
    create: Annotated[bool, typer.Option(help="only create the store")] = False,
    work: Annotated[Path, typer.Option(help="folder of running jobs' state")] = Path("work"),
) -> None:
    """Publish the study's runs to MLflow, finished and running ones; a dead store changes nothing."""
    from voxprior.commands import track as verb

    verb.run(config, results, output, store, create, work)
