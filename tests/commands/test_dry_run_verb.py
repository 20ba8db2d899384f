import re
import sys

import pytest

from voxprior import __main__ as command_line
from voxprior.errors import Refusal
from voxprior.methods import METHODS, load
from voxprior.nets.backbones import Backbone

PAPER = {"vit": "vit_base", "cnn": "stunet_b"}


def say(monkeypatch, capsys, *arguments) -> str:
    """Runs `voxprior pretrain --dry-run` as a shell would and returns what it printed."""
    monkeypatch.setattr(sys, "argv", ["voxprior", "pretrain", "--dry-run", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    said = capsys.readouterr()
    assert end.value.code in (0, None), said.err
    return said.out


def numbers(text: str, line: str) -> list[float]:
    """Finds the numbers of one line of the answer."""
    (found,) = (row for row in text.splitlines() if row.strip().startswith(line))
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\.?\d+", found)]


def test_a_card_alone_is_enough_and_what_pretraining_needs_besides_is_not_asked_for(tiny_study, monkeypatch, capsys):
    card = tiny_study.card("pretrain")
    told = say(monkeypatch, capsys, "--card", card)
    assert numbers(told, "steps") == [6]
    assert numbers(told, "voxels") == [16**3, 6 * 2 * 16**3]
    assert told.startswith("MAE3D: mae on vit_tiny, 2 samples a step, fp32, adamw\n")
    whole = ["--card", card, "--index", "absent", "--splits", "absent", "--output", "x", "--work", "y", "--compile"]
    assert say(monkeypatch, capsys, *whole) == told


def test_it_tells_what_the_real_run_of_the_card_then_tells(tiny_study, tmp_path, monkeypatch, capsys):
    import json

    from voxprior.commands import pretrain

    card = tiny_study.card("pretrain")
    told = say(monkeypatch, capsys, "--card", card)
    pretrain.run(card, [tiny_study.index], tiny_study.splits, tmp_path / "out", tmp_path / "work", 1, "cpu")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert numbers(told, "FLOPs")[0] == summary["flops_per_step"]
    assert numbers(told, "parameters")[0] == summary["parameters"]
    assert numbers(told, "voxels")[1] == summary["voxels_seen"]
    assert numbers(told, "steps")[0] == summary["steps"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_counted_at_paper_size(method, monkeypatch, capsys):
    from voxprior.commands import named

    for family, name in PAPER.items():
        sizes = named.numbers("backbones", name)[0][family]
        if load(method).accepts(Backbone(name, family, sizes)) is not None:
            continue
        arguments = ["--method", method, "--backbone", name, "--batch-size", "2", "--voxels", str(10**10)]
        told = say(monkeypatch, capsys, *arguments)
        flops, steps = numbers(told, "FLOPs")[0], numbers(told, "steps")[0]
        assert flops > 5e10
        assert numbers(told, "GPU hours")[0] == pytest.approx(steps * flops / (0.4 * 989e12) / 3600, abs=0.006)
        half = say(monkeypatch, capsys, *arguments, "--mfu", "0.2", "--peak-tflops", "494.5")
        assert numbers(half, "GPU hours")[0] == pytest.approx(4 * steps * flops / (0.4 * 989e12) / 3600, abs=0.006)


def test_paper_sizes_known_from_elsewhere(monkeypatch, capsys):
    told = say(monkeypatch, capsys, "--method", "spark", "--backbone", "stunet_b")
    assert numbers(told, "FLOPs")[0] == pytest.approx(17.9e12, rel=0.01)
    assert numbers(told, "parameters")[:2] == [53_022_401, 14_310_048]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"method": "mae"}, "either --card, or --method and --backbone"),
        ({"method": "mea", "backbone": "vit_base"}, "no method is called 'mea': choose from .*mae"),
        ({"method": "mae", "backbone": "vit_bass"}, "no config/backbones/vit_bass.yaml: choose from .*vit_base"),
        ({"method": "mae", "backbone": "vit_base", "preset": "large"}, "no preset 'large': choose from tiny, small"),
        ({"method": "mae", "backbone": "stunet_b"}, "mae.yaml: MAE3D drops masked patches"),
    ],
)
def test_what_cannot_be_counted_is_one_sentence(asked, says):
    from voxprior.commands import cost

    given = {"method": None, "backbone": None, "preset": "paper", **asked}
    with pytest.raises(Refusal, match=says):
        cost.run(None, given["method"], given["backbone"], given["preset"], None, None, 0.4, 989.0)


# ------------------------------------------------------------------------------------------------------ fine-tuning
def say_finetune(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["voxprior", "finetune", "--dry-run", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    said = capsys.readouterr()
    assert end.value.code in (0, None), said.err
    return said.out


def test_a_fine_tuning_tells_what_its_real_run_then_tells(tiny_study, tmp_path, monkeypatch, capsys):
    import json

    from voxprior.commands import finetune

    card = tiny_study.card("finetune")
    told = say_finetune(monkeypatch, capsys, "--card", card)
    places = ["--index", "absent", "--splits", "absent", "--output", "x", "--work", "y", "--encoder", "z"]
    assert say_finetune(monkeypatch, capsys, "--card", card, *places, "--no-compile", "--device", "cuda") == told
    finetune.run(card, tiny_study.index, tiny_study.splits, tmp_path / "out", tmp_path / "work", None, 1, "cpu")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert numbers(told, "FLOPs")[0] == summary["flops_per_step"]
    assert numbers(told, "parameters")[0] == summary["parameters"]
    assert numbers(told, "voxels") == [16**3, summary["voxels_seen"]]
    assert numbers(told, "steps") == [summary["steps"]]
    twice = say_finetune(monkeypatch, capsys, "--card", card, "--batch-size", 4, "--steps", 8)
    assert numbers(twice, "FLOPs")[0] == 2 * summary["flops_per_step"]
    assert numbers(twice, "steps") == [8]


def test_a_backbone_alone_is_counted_at_a_crop(monkeypatch, capsys):
    told = say_finetune(monkeypatch, capsys, "--backbone", "stunet_b", "--crop", 96, 96, 96, "--classes", 14)
    assert told.startswith("fine-tuning: stunet_b, 2 crops of 96x96x96 a step, 14 classes, bf16, adamw\n")
    flops = numbers(told, "FLOPs")[0]
    assert flops == pytest.approx(2.483e12, rel=1e-3)  # as `doctor --backbones` says
    assert numbers(told, "GPU hours")[0] == pytest.approx(25_000 * flops / (0.3 * 989e12) / 3600, abs=0.006)


@pytest.mark.parametrize(
    ("backbone", "crop", "says"),
    [
        (None, (96, 96, 96), "either --card or --backbone"),
        ("stunet_q", (96, 96, 96), "no config/backbones/stunet_q.yaml"),
        ("stunet_b", (96, 96, 80), "multiples of 32 voxels: change --crop"),
    ],
)
def test_a_fine_tuning_that_cannot_be_counted_is_one_sentence(backbone, crop, says):
    from voxprior.commands import cost

    with pytest.raises(Refusal, match=says):
        cost.run_finetune(None, backbone, cost.Made(crop), 0.3, 989.0)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([], "auto"),
        (["--compile"], "on"),
        (["--no-compile"], "off"),
        (["--compile", "graphs"], "graphs"),
        (["--compile", "auto"], "auto"),
    ],
)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_compile_takes_a_word_or_none(stage, given, word, tmp_path, monkeypatch):
    from voxprior.commands import finetune, pretrain

    asked = []
    for verb in (pretrain, finetune):
        monkeypatch.setattr(verb, "run", lambda *arguments: asked.append(arguments[-1]))
    file = tmp_path / "card.json"
    file.write_text("{}")
    places = [part for name in ("card", "index", "splits", "output", "work") for part in (f"--{name}", str(file))]
    monkeypatch.setattr(sys, "argv", ["voxprior", stage, *given, *places, "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code in (0, None)
    assert asked == [("cpu", word)]
