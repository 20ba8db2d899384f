import errno
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from voxprior import whole as files
from voxprior.errors import Refusal
from voxprior.whole import whole, write_json, write_text


def test_nothing_is_put_in_place_when_writing_fails(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(KeyError), whole(tmp_path / "a.json") as part:
        part.write_text("half")
        raise KeyError
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_while_writing_is_a_refusal_and_other_errors_stay(tmp_path):
    says = r"a.json does not fit on the disk, it needs 4 bytes or more and [\d,]+ are free: make room"
    with pytest.raises(Refusal, match=says), whole(tmp_path / "a.json") as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), whole(tmp_path / "a.json"):
        raise PermissionError(errno.EACCES, "denied")
    assert not list(tmp_path.iterdir())


def test_too_full_a_disk_is_noticed_before_the_first_byte(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2))
    with pytest.raises(Refusal, match=r"a does not fit on the disk, it needs 3 bytes or more and 2 are free"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_text_is_written_as_it_is_and_renewed(tmp_path):
    path = tmp_path / "new" / "table.csv"
    write_text(path, "one\r\n")
    (path.parent / "table.csv.part").write_text("left by a process that was killed, longer than what comes")
    write_text(path, "zwei: \u00e4\n")
    assert path.read_bytes() == "zwei: \u00e4\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]


def test_json_holds_no_nan_and_sorts_when_asked(tmp_path):
    write_json(tmp_path / "a.json", {"b": "\u00e4", "a": 1}, sort_keys=True)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "a": 1,\n "b": "\u00e4"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text())["a"] == 1


def test_importing_is_cheap():
    code = "import sys, voxprior.whole; print(sorted({'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
