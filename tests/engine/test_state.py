import hashlib
import os
import pickle
import signal
from collections import namedtuple

import pytest
import torch

from voxprior import whole
from voxprior.engine import state
from voxprior.errors import Refusal

CPU = torch.device("cpu")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def _named_by_content(folder, payload: bytes):
    name = f"state-{1:012d}-{hashlib.sha256(payload).hexdigest()[:16]}.pt"
    (folder / name).write_bytes(payload)


def test_a_pickle_bomb_is_refused_even_with_the_right_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "card_hash": "c", "step": 1, "content": Bomb()}, tmp_path / "bomb")
    _named_by_content(tmp_path, (tmp_path / "bomb").read_bytes())
    assert list(state.candidates(tmp_path, "c", CPU)) == []
    _named_by_content(tmp_path, pickle.dumps(Bomb()))
    assert list(state.candidates(tmp_path, "c", CPU)) == []
    assert "not a state" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


def test_every_kind_of_damage_is_detected(tmp_path):
    good = state.save(tmp_path, "c", 5, {"weights": torch.arange(300.0), "marks": [1, "a"]})
    data = good.read_bytes()
    harms = [data[:cut] for cut in range(0, len(data), 101)]
    for position in range(0, len(data), 53):
        harms.append(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
    assert len(harms) > 40
    for harm in harms:
        good.write_bytes(harm)
        assert list(state.candidates(tmp_path, "c", CPU)) == []
    good.write_bytes(data)
    ((step, content),) = state.candidates(tmp_path, "c", CPU)
    assert step == 5
    assert torch.equal(content["weights"], torch.arange(300.0))
    assert content["marks"] == [1, "a"]


def test_a_half_written_state_is_never_looked_at(tmp_path):
    (tmp_path / "state.pt.part").write_bytes(b"half")
    (tmp_path / "state.pt").write_bytes(b"written, not yet named")
    assert list(state.candidates(tmp_path, "c", CPU)) == []


def test_a_full_disk_keeps_the_last_state_and_names_path_need_and_free(tmp_path, monkeypatch):
    state.save(tmp_path, "c", 1, {"weights": torch.ones(4)})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(whole.shutil, "disk_usage", lambda path: usage(1000, 900, 100))
    with pytest.raises(Refusal, match=r"state.pt does not fit .* needs 4,000 bytes .* 100 are free"):
        state.save(tmp_path, "c", 2, {"model": {"weights": torch.ones(1000)}})
    assert [step for step, _ in state.candidates(tmp_path, "c", CPU)] == [1]


def test_stop_notices_and_puts_the_handlers_back():
    before = signal.getsignal(signal.SIGUSR1)
    with state.Stop() as stop:
        assert stop.asked is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_second_interrupt_is_immediate():
    with pytest.raises(KeyboardInterrupt), state.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
