import json
import os
import pickle
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from voxprior.cards import card_hash, read_card
from voxprior.commands import finetune, pretrain
from voxprior.errors import Refusal, Resumable

FILES = ["clock.jsonl", "journal.jsonl", "load_report.json", "model.safetensors", "summary.json"]


def run(study, folder, encoder=None, **changes):
    card = study.card("finetune", **changes)
    finetune.run(card, study.index, study.splits, folder / "out", folder / "work", encoder, 1, "cpu")
    return card


@pytest.fixture(scope="module")
def pretrained(tiny_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    card = tiny_study.card("pretrain")
    pretrain.run(card, [tiny_study.index], tiny_study.splits, folder / "out", folder / "work", 1, "cpu")
    return folder / "out" / "encoder.safetensors", card_hash(read_card("pretrain", card))


def test_scratch_writes_a_model_that_says_how_it_was_made(tiny_study, tmp_path):
    card = run(tiny_study, tmp_path)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == FILES
    report = json.loads((out / "load_report.json").read_text())
    assert report["encoder_tensors"] == report["placed"] == 0
    assert report["placed_share"] is None
    assert len(report["fresh"]) == report["network_tensors"]
    assert report["network_parameters"] > 0
    with safe_open(out / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["voxprior"])
    assert about["card_hash"] == card_hash(read_card("finetune", card))
    assert about["classes"] == ["liver", "spleen"]
    assert about["window"] == [16, 16, 16]
    cases = {case["case"]: case["image_sha256"] for case in json.loads(tiny_study.index.read_text())["cases"]}
    assert about["training_cases"] == {name: cases[name] for name in ("phantom_2", "phantom_3")}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 4
    assert {"dice", "ce"} <= set(summary["final"])
    assert summary["inputs"]["encoder_sha256"] is None


def test_a_finished_run_is_given_back_where_nothing_that_it_reads_has_changed(tiny_study, tmp_path, monkeypatch):
    """As after an unlabelled scan was added: the index and the split are new files, the budget's cases the same."""
    from voxprior.engine import loop

    run(tiny_study, tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    before = tiny_study.index.read_bytes()
    index = json.loads(before)
    tiny_study.index.write_text(json.dumps({**index, "cases": [*index["cases"], {**index["cases"][0], "case": "new"}]}))
    trained = []
    monkeypatch.setattr(loop, "train", lambda *arguments, was=loop.train: (trained.append(1), was(*arguments))[1])
    try:
        run(tiny_study, tmp_path)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first and not trained
        run(tiny_study, tmp_path, seed=5)
        assert trained
    finally:
        tiny_study.index.write_bytes(before)


def test_an_encoder_is_placed_whole_and_only_its_own_cards(tiny_study, tmp_path, pretrained):
    encoder, made_by = pretrained
    run(tiny_study, tmp_path, encoder, init="mae", init_card=made_by)
    report = json.loads((tmp_path / "out" / "load_report.json").read_text())
    assert report["placed_share"] == 1.0
    assert report["placed"] == report["encoder_tensors"] > 0
    with pytest.raises(Refusal, match="was made by the pretraining card"):
        run(tiny_study, tmp_path / "wrong", encoder, init="mae", init_card="another")


def test_an_encoder_file_that_lost_tensors_is_refused(tiny_study, tmp_path, pretrained):
    encoder, made_by = pretrained
    with safe_open(encoder, framework="pt") as file:
        state, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    partial = tmp_path / "encoder.safetensors"
    partial.write_bytes(save({name: state[name] for name in sorted(state)[:-1]}, metadata=about))
    with pytest.raises(Refusal, match=f"lacks 1 of its {len(state)} tensors"):
        run(tiny_study, tmp_path, partial, init="mae", init_card=made_by)


def test_no_rate_keeps_the_pretrained_encoder_bit_for_bit(tiny_study, tmp_path, pretrained):
    """What reaches the model file is what the pretraining wrote."""
    encoder, made_by = pretrained
    run(tiny_study, tmp_path, encoder, init="mae", init_card=made_by, recipe={"lr": 1e-30, "weight_decay": 0.0})
    with (
        safe_open(encoder, framework="pt") as before,
        safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as after,
    ):
        for name in before.keys():  # noqa: SIM118
            torch.testing.assert_close(after.get_tensor("encoder." + name), before.get_tensor(name), rtol=0, atol=1e-20)


def test_init_and_encoder_must_agree(tiny_study, tmp_path, pretrained):
    with pytest.raises(Refusal, match="init scratch: leave out --encoder"):
        run(tiny_study, tmp_path, pretrained[0])
    with pytest.raises(Refusal, match="init mae: give its encoder"):
        run(tiny_study, tmp_path, init="mae")


def test_a_pickle_or_a_damaged_or_foreign_encoder_is_refused(tiny_study, tmp_path, pretrained):
    bad = tmp_path / "encoder.safetensors"
    for content in (pickle.dumps({"a": 1}), b"", pretrained[0].read_bytes()[:-5]):
        bad.write_bytes(content)
        with pytest.raises(Refusal, match="cannot be read as safetensors"):
            run(tiny_study, tmp_path, bad, init="mae")
    torch.save({"weights": torch.ones(2)}, bad)
    with pytest.raises(Refusal, match="cannot be read as safetensors"):
        run(tiny_study, tmp_path, bad, init="mae")
    save_file({"another.network": torch.ones(2)}, bad)
    with pytest.raises(Refusal, match="do not fit"):
        run(tiny_study, tmp_path, bad, init="mae")
    assert not (tmp_path / "out").exists()


def test_a_budget_that_was_not_split_is_refused(tiny_study, tmp_path):
    with pytest.raises(Refusal, match="no budget of 16 in fold 0"):
        run(tiny_study, tmp_path, budget=16)


def test_a_cnn_trains_with_deep_supervision_and_learns(tiny_study, tmp_path):
    run(tiny_study, tmp_path, backbone="stunet", family="cnn", architecture=tiny_study.cnn, steps=25)
    records = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    assert {"dice", "ce", "dice_1", "ce_1"} <= set(records[0])
    assert records[-1]["loss"] < records[0]["loss"]


def weights(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(("frozen", "moves"), [(0.5, True), (1.0, False)])
def test_a_frozen_encoder_does_not_move_bit_for_bit(tiny_study, tmp_path, pretrained, frozen, moves):
    encoder, made_by = pretrained
    how = {"lr": 0.003, "transfer": "decoder_first", "frozen": frozen}
    run(tiny_study, tmp_path / "first", encoder, init="mae", init_card=made_by, recipe=how)
    run(
        tiny_study,
        tmp_path / "probe",
        encoder,
        init="mae",
        init_card=made_by,
        recipe={**how, "transfer": "linear_probe"},
    )
    before = weights(encoder)
    for folder, moved in ((tmp_path / "first", moves), (tmp_path / "probe", False)):
        after = weights(folder / "out" / "model.safetensors")
        same = [torch.equal(after["encoder." + name], tensor) for name, tensor in before.items()]
        assert not any(same) if moved else all(same)
    told = json.loads((tmp_path / "probe" / "out" / "summary.json").read_text())
    assert told["parameters"] == sum(t.numel() for name, t in after.items() if not name.startswith("encoder."))


def with_val(study, tmp_path, cases=("phantom_4", "phantom_5")):
    content = json.loads(study.splits.read_text())
    content["folds"][0]["val"] = list(cases)
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    return path


def journal(folder):
    return [json.loads(line) for line in (folder / "out" / "journal.jsonl").read_text().splitlines()]


def test_averaged_weights_are_predicted_with_and_the_last_are_kept_beside_them(tiny_study, tmp_path):
    run(tiny_study, tmp_path / "plain")
    run(tiny_study, tmp_path / "ema", ema=0.5)
    plain, kept = weights(tmp_path / "plain/out/model.safetensors"), weights(tmp_path / "ema/out/last.safetensors")
    averaged = weights(tmp_path / "ema/out/model.safetensors")
    assert plain.keys() == kept.keys() == averaged.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in plain.items())  # averaging changes no training
    assert not all(torch.equal(tensor, averaged[name]) for name, tensor in plain.items())
    for name, said in (("model", "averaged"), ("last", "last")):
        with safe_open(tmp_path / f"ema/out/{name}.safetensors", framework="pt") as file:
            about = json.loads(file.metadata()["voxprior"])
        assert about["weights"] == said
        assert about["card"]["ema"] == 0.5
    run(tiny_study, tmp_path / "ema")
    assert not (tmp_path / "ema/out/last.safetensors").exists()


def test_an_interrupted_run_with_averages_and_validations_ends_as_an_uninterrupted_one(
    tiny_study, tmp_path, monkeypatch
):
    from voxprior.segment import model as segment

    splits = with_val(tiny_study, tmp_path)
    card = tiny_study.card("finetune", ema=0.3, validations=3, steps=6, recipe={"lr": 0.003, "layer_decay": 0.9})
    given = (card, tiny_study.index, splits)
    finetune.run(*given, tmp_path / "whole/out", tmp_path / "whole/work", None, 1, "cpu")
    step = segment.Model.after_step

    def stop(model, progress, total):
        if progress == 3 / 5:
            os.kill(os.getpid(), signal.SIGTERM)
        step(model, progress, total)

    monkeypatch.setattr(segment.Model, "after_step", stop)
    with pytest.raises(Resumable):
        finetune.run(*given, tmp_path / "cut/out", tmp_path / "cut/work", None, 1, "cpu")
    monkeypatch.undo()
    finetune.run(*given, tmp_path / "cut/out", tmp_path / "cut/work", None, 1, "cpu")
    for name in ("model.safetensors", "last.safetensors", "journal.jsonl"):
        assert (tmp_path / "cut/out" / name).read_bytes() == (tmp_path / "whole/out" / name).read_bytes(), name


def test_val_patients_are_watched_and_change_no_weight(tiny_study, tmp_path):
    run(tiny_study, tmp_path / "plain", validations=2)
    card = tiny_study.card("finetune", validations=2)
    given = (card, tiny_study.index, with_val(tiny_study, tmp_path))
    finetune.run(*given, tmp_path / "val/out", tmp_path / "val/work", None, 1, "cpu")
    assert [line["step"] for line in journal(tmp_path / "val") if "val_dice" in line] == [1, 3]
    assert not [line for line in journal(tmp_path / "plain") if "val_dice" in line]
    before, after = (weights(tmp_path / name / "out/model.safetensors") for name in ("plain", "val"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_run_may_end_early_by_the_val_patients_and_by_no_others(tiny_study, tmp_path):
    how = {"patience": 2, "validations": 12, "steps": 12, "recipe": {"lr": 1e-30, "weight_decay": 0.0}}
    with pytest.raises(Refusal, match="patience 2 asks for val patients"):
        run(tiny_study, tmp_path / "none", **how)
    card = tiny_study.card("finetune", **how)
    given = (card, tiny_study.index, with_val(tiny_study, tmp_path))
    finetune.run(*given, tmp_path / "val/out", tmp_path / "val/work", None, 1, "cpu")
    summary = json.loads((tmp_path / "val/out/summary.json").read_text())
    assert summary["steps"] == 3  # nothing learned is nothing better
    assert summary["voxels_seen"] == 3 * 2 * 16**3
