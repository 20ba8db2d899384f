"""report: one file that opens anywhere, says what must be said, and claims nothing for simulated patients."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas
import pytest

from voxprior.commands import compare, report
from voxprior.errors import Refusal
from voxprior.study import figures
from voxprior.study.compare import STAMP


@pytest.fixture(autouse=True)
def without_pdf(monkeypatch):
    """Fonts of PDF files take most of a report's time; that they are right is asked in `study/test_figures.py`."""
    monkeypatch.setattr(figures, "_pdf", lambda figure: b"%PDF")


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


def test_all_metrics_of_a_study_are_shown_also_one_without_a_better_side(make_study):
    results = make_study()
    for path in (results / "finetune").rglob("scores.csv"):
        head, *rows = path.read_text().splitlines()
        more = [row.replace(",dice,", f",{name},") for name in ("volume_ml", "volume_error") for row in rows]
        path.write_text("\n".join([head, *rows, *(row for row in more if ",dice," not in row and "volume" in row), ""]))
    page = Page(render(results))
    contrasts = (results / "tables/contrasts.csv").read_text()
    assert ",volume_error," in contrasts and ",volume_ml," not in contrasts
    for title in ("Volume, prediction minus label in ml", "Relative volume error", "HD95 in mm"):
        assert title in page.text


def test_report_of_a_real_study(make_study):
    results = make_study()
    html = render(results)
    page = Page(html)
    assert re.search(
        r"MAE3D with 1 label does what scratch needs|MAE3D is better than scratch: \+0|MAE3D \(\+0", page.text
    )
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
    summary = json.loads((results / "pretrain/vit_tiny/mae/fold0/seed0/summary.json").read_text())
    assert summary["card_hash"] in page.text
    beside = {
        path.relative_to(results).as_posix()
        for folder in ("figures", "tables")
        for path in (results / folder).iterdir()
    }
    for name in ("figures/budget_vit_tiny_dice", "figures/forest_vit_tiny"):
        assert {f"{name}.svg", f"{name}.pdf"} <= beside
    assert {"tables/scores_vit_tiny.tex", "tables/contrasts_stunet_tiny.tex"} <= beside
    assert f"+{difference:.3f}" in (results / "tables/contrasts_vit_tiny.tex").read_text()
    assert "MAE3D" in (results / "model_card.md").read_text(encoding="utf-8")
    assert not list(results.rglob("*.part"))


def test_report_loads_nothing_and_is_small(make_study):
    html = render(make_study())
    page = Page(html)
    assert page.loads
    assert all(load.startswith(("data:image/jpeg;base64,", "data:image/png;base64,", "#")) for load in page.loads)
    assert "default-src 'none'" in html  # a browser would refuse to load anything
    assert not re.search(r"url\((?!#|data:)|@import|fetch\(|XMLHttpRequest|<link|<iframe", html)
    assert len(html.encode()) < 5 * 2**20
    assert html.startswith("<!DOCTYPE html>")
    assert page.images
    assert all(image.get("alt") or image.get("aria-label") for image in page.images if image.get("alt") != "")
    # An outline above a scan is read aloud once, by the plane that holds both.
    planes = re.findall(r'<div class="plane [^>]*role="img" aria-label="([^"]+)"', html)
    assert len(planes) == sum(image.get("alt") == "" for image in page.images) > 0


def test_simulated_patients_are_no_evidence(page):
    text = page(simulated=True).text
    assert "made from one person's scan" in text
    assert "no evidence for or against any method" in text
    assert text.count(STAMP) >= 20
    for claim in ["better than", "worse than", "interval +", "% interval", "cratch needs", "resamplings", "p (Holm)"]:
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
    assert all('class="planes"' in figure for figure in unstamped)  # cases to look at: their heading has it
    headings = re.findall(r'<div class="look".*?<h3>(.*?)</h3>', html, re.S)
    assert headings and all(stamp in heading for heading in headings)
    assert all(stamp in path.read_text(encoding="utf-8") for path in (results / "figures").glob("*.svg"))
    assert all(stamp in path.read_text(encoding="utf-8") for path in (results / "tables").glob("*.tex"))
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
    (results / "finetune/vit_tiny/mae/budget4/fold0/pretrain0_seed1/summary.json").unlink()
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
        for name in ("ink", "faint", "link", "better", "worse", "even", *(f"series-{place}" for place in range(8))):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        for name in ("ink", "faint", "link"):
            assert contrast(colours[name], colours["panel"]) >= 4.5, name
        # Bars touch: neighbours differ by how bright they are, as non-text must.
        bars = [luminance(colours[f"source-{place}"]) for place in range(4)]
        assert all(max(pair) + 0.05 >= 1.5 * (min(pair) + 0.05) for pair in pairwise(bars))
        assert contrast(colours["stamp-ink"], colours["stamp-paper"]) >= 4.5


def test_statistics_of_the_tables_are_shown(make_study, make_statistics):
    results = make_study()
    render(results)
    make_statistics(results)
    report.run(results / "config.json", results, results / "report.html")
    page = Page((results / "report.html").read_text(encoding="utf-8"))
    for said in ["does what scratch needs", "p (Holm)", "False claim", "Labels saved", "Ranks", "fine-tuning seeds"]:
        assert said in page.text, said
    assert "This renews them" not in page.text
    for name in ("forest", "ranks", "variance"):
        assert (results / f"figures/{name}_vit_tiny.pdf").read_bytes().startswith(b"%PDF")


def test_tables_of_an_older_version_are_shown_and_how_to_renew_them_is_said(make_study, make_statistics):
    results = make_study()
    render(results)
    for name in ("labels_saved", "ranks", "variance"):
        (results / f"tables/{name}.csv").unlink(missing_ok=True)
    contrasts = (results / "tables/contrasts.csv").read_text().splitlines()
    first = contrasts[0].split(",")
    kept = [first.index(name) for name in [*OLDER, "stamp"]]
    lines = [",".join(line.split(",")[place] for place in kept) for line in contrasts]
    (results / "tables/contrasts.csv").write_text("\n".join(lines) + "\n")
    report.run(results / "config.json", results, results / "report.html")
    text = Page((results / "report.html").read_text(encoding="utf-8")).text
    assert f"voxprior compare --card {results}/cards/compare.json --splits {results}/splits.json" in text
    assert "MAE3D is better than scratch: +0" in text
    assert "p (Holm)" not in text and "Ranks" not in text


OLDER = ["dataset", "cohort", "backbone", "init", "against", "budget", "metric", "difference", "low", "high", "cases"]


def test_numbers_lead_to_their_runs_and_files(make_study):
    results = make_study()
    html = render(results)
    anchors = set(re.findall(r'<details class="made" id="([^"]+)"', html))
    assert anchors == {f"made-{arm}-{budget}" for arm in ARMS for budget in (1, 4)}
    asked = set(re.findall(r'href="#(made-[^"]+)"', html))
    assert asked == anchors
    files = [href for href in re.findall(r'href="([^"#]+)"', html) if ":" not in href]
    assert len(files) > 4 * 2 * 2 * 3
    assert all((results / href).is_file() for href in files)
    elsewhere = results.parent / "page/report.html"
    report.run(results / "config.json", results, elsewhere)
    files = re.findall(r'href="(\.\./[^"]+)"', elsewhere.read_text(encoding="utf-8"))
    assert files and all((elsewhere.parent / href).is_file() for href in files)


ARMS = ["vit_tiny-scratch", "vit_tiny-mae", "stunet_tiny-scratch", "stunet_tiny-spark"]


def test_an_encoder_that_came_as_a_file_has_no_pretraining_to_show(make_study):
    files = {"others": {"path": "others.safetensors", "title": "Others' encoder"}}
    results = make_study(inits={"vit_tiny": ["scratch", "mae", "others"]}, files=files)
    text = Page(render(results)).text
    assert re.search(r"Others' encoder with \d labels? does what scratch needs", text)
    assert "Others' encoder on ViT, tiny loss from" not in text and "MAE3D on ViT, tiny loss from" in text
    assert "Others' encoder 48 of 48" in text  # what was loaded from it


def test_one_prediction_that_is_missing_leaves_the_others(make_study):
    results = make_study()
    for path in (results / "finetune/vit_tiny/mae/budget4").rglob("predictions.json"):
        listed = json.loads(path.read_text())
        path.write_text(json.dumps(listed | {"cases": []}))
    text = Page(render(results)).text
    assert re.search(r"MAE3D: not shown, no prediction of case '00\d' by mae on vit_tiny is listed", text)
    assert re.search(r"From scratch: Dice 0\.\d{3}, mean over seeds", text)


def test_pretraining_seeds_are_drawn_counted_and_said(page):
    shown = page(pretrain_seeds=(0, 7), inits={"vit_tiny": ["scratch", "mae"]})
    for said in [
        "(2 pretraining seeds x 2 fine-tuning seeds; from scratch 2)",
        "Loss of the first run; thin: its 1 other, of other seeds and folds.",
        "and 2 seeds for every pretrained encoder",
        "Pretraining of fold 0, seed 7",
        "Pretraining seed",
    ]:
        assert said in shown.text, said
    assert any(
        "1 more run of other seeds and folds, faint, ending at" in image.get("aria-label", "") for image in shown.images
    )
    assert "pretrained once" not in shown.text


def test_one_pretraining_is_said_to_be_one(page):
    assert "Each method was pretrained once" in page(inits={"vit_tiny": ["scratch", "mae"]}).text


@pytest.mark.parametrize(("table", "column"), [("curves", "excluded"), ("variance", "share"), ("contrasts", "cases")])
def test_tables_of_another_version_are_refused_in_one_sentence(table, column, make_study):
    results = make_study(inits={"vit_tiny": ["scratch", "mae"]})
    compare.run(results / "cards/compare.json", results / "splits.json", results, results / "tables")
    path = results / f"tables/{table}.csv"
    pandas.read_csv(path, dtype=str, keep_default_na=False).drop(columns=column).to_csv(path, index=False)
    with pytest.raises(
        Refusal, match=rf"{table}\.csv has no column '{column}', another version wrote it: run 'compare'"
    ):
        report.run(results / "config.json", results, results / "report.html")
