"""Checkpoints of MONAI's SwinUNETR, in the three layouts that people publish, become encoders with the same maps."""

import json
from pathlib import Path

import pytest
import torch

from voxprior.commands import take_in
from voxprior.errors import Refusal
from voxprior.nets.backbones import Backbone
from voxprior.nets.transfer import place
from voxprior.nets.weights import read_weights

SIZES = {"width": 12, "depths": [2, 1, 1, 1], "heads": [2, 2, 4, 4], "window": 3, "children": "all"}
SIZES |= {"pretrained_stages": 3}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a backbone of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config" / "backbones").mkdir(parents=True)
    recipe = {"lr": 1e-3}
    content = {"title": "x", "family": "swin", "swin": SIZES, "pretrain": recipe, "scratch": recipe, "finetune": recipe}
    (tmp_path / "config" / "backbones" / "swin_x.yaml").write_text(json.dumps(content))
    return tmp_path


def take(checkpoint: str, backbone: str = "swin_x"):
    take_in.run("monai-swin", Path(checkpoint), backbone, Path("encoder.safetensors"), 1)
    return read_weights(Path("encoder.safetensors"), "")


@pytest.fixture(scope="module")
def peer():
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(0)
    sizes = {"depths": SIZES["depths"], "num_heads": SIZES["heads"], "feature_size": 12, "window_size": 3}
    return SwinUNETR(1, 3, **sizes).eval()


def layouts(peer) -> dict[str, dict]:
    """The same transformer as a whole network, as `model_swinvit.pt`, and as a disruptive autoencoder."""
    whole = peer.state_dict()
    swin = peer.swinViT.state_dict()
    old = {f"module.{name.replace('mlp.linear', 'mlp.fc')}": tensor for name, tensor in swin.items()}
    heads = {"module.norm.weight": torch.ones(1), "module.rotation_head.weight": torch.ones(1)}
    dae = {}
    for name, tensor in swin.items():  # `filter_swinunetr` of MONAI cuts the second "0." out again
        stage = name.startswith("layers")
        dae["encoder." + (name[:10] + "0." + name[10:] if stage else name)] = tensor
    dae |= {"encoder.mask_token": torch.ones(1), "decoder.weight": torch.ones(1)}
    return {"whole": whole, "ssl": {"state_dict": old | heads, "epoch": 3}, "dae": {"model": dae}}


@pytest.mark.parametrize("layout", ["whole", "ssl", "dae"])
def test_every_layout_is_placed_whole_and_has_monais_maps(folder, peer, layout, capsys):
    torch.save(layouts(peer)[layout], "swin.pt")
    state, about = take("swin.pt")
    network = Backbone("swin_x", "swin", SIZES).segmenter(2, (64, 32, 32)).eval()
    report = place(state, network, about["tensors"])
    assert report["placed_share"] == 1.0 and not [name for name in report["fresh"] if name.startswith("encoder.")]
    assert "follows from the window" in capsys.readouterr().out
    volume = torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = peer.swinViT(volume.transpose(2, 4).contiguous())
        worst = max(
            float((a - b.transpose(2, 4)).abs().max()) for a, b in zip(network.encoder(volume), theirs, strict=True)
        )
    print(f"SwinUNETR's {layout} layout: maps within {worst:.1e}")
    assert worst < 1e-5


def test_monai_takes_the_same_checkpoints(peer):
    """The layouts above are what MONAI's own loaders read: `load_from` and `filter_swinunetr`."""
    from monai.networks.nets import SwinUNETR
    from monai.networks.nets.swin_unetr import filter_swinunetr

    sizes = {"depths": SIZES["depths"], "num_heads": SIZES["heads"], "feature_size": 12, "window_size": 3}
    made, wanted = layouts(peer), peer.swinViT.state_dict()
    other = SwinUNETR(1, 3, **sizes)
    other.load_from(made["ssl"])
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in other.swinViT.state_dict().items())
    pairs = [filter_swinunetr(name, tensor) for name, tensor in made["dae"]["model"].items()]
    renamed = {pair[0].removeprefix("swinViT.") for pair in pairs if pair}
    assert renamed == set(wanted)


def test_what_does_not_fit_is_refused_in_a_sentence(folder, peer):
    whole = layouts(peer)["whole"]
    table = "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"
    cases = [
        (whole | {"swinViT.layers1c.0.layer.conv1.conv.weight": torch.ones(1)}, "is a SwinUNETR-V2"),
        (whole | {table: torch.ones(27, 2)}, r"bias_table has shape \(27, 2\) where swin_x has \(125, 2\)"),
        ({name: tensor for name, tensor in whole.items() if name != table}, "bias_table is missing"),
        ({"vit.norm.weight": torch.ones(1)}, "patch_embed.proj.weight is missing"),
    ]
    for number, (state, said) in enumerate(cases):
        torch.save({"state_dict": state}, f"{number}.pt")
        with pytest.raises(Refusal, match=said):
            take(f"{number}.pt")
    with pytest.raises(Refusal, match="vit_tiny is none: name swin_base"):
        take("0.pt", "vit_tiny")
    assert not Path("encoder.safetensors").exists()
