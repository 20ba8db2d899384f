"""Every network of every method is one graph, all of the work is inside graphs, and no later step compiles again.

The compiler's front end runs; the operations are torch's own (`backend="eager"`, and marked slow `aot_eager`, which
traces the backward pass too).
"""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch._dynamo.utils import counters

from voxprior.configuration import Recipe
from voxprior.engine.estimate import fake_batch
from voxprior.engine.step import Learner, Plan
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone
from voxprior.segment import model as segment

ROOT = Path(__file__).parents[2]
VIT = {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [8, 16, 24, 32, 32], "blocks": 1, "pretrained_stages": 4}
RESENC = CNN | {"kind": "resenc", "blocks": [1, 1, 1, 1, 1]}
BACKBONES = [Backbone("vit", "vit", VIT), Backbone("cnn", "cnn", CNN)]
PAIRS = [(name, there) for name in METHODS for there in BACKBONES if load(name).accepts(there) is None]
CPU, STEPS = torch.device("cpu"), (20, 21, 90)  # of 100: AnatoMask's hard share and every schedule move


def pretraining(method, backbone):
    """Makes a method's model and a batch for it."""
    module = load(method)
    config = module.Config(**yaml.safe_load((ROOT / f"config/methods/{method}.yaml").read_text())["tiny"])
    return module.Model(config, backbone.encoder()), fake_batch(module.region(config, backbone), 2, CPU)


def segmentation(backbone):
    """Makes a segmentation model and a batch for it."""
    config = segment.Config((32, 32, 32), ema=0.1)
    batch, key_B = fake_batch(segment.region(config), 2, CPU)
    batch["labels_BZYX"] = torch.ones(2, 32, 32, 32, dtype=torch.uint8)
    return segment.Model(config, backbone.segmenter(3, config.crop_vox)), (batch, key_B)


def run(model, batch, key_B, backend, monkeypatch):
    """Takes compiled steps: (layers that ran outside of a graph, graphs after the first step and after the last)."""
    outside = []
    for kind in (nn.Linear, nn.Conv3d, nn.ConvTranspose3d):

        def forward(self, *given, own=kind.forward):
            if not torch.compiler.is_compiling():
                outside.append(type(self).__name__)
            return own(self, *given)

        monkeypatch.setattr(kind, "forward", forward)
    torch.compiler.reset()
    counters.clear()
    learner = Learner(model, Plan(100, Recipe(lr=1e-3), "card", Path(), CPU, "bf16", compiler=backend))
    batch["region_BCZYX"].random_(0, 1000)
    graphs = []
    for step in STEPS:
        learner.step(step, key_B, batch)
        graphs.append(counters["stats"]["unique_graphs"])
    return outside, graphs[0], graphs[-1]


# Quickly one of a kind, and slowly all of them, with the backward pass.
QUICK = [("anatomask", "cnn"), ("glmae", "vit"), ("pgl", "cnn")]
CASES = [
    pytest.param(*pair, backend, id=f"{pair[0]}-{pair[1].name}-{backend}", marks=[] if quick else pytest.mark.slow)
    for backend in ("eager", "aot_eager")
    for pair in PAIRS
    for quick in [(pair[0], pair[1].name) in QUICK and backend == "eager"]
]
NETWORKS = [
    pytest.param(there, backend, id=f"{there.name}-{backend}", marks=[] if quick else pytest.mark.slow)
    for backend in ("eager", "aot_eager")
    for there in [*BACKBONES, Backbone("resenc", "cnn", RESENC)]
    for quick in [there.name == "cnn" and backend == "eager"]
]


@pytest.mark.parametrize(("method", "backbone", "backend"), CASES)
def test_a_methods_networks_are_whole_graphs_that_stay(method, backbone, backend, monkeypatch):
    model, (batch, key_B) = pretraining(method, backbone)
    outside, first, last = run(model, batch, key_B, backend, monkeypatch)
    assert not counters["graph_break"]
    assert outside == []
    assert first == last > 0


@pytest.mark.parametrize(("backbone", "backend"), NETWORKS)
def test_segmentation_networks_are_whole_graphs_that_stay(backbone, backend, monkeypatch):
    model, (batch, key_B) = segmentation(backbone)
    outside, first, last = run(model, batch, key_B, backend, monkeypatch)
    assert not counters["graph_break"]
    assert outside == []
    assert first == last > 0


def test_work_outside_of_a_graph_is_noticed(monkeypatch):
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.student_voxels = nn.Linear(4, 4), 1

        def views(self, batch, key_B):
            return batch["region_BCZYX"].float()[..., :4].mean((1, 2, 3))

        def forward(self, row_BV, progress):
            from voxprior.maths.batch import Term

            other = nn.Linear(4, 4)
            return {"a": Term(other(self.encoder(row_BV)).sum(), 1)}

        def after_step(self, progress, total_steps): ...

    batch, key_B = fake_batch(segment.region(segment.Config((8, 8, 8))), 2, CPU)
    assert run(Beside(), batch, key_B, "eager", monkeypatch)[0] == ["Linear"] * len(STEPS)
