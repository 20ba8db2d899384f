import csv

import pytest

from voxprior.cards import FetchCard, IntakeCard
from voxprior.commands import fetch, intake
from voxprior.configuration import Layout, Source
from voxprior.data import phantoms
from voxprior.errors import Refusal


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phantoms.write_decathlon(tmp_path / "scans", cases=3, unlabelled=1)
    (tmp_path / "fetch.json").write_text(
        FetchCard(dataset="own", source=Source(kind="folder", path="scans")).model_dump_json()
    )
    fetch.run(tmp_path / "fetch.json", tmp_path / "raw/own/manifest.json", None)
    card = IntakeCard(dataset="own", layout=Layout(kind="decathlon"), classes={"a": [1]})
    (tmp_path / "card.json").write_text(card.model_dump_json())
    return tmp_path


def look(place):
    intake.run(place / "card.json", place / "raw/own/manifest.json", place / "cases.csv", place / "quarantine.csv")
    return [list(csv.DictReader((place / name).open(newline=""))) for name in ("cases.csv", "quarantine.csv")]


def test_intake_lists_cases_and_sets_broken_ones_aside(place):
    (place / "scans/imagesTr/phantom_001.nii.gz").write_bytes(b"")
    cases, aside = look(place)
    assert [row["case"] for row in cases] == ["phantom_000", "phantom_002", "phantom_003"]
    assert [row["case"] for row in aside] == ["phantom_001"]
    assert [bool(row["label"]) for row in cases] == [True, True, False]
    assert cases[0]["person"] == "own/phantom_000"
    assert cases[0]["image"] == "scans/imagesTr/phantom_000.nii.gz"


def test_intake_refuses_when_nothing_is_left_and_says_why(place):
    for path in (place / "scans").rglob("*.nii.gz"):
        path.write_bytes(b"")
    with pytest.raises(Refusal, match="none of its 4 cases can be used, the first because .* has zero bytes"):
        look(place)
    assert (place / "quarantine.csv").is_file() and not (place / "cases.csv").exists()
