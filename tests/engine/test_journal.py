import json
import subprocess
import sys

import pytest

from voxprior.engine import journal


def test_a_journal_opened_at_a_mark_equals_one_that_never_stopped(tmp_path):
    whole, parts = journal.Journal(tmp_path / "whole"), journal.Journal(tmp_path / "parts")
    for step in range(6):
        whole.write({"step": step, "loss": step / 3})
        parts.write({"step": step, "loss": step / 3})
        if step == 3:
            mark = parts.mark()
    parts.close()
    parts = journal.Journal(tmp_path / "parts", mark)
    for step in range(4, 6):
        parts.write({"step": step, "loss": step / 3})
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert parts.mark() == whole.mark()


@pytest.mark.parametrize("harm", [lambda data: data[:-3], lambda data: data.replace(b"1", b"2"), lambda data: b""])
def test_changed_lines_before_the_mark_are_noticed(tmp_path, harm):
    opened = journal.Journal(tmp_path / "j")
    opened.write({"step": 1})
    mark = opened.mark()
    opened.close()
    (tmp_path / "j").write_bytes(harm((tmp_path / "j").read_bytes()))
    with pytest.raises(journal.Damaged, match="does not hold"):
        journal.Journal(tmp_path / "j", mark)


def test_lines_are_on_the_disk_at_once_and_nan_is_not_json(tmp_path):
    opened = journal.Journal(tmp_path / "deep" / "j")
    opened.write({"step": 0})
    assert json.loads((tmp_path / "deep" / "j").read_text()) == {"step": 0}
    with pytest.raises(ValueError):
        opened.write({"loss": float("nan")})


def test_progress_tells_one_plain_line_at_the_end_of_a_short_run(capsys):
    assert list(journal.progress(range(4), 10, "pretrain mae", start=6)) == [0, 1, 2, 3]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("pretrain mae: 10/10, ")
    assert "/s in 0:00:00" in told


def test_progress_tells_rate_and_time_left_on_the_way(capsys, monkeypatch):
    now = iter(range(0, 1000, 30))
    monkeypatch.setattr(journal.time, "monotonic", lambda: next(now))
    list(journal.progress(range(5), 5, "x"))
    told = capsys.readouterr().err.splitlines()
    assert told == ["x: 2/5, 0.0333/s, 0:01:30 left", "x: 4/5, 0.0333/s, 0:00:30 left", "x: 5/5, 0.0333/s in 0:02:30"]


def test_importing_the_journal_is_cheap():
    code = "import sys, voxprior.engine.journal; print(sorted({'torch', 'numpy', 'tqdm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
