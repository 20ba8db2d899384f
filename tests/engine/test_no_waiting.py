"""No step makes the host wait for the device.

A method's views, loss, gradient and EMA run on the meta device. There is nothing to read back there: `.item()`,
`nonzero` and boolean indexing fail by themselves. A copy from the host to the device works, and waits on a GPU as well:
a detector notices it. Clipping and optimisers run on the CPU under a detector of whatever reads a number back.
"""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from voxprior.configuration import Recipe
from voxprior.engine.estimate import META, fake_batch
from voxprior.engine.step import Learner, Plan, reduce_terms
from voxprior.maths import augment
from voxprior.maths.batch import Term
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone
from voxprior.segment import model as segment

ROOT = Path(__file__).parents[2]
VIT = {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [8, 16, 24, 32, 32], "blocks": 1, "pretrained_stages": 4}
BACKBONES = [Backbone("vit", "vit", VIT), Backbone("cnn", "cnn", CNN)]
PAIRS = [(name, there) for name in METHODS for there in BACKBONES if load(name).accepts(there) is None]


class Waits(Exception):
    """Names the operation that makes the host wait."""


class Copied(TorchDispatchMode):
    """Fails where a tensor of the host is copied to the meta device."""

    def __torch_dispatch__(self, function, types, given=(), named=None):
        name, tensors = function.overloadpacket.__name__, [part for part in given if isinstance(part, Tensor)]
        made = function(*given, **(named or {}))
        if name in ("_to_copy", "copy_") and made.device == META and tensors[-1].device != META:
            raise Waits(name)
        return made


class Made(TorchFunctionMode):
    """Fails where a tensor is made on the meta device from numbers of the host."""

    def __torch_function__(self, function, types, given=(), named=None):
        made = function(*given, **(named or {}))
        if function in (torch.tensor, torch.as_tensor) and made.device == META and not isinstance(given[0], Tensor):
            raise Waits(function.__name__)
        return made


class Read(TorchDispatchMode):
    """Fails where a number is read back from a tensor, or how many entries a result has depends on one."""

    def __torch_dispatch__(self, function, types, given=(), named=None):
        name, places = function.overloadpacket.__name__, given[1] if len(given) > 1 else None
        chosen = name.startswith("index") and isinstance(places, list | tuple)
        by_mask = chosen and any(place is not None and place.dtype == torch.bool for place in places)
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"):
            raise Waits(name)
        return function(*given, **(named or {}))


@pytest.mark.parametrize(("method", "backbone"), PAIRS, ids=lambda given: getattr(given, "name", given))
def test_a_methods_step_never_waits_for_the_device(method, backbone):
    module = load(method)
    config = module.Config(**yaml.safe_load((ROOT / f"config/methods/{method}.yaml").read_text())["tiny"])
    with META:
        model = module.Model(config, backbone.encoder())
    batch, key_B = fake_batch(module.region(config, backbone), 2)
    with Made(), Copied():
        for progress in (0.2, 0.9):
            loss, _, _ = reduce_terms(model(model.views(batch, key_B), progress))
            loss.backward()
            model.after_step(progress, 100)
    assert loss.device == META


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda there: there.name)
def test_a_step_of_fine_tuning_never_waits_for_the_device(backbone):
    config = segment.Config((32, 32, 32), ema=0.1)
    with META:
        model = segment.Model(config, backbone.segmenter(3, config.crop_vox))
    batch, key_B = fake_batch(segment.region(config), 2)
    batch["labels_BZYX"] = torch.ones(2, 32, 32, 32, dtype=torch.uint8, device=META)
    with Made(), Copied():
        loss, _, _ = reduce_terms(model(model.views(batch, key_B), 0.5))
        loss.backward()
        model.after_step(0.5, 100)
    assert loss.device == META


@pytest.mark.parametrize(
    "recipe",
    [Recipe(lr=1e-3), Recipe(lr=1e-3, clip=None), Recipe(lr=1e-3, optimiser="lars")],
    ids=["adamw", "no clip", "lars"],
)
def test_the_loop_reads_nothing_back_between_logged_steps(recipe):
    module, backbone = load("mae"), BACKBONES[0]
    config = module.Config(crop_vox=(16, 16, 16), decoder_width=12, decoder_depth=1, decoder_heads=2)
    learner = Learner(module.Model(config, backbone.encoder()), Plan(100, recipe, "card", Path(), torch.device("cpu")))
    batch, key_B = fake_batch(module.region(config, backbone), 2, torch.device("cpu"))
    with Read():
        for step in (20, 21, 90):
            learner.step(step, key_B, batch)
    assert learner.optimiser.state


@pytest.mark.parametrize("count", [3, 3.0, torch.tensor(3)], ids=["int", "float", "host tensor"])
def test_a_count_that_the_host_knows_is_not_copied(count):
    with Made(), Copied():
        loss, _, _ = reduce_terms({"a": Term(torch.ones((), device=META), count)})
    assert loss.device == META


WAYS = {
    "item": lambda row: row * row.sum().item(),
    "nonzero": lambda row: row[row.nonzero()[:, 0]],
    "bool": lambda row: row[row > 0],
    "if": lambda row: row if row.sum() > 0 else -row,
    "tensor": lambda row: row * torch.tensor([1.0, 2.0], device=row.device),
    "as_tensor": lambda row: row * torch.as_tensor([1.0, 2.0], device=row.device),
    "to": lambda row: row * torch.ones(2).to(row.device),
    "copy": lambda row: row.copy_(torch.ones(2)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_wait_is_noticed(way):
    with pytest.raises((Waits, RuntimeError, NotImplementedError)), Made(), Copied():
        WAYS[way](torch.ones(2, device=META))
    if way in ("item", "nonzero", "bool", "if"):
        with pytest.raises(Waits), Read():
            WAYS[way](torch.ones(2))


def test_augmentation_of_fine_tuning_waits_for_nothing():
    volume, labels = torch.ones(2, 1, 8, 8, 8, device=META), torch.ones(2, 8, 8, 8, dtype=torch.uint8, device=META)
    key_B, spacing_mm_B3 = torch.arange(2, device=META), torch.ones(2, 3, device=META)
    with Made(), Copied():
        volume, labels = augment.spatial(volume, labels, key_B, spacing_mm_B3, augment.Spatial(elastic=0.5))
        volume = augment.gamma(augment.contrast(volume, key_B, 0.5, 0.2, 0.1), key_B, 0.5, 0.3, inverted=True)
        volume = augment.low_resolution(augment.blur(volume, key_B, 0.5, (0.5, 1.0)), key_B, 0.5, 2.0)
        volume = augment.brightness(volume, key_B, 0.5, 0.25)
        volume = augment.noise(volume, key_B, 1.0, 1.0)
    assert volume.shape == (2, 1, 8, 8, 8)
