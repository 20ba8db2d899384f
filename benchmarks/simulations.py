"""How often the statistics are right, on simulated studies whose truth is known: `python benchmarks/simulations.py`.

Each study is drawn anew: patients, seeds and noise. Counted is how often intervals cover the truth, tests of equal
inits reject, a family of them rejects any, claims are false, and so on. Writes docs/results/simulations.json;
`docs/tables.py` makes the table of docs/statistics.md from it.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from voxprior.maths import paired, ranks, savings, statistics

ROOT = Path(__file__).parents[1]
CONFIDENCE, RESAMPLES, MARGIN = 0.95, 1000, 0.3


@dataclass(frozen=True)
class World:
    """What differs between studies: patients, seeds of each init, spread of the seeds' shifts, skew of the scores.

    Patients differ by 1, inits differ per patient by 0.3 and networks per case by 0.2. With several pretrainings,
    `seeds` are the fine-tuning seeds of each, and both kinds of seed shift by `shift`.
    """

    name: str
    patients: int = 20
    seeds: int = 3
    shift: float = 0.0
    skewed: bool = False
    pretrainings: int = 1

    def draw(self, chance: np.random.Generator, gains: tuple[float, ...]) -> list[Any]:
        """Draws the scores of one init per gain, on the same patients: (N, P, S) each."""
        size = (self.patients, 1, 1)
        noise = (self.patients, self.pretrainings, self.seeds)
        patient = 5 * chance.beta(8, 2, size) if self.skewed else chance.normal(0, 1, size)
        found = []
        for gain in gains:
            own = chance.gamma(1, 0.3, size) - 0.3 if self.skewed else chance.normal(0, 0.3, size)
            network = chance.normal(0, self.shift, (1, *noise[1:])) if self.shift else 0.0
            if self.pretrainings > 1:
                network = network + chance.normal(0, self.shift, (1, self.pretrainings, 1))
            found.append(patient + own + network + chance.normal(0, 0.2, noise) + gain)
        return found

    @property
    def mean(self) -> float:
        """The mean over all patients there are."""
        return 4.0 if self.skewed else 0.0

    @property
    def people(self) -> list[str]:
        """Names of the patients."""
        return [f"p{i}" for i in range(self.patients)]


WORLDS = [
    World("20 patients, 3 seeds that do not matter"),
    World("20 patients, 3 seeds that matter", shift=0.15),
    World("50 patients, 3 seeds that matter", patients=50, shift=0.15),
    World("50 patients, 1 seed that does not matter", patients=50, seeds=1),
    World("20 patients, 2 seeds that matter", seeds=2, shift=0.15),
    World("50 patients, 2 seeds that matter", patients=50, seeds=2, shift=0.15),
    World("20 patients, 3 x 2 seeds that matter", seeds=2, shift=0.15, pretrainings=3),
    World("8 patients, 3 seeds that do not matter", patients=8),
    World("20 patients, 3 seeds, skewed scores", skewed=True),
]


def intervals(world: World, runs: int) -> dict[str, float]:
    """Counts how often 95 % intervals cover: of a mean and of a difference; and what others would have covered."""
    chance = np.random.default_rng(1)
    covered = dict.fromkeys(("mean", "difference", "difference, percentile", "difference, BCa"), 0)
    for run in range(runs):
        values, other = world.draw(chance, (0.1, 0.0))
        mean = statistics.mean_interval(values, world.people, CONFIDENCE, RESAMPLES, run)
        ours = statistics.difference_interval(values, other, world.people, CONFIDENCE, RESAMPLES, run)
        difference = statistics.case_means(values) - statistics.case_means(other)
        drawn = statistics.patient_draws(world.patients, RESAMPLES, 0) @ difference / world.patients
        covered["mean"] += mean.low <= world.mean + 0.1 <= mean.high
        covered["difference"] += ours.low <= 0.1 <= ours.high
        low, high = np.quantile(drawn, [0.025, 0.975])
        covered["difference, percentile"] += low <= 0.1 <= high
        low, high = bca(difference, drawn)
        covered["difference, BCa"] += low <= 0.1 <= high
    return {name: count / runs for name, count in covered.items()}


def bca(value: Any, drawn: Any) -> tuple[float, float]:
    """Cuts the bias-corrected and accelerated interval of a mean. Source: Efron, JASA 82 (1987)."""
    bias = stats.norm.ppf(np.clip((drawn < value.mean()).mean(), 1e-6, 1 - 1e-6))
    away = value - value.mean()
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    low, high = np.quantile(drawn, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def tests(world: World, runs: int) -> dict[str, float]:
    """Counts how often equal inits are called different at 5 %: by ours, by two tests that know no seeds."""
    chance = np.random.default_rng(2)
    rejected = dict.fromkeys(("ours", "sign flips of patients alone", "Wilcoxon"), 0)
    for run in range(runs):
        values, other = world.draw(chance, (0.0, 0.0))
        difference = statistics.case_means(values) - statistics.case_means(other)
        rejected["ours"] += paired.sign_flip(difference, world.people, [values, other], run % 4) <= 0.05
        rejected["sign flips of patients alone"] += paired.sign_flip(difference, world.people, [], 0) <= 0.05
        rejected["Wilcoxon"] += stats.wilcoxon(difference).pvalue <= 0.05
    return {name: count / runs for name, count in rejected.items()}


def families(world: World, runs: int) -> dict[str, float]:
    """Counts how often any of 8 contrasts between equal inits and one scratch is significant, with and without Holm."""
    chance = np.random.default_rng(3)
    rejected = {"Holm": 0, "without": 0}
    for _ in range(runs):
        scratch, *inits = world.draw(chance, (0.0,) * 9)
        p = np.array(
            [
                paired.sign_flip(
                    statistics.case_means(v) - statistics.case_means(scratch), world.people, [v, scratch], 0
                )
                for v in inits
            ]
        )
        rejected["Holm"] += paired.holm(p).min() <= 0.05
        rejected["without"] += p.min() <= 0.05
    return {name: count / runs for name, count in rejected.items()}


def claims(world: World, runs: int) -> dict[str, float]:
    """Compares the stated probability that a claim is false with how often it is; effects of many sizes."""
    chance = np.random.default_rng(4)
    stated, false = [], []
    for run in range(runs):
        gain = chance.normal(0, 0.5)
        values, other = world.draw(chance, (gain, 0.0))
        difference = statistics.case_means(values) - statistics.case_means(other)
        made = statistics.replicate(difference, world.people, [values, other], RESAMPLES, run % 4)
        stated.append(paired.false_claim(made))
        false.append(made.mean * gain < 0)
    sure = np.array(stated) < 0.1
    found = {"stated, all": np.mean(stated), "false, all": np.mean(false)}
    return found | {
        "stated, below 0.1": np.mean(np.array(stated)[sure]),
        "false, below 0.1": np.mean(np.array(false)[sure]),
    }


def verdicts(world: World, runs: int) -> dict[str, float]:
    """Counts wrong verdicts where inits are equal, where they differ by the margin, and power where it is stated."""
    chance = np.random.default_rng(5)
    counted = {
        "equal: better or worse": 0,
        "a margin apart: equivalent": 0,
        "difference stated as seen at 80 %: found": 0,
    }
    smallest = np.median([contrast(world, chance, 0.0, run).smallest for run in range(50)])
    for run in range(runs):
        found = contrast(world, chance, 0.0, run % 4)
        counted["equal: better or worse"] += said(found) in ("better", "worse")
        counted["a margin apart: equivalent"] += said(contrast(world, chance, MARGIN, run % 4)) == "equivalent"
        counted["difference stated as seen at 80 %: found"] += contrast(world, chance, smallest, run % 4).p <= 0.05
    return {name: count / runs for name, count in counted.items()}


def contrast(world: World, chance: np.random.Generator, gain: float, seed: int) -> paired.Contrast:
    """Draws a study of two inits and compares them."""
    return paired.contrast(*world.draw(chance, (gain, 0.0)), world.people, CONFIDENCE, RESAMPLES, seed)


def said(found: paired.Contrast) -> str:
    """Says what one contrast alone shows."""
    return paired.verdict(found, found.p, True, MARGIN, CONFIDENCE)


def saved(world: World, runs: int) -> dict[str, float]:
    """Counts how often the interval of labels saved holds the truth; scratch gains 0.4 with each doubling."""
    chance = np.random.default_rng(6)
    covered = about = 0
    for run in range(runs):
        init, *scratch = world.draw(chance, (1.0, 0.0, 0.4, 0.8, 1.2, 1.6))
        curve = dict(zip([1, 2, 4, 8, 16], scratch, strict=True))
        found = savings.labels_saved(init, curve, world.people, True, CONFIDENCE, RESAMPLES, run % 4)
        covered += found.low <= 2**2.5 <= found.high or (found.high_kind == "above" and found.low <= 2**2.5)
        about += found.kind == "about"
    return {"covered": covered / runs, "read off the curve": about / runs}


def ranked(world: World, runs: int) -> dict[str, float]:
    """Counts how often the interval of a rank holds the true rank, over 4 inits 0.1 apart."""
    chance = np.random.default_rng(7)
    held = []
    for run in range(runs):
        arms = world.draw(chance, (0.3, 0.2, 0.1, 0.0))
        found = ranks.rank_of_means(arms, world.people, True, CONFIDENCE, RESAMPLES, run % 4)
        held += [low <= true <= high for true, low, high in zip((1, 2, 3, 4), found.low, found.high, strict=True)]
    return {"held": float(np.mean(held))}


KINDS: dict[str, tuple[Callable[[World, int], dict[str, float]], list[World]]] = {
    "intervals": (intervals, WORLDS),
    "tests": (tests, WORLDS),
    "families": (families, WORLDS[:2]),
    "verdicts": (verdicts, WORLDS[:3]),
    "claims": (claims, WORLDS[:2]),
    "labels": (saved, WORLDS[:2]),
    "ranks": (ranked, WORLDS[1:2]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/simulations.json")
    options = parser.parse_args()
    from machine import write

    report: dict[str, Any] = {"format": 1, "runs": options.runs, "resamples": RESAMPLES, "results": []}
    for kind, (count, worlds) in KINDS.items():
        for world in worlds:
            began = time.process_time()
            found = {name: round(float(share), 4) for name, share in count(world, options.runs).items()}
            report["results"].append({"kind": kind, "world": asdict(world), "found": found})
            print(f"{kind}, {world.name}: {found} ({time.process_time() - began:.0f} s)", flush=True)
            write(options.output, report)


if __name__ == "__main__":
    main()
