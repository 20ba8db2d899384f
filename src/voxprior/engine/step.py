"""One optimiser step, and what it is made of: recipe, parameter groups, reduced loss terms.

A model offers `views`, `forward` and `after_step` (`methods/contract.py`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from voxprior.engine import fsdp
from voxprior.engine import group as processes
from voxprior.engine.device import Upload, autocast
from voxprior.engine.flops import counter
from voxprior.engine.lars import Lars
from voxprior.engine.recompute import recompute_blocks
from voxprior.errors import Refusal
from voxprior.maths import crops
from voxprior.maths.batch import Batch, Term
from voxprior.maths.schedules import progress_of, warmup_cosine

Rules = Mapping[str, Mapping[str, float]]
GRAPHS = "graphs"


class Recipe(Protocol):
    """Optimiser with linear warm-up and half-cosine decay: the fields of `configuration.Recipe`."""

    optimiser: Literal["adamw", "lars"]
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    momentum: float
    trust: float
    warmup: float
    clip: float | None


@dataclass(frozen=True)
class Plan:
    """How long a run is and where it works. Only its own state is resumed: that of its card, and of what it `reads`.

    `compiler`: the backend by which torch compiles the model's networks, `graphs` for inductor with CUDA graphs; None:
    they run as they are written. `recompute`: blocks are computed twice and keep less in memory. Neither changes what
    is computed, so neither is on the card.
    """

    total_steps: int
    recipe: Recipe
    card_hash: str
    work: Path
    device: torch.device
    precision: str = "fp32"
    label: str = "train"
    save_every_s: float = 300.0
    rules: Rules | None = None
    compiler: str | None = None
    recompute: bool = False
    reads: str = ""

    @property
    def key(self) -> str:
        """Names the run for its states: the card says nothing of the cases, and another list of them is another run."""
        return f"{self.card_hash} {self.reads}".strip()

    @property
    def log_every(self) -> int:
        """Steps from one logged step to the next: about 200 lines a run, and 50 steps at most.

        A reading of the loss makes the host wait for the device; between two of them nothing does.
        """
        return max(1, min(50, self.total_steps // 200))

    @property
    def counted_steps(self) -> tuple[int, ...]:
        """Steps whose operations are counted: the first, and the one in the middle; the last where parts join late.

        A schedule may leave work out at the start, as a teacher whom nobody asks yet.
        """
        late = any(rule.get("from") for rule in (self.rules or {}).values())
        return (0, self.total_steps // 2, *([self.total_steps - 1] if late else []))


def parameter_groups(model: nn.Module, recipe: Recipe, rules: Rules | None = None) -> list[dict[str, Any]]:
    """Groups the trainable parameters: no weight decay on biases, norms (one dimension) and learnt tokens.

    Args:
        model: parameters are found in the order of `named_parameters`.
        recipe: gives the rate and the decay; of LARS also `adapt`, False for the same ones.
        rules: a method's own: regular expression searched in the name -> {"rate": factor, "decay": value, "from":
            share of the run}; the first that fits counts. A rate of 0 freezes: nothing is computed for it. `from`
            freezes until then.
    """
    groups: dict[tuple[float, float, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rule = next((rule for pattern, rule in (rules or {}).items() if re.search(pattern, name)), {})
        rate = rule.get("rate", 1.0)
        parameter.requires_grad_(parameter.requires_grad and rate > 0)
        if parameter.requires_grad:
            plain = parameter.dim() > 1 and not name.endswith(("bias", "token", "tokens"))
            decay = rule.get("decay", recipe.weight_decay if plain else 0.0)
            adapt = plain or recipe.optimiser != "lars"
            groups.setdefault((rate, decay, adapt, rule.get("from", 0.0)), []).append(parameter)
    return [
        {"params": found, "rate": rate, "weight_decay": decay, "adapt": adapt, "from": share}
        for (rate, decay, adapt, share), found in groups.items()
    ]


def optimiser_of(model: nn.Module, recipe: Recipe, rules: Rules | None = None) -> torch.optim.Optimizer:
    """Makes the recipe's optimiser of the trainable parameters."""
    groups = parameter_groups(model, recipe, rules)
    if recipe.optimiser == "lars":
        return Lars(groups, recipe.lr, recipe.momentum, recipe.trust)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _on(device: torch.device, count: Tensor | float) -> Tensor:
    """Brings a count to the device: one that the host knows is filled in there, for a copy would make it wait."""
    if isinstance(count, Tensor) and count.device == device:
        return count.float()
    return torch.full((), float(count), device=device)


def reduce_terms(terms: Mapping[str, Term]) -> tuple[Tensor, Tensor, list[str]]:
    """Adds the loss terms, each `weight * sum / count` over all processes.

    Returns:
        The part of the loss that this process differentiates (the parts of all processes add up to the loss, so their
        gradients are summed, not averaged); the values (1 + terms,) of the loss and of each term, detached, the same
        on every process; the terms' names. A term that counts nothing is 0; a term of weight 0 is logged and no more.
    """
    sums = torch.stack([term.sum.float() for term in terms.values()])
    counts = torch.stack([_on(sums.device, term.count) for term in terms.values()])
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


class Reduced(nn.Module):
    """A model with its terms reduced: what several processes call as one module, whose output is the loss itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, views: Any, progress: float) -> tuple[Tensor, Tensor, list[str]]:
        """Returns what `reduce_terms` makes of the model's terms."""
        return reduce_terms(self.model(views, progress))


def _own(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wraps a forward pass in a function of ours: torch does not compile calls that begin in its own modules.

    Each has code of its own: torch counts compilations per code, and gives up at the eighth.
    """

    def called(*arguments: Any, **options: Any) -> Any:
        return forward(*arguments, **options)

    called.__code__ = called.__code__.replace(co_name=f"called_{name}")
    return called


def networks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Finds the networks that a model is made of, by their names, and the parts that say `compiled = True`."""
    for name, part in model.named_children():
        if type(part).forward is nn.Module.forward or isinstance(part, nn.ModuleList | nn.ModuleDict):
            yield from networks(part)
        elif any(True for _ in part.parameters()) or getattr(part, "compiled", False):
            yield name, part


def compile_networks(model: nn.Module, backend: str) -> None:
    """Has torch compile the networks that a model is made of, in place, each when it is first called.

    The networks and not the model: what a method decides between them, from `progress` or from a count that follows
    it, is Python that changes from step to step, and every change would compile the model again. Networks see tensors
    of a few fixed shapes. Parts without weights are compiled where they say `compiled = True`. Names of parameters stay
    as they are.

    `graphs`: inductor, and the kernels of each network are replayed as a CUDA graph, for steps so small that launching
    them takes longer than running them. What torch's graph trees ask for, and why it holds here:
    - A graph is recorded for fixed shapes, strides and addresses of weights: networks see the same in every step (a
      test), and optimiser, teacher and loaded states write weights in place.
    - A network may be called several times before the backward pass: each call is a node of its own in a tree, and
      what an earlier one gave stays valid while anybody holds it.
    - Outputs and gradients are written over in the next step, which `cudagraph_mark_step_begin` announces: none
      outlives its step (a test). Gradients are set to None, a teacher's answer is a copy.
    - Operations on the host inside a network would end the graph there: there are none (a test).
    - Recomputed blocks are part of the backward graph. Gradients that other processes add to were not tried.
    Source: torch 2.13, `torch/_inductor/cudagraph_trees.py`, its header and `CUDAGraphTreeManager`.
    """
    how: dict[str, Any] = {"backend": backend, "dynamic": False}
    if backend == GRAPHS:
        how |= {"backend": "inductor", "options": {"triton.cudagraphs": True}}
    for name, part in networks(model):
        part.forward = torch.compile(_own(part.forward, name), **how)


def as_written(compiled: bool = True) -> AbstractContextManager[Any]:
    """Has compiled networks run as they are written; does nothing, and imports no compiler, where none is."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class Learner:
    """A model and its optimiser on their device: takes steps, with those of the other processes where there are any."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.divided = fsdp.wanted(model)
        model = fsdp.copy_of(model, plan.device) if self.divided else model.to(plan.device)
        self.model: Any = model.train()  # with the contract's methods, which nn.Module lacks
        self.plan = plan
        if plan.device.type == "cpu" and plan.precision == "fp32" and not self.divided:
            # Channels beside one another in memory: 5 to 30 % off a convolutional step in float32. In bfloat16 the same
            # costs up to half a step more, and on a GPU it was not measured. FSDP2 divides no such weights.
            model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.reduced: nn.Module = Reduced(model)
        if self.divided:
            fsdp.divide(self.reduced, plan.device)
        self.optimiser = optimiser_of(model, plan.recipe, plan.rules)
        self.parameters: list[nn.Parameter] = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.rate = 0.0  # of what learns in the ordinary way
        self.flops = 0  # of the costliest step that was counted, over all processes
        self.member = processes.member()
        # The first step with a loss or gradient that is not finite; on the device, read where the loss is read.
        self.broken = torch.full((), -1, dtype=torch.int64, device=plan.device)
        self.upload = Upload(plan.device)
        if plan.recompute:
            recompute_blocks(model)
        crops.allow_kernel(plan.compiler is not None)
        if plan.compiler is not None:
            compile_networks(model, plan.compiler)

    def step(self, step: int, key_B: Tensor, batch: Batch) -> tuple[Tensor, list[str]]:
        """Takes one optimiser step: returns the values (loss, terms ..., gradient norm), on the device, and names.

        Raises:
            Refusal: the networks could not be compiled. They are not run uncompiled instead: nobody would notice.
        """
        key_B, batch = self.upload(key_B, batch)
        if self.plan.compiler == GRAPHS:
            # What the graphs gave in the step before may be written over from here on; nothing of it is kept.
            torch.compiler.cudagraph_mark_step_begin()
        if self.plan.compiler is None:
            return self._see_and_learn(step, key_B, batch)
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._see_and_learn(step, key_B, batch)
        except TorchDynamoException as error:
            said = " ".join(str(error).split("Set TORCHDYNAMO")[0].split())
            raise Refusal(
                f"{self.plan.label}: torch could not compile the networks ({said}): use --no-compile"
            ) from error
        except RuntimeError as error:
            # "operation not permitted when stream is capturing", "CUDAGraphs that has been overwritten", ...
            if self.plan.compiler != GRAPHS or not re.search("captur|cuda ?graph", str(error), re.IGNORECASE):
                raise
            said = " ".join(str(error).split())[:300]
            raise Refusal(f"{self.plan.label}: no CUDA graphs here ({said}): use --compile on") from error

    def _see_and_learn(self, step: int, key_B: Tensor, batch: Batch) -> tuple[Tensor, list[str]]:
        """Makes the views and learns from them; counts the operations of some steps."""
        views = self.views(key_B, batch)
        if step not in self.plan.counted_steps:
            return self._learn(step, views)
        # Uncompiled: the counter sees the operations that torch executes, not what a compiler makes of them. Views are
        # not counted: how many samples an augmentation works on depends on the device.
        with counter() as counted, as_written():
            values = self._learn(step, views)
        self.flops = max(self.flops, counted.get_total_flops() * self.member.size)
        return values

    def views(self, key_B: Tensor, batch: Batch) -> Any:
        """Makes what the step sees, from a batch on the device."""
        with torch.no_grad():
            return self.model.views(batch, key_B)

    def _set_rates(self, step: int) -> None:
        """Gives each group its rate. One that joins later has a cycle of its own in what is left of the run."""
        recipe, total = self.plan.recipe, self.plan.total_steps
        self.rate = recipe.lr * warmup_cosine(step, total, recipe.warmup)
        for group in self.optimiser.param_groups:
            joins = round(group.get("from", 0.0) * total)  # a state of an older version has none
            awake = step >= joins
            if joins and group["params"][0].requires_grad != awake:
                for parameter in group["params"]:  # without a gradient the optimiser leaves it alone
                    parameter.requires_grad_(awake)
            factor = warmup_cosine(step - joins, total - joins, recipe.warmup) if awake else 0.0
            group["lr"] = recipe.lr * group["rate"] * factor

    def _learn(self, step: int, views: Any) -> tuple[Tensor, list[str]]:
        model, plan, at = self.model, self.plan, progress_of(step, self.plan.total_steps)
        self._set_rates(step)
        with autocast(plan.device, plan.precision):
            loss, values, names = self.reduced(views, at)
        loss.backward()
        first = self.member.size > 1 and not self.divided and isinstance(self.reduced, Reduced)
        all_used = first and processes.add_gradients(self.parameters)
        norm = self._clip()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if first:
            for parameter in self.parameters:
                parameter.requires_grad_(True)  # those that join later belong to it too
            self.reduced = processes.summing(self.reduced, all_used)
        model.after_step(at, plan.total_steps)
        bad = ~torch.isfinite(values[0] + norm) & (self.broken < 0)
        self.broken.masked_fill_(bad, step)
        return torch.cat([values, norm.detach()[None].float()]), [*names, "grad_norm"]

    def _clip(self) -> Tensor:
        """Shortens the gradient to the recipe's length, if it has one; returns its norm before."""
        if self.plan.recipe.clip is None:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None], foreach=True)
        else:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.plan.recipe.clip, foreach=True)
        whole: Any = norm
        return whole.full_tensor() if fsdp.is_part(norm) else norm
