"""The figures of the docs: made by our own code, small, with text that can be read and searched."""

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
NAMES = ["mae", "spark", "glmae", "anatomask", "byol", "pgl"]


@pytest.fixture(scope="module")
def make():
    """Imports docs/figures/make.py, which is a script and no part of the package."""
    sys.path.insert(0, str(FIGURES))
    try:
        spec = importlib.util.spec_from_file_location("make_figures", FIGURES / "make.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FIGURES))
    return module


def shapes(svg: str) -> str:
    """Everything but the photographs, whose bytes depend on the compressor's version."""
    return re.sub(r"base64,[^\"]*", "", svg)


@pytest.mark.parametrize("name", NAMES)
def test_committed_figures_are_small_and_whole(name):
    text = (FIGURES / f"{name}.svg").read_text(encoding="utf-8")
    assert len(text.encode()) < 60_000
    root = ET.fromstring(text)
    width, height = (float(side) for side in root.get("viewBox").split()[2:])
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        x, y = float(element.get("x")), float(element.get("y"))
        assert 0 <= x < width
        assert 10 <= y < height
        if element.get("class") == "faint":
            assert x + 7.1 * len(element.text) <= width, element.text  # of a wide font, 13 px
    assert root.find("{http://www.w3.org/2000/svg}title").text
    assert not re.search(r'(href|src)="(?!data:image/jpeg)', text)
    assert "prefers-color-scheme: dark" in text


def test_every_method_has_a_figure(make):
    from voxprior.methods import METHODS

    assert set(make.FIGURES) == set(METHODS) == set(NAMES)


@pytest.mark.parametrize("name", ["mae", "spark", "glmae", "pgl"])
def test_committed_figures_are_what_the_code_draws(make, name):
    """Masks, boxes and points are counted from keys: the same everywhere. A stale figure fails here."""
    committed = (FIGURES / f"{name}.svg").read_text(encoding="utf-8")
    assert shapes(make.FIGURES[name]()) == shapes(committed), f"run `python docs/figures/make.py {name}`"


def test_figures_that_need_a_network_are_drawn(make):
    vectors = make.byol()
    assert vectors.count('height="16.0"') == 32  # two vectors of 16 channels
    moments = make.anatomask(steps=3)
    hard = re.findall(r">(\d+) of (\d+) hard<", moments)
    assert [int(some) for some, _ in hard] == [0, int(hard[0][1]) // 4, int(hard[0][1]) // 2]
    ET.fromstring(moments)


def test_pages_show_figures_that_exist_and_say_what_they_show():
    shown = set()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page}: {target}"
            assert "figures" not in target or len(alt) > 40, (
                f"{page}: {target} needs a description for those who cannot see it"
            )
            shown.add(Path(target).name)
    assert {f"{method}.svg" for method in NAMES} <= shown
