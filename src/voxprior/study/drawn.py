"""Keeps what a report draws: on the page, and as files of its own for a paper."""

import base64

from voxprior.study import figures

Picture = dict[str, str]


class Drawn:
    """Gathers figures and tables under their file names.

    `files` maps `figures/<name>.svg`, `figures/<name>.pdf` and `tables/<name>.tex` to their content.
    """

    def __init__(self, mark: str, titles: dict[str, str]) -> None:
        self.mark, self.titles = mark, titles
        self.files: dict[str, bytes] = {}

    def add(self, name: str, alt: str, plot: figures.Plot) -> Picture:
        """Keeps a figure in both formats, and prepares it for the page."""
        self.files[f"figures/{name}.svg"] = plot.svg.encode()
        self.files[f"figures/{name}.pdf"] = plot.pdf
        return {"svg": figures.inline(plot.svg, alt), "alt": alt, "name": name}

    def add_table(self, name: str, text: str) -> None:
        """Keeps a LaTeX table."""
        self.files[f"tables/{name}.tex"] = text.encode()


def data_url(content: bytes, kind: str) -> str:
    """Embeds a picture: `kind` is `jpeg` or `png`."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
