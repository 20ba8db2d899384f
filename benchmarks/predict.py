"""Sliding-window prediction on one CPU thread, ours beside MONAI's, in one run: `python benchmarks/predict.py`.

- `overhead`: processor time beside the network, which is replaced by a copy of the same logits. Both call it on the
  same windows, round after round; the ratio is taken within a round, and the median over the rounds is quoted.
- `peak`: memory beyond what was taken before the call, each in a process of its own, at few and at many classes.
- `large`: 117 classes on 512 x 512 x 700, from the file of the scan to the file of the labels, in a process of its own.
- `whole`: one case of 300 x 300 x 200 from file to file: the share of processor time outside a real network, which is
  timed on twelve windows and counted for all.

Before anything is timed a small real network is given to both, and labels must agree wherever MONAI's two best logits
are more than 1e-4 apart.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write

ROOT = Path(__file__).parents[1]
WINDOW = (96, 96, 96)
CASE = (200, 300, 300)
LARGE = (700, 512, 512)
GOALS = {"overhead": 0.35, "peak, 14 classes": 0.50, "peak, 105 classes": 0.35, "outside the network": 0.05}
CPU = torch.device("cpu")


class Free:
    """Stands for a network: copies the same logits into the same memory for every call, and times that."""

    def __init__(self, classes: int, window: tuple[int, int, int]) -> None:
        self.logits = torch.randn(1, classes, *window, generator=torch.Generator().manual_seed(0))
        self.buffer = torch.empty(4, classes, *window)
        self.seconds = 0.0

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Gives the logits of some windows."""
        began = time.process_time()
        out = self.buffer[: len(windows)]
        out.copy_(self.logits.expand_as(out))
        self.seconds += time.process_time() - began
        return out


def fresh(classes: int) -> Any:
    """Makes a network that costs little and returns new memory for each call, as a real one does."""
    slope = torch.linspace(-1, 1, classes).view(1, -1, 1, 1, 1)
    return lambda windows: windows * slope


def ours(network: Any, volume: np.ndarray) -> np.ndarray:
    from voxprior.segment.infer import segment_volume

    return segment_volume(network, volume, 1 / 4096, WINDOW, 0.5)


def monai(network: Any, volume: np.ndarray) -> torch.Tensor:
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        image = torch.from_numpy(volume)[None, None].float() / 4096
        return sliding_window_inference(image, WINDOW, 4, network, 0.5, mode="gaussian")[0].argmax(0)


def scan(shape: tuple[int, int, int]) -> np.ndarray:
    """Makes prepared intensities of random blocks, plane by plane."""
    blocks = np.random.default_rng(0).integers(0, 4096, (shape[1] // 16 + 1, shape[2] // 16 + 1)).astype(np.int16)
    plane = np.kron(blocks, np.ones((16, 16), np.int16))[: shape[1], : shape[2]]
    return np.stack([np.roll(plane, 7 * z, axis=1) for z in range(shape[0])])


# ------------------------------------------------------------------------------------------------- subjects
def check() -> float:
    """Compares labels with MONAI's: the share of voxels whose two best logits are far enough apart to be compared."""
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 5, padding=2), torch.nn.Tanh(), torch.nn.Conv3d(4, 14, 5, padding=2)
    )
    volume = scan((110, 130, 100))
    with torch.inference_mode():
        image = torch.from_numpy(volume)[None, None].float() / 4096
        logits = sliding_window_inference(image, WINDOW, 4, network, 0.5, mode="gaussian")[0]
    best = logits.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert np.array_equal(ours(network, volume)[clear], logits.argmax(0).numpy()[clear]), "labels are not MONAI's"
    return float(clear.mean())


def overhead(rounds: int, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Times both beside the network."""
    volume, network = scan(shape), Free(classes, WINDOW)
    took: dict[str, list[float]] = {"ours": [], "MONAI": []}
    for number in range(rounds + 1):
        for name, call in (("ours", ours), ("MONAI", monai)):
            network.seconds, began = 0.0, time.process_time()
            call(network, volume)
            if number:  # the first round warms up
                took[name].append(time.process_time() - began - network.seconds)
    ratios = [mine / theirs for mine, theirs in zip(took["ours"], took["MONAI"], strict=True)]
    return {
        "shape_zyx": list(shape),
        "classes": classes,
        "seconds": took,
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


def peak_child(which: str, classes: int, shape: tuple[int, int, int]) -> None:
    """Prints how much memory one call takes beyond what was there before, and in all."""
    volume, network = scan(shape), fresh(classes)
    call = {"ours": ours, "MONAI": monai}[which]
    call(fresh(2), scan((96, 96, 100)))  # loads the libraries
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call(network, volume)
    print(json.dumps({"peak_bytes": (status("VmHWM") - before) * 1024, "before_bytes": before * 1024}))


def status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def peak(classes: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Compares the peaks of both, each in a process of its own."""
    told = {}
    for which in ("ours", "MONAI"):
        told[which] = child("--peak", which, str(classes), *map(str, shape))["peak_bytes"]
    return {"shape_zyx": list(shape), "classes": classes, "bytes": told, "ratio": told["ours"] / told["MONAI"]}


def child(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def model_file(path: Path, classes: int, sizes: dict[str, Any], window: tuple[int, int, int]) -> Any:
    """Writes a model of random weights for scans of 1 mm."""
    from voxprior.nets.backbones import Backbone
    from voxprior.nets.weights import write_weights

    torch.manual_seed(0)
    scale = {"spacing_zyx_mm": [1, 1, 1], "intensity": {"kind": "window", "low": -1000, "high": 1000}}
    names = [f"class_{number}" for number in range(1, classes + 1)]
    card = {
        "init": "scratch", "backbone": "random", "family": "cnn", "architecture": sizes, "recipe": {"lr": 0.01},
        "classes": names, "steps": 1, "batch_size": 1, "crop_vox": list(window), "foreground": 0, "precision": "fp32",
        "prepare": scale, "budget": 1, "fold": 0, "seed": 0,
    }  # fmt: skip
    network = Backbone("random", "cnn", sizes).segmenter(classes + 1, window)
    data = {"values": [[number] for number in range(1, classes + 1)]}
    write_weights(path, network.state_dict(), {"card": card, "data": data, "format": 1})


def predict(folder: Path, shape: tuple[int, int, int], call: Any, overlap: float) -> dict[str, Any]:
    """Predicts one scan by the command's own function, with `call` in the network's place or around it."""
    import SimpleITK as sitk

    from voxprior.commands import predict as verb
    from voxprior.commands import trained

    image = sitk.GetImageFromArray(scan(shape) - np.int16(1000))
    image.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(image, str(folder / "scan.nii"))
    del image
    load = trained.load_ensemble
    seconds = [0.0]

    def loaded(paths: list[Path]) -> Any:
        (model,) = load(paths)
        network = call or model.network

        class Timed(torch.nn.Module):
            def forward(self, windows: torch.Tensor) -> torch.Tensor:
                began = time.process_time()
                logits = network(windows)
                seconds[0] += time.process_time() - began
                return logits

        object.__setattr__(model, "network", Timed())
        return [model]

    trained.load_ensemble = loaded
    wanted = verb.Wanted(overlap=overlap)
    began = time.process_time()
    verb.run([folder / "model.safetensors"], folder / "scan.nii", folder / "out", wanted, 1, "cpu")
    took = time.process_time() - began
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"cpu_seconds": took, "network_seconds": seconds[0], "peak_bytes": peak_bytes}


def large_child(shape: tuple[int, int, int], classes: int) -> None:
    """Predicts the large scan and prints the most memory that the process ever had."""
    window = (128, 128, 128)
    with tempfile.TemporaryDirectory() as place:
        model_file(Path(place) / "model.safetensors", classes, TINY, window)
        print(json.dumps(predict(Path(place), shape, fresh(classes + 1), 0.0)))


def whole_child(shape: tuple[int, int, int], classes: int) -> None:
    """Predicts a case with a function for a network, times a real one on some windows, and prints where the time goes.

    All windows of the real network would take minutes, and each takes as long as any other.
    """
    from voxprior.nets.backbones import Backbone
    from voxprior.segment.infer import window_starts

    sizes = {"channels": [16, 32, 64, 128, 256, 256], "blocks": 1, "pretrained_stages": 5}
    network = Backbone("stunet_s", "cnn", sizes).segmenter(classes + 1, WINDOW).eval()
    windows, took = torch.randn(4, 1, *WINDOW), []
    with torch.inference_mode():
        for _ in range(3):
            began = time.process_time()
            network(windows)
            took.append((time.process_time() - began) / len(windows))
    count = int(np.prod([len(window_starts(n, w, 0.5)) for n, w in zip(shape, WINDOW, strict=True)]))
    with tempfile.TemporaryDirectory() as place:
        model_file(Path(place) / "model.safetensors", classes, TINY, WINDOW)
        told = predict(Path(place), shape, fresh(classes + 1), 0.5)
    outside = told["cpu_seconds"] - told["network_seconds"]
    print(json.dumps({"windows": count, "window_seconds": statistics.median(took), "outside_seconds": outside}))


TINY = {"channels": [4, 8], "blocks": 1, "pretrained_stages": 2}


# ------------------------------------------------------------------------------------------------- all of it
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs what was asked for, on top of what the file already holds."""
    told = json.loads(options.output.read_text()) if options.output.is_file() else {}
    told |= {**describe(CPU), "threads": 1, "window": list(WINDOW), "goals": GOALS}
    if "overhead" in options.subjects:
        told["compared"] = check()
        told["overhead"] = overhead(options.rounds, CASE, 14)
    for classes in (14, 105) if "peak" in options.subjects else ():
        told[f"peak, {classes} classes"] = peak(classes, CASE)
    if "large" in options.subjects:
        took = child("--large", "117", *map(str, LARGE))
        took |= {"shape_zyx": list(LARGE), "classes": 117, "within_8_gib": took["peak_bytes"] <= 8 << 30}
        told["large"] = took
    if "whole" in options.subjects:
        took = child("--whole", "14", *map(str, CASE))
        outside = took["outside_seconds"] / (took["outside_seconds"] + took["windows"] * took["window_seconds"])
        told["whole"] = took | {"shape_zyx": list(CASE), "classes": 14, "network": "STU-Net-S", "outside": outside}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["overhead", "peak", "large", "whole"]
    parser.add_argument("--subjects", nargs="+", choices=known, default=known)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/predict_cpu.json")
    for name in ("peak", "large", "whole"):
        parser.add_argument(f"--{name}", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        which, classes, *shape = options.peak
        peak_child(which, int(classes), tuple(map(int, shape)))
    elif options.large or options.whole:
        classes, *shape = map(int, options.large or options.whole)
        (large_child if options.large else whole_child)(tuple(shape), classes)
    else:
        told = measure(options)
        print(json.dumps(told, indent=1))
        write(options.output, told)


if __name__ == "__main__":
    main()
