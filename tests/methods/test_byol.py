"""BYOL: the loss, the teacher, the views, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from voxprior.errors import Refusal
from voxprior.maths import chance, pairs
from voxprior.methods import byol, pgl
from voxprior.methods.byol import Config, Model
from voxprior.methods.contract import Batch
from voxprior.nets.backbones import Backbone
from voxprior.nets.residual import ResidualEncoder
from voxprior.nets.vit import ViT

SMALL = {"view_vox": (16, 16, 24), "head_hidden": 16, "head_out": 8, "head_norm": "layer", "shared_z": False}
CONFIG = Config(**SMALL)
CONFIGS = Path(__file__).parents[2] / "config" / "methods"
CNN = Backbone("cnn", "cnn", {"channels": [4, 6, 8, 8], "blocks": 1, "pretrained_stages": 3})
VIT = Backbone("vit", "vit", {"patch_vox": 8, "width": 48, "depth": 1, "heads": 2, "mlp_ratio": 2.0})


def _model(config: Config = CONFIG, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(config, ResidualEncoder([4, 6, 8], blocks=1))


def _batch(samples: int = 3, size: tuple = (32, 36, 48)) -> Batch:
    volume = torch.randint(0, 1000, (samples, 1, *size), generator=torch.Generator().manual_seed(3))
    return {
        "region_BCZYX": volume.to(torch.int16),
        "quantum_B": torch.full((samples,), 1e-3),
        "spacing_mm_B3": torch.full((samples, 3), 2.0),
        "valid_lo_B3": torch.zeros(samples, 3, dtype=torch.int64),
        "valid_hi_B3": torch.tensor(size).repeat(samples, 1),
    }


def _keys(samples: int = 3, step: int = 0) -> torch.Tensor:
    return chance.keys(0, step, torch.arange(samples))


def test_the_loss_is_the_symmetric_distance_of_pooled_vectors_as_in_a_slow_loop():
    model = _model()
    views = model.views(_batch(), _keys())
    with torch.no_grad():
        model.teacher.projector.narrow.weight.mul_(-1.5)
        term = model(views, 0.0)["global_consistency"]
        total = 0.0
        for b in range(3):
            vectors = {}
            for v in (0, 1):
                volume = views.volume_BVCZYX[b : b + 1, v]
                pooled = model.encoder(volume)[-1].numpy()[0].reshape(8, -1).mean(1)
                mine = torch.tensor(pooled)[None]
                vectors["q", v] = model.predictor(model.projector(mine))[0].double().numpy()
                vectors["z", v] = model.teacher.projector(mine)[0].double().numpy()
            for v in (0, 1):
                q, z = vectors["q", v], vectors["z", 1 - v]
                q, z = q / np.sqrt((q * q).sum()), z / np.sqrt((z * z).sum())
                total += ((q - z) ** 2).sum()
    assert float(term.count) == 3
    assert float(term.sum) == pytest.approx(total, rel=1e-4)


def test_views_hold_what_their_boxes_say():
    model = _model(CONFIG.model_copy(update={"noise": 0.0, "blur": 0.0, "brightness": 0.0, "gamma": 0.0}))
    ramp = torch.arange(36).view(1, 1, 1, 36, 1).expand(3, 1, 32, 36, 48).to(torch.int16)
    views = model.views(_batch() | {"region_BCZYX": ramp, "quantum_B": torch.ones(3)}, _keys())
    place = pairs.to_volume(
        (2 * torch.arange(16) + 1) / 16 - 1, views.lo_BV3[..., 1:2], views.hi_BV3[..., 1:2], views.flipped_BV3[..., 1:2]
    )
    seen = views.volume_BVCZYX[:, :, 0, 8, :, 12] + 0.5
    assert (seen - place)[..., 2:-2].abs().max() < 0.1
    assert views.flipped_BV3.any() and not views.flipped_BV3.all()


def test_view_sizes_may_be_given_in_mm():
    config = Config(**SMALL | {"view_mm": (32.0, 24.0, 36.0)})
    views = _model(config).views(_batch() | {"spacing_mm_B3": torch.tensor([[2.0, 1.0, 3.0]]).repeat(3, 1)}, _keys())
    factor = (views.hi_BV3 - views.lo_BV3) / torch.tensor([16.0, 24.0, 12.0])
    assert factor.min() >= 1.1 - 1e-5 and factor.max() <= 1.4 + 1e-5
    assert byol.region(config, CNN).size_mm == (64.0, 48.0, 72.0)
    assert byol.region(CONFIG, CNN).size_mm is None and byol.region(CONFIG, CNN).size_vox == (32, 32, 48)
    assert byol.region(Config(), CNN).size_vox == (23, 192, 192)


def test_both_views_are_changed_each_on_its_own():
    config = CONFIG.model_copy(update={"brightness": 1.0, "noise": 0.0, "blur": 0.0, "gamma": 0.0, "flip": 0.0})
    constant = _batch() | {"region_BCZYX": torch.full((3, 1, 32, 36, 48), 500, dtype=torch.int16)}
    seen = _model(config).views(constant, _keys()).volume_BVCZYX.flatten(2)
    assert seen.std(-1).max() < 1e-5 and seen.mean(-1).flatten().unique().numel() == 6


def test_T08_teacher_starts_equal_and_follows_by_the_formula():
    model = _model()
    pairs_of = [(model.teacher.encoder, model.encoder), (model.teacher.projector, model.projector)]
    for teacher, student in pairs_of:
        for (name, mine), its in zip(teacher.state_dict().items(), student.state_dict().values(), strict=True):
            assert torch.equal(mine, its) and mine.data_ptr() != its.data_ptr(), name
    with torch.no_grad():
        for parameter in [*model.encoder.parameters(), *model.projector.parameters()]:
            parameter.add_(torch.randn_like(parameter))
    before = [[tensor.clone() for tensor in teacher.state_dict().values()] for teacher, _ in pairs_of]
    model.after_step(1.0, 300)
    for (teacher, _), old in zip(pairs_of, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), old, strict=True))
    momentum = model.momentum(0.4, 300)
    model.after_step(0.4, 300)
    for (teacher, student), old in zip(pairs_of, before, strict=True):
        for mine, was, its in zip(teacher.state_dict().values(), old, student.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, momentum * was + (1 - momentum) * its, rtol=0, atol=1e-6)


def test_T08_momentum_rises_to_1_along_a_cosine():
    released = _model(Config(**SMALL, schedule="released"))
    for progress in (0.0, 0.3, 1.0):
        expected = 1 - (1 - 0.996) * (np.cos(np.pi * progress) + 1) / 2
        assert released.momentum(progress, 50) == released.momentum(progress, 5000) == pytest.approx(expected, abs=1e-9)
    # The published momentum at the published length, 7063 steps, is the half-life that is a share of the run.
    assert _model().momentum(0.0, 7063) == pytest.approx(0.996, abs=2e-5)
    assert _model().momentum(0.0, 300) == pytest.approx(0.5 ** (1 / (0.0245 * 300)))


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_byol_and_pgl_have_the_same_numbers(preset):
    ours, theirs = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())[preset] for name in ("byol", "pgl"))
    assert ours == theirs
    shared = Config(**ours).model_dump()
    assert {key: pgl.Config(**theirs).model_dump()[key] for key in shared} == shared


def test_the_paper_trains_by_lars_and_others_by_their_backbones_recipe():
    assert byol.recipe(CONFIG, 2) is None
    asked = byol.recipe(Config(optimiser="lars"), 128)
    assert asked["optimiser"] == "lars" and asked["lr"] == pytest.approx(0.1) and asked["clip"] is None
    assert (asked["weight_decay"], asked["warmup"]) == (1.5e-6, 0.004)
    assert pgl.recipe(pgl.Config(optimiser="lars"), 1)["lr"] == pytest.approx(0.2 / 256)


def test_a_batch_of_one_with_batch_statistics_is_refused():
    config = Config(**SMALL | {"head_norm": "batch"})
    for refused in (byol.recipe, lambda c, n: pgl.recipe(pgl.Config(**c.model_dump(), lambda_global=1.0), n)):
        with pytest.raises(Refusal, match="batch of one"):
            refused(config, 1)
    model = _model(config)
    with pytest.raises(Refusal, match="batch of one"):
        model(model.views(_batch(1), _keys(1)), 0.0)
    assert pgl.recipe(pgl.Config(**config.model_dump()), 1) is None


@pytest.mark.parametrize(
    ("changes", "backbone", "words"),
    [
        ({"view_vox": (16, 18, 24)}, CNN, "multiple of 4"),
        ({"view_vox": (16, 24, 20)}, VIT, "multiple of 8"),
        ({"level": 3}, CNN, "level 3"),
        ({"level": 1}, VIT, "level 1"),
        ({"standardise_weights": True}, VIT, "convolutions"),
    ],
)
def test_views_and_levels_that_do_not_fit_are_refused(changes, backbone, words):
    with pytest.raises(Refusal, match=words):
        byol.region(Config(**SMALL | changes), backbone)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_overlap": 0.9}, "cannot be reached by"),
        ({"scale": (1.4, 1.1)}, "increase"),
        ({"parent": 1.2}, "parent"),
        ({"view_vox": (0, 16, 16)}, "positive"),
        ({"min_overlap": 1.0}, "less than 1"),
    ],
)
def test_numbers_that_allow_no_pairs_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Config(**SMALL | changes)


def test_more_than_5_percent_of_volumes_too_small_for_a_pair_are_refused():
    spacing = [(2.0, 2.0, 2.0)] * 40
    fits, small = (20, 40, 40), (17, 40, 40)  # 16 voxels at scale 1.1 are 17.6
    assert byol.suits(CONFIG, [small] * 2 + [fits] * 38, spacing) is None
    assert "3 of 40" in byol.suits(CONFIG, [small] * 3 + [fits] * 37, spacing)
    in_mm = Config(**SMALL | {"view_mm": (32.0, 32.0, 48.0)})
    assert byol.suits(in_mm, [fits] * 40, spacing) is None
    assert "40 of 40" in byol.suits(in_mm, [fits] * 40, [(1.0, 2.0, 2.0)] * 40)


def test_pairs_that_fall_back_are_counted():
    batch = _batch(4)
    batch["valid_hi_B3"][:2, 0] = 12
    model = _model()
    monitor = model(model.views(batch, _keys(4)), 0.0)["fallback_share"]
    assert (float(monitor.sum), float(monitor.count), monitor.weight) == (2, 4, 0)


def test_a_finer_level_trains_and_hands_on_the_stages_above_it():
    model = _model(CONFIG.model_copy(update={"level": 1}))
    assert model.cells_zyx == (8, 8, 12)
    model(model.views(_batch(), _keys()), 0.0)["global_consistency"].sum.backward()
    silent = {name.split(".")[1] for name, p in model.encoder.named_parameters() if p.grad is None}
    assert silent == {"2"}
    assert {name.split(".")[1] for name in model.encoder_state()} == {"0", "1"}


@pytest.mark.parametrize("encoder", [lambda: ResidualEncoder([4, 6, 8], 1), lambda: ViT(8, 48, 1, 2, 2.0)])
def test_the_teacher_is_no_part_of_what_is_trained(encoder):
    model = Model(CONFIG, encoder())
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in model.teacher.parameters()}
    assert len(trained) == sum(
        1 for part in (model.encoder, model.projector, model.predictor) for _ in part.parameters()
    )


@pytest.mark.parametrize("method", [byol, pgl])
def test_a_whole_step_runs_on_the_meta_device_where_costs_are_counted(method):
    with torch.device("meta"):
        model = method.Model(method.Config(**SMALL), ResidualEncoder([4, 6, 8], blocks=1))
    views = model.views({name: tensor.to("meta") for name, tensor in _batch().items()}, _keys().to("meta"))
    terms = model(views, 0.0)
    next(iter(terms.values())).sum.backward()
    model.after_step(0.1, 10)
    assert all(p.grad is not None for p in model.encoder.parameters())
