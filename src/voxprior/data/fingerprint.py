"""The fingerprint of a dataset: what its scans are like, and what spacing, intensity range and crop that suggests.

`measure` and `sample` look at one case while intake has it in memory, `summarise` puts the cases together, `propose_*`
turn numbers into a proposal. A proposal is a proposal: the study's own numbers decide, and stand on its cards.

Axes: Z Y X in LPS, as prepared arrays have them, whichever way a file stores its axes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

from voxprior.data import volume
from voxprior.data.labels import Counted

FORMAT = 1
SAMPLES = 1000  # voxels of each case from which percentiles are taken, however many cases there are
SHARES = {"min": 0.0, "p0.5": 0.5, "p5": 5.0, "median": 50.0, "p95": 95.0, "p99.5": 99.5, "max": 100.0}
QUARTERS = {"min": 0.0, "q25": 25.0, "median": 50.0, "q75": 75.0, "max": 100.0}
COARSE = 3.0  # an axis this much coarser than the next one is treated on its own
CROP_VOXELS = 128**3  # what a network of the usual size trains on with two crops a step in 10 to 12 GB
UNIT_VOX = 16

Array = np.ndarray[Any, Any]


def measure(raw: volume.Grid, label: Counted | None, classes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Measures one case: its geometry, and where there are labels the volume of each class in ml."""
    grid = volume.lps_grid(raw)
    measured: dict[str, Any] = {
        "size_zyx_vox": list(grid.shape_zyx),
        "spacing_zyx_mm": list(grid.spacing_zyx_mm),
        "channels": [],
    }
    if label is None:
        return measured
    voxel_ml = math.prod(raw.spacing_xyz_mm) / 1000
    volumes = {name: float(label.counts[list(values)].sum() * voxel_ml) for name, values in classes.items()}
    return measured | {"class_ml": volumes}


def sample(
    channel: sitk.Image, label: Counted | None, classes: Mapping[str, Sequence[int]], samples: int
) -> dict[str, list[float]]:
    """Takes up to `samples` voxels of a channel (`all`), and of what belongs to a class (`foreground`).

    In equal steps through the array, plane by plane: no chance, and no copy of the scan.
    """
    voxels = sitk.GetArrayViewFromImage(channel)
    taken = {"all": _short(voxels.reshape(-1)[:: _step(voxels.size, samples, voxels.shape)])}
    if label is None:
        return taken
    known = np.zeros(1 << 16, bool)
    known[[value for values in classes.values() for value in values]] = True
    step = _step(int(label.counts[known].sum()), samples, voxels.shape)
    return taken | {"foreground": _inside(voxels, sitk.GetArrayViewFromImage(label.image), known, step)}


def _step(voxels: int, samples: int, shape: tuple[int, ...]) -> int:
    """Chooses a step that visits no column twice before it has visited the others."""
    step = max(1, math.ceil(voxels / samples))
    while math.gcd(step, shape[-1] * shape[-2]) > 1:
        step += 1
    return step


def _inside(voxels: Array, ids: Array, known: Array, step: int) -> list[float]:
    """Takes every `step`-th voxel of those whose label is known."""
    taken, before = [], 0
    for plane, plane_ids in zip(voxels, ids, strict=True):
        some = plane[known[plane_ids]]
        taken.append(some[-before % step :: step])
        before += some.size
    return _short(np.concatenate(taken))


def _short(values: Array) -> list[float]:
    """Writes values with six digits: they are kept as text."""
    return [float(f"{value:.6g}") for value in values]


def summarise(
    dataset: str, modality: str, measures: Sequence[Mapping[str, Any]], channels: Sequence[str] = ("image",)
) -> dict[str, Any]:
    """Puts the measured cases together into what `fingerprint.json` holds (`docs/formats.md`, "fingerprint").

    Every case weighs the same in the intensities, however large it is.
    """
    sizes = np.array([case["size_zyx_vox"] for case in measures], float)
    spacings = np.array([case["spacing_zyx_mm"] for case in measures], float)
    labelled = [case for case in measures if "class_ml" in case]
    intensities = {name: _intensity([case["channels"][at] for case in measures]) for at, name in enumerate(channels)}
    names = labelled[0]["class_ml"] if labelled else []
    volumes = {name: [case["class_ml"][name] for case in labelled if case["class_ml"][name]] for name in names}
    told: dict[str, Any] = {
        "format": FORMAT,
        "dataset": dataset,
        "modality": modality,
        "cases": len(measures),
        "labelled": len(labelled),
        "size_zyx_vox": _per_axis(sizes),
        "spacing_zyx_mm": _per_axis(spacings),
        "extent_zyx_mm": _per_axis(sizes * spacings),
        "intensity": intensities[channels[0]],
        "classes": {
            name: {"cases": len(some), "volume_ml": _percentiles(np.array(some), QUARTERS) if some else None}
            for name, some in volumes.items()
        },
    }
    if len(channels) > 1:
        told["channels"] = intensities
    return {**told, "proposal": _propose(modality, sizes, spacings, intensities)}


def _intensity(taken: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Finds the percentiles of one channel over all cases, of all voxels and of the classes' where there are any."""
    found = {"all": _percentiles(np.concatenate([case["all"] for case in taken]), SHARES)}
    inside = [case["foreground"] for case in taken if len(case.get("foreground", ()))]
    return found | ({"foreground": _percentiles(np.concatenate(inside), SHARES)} if inside else {})


def _percentiles(values: Array, shares: Mapping[str, float]) -> dict[str, float]:
    found = np.percentile(values, list(shares.values()))
    return {name: float(f"{value:.5g}") for name, value in zip(shares, found, strict=True)}


def _per_axis(values_N3: Array) -> dict[str, list[float]]:
    found = np.percentile(values_N3, list(QUARTERS.values()), axis=0)
    return {name: [float(f"{value:.5g}") for value in row] for name, row in zip(QUARTERS, found, strict=True)}


# ------------------------------------------------------------------------------------------------- proposals
def _propose(modality: str, sizes: Array, spacings: Array, intensities: Mapping[str, Any]) -> dict[str, Any]:
    spacing_mm, why_spacing = propose_spacing(sizes, spacings)
    first, *others = intensities
    scaling, why_intensity = propose_intensity(modality, intensities[first])
    crop_vox, why_crop = propose_crop(np.median(sizes * spacings, axis=0) / spacing_mm, spacing_mm)
    prepare: dict[str, Any] = {"spacing_zyx_mm": spacing_mm, "intensity": scaling}
    own = {name: propose_intensity(modality, intensities[name])[0] for name in others}
    if different := {name: one for name, one in own.items() if one != scaling}:
        prepare["channels"] = different
    return {
        "prepare": prepare,
        "finetune": {"crop_vox": crop_vox},
        "why": [why_spacing, why_intensity, why_crop],
    }


def propose_spacing(sizes: Array, spacings: Array) -> tuple[list[float], str]:
    """Proposes a spacing (Z Y X, mm), and says why.

    The median of each axis: half of the scans lose nothing. One axis may be far coarser than the others, as thick
    slices are: where its median spacing is more than `COARSE` times the others', and the median scan has less than a
    `COARSE`-th of their voxels along it, that axis takes the spacing of the finest tenth of the scans instead, though
    never a finer one than the others have. The median would throw away what the thin-slice scans show, and what is
    invented between thick slices by interpolation does less harm.

    Source: the rule of nnU-Net, Isensee et al., Nature Methods 18, 2021, supplementary note on the fingerprint.
    """
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    size = np.median(sizes, axis=0)
    thick = target[worst] > COARSE * target[others].max() and COARSE * size[worst] < size[others].min()
    if thick:
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
        why = f"spacing: medians, but along {'ZYX'[worst]}, where voxels are far longer, the finest tenth of the scans"
    else:
        why = "spacing: the median along each axis"
    return [float(f"{value:.4g}") for value in target], why


def propose_intensity(modality: str, intensity: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Proposes an intensity map, and says why: a window for CT, whose numbers mean the same everywhere; else shares."""
    if modality != "ct":
        why = "intensity: not CT, so numbers mean nothing across scans: percentiles of each scan"
        return {"kind": "percentile", "low": 0.5, "high": 99.5}, why
    of = "foreground" if "foreground" in intensity else "all"
    low, high = math.floor(intensity[of]["p0.5"]), math.ceil(intensity[of]["p99.5"])
    voxels = "voxels of the classes" if of == "foreground" else "all voxels, as nothing is labelled"
    why = f"intensity: from the 0.5th to the 99.5th percentile of {voxels}; what lies outside is cut off"
    return {"kind": "window", "low": low, "high": max(high, low + 1)}, why


def propose_crop(size_vox: Array, spacing_mm: Sequence[float]) -> tuple[list[int], str]:
    """Proposes a crop (Z Y X, voxels), and says why.

    As near to a cube in millimetres as `CROP_VOXELS` voxels allow; no longer than the median scan along any axis (what
    that leaves goes to the other axes); sides in multiples of `UNIT_VOX`.
    """
    longest = np.ceil(np.asarray(size_vox) / UNIT_VOX) * UNIT_VOX
    sides = np.zeros(3)
    free = np.ones(3, bool)
    while free.any():
        # A cube of the voxels that are left, over the axes that are not yet as long as the scan.
        left = CROP_VOXELS / np.prod(sides[~free])
        side_mm = (left * np.prod(np.asarray(spacing_mm)[free])) ** (1 / free.sum())
        ideal = side_mm / np.asarray(spacing_mm)
        full = free & (ideal >= longest)
        if not full.any():
            sides[free] = ideal[free]
            break
        sides[full] = longest[full]
        free &= ~full
    crop = [int(max(1, (side + 1e-6) // UNIT_VOX)) * UNIT_VOX for side in sides]
    why = (
        f"crop: up to {CROP_VOXELS:,} voxels, near a cube in mm, no longer than the median scan; fewer on small devices"
    )
    return crop, why
