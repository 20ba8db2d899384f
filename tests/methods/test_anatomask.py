"""AnatoMask: the numbered checks of its specification, and what else its parts promise.

The toy crop has 4 x 4 x 4 mask units: N = 64 patches, 26 visible, 38 masked. Oracle tests need the authors' code.
"""

import copy
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from voxprior.engine.step import parameter_groups
from voxprior.errors import Refusal
from voxprior.maths import chance, ema, masking, patches
from voxprior.maths.losses import masked_patch_error
from voxprior.methods import anatomask, spark
from voxprior.methods.anatomask import Config, Model, Views, hard_count, hard_share, patch_error, teacher_momentum
from voxprior.methods.contract import Batch
from voxprior.nets.backbones import Backbone
from voxprior.nets.residual import ResidualEncoder
from voxprior.nets.sparse import visible_pyramid
from voxprior.nets.transfer import place
from voxprior.nets.unet import UNet

CHANNELS, UNIT, CROP, CELLS = [4, 8, 16], 4, (16, 16, 16), (4, 4, 4)
NUMBERS = {"crop_vox": CROP, "decoder_width": 16}
CONFIG = Config(**NUMBERS)
PRESETS = yaml.safe_load((Path(__file__).parents[2] / "config" / "methods" / "anatomask.yaml").read_text())


def make(config: Config = CONFIG, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(config, ResidualEncoder(CHANNELS, blocks=1))


def keys(step: int = 0, samples: int = 2) -> Tensor:
    return chance.keys(0, step, torch.arange(samples))


def make_batch(samples: int = 2, padded: int = 0) -> Batch:
    """Noise of another strength in every patch; the last `padded` voxels along Z are padding."""
    chosen = torch.Generator().manual_seed(3)
    strength = torch.rand(samples, 64, 1, generator=chosen) * 400 + 50
    noise = 400 + strength * (torch.rand(samples, 64, UNIT**3, generator=chosen) - 0.5)
    volume = patches.unpatchify(noise, CELLS, UNIT).round()
    hi_B3 = torch.tensor(CROP).repeat(samples, 1)
    hi_B3[:, 0] -= padded
    volume[:, :, CROP[0] - padded :] = 0
    return {
        "region_BCZYX": volume.to(torch.int16),
        "quantum_B": torch.full((samples,), 1e-3),
        "valid_lo_B3": torch.zeros(samples, 3, dtype=torch.int64),
        "valid_hi_B3": hi_B3,
    }


def make_views(model: Model, step: int = 0, samples: int = 2, padded: int = 0) -> Views:
    return model.views(make_batch(samples, padded), keys(step, samples))


def views_of(volume_BCZYX: Tensor, step: int = 0) -> Views:
    """Wraps a volume whatever its intensities are, with a random mask for the teacher."""
    key_B = keys(step, len(volume_BCZYX))
    masked_BN = masking.random_masked(key_B, 64, 0.6, "teacher/mask")
    return Views(volume_BCZYX, masked_BN, torch.ones_like(masked_BN), key_B)


def loss_of(model: Model, views: Views, progress: float) -> Tensor:
    term = model(views, progress)["reconstruction"]
    return term.sum / term.count


def train(model: Model, optimiser: torch.optim.Optimizer, steps: range, total_steps: int) -> list[float]:
    losses = []
    for step in steps:
        progress = step / (total_steps - 1)
        loss = loss_of(model, make_views(model, step), progress)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step(progress, total_steps)
        losses.append(loss.item())
    return losses


# ------------------------------------------------------------------------------------------- the specification's checks
@pytest.mark.parametrize("poison", [7.0, 1e20, float("nan")])
def test_check_01_hidden_voxels_cannot_influence_anything(poison: float) -> None:
    model = make()
    views = make_views(model)
    patch_BNV = patches.patchify(views.volume_BCZYX, UNIT)
    masked_BN, _ = model.student_mask(views, patch_BNV, hard=19)
    other = patches.unpatchify(torch.where(masked_BN[:, :, None], poison, patch_BNV), CELLS, UNIT)
    visible = visible_pyramid(masked_BN, CELLS, len(CHANNELS))
    for one, two in zip(model.encoder(views.volume_BCZYX, visible), model.encoder(other, visible), strict=True):
        assert torch.equal(one, two) and torch.isfinite(two).all()
    for painter in (model.student, model.teacher):
        painted = painter(other, masked_BN)
        assert torch.equal(painter(views.volume_BCZYX, masked_BN), painted) and torch.isfinite(painted).all()


def test_check_02_features_are_zero_where_hidden() -> None:
    model = make()
    views = make_views(model)
    masked_BN, _ = model.student_mask(views, patches.patchify(views.volume_BCZYX, UNIT), hard=19)
    levels = visible_pyramid(masked_BN, CELLS, len(CHANNELS))
    for feature, level, stride in zip(model.encoder(views.volume_BCZYX, levels), levels, (1, 2, 4), strict=True):
        cells = masked_BN.numpy().reshape(2, 1, *CELLS)
        hidden = np.kron(cells, np.ones((1, 1, *(UNIT // stride,) * 3), dtype=bool))
        assert np.array_equal(hidden, ~level.voxels_B1ZYX.numpy())
        assert not feature[torch.from_numpy(hidden).expand_as(feature)].any()


@pytest.mark.parametrize("samples", [1, 3])
def test_check_03_sparse_equals_dense_where_everything_is_visible(samples: int) -> None:
    torch.manual_seed(0)
    encoder = ResidualEncoder(CHANNELS, blocks=1)
    volume = torch.rand(samples, 1, *CROP, generator=torch.Generator().manual_seed(1))
    visible = visible_pyramid(torch.zeros(samples, 64, dtype=torch.bool), CELLS, 3)
    for dense, sparse in zip(encoder(volume), encoder(volume, visible), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-5)


def test_check_04_statistics_are_per_sample() -> None:
    """The norm alone: `test_sparse.py`. Here, what a whole network makes of it."""
    model = make().eval()
    views = make_views(model)
    masked_BN = views.teacher_masked_BN
    other = views.volume_BCZYX.clone()
    other[1] = other[1] * 9 + 4
    together, changed = model.student(views.volume_BCZYX, masked_BN), model.student(other, masked_BN)
    assert torch.equal(together[0], changed[0]) and not torch.equal(together[1], changed[1])
    alone = model.student(views.volume_BCZYX[:1], masked_BN[:1])
    torch.testing.assert_close(alone, together[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("progress", "padded"), [(0.0, 0), (0.3, 0), (1.0, 0), (1.0, 8)])
def test_check_05_the_student_sees_exactly_as_many_patches_as_planned(progress: float, padded: int) -> None:
    """The counts for every size of crop and any score: `test_masking.py`."""
    model = make()
    views = make_views(model, samples=4, padded=padded)
    hard = hard_count(CONFIG, model.masked, progress)
    masked_BN, _ = model.student_mask(views, patches.patchify(views.volume_BCZYX, UNIT), hard)
    assert (model.visible, model.masked) == (26, 38)
    assert (~masked_BN).sum(1).tolist() == (~views.teacher_masked_BN).sum(1).tolist() == [26] * 4


def test_check_06_until_the_first_hard_patch_it_is_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution of the random part: `test_masking.py`."""
    model = make()
    torch.manual_seed(0)
    plain = spark.Model(spark.Config(**NUMBERS), ResidualEncoder(CHANNELS, blocks=1))
    monkeypatch.setattr(ema, "taught", lambda *_: pytest.fail("the teacher is asked though no patch would be hard"))
    for progress in (0.0, 0.05):
        ours = model(make_views(model), progress)
        theirs = plain(plain.views(make_batch(), keys()), progress)["reconstruction"]
        assert torch.equal(ours["reconstruction"].sum, theirs.sum)
        assert torch.equal(ours["reconstruction"].count, theirs.count)
        assert ours["hard_share"].sum == 0 and ours["hard_deviation"].count == 0


def test_check_07_the_hardest_patches_are_always_hidden() -> None:
    """Any score and share: `test_masking.py`. Here, that the teacher's score is what counts."""
    model = make()
    views = make_views(model, samples=3)
    patch_BNV = patches.patchify(views.volume_BCZYX, UNIT)
    masked_BN, hard_BN = model.student_mask(views, patch_BNV, hard=19)
    rows = set()
    for score, masked, hard in zip(model.score(views, patch_BNV).numpy(), masked_BN, hard_BN, strict=True):
        top = set(np.argsort(score)[-19:])
        assert set(hard.nonzero()[:, 0].tolist()) == top and masked[list(top)].all()
        rows.add(tuple(sorted(top)))
    assert len(rows) == 3


def test_check_08_the_rest_is_drawn_from_all_other_patches() -> None:
    """That it is uniform: `test_masking.py`. Here, that the teacher's visible patches are among it."""
    model = make()
    views = make_views(model, samples=4)
    masked_BN, hard_BN = model.student_mask(views, patches.patchify(views.volume_BCZYX, UNIT), hard=19)
    rest_BN = masked_BN & ~hard_BN
    assert (rest_BN.sum(1) == 19).all()
    assert (rest_BN & ~views.teacher_masked_BN).any(1).all() and (rest_BN & views.teacher_masked_BN).any(1).all()


def test_check_09_schedule() -> None:
    shares = [hard_share(CONFIG, step / 999) for step in range(1000)]
    assert shares[0] == 0.0 and shares[-1] == 0.5
    assert all(a < b for a, b in pairwise(shares))
    released = Config(**NUMBERS, schedule="released", epochs=1000)
    expected = {**dict.fromkeys(range(8), 0), 8: 1, 100: 11, 250: 29, 500: 58, 750: 88, 999: 117}
    assert {e: hard_count(released, 235, e / 999) for e in expected} == expected
    assert hard_share(released, 1.0) == pytest.approx(0.5 * 1000 / 999)
    mirror = Config(**NUMBERS, hard_start=0.5, hard_end=0.0)
    counts = [[hard_count(config, 235, step / 999) for step in range(1000)] for config in (CONFIG, mirror)]
    assert counts[0] == counts[1][::-1]


@pytest.mark.parametrize("per_epoch", [1, 7, 204])
def test_check_09_an_epoch_of_the_released_schedule_is_a_thousandth_of_the_run(per_epoch: int) -> None:
    steps = [0, per_epoch - 1, per_epoch, 8 * per_epoch, 999 * per_epoch - 1, 999 * per_epoch, 1000 * per_epoch - 1]
    epochs = [anatomask.epoch_of(step / (1000 * per_epoch - 1), 1000) for step in steps]
    assert epochs == [step // per_epoch for step in steps]


def test_check_10_loss_is_masked_standardised_squared_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(Config(**NUMBERS, flip=0.0))
    views = make_views(model, padded=8)
    predicted = torch.randn(2, 64, UNIT**3, requires_grad=True)
    masked_BN, hard_BN = model.student_mask(views, patches.patchify(views.volume_BCZYX, UNIT), hard=9)
    monkeypatch.setattr(model, "student_mask", lambda *_: (masked_BN, hard_BN))
    monkeypatch.setattr(model.student, "forward", lambda *_: predicted)
    loss = loss_of(model, views, 0.5)
    patch = patches.patchify(views.volume_BCZYX, UNIT).double().numpy()
    guess, total, count = predicted.detach().double().numpy(), 0.0, 0
    for b, n in np.ndindex(2, 64):
        if masked_BN[b, n] and views.valid_BN[b, n]:
            mean = sum(patch[b, n]) / UNIT**3
            variance = sum((patch[b, n] - mean) ** 2) / (UNIT**3 - 1)
            target = (patch[b, n] - mean) / math.sqrt(variance + 1e-6)
            total, count = total + sum((guess[b, n] - target) ** 2) / UNIT**3, count + 1
    assert count < masked_BN.sum() and loss.item() == pytest.approx(total / count, rel=1e-5)
    loss.backward()
    counted_BN = masked_BN & views.valid_BN
    assert not predicted.grad[~counted_BN].any() and predicted.grad[counted_BN].any(-1).all()
    with torch.no_grad():
        predicted[~counted_BN] += 100.0
    assert torch.equal(loss_of(model, views, 0.5), loss)


def test_check_10_loss_of_a_patch_ignores_brightness_and_contrast() -> None:
    chosen = torch.Generator().manual_seed(0)
    patch, predicted = (torch.randn(1, 4, 4096, generator=chosen) for _ in range(2))
    loss = spark.patch_loss(predicted, patch)
    torch.testing.assert_close(spark.patch_loss(predicted, 9 * patch - 4), loss, rtol=1e-4, atol=1e-4)
    zero = torch.zeros_like(patch)
    torch.testing.assert_close(spark.patch_loss(zero, patch), torch.full((1, 4), 1 - 1 / 4096), rtol=1e-5, atol=0)
    assert spark.patch_loss(zero, torch.full_like(patch, -1.8)).max() < 1e-6
    # The loss of the transformer methods is the same formula.
    total, count = masked_patch_error(predicted, patches.standardise(patch), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(total / count, loss.mean())


def test_check_11_score_is_the_training_loss() -> None:
    model = make(Config(**NUMBERS, flat_below=0.0))
    views = make_views(model, padded=8)
    patch_BNV = patches.patchify(views.volume_BCZYX, UNIT)
    score_BN = model.score(views, patch_BNV)
    with torch.no_grad():
        loss_BN = spark.patch_loss(model.student(views.volume_BCZYX, views.teacher_masked_BN), patch_BNV)
    ranked_BN = views.teacher_masked_BN & views.valid_BN
    assert torch.equal(score_BN[ranked_BN], loss_BN[ranked_BN])  # teacher = student at the start
    assert (score_BN[~ranked_BN] == -torch.inf).all() and (~ranked_BN & views.teacher_masked_BN).any()
    assert not score_BN.requires_grad and not score_BN.is_inference()
    with torch.no_grad():
        model.student.decoder.head.weight.add_(1.0)
        assert torch.equal(model.score(views, patch_BNV), score_BN)  # the teacher's, not the student's
        model.teacher.decoder.head.weight.add_(1.0)
        assert not torch.equal(model.score(views, patch_BNV), score_BN)


def test_check_11_what_a_perfect_prediction_scores() -> None:
    noise = torch.randn(1, 3, 4096, generator=torch.Generator().manual_seed(0))
    mean, deviation = torch.tensor([0.0, 1.0, -1.8]), torch.tensor([0.3, 0.3, 0.0])
    patch = patches.standardise(noise, eps=0.0) * deviation[:, None] + mean[:, None]
    perfect = patches.standardise(patch, eps=1e-12)
    perfect[:, 2] = 0.0
    for score in ("norm", "denorm"):
        assert patch_error(perfect, patch, score).max() < 1e-4
    textured = mean**2 + (1 - deviation) ** 2 * (1 - 1 / 4096)
    expected = torch.where(deviation > 0, textured, mean**2)[None]
    torch.testing.assert_close(patch_error(perfect, patch, "released"), expected, rtol=1e-4, atol=1e-4)
    assert expected[0].tolist() == pytest.approx([0.4899, 1.4899, 3.24], abs=1e-4)
    wrong = torch.zeros_like(patch)
    variance = patch.var(-1, unbiased=True)
    loss = patch_error(wrong, patch, "norm")
    torch.testing.assert_close(patch_error(wrong, patch, "denorm"), variance * loss, rtol=1e-3, atol=1e-6)


def test_check_12_teacher_follows_the_closed_form() -> None:
    model, total_steps = make(), 40
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    expected = {name: tensor.double() for name, tensor in model.teacher.state_dict().items()}
    for step in range(5):
        progress = step / (total_steps - 1)
        loss_of(model, make_views(model, step), progress).backward()
        optimiser.step()
        model.after_step(progress, total_steps)
        m = teacher_momentum(CONFIG, progress, total_steps)
        student = model.student.state_dict()
        expected = {name: m * old + (1 - m) * student[name].double() for name, old in expected.items()}
    for name, tensor in model.teacher.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=0, atol=1e-6)
    assert not model.train().teacher.training and model.student.training
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert len(optimiser.state) == len(list(model.student.parameters()))


def test_check_12_momentum_of_the_released_schedule() -> None:
    config = Config(**NUMBERS, schedule="released", epochs=1000)
    found = [teacher_momentum(config, epoch / 999, 204_000) for epoch in (0, 125, 250, 600, 999)]
    assert found == pytest.approx([0.999, 0.99945, 0.9999, 0.9999, 0.9999], abs=1e-12)
    assert teacher_momentum(config, 0.0, 50) == 0.999


def test_check_12_half_lives_are_shares_of_the_run() -> None:
    """At the authors' length both schedules agree; in a short run the teacher still moves."""
    long, released = 204_000, Config(**NUMBERS, schedule="released")
    for epoch in (0, 60, 125, 249, 250, 700, 999):
        progress = epoch / 999
        ours, literal = (teacher_momentum(config, progress, long) for config in (CONFIG, released))
        assert 1 - ours == pytest.approx(1 - literal, rel=0.01)
    for total_steps in (100, 1500, long):
        for progress, share in ((0.0, 0.0034), (0.25, 0.034), (1.0, 0.034)):
            momentum = teacher_momentum(CONFIG, progress, total_steps)
            assert momentum ** max(share * total_steps, 5.0) == pytest.approx(0.5)
    rising = [teacher_momentum(CONFIG, p / 100, long) for p in range(26)]
    assert all(a < b for a, b in pairwise(rising))


def test_check_13_only_the_student_learns_and_all_of_it() -> None:
    model = make()
    before = copy.deepcopy(model.teacher.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss_of(model, make_views(model), 1.0).backward()
    assert [name for name, p in model.student.named_parameters() if p.grad is None or not p.grad.any()] == []
    optimiser.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.teacher.state_dict().items())
    recipe = type("Recipe", (), {"weight_decay": 0.01, "optimiser": "adamw"})()
    grouped = [p for group in parameter_groups(model, recipe) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.student.parameters()}


def test_check_13_no_gradient_flows_through_the_choice() -> None:
    model = make()
    views = make_views(model)
    views = views._replace(volume_BCZYX=views.volume_BCZYX.requires_grad_())
    masked_BN, hard_BN = model.student_mask(views, patches.patchify(views.volume_BCZYX, UNIT), hard=19)
    terms = model(views, 1.0)
    assert not masked_BN.requires_grad and not hard_BN.requires_grad
    assert [name for name, term in terms.items() if term.sum.requires_grad] == ["reconstruction"]


def test_check_14_the_encoder_is_transferred() -> None:
    torch.manual_seed(0)
    channels = [2, 4, 4, 8, 8, 8]  # STU-Net's six stages, of which five are pretrained
    model = Model(Config(crop_vox=(32, 32, 32), decoder_width=16), ResidualEncoder(channels[:5], blocks=1))
    network = UNet(ResidualEncoder(channels, blocks=1), classes=3)
    fresh = copy.deepcopy(network.state_dict())
    state = model.encoder.state_dict()
    report = place(state, network)
    assert (report["placed"], len(network.encoder.state_dict()), report["placed_share"]) == (50, 60, 1.0)
    volume = torch.rand(1, 1, 64, 32, 32)
    for ours, theirs in zip(model.encoder(volume), network.encoder(volume)[:5], strict=True):
        assert torch.equal(ours, theirs)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state.get(name.removeprefix("encoder."), fresh[name])), name
    assert {name.split(".")[2] for name in report["fresh"] if name.startswith("encoder.")} == {"5"}
    first = next(iter(state))
    for wrong in ({"conv_blocks_context.9.0.conv1.weight": state[first]}, {first: torch.zeros(2, 1, 1, 1, 1)}):
        with pytest.raises(Refusal, match="do not fit"):
            place(state | wrong, network)


def test_check_15_decoder_has_the_published_size() -> None:
    """The authors' decoder has 36 386 593 parameters at width 512; STU-Net's own sizes: `test_unet.py`.

    GroupNorm has BatchNorm's weights and biases, and not its running statistics. What fills the levels is SparK's, not
    the decoder's, in the authors' count; theirs has one level more, at full resolution, which nothing reads.
    """
    channels = (32, 64, 128, 256, 512)
    with torch.device("meta"):
        decoder = spark.Decoder(channels, 512)
    fills = sum(p.numel() for p in decoder.fills.parameters())
    assert sum(p.numel() for p in decoder.parameters()) - fills == 36_386_593
    norms, tokens = 2 * sum(channels[1:]), sum(channels[1:])
    projections = [256 * 256 * 27 + 256, 128 * 128 * 27 + 128, 64 * 64 * 27 + 64]  # none at the deepest level
    assert fills == norms + tokens + sum(projections)
    assert len(decoder.fills) == len(channels) - 1


def test_check_16_patchify_is_inverted_and_a_cell_is_its_block() -> None:
    volume = torch.randn(2, 3, 8, 12, 4)
    assert torch.equal(patches.unpatchify(patches.patchify(volume, 4), (2, 3, 1), 4), volume)
    model = make(Config(crop_vox=(8, 12, 16), decoder_width=16, mask_ratio=0.01))
    batch = make_batch() | {"region_BCZYX": torch.full((2, 1, 8, 12, 16), 500, dtype=torch.int16)}
    views = model.views(batch | {"valid_hi_B3": torch.tensor([[8, 12, 16]] * 2)}, keys())
    hidden = model.pictures(views)["masked_input"] == 0
    masked_BN = masking.random_masked(keys(), 24, 0.01)  # flat everywhere: no patch is hard
    for b in range(2):
        z, y, x = np.unravel_index(int(masked_BN[b].nonzero()), (2, 3, 4))
        expected = torch.zeros(8, 12, 16, dtype=torch.bool)
        expected[4 * z : 4 * z + 4, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = True
        assert torch.equal(hidden[b], expected)


def test_check_17_a_resumed_run_is_the_uninterrupted_one() -> None:
    def begin() -> tuple[Model, torch.optim.Optimizer]:
        model = make()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    straight, again = train(*begin(), range(6), 6), train(*begin(), range(6), 6)
    assert straight == again
    model, optimiser = begin()
    begun = train(model, optimiser, range(3), 6)
    saved = copy.deepcopy((model.state_dict(), optimiser.state_dict()))
    model = make(seed=7)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.load_state_dict(saved[0])
    optimiser.load_state_dict(saved[1])
    assert begun + train(model, optimiser, range(3, 6), 6) == straight


def blobs() -> tuple[Tensor, Tensor]:
    """Stripes in half of the patches on a flat background at -2, as air has after z-scoring: volume and textured_BN."""
    z, y, x = torch.meshgrid(*(torch.arange(side) for side in CROP), indexing="ij")
    stripes = torch.stack([torch.sin(z / 3 + i) * torch.cos(y / 4 - i) + torch.sin(x / 5 + i) for i in range(2)])
    textured_BN = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    patch = torch.where(textured_BN[:, :, None], patches.patchify(stripes[:, None], UNIT), -2.0)
    return patches.unpatchify(patch, CELLS, UNIT), textured_BN


def auc(score_BN: Tensor, positive_BN: Tensor, counted_BN: Tensor) -> float:
    """Share of pairs (positive, negative) that the score puts in order; ties count half."""
    high, low = score_BN[counted_BN & positive_BN], score_BN[counted_BN & ~positive_BN]
    difference = high[:, None] - low[None, :]
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def test_check_18_short_learning_and_a_teacher_that_finds_texture() -> None:
    volume, textured_BN = blobs()
    model = make()
    views = views_of(volume)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def fixed() -> float:
        with torch.no_grad():
            return loss_of(model, views, 0.0).item()

    first, steps = fixed(), 60
    for step in range(steps):
        progress = step / (steps - 1)
        loss_of(model, views_of(volume, step), progress).backward()
        optimiser.step()
        optimiser.zero_grad()
        model.after_step(progress, steps)
    assert fixed() < 0.8 * first
    with torch.no_grad():
        patch_BNV = patches.patchify(volume, UNIT)
        predicted_BNV = model.teacher(volume, views.teacher_masked_BN)
    scores = {name: patch_error(predicted_BNV, patch_BNV, name) for name in ("norm", "denorm", "released")}
    found = {name: auc(score, textured_BN, views.teacher_masked_BN) for name, score in scores.items()}
    assert max(found["norm"], found["denorm"]) > 0.9 and found["released"] < 0.5, found
    # With the floor no flat patch is hard at all, and the monitor of `released` says what it chooses.
    monitors = {}
    for name in ("norm", "released"):
        model.config = CONFIG.model_copy(update={"score": name})
        monitors[name] = {key: (term.sum / term.count).item() for key, term in model(views, 1.0).items()}
    assert monitors["norm"]["hard_flat"] == 0 and monitors["norm"]["hard_deviation"] > 0.2
    assert monitors["released"]["hard_flat"] > 0.5


# --------------------------------------------------------------------------------------------------- the rest
def test_flat_patches_and_padding_are_never_hard() -> None:
    model = make(Config(**NUMBERS, flip=0.0, hard_start=1.0, hard_end=1.0))
    views = make_views(model, padded=8)
    patch_BNV = patches.patchify(views.volume_BCZYX, UNIT).clone()
    patch_BNV[:, ::2] = 0.3 + 0.004 * torch.rand(2, 32, UNIT**3)  # noise of deviation 0.001
    views = views._replace(volume_BCZYX=patches.unpatchify(patch_BNV, CELLS, UNIT))
    masked_BN, hard_BN = model.student_mask(views, patch_BNV, hard=38)
    expected_BN = views.teacher_masked_BN & views.valid_BN
    expected_BN[:, ::2] = False
    assert torch.equal(hard_BN, expected_BN) and hard_BN.any(1).all()
    assert (masked_BN.sum(1) == 38).all() and masked_BN[hard_BN].all()
    terms = model(views, 1.0)
    assert terms["hard_flat"].sum == 0 and terms["hard_flat"].count == hard_BN.sum()


def test_monitors_say_what_they_are_called() -> None:
    model = make()
    views = make_views(model)
    patch_BNV = patches.patchify(views.volume_BCZYX, UNIT)
    masked_BN, hard_BN = model.student_mask(views, patch_BNV, hard=19)
    terms = model(views, 1.0)
    means = {name: (term.sum / term.count).item() for name, term in terms.items() if term.weight == 0}
    assert means["hard_share"] == 0.5
    assert means["mask_overlap"] == pytest.approx((masked_BN & views.teacher_masked_BN).sum().item() / masked_BN.sum())
    assert means["hard_deviation"] == pytest.approx(patch_BNV.std(-1)[hard_BN].mean().item(), rel=1e-5)
    assert means["hard_flat"] == 0
    assert [name for name, term in terms.items() if term.weight] == ["reconstruction"]
    early = model(views, 0.0)
    assert list(early) == list(terms)
    assert (early["mask_overlap"].sum / early["mask_overlap"].count).item() == pytest.approx(0.6, abs=0.15)


def test_masks_overlap_as_much_as_the_authors_do() -> None:
    """Of the student's masked patches, 140 of 235 are the teacher's at the start and about 168 at the end."""
    chosen = torch.Generator().manual_seed(0)
    score_BN, key_B = torch.rand(200, 392, generator=chosen), keys(samples=200)
    teacher_BN = masking.random_masked(key_B, 392, 0.6, "teacher/mask")
    for hard, expected in ((0, 141), (117, 168)):
        masked_BN, _ = masking.hard_masked(score_BN, teacher_BN, 157, hard, key_B)
        assert (masked_BN & teacher_BN).sum(1).float().mean().item() == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("score", ["norm", "released", "denorm"])
def test_every_score_trains(score: str) -> None:
    model = make(Config(**NUMBERS, score=score))
    loss = loss_of(model, make_views(model), 1.0)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.student.parameters())


def test_one_compiled_model_serves_the_whole_run() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Model(Config(crop_vox=(8, 8, 8), decoder_width=8, flat_below=0.0), ResidualEncoder([2, 4], blocks=1))
    views = views_of(torch.rand(2, 1, 8, 8, 8))
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for progress in (0.0, 0.4, 0.6):
            torch.testing.assert_close(loss_of(compiled, views, progress), loss_of(model, views, progress))
        with torch.compiler.set_stance("fail_on_recompile"):
            for progress in (0.01, 0.3, 0.77, 1.0):
                compiled(views, progress)


def test_nothing_depends_on_data_in_a_way_that_stalls_a_gpu() -> None:
    """Tensors without values run through: no nonzero(), no item(), no branch on content."""
    with torch.device("meta"):
        model = Model(CONFIG, ResidualEncoder(CHANNELS, blocks=1))
        batch = {name: value.to("meta") for name, value in make_batch().items()}
        terms = model(model.views(batch, torch.empty(2, dtype=torch.int64)), 0.9)
        model.after_step(0.9, 100)
    assert all(term.sum.shape == term.count.shape == () for term in terms.values())


def test_pictures_show_the_teachers_error_per_patch() -> None:
    model = make()
    views = make_views(model, samples=3, padded=8)
    pictures = model.pictures(views)
    assert list(pictures) == ["input", "masked_input", "reconstruction", "teacher_error"]
    patch_BNV = patches.patchify(views.volume_BCZYX, UNIT)
    score_BN = model.score(views, patch_BNV)
    shown_BNV = patches.patchify(pictures["teacher_error"][:, None], UNIT)
    assert torch.equal(shown_BNV.amin(-1), shown_BNV.amax(-1))
    assert shown_BNV.amax((1, 2)).tolist() == [1.0] * 3
    assert not shown_BNV[score_BN == -torch.inf].any() and (shown_BNV[score_BN > 0] > 0).all()
    masked_BN, _ = model.student_mask(views, patch_BNV, hard=19)
    assert torch.equal(patches.patchify(pictures["masked_input"][:, None], UNIT).any(-1), ~masked_BN & views.valid_BN)
    for name, value in pictures.items():
        assert value.shape == (3, *CROP) and value.min() >= 0 and value.max() <= 1, name


def test_presets_are_complete_and_fit_their_backbones() -> None:
    tiny = Backbone("stunet_tiny", "cnn", {"channels": [8, 16, 32, 64], "blocks": 1, "pretrained_stages": 4})
    base = Backbone("stunet_b", "cnn", {"channels": [32, 64, 128, 256, 512, 512], "blocks": 1, "pretrained_stages": 5})
    spark_presets = yaml.safe_load((Path(__file__).parents[2] / "config" / "methods" / "spark.yaml").read_text())
    for name, backbone in [("tiny", tiny), ("small", tiny), ("paper", base)]:
        config = Config.model_validate(PRESETS[name])
        assert anatomask.region(config, backbone).size_vox == config.crop_vox
        with torch.device("meta"):
            assert Model(config, backbone.encoder()).student_voxels == np.prod(config.crop_vox)
        same = spark.Config.model_validate(spark_presets[name]).model_dump()
        assert config.model_dump() | same == config.model_dump() | {"version": same["version"]}
    assert Config.model_validate(PRESETS["paper"]) == Config()


def test_accepts_what_spark_accepts_and_speaks_for_itself() -> None:
    cnn = {"channels": [8, 16, 32], "blocks": 1, "pretrained_stages": 3}
    assert anatomask.accepts(Backbone("c", "cnn", cnn)) is None
    reason = str(anatomask.accepts(Backbone("vit_tiny", "vit", {"patch_vox": 8})))
    assert "vit_tiny is a vit" in reason and "AnatoMask" in reason and "SparK" not in reason


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"hard_end": 1.1}, "hard_end"),
        ({"hard_start": -0.1}, "hard_start"),
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"score": "ssim"}, "score"),
        ({"half_life_start": 0.0}, "half_life_start"),
        ({"epochs": 1}, "epochs"),
        ({"mask_ration": 0.5}, "mask_ration"),
    ],
)
def test_wrong_numbers_are_refused(numbers: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config.model_validate(numbers)


def test_what_cannot_be_built_is_refused() -> None:
    backbone = Backbone("c", "cnn", {"channels": CHANNELS, "blocks": 1, "pretrained_stages": 3})
    with pytest.raises(Refusal, match="16x16x18 .* multiple of 4"):
        anatomask.region(Config(crop_vox=(16, 16, 18)), backbone)
    with pytest.raises(Refusal, match="decoder_width 18 .* multiple of 4"):
        make(Config(crop_vox=CROP, decoder_width=18))
    with pytest.raises(Refusal, match="anatomask: .* single mask unit"):
        anatomask.region(Config(crop_vox=(4, 4, 4)), backbone)
