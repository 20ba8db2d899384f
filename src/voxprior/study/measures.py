"""What each metric is called, measured in, and which way is better: for tables, sentences and figures alike."""

from typing import NamedTuple

import numpy as np


class Measure(NamedTuple):
    """One metric of the score tables.

    unit: empty for shares. places: decimals that make sense. lowest, highest: what it can be at all; intervals are cut
    there. better: `higher`, `lower`, or empty where a larger number is neither: such metrics have means, no verdicts.
    """

    title: str
    unit: str
    places: int
    lowest: float
    highest: float
    better: str

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better."""
        return self.better == "higher"


MEASURES = {
    "dice": Measure("Dice", "", 3, 0.0, 1.0, "higher"),
    "nsd": Measure("NSD", "", 3, 0.0, 1.0, "higher"),
    "hd95_mm": Measure("HD95", "mm", 1, 0.0, np.inf, "lower"),
    "assd_mm": Measure("ASSD", "mm", 2, 0.0, np.inf, "lower"),
    "nsd_area": Measure("NSD, weighted by area", "", 3, 0.0, 1.0, "higher"),
    "volume_ml": Measure("Volume, prediction minus label", "ml", 1, -np.inf, np.inf, ""),
    "volume_error": Measure("Relative volume error", "", 3, 0.0, 2.0, "lower"),
    "lesion_f1": Measure("F1 of lesions", "", 3, 0.0, 1.0, "higher"),
    "calibration_error": Measure("Calibration error", "", 3, 0.0, 1.0, "lower"),
}


def measure_of(metric: str) -> Measure:
    """Looks a metric up; one that only a score table knows is a number without a direction."""
    return MEASURES.get(metric, Measure(metric, "", 3, -np.inf, np.inf, ""))
