"""A MONAI bundle: the files' contents, for a model that runs where voxprior is not installed.

The network in the bundle takes MONAI's axes: B windows, C channels, X Y Z voxels.

Source: MONAI, "Bundle specification", https://docs.monai.io/en/stable/mb_specification.html.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from voxprior.errors import Refusal
from voxprior.exchange.models import Model
from voxprior.maths.regions import union

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
USE = (
    "Research: comparing pretrainings, and segmenting scans like those that the model was trained on. "
    "Not a medical device: not for diagnosis or treatment."
)


class MonaisAxes(nn.Module):
    """Turns X Y Z into our Z Y X and back around a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume_BCXYZ: Tensor) -> Tensor:
        """Returns logits (B, classes, X, Y, Z)."""
        return self.network(volume_BCXYZ.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)


def _intensity(prepare: Mapping[str, Any]) -> dict[str, Any]:
    """Names the transform that maps intensities to [0, 1].

    Raises:
        Refusal: channels have ranges of their own, which no transform of MONAI's has.
    """
    if prepare.get("channels"):
        raise Refusal(
            f"channels {', '.join(prepare['channels'])} have intensity ranges of their own, which a MONAI bundle has "
            "no word for: export onnx, or train with one range"
        )
    low, high = prepare["intensity"]["low"], prepare["intensity"]["high"]
    common = {"keys": "image", "b_min": 0.0, "b_max": 1.0, "clip": True}
    if prepare["intensity"]["kind"] == "window":
        return {"_target_": "ScaleIntensityRanged", **common, "a_min": low, "a_max": high}
    percentiles = {"lower": low, "upper": high, "channel_wise": True}
    return {"_target_": "ScaleIntensityRangePercentilesd", **common, **percentiles}


def _scans(channels: int) -> str:
    """Writes the expression that lists scans: one file each, or `<case>_0000.nii.gz`, `<case>_0001.nii.gz`, ..."""
    if channels == 1:
        return "$[{'image': path} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))]"
    others = f"[path[:-11] + f'{{number:04d}}.nii.gz' for number in range({channels})]"
    return f"$[{{'image': {others}}} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*_0000.nii.gz')))]"


def _labels(model: Model) -> dict[str, Any]:
    """Names the transform that makes labels of logits.

    Overlapping classes are painted in order: of those whose logit is above 0, the largest number.
    """
    if not model.regions:
        return {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    numbers = f"torch.arange(1, {len(model.regions) + 1}, device=x.device).reshape(-1, 1, 1, 1)"
    paint = f"$lambda x: ((torch.sigmoid(x) > 0.5) * {numbers}).amax(0, keepdim=True)"
    return {"_target_": "Lambdad", "keys": "pred", "func": paint}


def inference(model: Model, overlap: float) -> dict[str, Any]:
    """Builds configs/inference.json: `python -m monai.bundle run` segments `dataset_dir` into `output_dir`."""
    pixdim = [float(side) for side in reversed(model.about["prepare"]["spacing_zyx_mm"])]
    preprocessing = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True, "dtype": "$numpy.float32"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "LPS", "labels": None},
        _intensity(model.about["prepare"]),
        {"_target_": "scripts.smoothing.SmoothBeforeSpacingd", "keys": "image", "pixdim": pixdim},
        {"_target_": "Spacingd", "keys": "image", "pixdim": pixdim, "mode": "bilinear", "padding_mode": "border"},
    ]
    steps = ("functools.partial(torch.unsqueeze, dim=0)", "functools.partial(@inferer, network=@network)")
    predicting: list[dict[str, Any]] = [{"_target_": "CopyItemsd", "keys": "image", "names": "pred"}]
    for step in (*steps, "functools.partial(torch.squeeze, dim=0)"):
        predicting.append({"_target_": "Lambdad", "keys": "pred", "func": f"${step}"})
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    save = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"}
    return {
        "imports": ["$import " + name for name in ("collections", "functools", "glob", "numpy", "os", "sys", "torch")],
        "bundle_root": ".",
        "dataset_dir": "$os.path.join(@bundle_root, 'scans')",
        "output_dir": "$os.path.join(@bundle_root, 'segmented')",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network": "$torch.jit.load(os.path.join(@bundle_root, 'models', 'model.ts'), map_location=@device).eval()",
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(reversed(model.window_zyx)),
            "sw_batch_size": 4,
            "overlap": overlap,
            "mode": "gaussian",
            "sw_device": "@device",
            "device": "$torch.device('cpu')",
        },
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing},
        "predicting": {"_target_": "Compose", "transforms": predicting},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                _labels(model),
                {**invert, "nearest_interp": True, "to_tensor": True},
                {**save, "output_dtype": "$numpy.uint8", "resample": False, "separate_folder": False},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": _scans(model.channels),
            "transform": {"_target_": "Compose", "transforms": ["@preprocessing", "@predicting", "@postprocessing"]},
        },
        "initialize": ["$sys.path.insert(0, @bundle_root)"],
        "run": ["$torch.set_grad_enabled(False)", "$collections.deque(iter(@dataset), maxlen=0)"],
    }


def metadata(
    model: Model, title: str, data: Sequence[Mapping[str, Any]], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Builds configs/metadata.json.

    Args:
        model: the model.
        title: of the study.
        data: datasets that it was trained on, resolved.
        versions: of monai, torch, numpy.
    """
    names = {str(number): name for number, name in enumerate(model.outputs)}
    shape = list(reversed(model.window_zyx))
    channels = {str(number): "image" if model.channels == 1 else f"image {number}" for number in range(model.channels)}
    patch = {"spatial_shape": shape, "dtype": "float32", "is_patch_data": True}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by voxprior"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"],
        "numpy_version": versions["numpy"],
        "required_packages_version": {"nibabel": "5.2"},
        "name": title,
        "task": "segmentation of " + ", ".join(model.about["classes"]),
        "description": f"{title}: a segmentation network trained by voxprior.",
        "authors": "whoever ran the study",
        "copyright": "see LICENSE",
        "data_source": "; ".join(dataset["title"] for dataset in data) or "see training_cases",
        "data_type": "nibabel",
        "intended_use": USE,
        "references": [dataset["citation"] for dataset in data if dataset.get("citation")],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude" if model.channels > 1 else "hounsfield or magnitude, mapped to [0, 1]",
                    "num_channels": model.channels,
                    "value_range": [0, 1],
                    "channel_def": channels,
                    **patch,
                }
            },
            "outputs": {
                "pred": {
                    "type": "logits",
                    "format": "segmentation",
                    "num_channels": len(names),
                    "value_range": [],
                    "channel_def": names,
                    **patch,
                }
            },
        },
        "voxprior": {key: model.about.get(key) for key in ("card", "card_hash", "versions", "training_cases")}
        | ({"regions": model.regions} if model.regions else {}),
    }


def readme(title: str, model: Model, card: str | None, worst: float) -> str:
    """Writes docs/README.md, with the study's model card where there is one."""
    prepare = model.about["prepare"]
    spacing = " x ".join(f"{side:g}" for side in prepare["spacing_zyx_mm"])
    lines = [
        f"# {title}",
        "",
        f"Segments {', '.join(model.about['classes'])}. {USE}",
        "",
        "```",
        "python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\",
        "    --dataset_dir /path/to/scans --output_dir /path/to/segmented",
        "```",
        "",
        "It needs MONAI, nibabel and fire. Run it in this folder.",
        "",
        f"- Scans are turned to LPS, mapped to [0, 1] ({prepare['intensity']}) and resampled to {spacing} mm (Z Y X).",
        "- Preprocessing equals voxprior's to 1/4096 of the intensity range, the step in which voxprior stores scans.",
        "- Labels go back to the scan's grid by nearest voxel; voxprior takes the largest interpolated share, which",
        "  differs in some voxels on surfaces.",
        f"- `models/model.ts` is TorchScript; its logits are within {worst:.1e} of the network it was traced from.",
        f"- Trained on {len(model.about.get('training_cases', {}))} labelled cases; the metadata has their hashes.",
    ]
    if model.regions:
        unions = "; ".join(_union(model, number) for number in range(1, len(model.regions) + 1))
        lines += [
            "- Classes overlap: each has a sigmoid, and they are painted 1, 2, ... in order where it is above 0.5.",
            f"  A class is the union of {unions}.",
        ]
    if card:
        lines += ["", "The study's model card follows.", "", "---", "", card]
    return "\n".join(lines) + "\n"


def _union(model: Model, number: int) -> str:
    """Says which labels make up a class."""
    return f"{' and '.join(map(str, union(model.regions, number)))} ({model.about['classes'][number - 1]})"


def licence(data: Sequence[Mapping[str, Any]]) -> str:
    """Writes LICENSE: what is known of the terms of the data that the weights were made from."""
    lines = ["The weights in this bundle were trained on:", ""]
    for dataset in data:
        lines.append(f"- {dataset['title']}: {dataset['licence']} {dataset.get('licence_url', '')}".rstrip())
    if not data:
        lines.append("- data whose terms were not given at export (voxprior export --results names them)")
    lines += [
        "",
        "Their terms bind whoever passes the weights on. Whoever trained the model decides under which licence it is",
        "given, and writes it here. The files in configs/ and scripts/ are made by voxprior, Apache-2.0.",
    ]
    return "\n".join(lines) + "\n"
