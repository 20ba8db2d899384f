"""Scores of 14 classes on one CPU thread, ours beside others, in one run: `python benchmarks/metrics.py`.

Every arm of a subject runs in turn, round after round, and what is quoted is the median over the rounds of the ratio of
processor times within a round: what else the machine does then weighs on both. Arms that take more than 20 s run once.
Results are compared before anything is quoted: Dice with nnU-Net's, HD95, NSD and ASSD with MONAI's, NSD weighted by
area with DeepMind's. Memory is the peak beyond the two label maps, in a process of its own for each arm.

The maps are a phantom's of 200 x 300 x 300 voxels at 1.5 mm and the same after a smooth random warp of 1.5 voxels.
Peers are measured where they are installed (nnunetv2, monai, surface_distance); what is missing is said and left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voxprior.maths import areas, lesions, overlap, surfaces

ROOT = Path(__file__).parents[1]
SHAPE, SPACING, CLASSES, TOLERANCE = (200, 300, 300), (1.5, 1.5, 1.5), 14, 2.0
SLOW_S = 20.0
Arm = Callable[[Any, Any], Any]


# ------------------------------------------------------------------------------------------------- ours
def our_dice(label: Any, prediction: Any) -> Any:
    return {"dice": overlap.dice(overlap.confusion(label, prediction, CLASSES))}


def our_surfaces(label: Any, prediction: Any) -> Any:
    return surfaces.surface_scores(label, prediction, CLASSES, SPACING, TOLERANCE)._asdict()


def our_areas(label: Any, prediction: Any) -> Any:
    return {"nsd_area": areas.area_weighted_nsd(label, prediction, CLASSES, SPACING, TOLERANCE, table())}


def our_lesions(label: Any, prediction: Any) -> Any:
    return {"lesion_f1": lesions.lesion_f1(label, prediction, CLASSES, 0.1)}


def table() -> Any:
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    return create_table_neighbour_code_to_surface_area(SPACING)[0].numpy().astype(float)


# ------------------------------------------------------------------------------------------------- theirs
def nnunet_dice(label: Any, prediction: Any) -> Any:
    """Calls what `nnUNetv2_evaluate_folder` calls for each class."""
    from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask

    found = []
    for k in range(1, CLASSES + 1):
        tp, fp, fn, _ = compute_tp_fp_fn_tn(region_or_label_to_mask(label, k), region_or_label_to_mask(prediction, k))
        found.append(2 * tp / (2 * tp + fp + fn))
    return {"dice": np.array(found)}


def _one_hot(label: Any, prediction: Any) -> list[Any]:
    import torch

    maps = (torch.from_numpy(m) for m in (prediction, label))
    return [torch.stack([m == k for k in range(CLASSES + 1)])[None].to(torch.uint8) for m in maps]


def monai_dice(label: Any, prediction: Any) -> Any:
    from monai.metrics import compute_dice

    return {"dice": compute_dice(*_one_hot(label, prediction), include_background=False)[0].numpy()}


def monai_surfaces(label: Any, prediction: Any) -> Any:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    maps = _one_hot(label, prediction)
    hd95_mm = compute_hausdorff_distance(*maps, percentile=95, spacing=SPACING)[0].numpy()
    return {"hd95_mm": hd95_mm, "nsd": compute_surface_dice(*maps, [TOLERANCE] * CLASSES, spacing=SPACING)[0].numpy()}


def deepmind_surfaces(label: Any, prediction: Any) -> Any:
    import surface_distance as theirs

    hd95_mm, nsd = [], []
    for k in range(1, CLASSES + 1):
        found = theirs.compute_surface_distances(label == k, prediction == k, SPACING)
        hd95_mm.append(theirs.compute_robust_hausdorff(found, 95))
        nsd.append(theirs.compute_surface_dice_at_tolerance(found, TOLERANCE))
    return {"hd95_mm, weighted by area": np.array(hd95_mm), "nsd_area": np.array(nsd)}


SUBJECTS: dict[str, dict[str, Arm]] = {
    "Dice": {"ours": our_dice, "nnU-Net": nnunet_dice, "MONAI, one-hot": monai_dice},
    "HD95 and NSD (ours: and ASSD)": {
        "ours": our_surfaces,
        "DeepMind surface-distance": deepmind_surfaces,
        "MONAI": monai_surfaces,
    },
    "NSD weighted by area": {"ours": our_areas, "DeepMind surface-distance, with HD95": deepmind_surfaces},
    "F1 of lesions": {"ours": our_lesions},
}
GOALS = {("Dice", "nnU-Net"): 20.0}
GOALS |= {
    ("HD95 and NSD (ours: and ASSD)", name): goal for name, goal in (("DeepMind surface-distance", 5), ("MONAI", 30))
}
WITHIN = {"dice": 1e-6, "hd95_mm": 1e-3, "nsd": 1e-6, "nsd_area": 1e-4}


# ------------------------------------------------------------------------------------------------- measuring
def make_maps() -> tuple[Any, Any]:
    """Makes a label map and a prediction that is nearly it."""
    from scipy import ndimage

    from voxprior.data import phantoms

    _, label = phantoms.make(0, SHAPE, CLASSES)
    chance = np.random.default_rng(0)
    coarse = chance.normal(0, 1, (3, *(n // 20 for n in SHAPE)))
    place = np.indices(SHAPE, dtype=np.float32)
    for axis in range(3):
        field = ndimage.zoom(coarse[axis], [n / m for n, m in zip(SHAPE, coarse[axis].shape, strict=True)], order=1)
        place[axis] += (1.5 * field).astype(np.float32)
    prediction = ndimage.map_coordinates(label, place, order=0, mode="nearest").astype(np.uint8)
    return np.ascontiguousarray(label, np.uint8), prediction


def peak_mib(subject: str, arm: str, folder: Path) -> float:
    """Measures an arm's memory beyond the two maps in a process of its own."""
    call = [sys.executable, __file__, "--peak-of", subject, arm, str(folder)]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _tell_peak(subject: str, arm: str, folder: Path) -> None:
    """Warms up on a corner (imports, compiled code), then tells the peak of one call."""
    call = SUBJECTS[subject][arm]
    maps = [np.load(folder / name) for name in ("label.npy", "prediction.npy")]
    small = np.zeros((16, 16, 16), np.uint8)
    small[1:15].flat[: 14 * 256] = np.repeat(np.arange(1, 15), 256)
    call(small, small)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call(*maps)
    print((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def measure(arms: dict[str, Arm], maps: tuple[Any, Any], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Runs every arm in turn; returns processor seconds by arm and round, and what each found."""
    took: dict[str, list[float]] = {name: [] for name in arms}
    found = {}
    for number in range(rounds):
        for name, call in arms.items():
            if number and took[name][0] > SLOW_S:
                continue
            began = time.process_time()
            found[name] = call(*maps)
            took[name].append(time.process_time() - began)
    return took, found


def compare(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Tells how far each peer's numbers are from ours, where the definition is the same; refuses those that differ."""
    apart: dict[str, dict[str, float]] = {}
    for name, theirs in found.items():
        for metric in set(theirs) & set(found["ours"]) if name != "ours" else ():
            away = float(np.nanmax(np.abs(theirs[metric] - found["ours"][metric])))
            assert away <= WITHIN[metric], f"{name}: {metric} is {away} beside ours"
            apart.setdefault(name, {})[metric] = away
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/metrics_cpu.json")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        _tell_peak(*options.peak_of[:2], Path(options.peak_of[2]))
        return
    import torch
    from machine import describe, write

    torch.set_num_threads(1)
    absent: dict[str, str] = {}
    report: dict[str, Any] = {"format": 1, **describe(torch.device("cpu")), "threads": 1, "shape_zyx": SHAPE}
    report |= {"spacing_zyx_mm": SPACING, "classes": CLASSES, "subjects": []}
    maps = make_maps()
    with tempfile.TemporaryDirectory() as place:
        for name, array in zip(("label.npy", "prediction.npy"), maps, strict=True):
            np.save(Path(place) / name, array)
        for subject, arms in SUBJECTS.items():
            there = {name: call for name, call in arms.items() if _works(name, call, absent)}
            took, found = measure(there, maps, options.rounds)
            made = {"name": subject, "apart": compare(found), "arms": {}}
            for name, seconds in took.items():
                each = [b / a for a, b in zip(took["ours"], seconds, strict=False)]
                arm = {
                    "median_s": statistics.median(seconds),
                    "rounds_s": seconds,
                    "times_ours": statistics.median(each),
                }
                arm |= {"low": min(each), "high": max(each), "peak_mib": peak_mib(subject, name, Path(place))}
                if (subject, name) in GOALS:
                    goal = GOALS[subject, name]
                    arm |= {"goal": goal, "met": arm["times_ours"] >= goal}
                made["arms"][name] = arm
                print(subject, name, json.dumps({k: v for k, v in arm.items() if k != "rounds_s"}), flush=True)
            report["subjects"].append(made)
            write(options.output, report | {"absent": absent})
    for name, reason in absent.items():
        print(f"{name}: {reason}", file=sys.stderr)


def _works(name: str, call: Arm, absent: dict[str, str]) -> bool:
    """Calls an arm on small maps: imports what it needs; False, with the reason kept, where that is not installed."""
    small = np.zeros((16, 16, 16), np.uint8)
    small[1:15].flat[: 14 * 256] = np.repeat(np.arange(1, 15), 256)
    try:
        call(small, small)
    except ImportError as error:
        absent[name] = f"not installed here: {error}"
        return False
    return True


if __name__ == "__main__":
    main()
