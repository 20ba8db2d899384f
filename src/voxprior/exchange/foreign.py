"""Name maps from other projects' checkpoints to our encoders; one function per layout.

Sources of the names: nnssl and nnU-Net: dynamic-network-architectures 0.4.4 (Apache-2.0); STU-Net: the authors'
nnU-Net variant (Apache-2.0); MONAI: `monai.networks.nets` 1.6 (Apache-2.0).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from voxprior.errors import Refusal
from voxprior.exchange import nnunet
from voxprior.exchange.names import Taken, rename
from voxprior.nets.backbones import Backbone

Reader = Callable[[Mapping[str, Tensor], Backbone, Path], Taken]
INHERITED = "decoder: the encoder alone is inherited"


def read_nnssl(state: Mapping[str, Tensor], backbone: Backbone, path: Path) -> Taken:
    """Reads ResEnc or Primus from a checkpoint of nnssl or nnU-Net.

    Raises:
        Refusal: the backbone is not what the checkpoint is, or positions are of another grid.
    """
    if any(_bare(name).startswith("eva.") for name in state):
        return _read_primus(state, backbone, path)
    if not backbone.is_resenc:
        raise Refusal(f"{path} is a ResEnc and {backbone.name} is none: name resenc_l as --backbone")
    return rename(state, nnunet.encoder_name, path)


def _read_primus(state: Mapping[str, Tensor], backbone: Backbone, path: Path) -> Taken:
    """Reads a Primus; nnU-Net's arrays are Z Y X as ours, so only the patch embedding is laid out anew."""
    if not backbone.is_primus:
        raise Refusal(f"{path} is a Primus and {backbone.name} is none: name primus_m as --backbone")
    if any(_bare(name).startswith("down_projection.st") for name in state):
        raise Refusal(
            f"{path} is a Primus of version 2 or 3, which embeds patches by a residual network: take one of version 1"
        )
    taken = rename(state, _primus_name, path)
    placed, sizes = taken.placed, backbone.architecture
    embed, position = placed.get("embed.weight"), placed.get("position_ND")
    if embed is None or position is None:
        raise Refusal(f"{path} lacks the patch or the position embedding of a Primus: give the whole checkpoint")
    if tuple(embed.shape[2:]) != (sizes["patch_vox"],) * 3:
        raise Refusal(f"{path} has patches of another size than {backbone.name}: name the backbone it was made with")
    placed["embed.weight"] = rearrange(embed, "d c z y x -> d (z y x c)").contiguous()
    placed["position_ND"] = _of_grid(position[0], sizes["learnt_zyx"], backbone, path)
    return taken


def _bare(name: str) -> str:
    """Takes off what wrappers of a network put before a tensor's name."""
    for wrapper in ("module.", "_orig_mod."):
        name = name.removeprefix(wrapper)
    return name


def _primus_name(name: str) -> tuple[str | None, str]:
    """Tells what our Primus calls a tensor of the authors'."""
    name = _bare(name)
    if name.startswith("down_projection.proj."):
        return name.replace("down_projection.proj.", "embed."), ""
    if not name.startswith("eva."):
        return None, INHERITED
    for theirs, ours in (
        ("eva.", ""),
        ("pos_embed", "position_ND"),
        ("gamma_1", "scale1_D"),
        ("gamma_2", "scale2_D"),
        ("attn.norm.", "mixed_norm."),
        ("attn.proj.", "proj."),
        ("attn.q_proj.", "q."),
        ("attn.k_proj.", "k."),
        ("attn.v_proj.", "v."),
        ("mlp.norm.", "hidden_norm."),
        ("mlp.fc1_g.", "gate."),
        ("mlp.fc1_x.", "fc1."),
        ("mlp.fc2.", "fc2."),
    ):
        name = name.replace(theirs, ours)
    return name, ""


def _of_grid(position_ND: Tensor, grid_zyx: Sequence[int], backbone: Backbone, path: Path) -> Tensor:
    """Returns positions that are of the backbone's grid.

    Raises:
        Refusal: their number is another.
    """
    if len(position_ND) != math.prod(grid_zyx):
        raise Refusal(
            f"{path} has {len(position_ND)} positions where {backbone.name} has {math.prod(grid_zyx)}: "
            "set learnt_zyx to the checkpoint's image size by the patch"
        )
    return position_ND


def read_monai_swin(state: Mapping[str, Tensor], backbone: Backbone, path: Path) -> Taken:
    """Refuses MONAI's SwinUNETR.

    Raises:
        Refusal: always; voxprior has no shifted-window transformer.
    """
    raise Refusal(f"{path} is a SwinUNETR, which voxprior has no backbone for: take MONAI's ViT, STU-Net or ResEnc")


def read_stunet(state: Mapping[str, Tensor], backbone: Backbone, path: Path) -> Taken:
    """Reads STU-Net's context path from the authors' checkpoints; our names are theirs.

    Raises:
        Refusal: the backbone is no STU-Net.
    """
    if backbone.family != "cnn" or backbone.is_resenc:
        raise Refusal(f"{backbone.name} is no STU-Net: name stunet_s, stunet_b, stunet_l or stunet_h as --backbone")

    def rule(name: str) -> tuple[str | None, str]:
        name = name.removeprefix("module.")
        return (name, "") if name.startswith("conv_blocks_context.") else (None, INHERITED)

    return rename(state, rule, path)


def read_monai_vit(state: Mapping[str, Tensor], backbone: Backbone, path: Path) -> Taken:
    """Reads MONAI's ViT, alone or inside its UNETR or its autoencoder.

    MONAI's arrays are X Y Z and ours Z Y X, so patches and positions are turned.

    Raises:
        Refusal: the backbone is no transformer with learnt positions, or positions are of another grid.
    """
    if backbone.family != "vit" or backbone.is_primus or not backbone.architecture.get("learnt_zyx"):
        raise Refusal(
            f"{backbone.name} has no learnt positions, which MONAI's ViT has: name vit_monai_base as --backbone"
        )
    prefix = "vit." if any(name.startswith("vit.") for name in state) else ""
    taken = rename(state, lambda name: _monai_vit_name(name.removeprefix("module."), prefix), path)
    placed, sizes = taken.placed, backbone.architecture
    patch, tokens_zyx = int(sizes["patch_vox"]), tuple(sizes["learnt_zyx"])
    embed, position = placed.get("embed.weight"), placed.get("position_ND")
    if embed is None or position is None:
        raise Refusal(f"{path} holds no patch and position embedding of MONAI's ViT: name the layout that it has")
    if embed.numel() != sizes["width"] * patch**3 * backbone.channels:
        raise Refusal(f"{path} has patches of another size than {backbone.name}: name the backbone it was made with")
    position_ND = _of_grid(position[0], tokens_zyx, backbone, path)
    shape = {"x": patch, "y": patch, "z": patch, "c": backbone.channels}
    pattern = "d c x y z -> d (z y x c)" if embed.dim() == 5 else "d (x y z c) -> d (z y x c)"
    placed["embed.weight"] = rearrange(embed, pattern, **shape).contiguous()
    z, y, x = tokens_zyx
    placed["position_ND"] = rearrange(position_ND, "(x y z) d -> (z y x) d", x=x, y=y, z=z).contiguous()
    for number in range(sizes["depth"]):  # MONAI's attention has no bias unless asked for, ours has one: 0 is the same
        weight = placed.get(f"blocks.{number}.qkv.weight")
        if weight is not None:
            placed.setdefault(f"blocks.{number}.qkv.bias", torch.zeros(len(weight)))
    return taken


def _monai_vit_name(name: str, prefix: str) -> tuple[str | None, str]:
    """Tells what our transformer calls a tensor of MONAI's."""
    if not name.startswith(prefix):
        return None, INHERITED
    name = name.removeprefix(prefix)
    fixed = {
        "patch_embedding.patch_embeddings.weight": "embed.weight",
        "patch_embedding.patch_embeddings.bias": "embed.bias",
        "patch_embedding.patch_embeddings.1.weight": "embed.weight",
        "patch_embedding.patch_embeddings.1.bias": "embed.bias",
        "patch_embedding.position_embeddings": "position_ND",
        "norm.weight": "norm.weight",
        "norm.bias": "norm.bias",
    }
    if name in fixed:
        return fixed[name], ""
    if not name.startswith("blocks."):
        return None, "a class token, head or decoder: the encoder alone is inherited"
    if "cross_attn" in name:
        return None, "of an attention across inputs, which is not used"
    for theirs, ours in (
        ("attn.qkv", "qkv"),
        ("attn.out_proj", "proj"),
        ("mlp.linear1", "fc1"),
        ("mlp.linear2", "fc2"),
    ):
        name = name.replace(theirs, ours)
    return name, ""


READERS: dict[str, Reader] = {
    "nnssl": read_nnssl,
    "stunet": read_stunet,
    "monai-vit": read_monai_vit,
    "monai-swin": read_monai_swin,
}
