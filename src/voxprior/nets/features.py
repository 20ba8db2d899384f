"""An encoder of any family as one function from volume to feature map, with standardised weights where asked for.

Axes: B samples, Z Y X voxels, z y x cells, C channels, O I output and input channels of a convolution.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from voxprior.maths.patches import grid, patchify
from voxprior.nets.residual import StagedEncoder
from voxprior.nets.vit import ViT


def standardise_filters(weight_OIzyx: Tensor, eps: float = 1e-5) -> Tensor:
    """Gives every filter mean 0 and standard deviation 1 (unbiased), in float32.

    (w - mean w) / sqrt(var w + eps). Adding a constant to a filter or scaling it up changes nothing. Outputs grow with
    the square root of the number of weights, so a norm must follow.
    Source: Qiao et al., "Weight standardization", 2019, arXiv 1903.10520, equations 4 to 6, without their gain.
    """
    weight = weight_OIzyx.float()
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3, 4), keepdim=True)
    return (weight - mean) / torch.sqrt(variance + eps)


def standardised(encoder: nn.Module) -> dict[str, Tensor]:
    """Names the standardised weights of an encoder's convolutions; the gradient reaches the weights as they are.

    Kernels of one voxel are left alone: they are the shortcuts, which no norm follows here, and the first of them has
    a single weight per filter.
    """
    return {
        f"{name}.weight": standardise_filters(part.weight)
        for name, part in encoder.named_modules()
        if isinstance(part, nn.Conv3d) and part.weight[0, 0].numel() > 1
    }


def stages(encoder: nn.Module) -> int:
    """Counts the feature maps that can be asked for: the stages of a CNN or Swin transformer, one of a ViT."""
    return len(encoder.channels) if isinstance(encoder, StagedEncoder) else 1


def width_of(encoder: nn.Module, stage: int) -> int:
    """Tells the channels of a stage's map; -1: the deepest."""
    return encoder.channels[stage] if isinstance(encoder, StagedEncoder) else int(encoder.width)  # type: ignore[arg-type]


def stride_of(encoder: nn.Module, stage: int) -> int:
    """Tells how many voxels a cell of a stage's map spans; -1: the deepest."""
    if isinstance(encoder, StagedEncoder):
        return encoder.first_stride * 2 ** (stage % len(encoder.channels))
    return int(encoder.unit_vox)  # type: ignore[arg-type]


def feature_map(encoder: nn.Module, volume_BCZYX: Tensor, stage: int = -1, filters: bool = False) -> Tensor:
    """Encodes volumes: (B, z, y, x, C).

    Args:
        encoder: a ViT, or an encoder of stages.
        volume_BCZYX: sides are multiples of the stage's stride.
        stage: of an encoder of stages, 0 is the first, -1 the deepest.
        filters: standardise the convolutions' weights.
    """
    if isinstance(encoder, ViT):
        cells_zyx = grid(tuple(volume_BCZYX.shape), encoder.unit_vox)
        return encoder(patchify(volume_BCZYX, encoder.unit_vox), cells_zyx).unflatten(1, cells_zyx)
    maps = functional_call(encoder, standardised(encoder), (volume_BCZYX,)) if filters else encoder(volume_BCZYX)
    return maps[stage].movedim(1, -1)


def trained_state(encoder: nn.Module, stage: int = -1, filters: bool = False) -> dict[str, Tensor]:
    """Returns what was trained, as it was used: standardised weights, and no stage below the one that was asked for."""
    state = dict(encoder.state_dict())
    if filters:
        with torch.no_grad():
            state |= standardised(encoder)
    if isinstance(encoder, StagedEncoder):
        below = range(stage % len(encoder.channels) + 1, len(encoder.channels))
        unused = tuple(encoder.stage_start(number) for number in below)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
    return state
