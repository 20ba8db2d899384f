"""What CUDA graphs ask of a step, on a CPU: the same inputs in every step, and nothing that outlives its step.

`torch.compile` is replaced by something that runs a network as it is written and notes what goes in and comes out, as
`torch/_inductor/cudagraph_trees.py` looks at it: shapes, strides and types, and storages by weak references.
"""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from voxprior.configuration import Recipe
from voxprior.engine import step as steps
from voxprior.engine.estimate import META, fake_batch
from voxprior.engine.step import GRAPHS, Learner, Plan, compile_networks, reduce_terms
from voxprior.errors import Refusal
from voxprior.maths.batch import Term
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone
from voxprior.segment import model as segment

ROOT = Path(__file__).parents[2]
VIT = {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [8, 16, 24, 32, 32], "blocks": 1, "pretrained_stages": 4}
BACKBONES = [Backbone("vit", "vit", VIT), Backbone("cnn", "cnn", CNN)]
PAIRS = [(name, there) for name in METHODS for there in BACKBONES if load(name).accepts(there) is None]
PAIRS += [("finetune", there) for there in BACKBONES]
CPU, STEPS = torch.device("cpu"), range(20, 25)  # of 100, none of which is counted and so not compiled


def made(name, backbone, device=CPU):
    """Makes a model, always the same, and its batch: (model, batch, key_B)."""
    torch.manual_seed(0)
    with torch.device(device):
        if name == "finetune":
            config = segment.Config((32, 32, 32), ema=0.1)
            model = segment.Model(config, backbone.segmenter(3, config.crop_vox))
            batch, key_B = fake_batch(segment.region(config), 2, device, labels=True)
        else:
            module = load(name)
            config = module.Config(**yaml.safe_load((ROOT / f"config/methods/{name}.yaml").read_text())["tiny"])
            model = module.Model(config, backbone.encoder())
            batch, key_B = fake_batch(module.region(config, backbone), 2, device)
    if device == CPU:
        batch["region_BCZYX"].random_(0, 1000)
    return model, batch, key_B


def plan(compiler=GRAPHS):
    return Plan(100, Recipe(lr=1e-3), "card", Path(), CPU, compiler=compiler)


class Notes:
    """Stands in for `torch.compile`."""

    def __init__(self) -> None:
        self.calls: list = []
        self.given: list = []

    def __call__(self, function, **how):
        assert how == {"backend": "inductor", "dynamic": False, "options": {"triton.cudagraphs": True}}

        def noted(*arguments):
            inputs = [part for part in tree_leaves(arguments) if isinstance(part, Tensor)]
            looks = [
                (tuple(part.shape), part.stride(), part.dtype, part.requires_grad)
                if isinstance(part, Tensor)
                else repr(part)
                for part in tree_leaves(arguments)
            ]
            versions = [part._version for part in inputs if not part.is_inference()]
            result = function(*arguments)
            assert versions == [part._version for part in inputs if not part.is_inference()], "an input was changed"
            self.calls.append((function.__code__.co_name, looks, torch.is_grad_enabled()))
            held = {part.untyped_storage()._cdata for part in inputs}
            self.given += [
                (function.__code__.co_name, StorageWeakRef(part.untyped_storage()))
                for part in tree_leaves(result)
                if isinstance(part, Tensor) and part.untyped_storage()._cdata not in held
            ]
            return result

        return noted

    def outlive(self) -> list[str]:
        """Names networks whose outputs are still held."""
        return [name for name, reference in self.given if not reference.expired()]


@pytest.mark.parametrize(("name", "backbone"), PAIRS, ids=lambda given: getattr(given, "name", given))
def test_networks_see_the_same_in_every_step_and_nothing_of_theirs_outlives_it(name, backbone, monkeypatch):
    notes = Notes()
    monkeypatch.setattr(torch, "compile", notes)
    model, batch, key_B = made(name, backbone)
    learner = Learner(model, plan())
    names = {id(parameter): parameter.data_ptr() for parameter in model.parameters()}
    seen = []
    for step in STEPS:
        notes.calls, notes.given = [], []
        values, _ = learner.step(step, key_B + 100 * step, batch)
        seen.append(notes.calls)
        assert torch.isfinite(values).all()
        assert notes.given and not notes.outlive()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert names == {id(parameter): parameter.data_ptr() for parameter in model.parameters()}, "a weight moved"
    assert all(calls == seen[0] for calls in seen[1:])


@pytest.mark.parametrize(("name", "backbone"), [PAIRS[0], *PAIRS[-2:]], ids=["first", "vit", "cnn"])
def test_marking_where_a_step_begins_changes_nothing(name, backbone, monkeypatch):
    marks, told = [], {}
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(torch, "compile", Notes())
    for compiler in (None, GRAPHS):
        model, batch, key_B = made(name, backbone)
        learner = Learner(model, plan(compiler))
        told[compiler] = torch.stack([learner.step(step, key_B, batch)[0] for step in STEPS])
    assert torch.equal(told[None], told[GRAPHS])
    assert len(marks) == len(STEPS)


@pytest.mark.parametrize(("name", "backbone"), PAIRS, ids=lambda given: getattr(given, "name", given))
def test_no_network_computes_on_the_host(name, backbone):
    """A tensor of the host in a graph ends it there: torch then leaves CUDA graphs out."""
    hosts, graphs = [], []

    def look(graph, inputs):
        graphs.append(graph)
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            hosts.extend(str(node) for part in tree_leaves(value) if isinstance(part, Tensor) and part.device != META)
        return graph.forward

    torch.compiler.reset()
    model, batch, key_B = made(name, backbone, META)
    compile_networks(model, look)
    with torch.no_grad():
        views = model.views(batch, key_B)
    reduce_terms(model(views, 0.5))
    assert graphs and not hosts


class Keeps(nn.Module):
    """A model that keeps what its network gave, and hands it another size in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.student_voxels, self.kept, self.size = nn.Linear(4, 4), 1, None, 0

    def views(self, batch, key_B):
        return batch["region_BCZYX"].float()[..., :4].flatten(0, -2)

    def forward(self, row_RV, progress):
        self.size += 1
        self.kept = self.encoder(row_RV[: self.size])
        return {"a": Term(self.kept.sum(), 1)}

    def after_step(self, progress, total_steps): ...


def test_what_is_kept_and_what_changes_is_noticed(monkeypatch):
    notes = Notes()
    monkeypatch.setattr(torch, "compile", notes)
    batch, key_B = fake_batch(segment.region(segment.Config((8, 8, 8))), 2, CPU)
    learner = Learner(Keeps(), plan())
    for step in STEPS:
        learner.step(step, key_B, batch)
    assert notes.outlive() == ["called_encoder"]
    assert notes.calls[0] != notes.calls[1]


def test_graphs_that_cannot_be_recorded_are_a_refusal_and_other_errors_stay(monkeypatch):
    def broken(text):
        def run(*arguments):
            raise RuntimeError(text)

        return run

    for text, kind in (
        ("CUDA error: operation not permitted when stream is capturing", Refusal),
        ("accessing tensor output of CUDAGraphs that has been overwritten", Refusal),
        ("CUDA out of memory", RuntimeError),
    ):
        monkeypatch.setattr(steps.torch, "compile", lambda *given, text=text, **how: broken(text))
        model, batch, key_B = made("mae", BACKBONES[0])
        with pytest.raises(kind, match="use --compile on" if kind is Refusal else text):
            Learner(model, plan()).step(20, key_B, batch)
