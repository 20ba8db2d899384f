"""nnU-Net's names for ResEnc, and checkpoints with the adaptation plan that its fine-tuning reads.

nnU-Net's `state_dict` lists a tensor under up to four names: a convolution is `conv` and `all_modules.0`, a norm `norm`
and `all_modules.1`, and the whole encoder is there once more below `decoder.encoder`. All are written, because its
loaders are strict, and all share memory, so the file does not grow.

Source: nnU-Net, `documentation/finetuning_from_nnssl_checkpoints.md` and `nnunetv2/experiment_planning/like_nnssl.py`
(Apache-2.0), for the fields that are read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from voxprior.errors import Refusal
from voxprior.exchange.names import encoder_shapes
from voxprior.nets.backbones import Backbone

ENCODER, STEM = "encoder.stages", "encoder.stem"
IN_PROJECTION = ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"]
RESENC_L = ([32, 64, 128, 256, 320, 320], [1, 3, 4, 6, 6, 6])
NNUNETS_PAPER = (
    "Isensee, F., Wald, T., Ulrich, C., Baumgartner, M., Roy, S., Maier-Hein, K., & Jaeger, P. F. (2024). nnU-Net "
    "revisited: A call for rigorous validation in 3D medical image segmentation. MICCAI. arXiv 2404.09556"
)
PAPERS = {
    "spark": "Tian, K., et al. (2023). Designing BERT for convolutional networks. ICLR. arXiv 2301.03580",
    "anatomask": "Li, Y., et al. (2024). AnatoMask. ECCV. arXiv 2407.06468",
    "byol": "Grill, J.-B., et al. (2020). Bootstrap your own latent. NeurIPS. arXiv 2006.07733",
    "pgl": "Xie, Y., et al. (2020). PGL: Prior-guided local self-supervised learning. arXiv 2011.12640",
}


def aliases(name: str) -> Iterator[str]:
    """Yields every name that nnU-Net has for one of our segmentation network's tensors, ours first."""
    for ours, theirs in ((".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")):
        if ours in name:
            head, tail = name.rsplit(ours, 1)
            both = [name, f"{head}{theirs}{tail}"]
            break
    else:
        both = [name]
    yield from both
    if name.startswith("encoder."):
        yield from (f"decoder.{other}" for other in both)


def our_name(name: str) -> str:
    """Returns our segmentation network's name for one of nnU-Net's."""
    name = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
    return name.replace(".all_modules.0.", ".conv.").replace(".all_modules.1.", ".norm.")


def encoder_name(name: str) -> tuple[str | None, str]:
    """Tells what our encoder calls a tensor of nnU-Net's network: the rule for `names.rename`."""
    for wrapper in ("module.", "_orig_mod."):
        name = name.removeprefix(wrapper)
    ours = our_name(name)
    if ours.startswith("encoder."):
        return ours.removeprefix("encoder."), ""
    return None, "decoder: the encoder alone is inherited"


def weights(backbone: Backbone, state: Mapping[str, Tensor], classes: int, seed: int = 0) -> dict[str, Tensor]:
    """Completes an encoder or a model to nnU-Net's whole network, under all of nnU-Net's names.

    What the file does not hold (a decoder, stages below the pretrained ones) gets first weights as nnU-Net draws them.

    Args:
        backbone: a ResEnc.
        state: a segmentation network's tensors, or an encoder's under `encoder.`.
        classes: channels of the heads.
        seed: of the first weights.

    Raises:
        Refusal: the backbone is none of nnU-Net's, or a tensor has no place in it.
    """
    if not backbone.is_resenc:
        raise Refusal(
            f"{backbone.name} is no network of nnU-Net, which has ResEnc: pretrain resenc_l, or use the encoder here"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = dict(backbone.segmenter(classes, (backbone.segmenter_unit_vox * 2,) * 3).state_dict())
    for name, tensor in state.items():
        if name not in whole or whole[name].shape != tensor.shape:
            raise Refusal(f"{name} does not fit backbone {backbone.name}: export the file with the card it was made by")
        whole[name] = tensor.detach().cpu().contiguous()
    return {alias: tensor for name, tensor in whole.items() for alias in aliases(name)}


def fresh(backbone: Backbone, state: Mapping[str, Tensor]) -> list[str]:
    """Names the encoder's tensors that the file does not hold: first weights in nnU-Net."""
    return [name for name in encoder_shapes(backbone) if f"encoder.{name}" not in state]


def architecture(backbone: Backbone) -> dict[str, Any]:
    """Describes the network as plans do: by the name of a preset, or by class and arguments."""
    channels, blocks = backbone.architecture["channels"], backbone.architecture["blocks"]
    stages = len(channels)
    blocks = [blocks] * stages if isinstance(blocks, int) else list(blocks)
    if (list(channels), blocks) == RESENC_L:
        return {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    kwargs = {
        "n_stages": stages,
        "features_per_stage": list(channels),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_blocks_per_stage": blocks,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "arch_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": kwargs,
        "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def crop_for(backbone: Backbone, crop_vox: Sequence[int]) -> list[int]:
    """Rounds a crop up to what nnU-Net can halve: multiples of the total stride, two of them at least along an axis."""
    unit = backbone.segmenter_unit_vox
    sides = [math.ceil(side / unit) * unit for side in crop_vox]
    return [2 * unit] * 3 if max(sides) == unit else sides


def adaptation_plan(
    backbone: Backbone, crop_vox: Sequence[int], spacing_zyx_mm: Sequence[float] | None, dataset: str
) -> dict[str, Any]:
    """Builds the `nnssl_adaptation_plan`: what nnU-Net must know of a pretraining to fine-tune from it.

    Args:
        backbone: a ResEnc.
        crop_vox: the pretraining's crop, Z Y X.
        spacing_zyx_mm: of the prepared scans; None: not known, nnU-Net takes the dataset's own.
        dataset: what was pretrained on.
    """
    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "voxprior",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "noresample" if spacing_zyx_mm is None else "median",
        "normalization_schemes": ["ZScoreNormalization"] * backbone.channels,
        "use_mask_for_norm": [False] * backbone.channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resample,
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": resample | {"is_seg": True, "order": 1},
        "spacing": None if spacing_zyx_mm is None else [float(side) for side in spacing_zyx_mm],
        "patch_size": [int(side) for side in crop_vox],
    }
    plan = {
        "dataset_name": dataset,
        "plans_name": "voxprior",
        "original_median_spacing_after_transp": configuration["spacing"] or [1.0, 1.0, 1.0],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"voxprior": configuration},
        "experiment_planner_used": "voxprior",
    }
    return {
        "architecture_plans": architecture(backbone),
        "pretrain_plan": plan,
        "pretrain_num_input_channels": backbone.channels,
        "recommended_downstream_patchsize": crop_for(backbone, crop_vox),
        "key_to_encoder": ENCODER,
        "key_to_stem": STEM,
        "keys_to_in_proj": list(IN_PROJECTION),
        "key_to_lpe": None,
    }


def citations(method: str | None) -> list[dict[str, Any]]:
    """Lists what nnU-Net asks its users to cite, in the form in which it prints it."""
    cited = [{"type": "Architecture", "name": "ResEnc", "apa_citations": [NNUNETS_PAPER]}]
    if method in PAPERS:
        cited.append({"type": "Pre-Training Method", "name": method, "apa_citations": [PAPERS[method]]})
    return cited
