"""Shards read like the cache's own files, whatever lies between."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from voxprior.commands import pack
from voxprior.data import cache, loaders, shards
from voxprior.errors import Refusal, Resumable
from voxprior.maths.boxes import Region
from voxprior.whole import write_json

SHAPE = (1, 150, 140, 130)  # of the cases of `prepared`


class Server(ThreadingHTTPServer):
    """Serves the files of a folder by ranges; `asked` lists the bytes of each answer, `faults` are used up."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.faults, self.knows_ranges = folder, [], [], True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.server.faults:
            return self.say(self.server.faults.pop(0), b"")
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.say(404, b"")
        content = path.read_bytes()
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if not wanted or not self.server.knows_ranges:
            return self.say(200, content)
        first, last = (int(n) for n in wanted.split("-"))
        content = content[first : last + 1]
        self.server.asked.append(len(content))
        self.say(206, content)

    def say(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(tmp_path / "shards") as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    shards.open_array.cache_clear()


def regions(index, workers=0, steps=4):
    plan = loaders.regions(
        index, ["c0", "c1"], Region((96, 96, 96)), seed=1, batch_size=2, steps=steps, labels=True, foreground=0.5,
        workers=workers,
    )  # fmt: skip
    return [batch for _, _, batch in plan]


def same(first, second):
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


@pytest.mark.parametrize("url", ["folder", "memory://bucket/d"])
def test_packed_arrays_are_the_local_ones_bit_by_bit(prepared, tmp_path, url):
    where = str(tmp_path / "shards") if url == "folder" else url
    pack.run(prepared, where, tmp_path / "packed.json", shard_mb=10)
    content = json.loads((tmp_path / "packed.json").read_text())
    assert len(content["shards"]["files"]) == 2  # two cases of about 6 MB fill the first
    assert content["shards"]["root"] == ("shards" if url == "folder" else url)
    for name in ("c0", "c1", "c2"):
        local, far = cache.open_case(prepared, name), cache.open_case(tmp_path / "packed.json", name)
        for lo, size in (((0, 0, 0), SHAPE[1:]), ((-7, 60, 64), (33, 96, 96)), ((64, 0, 1), (64, 3, 128))):
            for a, b in zip(local.read(lo, size), far.read(lo, size), strict=True):
                assert np.array_equal(a, b)
            if local.label is not None:
                assert np.array_equal(local.read_label(lo, size), far.read_label(lo, size))
        if local.label is not None:
            assert np.array_equal(local.places(1), far.places(1))
        assert (local.class_voxels, local.shape_zyx, local.quantum) == (far.class_voxels, far.shape_zyx, far.quantum)
    assert cache.content_key(prepared, ["c0"]) == cache.content_key(tmp_path / "packed.json", ["c0"])
    assert same(regions(prepared), regions(tmp_path / "packed.json"))


@pytest.fixture
def far(prepared, tmp_path, server):
    pack.run(prepared, str(tmp_path / "shards"), tmp_path / "far.json", root=server.url)
    return tmp_path / "far.json"


def test_a_crop_costs_its_chunks_and_no_more(far, server):
    case = cache.open_case(far, "c0")
    server.asked.clear()
    case.read((5, 5, 5), (20, 20, 20))  # inside one chunk of 64^3
    assert server.asked == [case.image._starts[1] - case.image._starts[0]]
    server.asked.clear()
    case.read((30, 30, 30), (96, 96, 96))  # two chunks of three each way: neighbours come together
    chunk_bytes = np.diff(case.image._starts)[: case.image._grid.size]
    touched = case.image._grid[:, :2, :2, :2].ravel()
    assert chunk_bytes[touched].sum() <= sum(server.asked) <= 1.3 * chunk_bytes[touched].sum()
    assert len(server.asked) <= 4


def test_workers_read_the_same_batches_from_a_server(prepared, far):
    assert same(regions(prepared), regions(far, workers=2))


def test_trouble_that_passes_is_waited_for(prepared, far, server):
    server.faults = [503, 429, 500]
    assert np.array_equal(
        cache.open_case(far, "c0").read((0, 0, 0), (9, 9, 9))[0],
        cache.open_case(prepared, "c0").read((0, 0, 0), (9, 9, 9))[0],
    )
    assert not server.faults


def test_trouble_that_stays_says_what_to_do(far, server):
    server.faults = [503] * 50
    with pytest.raises(Resumable, match=r"shard-00000.bin cannot be read .*: check the address"):
        cache.open_case(far, "c0")
    assert 50 - len(server.faults) == shards.ATTEMPTS
    server.faults = [403]
    with pytest.raises(Refusal, match="your access"):
        cache.open_case(far, "c0")
    assert not server.faults  # asked once
    server.faults = [403]
    with pytest.raises(Refusal, match=r"^\S+shard-00000.bin cannot be read [^\n]*$"):  # no worker's traceback
        regions(far, workers=1)
    server.knows_ranges = False
    with pytest.raises(Refusal, match="knows no byte ranges"):
        cache.open_case(far, "c0")


@pytest.mark.parametrize("damage", ["chunk", "head", "cut", "gone"])
def test_a_damaged_shard_is_noticed(far, tmp_path, damage):
    (shard,) = (tmp_path / "shards").iterdir()
    place = shards.Place(*json.loads(far.read_text())["cases"][0]["image_at"])
    content = bytearray(shard.read_bytes())
    if damage in ("chunk", "head"):
        content[{"chunk": place.start + 1000, "head": place.head + 5}[damage]] ^= 1
    shard.write_bytes(content[: place.start + 5000] if damage == "cut" else content)
    if damage == "gone":
        shard.unlink()
    words = {
        "chunk": "damaged in part 0",
        "head": "damaged or stale",
        "cut": "cut short|cannot be read",
        "gone": "is missing",
    }[damage]
    with pytest.raises((Refusal, Resumable), match=words):
        cache.open_case(far, "c0").read((0, 0, 0), (9, 9, 9))


def test_an_index_of_another_card_is_refused(far, tmp_path):
    content = json.loads(far.read_text())
    write_json(far, {**content, "key": "other"})
    with pytest.raises(Refusal, match="another card or format"):
        cache.open_case(far, "c0")


def test_packing_goes_on_where_it_stopped_and_keeps_the_time_of_the_index(prepared, tmp_path, monkeypatch):
    before, made = pack._make, []

    def stops(index, cases, root, file, here):
        if len(made) == 1:
            raise Resumable("the network is gone")
        made.append(file)
        return before(index, cases, root, file, here)

    with monkeypatch.context() as patched:
        patched.setattr(pack, "_make", stops)
        with pytest.raises(Resumable):
            pack.run(prepared, str(tmp_path / "shards"), tmp_path / "far.json", shard_mb=1)
        assert not (tmp_path / "far.json").exists()
        patched.setattr(pack, "_make", lambda *given: (made.append(given[3]), before(*given))[1])
        pack.run(prepared, str(tmp_path / "shards"), tmp_path / "far.json", shard_mb=1)
    assert made == ["shard-00000.bin", "shard-00001.bin", "shard-00002.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far.json", "shards"]
    with pytest.raises(Refusal, match="packed already"):
        pack.run(tmp_path / "far.json", "x", tmp_path / "y.json")
    content, time = prepared.read_text(), prepared.stat().st_mtime_ns
    try:
        pack.run(prepared, str(tmp_path / "shards"), prepared)
        assert prepared.stat().st_mtime_ns == time
        assert cache.open_case(prepared, "c2").read((0, 0, 0), (3, 3, 3))[0].shape == (1, 3, 3, 3)
    finally:
        prepared.write_text(content)


def test_addresses_that_cannot_be_written_are_refused(prepared, tmp_path):
    with pytest.raises(Refusal, match="give this as --root"):
        pack.run(prepared, "https://example.org/x", tmp_path / "far.json")
    with pytest.raises(Refusal, match="nosuch://x cannot be"):
        pack.run(prepared, "nosuch://x", tmp_path / "far.json")
    assert not list(Path(tmp_path).iterdir())
