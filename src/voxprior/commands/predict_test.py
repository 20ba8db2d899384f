"""`voxprior predict-test`: segments the fold's test cases, and all labelled cases of external datasets."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal


def run(card_path: Path, model: Path, index: list[Path], splits: Path, output: Path, threads: int, device: str) -> None:
    """Writes one label map per case, in the scan's own grid, below `predictions/`, and `output` (JSON) last.

    A case that an interrupted run has done with the same model and card is not done again.

    Raises:
        Refusal: the model is no safetensors file of ours, a case is not in the index, or the network's output is not
            finite.
    """
    from voxprior import cards
    from voxprior.commands import trained
    from voxprior.data.files import read_note, write_note
    from voxprior.engine import device as devices
    from voxprior.engine.journal import progress
    from voxprior.whole import write_json

    card: cards.PredictCard = cards.read_card("predict", card_path)
    where = devices.pick(device, threads)
    loaded = trained.load(model)
    network = loaded.network.to(where)
    made_by = {"model_sha256": loaded.sha256, "card_hash": cards.card_hash(card)}
    todo = list(_cases(index, splits, card.fold))
    done = []
    for path, dataset, entry in progress(todo, len(todo), "predict"):
        file = output.parent / "predictions" / f"{dataset}.{entry['case']}.nii.gz"
        note = file.with_name(file.name.removesuffix(".nii.gz") + ".json")
        made_from = {**made_by, "image_sha256": entry["image_sha256"]}
        told = read_note(note, made_from)
        if told is None:
            told = {"dataset": dataset, "case": entry["case"], "file": str(file)}
            if card.confidence:
                told["confidence"] = str(note.with_suffix(".confidence.nii.gz"))
            told |= _segment(path, entry, told, (network, loaded.card, card.predict.overlap, where))
            write_note(
                note, made_from, [Path(told[what]).name for what in ("file", "confidence") if what in told], told
            )
        done.append(told)
    write_json(output, {"format": 1, **made_by, "cases": done})


def _cases(index: list[Path], splits: Path, number: int) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Lists what to segment: (index, dataset, entry): the fold's test cases first, then external labelled cases."""
    from voxprior.data.cache import read_index
    from voxprior.data.files import read_fold

    fold = read_fold(splits, number)
    for place, path in enumerate(index):
        content = read_index(path)
        entries = {entry["case"]: entry for entry in content["cases"]}
        wanted = fold["test"] if place == 0 else [case for case, entry in entries.items() if entry["label"]]
        for case in wanted:
            if case not in entries:
                raise Refusal(f"{path} has no test case '{case}': run 'prepare' and 'split' again")
            yield path, content["dataset"], entries[case]


def _segment(
    path: Path, entry: dict[str, Any], files: dict[str, str], how: tuple[Any, Any, float, Any]
) -> dict[str, Any]:
    """Segments one case and writes it, and the probability of each voxel's class where `files` has a place for it.

    Returns:
        {seconds, volume_ml per class}.
    """
    import math

    import numpy as np
    import SimpleITK as sitk

    from voxprior.data import cache, export, volume
    from voxprior.engine.device import autocast
    from voxprior.maths.regions import memberships, union
    from voxprior.segment import infer
    from voxprior.segment.readout import readout_of

    network, learned, overlap, where = how
    began = time.monotonic()
    case = cache.open_case(path, entry["case"])
    if case.channels != learned.channels:
        raise Refusal(f"{path}: {case.name} has {case.channels} channels, the model {learned.channels}: leave it out")
    voxels_CZYX, _, _ = case.read((0, 0, 0), case.shape_zyx)
    tiling, precision = infer.Tiling(learned.crop_vox, overlap), autocast(where, learned.precision)
    read = readout_of(learned.regions)
    sure_ZYX = np.zeros(case.shape_zyx if "confidence" in files else 0, np.uint8)

    def keep(place: Any, shares_CZYX: Any) -> None:
        sure_ZYX[place] = np.rint(shares_CZYX.max(axis=0) * np.float32(export.ONE))

    kept = keep if "confidence" in files else None
    labels_ZYX = infer.segment_with(network, voxels_CZYX, case.quantum, tiling, where, kept, precision, read)
    image = volume.to_native(labels_ZYX, entry["grid"], entry["raw"])
    volume.write_image(image, files["file"])
    if "confidence" in files:
        grid, raw = (volume.Grid.from_json(entry[name]) for name in ("grid", "raw"))
        export.write_shares(sure_ZYX, grid, raw, Path(files["confidence"]))
    count_N = np.bincount(sitk.GetArrayViewFromImage(image).ravel(), minlength=len(learned.classes) + 1)
    voxel_ml = math.prod(entry["raw"]["spacing_xyz_mm"]) / 1000.0
    overlapping = memberships(learned.regions)
    counts = [count_N[union(overlapping, number)].sum() for number in range(1, len(learned.classes) + 1)]
    return {"seconds": time.monotonic() - began, "volume_ml": [float(count * voxel_ml) for count in counts]}
