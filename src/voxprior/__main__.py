"""The command line: one verb per step, each imported when it is called."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

# Set before anything can import these libraries: a run makes no connection that nobody asked for.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

import typer


class Verbs(typer.core.TyperGroup):
    """Hands `pretrain --dry-run` to the verb that needs neither scans nor folders, without the options about these."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Chooses the verb."""
        if args[0] == "pretrain" and "--dry-run" in args:
            kept, rest = ["cost"], iter(args[1:])
            for word in rest:
                if word in ("--index", "--splits", "--output", "--work", "--threads", "--device"):
                    next(rest, None)
                elif word not in ("--dry-run", "--compile", "--no-compile"):
                    kept.append(word)
            args = kept
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _there(parameter: typer.CallbackParam, value: Path | list[Path] | None) -> Path | list[Path] | None:
    """Refuses inputs that are missing, before anything is imported or written."""
    from voxprior.errors import Refusal

    for path in value if isinstance(value, list) else [value]:
        if path is not None and not path.exists():
            raise Refusal(f"{path}, given as --{parameter.name}, is missing: run the step that writes it")
    return value


In = Annotated[Path, typer.Option(callback=_there)]
Card = Annotated[Path, typer.Option(help="run card (JSON)", callback=_there)]
Output = Annotated[Path, typer.Option(help="what is written, by rename, when all is done")]
Work = Annotated[Path, typer.Option(help="folder for the state that an interrupted run resumes from")]
Threads = Annotated[int, typer.Option(min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]


@app.command("init-study")
def init_study(
    images: Annotated[Path, typer.Option(help="folder of scans in any layout, or a table of paths", callback=_there)],
    labels: Annotated[Path | None, typer.Option(help="folder of label maps, if elsewhere", callback=_there)] = None,
    name: Annotated[str | None, typer.Option(help="of dataset and study; default: the folder's")] = None,
    output: Annotated[Path, typer.Option(help="the study's folder")] = Path("."),
) -> None:
    """Look at your scans and write a dataset file and a study file for them."""
    from voxprior.commands import init_study as verb

    verb.run(images, labels, name, output)


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
def fingerprint(of: Annotated[Path, typer.Option(help="fingerprint.json of a dataset", callback=_there)]) -> None:
    """Show what a dataset's scans are like, and the study's lines that this proposes."""
    from voxprior.commands import fingerprint as verb

    verb.run(of)


@app.command()
def relabel(
    card: Annotated[Path, typer.Option(help="score card (JSON)", callback=_there)], predictions: In, output: Output
) -> None:
    """Write predictions with the label values of each dataset's own files."""
    from voxprior.commands import relabel as verb

    verb.run(card, predictions, output)


@app.command()
def prepare(
    card: Card,
    cases: In,
    output: Output,
    workers: Threads = 1,
    config: Annotated[Path | None, typer.Option(help="the study, for the dataset's licence", callback=_there)] = None,
    fingerprint: Annotated[Path | None, typer.Option(help="what the scans are like", callback=_there)] = None,
) -> None:
    """Orient, resample, scale and cache every case."""
    from voxprior.commands import prepare as verb

    verb.run(card, cases, output, workers, config, fingerprint)


@app.command()
def split(
    card: Card,
    index: In,
    cases: Annotated[list[Path], typer.Option(help="case tables, the study's own first", callback=_there)],
    output: Output,
    leakage: Output,
    pool: Annotated[
        list[Path] | None, typer.Option(help="case tables that are only pretrained on", callback=_there)
    ] = None,
) -> None:
    """Split patients into test, validation and nested label budgets; refuse scored cases that are learned from."""
    from voxprior.commands import split as verb

    verb.run(card, index, cases, output, leakage, pool or [])


@app.command()
def pretrain(
    card: Card,
    index: Annotated[list[Path], typer.Option(help="the study's index first, then its pool's", callback=_there)],
    splits: In,
    output: Output,
    work: Work,
    threads: Threads = 1,
    device: Device = "auto",
    compiled: Annotated[bool | None, typer.Option("--compile/--no-compile", help="default: on CUDA")] = None,
) -> None:
    """Pretrain one method without labels; with --dry-run only say what it would cost (see cost --help)."""
    from voxprior.commands import pretrain as verb

    verb.run(card, index, splits, output, work, threads, device, compiled)


@app.command()
def cost(
    card: Annotated[Path | None, typer.Option(help="run card (JSON); or else", callback=_there)] = None,
    method: Annotated[str | None, typer.Option(help="a file of config/methods, and")] = None,
    backbone: Annotated[str | None, typer.Option(help="a file of config/backbones")] = None,
    preset: Annotated[str, typer.Option(help="numbers of the method")] = "paper",
    voxels: Annotated[int | None, typer.Option(min=1, help="budget; default: the card's, or 200 billion")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="default: the card's, or 4")] = None,
    mfu: Annotated[float, typer.Option(min=0.001, max=1, help="share of the peak that is reached")] = 0.4,
    peak_tflops: Annotated[float, typer.Option(min=0.001, help="of the device; H100 in bfloat16: 989")] = 989.0,
) -> None:
    """Say what a pretraining costs: parameters, FLOPs, memory, steps, GPU hours. Also: pretrain --dry-run."""
    from voxprior.commands import cost as verb

    verb.run(card, method, backbone, preset, voxels, batch_size, mfu, peak_tflops)


@app.command()
def finetune(
    card: Card,
    index: In,
    splits: In,
    output: Output,
    work: Work,
    encoder: Annotated[Path | None, typer.Option(callback=_there)] = None,
    threads: Threads = 1,
    device: Device = "auto",
) -> None:
    """Train a segmentation network on one label budget, from a pretrained encoder or from scratch."""
    from voxprior.commands import finetune as verb

    verb.run(card, index, splits, output, work, encoder, threads, device)


@app.command()
def predict(
    model: Annotated[list[Path], typer.Option(help="model.safetensors; several are an ensemble", callback=_there)],
    input: Annotated[Path, typer.Option(help="a scan, or a folder of scans or DICOM series")],
    output: Annotated[Path, typer.Option(help="folder for label maps and predictions.csv")],
    ids: Annotated[str, typer.Option(help="label values: of the training dataset's files, or study")] = "dataset",
    overlay: Annotated[bool, typer.Option("--overlay", help="a picture of each scan with its labels")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="per class, uint8, 255 is 1")] = False,
    dicom_seg: Annotated[bool, typer.Option("--dicom-seg", help="of DICOM series; needs voxprior[dicom]")] = False,
    mirror: Annotated[bool, typer.Option("--mirror", help="mean of each window and its mirror image")] = False,
    overlap: Annotated[float, typer.Option(min=0, max=0.95, help="share of a window in the next one")] = 0.5,
    threads: Threads = 1,
    device: Device = "auto",
) -> None:
    """Segment new scans in their own grids."""
    from voxprior.commands import predict as verb

    wanted = verb.Wanted(ids, overlay, probabilities, mirror, dicom_seg, overlap)
    verb.run(model, input, output, wanted, threads, device)


@app.command("predict-test")
def predict_test(
    card: Card,
    model: In,
    index: Annotated[list[Path], typer.Option(help="the study's index first, then external ones", callback=_there)],
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
    cases: Annotated[list[Path], typer.Option(help="case tables", callback=_there)],
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
    store: Annotated[str, typer.Option(help="MLflow tracking URI")] = "sqlite:///mlflow.db",
    create: Annotated[bool, typer.Option(help="only create the store")] = False,
    work: Annotated[Path, typer.Option(help="folder of running jobs' state")] = Path("work"),
) -> None:
    """Publish the study's runs to MLflow, finished and running ones; a dead store changes nothing."""
    from voxprior.commands import track as verb

    verb.run(config, results, output, store, create, work)


@app.command()
def watch(
    results: Annotated[Path, typer.Option(help="the study's results folder", callback=_there)] = Path("results"),
    work: Annotated[
        Path | None, typer.Option(help="folder of running jobs' state; default: beside the results")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="print plain text once, for scripts")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="seconds between two looks")] = 2.0,
) -> None:
    """Show the jobs of a running study: progress, speed, time left, loss, failures."""
    from voxprior.commands import watch as verb

    verb.run(results, work, once, every)


@app.command()
def export(
    to: Annotated[str, typer.Option(help="nnunet-checkpoint, nnunet-dataset, monai-bundle, onnx or torchscript")],
    output: Annotated[Path, typer.Option(help="file; a folder for nnunet-dataset and monai-bundle")],
    weights: Annotated[
        Path | None, typer.Option(help="encoder.safetensors, model.safetensors", callback=_there)
    ] = None,
    results: Annotated[Path | None, typer.Option(help="the study's results folder", callback=_there)] = None,
    spacing_mm: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Z Y X, where neither file nor study says it")
    ] = None,
    number: Annotated[int, typer.Option(min=1, max=999, help="of nnU-Net's dataset")] = 501,
    copy: Annotated[bool, typer.Option("--copy/--link", help="nnunet-dataset: copy scans, or link them")] = False,
    tolerance: Annotated[float, typer.Option(min=0, help="largest difference of the exported network")] = 1e-3,
) -> None:
    """Write a network, or a study's cells, in the formats of nnU-Net, MONAI or ONNX."""
    from voxprior.commands import export as verb

    verb.run(to, output, weights, results, spacing_mm, number, copy, tolerance)


@app.command("import")
def take_in(
    source: Annotated[str, typer.Option("--from", help="nnssl, stunet or monai-vit")],
    checkpoint: Annotated[Path, typer.Option(help="their .pth, .pt or .safetensors", callback=_there)],
    backbone: Annotated[str, typer.Option(help="a file of config/backbones")],
    output: Annotated[Path, typer.Option(help="encoder.safetensors, to be named as init file:...")],
    channels: Annotated[int, typer.Option(min=1, help="of the images")] = 1,
) -> None:
    """Read another project's checkpoint as an encoder of ours; every tensor is accounted for."""
    from voxprior.commands import take_in as verb

    verb.run(source, checkpoint, backbone, output, channels)


@app.command()
def doctor(
    backbones: Annotated[bool, typer.Option("--backbones", help="what each network costs, instead")] = False,
    study: Annotated[
        Path | None, typer.Option(help="study file whose crop, batch and classes are counted", callback=_there)
    ] = None,
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI; default: as `track`")] = None,
) -> None:
    """Look at this machine: what is missing, what is known to be bad. Exit code 1 where something must be mended."""
    from voxprior.commands import doctor as verb

    if backbones:
        verb.run_backbones(study)
    elif not verb.run(store or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"):
        raise typer.Exit(1)


@app.command()
def schema(output: Annotated[Path, typer.Option()] = Path("config/schema.json")) -> None:
    """Write the JSON schema of the configuration from the models."""
    from voxprior.commands import schema as verb

    verb.run(output)


def main() -> None:
    """Runs the command line; turns refusals into one sentence and an exit code."""
    from voxprior.errors import EXIT_INCOMPLETE, EXIT_REFUSED, EXIT_RESUMABLE, Incomplete, Refusal, Resumable

    try:
        app(standalone_mode=True)
    except Refusal as refusal:
        print(f"voxprior: {refusal}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None
    except Incomplete as listed:
        print(f"voxprior: {listed}", file=sys.stderr)
        raise SystemExit(EXIT_INCOMPLETE) from None
    except Resumable as stopped:
        print(f"voxprior: {stopped}", file=sys.stderr)
        raise SystemExit(EXIT_RESUMABLE) from None


if __name__ == "__main__":
    main()
