"""Whether a scan looks like those a model was trained on, as far as its numbers tell: a warning, and no proof."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxprior.data import series

SAMPLES = 20_000  # voxels of a scan that are looked at
MODALITIES = {"CT": "ct", "MR": "mr"}
# How far the ends of a scan's range may lie from those of the training scans, in widths of their range. HU mean the
# same everywhere, and a CT without air around it still passes; units of MR differ several times between scanners.
FAR = {"ct": 0.4, "mr": 4.0, "other": 4.0}
AIR_HU = -200  # of all modalities only CT goes below; as `survey.AIR_HU`


def is_far(values: Sequence[float], training: Mapping[str, Any], modality: str) -> bool:
    """Tells whether a scan's intensities are far from those of training.

    Compared are the 0.5th and 99.5th percentiles.

    Args:
        values: voxels of the scan, raw.
        training: `intensity` of the training dataset's fingerprint.
        modality: ct, mr or other.
    """
    of_all = training.get("all")
    if not of_all:
        return False
    low, high = of_all["p0.5"], of_all["p99.5"]
    here = np.percentile(np.asarray(values), (0.5, 99.5))
    # A range many times too narrow is as strange as one that lies elsewhere.
    narrow = (here[1] - here[0]) * 20 < high - low
    ct = here[0] < AIR_HU <= low
    far = np.abs(here - (low, high)).max() > FAR.get(modality, FAR["other"]) * max(high - low, 1e-9)
    return bool(far or narrow or ct)


def other_modality(first_slice: Path, modality: str) -> str | None:
    """Names the modality that a DICOM file states where it is another than the training's; None where it fits."""
    reader = series.header(first_slice)
    stated = series.tag(reader, "0008|0060") if reader is not None else ""
    known = MODALITIES.get(stated, "other" if stated else modality)
    return stated if known != modality else None
