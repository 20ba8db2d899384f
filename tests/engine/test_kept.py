"""A finished run's files: given back to the same card and data, to no other, and whole or not at all."""

import pytest

from voxprior.engine import kept

NAMES = ["model.safetensors", "summary.json"]


@pytest.fixture
def places(tmp_path):
    output, work = tmp_path / "out", tmp_path / "work"
    output.mkdir()
    for name in NAMES:
        (output / name).write_text(f"content of {name}")
    kept.keep(output, work, "card", "data", NAMES)
    for name in NAMES:  # as a workflow does before a job
        (output / name).unlink()
    return output, work


def test_the_same_run_is_given_back_as_often_as_asked(places):
    output, work = places
    for _ in range(2):
        assert kept.give_back(output, work, "card", "data")
        assert {path.name: path.read_text() for path in output.iterdir()} == {n: f"content of {n}" for n in NAMES}
        for name in NAMES:
            (output / name).unlink()


def test_what_is_kept_takes_no_room_of_its_own_and_an_edited_output_is_not_given_back(places):
    output, work = places
    assert kept.give_back(output, work, "card", "data")
    assert (output / NAMES[0]).samefile(work / kept.FOLDER / NAMES[0])
    (output / NAMES[0]).write_text("edited in place, and with it what is kept")
    assert not kept.give_back(output, work, "card", "data")


@pytest.mark.parametrize(("card", "data"), [("other", "data"), ("card", "other")])
def test_another_run_gets_nothing(places, card, data):
    output, work = places
    assert not kept.give_back(output, work, card, data)
    assert not list(output.iterdir())


@pytest.mark.parametrize(
    "damage", ["no folder", "no list", "torn list", "list of another kind", "file gone", "file cut"]
)
def test_damage_is_noticed(places, damage):
    output, work = places
    folder = work / kept.FOLDER
    if damage == "no folder":
        folder.rename(work / "elsewhere")
    elif damage == "no list":
        (folder / "kept.json").unlink()
    elif damage == "torn list":
        (folder / "kept.json").write_text('{"card_hash": "card", "re')
    elif damage == "list of another kind":
        (folder / "kept.json").write_text("[1, 2]")
    elif damage == "file gone":
        (folder / NAMES[1]).unlink()
    else:
        (folder / NAMES[1]).write_text("cont")
    assert not kept.give_back(output, work, "card", "data")
    assert not list(output.iterdir())
