"""LaTeX tables: safe text, the same numbers as the page, and something that LaTeX takes."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from voxprior.study import latex

TITLES = {"scratch": "From scratch", "mae": "MAE_3D & co"}
CURVES = pd.DataFrame(
    [("mae", 4, "dice", 0.8123, 0.8, 0.82), ("mae", 4, "hd95_mm", 3.21, float("nan"), float("nan"))],
    columns=["init", "budget", "metric", "mean", "low", "high"],
)
ROW = {"init": "mae", "against": "scratch", "budget": 4, "difference": -0.0123, "low": -0.02, "high": -0.001}


def test_tables_hold_the_numbers_of_the_page():
    text = latex.scores(CURVES, TITLES, "95 % of a_b", "scores_b")
    assert r"\caption{95 \% of a\_b}" in text
    assert r"MAE\_3D \& co & 4 & 0.812 (0.800 to 0.820) & 3.2 \\" in text
    assert r"\begin{tabular}{lrll}" in text
    text = latex.contrasts([ROW | {"p_holm": 0.0004, "verdict": "worse"}], TITLES, "c", "l")
    assert r"MAE\_3D \& co & scratch & 4 & $-$0.012 & $-$0.020 to $-$0.001 & $<$ 0.001 & worse \\" in text


def test_every_line_has_as_many_cells_as_columns():
    for text in (latex.scores(CURVES, TITLES, "c", "l"), latex.contrasts([ROW], TITLES, "c", "l")):
        columns = len(re.search(r"tabular\}\{([lr]+)\}", text)[1])
        lines = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 2
        assert all(len(re.split(r"(?<!\\)&", line)) == columns for line in lines)
    assert text.count("{") == text.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_takes_them(tmp_path):
    table = latex.contrasts([ROW], TITLES, "a_b ~ 5 % ^ \\ {x}", "l")
    page = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{table}\end{{document}}"
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
