"""The training loop, one for pretraining and fine-tuning.

A model offers `views`, `forward` and `after_step` (`methods/contract.py`); batches come as (step, key_B, batch) from a
factory that can start at any step, and chance comes from the keys. So weights, optimiser and step number are all that a
run is, and a resumed run equals an uninterrupted one bit for bit.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from voxprior.engine import fsdp, group
from voxprior.engine import state as states
from voxprior.engine.device import peak_flops
from voxprior.engine.energy import Meter
from voxprior.engine.journal import Damaged, Journal, Nowhere, progress
from voxprior.engine.step import Learner, Plan, as_written
from voxprior.errors import Refusal, Resumable
from voxprior.maths.batch import Batch
from voxprior.maths.schedules import progress_of

Batches = Callable[[int], Iterable[tuple[int, Tensor, Batch]]]


@dataclass(frozen=True)
class Outcome:
    """What a finished run tells: the last journal record, training time of all its parts, cost of a step, steps.

    `device_seconds` and `energy_joules` are added up over processes, whose number `processes` is at the end; None:
    the device does not count its energy.
    """

    final: dict[str, Any]
    seconds: float
    flops_per_step: int
    steps: int = 0
    device_seconds: float = 0.0
    processes: int = 1
    energy_joules: float | None = None


@dataclass(frozen=True)
class Watch:
    """Looks at a run on cases that it does not learn from, and may end it; never on those that it is judged by.

    times: how often, in equal steps, the last time at the end. measure: (model) -> numbers for the journal, larger is
    better in the first of them, none where there is nothing to see; every process is asked, and all must say the same.
    patience: so many times without a better one end the run; 0: never.
    """

    times: int
    measure: Callable[[nn.Module], dict[str, float]]
    patience: int = 0

    def due(self, step: int, total: int) -> bool:
        """Tells whether to look after this step."""
        return (step + 1) * self.times // total > step * self.times // total


Found = tuple[int, dict[str, Any], list[Journal]]


def _newest(plan: Plan) -> Found:
    """Finds the newest good state and opens the journals where it was: (next step, its content, [journal, clock])."""
    paths = [plan.work / "journal.jsonl", plan.work / "clock.jsonl"]
    for step, saved in states.candidates(plan.work, plan.key, plan.device):
        try:
            journals = [Journal(path, mark) for path, mark in zip(paths, saved["marks"], strict=True)]
        except Damaged as damage:
            print(f"voxprior: {damage}: the state of step {step} is not used", file=sys.stderr)
            continue
        print(f"voxprior: {plan.label} goes on at step {step} of {plan.total_steps}", file=sys.stderr)
        return step, saved, journals
    return 0, {}, [Journal(path) for path in paths]


def _resume(plan: Plan) -> Found:
    """Finds where the run goes on: process 0 judges the states and writes, all others read the one that it took."""
    first = group.member().rank == 0
    found = _newest(plan) if first else (0, {}, [Nowhere(), Nowhere()])
    step = group.first_says(lambda: found[0])
    if first or not step:
        return found
    return step, states.of_step(plan.work, step, plan.device), found[2]


class _Run(Learner):
    """One run in hand: a learner, its journals, and what is needed to save them."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.start, saved, (self.journal, self.clock) = _resume(plan)
        if saved:
            model.load_state_dict(saved["model"])
        super().__init__(model, plan)
        self.given = model
        if saved and self.divided:
            fsdp.load_optimiser(self.optimiser, saved["optimiser"])
        elif saved:
            self.optimiser.load_state_dict(saved["optimiser"])
        self.told: dict[str, Any] = saved.get("told", {"seconds": 0.0, "flops": 0, "final": {}})
        self.flops = self.told["flops"]
        self.done = self.start
        if self.told.get("ended"):
            self.start = plan.total_steps
        self.peak = peak_flops(plan.device, plan.precision)
        before = self.told.get("joules") if self.start else 0.0
        self.meter = Meter(plan.device, 0.0 if self.member.rank and before is not None else before)
        self.began = self.saved = time.monotonic()
        self.waited = 0.0

    def timed(self, batches: Iterable[tuple[int, Tensor, Batch]]) -> Iterator[tuple[int, Tensor, Batch]]:
        """Hands batches through and adds up how long they were waited for."""
        rest, asked = iter(batches), time.monotonic()
        for item in rest:
            self.waited += time.monotonic() - asked
            yield item
            asked = time.monotonic()

    def seconds(self) -> float:
        """Training time so far, over all parts of an interrupted run."""
        return self.told["seconds"] + time.monotonic() - self.began

    def device_seconds(self) -> float:
        """The same, added up over processes, of which another part of the run may have had another number."""
        before = self.told.get("device_seconds", self.told["seconds"])
        return float(before + (time.monotonic() - self.began) * self.member.size)

    def log(self, step: int, values: Tensor, names: list[str], voxels: int, seen: dict[str, float]) -> None:
        """Writes the step to the journal and the clock; the one place where the host waits for the device.

        Raises:
            Refusal: a loss or gradient was not finite.
        """
        read = values.tolist()
        self.check()
        record = {"step": step, "progress": progress_of(step, self.plan.total_steps), "loss": read[0]}
        record |= dict(zip(names[:-1], read[1:-1], strict=True))
        record |= {"lr": self.rate, "grad_norm": read[-1], **seen}
        self.journal.write(record)
        self.told["final"] = record
        took = (time.monotonic() - self.began) / (step + 1 - self.start)
        speed = {"voxels_per_second": voxels / took, "waited": self.waited / (took * (step + 1 - self.start))}
        if self.peak is not None:
            speed["mfu"] = self.flops / took / (self.peak * self.member.size)
        seen = {"step": step, "seconds": self.seconds(), "voxels_seen": (step + 1) * voxels}
        self.clock.write(seen | speed)

    def look(self, watch: Watch) -> dict[str, float]:
        """Measures the model as it is; uncompiled, for its other mode and sizes are not worth compiling."""
        opened = fsdp.opened(self.reduced) if self.divided else nullcontext()
        with opened, as_written(self.plan.compiler is not None):
            return watch.measure(self.model)

    def consider(self, seen: dict[str, float], patience: int) -> None:
        """Notes whether what was seen is better than before, and that the run has ended where it was not for long."""
        value = next(iter(seen.values()))
        better = value > self.told.get("best", float("-inf"))
        self.told |= {"best": value, "since": 0} if better else {"since": self.told["since"] + 1}
        self.told["ended"] = 0 < patience <= self.told["since"]

    def check(self) -> None:
        """Raises a Refusal that names the step where the loss or the gradient was first not finite."""
        if (step := int(self.broken)) >= 0:
            raise Refusal(
                f"{self.plan.label}: the loss or its gradient is not finite at step {step} of {self.plan.total_steps}: "
                "lower the learning rate in the recipe, or use precision fp32"
            )

    def save(self, step: int) -> None:
        """Saves the state from which `step` is the next one. Process 0 writes it; any number can go on from it."""
        self.check()
        content = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        content = fsdp.whole(content) if self.divided else content
        joules = group.added(self.meter.joules())
        if self.member.rank == 0:
            seconds = {"seconds": self.seconds(), "device_seconds": self.device_seconds()}
            told = {**self.told, **seconds, "flops": self.flops, "joules": joules}
            marks = [self.journal.mark(), self.clock.mark()]
            states.save(self.plan.work, self.plan.key, step, {**content, "marks": marks, "told": told})
        self.saved = time.monotonic()

    def outcome(self) -> Outcome:
        """Tells how the run ended, and hands its weights to the model that was given."""
        if self.divided:
            self.given.load_state_dict(fsdp.whole(self.model.state_dict()))
        times, joules = (self.seconds(), self.device_seconds()), group.added(self.meter.joules())
        return Outcome(self.told["final"], times[0], self.flops, self.done, times[1], self.member.size, joules)


def train(model: nn.Module, batches: Batches, plan: Plan, watch: Watch | None = None) -> Outcome:
    """Trains the model in place, from the newest good state in `plan.work` if there is one.

    Args:
        model: offers `views`, `forward`, `after_step` and `student_voxels`.
        batches: `batches(start_step)` yields (step, key_B, batch) from there to the last step: this process's share.
        plan: length, recipe, device, working folder.
        watch: what is measured now and then on other cases.

    Raises:
        Resumable: SIGTERM, SIGUSR1 or SIGINT came to any of the processes, or one of them is gone; a state is saved
            and the same call goes on from there.
        Refusal: the loss is not finite; the sentence names the step.
    """
    with states.Stop() as stop:
        run = _Run(model, plan)
        try:
            stream = run.timed(batches(run.start))
            if run.member.rank == 0:
                stream = progress(stream, plan.total_steps, plan.label, run.start)
            for step, key_B, batch in stream:
                values, names = run.step(step, key_B, batch)
                seen = run.look(watch) if watch and watch.due(step, plan.total_steps) else {}
                if watch and seen:
                    run.consider(seen, watch.patience)
                last = step == plan.total_steps - 1 or bool(run.told.get("ended"))
                run.done = step + 1
                if last or seen or step % plan.log_every == 0:
                    samples = key_B.shape[0] * run.member.size
                    run.log(step, values, names, samples * run.model.student_voxels, seen)
                asked, due = group.agree(stop.asked, time.monotonic() - run.saved > plan.save_every_s)
                if last or asked or due:
                    run.save(step + 1)
                if asked and not last:
                    raise Resumable(f"{plan.label} was stopped by {asked} after step {step}, its state is saved")
                if last:
                    break
        except RuntimeError as error:
            if group.was_lost(error):
                raise Resumable(f"{plan.label}: another of its processes is gone, an earlier state is saved") from error
            if not stop.asked:
                raise
            # The signal killed the loader's workers while they started, before they ignore it. The step in hand may be
            # half done: the last state counts.
            raise Resumable(f"{plan.label} was stopped by {stop.asked}, an earlier state is saved") from error
        finally:
            run.journal.close()
            run.clock.close()
    return run.outcome()
