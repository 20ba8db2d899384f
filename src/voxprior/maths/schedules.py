"""Schedules as functions of the run's progress, so that a short run sees the whole of each.

`progress = step / (total_steps - 1)` runs from 0 to 1. What papers give in epochs is a fraction of the run here.
"""

import math


def progress_of(step: int, total_steps: int) -> float:
    """Tells how much of the run is over: 0 at the first step, 1 at the last."""
    return step / max(total_steps - 1, 1)


def warmup_cosine(step: int, total_steps: int, warmup: float) -> float:
    """Scales the peak learning rate: linear warm-up, then half a cosine down to 0 at the last step.

    The warm-up takes `round(warmup * total_steps)` steps; its first step already has a rate above 0 and the step after
    it has the peak.
    Source: Loshchilov and Hutter, "SGDR", 2017, equation 5, one cycle; warm-up: Goyal et al., 2017, section 2.2.

    Args:
        step: 0-based.
        total_steps: at least 1.
        warmup: fraction of the run, in [0, 1].

    Returns:
        A factor in [0, 1].
    """
    rising = round(warmup * total_steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    falling = max(total_steps - 1 - rising, 1)
    return 0.5 * (1.0 + math.cos(math.pi * min((step - rising) / falling, 1.0)))


def cosine(start: float, end: float, progress: float) -> float:
    """Goes from `start` to `end` along half a cosine: flat at both ends.

    Source: Grill et al., "BYOL", 2020, section 3.2 (teacher momentum from its base value to 1).
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def momentum_from_half_life(share: float, total_steps: int, least_steps: float = 5.0) -> float:
    """Turns a half-life, as a share of the run, into the momentum of an exponential moving average.

    After that many steps the teacher's old weights count one half: momentum = 0.5 ** (1 / steps). A momentum copied
    from a long run would leave the teacher of a short one where it started.

    Args:
        share: half-life as a share of the run.
        total_steps: length of the run.
        least_steps: the half-life is never shorter than this.
    """
    return 0.5 ** (1.0 / max(share * total_steps, least_steps))
