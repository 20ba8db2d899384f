"""AnatoMask, SparK and STU-Net against the authors' code, with the same weights, one crop at a time.

One crop, because their statistics run over the visible voxels of the whole batch. `VOXPRIOR_PEERS` names a folder that
holds a checkout called AnatoMask (MIT licence), which holds STU-Net too. Run with `-m oracle -s` to see the differences
that stand in `docs/methods/anatomask.md`.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from voxprior.maths import chance, masking, patches
from voxprior.methods import anatomask, spark
from voxprior.methods.anatomask import Config, Model, Views, hard_count, patch_error
from voxprior.nets.residual import ResidualEncoder
from voxprior.nets.sparse import visible_pyramid
from voxprior.nets.unet import UNet

pytestmark = pytest.mark.oracle
CROP, CELLS, CHANNELS, WIDTH = (32, 48, 64), (2, 3, 4), [4, 8, 16, 32, 64], 64
MODULES = ("encoder3D", "decoder3D", "AnatoMask", "STUNet_head", "STUNet")


def stand_in_for_timm() -> dict[str, ModuleType]:
    """Gives the three names their files import from timm, of which only the first is called: initial weights."""
    layers = ModuleType("timm.models.layers")
    layers.trunc_normal_, layers.DropPath, layers.to_3tuple = nn.init.trunc_normal_, nn.Identity, tuple
    return {"timm": ModuleType("timm"), "timm.models": ModuleType("timm.models"), "timm.models.layers": layers}


@pytest.fixture(scope="module")
def theirs() -> Iterator[SimpleNamespace]:
    """Imports the authors' files, which import one another by bare name, and forgets them afterwards."""
    peers = os.environ.get("VOXPRIOR_PEERS")
    if not peers:
        pytest.skip("VOXPRIOR_PEERS names no folder with the authors' checkouts")
    folder = Path(peers) / "AnatoMask" / "nnunetv2" / "training" / "nnUNetTrainer" / "variants" / "pretrain"
    if not (folder / "AnatoMask.py").is_file():
        pytest.skip(f"{folder} has no AnatoMask.py: check out ricklisz/AnatoMask beside the project")
    stood_in = {}
    try:
        importlib.import_module("timm.models.layers")
    except (ImportError, RuntimeError):
        stood_in = stand_in_for_timm()
        sys.modules.update(stood_in)
    sys.path.insert(0, str(folder))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    sys.path.remove(str(folder))
    for name in (*MODULES, *stood_in):
        sys.modules.pop(name, None)


def build_theirs(theirs: SimpleNamespace, width: int = WIDTH, channels: list[int] = CHANNELS) -> nn.Module:
    torch.manual_seed(0)
    kernels, strides = [[3, 3, 3]] * 6, [[2, 2, 2]] * 5
    head = theirs.STUNet_head.STUNet(1, 1, [1] * 6, [*channels, channels[-1]], strides, kernels)
    encoder = theirs.encoder3D.SparseEncoder(head, input_size=CROP, sbn=False)
    decoder = theirs.decoder3D.LightDecoder(encoder.downsample_ratio, sbn=False, width=width, out_channel=1)
    with torch.no_grad():
        decoder.proj.weight *= 25  # a reconstruction as strong as the crop: the start's is next to nothing
    return theirs.AnatoMask.SparK(encoder, decoder, mask_ratio=0.6, densify_norm="in")


def build_ours(model: nn.Module, batch_norm: bool) -> Model:
    """Takes over every tensor that both have; their full-resolution level and running statistics stay behind."""
    config = Config(crop_vox=CROP, decoder_width=WIDTH, decoder_norm="batch" if batch_norm else "group", flat_below=0.0)
    ours = Model(config, ResidualEncoder(CHANNELS, blocks=1))
    state, taken = {}, model.state_dict()
    for name in ours.student.encoder.state_dict():
        state[f"encoder.{name}"] = taken[f"sparse_encoder.sp_cnn.{name}"]
    parts = {"up": "up_sample", "conv1": "conv.0", "norm1": "conv.1", "conv2": "conv.3", "norm2": "conv.4"}
    for name in ours.student.decoder.state_dict():
        kind, rest = name.split(".", 1)
        if kind == "blocks":
            level, part, tail = rest.split(".")
            state[f"decoder.{name}"] = taken[f"dense_decoder.dec.{level}.{parts[part]}.{tail}"]
        elif kind == "head":
            state[f"decoder.{name}"] = taken[f"dense_decoder.proj.{rest}"]
        else:
            level, part, *tail = rest.split(".")
            group = {"norm": "densify_norms", "token": "mask_tokens", "project": "densify_projs"}[part]
            state[f"decoder.{name}"] = taken[".".join([group, level, *tail])]
    ours.student.load_state_dict(state)
    ours.teacher.load_state_dict(state)
    return ours


def crop(seed: int) -> Tensor:
    """One z-scored crop, smooth, with noise and a constant background."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in CROP), indexing="ij")
    chosen = torch.Generator().manual_seed(seed)
    noise = torch.randn(CROP, generator=chosen)
    body = sum(axis**2 for axis in axes) < 1.2
    inside = torch.sin(5 * axes[0]) + torch.cos(7 * axes[2] + seed) + 0.3 * noise
    return torch.where(body, inside, torch.tensor(-2.0))[None, None]


def mask(seed: int) -> Tensor:
    return masking.random_masked(chance.keys(0, seed, torch.arange(1)), 24, 0.6)


def gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).detach().abs().max())


def test_encoder_and_filling_are_theirs(theirs: SimpleNamespace) -> None:
    model = build_theirs(theirs)
    with torch.no_grad():
        for fill in (*model.densify_norms, *model.sparse_encoder.modules()):
            if type(fill).__name__ == "SparseInstanceNorm":  # other than the start's ones and zeros
                fill.weight.normal_(1.0, 0.2)
                fill.bias.normal_(0.0, 0.2)
    ours = build_ours(model, batch_norm=False)
    worst = {"features": 0.0, "filled": 0.0}
    for seed in range(3):
        volume, masked_BN = crop(seed), mask(seed)
        active = ~masked_BN.view(1, 1, *CELLS)
        theirs.encoder3D._cur_active = active
        shown = active
        for axis in (2, 3, 4):
            shown = shown.repeat_interleave(16, axis)
        there = model.sparse_encoder(volume * shown)
        visible = visible_pyramid(masked_BN, CELLS, 5)
        here = ours.encoder(volume, visible)
        worst["features"] = max([worst["features"], *(gap(a, b) for a, b in zip(here, there, strict=True))])
        levels = zip(ours.student.decoder.fills, here[:0:-1], visible[:0:-1], there[:0:-1], strict=True)
        for level, (fill, feature, seen, their_feature) in enumerate(levels):
            normed = model.densify_norms[level](their_feature)
            filled = torch.where(seen.voxels_B1ZYX, normed, model.mask_tokens[level].expand_as(normed))
            worst["filled"] = max(worst["filled"], gap(fill(feature, seen), model.densify_projs[level](filled)))
    print(f"\nlargest differences: {worst}")
    assert max(worst.values()) < 2e-4


def test_loss_is_theirs_and_group_norm_changes_little(theirs: SimpleNamespace) -> None:
    model = build_theirs(theirs).train()
    told = []
    for seed in range(3):
        volume, masked_BN = crop(seed), mask(seed)
        active = ~masked_BN.view(1, 1, *CELLS)
        inp, rec = model(volume, active_b1ff=active)
        loss, _ = model.forward_loss(inp, rec.clone(), active)
        losses = []
        for batch_norm in (True, False):
            ours = build_ours(model, batch_norm).train()
            predicted = ours.student(volume, masked_BN)
            patch = patches.patchify(volume, 16)
            assert torch.equal(patch, inp)
            losses.append(spark.patch_loss(predicted, patch)[masked_BN].mean().item())
            if batch_norm:
                assert gap(predicted, rec) < 1e-3
        told.append((loss.item(), *losses))
        assert losses[0] == pytest.approx(loss.item(), rel=1e-5)
        assert losses[1] == pytest.approx(loss.item(), rel=0.1)
    print("\nloss theirs / ours with their BatchNorm / ours:", told)


def test_gradients_are_theirs(theirs: SimpleNamespace) -> None:
    model = build_theirs(theirs).train()
    ours = build_ours(model, batch_norm=True).train()
    volume, masked_BN = crop(0), mask(0)
    active = ~masked_BN.view(1, 1, *CELLS)
    spark.patch_loss(ours.student(volume, masked_BN), patches.patchify(volume, 16))[masked_BN].mean().backward()
    here = {name: p.grad.clone() for name, p in ours.encoder.named_parameters()}
    model.zero_grad()
    model.forward_loss(*model(volume, active_b1ff=active), active)[0].backward()
    there = {name.removeprefix("sparse_encoder.sp_cnn."): p.grad for name, p in model.named_parameters()}
    whole = torch.cat([here[name].flatten() for name in here])
    other = torch.cat([there[name].flatten() for name in here])
    difference = float((whole - other).norm() / other.norm())
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    print(f"\nrelative difference of the encoder's gradient: {difference:.1e}; without gradient there: {silent}")
    assert difference < 1e-3 and len(silent) == 5


def test_released_score_is_theirs(theirs: SimpleNamespace) -> None:
    model = build_theirs(theirs)
    ours = build_ours(model, batch_norm=True)
    ours.config = ours.config.model_copy(update={"score": "released"})
    ours.teacher = ours.student
    for painter in (model, ours):
        painter.eval()
    for norm in model.dense_decoder.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.train()  # statistics of the batch at hand, as ours; their teacher takes running ones, which lag
    worst, orders = 0.0, []
    for seed in range(3):
        volume, masked_BN = crop(seed), mask(seed)
        active = ~masked_BN.view(1, 1, *CELLS)
        with torch.no_grad():
            inp, rec = model(volume, active_b1ff=active)
            there = ((rec - inp) ** 2).mean(dim=2) * active.logical_not().int().view(1, -1)
        views = Views(volume, masked_BN, torch.ones_like(masked_BN), chance.keys(0, seed, torch.arange(1)))
        here = ours.score(views, inp)
        worst = max(worst, gap(here[masked_BN], there[masked_BN]))
        assert (there[~masked_BN] == 0).all() and (here[~masked_BN] == -torch.inf).all()
        assert here.argsort(1)[0, -10:].tolist() == there.argsort(1)[0, -10:].tolist()
        norm = patch_error(rec, inp, "norm").masked_fill(~masked_BN, -torch.inf)
        orders.append(len(set(norm.argsort(1)[0, -7:].tolist()) & set(there.argsort(1)[0, -7:].tolist())))
    assert rec.std() > 0.3
    print(f"\nreleased score, largest difference: {worst:.1e}; of the 7 hardest by either score in common: {orders}")
    assert worst < 1e-3


@pytest.mark.parametrize("epoch", [0, 7, 8, 100, 500, 999])
def test_masks_hold_what_theirs_hold(theirs: SimpleNamespace, epoch: int) -> None:
    model = build_theirs(theirs)
    model.fmap_h, model.fmap_w, model.fmap_d, model.len_keep = 7, 7, 8, 157
    rows = 4
    seen_BN = masking.random_masked(chance.keys(0, 0, torch.arange(rows)), 392, 0.6)
    score_BN = torch.rand(rows, 392, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.manual_seed(0)
    np.random.seed(0)  # their fill draws from it
    active, _ = model.generate_mask(score_BN * seen_BN, guide=True, epoch=epoch, total_epoch=999)
    theirs_BN = ~active.view(rows, -1)
    config = Config(schedule="released", epochs=1000)
    hard = hard_count(config, 235, epoch / 999)
    ours_BN, hard_BN = masking.hard_masked(score_BN, seen_BN, 157, hard, chance.keys(0, 1, torch.arange(rows)))
    assert theirs_BN.sum(1).tolist() == ours_BN.sum(1).tolist() == [235] * rows
    assert hard_BN.sum(1).tolist() == [hard] * rows and theirs_BN[hard_BN].all()
    # As many and no more: the next patch in the ranking is not always taken, over a few draws.
    always = theirs_BN.clone()
    for _ in range(12):
        active, _ = model.generate_mask(score_BN * seen_BN, guide=True, epoch=epoch, total_epoch=999)
        always &= ~active.view(rows, -1)
    assert (always & ~hard_BN).sum().item() <= 4 and always[hard_BN].all()


def test_sizes_differ_by_their_unused_level_alone(theirs: SimpleNamespace) -> None:
    channels = [32, 64, 128, 256, 512]
    with torch.device("meta"):
        there = build_theirs(theirs, 512, list(channels))
        here = anatomask.Painter(ResidualEncoder(channels, 1), spark.Decoder(tuple(channels), 512))

    def count(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    unused = 2 * 32 + 32 + 32 * 32 * 27 + 32  # norm, token, projection of full resolution
    assert count(there.dense_decoder) == 36_386_593
    assert count(there.sparse_encoder) == count(here.encoder) == 14_310_048
    assert count(there) - count(here) == unused == 27_776
    statistics = 2 * sum(c + c // 2 for c in (512, 256, 128, 64)) + 8  # of BatchNorm, with its counters
    assert sum(b.numel() for b in there.buffers()) - sum(b.numel() for b in here.buffers()) == statistics


@pytest.mark.parametrize(("width", "blocks", "size"), [(16, 1, 14_596_941), (64, 2, 440_302_605)])
def test_stunet_is_theirs(theirs: SimpleNamespace, width: int, blocks: int, size: int) -> None:
    shape = ([blocks] * 6, [width * m for m in (1, 2, 4, 8, 16, 16)], [[2, 2, 2]] * 5, [[3, 3, 3]] * 6)
    with torch.device("meta"):
        there, here = theirs.STUNet.STUNet(1, 105, *shape), UNet(ResidualEncoder(shape[1], blocks), 105)
    assert sum(p.numel() for p in there.parameters()) == sum(p.numel() for p in here.parameters()) == size
    torch.manual_seed(0)
    small = ([blocks] * 6, [2, 4, 8, 16, 32, 32], *shape[2:])
    there, here = theirs.STUNet.STUNet(1, 3, *small), UNet(ResidualEncoder(small[1], blocks), 3)
    state = {
        name.replace("conv_blocks_context", "encoder.conv_blocks_context"): t for name, t in there.state_dict().items()
    }
    here.load_state_dict(state)
    volume = torch.rand(1, 1, 64, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gaps = [gap(a, b) for a, b in zip(here.train()(volume), there.train()(volume), strict=True)]
    print(f"\nlogits at {len(gaps)} resolutions, largest difference: {max(gaps):.1e}")
    assert max(gaps) < 1e-3
