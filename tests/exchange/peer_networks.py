"""Builds networks by their authors' code and writes weights, input and features; runs in the peer's environment.

Usage: python peer_networks.py {resenc,primus} OUTPUT.safetensors
"""

import sys

import torch
from safetensors.torch import save_file


def resenc() -> tuple[torch.nn.Module, torch.Tensor, list[torch.Tensor]]:
    """Builds `config/backbones/resenc_tiny.yaml` with every tensor drawn anew: first weights hide half of a block."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    network = ResidualEncoderUNet(
        1, 4, [8, 16, 32, 64], torch.nn.Conv3d, 3, [1, 2, 2, 2], [1, 2, 2, 2], 3, [1, 1, 1], conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip
    redraw(network)
    volume = torch.rand(1, 1, 32, 24, 16)
    return network, volume, [*network.encoder(volume), *network(volume)]


def primus() -> tuple[torch.nn.Module, torch.Tensor, list[torch.Tensor]]:
    """A small Primus with the parts of Primus-M."""
    from dynamic_network_architectures.architectures.primus import Primus

    network = Primus(
        input_channels=1, num_classes=3, embed_dim=48, patch_embed_size=(8, 8, 8), eva_depth=3, eva_numheads=4,
        input_shape=(32, 24, 16), init_values=0.1, scale_attn_inner=True, drop_path_rate=0.2,
    ).eval()  # fmt: skip
    redraw(network)
    volume = torch.rand(1, 1, 32, 24, 16)
    tokens = network.down_projection(volume).flatten(2).transpose(1, 2)
    return network, volume, [network.eva(tokens)[0], network(volume)]


def redraw(network: torch.nn.Module) -> None:
    """Draws every parameter: norms about 1, the rest about 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            parameter.copy_(norm + 0.1 * torch.randn_like(parameter))


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        network, volume, outputs = {"resenc": resenc, "primus": primus}[sys.argv[1]]()
    tensors = {"weights/" + name: tensor.clone() for name, tensor in network.state_dict().items()}
    tensors |= {f"outputs/{number}": tensor.contiguous() for number, tensor in enumerate(outputs)}
    tensors["volume"] = volume
    tensors["parameters"] = torch.tensor(sum(parameter.numel() for parameter in network.parameters()))
    save_file(tensors, sys.argv[2])
