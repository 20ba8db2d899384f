"""The model card: everything that someone who finds a model must know, from the study's own files."""

import csv
import json

import pytest

from voxprior.configuration import Resolved
from voxprior.errors import Refusal
from voxprior.strict import read_model
from voxprior.study import compare, gather, model_card
from voxprior.study.compare import STAMP


@pytest.fixture
def card(make_study):
    def build(**options) -> tuple[str, list[dict[str, str]]]:
        results = make_study(**options)
        content = json.loads((results / "cards/compare.json").read_text())
        scores = gather.read_scores(results, content["cells"], content["study"], content["dataset"])
        curves = compare.curves(scores, compare.Settings(**content["compare"], simulated=content["simulated"]))
        (results / "tables").mkdir()
        curves.to_csv(results / "tables/curves.csv", index=False)
        config = read_model(Resolved, results / "config.json", "").model_dump(mode="json")
        with open(results / "tables/curves.csv", newline="") as file:
            return model_card.build(config, results), list(csv.DictReader(file))

    return build


def rows_of(text: str) -> list[list[str]]:
    """Reads the score tables: the cells of every line that starts with a cohort."""
    lines = [
        line.strip("|").split("|") for line in text.splitlines() if line.startswith(("| test cases", "| elsewhere"))
    ]
    return [[cell.strip() for cell in line] for line in lines]


def test_a_card_says_what_the_models_are_for_made_from_and_worth(card):
    text, curves = card()
    for said in [
        "Not a medical device",
        "Research: comparing",
        "CC BY-SA 4.0",
        "Somebody et al., 2020",
        "One hospital, &lt;b>portal",  # what a dataset says of itself is text
        "13 patients in all, 13 people",
        "| 0 | 7 | 1 or 4 | 1 | 5 |",
        "0 background, 1 liver, 2 spleen",
        "3.0 x 3.0 x 3.0 mm",
        "-160 to 240 (HU for CT)",
        "ViT, tiny (transformer; patch_vox 16",
        "Inits: From scratch and MAE3D",
        "voxprior predict --model",
        "CT of another person (elsewhere)",
        "## Limits",
    ]:
        assert said in text, said
    assert STAMP not in text
    rows = rows_of(text)
    assert len(rows) == 2 * 2 * 2 * 2  # backbones, inits, budgets, cohorts
    given = {"dataset": "here", "backbone": "vit_tiny", "init": "mae", "budget": "4", "metric": "dice", "class": "mean"}
    (expected,) = [row for row in curves if given.items() <= row.items()]
    low, high = float(expected["low"]), float(expected["high"])
    (row,) = [row for row in rows[:8] if row[:3] == ["test cases", "MAE3D", "4"]]
    assert row[3] == f"{float(expected['mean']):.3f} ({low:.3f} to {high:.3f})"
    assert row[6] == "5"


def test_simulated_patients_are_one_person_and_every_score_is_stamped(card):
    text, _ = card(simulated=True)
    assert "made from\n> one person's scan" in text
    assert "13 simulated patients; all of them are one person." in text
    rows = rows_of(text)
    assert len(rows) == 16
    assert all(f"**{STAMP}**" in row[0] and "(" not in row[3] for row in rows)
    assert "interval" not in text


def test_an_unfinished_study_has_no_card(make_study):
    results = make_study()
    config = read_model(Resolved, results / "config.json", "").model_dump(mode="json")
    with pytest.raises(Refusal, match=r"curves\.csv is missing"):
        model_card.build(config, results)
