from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from voxprior.configuration import Recipe
from voxprior.engine import group as processes
from voxprior.engine import step
from voxprior.engine.flops import counter
from voxprior.engine.lars import Lars
from voxprior.errors import Refusal
from voxprior.maths.batch import Term
from voxprior.maths.schedules import warmup_cosine

ADAMW = Recipe(lr=0.05, weight_decay=0.1)


class Toy(nn.Module):
    """Two networks, and between them arithmetic that follows progress."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6))
        self.heads = nn.ModuleDict({"up": nn.Linear(6, 6)})
        self.mask_token = nn.Parameter(torch.zeros(2, 6))

    def views(self, batch, key_B):
        return batch["row_BV"] + key_B[:, None] * 0.01

    def forward(self, row_BV, progress):
        out_BV = self.heads["up"](self.encoder(row_BV)) + self.mask_token.sum(0)
        hard = round(4 * progress)  # a count that Python knows, as a schedule of masks has
        error_BV = (out_BV - row_BV).square() * (1 + progress)
        if hard:
            error_BV = error_BV.topk(hard, dim=1).values
        return {"error": Term(error_BV.sum(), torch.tensor(error_BV.numel()))}

    def after_step(self, progress, total_steps): ...


def plan(total=20, recipe=ADAMW, **changes) -> step.Plan:
    return replace(step.Plan(total, recipe, "card", Path(), torch.device("cpu")), **changes)


def losses(steps: range, **changes) -> list[float]:
    torch.manual_seed(0)
    learner = step.Learner(Toy(), plan(**changes))
    row_BV = torch.linspace(-1, 1, 24).reshape(4, 6)
    return [float(learner.step(at, torch.arange(4), {"row_BV": row_BV})[0][0]) for at in steps]


# ------------------------------------------------------------------------------------------------------------- LARS
def slow_lars(weights, gradients, plain, recipe, rates):
    """LARS in float64 NumPy, one parameter at a time."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    for rate, gradient in zip(rates, gradients, strict=True):
        for name, weight in weights.items():
            change, factor = gradient[name].astype(np.float64), 1.0
            if name in plain:
                change = change + recipe.weight_decay * weight
                length, pull = np.sqrt((weight**2).sum()), np.sqrt((change**2).sum())
                factor = recipe.trust * length / pull if length > 0 and pull > 0 else 1.0
            velocity[name] = recipe.momentum * velocity[name] + factor * change
            weights[name] = weight - rate * velocity[name]
    return weights


def test_T14_lars_one_dimensional_parameters_get_no_decay_and_trust_ratio_1():
    torch.manual_seed(1)
    model, recipe = Toy(), Recipe(lr=0.3, weight_decay=0.02, optimiser="lars")
    plain = {"encoder.0.weight", "encoder.2.weight", "heads.up.weight"}
    before = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    optimiser = step.optimiser_of(model, recipe)
    assert isinstance(optimiser, Lars)
    rates, gradients = [0.1, 0.3, 0.2, 0.3], []
    for rate in rates:
        gradients.append(
            {name: np.random.default_rng(len(gradients)).normal(size=v.shape) for name, v in before.items()}
        )
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[-1][name]).float()
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    expected = slow_lars(before, gradients, plain, recipe, rates)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
    # One dimension or a learnt token: plain momentum descent, no decay.
    for name in set(before) - plain:
        velocity, weight = 0.0, before[name].astype(np.float64)
        for rate, gradient in zip(rates, gradients, strict=True):
            velocity = 0.9 * velocity + gradient[name]
            weight = weight - rate * velocity
        np.testing.assert_allclose(dict(model.named_parameters())[name].detach().numpy(), weight, rtol=2e-5, atol=1e-6)


def test_T14_lars_a_parameter_or_gradient_of_0_takes_the_factor_1():
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = Lars([{"params": [zero, still]}], lr=0.5, momentum=0.0, trust=1e-3)
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimiser.step()
    assert zero.tolist() == [[-0.5, -0.5]] * 2
    assert still.tolist() == [[1.0, 1.0]] * 2


def test_T14_lars_rate_after_warm_up_is_base_times_batch_over_256_and_the_last_is_about_0():
    batch_size, total = 128, 500
    recipe = Recipe(lr=0.2 * batch_size / 256, warmup=2 / 500, optimiser="lars", clip=None)
    rates = [recipe.lr * warmup_cosine(at, total, recipe.warmup) for at in range(total)]
    assert rates[2] == pytest.approx(0.1) == max(rates)
    assert 0 < rates[0] < rates[1] < rates[2]
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    learner = step.Learner(Toy(), plan(4, recipe))
    for at in range(4):
        learner.step(at, torch.arange(4), {"row_BV": torch.ones(4, 6)})
    assert {group["lr"] for group in learner.optimiser.param_groups} == {recipe.lr * warmup_cosine(3, 4, 2 / 500)}


def test_lars_learns_and_its_state_can_be_saved_and_loaded():
    recipe = Recipe(lr=2.0, optimiser="lars", warmup=0.0, weight_decay=1e-6, clip=None)
    found = losses(range(20), total_steps=1000, recipe=recipe)
    assert found[-1] < 0.9 * found[0]
    torch.manual_seed(0)
    model = Toy()
    optimiser = step.optimiser_of(model, recipe)
    sum(p.sum() for p in model.parameters()).backward()
    optimiser.step()
    other = step.optimiser_of(model, recipe)
    other.load_state_dict(optimiser.state_dict())
    saved, loaded = optimiser.state_dict()["state"], other.state_dict()["state"]
    assert saved and all(torch.equal(saved[at]["velocity"], loaded[at]["velocity"]) for at in saved)


# ------------------------------------------------------------------------------------------------------------- clip
def test_without_a_clip_the_norm_is_told_and_the_gradient_left_alone():
    ends = {}
    for clip in (None, 1e9, 1e-3):
        torch.manual_seed(0)
        learner = step.Learner(Toy(), plan(recipe=Recipe(lr=0.3, clip=clip, optimiser="lars", trust=1.0)))
        values, names = learner.step(0, torch.arange(4), {"row_BV": torch.ones(4, 6)})
        ends[clip] = (float(values[names.index("grad_norm") + 1]), learner.model.heads["up"].bias.detach().clone())
    assert ends[None][0] == ends[1e9][0] == ends[1e-3][0] > 1e-3
    assert torch.equal(ends[None][1], ends[1e9][1])
    assert not torch.allclose(ends[None][1], ends[1e-3][1])


# ---------------------------------------------------------------------------------------------------------- compile
def test_compiled_steps_give_the_same_losses_and_progress_compiles_nothing_again():
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    compiled = losses(range(20), compiler="aot_eager")
    assert compiled == pytest.approx(losses(range(20)), rel=1e-6)
    assert counters["stats"]["unique_graphs"] == 2, "one per network, however often progress changes"
    assert not counters["graph_break"]


def test_names_and_weights_stay_when_networks_are_compiled():
    torch.manual_seed(0)
    model = Toy()
    names = list(model.state_dict())
    step.compile_networks(model, "aot_eager")
    assert list(model.state_dict()) == names
    assert "forward" in vars(model.encoder) and "forward" in vars(model.heads["up"])
    assert "forward" not in vars(model.encoder[0]), "one graph per network, not one per layer"


def test_what_cannot_be_compiled_is_a_refusal_and_not_run_uncompiled():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    with pytest.raises(Refusal, match=r"could not compile the networks \(.*no compiler here\): use --no-compile"):
        losses(range(1, 3), compiler=broken)


# ---------------------------------------------------------------------------------------------------- terms, groups
def test_no_weight_decay_on_biases_norms_and_tokens():
    model = Toy()
    groups = step.parameter_groups(model, ADAMW)
    by_decay = {group["weight_decay"]: {id(parameter) for parameter in group["params"]} for group in groups}
    decayed = {name for name, parameter in model.named_parameters() if id(parameter) in by_decay[0.1]}
    assert decayed == {"encoder.0.weight", "encoder.2.weight", "heads.up.weight"}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_methods_rules_set_rate_and_decay():
    model = Toy()
    model.encoder[2].weight.requires_grad_(False)
    rules = {r"encoder\.0": {"rate": 0.0, "decay": 0.3}, "token": {"rate": 2.0}}
    groups = step.parameter_groups(model, ADAMW, rules)
    assert {(group["rate"], group["weight_decay"], len(group["params"])) for group in groups} == {
        (1.0, 0.0, 4),
        (1.0, 0.1, 1),
        (2.0, 0.0, 1),
    }
    assert not model.encoder[0].weight.requires_grad  # a rate of 0 costs nothing either
    before = model.encoder[0].weight.clone()
    learner = step.Learner(model, plan(rules=rules))
    learner.step(0, torch.arange(4), {"row_BV": torch.ones(4, 6)})
    assert torch.equal(model.encoder[0].weight, before)


@pytest.mark.parametrize("optimiser", ["adamw", "lars"])
def test_what_joins_later_stands_still_until_then_and_has_a_cycle_of_its_own(optimiser):
    recipe = ADAMW.model_copy(update={"optimiser": optimiser, "warmup": 0.2})
    model = Toy()
    learner = step.Learner(model, plan(recipe=recipe, rules={r"^encoder\.": {"rate": 0.5, "from": 0.3}}))
    late = [group for group in learner.optimiser.param_groups if group["from"]]
    before, head = {name: t.clone() for name, t in model.encoder.state_dict().items()}, model.heads["up"].weight.clone()
    for at in range(20):
        learner.step(at, torch.arange(4), {"row_BV": torch.linspace(-1, 1, 24).reshape(4, 6)})
        moved = [name for name, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, before[name])]
        assert len(moved) == (len(before) if at >= 6 else 0), at  # 0.3 of 20 steps
        if at == 0:
            assert not torch.equal(model.heads["up"].weight, head)
        wanted = 0.05 * 0.5 * warmup_cosine(at - 6, 14, 0.2) if at >= 6 else 0.0
        assert all(group["lr"] == pytest.approx(wanted) for group in late)
        assert learner.rate == pytest.approx(0.05 * warmup_cosine(at, 20, 0.2))


def test_terms_add_as_weighted_means_and_an_empty_one_is_0():
    a = torch.tensor([1.0, 3.0], requires_grad=True)
    terms = {
        "a": Term(a.sum(), torch.tensor(2)),
        "none": Term(a.sum() * 0, torch.tensor(0)),
        "b": Term(a[0] * 6, 3, 0.0),
    }
    loss, values, names = step.reduce_terms(terms)
    loss.backward()
    assert values.tolist() == [2.0, 2.0, 0.0, 2.0]
    assert names == ["a", "none", "b"]
    assert a.grad.tolist() == [0.5, 0.5]


class Line(nn.Module):
    """A sum of squares of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, data, progress):
        return {"a": Term((self.weight * data).pow(2).sum(), torch.tensor(len(data)), 0.5)}


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data = torch.arange(1.0, 4.0)[slice(0, 1) if rank == 0 else slice(1, 3)]
    gradients = []
    for overlapping in (False, True):
        line = step.Reduced(Line())
        called = processes.summing(line, all_used=True) if overlapping else line
        loss, values, _ = called(data, 0.0)
        loss.backward()
        if not overlapping:
            assert processes.add_gradients(list(line.parameters()))
        gradients.append(line.model.weight.grad.clone())
    torch.save((values, gradients), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_counts_give_one_process_loss_and_gradient(tmp_path):
    torch.multiprocessing.start_processes(_one_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    weight = torch.tensor([2.0], requires_grad=True)
    loss = 0.5 * (weight * torch.arange(1.0, 4.0)).pow(2).mean()
    loss.backward()
    for rank in (0, 1):
        values, gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(values, torch.stack([loss.detach(), 2 * loss.detach()]))
        for gradient in gradients:
            torch.testing.assert_close(gradient, weight.grad)


# ------------------------------------------------------------------------------------------------------------ FLOPs
@dataclass
class Sizes:
    batch: int = 2
    heads: int = 3
    queries: int = 5
    keys: int = 7
    width: int = 4


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_two_products_forward_and_four_backward_on_every_device(device):
    s = Sizes()
    query = torch.ones(s.batch, s.heads, s.queries, s.width, device=device, requires_grad=True)
    key = torch.ones(s.batch, s.heads, s.keys, s.width, device=device, requires_grad=True)
    value = torch.ones(s.batch, s.heads, s.keys, s.width, device=device, requires_grad=True)
    with counter() as counted:
        nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()
    product = 2 * s.batch * s.heads * s.queries * s.keys * s.width
    assert counted.get_total_flops() == 6 * product


def test_the_costliest_counted_step_is_told():
    class Lazy(Toy):
        def forward(self, row_BV, progress):
            return super().forward(row_BV if progress < 0.5 else torch.cat([row_BV, row_BV]), progress)

    learner = step.Learner(Lazy(), plan(20))
    told = []
    for at in range(20):
        learner.step(at, torch.arange(4), {"row_BV": torch.ones(4, 6)})
        told.append(learner.flops)
    assert told[0] == told[9] > 0
    assert told[10] == told[19] == 2 * told[0]
