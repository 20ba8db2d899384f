"""PGL: the same anatomy at the same index, vectors compared place by place, and controls that break it."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from voxprior.errors import Refusal
from voxprior.maths import chance, pairs
from voxprior.maths.crops import cut
from voxprior.methods import byol, pgl
from voxprior.methods.byol import Views
from voxprior.methods.contract import Batch
from voxprior.methods.pgl import Config, Model, local_consistency, read_places
from voxprior.nets import transfer
from voxprior.nets.backbones import Backbone
from voxprior.nets.features import feature_map
from voxprior.nets.residual import ResidualEncoder
from voxprior.nets.unet import UNet

SMALL = {"view_vox": (16, 16, 24), "head_hidden": 16, "head_out": 8, "head_norm": "layer", "shared_z": False}
PLAIN = {"noise": 0.0, "blur": 0.0, "brightness": 0.0, "gamma": 0.0}
CONFIG = Config(**SMALL)
STRICT = {"beyond_cells": 0.0}  # only places between cells' centres


class Pool(nn.Module):
    """Features that mirror with their volume: means of x, |x| and x^2 in cubes of `stride` voxels."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.unit_vox, self.width, self.channels_in = stride, 3, 1
        self.anything = nn.Parameter(torch.zeros(()))

    def forward(self, volume_BCZYX: Tensor) -> list[Tensor]:
        kinds = torch.cat([volume_BCZYX, volume_BCZYX.abs(), volume_BCZYX**2], 1)
        return [F.avg_pool3d(kinds, self.unit_vox) + self.anything]


def _pool_model(stride: int = 4, **changes: object) -> Model:
    model = Model(Config(**SMALL | STRICT | changes), Pool(stride))
    model.offset_3.fill_((stride - 1) / 2)  # what the probe finds up to the noise of x and x^2
    return model


def _model(seed: int = 0, **changes: object) -> Model:
    torch.manual_seed(seed)
    return Model(Config(**SMALL | changes), ResidualEncoder([4, 6, 8], blocks=1))


def _batch(samples: int = 3, size: tuple = (32, 36, 48)) -> Batch:
    volume = torch.rand(samples, 1, *(side // 4 for side in size), generator=torch.Generator().manual_seed(3))
    volume = F.interpolate(volume, size, mode="trilinear")
    return {
        "region_BCZYX": (1000 * volume).to(torch.int16),
        "quantum_B": torch.full((samples,), 1e-3),
        "spacing_mm_B3": torch.full((samples, 3), 2.0),
        "valid_lo_B3": torch.zeros(samples, 3, dtype=torch.int64),
        "valid_hi_B3": torch.tensor(size).repeat(samples, 1),
    }


def _keys(samples: int = 3, step: int = 0) -> Tensor:
    return chance.keys(0, step, torch.arange(samples))


def _loss(model: Model, views: Views) -> Tensor:
    term = model(views, 0.0)["local_consistency"]
    return term.sum / term.count


def _coordinates(model: Model, samples: int, inner: int) -> tuple[Views, Tensor, tuple[int, int, int]]:
    """Views of a volume whose three channels hold their own place, cut from boxes `inner` voxels inside it."""
    size = (24, 28, 36)
    axes = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    batch = _batch(samples, size)
    batch["valid_lo_B3"] += inner
    batch["valid_hi_B3"] -= inner
    views = model.views(batch, _keys(samples))
    whole = torch.zeros(samples, 3), torch.tensor(size).expand(samples, 3).float()
    place = torch.stack(axes)[None].expand(samples, 3, *size)
    view_vox = model.config.view_vox
    seen = cut(place, views.lo_BV3, views.hi_BV3, view_vox, *whole, views.flipped_BV3)
    return views, seen, size


@pytest.mark.parametrize("stride", [2, 4])
def test_T02_features_read_at_one_place_come_from_one_place(stride):
    """At half a voxel of the view per voxel of the volume, cutting is exact: what is left is the alignment's error."""
    samples = 60
    model = _pool_model(stride, view_mm=(16.0, 16.0, 24.0))
    views, seen_BVCZYX, _ = _coordinates(model, samples, inner=2)
    places = model.places(views)
    maps = F.avg_pool3d(seen_BVCZYX.flatten(0, 1), stride).movedim(1, -1).unflatten(0, (samples, 2))
    read = read_places(maps, places.axes_V)
    apart_BN = (read[:, 0] - read[:, 1]).abs().amax(-1)
    within_BN = places.weight_BN > 0
    true = pairs.grid_points(
        *(pairs.spread(views.shared_lo_B3[:, a], views.shared_hi_B3[:, a], maps.shape[2 + a]) for a in range(3))
    )
    assert 0.02 < within_BN.float().mean() < 0.98
    assert apart_BN[within_BN].max() < 1e-3
    assert (read - true[:, None]).abs().amax((1, 3))[within_BN].max() < 1e-3
    step = float(((views.hi_BV3 - views.lo_BV3) / torch.tensor(model.config.view_vox)).max())
    assert (read - true[:, None]).abs().max() <= 0.5 * stride * step + 1e-3
    assert apart_BN.mean() < 1
    forgotten = model.places(views._replace(flipped_BV3=torch.zeros_like(views.flipped_BV3)))
    assert (read_places(maps, forgotten.axes_V) - true[:, None]).abs().max() > 3


@pytest.mark.parametrize("axes", [a for n in range(1, 4) for a in itertools.combinations(range(3), n)])
def test_T04_a_mirrored_copy_costs_nothing_where_the_mirror_is_undone(axes):
    model = _pool_model(**PLAIN)
    views = model.views(_batch(), _keys())
    flipped = torch.zeros(3, 2, 3, dtype=torch.bool)
    flipped[:, 1, list(axes)] = True
    lo_BV3, hi_BV3 = (box[:, :1].expand(-1, 2, -1) for box in (views.lo_BV3, views.hi_BV3))
    one = cut(_batch()["region_BCZYX"] * 1e-3, lo_BV3[:, :1], hi_BV3[:, :1], (16, 16, 24), *_valid())[:, 0]
    volume = torch.stack([one, one.flip([2 + axis for axis in axes])], 1)
    views = views._replace(
        volume_BVCZYX=volume, lo_BV3=lo_BV3, hi_BV3=hi_BV3, flipped_BV3=flipped,
        shared_lo_B3=lo_BV3[:, 0], shared_hi_B3=hi_BV3[:, 0],
    )  # fmt: skip
    losses = []
    for told in (views, views._replace(flipped_BV3=torch.zeros_like(flipped))):
        places = model.places(told)
        vectors = read_places(model.features(model.encoder, volume), places.axes_V)
        term = local_consistency(vectors, vectors, places.weight_BN)
        losses.append((term.sum / term.count).item())
    assert losses[0] <= 1e-6 and losses[1] >= 1000 * max(losses[0], 1e-7)


def _valid(samples: int = 3) -> tuple[Tensor, Tensor]:
    batch = _batch(samples)
    return batch["valid_lo_B3"], batch["valid_hi_B3"]


def test_T05_values_of_the_loss():
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 2, 1500, 256, generator=rng)
    other, weight = torch.randn(4, 2, 1500, 256, generator=rng), torch.ones(4, 1500)

    def loss(p: Tensor, z: Tensor) -> float:
        term = local_consistency(p, z, weight)
        return float(term.sum / term.count)

    assert loss(vectors, vectors.flip(1)) <= 1e-6
    assert loss(vectors, -vectors.flip(1)) == pytest.approx(2 * 4.0, abs=1e-5)
    assert loss(vectors, other) == pytest.approx(2 * 2.0, abs=0.04)
    assert loss(vectors.flip(1), other.flip(1)) == pytest.approx(loss(vectors, other), rel=1e-6)
    scale = 0.1 + 10 * torch.rand(4, 2, 1500, 1, generator=rng)
    assert loss(scale * vectors, other) == pytest.approx(loss(vectors, other), rel=1e-5)
    # Half of the places opposed and a hundred times smaller: a flattened map would not see them.
    half = torch.where(torch.arange(1500)[:, None] % 2 == 0, 1.0, -0.01)
    assert loss(half * vectors, (half.abs() * vectors).flip(1)) == pytest.approx(2 * 2.0, abs=1e-4)
    flat = F.normalize((half * vectors).flatten(1), dim=1) - F.normalize((half.abs() * vectors).flatten(1), dim=1)
    assert flat.square().sum(1).max() < 1e-3


def test_T06_the_whole_view_read_at_its_cells_is_the_map_and_its_mean_byols_vector():
    model = _pool_model(**PLAIN, flip=0.0)
    views = model.views(_batch(), _keys())
    views = views._replace(
        lo_BV3=views.lo_BV3[:, :1].expand(-1, 2, -1), hi_BV3=views.hi_BV3[:, :1].expand(-1, 2, -1),
        shared_lo_B3=views.lo_BV3[:, 0], shared_hi_B3=views.hi_BV3[:, 0],
    )  # fmt: skip
    map_BVzyxC = model.features(model.encoder, views.volume_BVCZYX)
    read_BVNC = read_places(map_BVzyxC, model.places(views).axes_V)
    torch.testing.assert_close(read_BVNC, map_BVzyxC.flatten(2, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(read_BVNC.mean(2), map_BVzyxC.mean((2, 3, 4)), rtol=0, atol=1e-6)
    # BYOL's loss is PGL's on those means.
    heads = model.projector, model.predictor, model.teacher.projector
    term, _ = byol.global_consistency(heads, map_BVzyxC, map_BVzyxC)
    mean_BVC = read_BVNC.mean(2, keepdim=True)
    prediction, target = model.predictor(model.projector(mean_BVC)), model.teacher.projector(mean_BVC)
    expected = local_consistency(prediction, target, torch.ones(3, 1))
    torch.testing.assert_close(term.sum, expected.sum)
    assert float(term.count) == float(expected.count) == 3


@pytest.mark.parametrize("kind", [pgl.Model, byol.Model])
def test_T07_no_gradient_reaches_the_teacher_and_all_of_the_student_gets_one(kind):
    model = _model(lambda_global=0.5) if kind is pgl.Model else _byol()
    terms = model(model.views(_batch(), _keys()), 0.0)
    sum(term.weight * term.sum for term in terms.values() if term.weight).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    student = [(name, p) for name, p in model.named_parameters() if not name.startswith("teacher.")]
    for name, parameter in student:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A bias that a norm takes away again has no gradient but rounding.
        assert parameter.grad.abs().sum() > 0, name
    optimiser = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(student)


def _byol() -> byol.Model:
    torch.manual_seed(0)
    return byol.Model(byol.Config(**SMALL), ResidualEncoder([4, 6, 8], blocks=1))


def _step(model: Model, views: Views, processes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Takes a step of plain gradient descent as the loop does: sums of parts, over all processes."""
    term = model(views, 0.0)["local_consistency"]
    count = term.count.detach().clone()
    if processes > 1:
        dist.all_reduce(count)
    loss = term.sum / count
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    value = loss.detach().clone()
    for tensor in [value, *gradients.values()] if processes > 1 else []:
        dist.all_reduce(tensor)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in gradients:
                parameter.sub_(0.1 * gradients[name])
    model.after_step(0.3, 20)
    return value, {name: tensor.clone() for name, tensor in gradients.items()}


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, half = _model(head_norm="batch"), slice(2 * rank, 2 * rank + 2)
    views = model.views({name: tensor[half] for name, tensor in _batch(4).items()}, _keys(4)[half])
    loss, gradients = _step(model, views, 2)
    torch.save((loss, gradients, model.teacher.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_T08_two_processes_equal_one_and_their_teachers_are_identical(tmp_path: Path):
    torch.multiprocessing.start_processes(_one_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    model = _model(head_norm="batch")
    loss, gradients = _step(model, model.views(_batch(4), _keys(4)), 1)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])
    torch.testing.assert_close(first[0], loss, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(first[1][name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, tensor in model.teacher.state_dict().items():
        torch.testing.assert_close(first[2][name], tensor, rtol=1e-5, atol=1e-5)


def test_T10_a_pair_that_shares_nothing_changes_neither_loss_nor_gradient():
    losses, gradients = [], []
    for samples in (3, 4):
        model = _model()
        views = model.views(_batch(4), _keys(4))
        gap = views.shared_lo_B3.clone()
        gap[3] = views.shared_hi_B3[3] + 5
        views = views._replace(shared_lo_B3=gap)
        loss = _loss(model, Views(*(part[:samples] for part in views)))
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    for alone, beside in zip(*gradients, strict=True):
        torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-6)
    model = _model()
    term = model(views._replace(shared_lo_B3=views.shared_hi_B3 + 1), 0.0)["local_consistency"]
    assert float(term.sum.detach()) == float(term.count) == 0
    term.sum.backward()
    assert all(p.grad.isfinite().all() and not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_T11_aligned_places_are_closer_than_permuted_or_moved_ones():
    """Untrained encoders, smooth volumes, two shifted crops, not mirrored: 20 of 20 seeds."""
    aligned, permuted, moved = [], [], []
    for seed in range(20):
        torch.manual_seed(seed)
        encoder = ResidualEncoder([8, 12], 1)
        config = Config(**SMALL | PLAIN | {"min_overlap": 0.3, "flip": 0.0})
        model = Model(config, encoder)
        views = model.views(_batch(2), _keys(2, seed))
        places = model.places(views)
        map_BVzyxC = model.features(encoder, views.volume_BVCZYX).detach()
        read_BVNC = read_places(map_BVzyxC, places.axes_V)
        partner = torch.randperm(read_BVNC.shape[2])
        away = [places.axes_V[0], tuple(u + (2 / 3 if axis == 2 else 0) for axis, u in enumerate(places.axes_V[1]))]
        for found, there in (
            (aligned, read_BVNC),
            (permuted, torch.stack([read_BVNC[:, 0], read_BVNC[:, 1, partner]], 1)),
            (moved, read_places(map_BVzyxC, away)),
        ):
            term = local_consistency(there, there, places.weight_BN)
            found.append(float(term.sum / term.count))
    assert all(a < p for a, p in zip(aligned, permuted, strict=True))
    assert all(a < m for a, m in zip(aligned, moved, strict=True))


def test_T12_without_spatial_change_boxes_and_shapes_stay_and_seeds_differ():
    plain, changed = _model(**PLAIN), _model(noise=1.0, blur=1.0, brightness=1.0, gamma=1.0)
    one, two = (model.views(_batch(), _keys()) for model in (plain, changed))
    assert all(torch.equal(a, b) for a, b in zip(one[1:], two[1:], strict=True))
    assert one.volume_BVCZYX.shape == two.volume_BVCZYX.shape
    assert not torch.equal(one.volume_BVCZYX, two.volume_BVCZYX)
    again, other = changed.views(_batch(), _keys()), changed.views(_batch(), chance.keys(1, 0, torch.arange(3)))
    assert torch.equal(again.volume_BVCZYX, two.volume_BVCZYX)
    assert not torch.equal(other.lo_BV3, two.lo_BV3) and not torch.equal(other.volume_BVCZYX, two.volume_BVCZYX)


@pytest.mark.parametrize("standardise", [False, True])
def test_T13_segmentation_inherits_the_students_encoder_and_nothing_else(standardise):
    model = _model(standardise_weights=standardise)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        _loss(model, model.views(_batch(), _keys(step=step))).backward()
        optimiser.step()
        optimiser.zero_grad()
        model.after_step(0.5, 100)

    def heir() -> UNet:
        torch.manual_seed(5)
        return UNet(ResidualEncoder([4, 6, 8, 8], 1), 3)

    network, fresh = heir(), heir()
    state = model.encoder_state()
    report = transfer.place(state, network)
    assert report["placed_share"] == 1.0 and not any("projector" in n or "predictor" in n for n in state)
    student = model.encoder.state_dict()
    for name, tensor in network.state_dict().items():
        short = name.removeprefix("encoder.")
        expected = state[short] if name.startswith("encoder.") and short in state else fresh.state_dict()[name]
        assert torch.equal(tensor, expected), name
    assert all(torch.equal(state[name], student[name]) for name in state) == (not standardise)
    assert any(not torch.equal(student[n], model.teacher.encoder.state_dict()[n]) for n in student)
    volume = torch.rand(1, 1, 16, 16, 24)
    used = feature_map(model.encoder, volume, filters=standardise)
    torch.testing.assert_close(feature_map(network.encoder, volume, 2), used, rtol=1e-4, atol=1e-4)
    with pytest.raises(Refusal, match="do not fit"):
        transfer.place({f"module.{name}": tensor for name, tensor in state.items()}, heir())


def test_T15_the_loss_halves_on_one_batch_and_nothing_collapses():
    """With statistics over the batch in the heads, as the paper's size has them. `layer` keeps a deviation of 0.2."""
    model = _model(head_hidden=64, head_out=32, head_norm="batch")
    views = model.views(_batch(2), _keys(2))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    first = float(_loss(model, views).detach())
    for _ in range(30):
        loss = _loss(model, views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step(0.2, 200)
    terms = model(views, 0.0)
    assert (terms["local_consistency"].sum / terms["local_consistency"].count).item() < 0.5 * first
    assert float(terms["feature_deviation"].sum) > 0.5
    assert float(terms["feature_rank"].sum) > 2


def test_T15_a_run_in_two_parts_equals_one_in_a_single_part():
    def go(model: Model, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            _loss(model, model.views(_batch(2), _keys(2, step))).backward()
            optimiser.step()
            optimiser.zero_grad()
            model.after_step(step / 5, 6)

    def started(seed: int) -> tuple[Model, torch.optim.Optimizer]:
        model = _model(seed)
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    straight, optimiser = started(0)
    go(straight, optimiser, range(6))
    first, optimiser = started(0)
    go(first, optimiser, range(3))
    second, other = started(1)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(optimiser.state_dict())
    go(second, other, range(3, 6))
    for name, tensor in straight.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)
    assert torch.equal(second.offset_3, first.offset_3), "the offset in use is the one measured at the start"


def _slow_read(map_zyxC: np.ndarray, u: list[float]) -> np.ndarray:
    """Interpolates between eight cells, clamped to the outermost."""
    value = np.zeros(map_zyxC.shape[-1])
    place = [min(max(((g + 1) * n - 1) / 2, 0), n - 1) for g, n in zip(u, map_zyxC.shape[:3], strict=True)]
    for corner in itertools.product((0, 1), repeat=3):
        cell = [min(math.floor(p) + c, n - 1) for p, c, n in zip(place, corner, map_zyxC.shape[:3], strict=True)]
        weight = math.prod((p % 1) if c else 1 - (p % 1) for p, c in zip(place, corner, strict=True))
        value += weight * map_zyxC[tuple(cell)]
    return value


@pytest.mark.parametrize(("clamped", "correspondence"), [(0.0, "aligned"), (0.3, "aligned"), (0.0, "shuffled")])
def test_the_loss_equals_a_slow_loop_over_places(clamped, correspondence):
    model = _model(clamped_weight=clamped, correspondence=correspondence, beyond_cells=0.125)
    with torch.no_grad():
        model.offset_3.copy_(torch.tensor([0.2, 0.0, 1.1]))
        views = model.views(_batch(), _keys())
        map_BVzyxC = model.features(model.encoder, views.volume_BVCZYX)
        prediction = byol.through(model.predictor, byol.through(model.projector, map_BVzyxC)).double().numpy()
        target = byol.through(model.teacher.projector, map_BVzyxC).double().numpy()
        term = model(views, 0.0)["local_consistency"]
    cells, sides = model.cells_zyx, CONFIG.view_vox
    partners = chance.permutation(_keys(), "pair/partner", math.prod(cells)).tolist()
    total = count = 0.0
    for b in range(3):
        where: list[list[list[float]]] = [[], []]
        weights = []
        for k in itertools.product(*(range(n) for n in cells)):
            inside = True
            for v in (0, 1):
                g = []
                for a in range(3):
                    first, last = (max(views.lo_BV3[b, :, a].tolist()), min(views.hi_BV3[b, :, a].tolist()))
                    x = first + (k[a] + 0.5) / cells[a] * (last - first)
                    lo, hi = float(views.lo_BV3[b, v, a]), float(views.hi_BV3[b, v, a])
                    u = (2 * x - lo - hi) / (hi - lo) * (-1 if views.flipped_BV3[b, v, a] else 1)
                    g.append(u + (4 - 1 - 2 * [0.2, 0.0, 1.1][a]) / sides[a])
                    inside &= abs(g[a]) <= 1 - (1 - 2 * 0.125) / cells[a] + 1e-5
                where[v].append(g)
            weights.append(1.0 if inside else clamped)
        for n, weight in enumerate(weights):
            partner = partners[b][n] if correspondence == "shuffled" else n
            weight = weight * weights[partner] if correspondence == "shuffled" else weight
            for v in (0, 1):
                p = _slow_read(prediction[b, v], where[v][n])
                z = _slow_read(target[b, 1 - v], where[1 - v][partner])
                total += weight * ((p / np.linalg.norm(p) - z / np.linalg.norm(z)) ** 2).sum()
            count += weight
    assert 0 < count < 3 * math.prod(cells)
    assert float(term.count) == pytest.approx(count, rel=1e-5)
    assert float(term.sum) == pytest.approx(total, rel=1e-3)


def test_without_correspondence_cells_are_compared_by_number():
    model = _model(correspondence="none")
    views = model.views(_batch(), _keys())
    with torch.no_grad():
        term = model(views, 0.0)["local_consistency"]
        map_BVzyxC = model.features(model.encoder, views.volume_BVCZYX)
        prediction = byol.through(model.predictor, byol.through(model.projector, map_BVzyxC))
        apart = byol.cosine_distance(prediction, byol.through(model.teacher.projector, map_BVzyxC).flip(1))
    assert float(term.count) == 3 * 4 * 4 * 6
    torch.testing.assert_close(term.sum, apart.sum(), rtol=1e-4, atol=0)


def test_the_global_term_has_a_weight_and_heads_of_its_own():
    model = _model(lambda_global=0.3)
    term = model(model.views(_batch(), _keys()), 0.0)["global_consistency"]
    assert term.weight == 0.3 and float(term.count) == 3
    before = model.teacher.global_projector.widen.weight.clone()
    with torch.no_grad():
        model.global_projector.widen.weight.add_(1.0)
    model.after_step(0.0, 100)
    assert not torch.equal(model.teacher.global_projector.widen.weight, before)
    assert "global_consistency" not in _model()(model.views(_batch(), _keys()), 0.0)


def test_the_points_shown_are_the_same_anatomy_in_both_views():
    model = _model()
    views = model.views(_batch(), _keys())
    shown = model.pictures(views)
    found = []
    for v, name in enumerate("ab"):
        u = 2 * shown[f"points_view_{name}"] / torch.tensor(CONFIG.view_vox) - 1
        found.append(
            pairs.to_volume(u, *(part[:, v, None] for part in (views.lo_BV3, views.hi_BV3, views.flipped_BV3)))
        )
    known = ~found[0].isnan()
    assert known.any() and not known.all()
    torch.testing.assert_close(found[0], found[1], equal_nan=True, rtol=0, atol=1e-3)


def test_measures_tell_the_offset_now_and_its_drift_from_the_one_in_use():
    model = _model()
    start = model.measures()
    assert [start[f"offset_{axis}_vox"] for axis in "zyx"] == pytest.approx(model.offset_3.tolist(), abs=1e-6)
    assert all(abs(start[f"offset_drift_{axis}_vox"]) < 1e-6 for axis in "zyx")
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = model.measures()
    for axis, used in zip("zyx", model.offset_3.tolist(), strict=True):
        assert after[f"offset_drift_{axis}_vox"] == pytest.approx(after[f"offset_{axis}_vox"] - used, abs=1e-6)
    assert any(abs(after[f"offset_drift_{axis}_vox"]) > 1e-3 for axis in "zyx")


def test_on_the_meta_device_it_is_built_without_measuring():
    with torch.device("meta"):
        model = Model(CONFIG, ResidualEncoder([4, 6, 8], blocks=1))
    assert model.offset_3.is_meta and model.student_voxels == 2 * 16 * 16 * 24


def test_a_view_of_one_cell_is_refused():
    backbone = Backbone("cnn", "cnn", {"channels": [4, 6, 8, 8], "blocks": 1, "pretrained_stages": 4})
    with pytest.raises(Refusal, match="single cell"):
        pgl.region(Config(**SMALL | {"view_vox": (8, 8, 8)}), backbone)
    assert pgl.region(Config(**SMALL | {"view_vox": (8, 8, 16)}), backbone).size_vox == (16, 16, 32)
