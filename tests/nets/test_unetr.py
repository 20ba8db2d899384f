"""The UNETR decoder gives full-resolution logits for any power-of-two patch."""

import pytest
import torch
from torch import Tensor

from voxprior.errors import Refusal
from voxprior.maths.patches import patchify
from voxprior.maths.positions import sine_cosine
from voxprior.nets.decoders import Unetr
from voxprior.nets.transfer import place
from voxprior.nets.vit import EPS, ViT


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


MONAI_NAMES = {"embed": "patch_embedding.patch_embeddings", "norm": "norm"}
MONAI_BLOCK = {
    "norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "proj": "attn.out_proj", "fc1": "mlp.linear1",
    "fc2": "mlp.linear2",
}  # fmt: skip


def monai_name(name: str) -> str:
    """Says what MONAI's ViT calls one of our tensors."""
    *path, kind = name.split(".")
    if path[0] == "blocks":
        return f"blocks.{path[1]}.{MONAI_BLOCK[path[2]]}.{kind}"
    return f"{MONAI_NAMES[path[0]]}.{kind}"


def test_glmae_check_14_taps_equal_those_of_monais_unetr():
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    encoder = ViT(16, 48, 12, 4).double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # biases and norms off their first values
    size = (32, 48, 16)
    theirs = (
        nets.UNETR(1, 3, size, feature_size=4, hidden_size=48, mlp_dim=192, num_heads=4, qkv_bias=True)
        .vit.double()
        .eval()
    )
    state = {monai_name(name): tensor for name, tensor in encoder.state_dict().items()}
    state["patch_embedding.patch_embeddings.weight"] = encoder.embed.weight.detach().reshape(48, 1, 16, 16, 16)
    state["patch_embedding.position_embeddings"] = sine_cosine((2, 3, 1), 48)[None]
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("norm_cross_attn" in name for name in missing)
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = EPS
    volume = noise(2, 1, *size).double()
    with torch.no_grad():
        last, hidden = theirs(volume)
        ours = encoder.taps(volume, (4, 7, 10))
        for tap, expected in zip(ours, [hidden[3], hidden[6], hidden[9], last], strict=True):
            torch.testing.assert_close(tap.flatten(2).mT, expected, rtol=0, atol=1e-9)
        # What a method sees at ratio 0 without a class token is the normalised last tap.
        token = encoder(patchify(volume, 16), (2, 3, 1), torch.arange(6).expand(2, 6))
        torch.testing.assert_close(ours[3].flatten(2).mT, token, rtol=0, atol=1e-9)


def test_glmae_check_14_an_encoder_of_one_grid_serves_another():
    encoder = ViT(8, 24, 4, 2, 2.0)
    encoder(patchify(noise(1, 1, 80, 80, 80), 8), (10, 10, 10))
    unetr = network(8)
    report = place(encoder.state_dict(), unetr)
    assert report["placed_share"] == 1.0 and report["placed"] == len(encoder.state_dict())
    volume = noise(1, 1, 48, 48, 48)
    with torch.no_grad():
        for one, two in zip(encoder.taps(volume), unetr.encoder.taps(volume), strict=True):
            assert torch.equal(one, two)
        assert unetr(volume).shape == (1, 3, 48, 48, 48)


def test_glmae_check_14_an_encoder_that_does_not_fit_or_is_broken_is_refused():
    state = ViT(8, 24, 4, 2, 2.0).state_dict()
    broken = state | {"blocks.2.qkv.weight": state["blocks.2.qkv.weight"] * float("nan")}
    deeper, other = ViT(8, 24, 5, 2, 2.0).state_dict(), ViT(4, 24, 4, 2, 2.0).state_dict()
    for wrong, says in (
        (broken, "not finite"),
        (deeper, "blocks.4"),
        (other, "embed.weight has shape"),
        ({}, "no tens"),
    ):
        with pytest.raises(Refusal, match=says):
            place(wrong, network(8))
