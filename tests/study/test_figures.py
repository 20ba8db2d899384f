"""Figures: SVG that is the same twice, colours that follow inits, and pictures of the right slice."""

import re

import numpy as np
import pandas as pd

from voxprior.study import figures

TITLES = {"scratch": "From scratch", "mae": "MAE3D", "spark": "SparK"}


def curve_rows(low=0.4):
    rows = [(init, budget, 0.5 + 0.1 * budget, low, 0.9) for init in ("scratch", "spark") for budget in (1, 4)]
    return pd.DataFrame(rows, columns=["init", "budget", "mean", "low", "high"])


def test_curves_are_reproducible_and_keep_their_colours():
    first = figures.budget_curves(curve_rows(), TITLES, "dice", "study \u00b7 cases 0123")
    assert first == figures.budget_curves(curve_rows(), TITLES, "dice", "study \u00b7 cases 0123")
    assert "cases 0123" in first
    assert "MAE3D" not in first  # not compared on this backbone
    assert figures.SERIES[2] in first
    assert figures.SERIES[1] not in first  # SparK keeps the colour it has in every figure
    assert len(first) < 60_000


def test_a_curve_without_intervals_is_drawn():
    svg = figures.budget_curves(curve_rows(low=float("nan")), TITLES, "hd95_mm", "")
    assert "HD95 in mm" in svg


def test_inline_figures_take_the_pages_colours_and_say_what_they_show():
    journal = pd.DataFrame({"step": range(500), "progress": np.linspace(0, 1, 500), "loss": np.linspace(2, 0.1, 500)})
    svg = figures.inline(figures.learning_curves({"mae": journal}, TITLES, "mark"), 'loss < 2 & "falling"')
    assert svg.startswith("<svg")
    assert 'aria-label="loss &lt; 2 &amp; &quot;falling&quot;"' in svg
    assert "var(--series-1)" in svg
    assert "var(--ink)" in svg
    assert not [colour for colour in (figures.INK, figures.PAPER, *figures.SERIES) if colour in svg]
    assert "<metadata" not in svg
    assert "pt" not in svg[: svg.index(">")]


def test_outlines_show_the_plane_where_the_maps_differ_most():
    label = np.zeros((20, 30, 40), np.uint8)
    label[4:16, 8:22, 8:30] = 1
    prediction = label.copy()
    prediction[12, 8:22, 8:30] = 0  # one plane is missed altogether
    scan = figures.Scan(np.full(label.shape, 0.5, np.float32), label, prediction, (3.0, 1.5, 1.5))
    picture = figures.outlines(scan, height_px=90, margin_mm=6.0)
    assert picture.shape[0] == 90
    axial = picture[:, : round(90 * 30 / 22)]
    assert (axial == figures.LABEL_RGB).all(-1).any()
    assert not (axial == figures.PREDICTION_RGB).all(-1).any()
    assert (picture == figures.PREDICTION_RGB).all(-1).any()  # the other planes show both
    empty = np.zeros_like(label)
    assert figures.outlines(scan._replace(label=empty, prediction=empty), 60).shape[0] == 60


def test_head_is_up_in_coronal_and_sagittal_planes():
    label = np.zeros((10, 10, 10), np.uint8)
    label[:, 4:6, 4:6] = 1
    image = np.broadcast_to(np.linspace(0, 1, 10, dtype=np.float32)[:, None, None], label.shape)
    picture = figures.outlines(figures.Scan(image, label, label, (2.0, 2.0, 2.0)), 60, 100.0)
    coronal = picture[:, 66 + 10 : 66 + 15, 0]
    assert coronal[2].mean() > coronal[-3].mean()  # index 9 is the head, the bright end


def test_reconstructions_stand_beside_their_input():
    crops = {
        name: np.full((2, 8, 8, 8), value, np.float32)
        for name, value in zip(("input", "masked_input", "reconstruction"), (1, 0, 0.5), strict=True)
    }
    picture = figures.reconstructions(crops, side_px=20)
    assert picture.shape == (48, 72, 3)
    assert [picture[10, column, 0] for column in (10, 34, 58)] == [255, 0, 127]
    assert figures.jpeg(picture)[:2] == b"\xff\xd8"


def test_numbers_on_an_axis_keep_their_digits():
    """Coordinates are shortened for size; a tick label that loses a digit is a wrong number in a report."""
    rows = pd.DataFrame(
        [("scratch", 1, 0.1781, np.nan, np.nan), ("scratch", 4, 0.1559, np.nan, np.nan)],
        columns=["init", "budget", "mean", "low", "high"],
    )
    svg = figures.budget_curves(rows, TITLES, "dice", "")
    labels = set(re.findall(r">(\d\.\d+)</text>", svg))
    assert len(labels) >= 3
    assert any(len(label) > 4 for label in labels)
    inline = figures.inline(svg, "title")
    assert set(re.findall(r">(\d\.\d+)</text>", inline)) == labels
    assert not re.search(r'd="[^"]*\.\d{3}', inline)
