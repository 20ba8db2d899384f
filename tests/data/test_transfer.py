import datetime
import email.utils
import errno
import json
import os
import re
import socket
from types import SimpleNamespace

import pytest
import requests

from voxprior.data import transfer
from voxprior.errors import Refusal

CONTENT = os.urandom(8 << 16)
HALF = len(CONTENT) // 2


class Clock:
    """Notes how long it was asked to wait, and does not."""

    def __init__(self):
        self.waits = []

    def __call__(self, seconds):
        self.waits.append(seconds)


@pytest.fixture
def clock():
    return Clock()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fetch(site, folder, clock, **more):
    site.files.setdefault("/x", CONTENT)
    return transfer.download(f"{site.url}/x", folder / "x", sleep=clock, **more)


def is_one_sentence(refusal) -> bool:
    return re.search(r": [a-z ]+.*[a-z]$", str(refusal.value)) is not None and "\n" not in str(refusal.value)


def test_a_dropped_download_goes_on_where_it_stopped(site, tmp_path, clock):
    site.faults = ["drop", "503", "drop"]
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT and names(tmp_path) == ["x"]
    tag = site.etag("/x")
    assert [request[1:] for request in site.asked] == [
        (None, None),
        (f"bytes={HALF}-", tag),
        (f"bytes={HALF}-", tag),
        (f"bytes={HALF + HALF // 2}-", tag),
    ]


def test_a_later_process_goes_on_with_the_part(site, tmp_path, clock):
    site.faults, site.always = ["drop"], "503"
    with pytest.raises(Refusal, match=r"answer 503\): run again to go on"):
        fetch(site, tmp_path, clock)
    assert names(tmp_path) == ["x.part", "x.part.json"]
    site.always = ""
    assert fetch(site, tmp_path, clock) is False
    assert (tmp_path / "x").read_bytes() == CONTENT and site.asked[-1][1] == f"bytes={HALF}-"


def test_a_file_that_changed_between_attempts_is_never_spliced(site, tmp_path, clock):
    site.faults = ["drop", "change"]
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("fault", ["shifted", "ignore range"])
def test_an_answer_that_does_not_continue_the_part_starts_over(site, tmp_path, clock, fault):
    site.faults = ["drop", fault]
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_part_without_a_validator_is_continued_only_where_a_hash_will_judge(site, tmp_path, clock):
    site.validators, site.faults = False, ["drop"]
    assert fetch(site, tmp_path, clock) is False
    assert [request[1] for request in site.asked] == [None, None]
    (tmp_path / "x").unlink()
    site.faults, site.asked = ["drop"], []
    assert fetch(site, tmp_path, clock, blind=True) is True
    assert [request[1:] for request in site.asked] == [(None, None), (f"bytes={HALF}-", None)]
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_another_mirror_goes_on_with_a_part_where_a_hash_will_judge(site, tmp_path, clock):
    site.files |= {"/x": CONTENT, "/mirror/x": CONTENT, "/none": b""}
    site.faults = ["drop", *["503"] * 8, "404"]
    for url in (f"{site.url}/x", f"{site.url}/gone"):
        with pytest.raises(Refusal):
            transfer.download(url, tmp_path / "x", sleep=clock, blind=True)
    assert transfer.download(f"{site.url}/mirror/x", tmp_path / "x", sleep=clock, blind=True) is True
    assert (tmp_path / "x").read_bytes() == CONTENT and site.asked[-1][1] == f"bytes={HALF}-"


def test_a_mirror_without_validator_never_gets_anothers_part(site, tmp_path, clock):
    site.files["/mirror/x"] = CONTENT[::-1]
    site.faults = ["drop", *["503"] * 8]
    with pytest.raises(Refusal):
        fetch(site, tmp_path, clock)
    transfer.download(f"{site.url}/mirror/x", tmp_path / "x", sleep=clock)
    assert (tmp_path / "x").read_bytes() == CONTENT[::-1] and site.asked[-1][1] is None


@pytest.mark.parametrize("extra", [b"", b"longer"])
def test_a_part_that_is_whole_or_too_long_is_recognised(site, tmp_path, clock, extra):
    site.files["/x"] = CONTENT
    note = {"url": f"{site.url}/x", "validator": site.etag("/x"), "bytes": len(CONTENT)}
    (tmp_path / "x.part").write_bytes(CONTENT + extra)
    (tmp_path / "x.part.json").write_text(json.dumps(note))
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT and names(tmp_path) == ["x"]
    assert len(site.asked) == (2 if extra else 1)


@pytest.mark.parametrize("note", [None, "", "{", "[]", '{"url": 1}'])
def test_a_part_of_unknown_origin_is_not_used(site, tmp_path, clock, note):
    (tmp_path / "x.part").write_bytes(b"stranger")
    if note is not None:
        (tmp_path / "x.part.json").write_text(note)
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT and site.asked[0][1] is None


# ------------------------------------------------------------------------------------------------- waiting
def test_waits_double_with_jitter_and_end(site, tmp_path, clock):
    site.always = "503"
    with pytest.raises(Refusal, match="answer 503") as refusal:
        fetch(site, tmp_path, clock)
    assert len(site.asked) == transfer.STALLED and is_one_sentence(refusal)
    assert len(clock.waits) == transfer.STALLED - 1
    for attempt, wait in enumerate(clock.waits, 1):
        longest = min(2**attempt, transfer.LONGEST_WAIT_S)
        assert longest / 2 <= wait <= longest
    assert names(tmp_path) == []


def test_new_bytes_give_new_patience(site, tmp_path, clock):
    site.faults = ["503"] * 6 + ["drop"] + ["503"] * 6 + ["drop"] + ["503"] * 6
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_server_that_always_drops_and_never_resumes_ends(site, tmp_path, clock):
    site.validators, site.always = False, "drop"
    with pytest.raises(Refusal, match="the connection broke off|bytes arrived"):
        fetch(site, tmp_path, clock)
    assert len(site.asked) <= transfer.STALLED + 1 and "x" not in names(tmp_path)


def test_a_server_that_changes_its_file_at_every_attempt_ends(site, tmp_path, clock):
    site.faults = ["drop"] + ["shifted", "drop"] * 20
    with pytest.raises(Refusal, match="the file changed during the download"):
        fetch(site, tmp_path, clock)
    assert len(site.asked) < 12 and "x" not in names(tmp_path)


@pytest.mark.parametrize(
    ("given", "least", "most"), [("77", 77, 77), ("999999", 600, 600), ("-3", 0, 2), ("soon", 0, 2)]
)
@pytest.mark.parametrize("code", ["429", "503"])
def test_retry_after_is_honoured_and_capped(site, tmp_path, clock, code, given, least, most):
    site.faults = [f"{code} {given}"]
    fetch(site, tmp_path, clock)
    assert least <= clock.waits[0] <= most and (tmp_path / "x").read_bytes() == CONTENT


def test_retry_after_may_be_a_date(site, tmp_path, clock):
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    site.faults = [f"429 {email.utils.format_datetime(later, usegmt=True)}", "429 Wed, 21 Oct 2015 07:28:00 GMT"]
    fetch(site, tmp_path, clock)
    assert 85 <= clock.waits[0] <= 90 and clock.waits[1] <= 4


# ------------------------------------------------------------------------------------------------- lies
def test_a_length_that_is_too_great_is_never_believed(site, tmp_path, clock):
    site.always = "long"
    with pytest.raises(Refusal, match="bytes arrived|broke off|shorter"):
        fetch(site, tmp_path, clock)
    assert "x" not in names(tmp_path)
    site.always = ""
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_length_that_is_not_the_expected_one_is_refused_before_the_first_byte(site, tmp_path, clock):
    with pytest.raises(
        Refusal, match=r"is another file, it has 524,288 bytes where 12 or 700 are expected: "
    ) as refusal:
        fetch(site, tmp_path, clock, lengths=[12, 700])
    assert is_one_sentence(refusal) and names(tmp_path) == []


def test_a_file_without_length_comes_whole(site, tmp_path, clock):
    site.faults = ["no length"]
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_bytes_are_kept_as_they_are_on_the_wire(site, tmp_path, clock, monkeypatch):
    """A server that says gzip of a .gz file does not have it unpacked on the way."""
    import gzip

    site.files["/x"] = gzip.compress(b"voxels")
    monkeypatch.setattr(site, "etag", lambda path: '"a"\r\nContent-Encoding: gzip')
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == site.files["/x"]


# ------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("404", "is not there"),
        ("410", "is not there"),
        ("401", "asks for a login"),
        ("403", "asks for a login"),
        ("400", "cannot be fetched"),
        ("page", "answers with a web page"),
    ],
)
def test_what_waiting_cannot_mend_is_refused_at_once(site, tmp_path, clock, fault, says):
    site.always = fault
    with pytest.raises(Refusal, match=says) as refusal:
        fetch(site, tmp_path, clock)
    assert len(site.asked) == 1 and is_one_sentence(refusal) and names(tmp_path) == []
    assert site.url in str(refusal.value)


def test_redirects_are_followed_and_circles_are_not(site, tmp_path, clock):
    site.redirects = {"/x": "/y", "/y": "/z", "/a": "/b", "/b": "/a"}
    site.files["/z"] = CONTENT
    site.faults = ["", "", "drop"]
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT
    with pytest.raises(Refusal, match="redirects in a circle") as refusal:
        transfer.download(f"{site.url}/a", tmp_path / "a", sleep=clock)
    assert is_one_sentence(refusal)


def test_a_redirect_out_of_encryption_is_refused():
    answer = SimpleNamespace(status_code=200, url="http://elsewhere/x", headers={})
    with pytest.raises(Refusal, match="without encryption"):
        transfer._check_answer(answer, "https://here/x")


def test_no_connection_at_all_is_heard_of_soon(tmp_path, clock):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Refusal, match=r"\(no connection\): run again to go on, or name a mirror"):
        transfer.download(f"http://127.0.0.1:{port}/x", tmp_path / "x", sleep=clock)
    assert len(clock.waits) == transfer.UNREACHED - 1


def test_a_connection_that_is_reset_is_tried_again(site, tmp_path, clock):
    site.faults = ["reset", "reset"]
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT and len(clock.waits) == 2


def test_a_server_that_falls_silent_is_tried_again(site, tmp_path, clock, monkeypatch):
    calls = []
    real = requests.get

    def get(*arguments, **more):
        calls.append(more["timeout"])
        if len(calls) < 3:
            raise requests.exceptions.ReadTimeout
        return real(*arguments, **more)

    monkeypatch.setattr(requests, "get", get)
    fetch(site, tmp_path, clock)
    assert calls == [transfer.TIMEOUT_S] * 3


# ------------------------------------------------------------------------------------------------- full disk
def test_a_full_disk_is_noticed_before_the_first_byte(site, tmp_path, clock, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(Refusal, match=r"x does not fit on the disk, it needs 524,288 bytes or more and 1,000 are free"):
        fetch(site, tmp_path, clock)
    assert "x" not in names(tmp_path) and sum(path.stat().st_size for path in tmp_path.iterdir()) < 300


def test_a_disk_that_fills_up_is_a_refusal_and_the_part_can_go_on(site, tmp_path, clock, monkeypatch):
    """Another process may take the room that was free before the first byte."""
    import builtins

    real = builtins.open

    class Full:
        def __init__(self, path, mode):
            self.file = real(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, block):
            if self.file.tell() >= HALF:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(block)

    monkeypatch.setattr(transfer, "open", Full, raising=False)
    with pytest.raises(
        Refusal, match=rf"x does not fit on the disk, it needs {HALF:,} bytes or more and [\d,]+ are free"
    ):
        fetch(site, tmp_path, clock)
    assert names(tmp_path) == ["x.part", "x.part.json"] and clock.waits == []
    monkeypatch.undo()
    fetch(site, tmp_path, clock)
    assert (tmp_path / "x").read_bytes() == CONTENT and site.asked[-1][1] == f"bytes={HALF}-"


def test_a_place_with_another_file_does_not_cost_the_part_of_a_better_one(site, tmp_path, clock):
    site.files |= {"/x": CONTENT, "/wrong": CONTENT[:1000]}
    site.faults, site.always = ["drop"], "503"
    known = {"lengths": [len(CONTENT)], "blind": True, "sleep": clock}
    with pytest.raises(Refusal):
        transfer.download(f"{site.url}/x", tmp_path / "x", **known)
    site.always = "ignore range"
    with pytest.raises(Refusal, match="is another file"):
        transfer.download(f"{site.url}/wrong", tmp_path / "x", **known)
    site.always = ""
    transfer.download(f"{site.url}/x", tmp_path / "x", **known)
    assert (tmp_path / "x").read_bytes() == CONTENT and site.asked[-1][1] == f"bytes={HALF}-"
