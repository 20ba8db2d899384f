"""How much of a fine-tuning step is spent on reading it: `python benchmarks/finetune.py`.

Noisy phantoms are cached as `prepare` caches scans. Reading and training take turns in one process, one thread, as
jobs of the workflow do on a CPU; the share is of processor time, medians of the steps.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import machine  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from voxprior.configuration import Backbone as Spec  # noqa: E402
from voxprior.data import cache, phantoms  # noqa: E402
from voxprior.data.loaders import regions  # noqa: E402
from voxprior.engine.device import pick  # noqa: E402
from voxprior.engine.step import Learner, Plan  # noqa: E402
from voxprior.nets.backbones import Backbone  # noqa: E402
from voxprior.segment import model as segment  # noqa: E402

SHAPE, CLASSES, BATCH, CASES = (160, 192, 192), 5, 2, 3
ARMS = [("stunet_tiny", 32, 40), ("vit_tiny", 32, 40), ("stunet_s", 64, 2), ("vit_small", 64, 2)]


def write_cache(folder: Path) -> tuple[Path, list[str]]:
    """Caches phantoms: (index, names)."""
    entries = []
    for number in range(CASES):
        voxels, labels = phantoms.make(number, SHAPE, CLASSES)
        stored = np.clip((voxels.astype(np.float32) + 1000) / 1600 * 4096, 0, 4096).astype(np.int16)
        places = {
            k: np.argwhere(labels == k)[:: max(1, int((labels == k).sum()) // 1024)][:1024]
            for k in range(1, CLASSES + 1)
        }
        name, image, label = f"p{number}", f"volumes/p{number}.b2nd", f"volumes/p{number}.label.b2nd"
        entry = {"case": name, "patient": name, "person": name, "image": image, "label": label}
        entry |= {
            "shape_zyx": list(SHAPE),
            "spacing_zyx_mm": [1.5] * 3,
            "class_voxels": [len(p) for p in places.values()],
        }
        entry["image_sha256"] = cache.write_array(folder / image, stored[None], "k")
        entry["label_sha256"] = cache.write_array(folder / label, labels, "k", places)
        entries.append(entry)
    index = {"format": cache.FORMAT, "dataset": "phantoms", "key": "k", "quantum": 1 / 4096, "cases": entries}
    (folder / "index.json").write_text(json.dumps(index))
    return folder / "index.json", [entry["case"] for entry in entries]


def measure(name: str, side: int, steps: int, index: Path, cases: list[str]) -> dict[str, float]:
    """Trains some steps and tells how long reading and learning took, in processor seconds a step."""
    spec = Spec.model_validate(yaml.safe_load((ROOT / f"config/backbones/{name}.yaml").read_text()))
    crop = (side,) * 3
    network = Backbone(name, spec.family, getattr(spec, spec.family).model_dump()).segmenter(CLASSES + 1, crop)
    config = segment.Config(crop, (0.0, 0.0, 0.5))
    model = segment.Model(config, network)
    learner = Learner(model, Plan(steps + 1, spec.scratch, "", Path(), torch.device("cpu")))
    reading, learning = [], []
    batches = iter(
        regions(
            index, cases, segment.region(config), seed=0, batch_size=BATCH, steps=steps + 1, labels=True, foreground=0.5
        )
    )
    for _ in range(steps + 1):
        began = time.process_time()
        step, key_B, batch = next(batches)
        read = time.process_time()
        float(learner.step(step, key_B, batch)[0][0])
        reading.append(read - began)
        learning.append(time.process_time() - read)
    read_s, learn_s = median(reading[1:]), median(learning[1:])  # the first opens files and counts operations
    return {
        "crop_vox": side, "batch_size": BATCH, "steps": steps, "read_ms": 1e3 * read_s, "step_ms": 1e3 * learn_s,
        "share": read_s / (read_s + learn_s), "gflop": learner.flops / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/finetune_cpu.json")
    options = parser.parse_args()
    device = pick("cpu", 1)
    told = {**machine.describe(device), "threads": 1, "volume_zyx": SHAPE, "arms": {}}
    with tempfile.TemporaryDirectory() as folder:
        index, cases = write_cache(Path(folder))
        for name, side, steps in ARMS:
            told["arms"][name] = found = measure(name, side, steps, index, cases)
            times = f"read {found['read_ms']:7.2f} ms  step {found['step_ms']:8.1f} ms"
            print(f"{name:<12}{side:>4}^3  {times}  {found['share']:.2%}")
    machine.write(options.output, told)


if __name__ == "__main__":
    main()
