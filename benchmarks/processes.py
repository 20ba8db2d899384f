"""Runs of several processes beside the same run of one, on the CPU: `python benchmarks/processes.py`.

Every method at the size of the tests, and segmentation, on phantoms of which some are smaller than the crop. A run goes
through the commands, from card to weights. What is compared: the loss of each step, all terms, the weights at the end.
Then the same run is stopped by SIGTERM, goes on, loses a process to SIGKILL, and goes on with another number of them.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write

from voxprior.cards import card_hash, read_card
from voxprior.commands import finetune, pretrain
from voxprior.data import cache, phantoms, volume
from voxprior.engine import fsdp, members, step
from voxprior.errors import EXIT_RESUMABLE, Resumable
from voxprior.maths.ema import relative_distance
from voxprior.methods import load
from voxprior.nets.backbones import Backbone
from voxprior.nets.weights import read_weights

CLASSES, SAMPLES, QUANTUM = 2, 4, 1 / 1000
LABELS = ["liver", "spleen"]
NETWORKS: dict[str, dict[str, Any]] = {
    "vit": {"patch_vox": 8, "width": 24, "depth": 4, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4},
    "cnn": {"channels": [4, 8, 16, 16], "blocks": 1, "pretrained_stages": 3},
}
FAMILY = {"byol": "cnn", "spark": "cnn", "anatomask": "cnn", "finetune": "cnn"}  # of all others: vit
_DECODER = {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2}
_HEADS = {"view_vox": (16, 16, 16), "parent": 1.4, "head_hidden": 32, "head_out": 16, "head_norm": "batch"}
_PAINT = {"crop_vox": (24, 16, 24), "decoder_width": 16}
# With what a process could get wrong: statistics over samples, a centre, a teacher's ranking, frozen parts, LARS.
CONFIGS: dict[str, dict[str, Any]] = {
    "mae": {"crop_vox": (24, 16, 24), **_DECODER},
    "glmae": {
        "region_vox": (24, 24, 24), "global_vox": (16, 16, 16), "local_views": 2, "local_vox": (16, 16, 16), **_DECODER,
        "head_hidden": 32, "head_width": 16, "prototypes": 32, "frozen_share": 0.2,
    },
    "byol": _HEADS,
    "pgl": {**_HEADS, "optimiser": "lars", "lars_lr": 20.0},
    "spark": _PAINT,
    "anatomask": {**_PAINT, "decoder_norm": "batch"},
}  # fmt: skip
ADAMW = {"lr": 1e-3, "weight_decay": 0.01}
# AdamW divides each gradient by its own size. Where a true gradient is 0, as that of a bias before a norm, what is left
# is rounding, and becomes a full step: in float32 two runs that round differently part within a few steps, whatever is
# right. Convolutional arms take LARS there, which does not.
STEEP = ("byol", "spark", "anatomask", "finetune", "finetune_joined")
LARS = {"optimiser": "lars", "lr": 0.1, "weight_decay": 0.01}
SEGMENTING = ("finetune", "finetune_joined")
ALL = ("mae", "glmae", "byol", "pgl", "spark", "anatomask", *SEGMENTING)


@dataclass(frozen=True)
class Bench:
    """Where the study lies, and how long its runs are."""

    folder: Path
    steps: int
    double: bool = False  # all numbers in float64, so that rounding cannot grow to anything that is seen
    shard: bool = False

    @property
    def index(self) -> Path:
        """The prepared phantoms."""
        return self.folder / "index.json"

    @property
    def splits(self) -> Path:
        """One fold, with val patients."""
        return self.folder / "splits.json"


def make_study(folder: Path) -> None:
    """Caches eight phantoms as `prepare` would have, and writes their split."""
    entries = []
    shapes = [(20, 24, 22), (18, 24, 22), (20, 18, 22), (20, 24, 18)] + 4 * [(20, 24, 22)]
    for number, shape in enumerate(shapes):
        name = f"phantom_{number}"
        voxels, labels = phantoms.make(number, shape, CLASSES)
        grid = phantoms.grid_of(shape, (3.0, 2.0, 2.0), "LPS")
        image_ZYX, raw = volume.to_lps(volume.from_array(voxels, grid))
        labels_ZYX, _ = volume.to_lps(volume.from_array(labels, grid))
        scaled = np.clip((image_ZYX + 1000) / 1500 / QUANTUM, 0, 1000).astype(np.int16)
        places = {n: np.argwhere(labels_ZYX == n)[:50] for n in range(1, CLASSES + 1)}
        image, label = f"volumes/{name}.b2nd", f"volumes/{name}.label.b2nd"
        entries.append({
            "case": name, "patient": name, "person": name, "shape_zyx": list(scaled.shape),
            "spacing_zyx_mm": [3.0, 2.0, 2.0], "image": image, "label": label,
            "image_sha256": cache.write_array(folder / image, scaled[None], "key"),
            "label_sha256": cache.write_array(folder / label, labels_ZYX, "key", places),
            "class_voxels": [len(places[n]) for n in places], "raw": grid.to_json(), "grid": raw.to_json(),
        })  # fmt: skip
    index = {"format": cache.FORMAT, "dataset": "phantoms", "key": "key", "quantum": QUANTUM, "classes": [1, 2]}
    (folder / "index.json").write_text(json.dumps({**index, "simulated": False, "cases": entries}))
    names = [entry["case"] for entry in entries]
    fold = {"fold": 0, "test": names[:1], "val": names[6:], "train": names[1:6], "pool": names[1:]}
    fold["budgets"] = {"4": names[1:5]}
    (folder / "splits.json").write_text(json.dumps({"format": 1, "sha256": "", "folds": [fold]}))


def card_of(bench: Bench, arm: str) -> Path:
    """Writes the run card of an arm and returns its path."""
    family = FAMILY.get(arm, "vit")
    rest: dict[str, Any] = {"fold": 0, "recipe": LARS if arm in STEEP and not bench.double else ADAMW}
    if arm in SEGMENTING:
        rest |= {"init": "scratch", "classes": LABELS, "steps": bench.steps, "batch_size": SAMPLES, "budget": 4}
        rest |= {"crop_vox": [16, 16, 16], "foreground": 0.5, "precision": "fp32", "seed": 0, "validations": 4}
        rest["prepare"] = {"spacing_zyx_mm": [3, 2, 2], "intensity": {"kind": "window", "low": -200, "high": 300}}
        rest["ema"] = 0.25
        if arm == "finetune_joined":
            rest["recipe"] = {**rest["recipe"], "transfer": "decoder_first", "frozen": 0.4}
            rest |= {"init": "mae", "init_card": card_hash(read_card("pretrain", card_of(bench, "mae")))}
    else:
        module, backbone = load(arm), Backbone(family, family, NETWORKS[family])
        config = module.Config(**CONFIGS[arm])
        with torch.device("meta"):
            voxels = module.Model(config, backbone.encoder()).student_voxels * SAMPLES * bench.steps
        rest |= {"method": arm, "config": config.model_dump(mode="json")}
        rest["pretrain"] = {"voxels": voxels, "batch_size": SAMPLES, "precision": "fp32"}
    network = {"backbone": family, "family": family, "architecture": NETWORKS[family]}
    path = bench.folder / f"{arm}.json"
    path.write_text(json.dumps(network | rest))
    return path


def verb_of(bench: Bench, arm: str, run: Path) -> Callable[[], None]:
    """Makes the call of the command."""
    card = card_of(bench, arm)
    places = bench.splits, run / "out", run / "work"
    if bench.shard:
        os.environ[fsdp.FROM] = "0"
    if bench.double:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    if arm not in SEGMENTING:
        return lambda: pretrain.run(card, [bench.index], *places, 1, "cpu")
    encoder = bench.folder / "mae" / "1" / "out" / "encoder.safetensors" if arm == "finetune_joined" else None
    return lambda: finetune.run(card, bench.index, *places, encoder, 1, "cpu")


def start(call: Callable[[], None], processes: int, harm: dict[str, Any] | None = None) -> list[int]:
    """Runs a command in forked processes: their exit codes. `harm` sends one of them a signal before a step."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(processes):
            if not (child := os.fork()):
                _child(call, rank, processes, Path(folder) / "meet", harm)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes


def _child(call: Callable[[], None], rank: int, processes: int, meet: Path, harm: dict[str, Any] | None) -> None:
    """Is one process; never returns."""
    code = 1
    try:
        if processes > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in names.items()} | {members.MEET: str(meet)}
        if harm and rank == harm["rank"]:
            take = step.Learner.step

            def harmed(self: Any, number: int, *rest: Any) -> Any:
                if number == harm["step"]:
                    os.kill(os.getpid(), harm["signal"])
                return take(self, number, *rest)

            step.Learner.step = harmed  # type: ignore[method-assign]
        call()
        code = 0
    except Resumable as stopped:
        print(stopped, file=sys.stderr)
        code = EXIT_RESUMABLE
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def journal_of(run: Path) -> list[dict[str, float]]:
    """Reads what a run logged, a line per step."""
    return [json.loads(line) for line in (run / "out" / "journal.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Reads what a run made."""
    names = ("encoder.safetensors", "model.safetensors")
    path = next(run / "out" / name for name in names if (run / "out" / name).exists())
    return read_weights(path, "run it again")[0]


def compared(one: Path, several: Path) -> dict[str, float]:
    """Compares two runs: largest relative difference of the loss, of any number of the journal; of the weights."""
    ours, theirs = journal_of(one), journal_of(several)
    assert len(ours) == len(theirs), f"{several} has {len(theirs)} lines and {one} {len(ours)}"

    def apart(name: str) -> float:
        # Against the term's own size in the run: near 0 a single value has no relative difference.
        size = max(abs(line[name]) for line in ours if name in line)
        pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) if name in a]
        return max(abs(a - b) for a, b in pairs) / max(size, 1e-12)

    names = {name for line in ours for name in line}
    loss = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(ours, theirs, strict=True))
    values = {name: apart(name) for name in sorted(names - {"step"})}
    worst = max(values, key=lambda name: values[name])
    weights = relative_distance(weights_of(several), weights_of(one))
    return {"loss": loss, "journal": values[worst], "worst": worst, "weights": weights}


def whole_run(bench: Bench, arm: str, processes: int) -> Path:
    """Runs an arm undisturbed and returns its folder."""
    run = bench.folder / arm / str(processes)
    codes = start(verb_of(bench, arm, run), processes)
    assert not any(codes), f"{arm} with {processes} processes ended with {codes}"
    return run


def broken_run(bench: Bench, arm: str, ends: list[int]) -> dict[str, dict[str, float]]:
    """Stops a run of two at a quarter by SIGTERM, kills one of them half way, and goes on with other numbers."""
    cut = bench.folder / arm / "cut"
    stop = {"rank": 1, "step": bench.steps // 4, "signal": signal.SIGTERM}
    codes = start(verb_of(bench, arm, cut), 2, stop)
    assert codes == [EXIT_RESUMABLE] * 2, f"{arm}, stopped, ended with {codes}"
    kill = {"rank": 1, "step": bench.steps // 2, "signal": signal.SIGKILL}
    codes = start(verb_of(bench, arm, cut), 2, kill)
    assert codes == [EXIT_RESUMABLE, -signal.SIGKILL], f"{arm}, killed, ended with {codes}"
    told = {}
    for processes in ends:
        run = bench.folder / arm / f"cut{processes}"
        shutil.copytree(cut, run)
        codes = start(verb_of(bench, arm, run), processes)
        assert not any(codes), f"{arm}, resumed with {processes} processes, ended with {codes}"
        told[str(processes)] = compared(bench.folder / arm / "1", run)
    return told


def measure(bench: Bench, arm: str, numbers: list[int], ends: list[int]) -> dict[str, Any]:
    """Compares one arm's runs."""
    if arm == "finetune_joined" and not (bench.folder / "mae" / "1").exists():
        whole_run(bench, "mae", 1)
    if not (one := bench.folder / arm / "1").exists():
        whole_run(bench, arm, 1)
    told: dict[str, Any] = {"arm": arm}
    told["processes"] = {str(n): compared(one, whole_run(bench, arm, n)) for n in numbers}
    told["resumed"] = broken_run(bench, arm, ends) if ends else {}
    return told


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ALL))
    parser.add_argument("--processes", default="2,4", help="numbers, with commas")
    parser.add_argument("--resumed", default="1,4", help="numbers of processes that go on; empty: nothing is broken")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--double", action="store_true", help="all numbers in float64, and AdamW everywhere")
    parser.add_argument("--shard", action="store_true", help="weights in parts (FSDP2)")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    numbers, ends = ([int(n) for n in text.split(",") if n] for text in (asked.processes, asked.resumed))
    torch.set_num_threads(1)
    told = {"steps": asked.steps, "samples": SAMPLES, "double": asked.double, "shard": asked.shard}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.steps, asked.double, asked.shard)
        make_study(bench.folder)
        for arm in asked.arms.split(","):
            rows.append(measure(bench, arm, numbers, ends))
            print(json.dumps(rows[-1]))
            if asked.output:
                write(asked.output, {**describe(torch.device("cpu")), **told, "arms": rows})


if __name__ == "__main__":
    main()
