"""The UNETR decoder gives full-resolution logits for any power-of-two patch."""

import pytest
import torch
from torch import Tensor

from voxprior.errors import Refusal
from voxprior.nets.decoders import Unetr
from voxprior.nets.vit import ViT


def network(patch_vox: int, depth: int = 4, classes: int = 3) -> Unetr:
    torch.manual_seed(0)
    return Unetr(ViT(patch_vox, 24, depth, 2, 2.0), classes, 2)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("patch_vox", "size_zyx"), [(2, (4, 6, 4)), (4, (8, 12, 8)), (8, (40, 56, 40)), (16, (32, 48, 16)), (8, (8, 8, 8))]
)
def test_logits_have_the_shape_of_the_volume(patch_vox: int, size_zyx: tuple[int, int, int], training: bool):
    logits = network(patch_vox).train(training)(noise(2, 1, *size_zyx))
    assert isinstance(logits, Tensor) and logits.shape == (2, 3, *size_zyx)


@pytest.mark.parametrize("patch_vox", [8, 16])
def test_every_parameter_gets_a_gradient(patch_vox: int):
    unetr = network(patch_vox)
    # Weights the logits, because their plain sum does not depend on what instance norm takes out.
    logits = unetr(noise(1, 1, 32, 32, 16))
    (logits * noise(*logits.shape)).sum().backward()
    assert [n for n, p in unetr.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_encoder_given_is_the_encoder_kept():
    encoder = ViT(8, 24, 4, 2, 2.0)
    unetr = Unetr(encoder, 3, 2)
    assert unetr.encoder is encoder
    inherited = {name.removeprefix("encoder.") for name in unetr.state_dict() if name.startswith("encoder.")}
    assert inherited == set(encoder.state_dict())


@pytest.mark.parametrize(("patch_vox", "merges", "climbs"), [(4, 2, [1]), (8, 3, [2, 1]), (16, 4, [3, 2, 1])])
def test_there_are_as_many_steps_as_the_patch_has_powers_of_two(patch_vox: int, merges: int, climbs: list[int]):
    unetr = network(patch_vox)
    assert len(unetr.merges) == merges
    doublings = [sum(isinstance(m, torch.nn.ConvTranspose3d) for m in climb.modules()) for climb in unetr.climbs]
    assert doublings == climbs


def test_patch_16_taps_where_the_paper_does():
    with torch.device("meta"):
        assert Unetr(ViT(16, 24, 12, 2), 3, 2).after == (4, 7, 10)


def test_samples_do_not_mix():
    unetr, volume = network(8), noise(2, 1, 16, 16, 16)
    torch.testing.assert_close(unetr(volume)[1:], unetr(volume[1:]), rtol=1e-4, atol=1e-4)


def test_the_decoder_listens_to_the_transformer():
    unetr, volume = network(8), noise(1, 1, 16, 16, 16)
    before = unetr(volume)
    with torch.no_grad():
        unetr.encoder.embed.weight.add_(0.5)
    assert (unetr(volume) - before).abs().max() > 1e-3


@pytest.mark.parametrize("patch_vox", [1, 6, 12])
def test_other_patches_are_refused(patch_vox: int):
    with pytest.raises(Refusal, match="2, 4, 8, 16 or 32"):
        network(patch_vox)
