"""The loader: one region per sample, read box by box from the volume cache.

Which case and which box is counted from (seed, step, sample), so batches are the same for any number of workers, and a
run that goes on at step n reads what it would have read. Regions are uniform in place for pretraining; with labels, a
share of them is centred on a labelled voxel.

Axes: B samples, C channels, Z Y X voxels.
"""

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from voxprior.data import cache
from voxprior.errors import Refusal, Resumable
from voxprior.maths import chance
from voxprior.maths.boxes import Region

Zyx = tuple[int, int, int]
PROBED = 8  # steps by which the number of workers is chosen; the median leaves out the first, which opens files


@dataclass(frozen=True)
class Regions:
    """Yields (step, key_B, batch) for `start_step <= step < steps`; batch as in `methods/contract.py`.

    Each pass through the cases is in a new order. A volume smaller than the region is padded with 0 at random on both
    sides. A region taken `whole` is cut to `size_vox` at a random place and padded at the end, to the largest of the
    batch.

    Attributes:
        index_path: index of the prepared dataset.
        cases: names of the cases.
        others: indexes of further datasets, and names of their cases, read as if they belonged to the first.
        region: what is read per sample.
        seed, batch_size, steps, start_step: `batch_size` counts all ranks.
        labels: read labels too.
        foreground: share of samples centred on a voxel of a class drawn evenly among those in the case.
        workers: reading processes; 0 reads in this one; "auto" takes as many as the first steps show to be needed.
        cores: what "auto" may use, this process's own included.
        rank, world_size: this process takes samples rank, rank + world_size, ... of each batch.
        pin: put batches into page-locked memory, for copies to a GPU.

    Raises:
        Refusal: no case, an unlabelled case where labels are asked for, a batch that cannot be shared out.
    """

    index_path: str | Path
    cases: list[str]
    region: Region
    seed: int
    batch_size: int
    steps: int
    start_step: int = 0
    labels: bool = False
    foreground: float = 0.0
    workers: int | Literal["auto"] = 0
    cores: int = 1
    rank: int = 0
    world_size: int = 1
    pin: bool = False
    others: tuple[tuple[str | Path, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not self.cases:
            raise Refusal(f"{self.index_path}: no case to read: check the split")
        if self.batch_size % self.world_size:
            raise Refusal(
                f"a batch of {self.batch_size} cannot be shared by {self.world_size} processes: make it a multiple"
            )
        if self.foreground and not self.labels:
            raise ValueError("foreground sampling looks at labels; pretraining must not")
        for index, cases in ((self.index_path, self.cases), *self.others):
            known = {case["case"]: case for case in cache.read_index(index)["cases"]}
            for case in cases:
                if case not in known:
                    raise Refusal(f"{index} has no case '{case}': rerun 'prepare' and 'split'")
                if self.labels and known[case]["label"] is None:
                    raise Refusal(f"{index}: case '{case}' has no labels: take it out of the training list")

    def case_at(self, position: int) -> tuple[str | Path, str]:
        """Names the case, with its index, at a position of the endless sequence of passes through all."""
        count = len(self.cases) + sum(len(cases) for _, cases in self.others)
        turn, place = divmod(position, count)
        place = _order(self.seed, turn, count)[place]
        for index, cases in ((self.index_path, self.cases), *self.others):
            if place < len(cases):
                return index, cases[place]
            place -= len(cases)
        raise IndexError(position)

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
        if self.workers != "auto":
            yield from _stream(self, self.workers)
            return
        # Batches do not depend on who reads them, so the first ones are read here and timed.
        seen = min(self.start_step + PROBED, self.steps)
        reading_s, using_s = [], []
        began = time.perf_counter()
        for batch in _stream(replace(self, steps=seen), 0):
            reading_s.append(time.perf_counter() - began)
            yield batch
            began += reading_s[-1]
            using_s.append(time.perf_counter() - began)
            began = time.perf_counter()
        if seen < self.steps:
            rest = replace(self, start_step=seen)
            yield from _stream(rest, workers_for(median(reading_s), median(using_s), self.cores))


def workers_for(reading_s: float, using_s: float, cores: int) -> int:
    """Says how many processes must read so that nobody waits for batches: a fifth more than the times ask for.

    None where a single core is free, which the reader would share, and none where reading is a hundredth of the work.

    Args:
        reading_s: seconds to read a batch.
        using_s: seconds that a training step takes with it.
        cores: processor cores, that of the training included.
    """
    if cores < 2 or reading_s < 0.01 * using_s:
        return 0
    return min(cores - 1, math.ceil(1.2 * reading_s / max(using_s, 1e-6)))


def _stream(plan: Regions, workers: int) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    for read in DataLoader(
        _Steps(plan),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        # Spawn: a forked worker would inherit Blosc2's and torch's thread pools without their threads.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_ignore_signals if workers else None,
        pin_memory=plan.pin,
    ):
        if isinstance(read, Exception):
            raise read
        yield read


def _ignore_signals(worker: int) -> None:
    """Lets a signal to the whole process group reach the main process alone, which finishes its step and saves.

    Workers end when the main process tells them to, or is gone.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


regions = Regions  # called like a function: `for step, key_B, batch in regions(...)`


class _Steps(Dataset[tuple[int, Tensor, dict[str, Tensor]] | Refusal | Resumable]):
    """Maps i to the batch of step `start_step + i`, or to why it cannot be read; all that a worker process needs.

    What a worker raises reaches the main process with its traceback as the message; what it returns, as it is.
    """

    def __init__(self, plan: Regions) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, item: int) -> tuple[int, Tensor, dict[str, Tensor]] | Refusal | Resumable:
        try:
            return self._batch(self.plan.start_step + item)
        except (Refusal, Resumable) as error:
            return error

    def _batch(self, step: int) -> tuple[int, Tensor, dict[str, Tensor]]:
        plan = self.plan
        slot_B = torch.arange(plan.rank, plan.batch_size, plan.world_size)
        key_B = chance.keys(plan.seed, step, slot_B)
        draws = _draw(key_B)
        samples = [
            _read(plan, *plan.case_at(step * plan.batch_size + int(slot)), draw)
            for slot, draw in zip(slot_B, draws, strict=True)
        ]
        return step, key_B, _stack(samples)


@dataclass(frozen=True)
class _Draw:
    """The numbers in [0, 1) that choose one sample's box."""

    place: tuple[float, ...]
    foreground: float
    number: float
    voxel: float


def _draw(key_B: Tensor) -> list[_Draw]:
    place = chance.uniform(key_B, "region/place", (3,)).tolist()
    rest = chance.uniform(key_B, "region/foreground", (3,)).tolist()
    return [_Draw(tuple(p), *r) for p, r in zip(place, rest, strict=True)]


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> list[int]:
    key_B = chance.keys(seed, turn, torch.tensor([0]))
    order: list[int] = chance.permutation(key_B, "region/case order", count)[0].tolist()
    return order


def _read(plan: Regions, index: str | Path, case: str, draw: _Draw) -> dict[str, Any]:
    """Reads one sample."""
    opened = cache.open_case(index, case)
    size = _size(plan.region, opened)
    lo = _scaled(draw.place, opened.shape_zyx, size)
    if plan.labels and draw.foreground < plan.foreground:
        present = [number for number, voxels in enumerate(opened.class_voxels, 1) if voxels]
        if present:
            places = opened.places(present[int(draw.number * len(present))])
            centre = places[int(draw.voxel * len(places))]
            lo = _clamped(tuple(int(c) - s // 2 for c, s in zip(centre, size, strict=True)), opened.shape_zyx, size)
    box, valid_lo, valid_hi = opened.read(lo, size)
    sample = {"box": box, "lo": valid_lo, "hi": valid_hi, "quantum": opened.quantum, "spacing": opened.spacing_zyx_mm}
    if plan.labels:
        sample["labels"] = opened.read_label(lo, size)
    return sample


def _size(region: Region, opened: cache.Case) -> Zyx:
    size: tuple[int, ...] = region.size_vox
    if region.size_mm is not None:
        size = tuple(max(1, round(mm / s)) for mm, s in zip(region.size_mm, opened.spacing_zyx_mm, strict=True))
    if region.whole:
        size = tuple(min(n, s) for n, s in zip(opened.shape_zyx, size, strict=True))
    z, y, x = size
    return z, y, x


def _scaled(place: tuple[float, ...], shape_zyx: Zyx, size_zyx: Zyx) -> Zyx:
    """Turns numbers in [0, 1) into a box's first voxel; negative where the volume is smaller than the box."""
    z, y, x = (
        min(0, n - size) + min(int(u * (abs(n - size) + 1)), abs(n - size))
        for u, n, size in zip(place, shape_zyx, size_zyx, strict=True)
    )
    return z, y, x


def _clamped(lo_zyx: tuple[int, ...], shape_zyx: Zyx, size_zyx: Zyx) -> Zyx:
    """Moves a box to where it holds as much of the volume as it can."""
    z, y, x = (
        min(max(lo, min(0, n - size)), max(0, n - size))
        for lo, n, size in zip(lo_zyx, shape_zyx, size_zyx, strict=True)
    )
    return z, y, x


def _stack(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stacks samples; boxes of different sizes (whole volumes) are padded at the end."""
    size = tuple(max(sample["box"].shape[1 + axis] for sample in samples) for axis in range(3))
    batch = {
        "region_BCZYX": torch.from_numpy(_padded([sample["box"] for sample in samples], size)),
        "quantum_B": torch.tensor([sample["quantum"] for sample in samples], dtype=torch.float32),
        "spacing_mm_B3": torch.tensor([sample["spacing"] for sample in samples], dtype=torch.float32),
        "valid_lo_B3": torch.tensor([sample["lo"] for sample in samples], dtype=torch.int64),
        "valid_hi_B3": torch.tensor([sample["hi"] for sample in samples], dtype=torch.int64),
    }
    if "labels" in samples[0]:
        batch["labels_BZYX"] = torch.from_numpy(_padded([sample["labels"] for sample in samples], size))
    return batch


def _padded(boxes: list[Any], size: tuple[int, ...]) -> Any:
    if all(box.shape[-3:] == size for box in boxes):
        return np.stack(boxes)
    out = np.zeros((len(boxes), *boxes[0].shape[:-3], *size), boxes[0].dtype)
    for place, box in zip(out, boxes, strict=True):
        z, y, x = box.shape[-3:]
        place[..., :z, :y, :x] = box
    return out
