"""Shards in a bucket, behind a real S3 interface on the loopback address."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from voxprior.commands import pack, pretrain
from voxprior.data import cache, loaders, shards
from voxprior.errors import EXIT_REFUSED, EXIT_RESUMABLE, Refusal, Resumable
from voxprior.maths.boxes import Region

INSTEAD = "not installed: test_shards.py reads the same shards from a folder, fsspec's memory and a web server"
moto_app = pytest.importorskip("moto.moto_server.werkzeug_app", reason=f"moto[server] is {INSTEAD}")
s3fs = pytest.importorskip("s3fs", reason=f"s3fs is {INSTEAD}")

ANSWERS = {
    "slow down": ("503 Slow Down", b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"),
    "no upload": ("404 Not Found", b"<Error><Code>NoSuchUpload</Code><Message>The upload is gone.</Message></Error>"),
}


class Bucket:
    """Serves S3 on the loopback address; `asked` lists requests, `faults` are used up by those that have `only`.

    Faults: 'slow down' (503), 'break' (half of the body, then the connection ends), 'hang' (no answer until the end),
    'no upload' (404).
    """

    def __init__(self):
        from werkzeug.serving import make_server

        self.app = moto_app.DomainDispatcherApplication(moto_app.create_backend_app)
        self.asked, self.faults, self.only, self.over = [], [], "", threading.Event()
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, environ, start_response):
        told = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        self.asked.append(told)
        fault = self.faults.pop(0) if self.faults and self.only in told else ""
        if fault == "hang":
            self.over.wait(20)
        if fault in ANSWERS:
            status, content = ANSWERS[fault]
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
            return [content]
        body = self.app(environ, start_response)
        return self.half(body) if fault == "break" else body

    @staticmethod
    def half(body):
        content = b"".join(body)
        yield content[: len(content) // 2]
        raise ConnectionAbortedError  # the server closes: fewer bytes than it has announced


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty bucket `pot`, found by fsspec's own settings, in this process and in those that it starts."""
    import fsspec

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    made = Bucket()
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1", "FSSPEC_S3_ENDPOINT_URL": made.url, "PYTHONWARNINGS": "ignore",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": made.url})
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr("tenacity.nap.sleep", lambda seconds: None)
    forget()
    fsspec.filesystem("s3").mkdir("pot")
    made.asked.clear()
    yield made
    made.faults.clear()
    made.over.set()
    fsspec.filesystem("s3").rm("pot", recursive=True)
    made.server.shutdown()
    made.server.server_close()
    forget()


def forget():
    s3fs.S3FileSystem.clear_instance_cache()
    shards.open_array.cache_clear()


@pytest.fixture
def far(prepared, bucket, tmp_path):
    pack.run(prepared, "s3://pot/d", tmp_path / "far.json")
    return tmp_path / "far.json"


def regions(index, workers=0):
    plan = loaders.regions(
        index, ["c0", "c1"], Region((96, 96, 96)), seed=1, batch_size=2, steps=3, labels=True, workers=workers
    )
    return [batch for _, _, batch in plan]


def same(first, second):
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_crops_and_batches_from_a_bucket_are_the_local_ones(prepared, far, bucket):
    bucket.asked.clear()
    for name in ("c0", "c1", "c2"):
        local, there = cache.open_case(prepared, name), cache.open_case(far, name)
        for lo, size in (((0, 0, 0), (150, 140, 130)), ((-7, 60, 64), (33, 96, 96)), ((64, 0, 1), (64, 3, 128))):
            for a, b in zip(local.read(lo, size), there.read(lo, size), strict=True):
                assert np.array_equal(a, b)
        if local.label is not None:
            assert np.array_equal(local.places(1), there.places(1))
    assert {told.split("?")[0] for told in bucket.asked} == {"GET /pot/d/shard-00000.bin"}  # and no look at the bucket
    assert same(regions(prepared), regions(far))


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_processes_read_a_bucket_that_this_one_has_read_before(prepared, far, kind, monkeypatch):
    """The driver has a thread of its own, which a forked process does not inherit."""
    assert same(regions(prepared), regions(far))  # the driver's thread runs
    real = loaders.DataLoader
    here = regions(prepared)
    monkeypatch.setattr(loaders, "DataLoader", lambda *a, **k: real(*a, **(k | {"multiprocessing_context": kind})))
    assert same(here, regions(far, workers=2))


def test_training_from_a_bucket_gives_the_same_bytes(prepared, far, tmp_path, monkeypatch):
    recipe = {"lr": 0.003, "weight_decay": 0.01}
    vit = {"patch_vox": 8, "width": 24, "depth": 4, "heads": 2, "mlp_ratio": 2.0, "decoder_channels": 4}
    card = {
        "backbone": "vit_tiny", "family": "vit", "architecture": vit, "recipe": recipe, "fold": 0, "method": "mae",
        "config": {"crop_vox": [16, 16, 16], "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2},
        "pretrain": {"voxels": 4 * 2 * 16**3, "batch_size": 2},
    }  # fmt: skip
    names = ["c0", "c1", "c2"]
    fold = {"fold": 0, "test": names[:1], "val": [], "train": names[1:], "pool": names[1:], "budgets": {"1": ["c1"]}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "splits.json").write_text(json.dumps({"format": 1, "sha256": "", "folds": [fold]}))
    for name, index in (("local", prepared), ("far", far)):
        out, work = tmp_path / name / "out", tmp_path / name / "work"
        pretrain.run(tmp_path / "card.json", [index], tmp_path / "splits.json", out, work, 1, "cpu")
    for file in ("journal.jsonl", "encoder.safetensors"):
        assert (tmp_path / "local/out" / file).read_bytes() == (tmp_path / "far/out" / file).read_bytes()


def test_large_shards_are_sent_in_parts(prepared, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(
        s3fs.core, "calculate_chunksize", lambda size, chunksize=None: 5 << 20
    )  # the least; else 50 MiB
    bucket.faults, bucket.only = ["slow down"], "partNumber=2"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    forget()
    pack.run(prepared, "s3://pot/d", tmp_path / "far.json")
    assert {f"partNumber={n}" in " ".join(bucket.asked) for n in (1, 2, 3)} == {True}
    assert not bucket.faults
    assert same(regions(prepared), regions(tmp_path / "far.json"))
    bucket.faults, bucket.only = ["no upload"], "POST /pot/e/shard-00000.bin?uploadId"
    with pytest.raises(Resumable, match="The upload is gone"):
        pack.run(prepared, "s3://pot/e", tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_trouble_that_passes_is_waited_for(prepared, far, bucket):
    for faults in (["slow down"] * 3, ["break", "break"]):
        forget()
        bucket.faults = list(faults)
        there = cache.open_case(far, "c0").read((0, 0, 0), (9, 9, 9))[0]
        assert np.array_equal(there, cache.open_case(prepared, "c0").read((0, 0, 0), (9, 9, 9))[0])
        assert not bucket.faults


@pytest.mark.parametrize("fault", ["slow down", "break"])
def test_trouble_that_stays_says_what_to_do(far, bucket, fault):
    bucket.faults = [fault] * 50
    with pytest.raises(Resumable, match=r"^s3://pot/d/shard-00000.bin cannot be read [^\n]*: check the address[^\n]*$"):
        cache.open_case(far, "c0")
    assert 50 - len(bucket.faults) == shards.ATTEMPTS


def test_a_shard_that_is_gone_or_damaged_is_refused(far, bucket):
    import fsspec

    system = fsspec.filesystem("s3")
    content = bytearray(system.cat_file("pot/d/shard-00000.bin"))
    place = shards.Place(*json.loads(far.read_text())["cases"][0]["image_at"])
    system.pipe_file("pot/d/shard-00000.bin", bytes(content[: place.head + 5]))
    with pytest.raises(Refusal, match="cut short"):
        cache.open_case(far, "c0")
    content[place.start + 1000] ^= 1
    system.pipe_file("pot/d/shard-00000.bin", bytes(content))
    with pytest.raises(Refusal, match="damaged in part 0"):
        cache.open_case(far, "c0").read((0, 0, 0), (9, 9, 9))
    shards.open_array.cache_clear()
    system.rm("pot/d/shard-00000.bin")
    bucket.asked.clear()
    with pytest.raises(Refusal, match=r"s3://pot/d/shard-00000.bin is missing: run 'pack' again"):
        cache.open_case(far, "c0")
    assert len(bucket.asked) == 1
    with pytest.raises(Refusal, match=r"^s3://pot/d/shard-00000.bin is missing: [^\n]*$"):
        regions(far, workers=1)


def test_a_bucket_that_is_not_there_is_not_made(prepared, bucket, tmp_path):
    with pytest.raises(Refusal, match="there is no bucket 'typo': make it, or correct the address"):
        pack.run(prepared, "s3://typo/d", tmp_path / "far.json")
    with pytest.raises(Refusal, match=r"s3://typo/d/x cannot be written \(The specified bucket does not exist\)"):
        shards.send(prepared, "s3://typo/d", "x")
    assert not any(told.startswith("PUT /typo?") or told.startswith("PUT /typo/?") for told in bucket.asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "config", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, {}, "Unable to locate credentials"),
        ({}, {"endpoint_url": "127.0.0.1:9000"}, "Invalid endpoint"),
        ({}, {"endpoint": "http://127.0.0.1:9000"}, "unexpected keyword argument"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(prepared, far, tmp_path, monkeypatch, settings, config, said):
    import fsspec

    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patched:
        patched.setitem(fsspec.config.conf, "s3", fsspec.config.conf["s3"] | config)
        forget()
        for does in (
            lambda: pack.run(prepared, "s3://pot/d", tmp_path / "other.json"),
            lambda: cache.open_case(far, "c0"),
            lambda: shards.size_of("s3://pot/d", "shard-00000.bin"),
        ):
            with pytest.raises(Refusal, match=rf"^s3://pot/d[^\n]*{said}[^\n]*$"):
                does()
    for name in settings:
        monkeypatch.setenv(name, "again")
    forget()


def test_keys_that_the_bucket_does_not_know_are_refused(prepared, far, bucket, monkeypatch):
    def forbidden(environ, start_response):
        code = "SignatureDoesNotMatch" if environ["REQUEST_METHOD"] == "GET" else "InvalidAccessKeyId"
        content = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]

    with monkeypatch.context() as patched:
        patched.setattr(bucket, "app", forbidden)
        bucket.asked.clear()
        with pytest.raises(Refusal, match=r"cannot be read \(No.\): check the address, your access"):
            cache.open_case(far, "c0")
        assert len(bucket.asked) == 1
        with pytest.raises(Refusal, match=r"cannot be written \(No.\)"):
            pack.run(prepared, "s3://pot/e", far.with_name("e.json"))
    assert not far.with_name("e.json").exists()


def test_the_command_line_finds_the_server_by_fsspecs_own_settings(prepared, bucket, tmp_path, monkeypatch):
    def packed(folder):
        command = [sys.executable, "-m", "voxprior", "pack", "--index", str(prepared), "--shards", f"s3://{folder}"]
        return subprocess.run([*command, "--output", str(tmp_path / "far.json")], capture_output=True, text=True)

    monkeypatch.delenv("FSSPEC_S3_ENDPOINT_URL")
    monkeypatch.setenv("FSSPEC_CONFIG_DIR", str(tmp_path / "fsspec"))
    (tmp_path / "fsspec").mkdir()
    (tmp_path / "fsspec" / "s3.json").write_text(json.dumps({"s3": {"endpoint_url": bucket.url}}))
    done = packed("pot/d")
    assert done.returncode == 0, done.stderr
    assert same(regions(prepared), regions(tmp_path / "far.json"))
    done = packed("typo/d")
    assert done.returncode == EXIT_REFUSED
    assert done.stderr.strip() == "voxprior: s3://typo/d: there is no bucket 'typo': make it, or correct the address"
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", "http://127.0.0.1:1")  # nobody answers
    done = packed("pot/d")
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_RESUMABLE, 1), done.stderr


def test_a_killed_packing_leaves_nothing_that_an_index_names_and_goes_on(prepared, bucket, tmp_path):
    bucket.faults, bucket.only = ["hang"], "PUT /pot/d/shard-00001.bin"
    process = multiprocessing.get_context("spawn").Process(
        target=pack.run, args=(prepared, "s3://pot/d", tmp_path / "far.json"), kwargs={"shard_mb": 1}
    )
    process.start()
    until = time.monotonic() + 60
    while bucket.faults and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    bucket.over.set()
    assert not (tmp_path / "far.json").exists()
    bucket.asked.clear()
    pack.run(prepared, "s3://pot/d", tmp_path / "far.json", shard_mb=1)
    sent = sorted({Path(told.split("?")[0]).name for told in bucket.asked if told.startswith("PUT")})
    assert sent == ["shard-00001.bin", "shard-00002.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["far.json"]
    assert same(regions(prepared), regions(tmp_path / "far.json"))
