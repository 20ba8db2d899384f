"""The report in a browser: quiet, offline, no wider than its window; sorting, sliders and links work by key."""

import shutil
from pathlib import Path

import pytest

from voxprior.commands import compare, report
from voxprior.study import figures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(write_study, make_statistics, tmp_path_factory):
    """Makes one report for all questions: two backbones, two inits each, with statistics."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("study")
        patch.chdir(root)
        patch.setattr(figures, "_pdf", lambda figure: b"%PDF")
        results = write_study(root, budgets=(1, 2, 4))
        compare.run(results / "cards/compare.json", results / "splits.json", results, results / "tables")
        make_statistics(results)
        report.run(results / "config.json", results, results / "report.html")
        # Alone in a folder, as it is when somebody sends it.
        alone = tmp_path_factory.mktemp("alone") / "report.html"
        return Path(shutil.copy(results / "report.html", alone))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1400])
def test_it_fits_and_its_first_figure_is_on_the_first_screen(chromium, page, width, dark):
    chromium.open(page, width, dark=dark)
    assert chromium.run("document.documentElement.scrollWidth") <= width
    chromium.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert chromium.run("document.documentElement.scrollWidth") <= width
    # Nothing hides beyond the edge either: every table ends inside the page.
    widest = "Math.max(...[...document.querySelectorAll('table, figure, p')].map(e => e.getBoundingClientRect().right))"
    assert chromium.run(widest) <= width
    chromium.run("scrollTo(0, 0)")
    figure = "document.querySelector('figure svg').getBoundingClientRect()"
    assert chromium.run(f"{figure}.top") > 0 and chromium.run(f"{figure}.bottom") < 900
    background = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


def test_it_says_nothing_and_loads_nothing(chromium, page):
    chromium.console.clear()
    chromium.requests.clear()
    chromium.open(page)
    chromium.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    chromium.run("scrollTo(0, document.body.scrollHeight)")
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert chromium.run(broken) == 0
    assert not chromium.console
    assert {request for request in chromium.requests if not request.startswith("data:")} == {page.resolve().as_uri()}


COLUMN = "[...document.querySelector('#classes table').tBodies[0].rows].map(r => Number(r.cells[1].dataset.value))"
SORTED = "document.querySelector('#classes table th:nth-child(2)').getAttribute('aria-sort')"


def test_tables_sort_by_key_and_by_click_and_give_their_order_back(chromium, page):
    chromium.open(page)
    first = chromium.run(COLUMN)
    chromium.run("document.querySelector('#classes table th:nth-child(2) button').focus()")
    chromium.press("Enter")
    assert chromium.run(COLUMN) == sorted(first) and chromium.run(SORTED) == "ascending"
    chromium.run("document.querySelector('#classes table th:nth-child(2) button').click()")
    assert chromium.run(COLUMN) == sorted(first, reverse=True) and chromium.run(SORTED) == "descending"
    chromium.press(" ")
    assert chromium.run(COLUMN) == first and chromium.run(SORTED) is None
    assert len(set(first)) > 1


def test_sliders_move_every_init_of_a_case_by_key(chromium, page):
    chromium.open(page)
    top = (
        "[...document.querySelectorAll('.look:first-of-type .axial img')].map(i => parseFloat(getComputedStyle(i).top))"
    )
    before = chromium.run(top)
    chromium.run("document.querySelector('.look input[type=range]').focus()")
    chromium.press("Home")
    assert set(chromium.run(top)) == {0}
    assert chromium.run("document.activeElement.getAttribute('aria-valuetext')").startswith("1 of ")
    chromium.press("ArrowRight")
    height = chromium.run("document.querySelector('.look .axial').getBoundingClientRect().height")
    moved = chromium.run(top)
    assert len(moved) == len(before) == 2  # inits
    assert all(place == pytest.approx(-height, abs=0.5) for place in moved)
    seen = "getComputedStyle(document.querySelector('.look .axial img')).visibility"
    assert chromium.run(seen) == "visible"
    chromium.run("document.querySelector('.look input[data-layer=prediction]').click()")
    assert chromium.run(seen) == "hidden"


def test_a_number_opens_the_runs_behind_it(chromium, page):
    chromium.open(page)
    chromium.run("document.querySelector('#classes a[href^=\"#made-\"]').click()")
    target = "document.getElementById(location.hash.slice(1))"
    chromium.run("new Promise(done => setTimeout(done, 200))")
    assert chromium.run(f"{target}.open && {target}.closest('.runs').open")
    assert 0 <= chromium.run(f"{target}.getBoundingClientRect().top") < 900


def test_the_keyboard_comes_to_the_figures_first(chromium, page):
    chromium.open(page)
    chromium.press("Tab")
    assert chromium.run("document.activeElement.className") == "skip"
    assert chromium.run("document.activeElement.getBoundingClientRect().top") >= 0
    chromium.press("Enter")
    assert chromium.run("location.hash") == "#main"


def test_motion_only_for_those_who_like_it(chromium, page):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    chromium.open(page, still=True)
    assert chromium.run(behaviour) == "auto"
    chromium.open(page, still=False)
    assert chromium.run(behaviour) == "smooth"


def test_it_prints(chromium, page):
    chromium.open(page)
    assert chromium.pdf().startswith(b"%PDF")
    chromium.send("Emulation.setEmulatedMedia", media="print")
    hidden = "[...document.querySelectorAll('nav, .tools, .runs')].map(e => getComputedStyle(e).display)"
    assert set(chromium.run(hidden)) == {"none"}
