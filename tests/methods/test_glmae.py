"""GL-MAE's checks by number; those about patches, masks, losses, heads and transfer stand in tests/maths, tests/nets.

What every method must do stands in test_contract.
"""

import copy
import io
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from voxprior.engine.step import parameter_groups, reduce_terms
from voxprior.errors import Refusal
from voxprior.maths import chance, overlap, surfaces
from voxprior.maths.consistency import assign, cross_entropy
from voxprior.maths.losses import masked_patch_error
from voxprior.maths.masking import split
from voxprior.maths.patches import patchify, standardise, take, unpatchify
from voxprior.maths.positions import sine_cosine
from voxprior.methods import glmae
from voxprior.methods.glmae import Config, Model, Views
from voxprior.nets.backbones import Backbone
from voxprior.nets.dino import Centre, Prototypes, dino_projector
from voxprior.nets.vit import ViT
from voxprior.segment.infer import segment_volume

PRESETS = yaml.safe_load((Path(__file__).parents[2] / "config" / "methods" / "glmae.yaml").read_text(encoding="utf-8"))
SIZE = (20, 24, 28)


def config(**changed: object) -> Config:
    """Makes a small configuration: 2 global views of 2x3x4 patches of 4 voxels, 3 local ones of 2x2x1."""
    numbers = {
        "region_vox": SIZE,
        "global_vox": (8, 12, 16),
        "local_views": 3,
        "local_vox": (8, 8, 4),
        "flip": 0.5,
        "decoder_width": 24,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "head_hidden": 16,
        "head_width": 8,
        "prototypes": 10,
    }
    return Config(**(numbers | changed))


def model(**changed: object) -> Model:
    """Builds the method on a small transformer."""
    torch.manual_seed(0)
    return Model(config(**changed), ViT(4, 24, 2, 2, 2.0))


def batch(samples: int = 2, size: tuple[int, int, int] = SIZE) -> dict[str, Tensor]:
    """Makes a batch of counted noise; every voxel differs from its neighbours."""
    key_B = chance.keys(5, 0, torch.arange(samples))
    return {
        "region_BCZYX": (1000 * chance.uniform(key_B, "voxels", (1, *size))).to(torch.int16),
        "quantum_B": torch.full((samples,), 1e-3),
        "spacing_mm_B3": torch.tensor([3.0, 1.5, 1.0]).repeat(samples, 1),
        "valid_lo_B3": torch.zeros(samples, 3, dtype=torch.int64),
        "valid_hi_B3": torch.tensor(size).repeat(samples, 1),
    }


def keys(samples: int = 2, step: int = 0) -> Tensor:
    return chance.keys(0, step, torch.arange(samples))


def views_of(method: Model, samples: int = 2, step: int = 0) -> Views:
    return method.views(batch(samples), keys(samples, step))


def loss_of(method: Model, views: Views, progress: float = 0.5) -> Tensor:
    return reduce_terms(method(views, progress))[0]


def step_of(method: Model, optimiser: torch.optim.Optimizer, step: int, total: int) -> float:
    """Takes one step as the loop does."""
    loss = loss_of(method, views_of(method, step=step), step / (total - 1))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    method.after_step(step / (total - 1), total)
    return loss.item()


def fill_masked(views: Views, filling: float) -> Views:
    """Overwrites every masked voxel of every view."""
    changed = {}
    for name in ("global", "local"):
        volume_BVCZYX, masked_BVN = getattr(views, f"volume_{name}_BVCZYX"), getattr(views, f"masked_{name}_BVN")
        grid_zyx = tuple(side // 4 for side in volume_BVCZYX.shape[3:])
        patch_WNP = patchify(volume_BVCZYX.flatten(0, 1), 4).masked_fill(masked_BVN.flatten(0, 1)[..., None], filling)
        changed[f"volume_{name}_BVCZYX"] = unpatchify(patch_WNP, grid_zyx, 4).view_as(volume_BVCZYX)
    return views._replace(**changed)


def calls_of(module: nn.Module) -> list[Tensor]:
    """Collects what a module returns from now on."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda module, given, output: seen.append(output.detach()))
    return seen


# ------------------------------------------------------------------------------------------- configuration
def test_a_convolutional_backbone_is_refused_with_a_sentence():
    assert glmae.accepts(Backbone("vit", "vit", {})) is None
    assert "anatomask" in (glmae.accepts(Backbone("stunet", "cnn", {})) or "")


def test_views_that_do_not_fit_the_patch_are_refused_and_the_whole_volume_is_asked_for():
    backbone = Backbone("vit", "vit", {"patch_vox": 16})
    with pytest.raises(Refusal, match="48x40x48.*patches of 16.*multiple"):
        glmae.region(config(global_vox=(48, 40, 48)), backbone)
    with pytest.raises(Refusal, match="nothing to hide: make local_vox"):
        glmae.region(config(global_vox=(32, 32, 32), local_vox=(16, 16, 16)), backbone)
    asked = glmae.region(config(global_vox=(32, 32, 32), local_vox=(16, 32, 16)), backbone)
    assert asked.whole and asked.size_vox == SIZE


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_mask_ratio": 1.0},
        {"local_mask_ratio": 0.0},
        {"decoder_width": 512},
        {"decoder_heads": 5},
        {"global_share": (0.5, 1.5)},
        {"local_share": (0.5, 0.25)},
        {"local_vox": (0, 8, 8)},
        {"teacher_temperature": (0.0, 0.07)},
        {"gg_pairs": "cross", "global_views": 1},
        {"mask_ratio": 0.6},
    ],
)
def test_wrong_numbers_are_refused(wrong: dict):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config(**wrong)


def test_presets_fit_their_backbones_and_the_papers_is_the_default():
    assert Config(**PRESETS["paper"]) == Config()
    for name, patch_vox in (("tiny", 8), ("small", 8), ("paper", 16)):
        preset = Config(**PRESETS[name])
        assert glmae.region(preset, Backbone("vit", "vit", {"patch_vox": patch_vox})).whole
    with torch.device("meta"):
        paper = Model(Config(), ViT(16, 768, 12, 12))
    assert (paper.whole.patches, paper.whole.visible, paper.part.patches, paper.part.visible) == (1000, 400, 216, 86)
    assert paper.student_voxels == 2 * 160**3 + 8 * 96**3
    assert sum(p.numel() for p in paper.encoder.parameters()) == 88_202_496


# --------------------------------------------------------------------------------------------------- views
def test_resized_views_lie_inside_the_real_box_and_say_how_coarse_they_are():
    given, method = batch(8), model(flip=0.0)
    ramp = torch.arange(SIZE[0]).view(1, 1, -1, 1, 1).expand(8, 1, *SIZE).to(torch.int16)
    given |= {"region_BCZYX": ramp.contiguous(), "quantum_B": torch.ones(8)}
    given["valid_lo_B3"][:, 0], given["valid_hi_B3"][:, 0] = 4, 16
    given["spacing_mm_B3"] = torch.tensor([[1.0, 0.0, 0.0]]).expand(8, 3)  # mm tells the height alone
    views = method.views(given, keys(8))
    assert views.valid_global_BVN.all() and views.valid_local_BVN.all()
    for volume, mm, size, least, largest in (
        (views.volume_global_BVCZYX, views.mm_global_BV, 8, 6, 12),
        (views.volume_local_BVCZYX, views.mm_local_BV, 8, 3, 6),
    ):
        assert volume.min() >= 4 and volume.max() <= 15
        height = 3 * mm * size
        assert (height >= least - 1e-4).all() and (height <= largest + 1e-4).all()
        # A ramp shows how many slices lie between the centres of a view's first and last voxel.
        slices = (volume[..., -1, 0, 0] - volume[..., 0, 0, 0])[..., 0]
        assert (slices - height * (size - 1) / size).abs().max() < 0.6


def test_fixed_views_are_plain_crops():
    method, given = model(crop_mode="fixed", flip=0.5), batch()
    views = method.views(given, keys())
    assert views.valid_global_BVN.all() and views.valid_local_BVN.all()
    torch.testing.assert_close(views.mm_global_BV, torch.full((2, 2), 5.5 / 3))
    voxels = given["region_BCZYX"].float()[0, 0] * torch.tensor(1e-3)
    for name, (z, y, x) in (("global", (8, 12, 16)), ("local", (8, 8, 4))):
        crop = getattr(views, f"volume_{name}_BVCZYX")[0, 0, 0]
        windows = voxels.unfold(0, z, 1).unfold(1, y, 1).unfold(2, x, 1)
        flips = [[axis for axis in range(3) if n >> axis & 1] for n in range(8)]
        assert sum(int((windows == crop.flip(axes)).flatten(3).all(-1).sum()) for axes in flips) == 1


def test_padding_of_fixed_views_is_not_valid_wherever_it_lies():
    method, given = model(crop_mode="fixed", flip=0.5), batch(16, (20, 4, 28))
    given["region_BCZYX"] += 1  # no real voxel is 0
    views = method.views(given, keys(16))
    for name in ("global", "local"):
        real_WN = patchify(getattr(views, f"volume_{name}_BVCZYX").flatten(0, 1), 4).amax(-1) > 0
        assert torch.equal(real_WN, getattr(views, f"valid_{name}_BVN").flatten(0, 1))
        assert real_WN.any(1).all() and not real_WN.all() and len(real_WN.unique(dim=0)) >= 3


def test_padding_counts_in_no_reconstruction():
    method = model(crop_mode="fixed", flip=0.0, global_mask_ratio=0.5)
    given = batch(4, (20, 4, 28))
    views = method.views(given, keys(4))
    terms = method(views, 0.5)
    for name, masked, valid in (
        ("global", views.masked_global_BVN, views.valid_global_BVN),
        ("local", views.masked_local_BVN, views.valid_local_BVN),
    ):
        assert 0 < float(terms[f"{name}_reconstruction"].count) == (masked & valid).sum() < masked.sum()


def test_a_view_depends_on_its_own_sample_and_number_alone():
    method, given = model(), batch(3)
    together = method.views(given, keys(3))
    alone = method.views({name: value[1:2] for name, value in given.items()}, keys(3)[1:2])
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))
    fewer = model(local_views=1).views(given, keys(3))
    assert torch.equal(fewer.volume_local_BVCZYX, together.volume_local_BVCZYX[:, :1])
    assert torch.equal(fewer.volume_global_BVCZYX, together.volume_global_BVCZYX)
    masks = together.masked_global_BVN.flatten(0, 1)
    assert len(masks.unique(dim=0)) == 6 and len(together.volume_local_BVCZYX.flatten(0, 1).unique(dim=0)) == 9


def test_nothing_depends_on_data_in_a_way_that_stalls_a_gpu():
    """Tensors without values run through: no nonzero(), no item(), no branch on content."""
    for changed in ({}, {"crop_mode": "fixed"}, {"consistency": "byol"}):
        with torch.device("meta"):
            method = model(**changed)
            given = {name: value.to("meta") for name, value in batch().items()}
            terms = method(method.views(given, torch.empty(2, dtype=torch.int64)), 0.5)
            reduce_terms(terms)[0].backward()
            method.after_step(0.5, 100)
        assert all(term.sum.shape == term.count.shape == () for term in terms.values())


# -------------------------------------------------------------------------------------------------- checks
def test_glmae_check_03_student_sees_visible_patches_only():
    method = model()
    views, seen = views_of(method), calls_of(method.encoder)
    lengths: list[int] = []
    method.encoder.blocks[0].register_forward_hook(lambda module, given, output: lengths.append(output.shape[1]))
    for filling in (0.5, 1e3, -1e3):
        method(fill_masked(views, filling), 0.5)
    assert len(seen) == 6 and lengths == 3 * [1 + 10, 1 + 2]
    assert all(torch.equal(seen[i], seen[i % 2]) for i in range(6))

    for name in ("global", "local"):
        volume = getattr(views, f"volume_{name}_BVCZYX").flatten(0, 1).requires_grad_()
        masked_WN = getattr(views, f"masked_{name}_BVN").flatten(0, 1)
        kind = method.whole if name == "global" else method.part
        visible_WK, _ = split(masked_WN, kind.visible)
        method.student.tokens(patchify(volume, 4), kind.grid_zyx, visible_WK).square().sum().backward()
        reached_WN = patchify(volume.grad, 4).abs().sum(-1) > 0
        assert torch.equal(reached_WN, ~masked_WN)


def test_glmae_check_04_loss_ignores_visible_patches(monkeypatch: pytest.MonkeyPatch):
    method = model()
    views = views_of(method)
    guess = {24: torch.randn(4, 24, 64), 4: torch.randn(6, 4, 64)}  # patches of a view -> prediction of all of them
    guess = {n: g.requires_grad_() for n, g in guess.items()}
    honest = method.predict

    def guessed(kind: Any, patch: Tensor, visible: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        return honest(kind, patch, visible, masked)[0], take(guess[kind.patches], masked)

    monkeypatch.setattr(method, "predict", guessed)
    terms = method(views, 0.5)
    for name, n, volume, masked in (
        ("global_reconstruction", 24, views.volume_global_BVCZYX, views.masked_global_BVN.flatten(0, 1)),
        ("local_reconstruction", 4, views.volume_local_BVCZYX, views.masked_local_BVN.flatten(0, 1)),
    ):
        (terms[name].sum / terms[name].count).backward(retain_graph=True)
        target = standardise(patchify(volume.flatten(0, 1), 4))
        expected = 2 * (guess[n] - target) / (masked.sum() * 64)  # the sum counts |M| of every view
        torch.testing.assert_close(guess[n].grad[masked], expected[masked], rtol=1e-4, atol=1e-8)
        assert guess[n].grad[~masked].abs().max() == 0
        with torch.no_grad():
            guess[n][~masked] += 1e6
    name = "global_reconstruction"
    assert method(views, 0.5)[name].sum.item() == terms[name].sum.item()


def test_glmae_check_05_target_is_standardised_in_float32():
    method, guess = model(), torch.randn(1, 6, 64)
    patch = torch.rand(1, 6, 64, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(1, 6, dtype=torch.bool)
    errors = [
        masked_patch_error(guess, method.error.target(a * patch + b), counted)[0]
        for a, b in ((1, 0), (3, 7), (0.2, -1))
    ]
    torch.testing.assert_close(torch.stack(errors), errors[0].expand(3), rtol=1e-3, atol=0)
    flat = torch.full((1, 1, 64), 0.25, requires_grad=True)
    assert method.error.target(flat).abs().max() == 0
    method.error.target(flat).square().sum().backward()
    assert flat.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert method.error.target(patch.bfloat16()).dtype == torch.float32
    noise = 0.005 * torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    assert method.error.target(noise).std() > 0.9 and model(variance_eps=4e-4).error.target(noise).std() < 0.3
    assert torch.equal(model(standardise_target=False).error.target(patch), patch)


@pytest.mark.parametrize("class_token", [True, False])
def test_glmae_check_06_decoder_puts_every_token_at_its_place(class_token: bool):
    method = model(decoder_class_token=class_token)
    decoder, grid_zyx = method.decoder, (2, 3, 4)
    blocks, decoder.blocks = decoder.blocks, nn.ModuleList()
    decoder.embed.weight.data.copy_(torch.eye(24))
    visible_WK, masked_WM = split(views_of(method).masked_global_BVN.flatten(0, 1), 10)
    own = visible_WK[..., None].expand(-1, -1, 24).float()  # token i carries the value i
    extra = int(class_token)
    given = torch.cat([torch.full((4, extra, 24), -7.0), own], dim=1)
    assembled = decoder.assemble(given, visible_WK, masked_WM, grid_zyx)
    table = sine_cosine(grid_zyx, 24)
    assert torch.equal(assembled[:, :extra], given[:, :extra])  # no position for the class token
    torch.testing.assert_close(assembled[:, extra : extra + 10], own + table[visible_WK])
    torch.testing.assert_close(assembled[:, extra + 10 :], decoder.mask_token_E + table[masked_WM])
    decoder.blocks = blocks
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    shuffled = torch.cat([given[:, :extra], own[:, order]], dim=1)
    one, two = (decoder(t, v, masked_WM, grid_zyx) for t, v in ((given, visible_WK), (shuffled, visible_WK[:, order])))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_glmae_check_06_class_token_enters_the_decoder_or_does_not():
    for class_token, lengths in ((True, [1 + 24, 1 + 4]), (False, [24, 4])):
        method = model(decoder_class_token=class_token)
        seen = calls_of(method.decoder.blocks[0])
        predicted = calls_of(method.decoder.head)
        method(views_of(method), 0.5)
        assert [token.shape[1] for token in seen] == lengths
        assert [patch.shape[1] for patch in predicted] == [14, 2]  # masked ones only


def test_glmae_check_07_positions_are_per_grid_and_no_parameter():
    method = model()
    views, seen = views_of(method), []
    method.encoder.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    method(views, 0.5)
    for token_WLD, masked_BVN, kind in zip(
        seen, (views.masked_global_BVN, views.masked_local_BVN), (method.whole, method.part), strict=True
    ):
        volume = views.volume_global_BVCZYX if kind is method.whole else views.volume_local_BVCZYX
        visible_WK, _ = split(masked_BVN.flatten(0, 1), kind.visible)
        bare = method.encoder.embed(take(patchify(volume.flatten(0, 1), 4), visible_WK))
        table = sine_cosine(kind.grid_zyx, 24)
        torch.testing.assert_close(token_WLD[:, 1:] - bare, table[visible_WK], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            token_WLD[:, 0], method.student.class_token_D.expand(len(token_WLD), -1)
        )  # row 0 = 0
    assert not [name for name in method.state_dict() if "position" in name]
    recipe = type("Recipe", (), {"weight_decay": 0.05, "optimiser": "adamw"})
    groups = parameter_groups(method, recipe)
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert grouped == {id(p) for p in [*method.student.parameters(), *method.decoder.parameters()]}
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(method.student.class_token_D), id(method.decoder.mask_token_E)} <= undecayed


def test_glmae_check_08_anchor_is_complete_and_detached(monkeypatch: pytest.MonkeyPatch):
    method = model()
    views, seen = views_of(method), calls_of(method.teacher.encoder)
    assert all(torch.equal(t, s) for t, s in zip(method.teacher.parameters(), method.student.parameters(), strict=True))
    loss_of(method, views).backward()
    assert [tuple(token.shape) for token in seen] == [(2 * 2, 1 + 24, 24)]  # p B global views, whole; no local one
    whole = method.student.tokens(patchify(views.volume_global_BVCZYX.flatten(0, 1), 4), (2, 3, 4))
    torch.testing.assert_close(seen[0], whole.detach())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    answers: list[Tensor] = []

    def asked(teacher: nn.Module, *arguments: object) -> Tensor:
        answers.append(teacher(*arguments).clone().requires_grad_())
        return answers[-1]

    monkeypatch.setattr(glmae, "taught", asked)
    for form in ("dino", "byol"):
        loss_of(model(consistency=form), views).backward()
        assert answers[-1].grad is None


@pytest.mark.parametrize("form", ["dino", "byol"])
def test_glmae_check_09_teacher_follows_the_updated_student(form: str):
    method = model(consistency=form, schedule="released", momentum=0.9)
    before = copy.deepcopy(method.teacher.state_dict())
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2)
    step_of(method, optimiser, 0, 10)  # progress 0: the momentum is 0.9
    student = method.student.state_dict()
    assert set(before) == set(student) and any("projector" in name for name in before)
    for name, tensor in method.teacher.state_dict().items():
        torch.testing.assert_close(tensor, 0.9 * before[name] + 0.1 * student[name], rtol=0, atol=1e-6)
        if not name.endswith("direction_KE"):  # frozen at first
            assert not torch.equal(student[name], before[name]), name
    for momentum, source in ((1.0, copy.deepcopy(method.teacher.state_dict())), (0.0, student)):
        method.config = config(consistency=form, schedule="released", momentum=momentum)
        method.after_step(0.0, 10)
        assert all(torch.equal(tensor, source[name]) for name, tensor in method.teacher.state_dict().items())


def test_glmae_check_09_momentum_rises_from_0996_to_1(monkeypatch: pytest.MonkeyPatch):
    used: list[float] = []
    monkeypatch.setattr(glmae, "follow", lambda teacher, student, momentum: used.append(momentum))
    for schedule in ("released", "share"):
        for step in range(11):
            model(schedule=schedule).after_step(step / 10, 18_650)
    released, share = used[:11], used[11:]
    assert released[0] == pytest.approx(0.996) and released[-1] == 1.0 and released == sorted(set(released))
    assert released == pytest.approx([1 - 0.004 * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(11)])
    # The share is that of 0.996 in 1600 epochs of 746 volumes, 64 a step.
    assert share == pytest.approx(released, abs=1e-4)
    used.clear()
    model().after_step(0.0, 300)
    assert used == pytest.approx([0.5 ** (1 / 5)])  # at least five steps


def test_glmae_check_10_terms_hold_as_many_pairs_as_they_should():
    for pairs, p, count in (("all", 2, 4), ("same", 2, 2), ("cross", 2, 2), ("all", 1, 1), ("same", 1, 1)):
        for form in ("dino", "byol"):
            method = model(gg_pairs=pairs, global_views=p, consistency=form)
            terms = method(views_of(method), 0.5)
            assert float(terms["global_to_global"].count) == 2 * count
            assert float(terms["global_to_local"].count) == 2 * p * 3


def test_glmae_check_10_terms_are_the_formulas_on_the_embeddings():
    """The slow reference: views one by one, in NumPy."""
    method = model()
    method.centre.mean_K.copy_(torch.linspace(-0.5, 0.5, 10))
    views = views_of(method)
    with torch.no_grad():
        terms = method(views, 0.01)  # in the warm-up of the temperature
        anchors, students = [], {"global": [], "local": []}
        for b in range(2):
            for v in range(2):
                patch = patchify(views.volume_global_BVCZYX[b, v][None], 4)
                anchors.append((b, v, method.teacher.anchors(patch, (2, 3, 4))[0].double().numpy()))
            for name, kind in (("global", method.whole), ("local", method.part)):
                for v in range(kind.views):
                    patch = patchify(getattr(views, f"volume_{name}_BVCZYX")[b, v][None], 4)
                    visible, _ = split(getattr(views, f"masked_{name}_BVN")[b, v][None], kind.visible)
                    token = method.student.tokens(patch, kind.grid_zyx, visible)
                    students[name].append((b, v, method.student.embed(token[:, 0])[0].double().numpy()))
    tau = 0.04 + 0.03 * 0.01 / (30 / 1600)

    def log_softmax(row: np.ndarray) -> np.ndarray:
        return row - row.max() - np.log(np.exp(row - row.max()).sum())

    for name, term in (("global", "global_to_global"), ("local", "global_to_local")):
        losses = []
        for b, _, anchor in anchors:
            q = np.exp(log_softmax((anchor - np.linspace(-0.5, 0.5, 10)) / tau))
            losses += [-(q * log_softmax(student / 0.1)).sum() for c, _, student in students[name] if b == c]
        assert float(terms[term].sum / terms[term].count) == pytest.approx(np.mean(losses), rel=1e-4)
    q = [np.exp(log_softmax((anchor - np.linspace(-0.5, 0.5, 10)) / tau)) for _, _, anchor in anchors]
    entropy = np.mean([-(row * np.log(row)).sum() for row in q])
    assert float(terms["teacher_entropy"].sum / terms["teacher_entropy"].count) == pytest.approx(entropy, rel=1e-4)
    assert float(terms["centre_norm"].sum) == pytest.approx(np.linalg.norm(np.linspace(-0.5, 0.5, 10)), rel=1e-5)


def test_glmae_check_11_centre_is_moved_after_it_was_used():
    method = model()
    start = torch.linspace(-0.3, 0.3, 10)
    method.centre.mean_K.copy_(start)
    views, answers = views_of(method), calls_of(method.teacher.prototypes)
    terms = method(views, 0.5)
    anchor_BVK = answers[0].unflatten(0, (2, 2))
    entropies = [torch.special.entr(assign(anchor_BVK, c, 0.07)).sum() for c in (start, method.centre.mean_K)]
    torch.testing.assert_close(terms["teacher_entropy"].sum, entropies[0])
    torch.testing.assert_close(entropies[0], entropies[1])
    with torch.no_grad():
        method(views_of(method, step=1), 0.5)  # an evaluation between steps does not count
    method.after_step(0.5, 100)
    torch.testing.assert_close(method.centre.mean_K, 0.9 * start + 0.1 * answers[0].mean(0))
    moved = method.centre.mean_K.clone()
    method.after_step(0.5, 100)
    assert torch.equal(method.centre.mean_K, moved)


@pytest.mark.parametrize("form", ["dino", "byol"])
def test_glmae_check_12_each_weight_moves_its_own_part(form: str):
    def silent(progress: float = 0.5, **changed: float) -> set[str]:
        method = model(consistency=form, **changed)
        loss_of(method, views_of(method), progress).backward()
        trained = {n: p for n, p in method.named_parameters() if p.requires_grad}
        return {name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0}

    names = {name for name, p in model(consistency=form).named_parameters() if p.requires_grad}
    decoder = {n for n in names if n.startswith("decoder.")}
    heads = {n for n in names if n.startswith(("student.projector", "student.prototypes", "predictor"))}
    assert silent() == set()
    assert silent(global_weight=0, local_weight=0) == decoder != set()
    assert silent(gg_weight=0, gl_weight=0) == heads != set()
    for one in ("global_weight", "local_weight", "gg_weight", "gl_weight"):
        assert silent(**{one: 0}) == set()
    frozen = {n for n in names if "prototypes" in n}
    assert silent(progress=0.0) == frozen and (frozen != set()) == (form == "dino")


def test_glmae_check_12_total_is_the_weighted_sum():
    weights = {"global_weight": 0.5, "local_weight": 2.0, "gg_weight": 3.0, "gl_weight": 0.25}
    names = ("global_reconstruction", "local_reconstruction", "global_to_global", "global_to_local")
    method = model(**weights)
    views = views_of(method)
    terms = method(views, 0.5)
    means = {name: (terms[name].sum / terms[name].count).item() for name in names}
    expected = sum(weight * means[name] for name, weight in zip(names, weights.values(), strict=True))
    assert loss_of(method, views).item() == pytest.approx(expected, rel=1e-6)
    plain = model()(views, 0.5)
    assert [plain[name].weight for name in names] == [1.0] * 4
    assert {name for name, term in plain.items() if not term.weight} == {
        "teacher_entropy", "centre_norm", "mm_per_voxel_global", "mm_per_voxel_local"
    }  # fmt: skip


def test_glmae_check_13_views_batched_or_one_by_one_are_the_same():
    method = model()
    views, seen = views_of(method), calls_of(method.encoder)
    embedded = calls_of(method.student.projector)
    method(views, 0.5)
    patch_WNP = patchify(views.volume_local_BVCZYX.flatten(0, 1), 4)
    visible_WK, masked_WM = split(views.masked_local_BVN.flatten(0, 1), 2)
    for w in range(6):
        token, predicted = method.predict(
            method.part, patch_WNP[w : w + 1], visible_WK[w : w + 1], masked_WM[w : w + 1]
        )
        torch.testing.assert_close(token[0], seen[1][w], rtol=0, atol=1e-5)
        torch.testing.assert_close(method.student.projector(token[:, 0])[0], embedded[1][w], rtol=0, atol=1e-5)
        assert predicted.shape == (1, 2, 64)


def test_glmae_check_13_micro_batches_equal_one_batch():
    gradients, centres = [], []
    for parts in ([slice(0, 4)], [slice(0, 2), slice(2, 4)]):
        method = model()
        views = views_of(method, 4)
        for part in parts:
            (loss_of(method, Views(*(value[part] for value in views))) / len(parts)).backward()
        gradients.append({n: p.grad for n, p in method.named_parameters() if p.grad is not None})
        method.after_step(0.5, 100)
        centres.append(method.centre.mean_K)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*centres)


def test_glmae_check_13_a_resumed_run_gives_the_next_loss_exactly():
    method = model(frozen_share=0.3, temperature_warmup=0.6)
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2)
    for step in range(3):
        step_of(method, optimiser, step, 8)
    saved = io.BytesIO()
    torch.save({"model": method.state_dict(), "optimiser": optimiser.state_dict()}, saved)
    straight = [step_of(method, optimiser, step, 8) for step in range(3, 6)]
    again = model(frozen_share=0.3, temperature_warmup=0.6)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    optimiser = torch.optim.AdamW(again.parameters(), lr=1e-2)
    again.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    assert [step_of(again, optimiser, step, 8) for step in range(3, 6)] == straight
    assert {"centre.mean_K", "teacher.projector.0.weight"} <= set(state["model"])


def test_glmae_check_14_the_network_that_is_handed_on_is_the_one_asked_for():
    for export in ("student", "teacher"):
        method = model(export=export)
        with torch.no_grad():
            method.encoder.embed.weight.add_(1.0)
        chosen = method.student if export == "student" else method.teacher
        handed = method.encoder_state()
        assert set(handed) == set(ViT(4, 24, 2, 2, 2.0).state_dict())
        assert all(torch.equal(tensor, chosen.encoder.state_dict()[name]) for name, tensor in handed.items())
    assert not torch.equal(method.encoder_state()["embed.weight"], method.encoder.embed.weight)


@pytest.mark.parametrize("overlapping", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(17, 11, 21), (5, 4, 7)])
def test_glmae_check_15_sliding_windows_give_back_what_they_were_given(overlapping: float, shape: tuple[int, ...]):
    """The network returns how near its input is to each of 16 levels, so labels reproduce a volume of 16 levels."""
    level = np.random.default_rng(0).integers(0, 16, shape).astype(np.int16)
    levels = torch.arange(16.0).view(1, -1, 1, 1, 1) / 16
    labels = segment_volume(lambda window: -((window - levels) ** 2), level, 1 / 16, (8, 8, 8), overlapping)
    assert np.array_equal(labels, level)


def test_glmae_check_15_scores_are_what_they_should_be():
    label, shifted = np.zeros((2, 24, 24, 24), np.uint8)
    label[6:14, 6:14, 6:14], shifted[9:17, 6:14, 6:14] = 1, 1

    def dice(reference: np.ndarray, predicted: np.ndarray, classes: int = 1) -> list[float]:
        return overlap.dice(overlap.confusion(reference, predicted, classes)).tolist()

    assert dice(label, label) == [1.0] and dice(label, np.roll(label, 9, 0)) == [0.0]
    assert math.isnan(dice(label, label, classes=2)[1])  # an absent class is left out of means

    nsd, hd95_mm, _ = surfaces.surface_scores(label, shifted, 1, (1.5, 1.5, 1.5), 4.5)
    assert (nsd.tolist(), hd95_mm.tolist()) == ([1.0], [pytest.approx(4.5)])
    nsd, hd95_mm, _ = surfaces.surface_scores(label, shifted, 1, (3.0, 3.0, 3.0), 8.9)
    assert nsd[0] < 1 and hd95_mm[0] == pytest.approx(9.0)


# ------------------------------------------------------------------------------------- smoke, pictures, oracle
def test_pictures_show_a_global_and_a_local_view():
    method = model(flip=0.0)
    views = views_of(method)
    pictures = method.pictures(views)
    names = ["input", "masked_input", "reconstruction"]
    assert list(pictures) == names + ["local_" + name for name in names]
    torch.testing.assert_close(pictures["local_input"], views.volume_local_BVCZYX[:, 0, 0].clamp(0, 1))
    for prefix, masked in (("", views.masked_global_BVN[:, 0]), ("local_", views.masked_local_BVN[:, 0])):
        shown = {name: patchify(pictures[prefix + name][:, None], 4) for name in names}
        assert shown["masked_input"][masked].abs().max() == 0
        assert torch.equal(shown["reconstruction"][~masked], shown["input"][~masked])
        assert not torch.equal(shown["reconstruction"][masked], shown["input"][masked])


@pytest.mark.slow
def test_a_short_run_learns_and_does_not_collapse():
    """The specification's optional smoke run, on its small configuration."""
    torch.manual_seed(0)
    numbers = {"global_vox": (40, 40, 40), "local_vox": (24, 24, 24), "region_vox": (64, 64, 64), "local_views": 4}
    method = Model(
        Config(**PRESETS["small"] | numbers | {"prototypes": 64, "frozen_share": 0.05, "temperature_warmup": 0.3}),
        ViT(8, 96, 4, 4),
    )
    place = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 3, indexing="ij"))
    shift = torch.linspace(-0.4, 0.4, 4)[:, None, None, None]
    volume = torch.exp(-3 * ((place[0] - shift) ** 2 + (place[1] + shift) ** 2 + place[2] ** 2))
    volume = volume * (0.8 + 0.2 * torch.sin(20 * place[0] + 9 * place[2] + 7 * shift))
    given = batch(4, (64, 64, 64)) | {"region_BCZYX": (1000 * volume)[:, None].to(torch.int16)}
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3, betas=(0.9, 0.95))
    told: list[dict[str, float]] = []
    for step in range(30):
        terms = method(method.views(given, keys(4, step)), step / 29)
        told.append({name: term.sum.item() / term.count.item() for name, term in terms.items()})
        optimiser.zero_grad()
        reduce_terms(terms)[0].backward()
        optimiser.step()
        method.after_step(step / 29, 30)
    assert all(math.isfinite(value) for values in told for value in values.values())
    for name in ("global_reconstruction", "local_reconstruction"):
        assert sum(t[name] for t in told[-3:]) < 0.9 * sum(t[name] for t in told[:3]), name
    assert 0.05 * math.log(64) < told[-1]["teacher_entropy"] < 0.999 * math.log(64)
    views = method.views(given, keys(4, 99))
    exact = loss_of(method, views, 1.0).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(method, views, 1.0).item() == pytest.approx(exact, rel=0.02)


# ---------------------------------------------------------------------------------------------------- oracle
@pytest.fixture
def dino(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Imports the authors' main_dino, whose image transforms are not needed here, into a group of one process."""
    checkout = Path(os.environ.get("VOXPRIOR_PEERS", "")) / "dino"
    if "VOXPRIOR_PEERS" not in os.environ or not (checkout / "main_dino.py").is_file():
        pytest.skip("VOXPRIOR_PEERS names no folder with a checkout of dino")
    monkeypatch.syspath_prepend(checkout)
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models"):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(sys.modules["torchvision"], name.rsplit(".")[-1], module)
    for name in ("utils", "vision_transformer", "main_dino"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    import main_dino

    yield main_dino
    dist.destroy_process_group()
    for name in ("utils", "vision_transformer", "main_dino"):
        sys.modules.pop(name, None)


@pytest.mark.oracle
def test_oracle_dino_loss_and_centre(dino: Any):
    """Same logits, same loss; DINO leaves pairs of the same view out, as `cross` does."""
    p, q, samples, k = 2, 6, 5, 32
    generator = torch.Generator().manual_seed(0)
    theirs, centre, worst = dino.DINOLoss(k, p + q, 0.04, 0.07, 3, 10), Centre(k), []
    for epoch, temperature in enumerate((0.04, 0.055, 0.07, 0.07)):
        student = torch.randn(p + q, samples, k, generator=generator).requires_grad_()
        teacher = torch.randn(p, samples, k, generator=generator)
        expected = theirs(student.flatten(0, 1), teacher.flatten(0, 1), epoch)
        (gradient,) = torch.autograd.grad(expected, student)
        anchor_BPK, view_BVK = teacher.transpose(0, 1), student.transpose(0, 1)
        q_BPK = assign(anchor_BPK, centre.mean_K, temperature)
        parts = [
            cross_entropy(q_BPK, view_BVK[:, :p], 0.1, "cross"),
            cross_entropy(q_BPK, view_BVK[:, p:], 0.1, "all"),
        ]
        ours = sum(total for total, _ in parts) / sum(count for _, count in parts)
        (ours_gradient,) = torch.autograd.grad(ours, student)
        centre.note(anchor_BPK.flatten(0, 1))
        centre.move(0.9)
        worst.append(
            [
                abs(ours.item() / expected.item() - 1),
                (ours_gradient - gradient).abs().max() / gradient.abs().max(),
                (centre.mean_K - theirs.center[0]).abs().max(),
            ]
        )
    loss, gradient, apart = np.array(worst, dtype=float).max(0)
    print(f"largest difference to DINO: loss {loss:.1e}, gradient {gradient:.1e} (relative), centre {apart:.1e}")
    assert loss < 1e-5 and gradient < 1e-5 and apart < 1e-6


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_oracle_dino_head(dino: Any):
    theirs = dino.DINOHead(48, 32, hidden_dim=64, bottleneck_dim=16)
    projector, prototypes = dino_projector(48, 64, 16), Prototypes(16, 32)
    projector.load_state_dict(theirs.mlp.state_dict())
    prototypes.direction_KE.data.copy_(theirs.last_layer.weight_v.data)
    row = torch.randn(20, 48, generator=torch.Generator().manual_seed(0))
    expected, ours = theirs(row), prototypes(projector(row))
    expected.square().sum().backward()
    ours.square().sum().backward()
    pairs = [(ours, expected), (prototypes.direction_KE.grad, theirs.last_layer.weight_v.grad)]
    pairs += [(projector[0].weight.grad, theirs.mlp[0].weight.grad)]
    apart = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    print("largest relative difference to DINO's head: output, gradient of last and first layer", apart)
    assert max(apart) < 1e-5
