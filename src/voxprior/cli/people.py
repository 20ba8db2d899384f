"""Verbs for people: what somebody types by hand."""

from pathlib import Path
from typing import Annotated

import typer

from voxprior.cli.options import Device, In, Output, Threads, app, there


@app.command("init-study")
def init_study(
    images: Annotated[Path, typer.Option(help="folder of scans in any layout, or a table of paths", callback=there)],
    labels: Annotated[Path | None, typer.Option(help="folder of label maps, if elsewhere", callback=there)] = None,
    name: Annotated[str | None, typer.Option(help="of dataset and study; default: the folder's")] = None,
    output: Annotated[Path, typer.Option(help="the study's folder")] = Path("."),
) -> None:
    """Look at your scans and write a dataset file and a study file for them."""
    from voxprior.commands import init_study as verb

    verb.run(images, labels, name, output)


@app.command()
def fingerprint(of: Annotated[Path, typer.Option(help="fingerprint.json of a dataset", callback=there)]) -> None:
    """Show what a dataset's scans are like, and the study's lines that this proposes."""
    from voxprior.commands import fingerprint as verb

    verb.run(of)


@app.command()
def pack(
    index: In,
    shards: Annotated[str, typer.Option(help="where they go: a folder, or a URL such as s3://bucket/folder")],
    output: Annotated[Path, typer.Option(help="the new index; the same path replaces the old one")],
    root: Annotated[str | None, typer.Option(help="where they are read from, if by another URL")] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="size of a shard")] = 1000,
) -> None:
    """Pack a prepared dataset into shards that training reads by byte ranges: object storage, a web server, a disk."""
    from voxprior.commands import pack as verb

    verb.run(index, shards, output, root, shard_mb)


@app.command()
def cost(
    card: Annotated[Path | None, typer.Option(help="run card (JSON); or else", callback=there)] = None,
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


@app.command("cost-finetune")
def cost_finetune(
    card: Annotated[Path | None, typer.Option(help="run card (JSON); or else", callback=there)] = None,
    backbone: Annotated[str | None, typer.Option(help="a file of config/backbones")] = None,
    crop: Annotated[tuple[int, int, int], typer.Option(help="voxels, Z Y X; only without a card")] = (96, 96, 96),
    classes: Annotated[int, typer.Option(min=1, help="only without a card")] = 14,
    steps: Annotated[int | None, typer.Option(min=1, help="default: the card's, or 25,000")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="default: the card's, or 2")] = None,
    mfu: Annotated[float, typer.Option(min=0.001, max=1, help="share of the peak that is reached")] = 0.3,
    peak_tflops: Annotated[float, typer.Option(min=0.001, help="of the device; H100 in bfloat16: 989")] = 989.0,
) -> None:
    """Say what a fine-tuning costs: parameters, FLOPs, memory, steps, GPU hours. Also: finetune --dry-run."""
    from voxprior.commands import cost as verb

    made = verb.Made(crop, classes, steps, batch_size)
    verb.run_finetune(card, backbone, made, mfu, peak_tflops)


@app.command()
def doctor(
    backbones: Annotated[bool, typer.Option("--backbones", help="what each network costs, instead")] = False,
    study: Annotated[
        Path | None, typer.Option(help="study file whose crop, batch and classes are counted", callback=there)
    ] = None,
    store: Annotated[
        str, typer.Option(help="MLflow tracking URI", envvar="MLFLOW_TRACKING_URI")
    ] = "sqlite:///mlflow.db",
    forecast: Annotated[bool, typer.Option("--forecast", help="what a study will take here: probes it")] = False,
    config: Annotated[
        Path | None, typer.Option(help="study file, with --forecast; default: config/config.yaml", callback=there)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="file for what --forecast says")] = None,
) -> None:
    """Look at this machine: what is missing, what is known to be bad. Exit code 1 where something must be mended."""
    from voxprior.commands import doctor as verb

    if forecast:
        from voxprior.commands import forecast as probing

        probing.run(config or Path("config/config.yaml"), json)
    elif backbones:
        verb.run_backbones(study)
    elif not verb.run(store):
        raise typer.Exit(1)


@app.command()
def watch(
    results: Annotated[Path, typer.Option(help="the study's results folder", callback=there)] = Path("results"),
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
def predict(
    model: Annotated[list[Path], typer.Option(help="model.safetensors; several are an ensemble", callback=there)],
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


@app.command()
def relabel(
    card: Annotated[Path, typer.Option(help="score card (JSON)", callback=there)], predictions: In, output: Output
) -> None:
    """Write predictions with the label values of each dataset's own files."""
    from voxprior.commands import relabel as verb

    verb.run(card, predictions, output)


@app.command()
def export(
    to: Annotated[str, typer.Option(help="nnunet-checkpoint, nnunet-dataset, monai-bundle, onnx or torchscript")],
    output: Annotated[Path, typer.Option(help="file; a folder for nnunet-dataset and monai-bundle")],
    weights: Annotated[Path | None, typer.Option(help="encoder.safetensors, model.safetensors", callback=there)] = None,
    results: Annotated[Path | None, typer.Option(help="the study's results folder", callback=there)] = None,
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
    source: Annotated[str, typer.Option("--from", help="nnssl, stunet, monai-vit or monai-swin")],
    checkpoint: Annotated[Path, typer.Option(help="their .pth, .pt or .safetensors", callback=there)],
    backbone: Annotated[str, typer.Option(help="a file of config/backbones")],
    output: Annotated[Path, typer.Option(help="encoder.safetensors, to be named as init file:...")],
    channels: Annotated[int, typer.Option(min=1, help="of the images")] = 1,
) -> None:
    """Read another project's checkpoint as an encoder of ours; every tensor is accounted for."""
    from voxprior.commands import take_in as verb

    verb.run(source, checkpoint, backbone, output, channels)


@app.command()
def schema(output: Annotated[Path, typer.Option()] = Path("config/schema.json")) -> None:
    """Write the JSON schema of the configuration from the models."""
    from voxprior.commands import schema as verb

    verb.run(output)
