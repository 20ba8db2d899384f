"""The crop as a method sees it, whichever way it is made."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from voxprior.engine.estimate import fake_batch
from voxprior.engine.step import compile_networks
from voxprior.maths.augment import draw_flips
from voxprior.methods import load
from voxprior.methods.crop import Crop
from voxprior.nets.backbones import Backbone

ROOT = Path(__file__).parents[2]
VIT = {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
CNN = {"channels": [8, 16, 24, 32, 32], "blocks": 1, "pretrained_stages": 4}
BACKBONES = {"vit": Backbone("vit", "vit", VIT), "cnn": Backbone("cnn", "cnn", CNN)}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "region_BCZYX": torch.randint(0, 4096, (6, 2, 8, 12, 8), dtype=torch.int16),
        "quantum_B": torch.linspace(1e-3, 2e-3, 6),
        "valid_lo_B3": torch.tensor([[0, 0, 0], [4, 0, 0]] * 3),
        "valid_hi_B3": torch.tensor([[8, 12, 8], [8, 8, 8]] * 3),
    }


def test_volumes_are_scaled_and_mirrored_and_the_patches_with_them(batch):
    key = torch.arange(6)
    volume, masked, valid = Crop((8, 12, 8), 4, 0.6, 0.5)(batch, key)
    assert volume.dtype == torch.float32
    assert masked.sum(1).tolist() == [7] * 6  # of 12
    flipped = draw_flips(key, "flip", (0.5,) * 3)
    assert 0 < flipped.sum() < flipped.numel()
    real = torch.zeros(6, 2, 3, 2, dtype=torch.bool)
    real[0::2] = True
    real[1::2, 1:, :2] = True
    for b, row in enumerate(flipped.tolist()):
        axes = [axis for axis, drawn in enumerate(row) if drawn]
        region = batch["region_BCZYX"][b] * batch["quantum_B"][b]
        torch.testing.assert_close(volume[b], region.flip([axis + 1 for axis in axes]))
        assert torch.equal(valid[b], real[b].flip(axes).flatten())


def test_a_gpu_and_a_compiler_see_the_same(batch, monkeypatch):
    crop, key = Crop((8, 12, 8), 4, 0.6, 0.5), torch.arange(6)
    here = crop(batch, key)
    # What they are given: each voxel chosen from both ways.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(torch.equal(a, b) for a, b in zip(crop(batch, key), here, strict=True))


def test_streams_are_drawn_apart(batch):
    one, other = (Crop((8, 12, 8), 4, 0.6, 0.5, stream) for stream in ("mask", "teacher/mask"))
    assert not torch.equal(one(batch, torch.arange(6))[1], other(batch, torch.arange(6))[1])
    assert not one.state_dict()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs one for C++")
@pytest.mark.parametrize("method", ["mae", "anatomask", "glmae", "pgl"])
def test_what_is_drawn_is_the_same_compiled(method):
    module = load(method)
    kind = "cnn" if method in ("anatomask", "pgl") else "vit"
    config = module.Config(**yaml.safe_load((ROOT / f"config/methods/{method}.yaml").read_text())["tiny"])
    backbone = BACKBONES[kind]
    model = module.Model(config, backbone.encoder())
    batch, key = fake_batch(module.region(config, backbone), 3, torch.device("cpu"))
    batch["region_BCZYX"].random_(0, 1000)
    plain = model.views(batch, key)
    torch.compiler.reset()
    compile_networks(model, "inductor")
    for name, a, b in zip(plain._fields, plain, model.views(batch, key), strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)
        else:
            assert torch.equal(a, b), name
