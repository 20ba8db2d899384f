"""The methods section of a paper about a study: sentences with citations, generated from what was run.

Every number in it is the study's or counted in its tables; what was not run is not mentioned.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from voxprior.maths.regions import chosen
from voxprior.study.cells import method_of, variant_title
from voxprior.study.measures import measure_of
from voxprior.study.wording import listed, networks

METHODS = {
    "mae": "masked autoencoding (MAE3D; He et al., CVPR 2022; in 3-D Zhou et al., ISBI 2023)",
    "glmae": "global-local masked autoencoding (GL-MAE; Zhuang et al., IEEE TMI 2025, arXiv 2306.08913)",
    "spark": "sparse masked modelling (SparK; Tian et al., ICLR 2023, arXiv 2301.03580)",
    "anatomask": "reconstruction-guided self-masking (AnatoMask; Li et al., ECCV 2024, arXiv 2407.06468)",
    "byol": "bootstrapped global features (BYOL; Grill et al., NeurIPS 2020, arXiv 2006.07733)",
    "pgl": "prior-guided local features (PGL; Xie et al., 2020, arXiv 2011.12640)",
}
NETWORKS = {
    "vit": "a vision transformer with a UNETR decoder (Hatamizadeh et al., WACV 2022)",
    "primus": "a vision transformer with a light decoder (Primus; Wald et al., 2025, arXiv 2503.01835)",
    "cnn": "a residual U-Net (STU-Net; Huang et al., 2023, arXiv 2304.06716)",
    "resenc": "nnU-Net's residual encoder U-Net (ResEnc; Isensee et al., MICCAI 2024, arXiv 2404.09556)",
    "swin": "a transformer of shifted windows (SwinUNETR; Hatamizadeh et al., 2022, arXiv 2201.01266)",
}  # by the backbone's kind where that has words of its own, else by its family
METRICS = {
    "dice": "Dice",
    "nsd": "normalised surface Dice at {tolerance:g} mm (share of surface voxels of both maps, as MONAI's default)",
    "nsd_area": "normalised surface Dice at {tolerance:g} mm weighted by area (Nikolov et al., 2018, arXiv 1809.04430)",
    "hd95_mm": "the 95th percentile Hausdorff distance (the larger of both directions)",
    "assd_mm": "the average symmetric surface distance (over the surface voxels of both maps)",
    "volume_ml": "the volume difference in ml",
    "volume_error": "the relative volume error (over the mean of both volumes)",
    "lesion_f1": "F1 of connected components matched one to one from an intersection over union of {iou:g} on",
    "calibration_error": "the expected calibration error of each predicted class (15 bins; Naeini et al., AAAI 2015)",
}


def build(config: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Writes the paragraphs of the methods section, in order: data, pretraining, fine-tuning, metrics, statistics.

    Args:
        config: the resolved study (`configuration.Resolved` as plain data, with its defaults).
        tables: `curves` and `contrasts` at least, as `compare` wrote them; of `labels_saved`, `ranks` and `variance`
            those that the text is to speak of.
    """
    study = config["study"]
    simulated = config["datasets"][study["dataset"]].get("simulate") is not None
    paragraphs = [_data(config, tables["curves"]), _pretraining(config), _finetuning(config), _metrics(study, tables)]
    if simulated:
        paragraphs.append(
            "All patients are simulated from few people: the study checks the pipeline, and no intervals, tests or "
            "verdicts are reported."
        )
    else:
        paragraphs.append(_statistics(study, tables))
    return [*paragraphs, _software()]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _data(config: Mapping[str, Any], curves: pd.DataFrame) -> str:
    study, split = config["study"], config["study"]["split"]
    dataset = config["datasets"][study["dataset"]]
    cited = f" ({dataset['citation'].rstrip('.')})" if dataset.get("citation") else ""
    folds = f"in each of {split['folds']} folds, " if split["folds"] > 1 else ""
    test = curves[(curves["cohort"] == "test") & (curves["class"] == "mean")]["cases"]
    scored = f" In all, {_count(int(test.max()), 'test case')} were scored." if len(test) else ""
    intensity = study["prepare"]["intensity"]
    kind = "HU" if intensity["kind"] == "window" else "percentiles of each scan"
    text = (
        f"We segmented {listed([name.replace('_', ' ') for name in study['classes']])} in {dataset['title']}{cited}. "
        f"Scans were brought to {' x '.join(f'{mm:g}' for mm in study['prepare']['spacing_zyx_mm'])} mm (Z Y X), and "
        f"intensities from {intensity['low']:g} to {intensity['high']:g} ({kind}) to [0, 1]. Patients were split at "
        f"random: "
        f"{folds}{_count(split['test'], 'patient')} for testing, {split.get('val', 0)} for monitoring, the rest for "
        f"training; "
        f"no patient was in two of these.{scored}"
    )
    others = [
        config["datasets"][name]["title"]
        + (f" ({config['datasets'][name]['citation'].rstrip('.')})" if config["datasets"][name].get("citation") else "")
        for name in study.get("external", [])
    ]
    return text + (f" {listed(others)} served as external cohort, predicted and scored only." if others else "")


def _pretraining(config: Mapping[str, Any]) -> str:
    study, said = config["study"], []
    for backbone, inits in study["inits"].items():
        family = config["backbones"][backbone]["family"]
        network = NETWORKS.get(config["backbones"][backbone].get(family, {}).get("kind"), NETWORKS[family])
        methods = [_named(config, init) for init in inits if init != "scratch"]
        start = " and from random weights" if "scratch" in inits else ""
        title = config["backbones"][backbone]["title"]
        said.append(
            f"The backbone {title} was {network}, started "
            + (f"from an encoder pretrained by {listed(methods)}{start}." if methods else "from random weights.")
        )
    voxels, batch = study["pretrain"]["voxels"], study["pretrain"].get("batch_size", 2)
    if any(init != "scratch" for inits in study["inits"].values() for init in inits):
        said.append(
            "Pretraining saw the training patients' scans and unlabelled ones, never a test patient; every method "
            "had the "
            f"same budget of {voxels:.3g} voxels seen by the student, batches of {batch}, "
            f"{_count(len(study['pretrain'].get('seeds', [0])), 'seed')}, and one optimiser recipe per backbone. The "
            "encoder alone was handed on."
        )
    return " ".join(said)


def _named(config: Mapping[str, Any], init: str) -> str:
    """Names a method with its source, a variant with the numbers that differ from its method's, a file as it is."""
    study = config["study"]
    base = method_of(study, init)
    if base == init:
        return METHODS.get(init, init)
    cited = any(base in inits for inits in study["inits"].values())
    method = METHODS[base].split(" (")[0] if cited else METHODS[base]
    usual, own = config["methods"][base], config["variants"][base][init]
    changed = [f"{key} {value} in place of {usual[key]}" for key, value in own.items() if value != usual[key]]
    return f"{variant_title(study, init)} ({method} with {listed(changed)})"


def _finetuning(config: Mapping[str, Any]) -> str:
    study, tune = config["study"], config["study"]["finetune"]
    budgets = listed([str(budget) for budget in study["split"]["budgets"]])
    again = " for every pretrained encoder" if len(study["pretrain"].get("seeds", [0])) > 1 else ""
    return (
        f"Segmentation networks were trained with {budgets} labelled cases (the smaller sets are part of the larger), "
        f"each for {tune['steps']:,} steps of {tune.get('batch_size', 2)} crops of "
        f"{' x '.join(map(str, tune['crop_vox']))} voxels with Dice and {_entropy(config)}, and "
        f"{_count(len(tune.get('seeds', [0])), 'seed')}{again}. Random weights had a recipe of their own. Predictions "
        f"overlapped by "
        f"{study.get('predict', {}).get('overlap', 0.5):.0%} of a window and were brought back to each scan's own grid."
    )


def _entropy(config: Mapping[str, Any]) -> str:
    study = config["study"]
    overlapping = chosen(study["classes"], config["datasets"][study["dataset"]].get("classes", {}))
    return "binary cross-entropy of each overlapping class" if overlapping else "cross-entropy"


def _metrics(study: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> str:
    score = study.get("score", {})
    used = [str(metric) for metric in tables["curves"]["metric"].unique()]
    named = [
        METRICS.get(metric, metric).format(tolerance=score.get("tolerance_mm", 2.0), iou=score.get("lesion_iou", 0.1))
        for metric in used
    ]
    return (
        f"Scores were computed per class in the scan's own grid: {listed(named)}. A class that neither label nor "
        "prediction has was left out and counted; one that only one of them has scored 0, or the diagonal of the image "
        "where the score is a distance. A case's score is the mean over its classes, then over seeds "
        f"({networks(study)})."
    )


def _statistics(study: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> str:
    compare, contrasts = study.get("compare", {}), tables["contrasts"]
    confidence, resamples = compare.get("confidence", 0.95), compare.get("resamples", 2000)
    said = [
        f"Intervals ({confidence:.0%}) come from {resamples:,} bootstrap replicates that draw patients, paired "
        f"across inits, "
        "and the shifts that pretraining and fine-tuning seeds give to all patients, with expanded percentiles "
        "(Hesterberg, The American Statistician 69, 2015)."
    ]
    own = contrasts[contrasts["cohort"] == "test"]
    if len(own):
        family = int(own.groupby("metric").size().max())
        varied = " or is a variant of" if any("method" in some for some in study.get("methods", {}).values()) else ""
        margins = [f"{m:g} for {listed(names)}" for m, names in _margins(own).items()]
        said.append(
            f"{_count(family, 'contrast')} per metric {'were' if family != 1 else 'was'} planned: each init with "
            f"random "
            f"weights, and with the method it builds on{varied}. Differences were tested with two-sided sign-flip "
            "permutations of "
            "patients, widened by the variance of seeds, and adjusted after Holm (Scand. J. Statist. 6, 1979) within "
            "a metric. "
            "A contrast is called better or worse where the adjusted p value and the interval agree, equivalent "
            "where the "
            f"interval lies within the margin ({listed(margins)}), and otherwise not separated. Effect sizes are "
            f"Cohen's d_z "
            "with intervals from the noncentral t distribution."
        )
    if len(tables.get("labels_saved", ())):
        said.append(
            "Labels saved were read off the monotone (isotonic) curve of random weights, linearly over the logarithm "
            "of the "
            "number of labels, without extrapolation, with intervals from the same bootstrap."
        )
    if len(tables.get("ranks", ())):
        said.append(
            "Inits were ranked by their means and by their mean rank over cases, with bootstrap intervals "
            "(Wiesenfarth et al., "
            "Scientific Reports 11, 2021)."
        )
    if len(tables.get("variance", ())):
        said.append(
            "Variance was split by patient, seeds and rest with moments of a crossed and nested analysis of variance "
            "(Searle "
            "et al., 1992)."
        )
    return " ".join(said)


def _margins(contrasts: pd.DataFrame) -> dict[float, list[str]]:
    """Groups the metrics by their margin."""
    found: dict[float, list[str]] = {}
    for metric, rows in contrasts.groupby("metric", sort=False):
        found.setdefault(float(rows["margin"].iloc[0]), []).append(measure_of(str(metric)).title)
    return found


def _software() -> str:
    return (
        "All steps were run by voxprior on Snakemake (Moelder et al., F1000Research 10:33, 2021), with PyTorch "
        "(Paszke et "
        "al., NeurIPS 2019)."
    )
