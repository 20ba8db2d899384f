import hashlib
import json
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from voxprior.configuration import Accepted, Source
from voxprior.data import phantoms, sources, transfer
from voxprior.errors import Refusal


class Server(BaseHTTPRequestHandler):
    """Serves one file; `faults` are used up one per request: 'drop', '503', '404', 'no range'."""

    content = b""
    faults: ClassVar[list[str]] = []
    ranges: ClassVar[list[str | None]] = []

    def do_GET(self):
        fault = type(self).faults.pop(0) if type(self).faults else ""
        wanted = self.headers.get("Range")
        type(self).ranges.append(wanted)
        if fault in ("503", "404"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted[6:-1]) if wanted and fault != "no range" else 0
        if start >= len(self.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)
        if fault == "drop":
            self.wfile.flush()
            self.connection.close()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Server.content, Server.faults, Server.ranges = os.urandom(8 << 16), [], []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


@pytest.fixture
def archive(tmp_path) -> Path:
    phantoms.write_decathlon(tmp_path / "made" / "Task99", cases=2, shape_zyx=(8, 9, 10))
    path = tmp_path / "Task99.tar"
    (tmp_path / "made" / "Task99" / "._dataset.json").write_bytes(b"junk")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "made" / "Task99", "Task99")
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def at_once(failures: int) -> float:
    return 0.0


def test_a_dropped_download_goes_on_where_it_stopped(server, tmp_path):
    Server.faults = ["drop", "503", "drop"]
    transfer.download(f"{server}/x", tmp_path / "x", at_once)
    assert (tmp_path / "x").read_bytes() == Server.content
    assert Server.ranges == [None, "bytes=262144-", "bytes=262144-", "bytes=393216-"]
    assert not (tmp_path / "x.part").exists()


def test_a_server_without_range_starts_over(server, tmp_path):
    (tmp_path / "x.part").write_bytes(Server.content[:1000])
    Server.faults = ["no range"]
    transfer.download(f"{server}/x", tmp_path / "x", at_once)
    assert (tmp_path / "x").read_bytes() == Server.content


@pytest.mark.parametrize("extra", [b"", b"longer"])
def test_a_part_that_is_whole_or_too_long_is_recognised(server, tmp_path, extra):
    (tmp_path / "x.part").write_bytes(Server.content + extra)
    transfer.download(f"{server}/x", tmp_path / "x", at_once)
    assert (tmp_path / "x").read_bytes() == Server.content


def test_a_dead_server_is_given_up_after_some_attempts(server, tmp_path):
    Server.faults = ["503"] * 50
    with pytest.raises(Refusal, match="answer 503"):
        transfer.download(f"{server}/x", tmp_path / "x", at_once)
    assert len(Server.ranges) == transfer.STALLED


def test_a_missing_file_is_refused_at_once(server, tmp_path):
    Server.faults = ["404"] * 5
    with pytest.raises(Refusal, match="404"):
        transfer.download(f"{server}/x", tmp_path / "x", at_once)
    assert len(Server.ranges) == 1


def source(archive: Path, **changes) -> Source:
    known = [Accepted(sha256="0" * 64, contains="official"), Accepted(sha256=digest(archive), contains="2 cases")]
    return Source(**({"kind": "url", "urls": [], "file": "Task99.tar", "accepts": known} | changes))


def test_a_dataset_comes_from_a_url_once(server, archive, tmp_path):
    Server.content = archive.read_bytes()
    manifest = tmp_path / "raw" / "m" / "manifest.json"
    wanted = source(archive, urls=[f"{server}/Task99.tar"])
    sources.fetch(wanted, "phantom", manifest, None)
    content = sources.read_manifest(manifest)
    assert content["archives"][0]["contains"] == "2 cases"
    root, files = sources.files_of(content, manifest)
    assert "Task99/dataset.json" in files and not any("._" in file for file in files)
    assert all((root / file).is_file() for file in files)
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["files", "manifest.json"]
    requests = len(Server.ranges)
    sources.fetch(wanted, "phantom", manifest, None)
    assert len(Server.ranges) == requests
    (root / files[0]).unlink()
    sources.fetch(wanted, "phantom", manifest, None)
    assert (root / files[0]).is_file()


def test_a_wrong_file_is_refused_removed_and_nothing_is_left(server, archive, tmp_path):
    manifest = tmp_path / "raw" / "m" / "manifest.json"
    with pytest.raises(Refusal, match="sha256 .* where 0000") as refusal:
        sources.fetch(source(archive, urls=[f"{server}/Task99.tar"]), "phantom", manifest, None)
    assert digest(archive) in str(refusal.value) and hashlib.sha256(Server.content).hexdigest() in str(refusal.value)
    assert list(manifest.parent.iterdir()) == []


@pytest.mark.parametrize("form", ["folder", "file", "url"])
def test_a_mirror_is_asked_first(server, archive, tmp_path, form):
    Server.content = archive.read_bytes()
    mirror = {"folder": str(archive.parent), "file": str(archive), "url": server}[form]
    manifest = tmp_path / "raw" / "m" / "manifest.json"
    sources.fetch(source(archive), "phantom", manifest, mirror)
    assert sources.read_manifest(manifest)["archives"][0]["contains"] == "2 cases"
    assert archive.is_file()  # a mirror's file is not ours to delete


def test_a_wrong_archive_in_a_mirror_is_refused_and_left_there(archive, tmp_path):
    wanted = source(archive)
    archive.write_bytes(b"another file")
    with pytest.raises(Refusal, match="replace it in the mirror"):
        sources.fetch(wanted, "phantom", tmp_path / "raw" / "m" / "manifest.json", str(archive))
    assert archive.is_file()


def test_a_mirror_that_lacks_the_file_falls_back_to_the_source(server, archive, tmp_path, capsys):
    Server.content, Server.faults = archive.read_bytes(), ["404"]
    manifest = tmp_path / "raw" / "m" / "manifest.json"
    sources.fetch(source(archive, urls=[f"{server}/official/Task99.tar"]), "phantom", manifest, f"{server}/mirror")
    assert sources.read_manifest(manifest)["archives"][0]["from"].endswith("/official/Task99.tar")
    assert "mirror" in capsys.readouterr().err


def test_an_unknown_hash_is_trusted_once_and_checked_from_then_on(archive, tmp_path):
    manifest = tmp_path / "raw" / "m" / "manifest.json"
    wanted = source(archive, accepts=[Accepted(contains="first use")])
    sources.fetch(wanted, "phantom", manifest, str(archive))
    assert sources.read_manifest(manifest)["archives"][0]["sha256"] == digest(archive)
    next((manifest.parent / "files").rglob("*.json")).unlink()
    with tarfile.open(archive, "a") as tar:
        tar.add(tmp_path / "made" / "Task99" / "dataset.json", "Task99/more.json")
    with pytest.raises(Refusal, match="is expected"):
        sources.fetch(wanted, "phantom", manifest, str(archive))


def test_scans_in_place_are_listed_not_copied(tmp_path):
    scans = phantoms.write_folder(tmp_path / "scans", cases=1, shape_zyx=(8, 9, 10))
    manifest = tmp_path / "raw" / "own" / "manifest.json"
    sources.fetch(Source(kind="folder", path=str(scans)), "own", manifest, None)
    root, files = sources.files_of(sources.read_manifest(manifest), manifest)
    assert root == scans and files == ["images/phantom_000.nii.gz", "labels/phantom_000.nii.gz"]
    assert list(manifest.parent.iterdir()) == [manifest]


def test_a_manual_dataset_prints_its_steps_and_then_takes_the_file(archive, tmp_path, capsys):
    manifest = tmp_path / "data" / "raw" / "m" / "manifest.json"
    wanted = source(archive, kind="manual", steps="1. Log in.")
    with pytest.raises(Refusal, match="Task99.tar is missing"):
        sources.fetch(wanted, "m", manifest, None)
    assert "1. Log in." in capsys.readouterr().err
    place = tmp_path / "data" / "manual" / "m" / "Task99.tar"
    place.parent.mkdir(parents=True)
    place.write_bytes(archive.read_bytes())
    sources.fetch(wanted, "m", manifest, None)
    assert sources.read_manifest(manifest)["archives"][0]["contains"] == "2 cases"


@pytest.mark.parametrize("damage", ["{", '{"format": 9}', "changed"])
def test_a_damaged_manifest_is_refused(tmp_path, damage):
    scans = phantoms.write_folder(tmp_path / "scans", cases=1, shape_zyx=(8, 9, 10))
    manifest = tmp_path / "manifest.json"
    sources.fetch(Source(kind="folder", path=str(scans)), "own", manifest, None)
    content = json.loads(manifest.read_text())
    content["files"][0]["bytes"] += 1
    manifest.write_text(json.dumps(content) if damage == "changed" else damage)
    with pytest.raises(Refusal, match="delete it and fetch again"):
        sources.read_manifest(manifest)


def test_the_hippocampus_mirror_holds_210_pairs(tmp_path):
    """The real archive, where a mirror of it is given."""
    import yaml

    mirror = os.environ.get("VOXPRIOR_MIRROR")
    if not mirror:
        pytest.skip("VOXPRIOR_MIRROR names no mirror of Task04_Hippocampus.tar")
    config = Path(__file__).parents[2] / "config" / "datasets" / "hippocampus.yaml"
    wanted = Source(**yaml.safe_load(config.read_text())["source"])
    sources.fetch(wanted, "hippocampus", tmp_path / "raw" / "h" / "manifest.json", mirror)
    content = sources.read_manifest(tmp_path / "raw" / "h" / "manifest.json")
    assert sum("/labelsTr/" in file["path"] for file in content["files"]) in (210, 260)
