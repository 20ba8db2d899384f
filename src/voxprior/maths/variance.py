"""Where the spread of scores comes from: patients, pretraining seeds, fine-tuning seeds, and the rest.

Moments of a crossed and nested analysis of variance: score = mean + patient + pretraining seed + fine-tuning seed
(within a pretraining) + rest, all random. The rest is what one network makes of one case and no other does.
Source: Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4.

Axes: N cases, P pretraining seeds, S fine-tuning seeds of each.
"""

import numpy as np

from voxprior.maths.statistics import Values, networks

SOURCES = ("patient", "pretrain_seed", "seed", "rest")
NAN = float("nan")


def variance_parts(values: Values) -> dict[str, float]:
    """Splits the variance of scores by source; negative estimates are 0.

    A source with a single level is NaN: it cannot be told from the next. With one network, `patient` holds the rest.

    Args:
        values: scores, (N, S) or (N, P, S); cases that lack any are left out.

    Returns:
        Variance per source, all NaN for fewer than 2 cases.
    """
    values_NPS = networks(values)
    values_NPS = values_NPS[~np.isnan(values_NPS).any(axis=(1, 2))]
    cases, pretrainings, seeds = values_NPS.shape
    found = dict.fromkeys(SOURCES, NAN)
    if cases < 2:
        return found
    case_N, network_PS = values_NPS.mean(axis=(1, 2)), values_NPS.mean(axis=0)
    count = pretrainings * seeds
    of_patients = count * float(case_N.var(ddof=1))
    if count == 1:
        return found | {"patient": of_patients}
    rest_NPS = values_NPS - case_N[:, None, None] - network_PS + values_NPS.mean()
    rest = float((rest_NPS**2).sum()) / ((cases - 1) * (count - 1))
    found |= {"rest": rest, "patient": max(0.0, (of_patients - rest) / count)}
    below = rest
    if seeds > 1:
        within = cases * float(network_PS.var(axis=1, ddof=1).mean())
        found["seed"], below = max(0.0, (within - rest) / cases), within
    if pretrainings > 1:
        between = cases * seeds * float(network_PS.mean(axis=1).var(ddof=1))
        found["pretrain_seed"] = max(0.0, (between - below) / (cases * seeds))
    return found
