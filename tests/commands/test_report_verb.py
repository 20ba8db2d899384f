"""report: one file that opens anywhere, says what must be said, and claims nothing for simulated patients."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from voxprior.commands import compare, report
from voxprior.errors import Refusal
from voxprior.study.compare import STAMP


def render(results: Path) -> str:
    compare.run(results / "cards/compare.json", results / "splits.json", results, results / "tables")
    report.run(results / "config.json", results, results / "report.html")
    return (results / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects what a reader sees, and what a browser would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads, self.images, self.words, self.open = [], [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "data", "poster", "xlink:href")]
        if tag in ("link", "image"):
            self.loads.append(given.get("href"))
        if tag in ("img", "svg"):
            self.images.append(given)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass


@pytest.fixture
def page(make_study):
    return lambda **options: Page(render(make_study(**options)))


def test_report_of_a_real_study(make_study):
    results = make_study()
    html = render(results)
    page = Page(html)
    assert "With 1 labelled case, MAE3D is better than scratch: +0.0" in page.text
    assert STAMP not in page.text
    curves = (results / "tables/contrasts.csv").read_text()
    difference = float(re.search(r"here,test,vit_tiny,mae,scratch,4,dice,([\d.]+)", curves)[1])
    assert f"+{difference:.3f}" in page.text
    for said in [
        "not a medical device",
        "CC BY-SA 4.0",
        "Somebody et al., 2020",
        "holds 12 voxels that are NaN",
        "48 of 48",
    ]:
        assert said in page.text, said
    for hashed in ["0123456789abcdef0123456789abcdef01234567", "c" * 64, "a" * 64]:
        assert hashed in page.text
    assert "<b>portal" not in html  # what a dataset says of itself is text
    summary = json.loads((results / "pretrain/vit_tiny/mae/fold0/summary.json").read_text())
    assert summary["card_hash"] in page.text
    assert {path.name for path in (results / "figures").iterdir()} >= {"budget_vit_tiny_dice.svg"}
    assert "MAE3D" in (results / "model_card.md").read_text(encoding="utf-8")
    assert not list(results.rglob("*.part"))


def test_report_loads_nothing_and_is_small(make_study):
    html = render(make_study())
    page = Page(html)
    assert page.loads
    assert all(load.startswith(("data:image/jpeg;base64,", "data:image/png;base64,", "#")) for load in page.loads)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|<link|<iframe", html)
    assert len(html.encode()) < 5 * 2**20
    assert html.startswith("<!DOCTYPE html>")
    assert page.images
    assert all(image.get("alt") or image.get("aria-label") for image in page.images)


def test_simulated_patients_are_no_evidence(page):
    text = page(simulated=True).text
    assert "made from one person's scan" in text
    assert "no evidence for or against any method" in text
    assert text.count(STAMP) >= 20
    for claim in ["better than", "worse than", "interval +", "% interval", "Scratch needs", "resamplings"]:
        assert claim not in text, claim


LEAK = {"learned": "here/p0", "scored": "elsewhere/e0", "shared": "voxels", "folds": [0]}


def test_allowed_leakage_is_stamped_on_every_table_and_figure(make_study):
    results = make_study(leaks=[LEAK])
    html = render(results)
    page, stamp = Page(html), "leakage: 1 scored case also learned from"
    assert "elsewhere/e0 (voxels of here/p0)" in page.text
    assert "better than scratch" in page.text  # still a study of patients
    figures, tables = (re.findall(rf"<{tag}\b.*?</{tag}>", html, re.S) for tag in ("figure", "table"))
    assert len(figures) > 8 and len(tables) > 8
    for table in tables:
        assert re.search(r"<caption>.*?</caption>", table, re.S) and stamp in table, table[:300]
    unstamped = [figure for figure in figures if stamp not in figure]
    assert all("Axial" not in figure and "<img" in figure for figure in unstamped)  # overlays: their heading has it
    assert all(stamp in heading for heading in re.findall(r"<h3>(?:Worst|Median) case.*?</h3>", html, re.S))
    assert all(stamp in path.read_text(encoding="utf-8") for path in (results / "figures").iterdir())
    card = (results / "model_card.md").read_text(encoding="utf-8")
    assert "**Leakage was allowed.** 1 scored case of this study" in card
    assert all(stamp in line for line in card.splitlines() if line.startswith(("| test cases", "| elsewhere")))


def test_cases_set_aside_are_shown(make_study):
    results = make_study()
    shown = re.findall(r'<img class="aside" src="data:image/png;base64,(.*?)" alt="(.*?)"', render(results))
    assert [alt for _, alt in shown] == ["bad_1: holds 12 voxels that are NaN or infinite"]
    assert base64.b64decode(shown[0][0]) == Path("results/intake/here/quarantine/bad_1.png").read_bytes()
    shutil.rmtree("results/intake/here/quarantine")
    html = render(results)
    assert 'class="aside"' not in html and "holds 12 voxels" in html


def test_what_cannot_be_shown_is_said(make_study):
    results = make_study()
    shutil.rmtree(Path("scans"))
    assert re.search(
        r"not shown, scans/00\d\.nii\.gz is missing|not shown, .*00\d\.nii\.gz is missing", Page(render(results)).text
    )
    (results / "finetune/vit_tiny/mae/budget4/fold0/seed1/summary.json").unlink()
    with pytest.raises(Refusal, match=r"seed1/summary\.json is missing: run the step that writes it"):
        report.run(results / "config.json", results, results / "report.html")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_by_day_and_night(make_study):
    html = render(make_study())
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)
    ]
    assert len(schemes) == 3  # light, dark, print
    for colours in schemes:
        for name in ("ink", "faint", "link", *(f"series-{place}" for place in range(8))):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours["stamp-ink"], colours["stamp-paper"]) >= 4.5


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """<script>addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
  const first = page.querySelector("figure svg").getBoundingClientRect();
  const table = page.querySelector("table.sortable");
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[2].dataset.value).join(" ");
  table.querySelectorAll("th")[2].click();
  const up = column();
  table.querySelectorAll("th")[2].click();
  document.title = JSON.stringify({width: root.scrollWidth, top: first.top, bottom: first.bottom, up, down: column()});
});</script>"""


def measure(html: str, width: int, folder: Path) -> dict:
    """Lays the report out in a frame of the given width and reads what the browser made of it."""
    framed = html.replace("&", "&amp;").replace('"', "&quot;")
    outer = folder / f"frame{width}.html"
    outer.write_text(f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{framed}"></iframe>{MEASURE}')
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'user'}"]
    command += ["--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found[1])


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_layout_in_a_browser(make_study, tmp_path):
    html = render(make_study())
    narrow, wide = measure(html, 400, tmp_path), measure(html, 1280, tmp_path)
    assert narrow["width"] <= 400
    assert wide["width"] <= 1280
    assert wide["bottom"] < 900
    assert wide["top"] > 0
    up, down = ([float(value) for value in wide[way].split()] for way in ("up", "down"))
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert len(set(up)) > 1
