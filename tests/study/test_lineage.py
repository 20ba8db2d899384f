"""Lineage: links that lead to files, from wherever the page lies, and runs found by what never changes."""

import json
from pathlib import Path
from urllib.parse import unquote

import pytest

from voxprior.study import lineage


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "my results"
    for place in ("cards/finetune/b/mae", "finetune/b/mae/seed0"):
        (folder / place).mkdir(parents=True)
    (folder / "cards/finetune/b/mae/seed0.json").write_text("{}")
    (folder / "finetune/b/mae/seed0/scores.csv").write_text("")
    return folder


@pytest.mark.parametrize("beside", ["my results", ".", "elsewhere/deep"])
def test_links_lead_to_files(results, beside):
    page = results.parent / beside
    page.mkdir(parents=True, exist_ok=True)
    links = lineage.Places(results, page).run(results / "finetune/b/mae/seed0")
    assert [link.name for link in links] == ["card", "scores"]  # only what exists
    for link in links:
        assert (page / unquote(link.href)).is_file()
        assert not link.href.startswith("/") and " " not in link.href


def test_runs_are_found_in_mlflow(results):
    assert lineage.read_store(results) == lineage.Store(lineage.LOCAL, "", {})
    (results / "store.json").write_text(json.dumps({"store": "sqlite:///mlflow.db", "runs": {}}))
    assert lineage.read_store(results).search("ab12") == ""
    page = "http://127.0.0.1:5000/#/experiments/3/runs?x=y"
    (results / "tracked.json").write_text(json.dumps({"store": "https://of.us/", "runs": {"a": "id"}, "page": page}))
    store = lineage.read_store(results)
    assert store.ids == {"a": "id"}
    address = store.search("ab12")
    assert address.startswith("https://of.us/#/experiments/3/runs?searchFilter=")
    assert unquote(address).endswith('tags.card_hash = "ab12"')


def test_anchors_are_words_of_html():
    assert lineage.anchor("vit_tiny", "mae", 4) == "made-vit_tiny-mae-4"
    assert Path(lineage.anchor("a", "b", 1)).name == "made-a-b-1"
