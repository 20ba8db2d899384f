"""Prepare: orient, scale, resample and cache one case.

Order: orient to LPS (`volume`), map intensities to [0, 1] slice by slice, resample, store as int16. Clipping comes
before resampling, so that metal and the padding of round scanners do not bleed into their neighbours.

Axes: Z Y X voxels.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voxprior.data import cache, channels, resample, volume
from voxprior.data.files import sha256_of, sha256_of_json
from voxprior.errors import Refusal
from voxprior.whole import write_json

QUANTUM = 1 / 32000  # one step of the stored int16, as a share of the intensity window

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Recipe:
    """What is done to every case. `classes[i]` lists the file's label values that become id i + 1."""

    key: str
    spacing_zyx_mm: tuple[float, float, float]
    kind: Literal["window", "percentile"]
    low: float
    high: float
    classes: tuple[tuple[int, ...], ...]
    channels: int = 1
    # Channels, by number, whose intensities are scaled in their own way: (kind, low, high).
    own: Mapping[int, tuple[Literal["window", "percentile"], float, float]] = field(default_factory=dict)

    def of(self, channel: int) -> "Recipe":
        """Gives the recipe with the intensity range of one channel."""
        if channel not in self.own:
            return self
        kind, low, high = self.own[channel]
        return replace(self, kind=kind, low=low, high=high)


def prepare_all(rows: list[dict[str, str]], folder: Path, recipe: Recipe, workers: int) -> Iterator[dict[str, Any]]:
    """Prepares cases in `workers` processes and yields their index entries in the order of the rows."""
    if workers == 1:
        yield from (prepare_case(row, folder, recipe) for row in rows)
        return
    # Spawn: a forked child would inherit the thread pools of Blosc2 and ITK without their threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        jobs = [pool.submit(prepare_case, row, folder, recipe) for row in rows]
        try:
            yield from (job.result() for job in jobs)
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def prepare_case(row: dict[str, str], folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Prepares one case of the case table and returns its index entry.

    A case whose arrays are whole and were made from the same scan by the same recipe is left alone: its entry is kept
    beside the arrays in `volumes/<case>.json`, written last.
    """
    sidecar = folder / "volumes" / f"{row['case']}.json"
    source = sha256_of_json([recipe.key, row, sha256_of(row["label"]) if row["label"] else None])
    entry = _finished(sidecar, source, folder)
    if entry is None:
        entry = _make(row, folder, recipe)
        write_json(sidecar, {"source": source, "entry": entry})
    return entry


def _finished(sidecar: Path, source: str, folder: Path) -> dict[str, Any] | None:
    if not sidecar.is_file():
        return None
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if content["source"] != source:
            return None
        entry = dict(content["entry"])
        files = [(folder / entry[kind], entry[f"{kind}_sha256"]) for kind in ("image", "label") if entry[kind]]
    except (ValueError, KeyError, TypeError):
        return None
    return entry if all(path.is_file() and sha256_of(path) == sha256 for path, sha256 in files) else None


def _make(row: dict[str, str], folder: Path, recipe: Recipe) -> dict[str, Any]:
    stored: list[Array] = []
    grids: list[tuple[volume.Grid, volume.Grid]] = []
    for number, image in enumerate(channels.read_channels(row["image"], recipe.channels, verify=False)):
        grids.append((volume.Grid.of(image), volume.lps_grid(volume.Grid.of(image))))
        stored.append(_channel(image, row["image"], recipe.of(number)))
    # The first channel's geometry rules: intake has checked that all agree.
    raw, lps = grids[0]
    grid = lps.with_spacing(recipe.spacing_zyx_mm)
    image_file = f"volumes/{row['case']}.b2nd"
    stored_CZYX = np.stack(stored) if len(stored) > 1 else stored[0][None]
    image_sha256 = cache.write_array(folder / image_file, stored_CZYX, recipe.key)
    del stored, stored_CZYX
    label_file, label_sha256, counts = None, None, [0] * len(recipe.classes)
    if row["label"]:
        labels_ZYX = _labels(row["label"], lps, grid, recipe)
        counts = np.bincount(labels_ZYX.ravel(), minlength=len(recipe.classes) + 1)[1:].tolist()
        label_file = f"volumes/{row['case']}.label.b2nd"
        places = {number: _places(labels_ZYX, number) for number, count in enumerate(counts, 1) if count}
        label_sha256 = cache.write_array(folder / label_file, labels_ZYX, recipe.key, places)
    return {
        "case": row["case"],
        "patient": row["patient"],
        "person": row["person"],
        "shape_zyx": list(grid.shape_zyx),
        "spacing_zyx_mm": list(grid.spacing_zyx_mm),
        "image": image_file,
        "image_sha256": image_sha256,
        "label": label_file,
        "label_sha256": label_sha256,
        "class_voxels": counts,
        "raw_image": row["image"],
        "raw_label": row["label"] or None,
        "raw": raw.to_json(),
        "grid": grid.to_json(),
    }


def _channel(image: Any, path: str, recipe: Recipe) -> Array:
    """Orients, scales and resamples one channel: int16 (Z, Y, X)."""
    voxels_ZYX, lps = volume.to_lps(image)
    del image
    change = intensity_map(path, voxels_ZYX, recipe)
    grid = lps.with_spacing(recipe.spacing_zyx_mm)
    unit_ZYX = resample.resample_image(voxels_ZYX, lps.spacing_zyx_mm, grid.spacing_zyx_mm, change)
    del voxels_ZYX
    np.rint(np.multiply(unit_ZYX, 1 / QUANTUM, out=unit_ZYX), out=unit_ZYX)
    return unit_ZYX.astype(np.int16)


def intensity_map(path: str, voxels_ZYX: Array, recipe: Recipe) -> Callable[[Array], Array]:
    """Makes the map from intensities to [0, 1]: between two values, or between two percentiles of this scan.

    Raises:
        Refusal: both percentiles are the same value.
    """
    low, high = recipe.low, recipe.high
    if recipe.kind == "percentile":
        low, high = (float(value) for value in np.percentile(voxels_ZYX, (low, high)))
        if low == high:
            raise Refusal(
                f"{path} has the intensity {low:g} at both percentiles {recipe.low:g} and {recipe.high:g}: widen the "
                "percentiles in the study, or take the scan out"
            )
    scale = np.float32(1 / (high - low))
    return lambda plane: np.clip((plane - np.float32(low)) * scale, 0, 1)


def _labels(path: str, lps: volume.Grid, grid: volume.Grid, recipe: Recipe) -> Array:
    """Reads labels, maps them to the study's ids before resampling (fewer values to interpolate), and resamples."""
    image, _ = volume.read_label(path, verify=False)
    labels_ZYX, _ = volume.to_lps(image)
    ids = np.zeros(max(int(labels_ZYX.max()), 255) + 1, np.uint8)
    for number, values in enumerate(recipe.classes, 1):
        ids[[value for value in values if value < len(ids)]] = number
    # The image's geometry rules: intake has checked that both agree.
    return resample.resample_labels(ids[labels_ZYX], lps.spacing_zyx_mm, grid.shape_zyx, grid.spacing_zyx_mm)


def _places(labels_ZYX: Array, number: int) -> Array:
    """Picks voxels of a class in equal steps through all of them: no chance needed, and none is favoured."""
    voxels = np.flatnonzero(labels_ZYX == number)
    picked = voxels[np.linspace(0, len(voxels) - 1, min(cache.PLACES, len(voxels))).astype(int)]
    return np.stack(np.unravel_index(picked, labels_ZYX.shape), axis=1)
