"""The training loop, one for pretraining and fine-tuning.

A model offers `views`, `forward` and `after_step` (`methods/contract.py`); batches come as (step, key_B, batch) from a
factory that can start at any step, and chance comes from the keys. So weights, optimiser and step number are all that a
run is, and a resumed run equals an uninterrupted one bit for bit.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from voxprior.engine import state as states
from voxprior.engine.device import autocast
from voxprior.engine.journal import Damaged, Journal, progress
from voxprior.errors import Refusal, Resumable
from voxprior.maths.batch import Batch, Term
from voxprior.maths.schedules import progress_of, warmup_cosine

Batches = Callable[[int], Iterable[tuple[int, Tensor, Batch]]]
Rules = Mapping[str, Mapping[str, float]]


class Recipe(Protocol):
    """AdamW with linear warm-up and half-cosine decay: the fields of `configuration.Recipe`."""

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    warmup: float
    clip: float


@dataclass(frozen=True)
class Plan:
    """How long a run is and where it works. `card_hash` names it: only its own state is resumed."""

    total_steps: int
    recipe: Recipe
    card_hash: str
    work: Path
    device: torch.device
    precision: str = "fp32"
    label: str = "train"
    save_every_s: float = 300.0
    rules: Rules | None = None

    @property
    def log_every(self) -> int:
        """Steps from one logged step to the next: about 200 lines a run, and 50 steps at most.

        A reading of the loss makes the host wait for the device; between two of them nothing does.
        """
        return max(1, min(50, self.total_steps // 200))


@dataclass(frozen=True)
class Outcome:
    """What a finished run tells: the last journal record, training time of all its parts, and the cost of a step."""

    final: dict[str, Any]
    seconds: float
    flops_per_step: int


def parameter_groups(model: nn.Module, recipe: Recipe, rules: Rules | None = None) -> list[dict[str, Any]]:
    """Groups the trainable parameters: no weight decay on biases, norms (one dimension) and learnt tokens.

    Args:
        model: parameters are found in the order of `named_parameters`.
        recipe: gives the rate and the decay.
        rules: a method's own: regular expression searched in the name -> {"rate": factor, "decay": value}; the first
            that fits counts.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rule = next((rule for pattern, rule in (rules or {}).items() if re.search(pattern, name)), {})
            plain = parameter.dim() > 1 and not name.endswith(("bias", "token", "tokens"))
            decay = rule.get("decay", recipe.weight_decay if plain else 0.0)
            groups.setdefault((rule.get("rate", 1.0), decay), []).append(parameter)
    return [{"params": found, "rate": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def reduce_terms(terms: Mapping[str, Term]) -> tuple[Tensor, Tensor, list[str]]:
    """Adds the loss terms, each `weight * sum / count` over all processes.

    Returns:
        The part of the loss that this process differentiates (the parts of all processes add up to the loss, so their
        gradients are summed, not averaged); the values (1 + terms,) of the loss and of each term, detached, the same
        on every process; the terms' names. A term that counts nothing is 0; a term of weight 0 is logged and no more.
    """
    sums = torch.stack([term.sum.float() for term in terms.values()])
    counts = torch.stack([torch.as_tensor(term.count, device=sums.device).float() for term in terms.values()])
    totals = torch.stack([sums.detach(), counts.detach()])
    if dist.is_initialized():
        dist.all_reduce(totals)
    inverse = 1.0 / (totals[1] + (totals[1] == 0))

    def add(parts: Tensor) -> Tensor:
        # Weights stay Python numbers: a tensor of them would be one more copy from host to device per step.
        # A weight of 0 leaves the term out, so that a monitor's value cannot spoil the loss: 0 * inf is no number.
        weighted = [part * term.weight for part, term in zip(parts, terms.values(), strict=True) if term.weight]
        return torch.stack(weighted).sum()

    means = totals[0] * inverse
    return add(sums * inverse), torch.cat([add(means)[None], means]), list(terms)


def _sum_gradients(parameters: list[nn.Parameter]) -> None:
    if dist.is_initialized():
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)


def _resume(
    model: nn.Module, optimiser: torch.optim.Optimizer, plan: Plan
) -> tuple[int, dict[str, Any], list[Journal]]:
    """Brings model, optimiser and journals to where the newest good state was: (next step, told, [journal, clock])."""
    paths = [plan.work / "journal.jsonl", plan.work / "clock.jsonl"]
    for step, saved in states.candidates(plan.work, plan.card_hash, plan.device):
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


class _Run:
    """One run in hand: the model, its optimiser, its journals, and what is needed to save them."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model: Any = model.to(plan.device).train()  # with the contract's methods, which nn.Module lacks
        self.plan = plan
        groups = parameter_groups(model, plan.recipe, plan.rules)
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=plan.recipe.lr, betas=plan.recipe.betas, fused=True)
        self.start, self.told, (self.journal, self.clock) = _resume(model, self.optimiser, plan)
        self.began = self.saved = time.monotonic()
        # The first step with a loss or gradient that is not finite; on the device, read where the loss is read.
        self.broken = torch.full((), -1, dtype=torch.int64, device=plan.device)

    def step(self, step: int, key_B: Tensor, batch: Batch) -> tuple[Tensor, list[str]]:
        """Takes one optimiser step: returns the values (loss, terms ..., gradient norm), on the device, and names."""
        model, plan, at = self.model, self.plan, progress_of(step, self.plan.total_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = plan.recipe.lr * group["rate"] * warmup_cosine(step, plan.total_steps, plan.recipe.warmup)
        key_B = key_B.to(plan.device, non_blocking=True)
        batch = {name: tensor.to(plan.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.no_grad():
            views = model.views(batch, key_B)
        with autocast(plan.device, plan.precision):
            loss, values, names = reduce_terms(model(views, at))
        loss.backward()
        _sum_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, plan.recipe.clip, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        model.after_step(at, plan.total_steps)
        bad = ~torch.isfinite(values[0] + norm) & (self.broken < 0)
        self.broken.masked_fill_(bad, step)
        return torch.cat([values, norm.detach()[None].float()]), [*names, "grad_norm"]

    def seconds(self) -> float:
        """Training time so far, over all parts of an interrupted run."""
        return self.told["seconds"] + time.monotonic() - self.began

    def log(self, step: int, values: Tensor, names: list[str], voxels: int) -> None:
        """Writes the step to the journal and the clock; the one place where the host waits for the device.

        Raises:
            Refusal: a loss or gradient was not finite.
        """
        read = values.tolist()
        self.check()
        record = {"step": step, "progress": progress_of(step, self.plan.total_steps), "loss": read[0]}
        record |= dict(zip(names[:-1], read[1:-1], strict=True))
        record |= {"lr": self.optimiser.param_groups[0]["lr"], "grad_norm": read[-1]}
        self.journal.write(record)
        self.told["final"] = record
        took = (time.monotonic() - self.began) / (step + 1 - self.start)
        self.clock.write({"step": step, "seconds": self.seconds(), "voxels_per_second": voxels / took})

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
        told = {**self.told, "seconds": self.seconds()}
        marks = [self.journal.mark(), self.clock.mark()]
        content = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        states.save(self.plan.work, self.plan.card_hash, step, {**content, "marks": marks, "told": told})
        self.saved = time.monotonic()


def train(model: nn.Module, batches: Batches, plan: Plan) -> Outcome:
    """Trains the model in place, from the newest good state in `plan.work` if there is one.

    Args:
        model: offers `views`, `forward`, `after_step` and `student_voxels`.
        batches: `batches(start_step)` yields (step, key_B, batch) from there to the last step.
        plan: length, recipe, device, working folder.

    Raises:
        Resumable: SIGTERM, SIGUSR1 or SIGINT came; the state is saved and the same call goes on from there.
        Refusal: the loss is not finite; the sentence names the step.
    """
    with states.Stop() as stop:
        run = _Run(model, plan)
        try:
            for step, key_B, batch in progress(batches(run.start), plan.total_steps, plan.label, run.start):
                with FlopCounterMode(display=False) if step == 0 else nullcontext() as counter:
                    values, names = run.step(step, key_B, batch)
                if counter is not None:
                    run.told["flops"] = counter.get_total_flops()
                last = step == plan.total_steps - 1
                if last or step % plan.log_every == 0:
                    run.log(step, values, names, voxels=key_B.shape[0] * run.model.student_voxels)
                if last or stop.asked or time.monotonic() - run.saved > plan.save_every_s:
                    run.save(step + 1)
                if stop.asked and not last:
                    raise Resumable(f"{plan.label} was stopped by {stop.asked} after step {step}, its state is saved")
        except RuntimeError as error:
            if not stop.asked:
                raise
            # The signal killed the loader's workers while they started, before they ignore it. The step in hand may be
            # half done: the last state counts.
            raise Resumable(f"{plan.label} was stopped by {stop.asked}, an earlier state is saved") from error
        finally:
            run.journal.close()
            run.clock.close()
    return Outcome(run.told["final"], run.seconds(), run.told["flops"])
