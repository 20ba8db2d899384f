"""Checkpoints of other projects, made by their own code, become encoders of ours with the same features."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from voxprior.commands import take_in
from voxprior.errors import Refusal
from voxprior.exchange import foreign
from voxprior.exchange.names import check
from voxprior.exchange.pickles import read_checkpoint
from voxprior.nets.backbones import Backbone
from voxprior.nets.transfer import place
from voxprior.nets.weights import read_weights

ROOT = Path(__file__).parents[2]
STUNET = {"channels": [4, 8, 8, 16], "blocks": 2, "pretrained_stages": 3}
VIT = {"patch_vox": 8, "width": 48, "depth": 3, "heads": 4, "mlp_ratio": 2.0, "decoder_channels": 4}
VIT |= {"learnt_zyx": [2, 3, 4], "norm_eps": 1e-5}
PRIMUS = {"kind": "primus", "patch_vox": 8, "width": 48, "depth": 3, "heads": 4, "mlp_ratio": 8 / 3}
PRIMUS |= {"decoder_channels": 16, "learnt_zyx": [4, 3, 2], "norm_eps": 1e-5}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with backbones of its own."""
    monkeypatch.chdir(tmp_path)
    recipe = {"lr": 1e-3}
    rest = {"pretrain": recipe, "scratch": recipe, "finetune": recipe}
    (tmp_path / "config" / "backbones").mkdir(parents=True)
    for name, family, sizes in (
        ("stunet_x", "cnn", STUNET), ("vit_x", "vit", VIT), ("primus_x", "vit", PRIMUS)
    ):  # fmt: skip
        content = {"title": name, "family": family, family: sizes, **rest}
        (tmp_path / "config" / "backbones" / f"{name}.yaml").write_text(json.dumps(content))
    return tmp_path


def redraw(network):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.copy_(norm + 0.1 * torch.randn_like(parameter))
    return network.eval()


def take(source, checkpoint, backbone, channels=1):
    take_in.run(source, checkpoint, backbone, Path("encoder.safetensors"), channels)
    return read_weights(Path("encoder.safetensors"), "")


def test_a_file_of_stunets_layout_is_placed_whole_and_is_an_init(folder, capsys):
    """Their checkpoint: `network_weights` of encoder and decoder; our whole encoder is in the file, also stage 4."""
    network = redraw(Backbone("b", "cnn", STUNET).segmenter(3, (16, 16, 16)))
    theirs = {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}
    torch.save({"network_weights": theirs, "epoch": 3, "logging": {"dice": [0.5]}}, "stunet.pth")
    state, about = take("stunet", Path("stunet.pth"), "stunet_x")
    assert about["source"]["format"] == "stunet"
    assert {*state, *about["source"]["dropped"]} == set(theirs)
    assert set(about["source"]["dropped"].values()) == {foreign.INHERITED}
    assert about["card"] == {"backbone": "stunet_x", "family": "cnn", "architecture": STUNET, "channels": 1}
    report = place(state, Backbone("b", "cnn", STUNET).segmenter(2, (16, 16, 16)), about["tensors"])
    assert report["placed_share"] == 1.0
    assert not [name for name in report["fresh"] if name.startswith("encoder.")]
    assert "dropped" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_in_a_sentence(folder):
    network = Backbone("b", "cnn", STUNET).segmenter(3, (16, 16, 16))
    full = {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}
    first = "conv_blocks_context.0.0.conv1.weight"
    cases = [
        ({n: t for n, t in full.items() if n != first}, f"{first} is missing"),
        (full | {first: torch.ones(5, 1, 3, 3, 3)}, r"shape \(5, 1, 3, 3, 3\) where stunet_x has \(4, 1, 3, 3, 3\)"),
        (full | {"conv_blocks_context.9.weight": torch.ones(1)}, "conv_blocks_context.9.weight has no place"),
        (full | {first: torch.full((4, 1, 3, 3, 3), torch.nan)}, "values that are not finite"),
    ]  # fmt: skip
    for number, (state, said) in enumerate(cases):
        torch.save(state, f"{number}.pth")
        with pytest.raises(Refusal, match=said):
            take("stunet", Path(f"{number}.pth"), "stunet_x")
    torch.save(full, "good.pth")
    with pytest.raises(Refusal, match="vit_x is no STU-Net"):
        take("stunet", Path("good.pth"), "vit_x")
    with pytest.raises(Refusal, match="--from keras is not known: choose from nnssl"):
        take("keras", Path("good.pth"), "vit_x")
    with pytest.raises(Refusal, match="no config/backbones/nothing.yaml: choose from"):
        take("stunet", Path("good.pth"), "nothing")
    assert not Path("encoder.safetensors").exists()


class Trap:
    def __reduce__(self):
        return (Path("sprung").touch, ())


def test_nothing_in_a_pickle_is_run(folder):
    torch.save({"state_dict": {"a": torch.ones(1)}, "trainer": Trap()}, "trap.pth")
    with pytest.raises(Refusal, match="cannot be read without running code that is in it"):
        take("stunet", Path("trap.pth"), "stunet_x")
    assert not Path("sprung").exists()
    Path("bad.pth").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="or is damaged"):
        take("stunet", Path("bad.pth"), "stunet_x")
    torch.save({"epoch": 3}, "empty.pth")
    with pytest.raises(Refusal, match="holds no tensors"):
        take("stunet", Path("empty.pth"), "stunet_x")


def test_copies_that_differ_are_refused_and_a_swin_is_named(folder):
    stem = "encoder.stem.convs.0"
    conv = {f"{stem}.conv.weight": torch.ones(1), f"{stem}.all_modules.0.weight": torch.zeros(1)}
    torch.save({"network_weights": conv}, "resenc.pth")
    with pytest.raises(Refusal, match="differs from its copy"):
        take("nnssl", Path("resenc.pth"), "resenc_tiny")
    with pytest.raises(Refusal, match="is a ResEnc and primus_x is none: name resenc_l"):
        take("nnssl", Path("resenc.pth"), "primus_x")
    with pytest.raises(Refusal, match="is a SwinUNETR, which voxprior has no backbone for"):
        take("monai-swin", Path("resenc.pth"), "vit_x")


THEIRS = {"mixed_norm": "attn.norm", "hidden_norm": "mlp.norm", "gate": "mlp.fc1_g", "fc1": "mlp.fc1_x"}
THEIRS |= {"fc2": "mlp.fc2", "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "proj": "attn.proj"}


def of_primus_layout(encoder):
    """Renames an encoder of ours as the authors do, part by part, and lays its patches out as a convolution does."""
    made = {"mask_token": torch.zeros(1, 1, 48), "up_projection.decode.2.bias": torch.zeros(3)}
    for name, tensor in encoder.state_dict().items():
        parts = [THEIRS.get(part, part) for part in name.split(".")]
        name = ".".join(parts).replace("scale1_D", "gamma_1").replace("scale2_D", "gamma_2")
        if name.startswith("embed."):
            made["down_projection.proj." + name.removeprefix("embed.")] = tensor
        else:
            made["eva." + name.replace("position_ND", "pos_embed")] = tensor
    made["down_projection.proj.weight"] = made["down_projection.proj.weight"].reshape(48, 8, 8, 8, 1).movedim(-1, 1)
    made["eva.pos_embed"] = made["eva.pos_embed"][None]
    return made


def test_a_file_of_primus_layout_is_placed_whole(folder, capsys):
    """As nnssl writes it: `network_weights` beside `nnssl_adaptation_plan`; its decoder and mask token are dropped."""
    backbone = Backbone("primus_x", "vit", PRIMUS)
    encoder = redraw(backbone.encoder())
    theirs = of_primus_layout(encoder)
    plan = {"architecture_plans": {"arch_class_name": "PrimusM"}, "key_to_lpe": "eva.pos_embed"}
    torch.save({"network_weights": theirs, "nnssl_adaptation_plan": plan, "citations": [{"name": "x"}]}, "primus.pth")
    state, about = take("nnssl", Path("primus.pth"), "primus_x")
    assert set(about["source"]["dropped"]) == {"mask_token", "up_projection.decode.2.bias"}
    assert about["source"]["citations"] == [{"name": "x"}]
    assert place(state, backbone.segmenter(3, (32, 24, 16)), about["tensors"])["placed_share"] == 1.0
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    assert "primus.pth placed in primus_x" in capsys.readouterr().out


def test_a_primus_that_does_not_fit_is_refused_in_a_sentence(folder):
    full = of_primus_layout(Backbone("primus_x", "vit", PRIMUS).encoder())
    cases = [
        (full | {"eva.pos_embed": torch.ones(1, 27, 48)}, "primus_x", "27 positions where primus_x has 24"),
        (full | {"down_projection.proj.weight": torch.ones(48, 1, 4, 4, 4)}, "primus_x", "patches of another size"),
        (full | {"down_projection.stem.x": torch.ones(1)}, "primus_x", "a Primus of version 2 or 3"),
        ({n: t for n, t in full.items() if "pos_embed" not in n}, "primus_x", "lacks the patch or the position"),
        ({n: t for n, t in full.items() if "blocks.2.gamma_1" not in n}, "primus_x", "blocks.2.scale1_D is missing"),
        (full | {"eva.blocks.3.gamma_1": torch.ones(48)}, "primus_x", "blocks.3.scale1_D has no place"),
        (full, "vit_x", "is a Primus and vit_x is none: name primus_m"),
        (full, "stunet_x", "is a Primus and stunet_x is none"),
    ]  # fmt: skip
    for number, (state, backbone, said) in enumerate(cases):
        torch.save({"network_weights": state}, f"{number}.pth")
        with pytest.raises(Refusal, match=said):
            take("nnssl", Path(f"{number}.pth"), backbone)
    with pytest.raises(Refusal, match="primus_x has no learnt positions as MONAI's ViT|name vit_monai_base"):
        take("monai-vit", Path("0.pth"), "primus_x")
    assert not Path("encoder.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv", "perceptron"])
def test_monais_vit_has_the_same_features(folder, kind):
    """MONAI's arrays are X Y Z: the same scan goes in turned, and the tokens come out in that order.

    Its kinds of patch embedding: a convolution, alone and without biases in attention, as `ViT` is by itself; a linear
    layer, inside another network, as in `UNETR` and in self-supervised checkpoints.
    """
    from monai.networks.nets import ViT

    size_xyz, channels, alone = (32, 24, 16), 2, kind == "conv"
    vit = redraw(ViT(channels, size_xyz, 8, 48, 96, 3, 4, proj_type=kind, qkv_bias=not alone))
    peer = vit if alone else torch.nn.ModuleDict({"vit": vit, "decoder": torch.nn.Linear(2, 2)})
    torch.save({"state_dict": peer.state_dict()}, "monai.pt")
    state, about = take("monai-vit", Path("monai.pt"), "vit_x", channels)
    ours = Backbone("vit_x", "vit", VIT, channels).encoder().eval()
    ours.load_state_dict(state)
    volume = torch.rand(2, channels, *size_xyz)
    with torch.no_grad():
        theirs = vit(volume)[0].unflatten(1, (4, 3, 2)).permute(0, 4, 3, 2, 1)
        (last,) = ours.taps(volume.permute(0, 1, 4, 3, 2), after=())
    worst = float((last - theirs).abs().max())
    print(f"MONAI's ViT, {kind}: features within {worst:.1e}")
    assert worst < 1e-5
    assert all(".norm_cross_attn." in name or name.startswith("decoder.") for name in about["source"]["dropped"])


def test_monais_vit_of_another_grid_is_refused(folder):
    state = {
        "patch_embedding.patch_embeddings.weight": torch.ones(48, 1, 8, 8, 8),
        "patch_embedding.position_embeddings": torch.ones(1, 27, 48),
    }
    torch.save(state, "monai.pt")
    with pytest.raises(Refusal, match="27 positions where vit_x has 24: set learnt_zyx"):
        take("monai-vit", Path("monai.pt"), "vit_x")
    with pytest.raises(Refusal, match="stunet_x has no learnt positions"):
        take("monai-vit", Path("monai.pt"), "stunet_x")
    state["patch_embedding.patch_embeddings.weight"] = torch.ones(48, 1, 16, 16, 16)
    torch.save(state, "monai.pt")
    with pytest.raises(Refusal, match="patches of another size than vit_x"):
        take("monai-vit", Path("monai.pt"), "vit_x")


def test_learnt_positions_are_those_of_their_grid_and_interpolated_for_others():
    encoder = Backbone("vit_x", "vit", VIT).encoder()
    with torch.no_grad():
        encoder.position_ND.copy_(torch.arange(24.0)[:, None].expand(-1, 48))
    assert torch.equal(encoder.positions((2, 3, 4)), encoder.position_ND)
    finer = encoder.positions((4, 6, 8)).detach()
    assert finer.shape == (192, 48)
    assert float(finer.mean()) == pytest.approx(11.5, abs=1e-4)
    plain = Backbone("vit", "vit", {key: value for key, value in VIT.items() if key != "learnt_zyx"}).encoder()
    assert "position_ND" not in plain.state_dict()


@pytest.mark.oracle
def test_stunets_own_network_has_the_same_features(folder, monkeypatch):
    if not os.environ.get("VOXPRIOR_PEERS"):
        pytest.skip("VOXPRIOR_PEERS names no folder with the authors' checkouts")
    file = Path(os.environ["VOXPRIOR_PEERS"], "STU-Net/nnUNet-2.2/nnunetv2/training/nnUNetTrainer/STUNetTrainer.py")
    if not file.is_file():
        pytest.skip(f"{file} is missing: check out uni-medical/STU-Net beside the project")
    trainer = ModuleType("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    trainer.nnUNetTrainer = object  # all that the file asks of nnU-Net
    for name in ("nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, trainer.__name__, trainer)
    spec = importlib.util.spec_from_file_location("stunet_peer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shape = {"pool_op_kernel_sizes": [[2, 2, 2]] * 3, "conv_kernel_sizes": [[3, 3, 3]] * 4}
    peer = redraw(module.STUNet(1, 3, depth=[2] * 4, dims=STUNET["channels"], **shape))
    torch.save({"network_weights": peer.state_dict()}, "stunet.model")
    state, _ = take("stunet", Path("stunet.model"), "stunet_x")
    network = Backbone("b", "cnn", STUNET).segmenter(2, (16, 16, 16))
    place(state, network, list(state))
    volume = torch.rand(1, 1, 24, 16, 32)
    with torch.no_grad():
        features, value = network.encoder(volume), volume
        worst = 0.0
        for stage, ours in zip(peer.conv_blocks_context, features, strict=True):
            value = stage(value)
            worst = max(worst, float((value - ours).abs().max()))
    print(f"STU-Net: features within {worst:.1e}")
    assert worst < 1e-5


def peer(name):
    """Runs the authors' network in its own environment: (its weights, volume and outputs)."""
    if not os.environ.get("VOXPRIOR_NNUNET"):
        pytest.skip("VOXPRIOR_NNUNET names no folder with the interpreter of an environment with nnU-Net")
    script = Path(__file__).parent / "peer_networks.py"
    python = Path(os.environ["VOXPRIOR_NNUNET"], "python")
    subprocess.run([python, script, name, "peer.safetensors"], check=True, capture_output=True)
    theirs = load_file("peer.safetensors")
    return {name.removeprefix("weights/"): t for name, t in theirs.items() if name.startswith("weights/")}, theirs


@pytest.mark.oracle
def test_nnssls_resenc_has_the_same_features(folder):
    """From nnU-Net's own network to our file and back into a network, by the verb."""
    weights, theirs = peer("resenc")
    torch.save({"network_weights": weights, "trainer_name": "SparkTrainer", "citations": [{"name": "x"}]}, "ssl.pth")
    state, about = take("nnssl", Path("ssl.pth"), "resenc_tiny")
    assert about["source"]["citations"] == [{"name": "x"}]
    architecture = about["card"]["architecture"]
    network = Backbone("resenc_tiny", "cnn", architecture).segmenter(2, (32, 32, 32))
    assert place(state, network, about["tensors"])["placed_share"] == 1.0
    with torch.no_grad():
        features = network.encoder(theirs["volume"])
    worst = max(float((here - theirs[f"outputs/{number}"]).abs().max()) for number, here in enumerate(features))
    print(f"ResEnc of nnssl's layout: features within {worst:.1e}")
    assert worst < 1e-5


@pytest.mark.oracle
def test_nnssls_primus_has_the_same_features_and_the_same_logits(folder):
    """The encoder by the verb; the decoder, which nobody inherits, by hand."""
    weights, theirs = peer("primus")
    torch.save({"network_weights": weights, "trainer_name": "BaseEvaMAETrainer"}, "ssl.pth")
    state, about = take("nnssl", Path("ssl.pth"), "primus_x")
    network = Backbone("primus_x", "vit", PRIMUS).segmenter(3, (32, 24, 16)).eval()
    assert place(state, network, about["tensors"])["placed_share"] == 1.0
    assert all(name.startswith(("up_projection.", "mask_token")) for name in about["source"]["dropped"])
    decoder = {}
    for name, tensor in weights.items():
        if name.startswith("up_projection.decode."):
            level, *inner, kind = name.removeprefix("up_projection.decode.").split(".")
            decoder[f"{'norms' if inner == ['1'] else 'rises'}.{level}.{kind}"] = tensor
    missing, unknown = network.load_state_dict(decoder, strict=False)
    assert not unknown and all(name.startswith("encoder.") for name in missing)
    with torch.no_grad():
        (features,) = network.encoder.taps(theirs["volume"], ())
        logits = network(theirs["volume"])
    apart = [float((features.flatten(2).mT - theirs["outputs/0"]).abs().max())]
    apart.append(float((logits - theirs["outputs/1"]).abs().max() / theirs["outputs/1"].abs().max()))
    print(f"Primus of nnssl's layout: features within {apart[0]:.1e}, logits within {apart[1]:.1e} of the largest")
    assert max(apart) < 1e-5


def test_safetensors_are_read_too(folder):
    from safetensors.torch import save_file

    full = Backbone("b", "cnn", STUNET).segmenter(3, (16, 16, 16)).encoder.state_dict()
    save_file(full, "stunet.safetensors")
    state, rest = read_checkpoint(Path("stunet.safetensors"))
    taken = foreign.read_stunet(state, Backbone("b", "cnn", STUNET), Path("x"))
    check(taken, Backbone("b", "cnn", STUNET), Path("x"))
    assert rest == {} and not taken.dropped
