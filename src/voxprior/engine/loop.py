"""The training loop, one for pretraining and fine-tuning.

A model offers `views`, `forward` and `after_step` (`methods/contract.py`); batches come as (step, key_B, batch) from a
factory that can start at any step, and chance comes from the keys. So weights, optimiser and step number are all that a
run is, and a resumed run equals an uninterrupted one bit for bit.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from voxprior.engine import state as states
from voxprior.engine.device import peak_flops
from voxprior.engine.journal import Damaged, Journal, progress
from voxprior.engine.step import Learner, Plan
from voxprior.errors import Refusal, Resumable
from voxprior.maths.batch import Batch
from voxprior.maths.schedules import progress_of

Batches = Callable[[int], Iterable[tuple[int, Tensor, Batch]]]


@dataclass(frozen=True)
class Outcome:
    """What a finished run tells: the last journal record, training time of all its parts, cost of a step, steps."""

    final: dict[str, Any]
    seconds: float
    flops_per_step: int
    steps: int = 0


@dataclass(frozen=True)
class Watch:
    """Looks at a run on cases that it does not learn from, and may end it; never on those that it is judged by.

    times: how often, in equal steps, the last time at the end. measure: (model) -> numbers for the journal, larger is
    better in the first of them, none where there is nothing to see. patience: so many times without a better one end
    the run; 0: never.
    """

    times: int
    measure: Callable[[nn.Module], dict[str, float]]
    patience: int = 0

    def due(self, step: int, total: int) -> bool:
        """Tells whether to look after this step."""
        return (step + 1) * self.times // total > step * self.times // total


def _resume(
    model: nn.Module, optimiser: torch.optim.Optimizer, plan: Plan
) -> tuple[int, dict[str, Any], list[Journal]]:
    """Brings model, optimiser and journals to where the newest good state was: (next step, told, [journal, clock])."""
    paths = [plan.work / "journal.jsonl", plan.work / "clock.jsonl"]
    for step, saved in states.candidates(plan.work, plan.key, plan.device):
        try:
            journals = [Journal(path, mark) for path, mark in zip(paths, saved["marks"], strict=True)]
        except Damaged as damage:
            print(f"voxprior: {damage}: the state of step {step} is not used", file=sys.stderr)
            continue
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        print(f"voxprior: {plan.label} goes on at step {step} of {plan.total_steps}", file=sys.stderr)
        return step, saved["told"], journals
    return 0, {"seconds": 0.0, "flops": 0, "final": {}}, [Journal(path) for path in paths]


class _Run(Learner):
    """One run in hand: a learner, its journals, and what is needed to save them."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.start, self.told, (self.journal, self.clock) = _resume(model, self.optimiser, plan)
        self.flops = self.told["flops"]
        self.done = self.start
        if self.told.get("ended"):
            self.start = plan.total_steps
        self.peak = peak_flops(plan.device, plan.precision)
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
            speed["mfu"] = self.flops / took / self.peak
        seen = {"step": step, "seconds": self.seconds(), "voxels_seen": (step + 1) * voxels}
        self.clock.write(seen | speed)

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
        """Saves the state from which `step` is the next one."""
        self.check()
        told = {**self.told, "seconds": self.seconds(), "flops": self.flops}
        marks = [self.journal.mark(), self.clock.mark()]
        content = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        states.save(self.plan.work, self.plan.key, step, {**content, "marks": marks, "told": told})
        self.saved = time.monotonic()


def train(model: nn.Module, batches: Batches, plan: Plan, watch: Watch | None = None) -> Outcome:
    """Trains the model in place, from the newest good state in `plan.work` if there is one.

    Args:
        model: offers `views`, `forward`, `after_step` and `student_voxels`.
        batches: `batches(start_step)` yields (step, key_B, batch) from there to the last step.
        plan: length, recipe, device, working folder.
        watch: what is measured now and then on other cases.

    Raises:
        Resumable: SIGTERM, SIGUSR1 or SIGINT came; the state is saved and the same call goes on from there.
        Refusal: the loss is not finite; the sentence names the step.
    """
    with states.Stop() as stop:
        run = _Run(model, plan)
        try:
            for step, key_B, batch in progress(run.timed(batches(run.start)), plan.total_steps, plan.label, run.start):
                values, names = run.step(step, key_B, batch)
                seen = watch.measure(run.model) if watch and watch.due(step, plan.total_steps) else {}
                if watch and seen:
                    run.consider(seen, watch.patience)
                last = step == plan.total_steps - 1 or bool(run.told.get("ended"))
                run.done = step + 1
                if last or seen or step % plan.log_every == 0:
                    run.log(step, values, names, key_B.shape[0] * run.model.student_voxels, seen)
                if last or stop.asked or time.monotonic() - run.saved > plan.save_every_s:
                    run.save(step + 1)
                if stop.asked and not last:
                    raise Resumable(f"{plan.label} was stopped by {stop.asked} after step {step}, its state is saved")
                if last:
                    break
        except RuntimeError as error:
            if not stop.asked:
                raise
            # The signal killed the loader's workers while they started, before they ignore it. The step in hand may be
            # half done: the last state counts.
            raise Resumable(f"{plan.label} was stopped by {stop.asked}, an earlier state is saved") from error
        finally:
            run.journal.close()
            run.clock.close()
    return Outcome(run.told["final"], run.seconds(), run.flops, run.done)
