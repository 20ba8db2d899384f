"""DINO's heads: cosines with learnt directions, a centre that all processes share."""

import copy
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from voxprior.maths.ema import follow
from voxprior.nets.dino import Centre, Embedder, Prototypes, byol_mlp, dino_projector
from voxprior.nets.vit import ViT


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prototypes() -> Prototypes:
    torch.manual_seed(0)
    return Prototypes(6, 9)


def test_prototypes_equal_a_weight_normalised_layer_of_gain_one_and_its_gradient():
    ours, row = prototypes(), noise(4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = nn.utils.weight_norm(nn.Linear(6, 9, bias=False))
    theirs.weight_g.data.fill_(1)
    theirs.weight_v.data.copy_(ours.direction_KE.data)
    one, two = ours(row), theirs(nn.functional.normalize(row, dim=-1))
    torch.testing.assert_close(one, two)
    assert one.abs().max() <= 1
    (one * noise(4, 9, seed=1)).sum().backward()
    (two * noise(4, 9, seed=1)).sum().backward()
    torch.testing.assert_close(ours.direction_KE.grad, theirs.weight_v.grad)


def test_frozen_prototypes_compute_the_same_and_get_no_gradient():
    head, row = prototypes(), noise(4, 6).requires_grad_()
    assert torch.equal(head(row, frozen=True), head(row))
    head(row, frozen=True).square().sum().backward()
    assert head.direction_KE.grad is None and row.grad.abs().sum() > 0


def test_heads_can_be_copied_averaged_and_saved():
    student = Embedder(ViT(2, 12, 1, 2), dino_projector(12, 8, 6), prototypes())
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    follow(teacher, student, 0.25)
    for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, its - 0.25)
    teacher.load_state_dict(student.state_dict())
    assert set(student.state_dict()) == {name for name, _ in student.named_parameters()}


def test_class_token_comes_first_and_is_learnt():
    torch.manual_seed(0)
    embedder = Embedder(ViT(2, 12, 1, 2), dino_projector(12, 8, 6), None)
    patch, seen = noise(3, 8, 8), torch.tensor([[0, 5], [1, 2], [7, 3]])
    token = embedder.tokens(patch, (2, 2, 2), seen)
    assert token.shape == (3, 3, 12)
    torch.testing.assert_close(
        embedder.anchors(patch, (2, 2, 2)), embedder.embed(embedder.tokens(patch, (2, 2, 2))[:, 0])
    )
    embedder.anchors(patch, (2, 2, 2)).square().sum().backward()
    assert embedder.class_token_D.grad.abs().sum() > 0
    assert 0.005 < embedder.class_token_D.std() < 0.05


def test_no_head_mixes_rows():
    for head in (dino_projector(12, 8, 6), byol_mlp(12, 8, 6)):
        torch.testing.assert_close(head(noise(4, 12))[1:2], head(noise(4, 12)[1:2]))


def test_projector_starts_as_dinos_does_at_its_width_and_keeps_its_signal_at_others():
    sizes = []
    for hidden in (2048, 256):
        torch.manual_seed(0)
        head = dino_projector(192, hidden, 64)
        layers = [layer for layer in head if isinstance(layer, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in layers] == [
            (192, hidden), (hidden, hidden), (hidden, 64)
        ]  # fmt: skip
        deviation = 0.02 * (2048 / hidden) ** 0.5
        assert all(abs(layer.weight.std() - deviation) < 0.05 * deviation for layer in layers)
        assert all(layer.bias.abs().max() == 0 for layer in layers)
        sizes.append(float(head(noise(50, 192)).detach().std()))
    assert min(sizes) > 0.03 and max(sizes) < 1, sizes


# ------------------------------------------------------------------------------------------------- centre
def test_glmae_check_11_centre_moves_a_tenth_of_the_way_to_the_mean_of_all_rows():
    centre, rows = Centre(5), noise(6, 5)
    centre.mean_K.copy_(noise(5, seed=1))
    centre.note(rows[:4])
    centre.note(rows[4:])  # a second micro-batch
    torch.testing.assert_close(centre.mean_K, noise(5, seed=1))  # not yet
    centre.move(0.9)
    expected = 0.9 * noise(5, seed=1) + 0.1 * sum(rows) / 6
    torch.testing.assert_close(centre.mean_K, expected)
    centre.move(0.9)  # nothing was noted since
    torch.testing.assert_close(centre.mean_K, expected)
    assert list(centre.state_dict()) == ["mean_K"]


def rows_of(rank: int) -> Tensor:
    """Gives the two processes different numbers of rows."""
    return noise(8, 5)[slice(0, 3) if rank == 0 else slice(3, 8)]


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    centre = Centre(5)
    for _ in range(2):
        centre.note(rows_of(rank))
        centre.move(0.9)
    torch.save(centre.mean_K, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_glmae_check_11_two_processes_have_the_centre_of_one(tmp_path: Path):
    torch.multiprocessing.start_processes(one_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    centre = Centre(5)
    for _ in range(2):
        centre.note(torch.cat([rows_of(0), rows_of(1)]))
        centre.move(0.9)
    assert centre.mean_K.abs().max() > 0
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), centre.mean_K)
