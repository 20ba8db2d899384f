"""Asks every pretraining method, on every kind of backbone that it accepts, the same questions.

Golden losses stand in `golden.json`, one entry per method, kind and version. When a change moves them on purpose,
raise `version` in the method's Config and run `python tests/methods/test_contract.py`, which adds the missing entries
and never touches those that exist.
"""

import io
import json
import math
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch import Tensor, nn

from voxprior.maths import chance
from voxprior.maths.batch import Term
from voxprior.maths.ema import relative_distance
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone
from voxprior.nets.vit import ViT

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "config" / "methods"
GOLDEN = HERE / "golden.json"
TAUGHT = {"glmae", "anatomask", "byol", "pgl"}  # methods with a teacher
BACKBONES = {
    "vit": Backbone(
        "vit",
        "vit",
        {"patch_vox": 8, "width": 48, "depth": 3, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4},
    ),
    "cnn": Backbone("cnn", "cnn", {"channels": [8, 16, 24, 32, 32], "blocks": 1, "pretrained_stages": 4}),
    "primus": Backbone(
        "primus",
        "vit",
        {"kind": "primus", "patch_vox": 8, "width": 48, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
        | {"learnt_zyx": [4, 4, 4], "norm_eps": 1e-5},
    ),
}


def absent(method: str, family: str) -> str | None:
    """Names the module that a method or a family still lacks."""
    for name in (METHODS[method], "voxprior.nets.residual" if family == "cnn" else "voxprior.nets.vit"):
        try:
            import_module(name)
        except ModuleNotFoundError as missing:
            return missing.name
    return None


PAIRS = [
    (method, family)
    for method in METHODS
    for family, backbone in BACKBONES.items()
    if absent(method, family) or load(method).accepts(backbone) is None
]


class Subject:
    """One method on one backbone, with the tiny preset."""

    def __init__(self, method: str, family: str) -> None:
        self.method, self.backbone = method, BACKBONES[family]
        self.module: ModuleType = load(method)
        preset = yaml.safe_load((CONFIG / f"{method}.yaml").read_text(encoding="utf-8"))["tiny"]
        self.config = self.module.Config(**preset)

    def model(self, seed: int = 0) -> nn.Module:
        """Builds the method with weights drawn from `seed`."""
        torch.manual_seed(seed)
        return self.module.Model(self.config, self.backbone.encoder())

    def batch(self, samples: int = 4) -> dict[str, Tensor]:
        """Makes smooth phantoms with fine stripes, of which the last one is padded."""
        size = self.module.region(self.config, self.backbone).size_vox
        axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
        place_B = torch.arange(samples).float()[:, None, None, None]
        radius = sum((axis[None] - 0.2 * torch.sin(place_B + turn)) ** 2 for turn, axis in enumerate(axes))
        volume = torch.exp(-3.0 * radius) * (0.8 + 0.2 * torch.sin(12 * axes[0] + 9 * axes[2])[None])
        lo, hi = torch.zeros(samples, 3, dtype=torch.int64), torch.tensor(size).repeat(samples, 1)
        hi[-1, 0] -= size[0] // 2
        volume[-1, hi[-1, 0] :] = 0.0
        return {
            "region_BCZYX": (1000 * volume).round().to(torch.int16)[:, None],
            "quantum_B": torch.full((samples,), 1e-3),
            "spacing_mm_B3": torch.full((samples, 3), 3.0),
            "valid_lo_B3": lo,
            "valid_hi_B3": hi,
        }

    def views(self, model: nn.Module, samples: int = 4, step: int = 0) -> tuple:
        """Makes the views of one step."""
        return model.views(self.batch(samples), chance.keys(0, step, torch.arange(samples)))


def loss_of(model: nn.Module, views: tuple, progress: float = 0.0) -> Tensor:
    """Adds the terms as the training loop does."""
    terms = trained(model(views, progress)).values()
    return sum(term.weight * term.sum / term.count for term in terms)


def trained(terms: dict[str, Term]) -> dict[str, Term]:
    """Leaves the monitors out."""
    return {name: term for name, term in terms.items() if term.weight}


def train(
    subject: Subject, model: nn.Module, optimiser: torch.optim.Optimizer, steps: range, total_steps: int = 9
) -> list[float]:
    """Takes steps as the training loop does, with a new draw at each, and returns the losses."""
    losses = []
    for step in steps:
        progress = step / (total_steps - 1)
        loss = loss_of(model, subject.views(model, step=step), progress)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step(progress, total_steps)
        losses.append(loss.item())
    return losses


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    """Makes the optimiser of the golden losses."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))


def tensors(views: tuple) -> dict[str, Tensor]:
    """Names the tensors among the views."""
    return {name: value for name, value in views._asdict().items() if isinstance(value, Tensor)}


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def subject(request: pytest.FixtureRequest) -> Subject:
    method, family = request.param
    if name := absent(method, family):
        pytest.skip(f"{name} is not there yet")
    return Subject(method, family)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_accepts_a_family_or_says_why_not(method: str):
    if name := absent(method, "cnn") or absent(method, "vit"):
        pytest.skip(f"{name} is not there yet")
    module = load(method)
    reasons = [module.accepts(backbone) for backbone in BACKBONES.values()]
    assert None in reasons
    assert all(len(reason.split()) > 5 for reason in reasons if reason), "a refusal is a sentence"
    assert module.TITLE and module.Config().version >= 1


def test_wrong_words_in_the_configuration_are_refused(subject: Subject):
    with pytest.raises(ValueError, match="mask_ration"):
        subject.module.Config(mask_ration=0.5)


def test_every_preset_is_a_configuration(subject: Subject):
    presets = yaml.safe_load((CONFIG / f"{subject.method}.yaml").read_text(encoding="utf-8"))
    assert set(presets) == {"tiny", "small", "paper"}
    for numbers in presets.values():
        subject.module.Config(**numbers)


def test_every_encoder_parameter_gets_a_gradient(subject: Subject):
    model = subject.model()
    loss_of(model, subject.views(model)).backward()
    silent = [name for name, p in model.encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_same_seed_same_loss_bit_for_bit(subject: Subject):
    losses = []
    for seed in (3, 3, 4):
        model = subject.model(seed)
        losses.append(loss_of(model, subject.views(model)))
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_views_follow_the_key_and_nothing_else(subject: Subject):
    model = subject.model()
    torch.manual_seed(1)
    first = tensors(subject.views(model, step=5))
    torch.manual_seed(2)
    again, later = tensors(subject.views(model, step=5)), tensors(subject.views(model, step=6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], later[name]) for name in first)


def test_ranks_see_the_draws_of_one_process_and_their_terms_add_up(subject: Subject):
    model, whole = subject.model(), subject.batch(4)
    key_B = chance.keys(0, 0, torch.arange(4))
    views = model.views(whole, key_B)
    ranks = [model.views({k: v[half] for k, v in whole.items()}, key_B[half]) for half in (slice(0, 2), slice(2, 4))]
    for name, value in tensors(views).items():
        assert torch.equal(value, torch.cat([tensors(rank)[name] for rank in ranks])), name
    with torch.no_grad():
        together, apart = model(views, 0.0), [model(rank, 0.0) for rank in ranks]
    for name, term in trained(together).items():
        assert float(sum(part[name].sum for part in apart)) == pytest.approx(float(term.sum), rel=1e-5)
        assert float(sum(part[name].count for part in apart)) == float(term.count) > 0


def test_padding_counts_in_no_term(subject: Subject):
    """A method whose crops may hold padding counts fewer patches; one that cuts inside the real box never sees it."""
    model, batch = subject.model(), subject.batch(4)
    key_B = chance.keys(0, 0, torch.arange(4))
    if "valid_BN" not in tensors(model.views(batch, key_B)):
        other = batch | {"region_BCZYX": batch["region_BCZYX"].clone()}
        other["region_BCZYX"][-1, :, int(batch["valid_hi_B3"][-1, 0]) :] = 999
        assert not torch.equal(other["region_BCZYX"], batch["region_BCZYX"])
        seen, changed = tensors(model.views(batch, key_B)), tensors(model.views(other, key_B))
        assert all(torch.equal(seen[name], changed[name]) for name in seen)
        return
    full = batch | {"valid_hi_B3": batch["valid_hi_B3"].amax(0, keepdim=True).expand(4, 3)}
    padded, unpadded = model(model.views(batch, key_B), 0.0), model(model.views(full, key_B), 0.0)
    assert sum(float(t.count) for t in padded.values()) < sum(float(t.count) for t in unpadded.values())


def test_student_voxels_is_what_the_views_hold(subject: Subject):
    model = subject.model()
    volumes = [v for name, v in tensors(subject.views(model)).items() if name.startswith("volume")]
    assert model.student_voxels == sum(math.prod(v.shape[1:]) for v in volumes) > 0


def test_loss_falls_on_one_batch(subject: Subject):
    model = subject.model()
    views, optimiser = subject.views(model, samples=2), adam(model, 2e-3)
    first = float("inf")
    for _ in range(50):
        loss = loss_of(model, views)
        if loss.item() < 0.75 * first:
            return
        first = loss.item() if math.isinf(first) else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pytest.fail(f"the loss went from {first:.3f} to {loss.item():.3f} in 50 steps on one batch")


def test_resumed_run_equals_uninterrupted_run(subject: Subject):
    model = subject.model()
    optimiser = adam(model)
    straight = train(subject, model, optimiser, range(4))

    model = subject.model()
    optimiser = adam(model)
    begun = train(subject, model, optimiser, range(2))
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    resumed = subject.model(seed=9)
    resumed.load_state_dict(state["model"])
    optimiser = adam(resumed)
    optimiser.load_state_dict(state["optimiser"])
    assert begun + train(subject, resumed, optimiser, range(2, 4)) == straight


def test_bfloat16_loss_is_close_to_float32(subject: Subject):
    model = subject.model()
    views = subject.views(model)
    with torch.no_grad():
        exact = loss_of(model, views)
        with torch.autocast("cpu", torch.bfloat16):
            terms = model(views, 0.0)
    assert all(term.sum.dtype == torch.float32 for term in terms.values())
    rough = sum(term.weight * term.sum / term.count for term in trained(terms).values())
    assert float(rough) == pytest.approx(float(exact), rel=0.02)


def test_whole_encoder_fits_the_segmentation_network(subject: Subject):
    model = subject.model()
    network = subject.backbone.segmenter(3, subject.module.region(subject.config, subject.backbone).size_vox)
    here, there = model.encoder.state_dict(), network.encoder.state_dict()
    assert {name: there[name].shape for name in here if name in there} == {n: t.shape for n, t in here.items()}


def test_whole_encoder_is_placed(subject: Subject):
    transfer = pytest.importorskip("voxprior.nets.transfer", exc_type=ModuleNotFoundError)
    model = subject.model()
    network = subject.backbone.segmenter(3, subject.module.region(subject.config, subject.backbone).size_vox)
    report = transfer.place(model.encoder.state_dict(), network)
    assert report["placed_share"] == 1.0 and report["placed"] == len(model.encoder.state_dict())
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(network.encoder.state_dict()[name], tensor), name


def test_compiled_numbers_are_the_same(subject: Subject):
    model = subject.model()
    views = subject.views(model)
    expected = loss_of(model, views)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.compiler.reset()
    compiled = loss_of(torch.compile(model, backend="aot_eager"), views)
    compiled.backward()
    assert compiled.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def teacher_of(model: nn.Module) -> nn.Module | None:
    """Returns the network that follows by EMA, if the method has one."""
    return getattr(model, "teacher", None)


def test_a_teacher_gets_no_gradient_and_is_no_business_of_the_optimiser(subject: Subject):
    model = subject.model()
    loss_of(model, subject.views(model), 0.7).backward()
    followed = list((teacher_of(model) or nn.Module()).parameters())
    assert all(not p.requires_grad and p.grad is None for p in followed)
    assert (followed != []) == (subject.method in TAUGHT)


def test_a_teacher_follows_only_after_the_step(subject: Subject):
    if (teacher := teacher_of(model := subject.model())) is None:
        assert subject.method not in TAUGHT
        return
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    optimiser = adam(model)
    loss_of(model, subject.views(model)).backward()
    optimiser.step()
    assert relative_distance(teacher.state_dict(), before) == 0
    model.after_step(0.0, 300)
    assert relative_distance(teacher.state_dict(), before) > 0


def deepest(model: nn.Module, volume_BCZYX: Tensor) -> Tensor:
    """Encodes whole crops and returns one row per token or deepest voxel: (rows, width)."""
    if isinstance(model.encoder, ViT):
        return model.encoder.taps(volume_BCZYX, after=())[-1].flatten(2).transpose(1, 2).flatten(0, 1)
    return model.encoder(volume_BCZYX)[-1].flatten(2).transpose(1, 2).flatten(0, 1)


def spread(model: nn.Module) -> float:
    """Measures how different the features of different places are: mean deviation per channel over mean size."""
    volume = torch.rand(4, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    volume *= torch.linspace(0, 1, 32)[:, None]
    with torch.no_grad():
        row_RD = deepest(model, volume)
    return float(row_RD.std(dim=0).mean() / row_RD.square().mean().sqrt())


def test_features_do_not_collapse(subject: Subject):
    model = subject.model()
    before = spread(model)
    train(subject, model, adam(model), range(25), 25)
    assert spread(model) > 0.25 * before


@pytest.mark.slow
def test_in_a_run_of_300_steps_the_teacher_moves_and_nothing_collapses(subject: Subject):
    model = subject.model()
    before = spread(model)
    train(subject, model, adam(model), range(300), 300)
    assert spread(model) > 0.25 * before
    fresh = subject.model()
    student = relative_distance(model.encoder.state_dict(), fresh.encoder.state_dict())
    assert student > 0.05
    if (teacher := teacher_of(model)) is not None:
        moved = relative_distance(teacher.state_dict(), teacher_of(fresh).state_dict())
        assert moved > 0.25 * student, f"the teacher moved by {moved:.3f}, the student by {student:.3f}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler; aot_eager is tested above")
def test_numbers_compiled_by_inductor_are_the_same(subject: Subject):
    model = subject.model()
    views = subject.views(model)
    with torch.no_grad():
        expected = loss_of(model, views, 0.7)
        torch.compiler.reset()
        compiled = loss_of(torch.compile(model), views, 0.7)
    assert compiled.item() == pytest.approx(expected.item(), rel=1e-4)


def test_masked_voxels_never_reach_the_encoder(subject: Subject):
    model = subject.model()
    views = subject.views(model)
    if not hasattr(views, "masked_BN"):
        # Masks made in `forward`, or none at all: the method's own tests ask this of each of its views.
        assert subject.method not in ("mae", "spark")
        return
    unit = subject.backbone.unit_vox
    cells = [side // unit for side in views.volume_BCZYX.shape[2:]]
    hidden = views.masked_BN.unflatten(1, cells)
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(unit, dim=axis)
    seen: list[list[Tensor]] = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor | list[Tensor]) -> None:
        seen.append([output] if isinstance(output, Tensor) else list(output))

    hook = model.encoder.register_forward_hook(keep)
    with torch.no_grad():
        for filling in (0.0, 1e3, math.nan):
            model(views._replace(volume_BCZYX=views.volume_BCZYX.masked_fill(hidden[:, None], filling)), 0.0)
    hook.remove()
    assert len(seen) >= 3, "the encoder is called, so that hooks see it"
    for other in seen[1:]:
        assert all(torch.equal(one, two) for one, two in zip(seen[0], other, strict=True))


def test_pictures_are_volumes_between_0_and_1_and_points_lie_in_them(subject: Subject):
    model = subject.model()
    pictures = model.pictures(subject.views(model))
    points = {name: value for name, value in pictures.items() if name.startswith("points_")}
    volumes = {name: value for name, value in pictures.items() if name not in points}
    assert volumes
    for picture in volumes.values():
        assert picture.ndim == 4 and len(picture) == 4 and picture.dtype == torch.float32
        assert picture.min() >= 0 and picture.max() <= 1 and not picture.requires_grad
    for name, point_BK3 in points.items():
        size = torch.tensor(volumes[name.removeprefix("points_")].shape[1:])
        known = point_BK3[~point_BK3.isnan().any(-1)]
        assert len(known) and (known >= 0).all() and (known <= size).all()


def test_pictures_of_masked_crops_show_input_mask_and_reconstruction(subject: Subject):
    model = subject.model()
    views = subject.views(model)
    pictures = model.pictures(views)
    if not hasattr(views, "masked_BN"):
        assert subject.method not in ("mae", "spark")
        return
    assert {"input", "masked_input", "reconstruction"} <= set(pictures)
    torch.testing.assert_close(pictures["input"], views.volume_BCZYX[:, 0].clamp(0, 1))
    assert (pictures["masked_input"] == 0).float().mean() >= views.masked_BN.float().mean()
    assert not torch.equal(pictures["reconstruction"], pictures["input"])


def golden_losses(subject: Subject) -> list[float]:
    """Trains three steps from seed 0."""
    model = subject.model()
    return train(subject, model, adam(model), range(3))


def golden_key(subject: Subject) -> str:
    """Names a golden entry: method/kind of backbone/version."""
    return f"{subject.method}/{subject.backbone.name}/{subject.config.version}"


def test_losses_move_only_with_the_version(subject: Subject):
    known, key = json.loads(GOLDEN.read_text(encoding="utf-8")), golden_key(subject)
    assert key in known, f"golden.json has no {key}: run python tests/methods/test_contract.py"
    # 1e-4: other CPUs add in another order.
    assert golden_losses(subject) == pytest.approx(known[key], rel=1e-4), (
        f"{subject.method} gives other losses: raise version in its Config (and run "
        "python tests/methods/test_contract.py), or undo the change"
    )


def add_missing_golden_losses() -> None:
    """Writes the entries that golden.json lacks."""
    known = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    for method, family in PAIRS:
        if name := absent(method, family):
            print(f"{method}: {name} is not there yet")
        elif golden_key(subject := Subject(method, family)) not in known:
            known[golden_key(subject)] = golden_losses(subject)
            print("added", golden_key(subject))
    GOLDEN.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    add_missing_golden_losses()
