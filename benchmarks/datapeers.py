"""What others do with the same data, as their users call it; each is imported when it is asked for."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Array = Any
Zyx = tuple[float, ...]


# ------------------------------------------------------------------------------------------------- resampling
def _sitk_grid(array: Array, spacing: Zyx, shape: Zyx, new_spacing: Zyx) -> tuple[Any, Any]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing)])
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize([int(n) for n in reversed(shape)])
    filter_.SetOutputSpacing([float(s) for s in reversed(new_spacing)])
    filter_.SetOutputDirection(image.GetDirection())
    return image, filter_


def sitk_linear(array: Array, spacing: Zyx, shape: Zyx, new_spacing: Zyx) -> Callable[[], Array]:
    import SimpleITK as sitk

    image, filter_ = _sitk_grid(array, spacing, shape, new_spacing)
    filter_.SetInterpolator(sitk.sitkLinear)
    filter_.SetOutputPixelType(sitk.sitkFloat32)
    return lambda: sitk.GetArrayFromImage(filter_.Execute(image))


def sitk_one_hot(labels: Array, spacing: Zyx, shape: Zyx, new_spacing: Zyx) -> Callable[[], Array]:
    import SimpleITK as sitk

    def call() -> Array:
        best, out = np.zeros([int(n) for n in shape], np.float32), np.zeros([int(n) for n in shape], np.uint8)
        for number in range(int(labels.max()) + 1):
            image, filter_ = _sitk_grid((labels == number).astype(np.float32), spacing, shape, new_spacing)
            filter_.SetInterpolator(sitk.sitkLinear)
            share = sitk.GetArrayViewFromImage(result := filter_.Execute(image))
            better = share > best + 1e-6
            out[better], best[better] = number, share[better]
            del share, result
        return out

    return call


def sitk_nearest(labels: Array, spacing: Zyx, shape: Zyx, new_spacing: Zyx) -> Callable[[], Array]:
    import SimpleITK as sitk

    image, filter_ = _sitk_grid(labels, spacing, shape, new_spacing)
    filter_.SetInterpolator(sitk.sitkNearestNeighbor)
    return lambda: sitk.GetArrayFromImage(filter_.Execute(image))


def nnunet(array: Array, spacing: Zyx, shape: Zyx, new_spacing: Zyx, **how: Any) -> Callable[[], Array]:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    return lambda: resample_data_or_seg_to_shape(array[None], shape, spacing, new_spacing, **how)[0]


def nnunet_torch(array: Array, spacing: Zyx, shape: Zyx, new_spacing: Zyx) -> Callable[[], Array]:
    import torch
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    return lambda: resample_torch_fornnunet(
        torch.from_numpy(array[None]), shape, spacing, new_spacing, is_seg=False, num_threads=1
    )


def monai_spacing(array: Array, spacing: Zyx, new_spacing: Zyx) -> Callable[[], Array]:
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    change = Spacing(pixdim=new_spacing, mode="bilinear")
    affine = np.diag([*spacing, 1.0])
    return lambda: change(MetaTensor(torch.from_numpy(array[None]), affine=affine))


def torchio_resample(array: Array, spacing: Zyx, new_spacing: Zyx) -> Callable[[], Array]:
    import torch
    import torchio

    image = torchio.ScalarImage(tensor=torch.from_numpy(array[None]), affine=np.diag([*spacing, 1.0]))
    change = torchio.Resample(new_spacing)
    return lambda: change(image)


# ------------------------------------------------------------------------------------------------- a whole case
def nnunet_case(image: str, label: str, new_spacing: Zyx, classes: int, folder: Path) -> Callable[[], Any]:
    """nnU-Net's own preprocessor with its default plan for CT, and its own writer."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    statistics = {"mean": 50.0, "std": 300.0, "percentile_00_5": -950.0, "percentile_99_5": 1000.0}
    usual = {"order_z": 0, "force_separate_z": None}

    def data(array: Array, *where: Any) -> Array:
        return resample_data_or_seg_to_shape(array, *where, is_seg=False, order=3, **usual)

    def seg(array: Array, *where: Any) -> Array:
        return resample_data_or_seg_to_shape(array, *where, is_seg=True, order=1, **usual)

    manager = SimpleNamespace(has_regions=False, foreground_labels=list(range(1, classes + 1)), has_ignore_label=False)
    plans = SimpleNamespace(
        image_reader_writer_class=SimpleITKIO, transpose_forward=[0, 1, 2],
        foreground_intensity_properties_per_channel={"0": statistics}, get_label_manager=lambda json: manager,
    )  # fmt: skip
    configuration = SimpleNamespace(
        spacing=list(new_spacing), resampling_fn_data=data, resampling_fn_seg=seg,
        normalization_schemes=["CTNormalization"], use_mask_for_norm=[False],
    )  # fmt: skip
    preprocessor = DefaultPreprocessor(verbose=False)

    def call() -> Any:
        made = preprocessor.run_case([image], label, plans, configuration, {})
        nnunet_save(made[0], made[1], folder / "case")
        return made

    return call


def nnunet_save(data: Array, seg: Array, path: Path, crop: tuple[int, ...] = (96, 96, 96)) -> None:
    """Writes the two arrays as nnU-Net's preprocessing does."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    for file in path.parent.glob(path.name + "*"):  # it does not write over what is there
        file.unlink()
    block, chunk = comp_blosc2_params(data.shape, crop, data.itemsize)
    block_seg, chunk_seg = comp_blosc2_params(seg.shape, crop, seg.itemsize)
    nnUNetDatasetBlosc2.save_case(
        data, seg, {}, str(path), chunks=chunk, blocks=block, chunks_seg=chunk_seg, blocks_seg=block_seg
    )


# ------------------------------------------------------------------------------------------------- augmentation
def torchio_affine(image: Any, label: Any) -> Callable[[], Any]:
    import torchio

    change = torchio.RandomAffine(scales=0.3, degrees=30, isotropic=True)
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=image), label=torchio.LabelMap(tensor=label))
    return lambda: change(subject)


def monai_affine(image: Any, label: Any) -> Callable[[], Any]:
    from monai.transforms import RandAffined

    change = RandAffined(
        ["image", "label"], prob=1.0, rotate_range=(0.52,) * 3, scale_range=(0.3,) * 3, mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )  # fmt: skip
    return lambda: change({"image": image, "label": label})


def bgv2_affine(image: Any, label: Any) -> Callable[[], Any]:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    change = SpatialTransform(
        tuple(image.shape[1:]), 0, False, p_rotation=1.0, rotation=(-0.52, 0.52), p_scaling=1.0, scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1, border_mode_seg="constant", padding_value_seg=-1,
    )  # fmt: skip
    return lambda: change(image=image, segmentation=label)


def nnunet_recipe(image: Any, label: Any, crop: tuple[int, ...]) -> Callable[[], Any]:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    change = nnUNetTrainer.get_training_transforms(
        np.array(crop), (-0.52, 0.52), None, (0, 1, 2), False, use_mask_for_norm=[False]
    )
    return lambda: change(image=image.clone(), segmentation=label.clone())
