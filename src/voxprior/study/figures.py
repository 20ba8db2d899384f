"""Figures of the report: curves as SVG, pictures of scans as JPEG.

Curves are drawn narrow, one backbone each, so that their text stays legible on a telephone; the page puts them side by
side where there is room. Colours are told apart by colour-blind readers (Okabe and Ito), and every line has a marker
of its own. `inline` turns a figure's fixed colours into the page's, which are others in the dark.

Axes: Z Y X voxels of a volume in LPS order; H W rows and columns of a picture.
"""

import io
import re
from typing import Any, NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

PAPER, INK, FAINT, RULE = "#fffffe", "#1c2024", "#5b6570", "#d5dadf"
SERIES = ["#5b6571", "#0072b2", "#b84d00", "#00795a", "#9c3d78", "#8a6100", "#3d4fb8", "#7a5230"]
MARKERS = ["s", "o", "^", "D", "v", "P", "X", "*"]
LABEL_RGB, PREDICTION_RGB = (86, 180, 233), (255, 158, 40)
METRICS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 in mm"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}

Picture = np.ndarray[Any, np.dtype[np.uint8]]
Volume = np.ndarray[Any, Any]


def style_of(inits: list[str]) -> dict[str, tuple[str, str]]:
    """Gives every init a colour and a marker; scratch is always grey squares, whatever else is compared."""
    others = [init for init in inits if init != "scratch"]
    places = {"scratch": 0} | {init: 1 + i % (len(SERIES) - 1) for i, init in enumerate(others)}
    return {init: (SERIES[place], MARKERS[place]) for init, place in places.items()}


def budget_curves(curves: pd.DataFrame, titles: dict[str, str], metric: str, mark: str) -> str:
    """Draws the mean of a metric against the label budget, one line per init, with intervals where there are any.

    Args:
        curves: rows of `curves.csv` of one backbone, cohort and metric, class `mean`.
        titles: what the legend calls every init of the study; an init has one colour in all figures.
        metric: `dice`, `nsd` or `hd95_mm`.
        mark: what stands in the corner: which cases these are, and the stamp.

    Returns:
        SVG.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "budget"}):
        figure = Figure(figsize=(4.8, 3.5), layout="constrained")
        axes = figure.add_subplot()
        styles = style_of(list(titles))
        budgets = sorted(curves["budget"].unique())
        shown = [init for init in titles if init in set(curves["init"])]
        for place, init in enumerate(shown):
            rows = curves[curves["init"] == init].sort_values("budget")
            colour, marker = styles[init]
            # Intervals of equal budgets would cover one another: each line stands a little aside.
            aside = 1.03 ** (place - (len(shown) - 1) / 2)
            axes.plot(rows["budget"] * aside, rows["mean"], color=colour, marker=marker, label=titles[init], zorder=3)
            axes.vlines(rows["budget"] * aside, rows["low"], rows["high"], color=colour, linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(budget) for budget in budgets])
        axes.minorticks_off()
        axes.set_xlabel("labelled cases")
        axes.set_ylabel(f"{METRICS[metric]}, mean over test cases")
        axes.margins(x=0.12, y=0.12)
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return _svg(figure, mark)


def learning_curves(journals: dict[str, pd.DataFrame], titles: dict[str, str], mark: str) -> str:
    """Draws the loss over a run, one line per entry of `journals` (init -> step, progress, loss).

    A logarithmic axis where all losses are positive and span a factor of ten.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "learning"}):
        figure = Figure(figsize=(4.8, 2.9), layout="constrained")
        axes = figure.add_subplot()
        styles = style_of(list(titles))
        for init, journal in journals.items():
            few = journal.iloc[:: max(1, len(journal) // 200)]
            axes.plot(100 * few["progress"], few["loss"], color=styles[init][0], label=titles[init], linewidth=1.3)
        losses = pd.concat([journal["loss"] for journal in journals.values()])
        if losses.min() > 0 and losses.max() > 10 * losses.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
            axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.set_xlabel("per cent of the run")
        axes.set_ylabel("loss")
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return _svg(figure, mark)


def _svg(figure: Figure, mark: str) -> str:
    figure.supxlabel(mark, fontsize=7.5, color=FAINT, x=0.99, ha="right")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _shorter(attribute: re.Match[str]) -> str:
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", attribute.group())


def inline(svg: str, title: str) -> str:
    """Prepares an SVG for the page: as wide as its place, read aloud as `title`, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Curves have few points; a hundredth of a point is finer than any screen. Coordinates only: the same digits in a
    # text are a number that somebody reads.
    svg = re.sub(r'\b(d|points|transform|x|y|x1|y1|x2|y2)="[^"]*"', _shorter, svg)
    variables = {PAPER: "none", INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)"}
    variables |= {colour: f"var(--series-{place})" for place, colour in enumerate(SERIES)}
    for colour, variable in variables.items():
        svg = svg.replace(colour, variable)
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*pt"', "", head)
    named = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{named}">{body}'


# ------------------------------------------------------------------------------------------------- pictures of scans
class Scan(NamedTuple):
    """A scan in [0, 1] with its label and prediction, all Z Y X in LPS order on one grid."""

    image: Volume
    label: Volume
    prediction: Volume
    spacing_zyx_mm: tuple[float, float, float]


def outlines(scan: Scan, height_px: int = 240, margin_mm: float = 20.0) -> Picture:
    """Draws three planes side by side (axial, coronal, sagittal) with outlines of label and prediction: (H, W, 3).

    Each plane is the one in which label and prediction differ in most voxels, or, where they are equal, the one with
    most labelled voxels: the picture shows the worst of the case. Cut to the labelled box and a margin; seen from the
    front and from the feet, the patient's left on the right. The label's outline is blue, the prediction's orange and
    dashed.
    """
    scan = _cut(scan, margin_mm)
    wrong = scan.label != scan.prediction
    shown = wrong if wrong.any() else scan.label > 0
    planes = []
    for axis in range(3):
        place = int(shown.sum(axis=tuple(other for other in range(3) if other != axis)).argmax())
        mm = tuple(step for other, step in enumerate(scan.spacing_zyx_mm) if other != axis)
        image, label, prediction = (
            # Rows of coronal and sagittal planes run from feet to head: the head belongs on top.
            np.flip(volume.take(place, axis=axis), 0) if axis else volume.take(place, axis=axis)
            for volume in scan[:3]
        )
        planes.append(_plane(image, label, prediction, mm, height_px))
    gap = np.zeros((height_px, 6, 3), np.uint8)
    return np.concatenate([planes[0], gap, planes[1], gap, planes[2]], axis=1)


def _cut(scan: Scan, margin_mm: float) -> Scan:
    either = np.maximum(scan.label, scan.prediction)
    box = []
    for axis, step in enumerate(scan.spacing_zyx_mm):
        line = either.max(axis=tuple(other for other in range(3) if other != axis))
        inside = np.flatnonzero(line) if line.any() else np.array([0, len(line) - 1])
        margin = round(margin_mm / step)
        box.append(slice(max(0, inside[0] - margin), inside[-1] + 1 + margin))
    cut = tuple(box)
    return Scan(scan.image[cut], scan.label[cut], scan.prediction[cut], scan.spacing_zyx_mm)


def _plane(image: Volume, label: Volume, prediction: Volume, mm: tuple[float, ...], height_px: int) -> Picture:
    """Draws one plane at `height_px`, as wide as its millimetres ask for."""
    width_px = max(1, round(height_px * image.shape[1] * mm[1] / (image.shape[0] * mm[0])))
    rows = np.arange(height_px) * image.shape[0] // height_px
    columns = np.arange(width_px) * image.shape[1] // width_px
    grey = (np.clip(image[rows][:, columns], 0, 1) * 255).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    dash = (np.add.outer(np.arange(height_px), np.arange(width_px)) // 5) % 2 == 0
    picture[_outline(label[rows][:, columns])] = LABEL_RGB
    picture[_outline(prediction[rows][:, columns]) & dash] = PREDICTION_RGB
    return picture


def _outline(map_HW: Volume) -> Volume:
    """Marks pixels beside one of another class, two pixels wide."""
    edge = np.zeros(map_HW.shape, bool)
    down, right = map_HW[1:] != map_HW[:-1], map_HW[:, 1:] != map_HW[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def reconstructions(pictures: dict[str, Volume], side_px: int = 150) -> Picture:
    """Draws the middle axial plane of each crop, one row each: input, masked input, reconstruction: (H, W, 3)."""
    rows = []
    for crop in range(len(pictures["input"])):
        tiles = []
        for name in ("input", "masked_input", "reconstruction"):
            plane = pictures[name][crop][pictures[name].shape[1] // 2]
            down = np.arange(side_px) * plane.shape[0] // side_px
            right = np.arange(side_px) * plane.shape[1] // side_px
            tiles.append(np.pad((np.clip(plane[down][:, right], 0, 1) * 255).astype(np.uint8), ((0, 4), (0, 4))))
        rows.append(np.concatenate(tiles, axis=1))
    return np.repeat(np.concatenate(rows)[..., None], 3, axis=2)


def jpeg(picture: Picture, quality: int = 82) -> bytes:
    """Compresses a picture."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, picture, format="jpeg", pil_kwargs={"quality": quality})
    return stream.getvalue()
