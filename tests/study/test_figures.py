"""Figures: the same twice, colours that follow inits, names that do not overlap."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from voxprior.study import figures

TITLES = {"scratch": "From scratch", "mae": "MAE3D", "spark": "SparK"}


def curve_rows(low=0.4):
    rows = [(init, budget, 0.5 + 0.1 * budget, low, 0.9) for init in ("scratch", "spark") for budget in (1, 4)]
    return pd.DataFrame(rows, columns=["init", "budget", "mean", "low", "high"])


def test_curves_are_reproducible_and_keep_their_colours():
    first = figures.budget_curves(curve_rows(), TITLES, "dice", "study \u00b7 cases 0123")
    assert first == figures.budget_curves(curve_rows(), TITLES, "dice", "study \u00b7 cases 0123")
    assert first.pdf.startswith(b"%PDF") and b"CreationDate" not in first.pdf and b"/Type3" not in first.pdf
    first = first.svg
    assert "cases 0123" in first
    assert "MAE3D" not in first  # not compared on this backbone
    assert figures.SERIES[2] in first
    assert figures.SERIES[1] not in first  # SparK keeps the colour it has in every figure
    assert len(first) < 60_000


def test_a_curve_without_intervals_is_drawn():
    svg = figures.budget_curves(curve_rows(low=float("nan")), TITLES, "hd95_mm", "").svg
    assert "HD95 in mm" in svg


def test_inline_figures_take_the_pages_colours_and_say_what_they_show():
    journal = pd.DataFrame({"step": range(500), "progress": np.linspace(0, 1, 500), "loss": np.linspace(2, 0.1, 500)})
    svg = figures.inline(figures.learning_curves({"mae": journal}, TITLES, "mark").svg, 'loss < 2 & "falling"')
    assert svg.startswith("<svg")
    assert 'aria-label="loss &lt; 2 &amp; &quot;falling&quot;"' in svg
    assert "var(--series-1)" in svg
    assert "var(--ink)" in svg
    assert not [colour for colour in (figures.INK, figures.PAPER, *figures.SERIES) if colour in svg]
    assert "<metadata" not in svg
    assert "pt" not in svg[: svg.index(">")]


def test_numbers_on_an_axis_keep_their_digits():
    """Coordinates are shortened for size; a tick label that loses a digit is a wrong number in a report."""
    rows = pd.DataFrame(
        [("scratch", 1, 0.1781, np.nan, np.nan), ("scratch", 4, 0.1559, np.nan, np.nan)],
        columns=["init", "budget", "mean", "low", "high"],
    )
    svg = figures.budget_curves(rows, TITLES, "dice", "").svg
    labels = set(re.findall(r">(\d\.\d+)</text>", svg))
    assert len(labels) >= 3
    assert any(len(label) > 4 for label in labels)
    inline = figures.inline(svg, "title")
    assert set(re.findall(r">(\d\.\d+)</text>", inline)) == labels
    assert not re.search(r'd="[^"]*\.\d{3}', inline)


def journal_of(**terms):
    steps = np.linspace(0, 1, 500)
    loss = np.linspace(2, 0.1, 500)
    return pd.DataFrame({"step": range(500), "progress": steps, "loss": loss, **terms, "lr": 1e-3})


def test_monitors_are_drawn_by_name_and_nothing_twice():
    journal = journal_of(reconstruction=np.linspace(2, 0.1, 500), hard_share=np.full(500, 0.3), grad_norm=np.ones(500))
    assert figures.monitor_names(journal) == ["hard_share", "grad_norm"]  # reconstruction is the loss
    svg = figures.monitors(journal, figures.SERIES[1], "mark").svg
    assert svg == figures.monitors(journal, figures.SERIES[1], "mark").svg
    assert "hard share" in svg
    assert "grad norm" in svg
    assert ">0.3<" in svg  # a constant is shown as one
    assert len(svg) < 60_000
    assert figures.monitors(journal_of(), figures.SERIES[1], "mark") is None


def test_long_runs_are_thinned_and_end_where_they_ended():
    few = figures._thinned(journal_of())
    assert len(few) <= 250
    assert few["progress"].iloc[-1] == 1


def test_labels_move_apart_as_little_as_possible():
    assert figures.spread([0.1, 0.9, 0.5], 0.1) == pytest.approx([0.1, 0.9, 0.5])
    assert figures.spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    moved = figures.spread([0.30, 0.32, 0.9, 0.33, 0.91], 0.085)
    assert np.diff(sorted(moved)).min() >= 0.085 - 1e-9
    assert moved[0] < moved[1] < moved[3] < moved[2] < moved[4]
    assert figures.spread([], 0.1) == []


def test_lines_are_named_at_their_ends_without_overlap():
    inits = ["scratch", "mae", "glmae", "byol", "pgl"]
    rows = [(init, budget, 0.5 + 0.001 * n, np.nan, np.nan) for n, init in enumerate(inits) for budget in (1, 4)]
    curves = pd.DataFrame(rows, columns=["init", "budget", "mean", "low", "high"])
    titles = {"scratch": "From scratch", "mae": "MAE3D", "glmae": "GL-MAE", "byol": "BYOL", "pgl": "PGL"}
    svg = figures.budget_curves(curves, titles, "dice", "").svg
    heights = []
    for title in titles.values():
        found = re.search(rf"translate\([\d.]+ ([\d.]+)\)[^>]*>{title}</text>", svg) or re.search(
            rf'y="([\d.]+)"[^>]*>{title}</text>', svg
        )
        heights.append(float(found[1]))
    assert np.diff(sorted(heights)).min() >= 10  # points; letters are 10 high
    assert "legend" not in svg


# Machado, Oliveira, Fernandes, "A physiologically-based model for simulation of color vision deficiency", IEEE TVCG 15
# (2009), table 1 at severity 1.0: linear RGB as it is seen.
SEEN = {
    "all": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def seen_as_lab(colour: str, eye: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SEEN[eye]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    xyz = xyz / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


DARK = re.findall(
    r"--series-\d: (#[0-9a-f]{6})", (Path(figures.__file__).parent / "templates/report_style.css.j2").read_text("utf-8")
)
VIT, CNN = ["scratch", "mae", "glmae", "byol", "pgl"], ["scratch", "spark", "anatomask", "byol", "pgl"]


@pytest.mark.parametrize("eye", SEEN)
@pytest.mark.parametrize("shown", [VIT, CNN], ids=["vit", "cnn"])
@pytest.mark.parametrize("series", [figures.SERIES, DARK], ids=["light", "dark"])
def test_inits_of_a_backbone_are_told_apart(shown, eye, series):
    """A difference of 2.3 is just seen; grey, the colour of scratch, is what pink and green become for some."""
    styles = figures.style_of(["scratch", "mae", "glmae", "byol", "pgl", "spark", "anatomask"])
    assert len({styles[init][1] for init in shown}) == 5
    labs = [seen_as_lab(series[figures.SERIES.index(styles[init][0])], eye) for init in shown]
    apart = {
        (one, other): np.linalg.norm(labs[i] - labs[j])
        for i, one in enumerate(shown)
        for j, other in enumerate(shown)
        if i < j
    }
    assert min(apart.values()) > 18, min(apart, key=apart.get)


def test_budgets_that_would_touch_are_not_named():
    assert figures._tick_names([1, 2, 4, 8, 16, 24, 32, 48, 64]) == ["1", "2", "4", "8", "16", "", "32", "", "64"]
    assert figures._tick_names([4]) == ["4"]
