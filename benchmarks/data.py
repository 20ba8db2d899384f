"""From a scan to an augmented crop on one CPU thread, ours beside others, in one run: `python benchmarks/data.py`.

Every arm of a subject runs in turn, round after round, and what is quoted is the median over the rounds of the ratio of
processor times within a round: what else the machine does then weighs on both. Results are checked before anything is
timed: our image against SimpleITK's grid, our label map against one-hot linear interpolation.

The scan is `--scan` with its `--labels` (the default study fetches a chest CT), or a phantom of that size. Peers are
measured where they are installed (nnunetv2, MONAI, torchio, batchgeneratorsv2); what is missing is said and left out.
The one arm that takes a minute runs once.
"""

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datapeers as peers
import numpy as np
import torch
from machine import describe, write

from voxprior.data import cache, phantoms, prepare, resample, volume
from voxprior.maths import augment, chance

ROOT = Path(__file__).parents[1]
SPACING = (1.5, 1.5, 1.5)
CROP = (96, 96, 96)
CLASSES = 14
Call = Callable[[], Any]


@dataclass
class Subject:
    """What is compared: calls by name, and how much quicker than which other ours is to be."""

    name: str
    arms: dict[str, Call]
    goals: list[tuple[str, str, float]] = field(default_factory=list)  # (ours, other, at least so many times quicker)
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0  # 0: as many as asked for


def offer(arms: dict[str, Call], absent: dict[str, str], name: str, make: Callable[[], Call]) -> None:
    """Adds a peer where it is installed."""
    try:
        arms[name] = make()
    except ImportError as error:
        absent[name] = f"not installed here: {error}"


def peak_mib(call: Call) -> float:
    """Measures how much memory a call takes at most beyond what was taken before it, its result included, in MiB."""
    call()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    made = call()
    peak = _status("VmHWM") - before
    del made
    return peak / 1024


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


# ------------------------------------------------------------------------------------------------- the scan
@dataclass
class Scan:
    """A scan and its labels, 0 to 14, with the files they come from."""

    image: str
    label: str
    voxels: Any
    labels: Any
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]


def read(image: str | None, label: str | None, folder: Path) -> Scan:
    """Reads the scan in HU as int16, and its 14 most voluminous structures; both are written again as files."""
    if image and label:
        scan, grid = volume.to_lps(volume.read_scan(image, verify=False))
        marks, _ = volume.to_lps(volume.read_label(label, verify=False)[0])
        count = np.bincount(marks.ravel())
        count[0] = 0
        ids = np.zeros(len(count), np.uint8)
        ids[np.argsort(count)[::-1][:CLASSES]] = np.arange(1, CLASSES + 1)
        marks = ids[marks]
    else:
        scan, marks = phantoms.make(0, (133, 512, 512), CLASSES)
        grid = phantoms.grid_of(scan.shape, (2.5, 0.703125, 0.703125))
    voxels, marks = np.ascontiguousarray(scan, np.int16), np.ascontiguousarray(marks)
    files = [str(folder / name) for name in ("image.nii.gz", "label.nii.gz")]
    for array, file in zip((voxels, marks), files, strict=True):
        volume.write_image(volume.from_array(array, grid), file)
    spacing = grid.spacing_zyx_mm
    return Scan(*files, voxels, marks, spacing, resample.new_shape(voxels.shape, spacing, SPACING))


# ------------------------------------------------------------------------------------------------- subjects
def image_linear(scan: Scan, absent: dict[str, str]) -> Subject:
    """Compares the resampling of intensities; SimpleITK writes 0 beyond the last centre, where we repeat the border."""
    where = (scan.spacing, scan.shape, SPACING)
    floats = scan.voxels.astype(np.float32)
    arms: dict[str, Call] = {
        "ours": lambda: resample.resample_image(scan.voxels, scan.spacing, SPACING, blur=False),
        "ours, blurred before coarser axes": lambda: resample.resample_image(scan.voxels, scan.spacing, SPACING),
        "SimpleITK": peers.sitk_linear(scan.voxels, *where),
    }
    offer(arms, absent, "nnU-Net, its default of order 3", lambda: peers.nnunet(floats, *where, is_seg=False, order=3, force_separate_z=None))  # fmt: skip # noqa: E501
    offer(arms, absent, "nnU-Net, linear by torch", lambda: peers.nnunet_torch(floats, *where))
    offer(arms, absent, "MONAI, linear", lambda: peers.monai_spacing(floats, scan.spacing, SPACING))
    offer(arms, absent, "torchio, linear", lambda: peers.torchio_resample(floats, scan.spacing, SPACING))
    found, expected = arms["ours"](), arms["SimpleITK"]()
    inside = tuple(
        slice(0, int((n - 1) * old / new + 1e-6) + 1)
        for n, old, new in zip(scan.voxels.shape, scan.spacing, SPACING, strict=True)
    )
    apart = float(np.abs(found[inside] - expected[inside]).max())
    assert apart <= 0.1, f"{apart} HU beside SimpleITK"
    given, out = scan.voxels.nbytes / 2**20, found.nbytes / 2**20
    facts = {"largest difference to SimpleITK, HU": apart, "input, MiB": given, "output, MiB": out}
    facts["peak beyond the input, MiB"] = {name: peak_mib(arms[name]) for name in ("ours", "SimpleITK")}
    facts["ours: (input + peak) / (input + output)"] = (given + facts["peak beyond the input, MiB"]["ours"]) / (
        given + out
    )
    return Subject("image to 1.5 mm", arms, [("ours", "SimpleITK", 1.5)], facts)


def labels_linear(scan: Scan, absent: dict[str, str]) -> tuple[Subject, Subject]:
    """Compares the resampling of 14 classes; the second subject holds what takes most of a minute."""
    where = (scan.spacing, scan.shape, SPACING)
    arms: dict[str, Call] = {
        "ours": lambda: resample.resample_labels(scan.labels, scan.spacing, scan.shape, SPACING),
        "SimpleITK, one-hot": peers.sitk_one_hot(scan.labels, *where),
        "SimpleITK, nearest": peers.sitk_nearest(scan.labels, *where),
    }
    slow: dict[str, Call] = {"ours": arms["ours"]}
    offer(arms, absent, "nnU-Net, its default (separate z)", lambda: peers.nnunet(scan.labels, *where, is_seg=True, order=1, force_separate_z=None))  # fmt: skip # noqa: E501
    offer(slow, absent, "nnU-Net, no separate z", lambda: peers.nnunet(scan.labels, *where, is_seg=True, order=1, force_separate_z=False))  # fmt: skip # noqa: E501
    found, expected = arms["ours"](), arms["SimpleITK, one-hot"]()
    inside = tuple(
        slice(0, int((n - 1) * old / new + 1e-6) + 1)
        for n, old, new in zip(scan.labels.shape, scan.spacing, SPACING, strict=True)
    )
    apart = float((found[inside] != expected[inside]).mean())
    assert apart <= 1e-3, f"{apart:.2%} of the labels are not one-hot linear"
    beyond = peak_mib(arms["ours"]) - found.nbytes / 2**20
    facts = {
        "share unlike SimpleITK's one-hot": apart,
        "ours: peak beyond input and output, MiB (below 0: of memory that was there)": beyond,
    }
    goals = [("ours", "SimpleITK, one-hot", 3.0)]
    return Subject("14 classes to 1.5 mm", arms, goals, facts), Subject(
        "14 classes to 1.5 mm, slow peer", slow, [("ours", "nnU-Net, no separate z", 20.0)], rounds=1
    )


def whole_case(scan: Scan, folder: Path, absent: dict[str, str]) -> Subject:
    """Compares everything between the files of a scan and those of the cache."""
    row = {
        "case": "one",
        "patient": "1",
        "person": "1",
        "image": scan.image,
        "label": scan.label,
        "content_sha256": "1",
    }
    row |= {"shape_zyx": " ".join(map(str, scan.voxels.shape)), "spacing_zyx_mm": " ".join(map(str, scan.spacing))}
    recipe = prepare.Recipe("key", SPACING, "window", -1000.0, 1000.0, tuple((n,) for n in range(1, CLASSES + 1)))

    def ours() -> Any:
        (folder / "volumes/one.json").unlink(missing_ok=True)
        return prepare.prepare_case(row, folder, recipe)

    arms: dict[str, Call] = {"ours": ours}
    offer(arms, absent, "nnU-Net", lambda: peers.nnunet_case(scan.image, scan.label, SPACING, CLASSES, folder))
    return Subject("one case, files to cache", arms, [("ours", "nnU-Net", 5.0)])


def caches(scan: Scan, folder: Path, absent: dict[str, str]) -> list[Subject]:
    """Compares writing, size, and reading a random crop of image and label, warm and cold."""
    low, high = -1000.0, 1000.0

    def change(plane: Any) -> Any:
        return np.clip((plane - np.float32(low)) / np.float32(high - low), 0, 1)

    unit = resample.resample_image(scan.voxels, scan.spacing, SPACING, change)
    stored = np.rint(unit / prepare.QUANTUM).astype(np.int16)
    labels = resample.resample_labels(scan.labels, scan.spacing, scan.shape, SPACING)
    files = {
        "ours": [folder / "image.b2nd", folder / "label.b2nd"],
        "npy": [folder / "image.npy", folder / "label.npy"],
        "nnU-Net's b2nd": [folder / "theirs.b2nd", folder / "theirs_seg.b2nd"],
    }

    def write_mine(folder: Path = folder) -> list[str]:
        return [
            cache.write_array(folder / f.name, a, "key") for f, a in zip(files["ours"], (stored, labels), strict=True)
        ]

    def write_npy(folder: Path = folder) -> None:
        for file, array in zip(files["npy"], (unit, labels), strict=True):
            np.save(folder / file.name, array)

    again = folder / "again"
    again.mkdir()
    writes: dict[str, Call] = {"ours": lambda: write_mine(again), "npy": lambda: write_npy(again)}
    offer(writes, absent, "nnU-Net's b2nd", lambda: _nnunet_writer(unit, labels, again / "theirs"))
    hashes = write_mine()
    write_npy()
    if "nnU-Net's b2nd" in writes:
        _nnunet_writer(unit, labels, folder / "theirs")()
    else:
        del files["nnU-Net's b2nd"]
    entry = {"case": "one", "image": "image.b2nd", "label": "label.b2nd", "class_voxels": []}
    entry |= {"spacing_zyx_mm": SPACING, "shape_zyx": unit.shape, "image_sha256": hashes[0], "label_sha256": hashes[1]}
    write(folder / "index.json", {"format": cache.FORMAT, "key": "key", "quantum": prepare.QUANTUM, "cases": [entry]})
    time.sleep(0.2)  # as prepare's sidecar: written later than the arrays by more than a file system's tick
    write(folder / "one.json", {"entry": entry, "stamps": {file.name: cache.stamp(file) for file in files["ours"]}})
    raw = unit.nbytes + labels.nbytes
    sizes = {name: sum(file.stat().st_size for file in made) / raw for name, made in files.items()}
    alone = files["ours"][0].stat().st_size / unit.nbytes
    facts = {"size / (float32 image + uint8 label)": sizes, "image alone / float32": alone}
    warm, cold = readers(folder, unit, stored, labels, files)
    return [
        Subject("cache: write", writes, [("ours", "nnU-Net's b2nd", 2.0)], facts),
        Subject("cache: 96^3 crops, warm", warm, [("ours", "npy, opened for each", 1.0)]),
        Subject("cache: 96^3 crops, cold", cold, [("ours", "nnU-Net's b2nd", 1.0)]),
    ]


def _nnunet_writer(unit: Any, labels: Any, path: Path) -> Call:
    import nnunetv2  # noqa: F401  # absent: says so

    seg = labels.astype(np.int8)
    return lambda: peers.nnunet_save(unit[None], seg[None], path)


def readers(folder: Path, unit: Any, stored: Any, labels: Any, files: dict[str, list[Path]]) -> tuple[Any, Any]:
    """Makes calls that read 16 random crops: from files in memory, and from files dropped from it before each crop."""
    import blosc2

    boxes = np.random.default_rng(0).integers(0, np.array(unit.shape) - CROP + 1, (16, 3)).tolist()
    # Copies: what is mapped cannot be dropped from memory.
    kept = [np.load(shutil.copy(file, folder / f"kept_{file.name}"), mmap_mode="r") for file in files["npy"]]

    def cut(arrays: Any, lo: list[int], lead: tuple[int, ...] = ()) -> Any:
        box = tuple(slice(a, a + n) for a, n in zip(lo, CROP, strict=True))
        return [np.array(array[(*lead, *box)]) for array in arrays]

    def ours(lo: list[int]) -> Any:
        case = cache.open_case(folder / "index.json", "one")
        return [case.read(tuple(lo), CROP)[0], case.read_label(tuple(lo), CROP)]

    def npy(lo: list[int]) -> Any:
        return cut([np.load(file, mmap_mode="r") for file in files["npy"]], lo)

    def nnunet(lo: list[int]) -> Any:
        how = {"mode": "r", "dparams": {"nthreads": 1}, "mmap_mode": "r"}
        return cut([blosc2.open(str(file), **how) for file in files["nnU-Net's b2nd"]], lo, (0,))

    each = {"ours": ours, "npy, opened for each": npy, "npy, kept open": lambda lo: cut(kept, lo)}
    if "nnU-Net's b2nd" in files:
        each["nnU-Net's b2nd"] = nnunet
    for lo in boxes[:3]:
        assert all(np.array_equal(a, b) for a, b in zip(ours(lo), cut((stored, labels), lo), strict=True))
        assert np.abs(ours(lo)[0] * prepare.QUANTUM - cut([unit], lo)[0]).max() <= prepare.QUANTUM
    warm = {name: (lambda read=read: [read(lo) for lo in boxes]) for name, read in each.items()}
    names = {"ours": "ours", "npy": "npy, opened for each", "nnU-Net's b2nd": "nnU-Net's b2nd"}
    cold = {names[name]: Cold(each[names[name]], boxes[:4], paths) for name, paths in files.items()}
    return warm, cold


class Cold:
    """Reads crops, each from files that the kernel was told to forget; takes the wall's time, which waiting is in."""

    def __init__(self, read: Callable[[list[int]], Any], boxes: list[list[int]], files: list[Path]) -> None:
        self.read, self.boxes, self.files = read, boxes, files

    def __call__(self) -> float:
        """Reads all and tells the seconds without the forgetting."""
        took = 0.0
        for lo in self.boxes:
            cache._open.cache_clear()
            gc.collect()
            for file in self.files:
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
                    os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            self.read(lo)
            took += time.perf_counter() - began
        return took


def augmentation(scan: Scan, absent: dict[str, str]) -> list[Subject]:
    """Compares affine with labels, and the whole recipe, on crops of 96^3; nnU-Net's recipe starts from 130^3 or so."""
    unit = resample.resample_image(
        scan.voxels, scan.spacing, SPACING, lambda plane: np.clip((plane + 1000) / 2000, 0, 1)
    )
    marks = resample.resample_labels(scan.labels, scan.spacing, scan.shape, SPACING)

    def middle(size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        box = tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(unit.shape, size, strict=True))
        return torch.from_numpy(unit[box].copy())[None], torch.from_numpy(marks[box].copy())[None]

    image, label = middle(CROP)
    step = iter(range(10**9))
    ones = torch.ones(1, 3)
    always = augment.Spatial(turn=1.0, scale=1.0)

    def key() -> torch.Tensor:
        return chance.keys(0, next(step), torch.zeros(1, dtype=torch.int64))

    arms: dict[str, Call] = {"ours": lambda: augment.spatial(image[None], label, key(), ones, always)}
    offer(arms, absent, "torchio", lambda: peers.torchio_affine(image, label))
    offer(arms, absent, "MONAI", lambda: peers.monai_affine(image, label))
    offer(arms, absent, "batchgeneratorsv2", lambda: peers.bgv2_affine(image, label.to(torch.int16)))
    goals = [("ours", "torchio", 1.5), ("ours", "MONAI", 3.5), ("ours", "batchgeneratorsv2", 12.0)]

    def ours() -> Any:
        """Takes nnU-Net's probabilities and strengths."""
        k = key()
        flipped = augment.draw_flips(k, "augment/flip", (0.5, 0.5, 0.5))
        v, y = augment.flip(image[None], flipped), augment.flip(label, flipped)
        v, y = augment.spatial(v, y, k, ones, augment.Spatial())
        v = augment.noise(v, k, 0.1, 0.1)
        v = augment.blur(v, k, 0.1, (0.5, 1.0))
        v = augment.brightness(v, k, 0.15, 0.25)
        v = augment.contrast(v, k, 0.15, 0.25, 0.0)
        v = augment.low_resolution(v, k, 0.125, 2.0)
        v = augment.gamma(v, k, 0.1, 0.4, inverted=True)
        return augment.gamma(v, k, 0.3, 0.4), y

    recipes: dict[str, Call] = {"ours": lambda: [ours() for _ in range(12)]}
    larger, marks_larger = middle((130, 130, 130))
    if "batchgeneratorsv2" in arms:
        offer(
            recipes,
            absent,
            "nnU-Net v2",
            lambda: _many(peers.nnunet_recipe(larger, marks_larger.to(torch.int16), CROP)),
        )
    return [
        Subject("augmentation: affine and label", arms, goals),
        Subject("augmentation: whole recipe, 12 crops", recipes, [("ours", "nnU-Net v2", 4.0)]),
    ]


def _many(call: Call) -> Call:
    return lambda: [call() for _ in range(12)]


# ------------------------------------------------------------------------------------------------- measuring
def measure(subject: Subject, rounds: int) -> dict[str, list[float]]:
    """Runs every arm in turn: processor seconds by arm and round; the wall's for arms that tell them.

    The first round only warms up, where that is cheap: it does not count unless an arm of it takes two seconds.
    """
    took: dict[str, list[float]] = {name: [] for name in subject.arms}
    rounds, warm = subject.rounds or rounds, bool(subject.rounds)
    subject.arms["ours"]()  # compiles
    while min(map(len, took.values())) < rounds:
        for name, call in subject.arms.items():
            began = time.process_time()
            told = call()
            took[name].append(told if isinstance(told, float) else time.process_time() - began)
            del told
        if not warm and max(map(max, took.values())) < 2:
            took = {name: [] for name in took}
        warm = True
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", help="a CT in HU; with --labels")
    parser.add_argument("--labels")
    parser.add_argument("--only", nargs="*", help="image, labels, case, cache, augmentation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/data_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    absent: dict[str, str] = {}
    report: dict[str, Any] = {"format": 1, **describe(torch.device("cpu")), "threads": 1, "scan": bool(options.scan)}
    with tempfile.TemporaryDirectory() as place:
        scan = read(options.scan, options.labels, Path(place))
        report |= {"shape_zyx": scan.voxels.shape, "spacing_zyx_mm": scan.spacing, "to_mm": SPACING, "subjects": []}
        makers: dict[str, Callable[[], Any]] = {
            "image": lambda: [image_linear(scan, absent)],
            "labels": lambda: labels_linear(scan, absent),
            "case": lambda: [whole_case(scan, Path(place), absent)],
            "cache": lambda: caches(scan, Path(place), absent),
            "augmentation": lambda: augmentation(scan, absent),
        }
        for name in options.only or makers:
            for subject in makers[name]():
                report["subjects"].append(told(subject, measure(subject, options.rounds)))
                write(options.output, report | {"absent": absent})
    for name, reason in absent.items():
        print(f"{name}: {reason}", file=sys.stderr)


def told(subject: Subject, took: dict[str, list[float]]) -> dict[str, Any]:
    """Puts a subject's numbers together and prints them."""
    print(f"\n{subject.name}  {subject.facts or ''}")
    ratios = {}
    goals = {other: goal for _, other, goal in subject.goals}
    for name, seconds in took.items():
        each = [b / a for a, b in zip(took["ours"], seconds, strict=True)]
        ratios[name] = {"times_ours": statistics.median(each), "low": min(each), "high": max(each)}
        if name in goals:
            ratios[name] |= {"goal": goals[name], "met": statistics.median(each) >= goals[name]}
        line = f"  {name:36s} {statistics.median(seconds) * 1e3:10.1f} ms  {ratios[name]['times_ours']:8.2f} x ours"
        print(line + (f"  goal {goals[name]}" if name in goals else ""), flush=True)
    arms = {name: {"median_s": statistics.median(s), "rounds_s": s, **ratios[name]} for name, s in took.items()}
    return {"name": subject.name, "facts": subject.facts, "arms": arms}


if __name__ == "__main__":
    main()
