"""`voxprior export --to nnunet-dataset`: a study's labelled cases as nnU-Net's raw dataset, with the study's splits."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal


def write(results: Path, output: Path, number: int, copy: bool) -> None:
    """Writes `Dataset<number>_<study>` into `output` and prints a command line per cell.

    `dataset.json` comes last: a folder without it is not finished, and the same command goes on.

    Args:
        results: the study's results folder, prepared and split.
        output: nnU-Net's raw folder.
        number: of the dataset.
        copy: copies scans; else NIfTI files that need no repair are linked.

    Raises:
        Refusal: a table is missing, a scan cannot be read, or a label map does not lie on its scan.
    """
    from voxprior.data.files import sha256_of
    from voxprior.engine.journal import progress
    from voxprior.exchange import dataset as nnunet
    from voxprior.whole import write_json, write_text

    config = _read(results / "config.json")
    study = config["study"]
    dataset = config["datasets"][study["dataset"]]
    splits_path = results / "splits.json"
    listed, cells = nnunet.splits(_read(splits_path)["folds"])
    needed = {case for split in listed for cases in split.values() for case in cases}
    rows = [row for row in _rows(results, study["dataset"]) if row["label"]]
    if lost := sorted(needed - {row["case"] for row in rows}):
        raise Refusal(f"{splits_path} names {lost[0]}, which has no label in the case table: run 'split' again")
    folder = output / f"Dataset{number:03d}_{study['study']}"
    ids = _ids(study["classes"], dataset["classes"], dataset.get("ignore", []))
    linked = 0
    for row in progress(rows, len(rows), "nnU-Net dataset"):
        linked += _write_case(row, folder, dataset, ids, copy)
    write_json(folder / "splits_final.json", listed)
    write_json(folder / "cells.json", cells)
    commands = nnunet.train_commands(number, study["study"], cells)
    write_text(folder / "commands.sh", "\n".join(commands) + "\n")
    card = results / "model_card.md"
    if card.is_file():
        write_text(folder / "model_card.md", card.read_text(encoding="utf-8"))
    made_from = {"splits_sha256": sha256_of(splits_path), "study": study["study"]}
    write_json(folder / "dataset.json", nnunet.describe(study, dataset, len(rows), made_from))
    print(f"{folder}: {len(rows)} labelled cases, {linked} linked; {len(listed)} splits")
    print("\n".join(commands))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise Refusal(f"{path} is missing: name the results folder of a study that has been split")
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(results: Path, dataset: str) -> Iterator[dict[str, Any]]:
    """Reads the case table, each row with the grid of its scan."""
    table = results / "intake" / dataset / "cases.csv"
    if not table.is_file():
        raise Refusal(f"{table} is missing: run 'intake' again")
    index = _read(results / "prepared" / dataset / "index.json")
    grids = {entry["case"]: entry["raw"] for entry in index["cases"]}
    with open(table, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["case"] not in grids:
                raise Refusal(f"{table} lists {row['case']}, which was not prepared: run 'prepare' again")
            yield {**row, "grid": grids[row["case"]]}


def _ids(classes: list[str], values: dict[str, list[int]], ignore: list[int]) -> Any:
    """Makes a table from a label file's values to the study's class ids, painted in order, and one more to ignore."""
    import numpy as np

    ids = np.zeros(1 << 16, np.uint8)
    for number, name in enumerate(classes, start=1):
        ids[values.get(name, [])] = number
    ids[ignore] = len(classes) + 1
    return ids


def _write_case(row: dict[str, Any], folder: Path, dataset: dict[str, Any], ids: Any, copy: bool) -> bool:
    """Writes or links one case's channels and writes its labels; tells whether it was linked."""
    import SimpleITK as sitk

    from voxprior.data import channels, volume

    place = folder / "imagesTr"
    place.mkdir(parents=True, exist_ok=True)
    names = dataset.get("channels", ["image"])
    files = row["image"].split(channels.BETWEEN)
    link = not copy and not row["repairs"] and len(files) == len(names) and all(f.endswith(".nii.gz") for f in files)
    targets = [place / f"{row['case']}_{number:04d}.nii.gz" for number in range(len(names))]
    if link:
        for target, file in zip(targets, files, strict=True):
            target.unlink(missing_ok=True)
            target.symlink_to(Path(file).resolve())
    else:
        for target, channel in zip(targets, channels.read_channels(row["image"], len(names)), strict=True):
            target.unlink(missing_ok=True)
            volume.write_image(channel, target)
    grid = volume.Grid.from_json(row["grid"])
    label, _ = volume.read_label(row["label"], verify=False)
    if volume.Grid.of(label).size_xyz != grid.size_xyz:
        raise Refusal(f"{row['label']} does not lie on its scan's grid: run 'intake' again")
    # On the scan's grid: label maps may lie beside it by less than a voxel, which intake allows and nnU-Net does not.
    labels_ZYX = ids[sitk.GetArrayViewFromImage(label)]
    volume.write_image(volume.from_array(labels_ZYX, grid), folder / "labelsTr" / f"{row['case']}.nii.gz")
    return link
