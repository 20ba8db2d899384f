"""Takes in a folder of 10,000 cases and tells how long that takes: `python benchmarks/headers.py`.

`headers`: what `voxprior init-study` reads, the header of every scan, 64 x 64 x 40 voxels each with a label map.
`intake`: every voxel of every scan and label map checked and hashed, killed half-way, run again, and run once more with
nothing to do. Wall and processor seconds; the scans are as small as they are so that the count is what is measured.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).parents[1]
SHAPE_ZYX = (40, 64, 64)


def make(folder: Path, cases: int) -> None:
    """Writes the cases, no two with the same voxels, in the layout `folder`."""
    chance = np.random.default_rng(0)
    noise = chance.normal(0, 100, SHAPE_ZYX).astype(np.int16)
    label = np.zeros(SHAPE_ZYX, np.uint8)
    label[10:20, 20:40, 20:40] = 1
    map_ = sitk.GetImageFromArray(label)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    sitk.WriteImage(map_, str(folder / "labels" / "first.nii.gz"), useCompression=True, compressionLevel=1)
    content = (folder / "labels" / "first.nii.gz").read_bytes()
    (folder / "labels" / "first.nii.gz").unlink()
    for number in range(cases):
        noise[0, 0, :2] = (number % 1000, number // 1000)
        sitk.WriteImage(
            sitk.GetImageFromArray(noise), str(folder / "images" / f"c{number:05d}.nii.gz"), True, compressionLevel=1
        )
        (folder / "labels" / f"c{number:05d}.nii.gz").write_bytes(content)


def timed(command: list[str], here: Path, stop_at: int | None = None) -> dict[str, Any]:
    """Runs a verb: {wall_s, cpu_s of it and its processes}.

    `stop_at`: killed once `examined.jsonl` has so many lines.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "voxprior", *command], cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = here / "out" / "examined.jsonl"
    while process.poll() is None:
        time.sleep(0.05 if stop_at is None else 0.5)
        if stop_at and journal.is_file() and journal.read_bytes().count(b"\n") >= stop_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode not in (0, -signal.SIGKILL if stop_at else 0):
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/headers_cpu.json")
    options = parser.parse_args()
    import torch
    from machine import describe, write

    told: dict[str, Any] = {"format": 1, **describe(torch.device("cpu")), "cases": options.cases}
    told |= {"shape_zyx": SHAPE_ZYX, "workers": options.workers}
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        make(here, options.cases)
        told["headers"] = timed(["init-study", "--images", "images", "--labels", "labels", "--name", "many"], here)
        source = {"kind": "folder", "path": str(here)}
        layout = {"kind": "folder", "images": "images/{case}.nii.gz", "labels": "labels/{case}.nii.gz"}
        cards = {
            "fetch": {"dataset": "many", "source": source},
            "intake": {"dataset": "many", "layout": layout, "classes": {"thing": [1]}},
        }
        for kind, card in cards.items():
            (here / f"{kind}.json").write_text(json.dumps(card))
        told["manifest"] = timed(["fetch", "--card", "fetch.json", "--output", "raw/manifest.json"], here)
        intake = ["intake", "--card", "intake.json", "--manifest", "raw/manifest.json", "--cases", "out/cases.csv"]
        intake += ["--quarantine", "out/quarantine.csv", "--workers", str(options.workers)]
        told["intake_killed_half_way"] = timed(intake, here, options.cases // 2)
        told["intake_the_rest"] = timed(intake, here)
        told["intake_nothing_to_do"] = timed(intake, here)
        rows = (here / "out" / "cases.csv").read_text().count("\n") - 1
        if rows != options.cases:
            raise RuntimeError(f"{rows} of {options.cases} cases taken in")
    print(json.dumps(told, indent=1))
    write(options.output, told)


if __name__ == "__main__":
    main()
