"""Prepares one scan of 512 x 512 x 2400 and tells the most memory that took: `python benchmarks/large.py`.

The scan and its labels are made of noise and boxes, written as `.nii`, and prepared in a process of its own, which
says what it took. It also says how that compares to the promise: 3 times the scan as float32, and 400 MiB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).parents[1]


def make(folder: Path, shape_zyx: tuple[int, int, int], spacing_zyx_mm: tuple[float, float, float]) -> None:
    """Writes the scan and its labels, slice by slice made."""
    chance = np.random.default_rng(0)
    voxels, labels = np.empty(shape_zyx, np.int16), np.zeros(shape_zyx, np.uint8)
    plane = chance.normal(0, 100, shape_zyx[1:])
    for z in range(shape_zyx[0]):
        voxels[z] = np.roll(plane, 7 * z, axis=1) - 200
        side = shape_zyx[1] // 20
        for number in range(1, 15):
            labels[z, side * number : side * (number + 1), side : 10 * side + z % 50] = number
    for array, name in ((voxels, "image"), (labels, "label")):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(tuple(reversed(spacing_zyx_mm)))
        sitk.WriteImage(image, str(folder / f"{name}.nii"))


def child(folder: Path, shape: str, spacing: str, to_mm: float) -> None:
    """Prepares the scan and prints what it took."""
    from voxprior.data import prepare

    row = {"case": "large", "patient": "1", "person": "1", "content_sha256": "1", "shape_zyx": shape}
    row |= {"image": str(folder / "image.nii"), "label": str(folder / "label.nii"), "spacing_zyx_mm": spacing}
    recipe = prepare.Recipe("k", (to_mm,) * 3, "window", -1000.0, 1000.0, tuple((n,) for n in range(1, 15)))
    began = time.process_time()
    entry = prepare.prepare_case(row, folder, recipe)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {"cpu_seconds": time.process_time() - began, "peak_bytes": peak, "to": entry["shape_zyx"]}
    print(json.dumps(told | {"need_bytes_foretold": prepare.need_bytes(row, recipe)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2400 512 512")
    parser.add_argument("--spacing", default="0.5 0.8 0.8")
    parser.add_argument("--to-mm", type=float, default=1.5)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/large_cpu.json")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.shape, options.spacing, options.to_mm)
        return
    from machine import write

    z, y, x = map(int, options.shape.split())
    dz, dy, dx = map(float, options.spacing.split())
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), (z, y, x), (dz, dy, dx))
        command = [sys.executable, __file__, "--child", place, "--shape", options.shape, "--spacing", options.spacing]
        done = subprocess.run([*command, "--to-mm", str(options.to_mm)], check=True, capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    promised = 3 * 4 * z * y * x + (400 << 20)
    told |= {"shape_zyx": [z, y, x], "spacing_zyx_mm": [dz, dy, dx], "to_mm": options.to_mm, "promised_bytes": promised}
    told |= {
        "format": 1,
        "within_8_gib": told["peak_bytes"] <= 8 << 30,
        "within_promise": told["peak_bytes"] <= promised,
    }
    print(json.dumps(told, indent=1))
    write(options.output, told)


if __name__ == "__main__":
    main()
