"""Draws the figures of the docs: small SVGs with their text as text, legible at 360 px and in the dark.

Axes: H W rows and columns of an image, y down and x right in the units of the figure.
"""

import base64
import html
import textwrap

import numpy as np

from voxprior.study.slices import jpeg

WIDTH = 480
# Every figure has its own paper, so that its text can be read whatever the page around it looks like.
STYLE = """<style>
text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1c2024; }
.paper { fill: #ffffff; } .faint { fill: #5b6570; font-size: 13px; } .line { stroke: #5b6570; fill: none; }
.mark { font-weight: 700; paint-order: stroke; stroke: #000; stroke-width: 3px; font-size: 13px; }
@media (prefers-color-scheme: dark) {
text { fill: #e8eaed; } .paper { fill: #14171a; } .faint { fill: #a4adb6; } .line { stroke: #a4adb6; } }
</style>"""
# Okabe and Ito's: seen on any grey, and told apart by colour-blind readers.
BLUE, ORANGE = "#56b4e9", "#e69f00"
HIDDEN = "#3b5b8c"

Array = np.ndarray


class Canvas:
    """A figure in the making; everything is drawn in the order of the calls."""

    def __init__(self, title: str) -> None:
        self.title, self.parts, self.height = title, [], 0.0

    def _reach(self, y: float) -> None:
        self.height = max(self.height, y)

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start", fill: str = "") -> None:
        """Writes one line; `y` is its base line."""
        style = f' class="{kind}"' if kind else ""
        style += f' text-anchor="{anchor}"' if anchor != "start" else ""
        style += f' style="fill:{fill}"' if fill else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{style}>{html.escape(words)}</text>')
        self._reach(y + 6)

    def paragraph(self, x: float, y: float, words: str, letters: int = 64) -> float:
        """Writes words below one another, as many letters a line as a wide font leaves room for; returns the next y."""
        lines = textwrap.wrap(words, letters)
        for number, line in enumerate(lines):
            self.text(x, y + 17 * number, line, "faint")
        return y + 17 * len(lines)

    def image(self, x: float, y: float, width: float, image: Array) -> float:
        """Puts an image, grey (H, W) in [0, 1] or colour (H, W, 3) uint8, and returns its height."""
        if image.ndim == 2:
            image = np.repeat((image.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
        # Twice as large without smoothing: JPEG would smear single voxels into one another.
        data = base64.b64encode(jpeg(image.repeat(2, 0).repeat(2, 1), 60)).decode()
        height = width * image.shape[0] / image.shape[1]
        self.parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'href="data:image/jpeg;base64,{data}"/>'
        )
        self._reach(y + height)
        return height

    def cells(self, x: float, y: float, width: float, chosen_YX: Array, fill: str, stroke: str = "none") -> None:
        """Covers the chosen cells of a grid that is as wide as an image."""
        side = width / chosen_YX.shape[1]
        squares = "".join(
            f"M{x + side * column:.1f} {y + side * row:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z"
            for row, column in np.argwhere(chosen_YX)
        )
        self.parts.append(f'<path d="{squares}" fill="{fill}" stroke="{stroke}" stroke-width="1"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, dashed: bool = False) -> None:
        """Outlines a box."""
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="none" stroke="{colour}" '
            f'stroke-width="2.2"{dash}/>'
        )
        self._reach(y + height)

    def block(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """Fills a box."""
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>')
        self._reach(y + height)

    def point(self, x: float, y: float, number: int, colour: str) -> None:
        """Marks a numbered point."""
        for stroke, width in (("#000", 3.5), (colour, 2)):
            self.parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="{stroke}" stroke-width="{width}"/>'
            )
        self.text(x + 7, y - 1, str(number), "mark", fill=colour)

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Draws an arrow."""
        self.parts.append(
            f'<path class="line" stroke-width="1.5" marker-end="url(#end)" d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}"/>'
        )

    def svg(self) -> str:
        """Returns the whole figure."""
        height = self.height + 10
        end = (
            '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path class="line" d="M1 1L7 4L1 7"/></marker></defs>'
        )
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
        title = f"<title>{html.escape(self.title)}</title>"
        paper = f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>'
        return "\n".join([head, title, STYLE, end, paper, *self.parts, "</svg>\n"])
