"""Prepare: orient, scale, resample and cache one case.

Order: orient to LPS (`volume`), map intensities to [0, 1] slice by slice, resample, store as int16. Clipping comes
before resampling, so that metal and the padding of round scanners do not bleed into their neighbours. Work goes slice
by slice: a case takes the memory of its scan, once more while it is read, and of its int16 result.

Axes: Z Y X voxels.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voxprior.data import cache, channels, memory, processes, resample, volume
from voxprior.data.files import sha256_of, sha256_of_json
from voxprior.errors import Refusal
from voxprior.whole import write_json

# One step of the stored int16, as a share of the intensity window: 12 bits, which is what scanners store. In a window
# of 2000 HU it is 0.5 HU, far below a CT's noise; finer steps would keep the interpolation's own digits, at 1.3 times
# the size.
QUANTUM = 1 / 4096
UNKNOWN = 255  # in prepared label maps: trained on by nobody, as `maths.augment.UNKNOWN`
FIXED_BYTES = 400 << 20  # a worker's libraries and buffers

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
    ignore: tuple[int, ...] = ()  # the file's label values that become UNKNOWN
    # Channels, by number, whose intensities are scaled in their own way: (kind, low, high).
    own: Mapping[int, tuple[Literal["window", "percentile"], float, float]] = field(default_factory=dict)

    def of(self, channel: int) -> "Recipe":
        """Gives the recipe with the intensity range of one channel."""
        if channel not in self.own:
            return self
        kind, low, high = self.own[channel]
        return replace(self, kind=kind, low=low, high=high)


def recipe_of(
    key: str, prepare: Any, classes: Sequence[Sequence[int]], names: Sequence[str], ignore: Sequence[int] = ()
) -> Recipe:
    """Makes the recipe of a study's `prepare` numbers (`configuration.Prepare`) and the names of its channels."""
    scaling, own = prepare.intensity, {names.index(name): one for name, one in prepare.channels.items()}
    values = tuple(tuple(some) for some in classes)
    recipe = Recipe(key, prepare.spacing_zyx_mm, scaling.kind, scaling.low, scaling.high, values, len(names))
    return replace(
        recipe, own={number: (one.kind, one.low, one.high) for number, one in own.items()}, ignore=tuple(ignore)
    )


def prepare_all(rows: list[dict[str, str]], folder: Path, recipe: Recipe, workers: int) -> Iterator[dict[str, Any]]:
    """Prepares cases in up to `workers` processes and gives their index entries in the order of the rows.

    Fewer processes where the largest case, in all of them at once, would not fit into the free memory.
    """
    if workers > 1:
        workers = processes.fitting(workers, max(need_bytes(row, recipe) for row in rows), memory.free_bytes())
    made = processes.spread(partial(prepare_case, folder=folder, recipe=recipe), rows, workers)
    return (entry for _, entry in made)


def need_bytes(row: dict[str, str], recipe: Recipe) -> int:
    """Says how much memory a case takes at most: its scan as float32, twice while it is read; the int16 result."""
    shape = [int(n) for n in row["shape_zyx"].split()]
    spacing = [float(s) for s in row["spacing_zyx_mm"].split()]
    grown = math.prod(max(1.0, old / new) for old, new in zip(spacing, recipe.spacing_zyx_mm, strict=True))
    return FIXED_BYTES + math.prod(shape) * 8 + int(math.prod(shape) * (1 + 2 * recipe.channels) * grown)


def prepare_case(row: dict[str, str], folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Prepares one case of the case table and returns its index entry.

    A case whose arrays are whole and were made from the same scan by the same recipe is left alone: its entry is kept
    beside the arrays in `volumes/<case>.json`, written last.
    """
    sidecar = folder / "volumes" / f"{row['case']}.json"
    files = [row["image"], row.get("content_sha256"), channels.places_of(row["image"]), row["label"]]
    label = sha256_of(row["label"]) if row["label"] else None
    source = sha256_of_json([cache.FORMAT, QUANTUM, recipe.key, files, label])
    entry = _finished(sidecar, source, folder)
    if entry is not None:
        return entry | _told(row)  # known better by now, perhaps
    entry = _make(row, folder, recipe)
    stamps = {entry[kind]: cache.stamp(folder / entry[kind]) for kind in ("image", "label") if entry[kind]}
    write_json(sidecar, {"source": source, "entry": entry, "stamps": stamps})
    return entry | _told(row)


def _told(row: dict[str, str]) -> dict[str, str]:
    """Copies what the index tells of a case and no array depends on."""
    return {key: row[key] for key in ("patient", "person", "twin_sha256") if key in row}


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
    scan = channels.read_channels(row["image"], recipe.channels, verify=False)
    stored_CZYX, raw, grid = prepare_image(scan, row["image"], recipe)
    image_file = f"volumes/{row['case']}.b2nd"
    image_sha256 = cache.write_array(folder / image_file, stored_CZYX, recipe.key)
    del stored_CZYX
    label_file, label_sha256, counts = None, None, [0] * len(recipe.classes)
    if row["label"] and any(recipe.classes):  # of a dataset that is only pretrained on, labels are not read
        labels_ZYX = _labels(row["label"], volume.lps_grid(raw), grid, recipe)
        label_file = f"volumes/{row['case']}.label.b2nd"
        counts, places = find_places(labels_ZYX, len(recipe.classes))
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


def prepare_image(scan: Iterable[Any], name: str, recipe: Recipe) -> tuple[Array, volume.Grid, volume.Grid]:
    """Prepares a scan's channels: (int16 C Z Y X in steps of `QUANTUM`, the file's grid, the grid of the result).

    Args:
        scan: SimpleITK images, one per channel, read one after the other; the first one's geometry rules.
        name: how a refusal names the scan.
        recipe: what is done.

    Raises:
        Refusal: as reading the scan does; both percentiles are the same value.
    """
    stored: list[Array] = []
    raw: list[volume.Grid] = []
    for number, image in enumerate(scan):
        raw.append(volume.Grid.of(image))
        stored.append(_channel(image, name, recipe.of(number)))
    stored_CZYX = np.stack(stored) if len(stored) > 1 else stored[0][None]
    return stored_CZYX, raw[0], volume.lps_grid(raw[0]).with_spacing(recipe.spacing_zyx_mm)


def _channel(image: Any, path: str, recipe: Recipe) -> Array:
    """Orients, scales and resamples one channel: int16 (Z, Y, X)."""
    voxels_ZYX, lps = volume.to_lps(image)
    del image
    change = intensity_map(path, voxels_ZYX, recipe)
    grid = lps.with_spacing(recipe.spacing_zyx_mm)
    return resample.resample_image(voxels_ZYX, lps.spacing_zyx_mm, grid.spacing_zyx_mm, change, QUANTUM)


def intensity_map(path: str, voxels_ZYX: Array, recipe: Recipe) -> Callable[[Array], Array]:
    """Makes the map from intensities to [0, 1]: between two values, or between two percentiles of this scan.

    Raises:
        Refusal: both percentiles are the same value.
    """
    low, high = recipe.low, recipe.high
    if recipe.kind == "percentile":
        low, high = percentiles(voxels_ZYX, low, high)
        if low == high:
            raise Refusal(
                f"{path} has the intensity {low:g} at both percentiles {recipe.low:g} and {recipe.high:g}: widen the "
                "percentiles in the study, or take the scan out"
            )
    scale = np.float32(1 / (high - low))
    return lambda plane: np.clip((plane - np.float32(low)) * scale, 0, 1)


def percentiles(voxels_ZYX: Array, low: float, high: float) -> tuple[float, float]:
    """Finds two percentiles, as `np.percentile` defines them, without a copy of a scan of 8 or 16-bit integers."""
    if voxels_ZYX.dtype.kind not in "iu" or voxels_ZYX.dtype.itemsize > 2:
        lower, upper = np.percentile(voxels_ZYX, (low, high))
        return float(lower), float(upper)
    start = int(np.iinfo(voxels_ZYX.dtype).min)
    count = np.zeros(int(np.iinfo(voxels_ZYX.dtype).max) - start + 1, np.int64)
    for plane in voxels_ZYX:
        count += np.bincount(plane.ravel().astype(np.int64) - start, minlength=len(count))
    below = np.cumsum(count)
    found = []
    for share in (low / 100, high / 100):
        place = share * (voxels_ZYX.size - 1)
        values = [
            int(np.searchsorted(below, rank, side="right")) + start for rank in (math.floor(place), math.ceil(place))
        ]
        found.append(values[0] + (values[1] - values[0]) * (place - math.floor(place)))
    return found[0], found[1]


def _labels(path: str, lps: volume.Grid, grid: volume.Grid, recipe: Recipe) -> Array:
    """Reads labels, maps them to the study's ids before resampling, and resamples."""
    image, _ = volume.read_label(path, verify=False)
    labels_ZYX, _ = volume.to_lps(image)
    del image
    ids = np.zeros(max(int(labels_ZYX.max()), 255) + 1, np.uint8)
    for number, values in enumerate(recipe.classes, 1):
        ids[[value for value in values if value < len(ids)]] = number
    ids[[value for value in recipe.ignore if value < len(ids)]] = UNKNOWN
    # The image's geometry rules: intake has checked that both agree.
    return resample.resample_labels(labels_ZYX, lps.spacing_zyx_mm, grid.shape_zyx, grid.spacing_zyx_mm, ids)


def find_places(labels_ZYX: Array, classes: int) -> tuple[list[int], dict[int, Array]]:
    """Counts the voxels of each class, and picks up to 1024 of those it has: ([voxels of 1..K], {class: (N, 3)}).

    They are picked in equal steps through all of them: no chance needed, and none is favoured.
    """
    from voxprior.maths import kernels

    labels_N = labels_ZYX.reshape(-1)
    count_K = np.zeros(256, np.int64)
    kernels.count_labels(labels_N, count_K)
    picks_K = np.minimum(count_K, cache.PLACES)
    picks_K[[0, UNKNOWN]] = 0
    wanted_KP = np.zeros((256, cache.PLACES), np.int64)
    for number in np.flatnonzero(picks_K):
        wanted_KP[number, : picks_K[number]] = np.linspace(0, count_K[number] - 1, picks_K[number]).astype(int)
    found_KP = np.zeros_like(wanted_KP)
    kernels.find_labels(labels_N, wanted_KP, picks_K, found_KP)
    places = {
        int(number): np.stack(np.unravel_index(found_KP[number, : picks_K[number]], labels_ZYX.shape), axis=1)
        for number in np.flatnonzero(picks_K)
    }
    return count_K[1 : classes + 1].tolist(), places
