"""The command line: what the user got wrong is one sentence and exit code 2, never a traceback."""

import inspect
import json
import sys
from pathlib import Path

import pytest

from voxprior import __main__ as command_line
from voxprior.cards import read_card
from voxprior.errors import Refusal


def call(monkeypatch, capsys, *arguments: str) -> tuple[object, str]:
    """Runs the command line as a shell would: (exit code, what it said on stderr)."""
    monkeypatch.setattr(sys, "argv", ["voxprior", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return end.value.code, capsys.readouterr().err


VERBS = [verb.callback for verb in command_line.app.registered_commands]
MUST_EXIST = {"card", "config", "manifest", "cases", "index", "splits", "encoder", "model", "predictions", "results"}


@pytest.mark.parametrize(
    ("verb", "absent"),
    [
        (verb, name)
        for verb in VERBS
        for name in inspect.signature(verb).parameters
        if name in MUST_EXIST and (verb.__name__, name) not in {("intake", "cases"), ("track", "results")}
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_a_missing_input_is_one_sentence(verb, absent, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").write_text("{}")
    arguments = [verb.__name__.replace("_", "-")]
    for name, parameter in inspect.signature(verb).parameters.items():
        if parameter.default is inspect.Parameter.empty or name == absent:
            arguments += [f"--{name}", str(tmp_path / ("absent" if name == absent else "there"))]
    code, said = call(monkeypatch, capsys, *arguments)
    assert code == 2
    assert said == f"voxprior: {tmp_path / 'absent'}, given as --{absent}, is missing: run the step that writes it\n"


CARD = {"split": {"test": 1, "budgets": [1]}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps(CARD)[:-3], "card.json: Invalid JSON: "),
        ("[]", "card.json: Input should be an object: "),
        (json.dumps({"split": {"test": 1, "budgets": [1, 0]}}), "card.json: split.budgets.1: "),
        (json.dumps({"split": {**CARD["split"], "tset": 1}}), "card.json: split.tset: "),
        (json.dumps({}), "card.json: split: Field required: "),
    ],
)
def test_a_wrong_card_is_one_sentence_with_file_path_and_what(content, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "card.json").write_text(content)
    (tmp_path / "index.json").write_text("{}")
    arguments = ["--card", "card.json", "--index", "index.json", "--cases", "index.json"]
    arguments += ["--output", "splits.json", "--leakage", "leakage.json"]
    monkeypatch.chdir(tmp_path)
    code, said = call(monkeypatch, capsys, "split", *arguments)
    assert code == 2
    assert said.startswith(f"voxprior: {says}")
    assert said.endswith(": write a correct card for 'split'\n")
    assert said.count("\n") == 1
    assert not Path("splits.json").exists()


def test_a_card_is_read_as_it_stands_and_a_missing_one_refused(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    assert read_card("split", tmp_path / "card.json").split.budgets == [1]
    with pytest.raises(Refusal, match=r"other\.json is missing"):
        read_card("split", tmp_path / "other.json")
