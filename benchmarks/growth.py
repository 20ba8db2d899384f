"""Takes the parts of a study that look at every case to 100,000 cases: `python benchmarks/growth.py`.

Headers, hashes and names are made up; each part runs in a process of its own, at 1,000, 10,000 and 100,000 cases. Told
are processor microseconds a case and bytes of memory a case beyond what the process had before. A part is flat if the
largest count costs at most twice as much a case as the middle one.

The last part, `ranges`, reads crops of one prepared volume from a file of its own, a shard, a web server and a bucket,
both on this machine: requests and bytes a crop, and time against the local file; and how many answers a crop waits for
one after another, found by answers that come three seconds late, beside which this machine's own time is little. The
bucket needs moto[server] and s3fs, and is left out without them. `--only ranges` measures this part anew and keeps the
others.
"""

import argparse
import ast
import ctypes
import gc
import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COUNTS = [1_000, 10_000, 100_000]
FLAT = 2.0
CLASSES = 14


def sha(text: str) -> str:
    """Makes up a hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def rows(count: int) -> list[dict[str, Any]]:
    """Makes up a case table; every fifth patient has two scans, every tenth scan labels."""
    return [
        {
            "case": f"case_{n:06d}",
            "dataset": "many",
            "patient": f"p{n - (n % 10 == 1):06d}",
            "person": f"many/p{n - (n % 10 == 1):06d}",
            "image": f"data/raw/many/files/images/case_{n:06d}.nii.gz",
            "label": "" if n % 10 else f"data/raw/many/files/labels/case_{n:06d}.nii.gz",
            "simulated": "false",
            "shape_zyx": "240 512 512",
            "spacing_zyx_mm": "1.5 0.78125 0.78125",
            "content_sha256": sha(f"c{n}"),
            "twin_sha256": sha(f"t{n}"),
            "repairs": "",
        }
        for n in range(count)
    ]


def index_of(count: int) -> dict[str, Any]:
    """Makes up the index of a prepared dataset."""
    grid = {"size_xyz": [266, 266, 240], "spacing_xyz_mm": [1.5] * 3, "origin_xyz_mm": [-199.61, -199.61, -1290.25]}
    grid["direction"] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    cases = [
        {
            "case": row["case"],
            "patient": row["patient"],
            "person": row["person"],
            "shape_zyx": [240, 266, 266],
            "spacing_zyx_mm": [1.5, 1.5, 1.5],
            "image": f"volumes/{row['case']}.b2nd",
            "image_sha256": row["content_sha256"],
            "label": f"volumes/{row['case']}.label.b2nd" if row["label"] else None,
            "label_sha256": row["twin_sha256"] if row["label"] else None,
            "class_voxels": [(number * 7919 + k * 104729) % 90_000 if row["label"] else 0 for k in range(CLASSES)],
            "raw_image": row["image"],
            "raw_label": row["label"] or None,
            "raw": grid,
            "grid": grid,
        }
        for number, row in enumerate(rows(count))
    ]
    return {"format": 2, "dataset": "many", "key": "0" * 16, "quantum": 1 / 4096, "channels": ["image"], "cases": cases,
            "classes": list(range(1, CLASSES + 1)), "simulated": False, "data": {}}  # fmt: skip


Part = Callable[[int, Path], Iterator[None]]  # what comes before its `yield` is not measured


def listing(count: int, here: Path) -> Iterator[None]:
    """Names and sizes of scans used in place, as each planning looks at them."""
    source = (ROOT / "workflow" / "rules" / "common.smk").read_text(encoding="utf-8")
    wanted = [
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom)
    ]
    wanted = [n for n in wanted if getattr(n, "name", None) in ("listing", "card_hash") or "snake" not in ast.dump(n)]
    known = {"listing", "card_hash"}
    body = [n for n in wanted if not isinstance(n, ast.FunctionDef) or n.name in known]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(body, []), "common.smk", "exec"), names)
    for n in range(count):
        place = here / "scans" / f"{n // 1000:03d}"
        if n % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"case_{n:06d}.nii.gz").touch()
    yield
    names["listing"]({"kind": "folder", "path": str(here / "scans")})


def manifest(count: int, here: Path) -> Iterator[None]:
    """Reading a manifest and finding the cases in it."""
    from types import SimpleNamespace

    from voxprior.data import layouts
    from voxprior.data.files import sha256_of_json
    from voxprior.data.manifest import files_of, read_manifest
    from voxprior.whole import write_json

    names = [f"files/{kind}s/case_{n:06d}.nii.gz" for kind in ("image", "label") for n in range(count)]
    files = [{"path": name, "bytes": 80_000_000, "sha256": sha(name)} for name in names]
    content = {"format": 1, "dataset": "many", "root": "files", "simulated": False, "archives": [], "files": files}
    write_json(here / "manifest.json", content | {"files_sha256": sha256_of_json(files)})
    del files, content
    yield
    where = SimpleNamespace(kind="folder", root=".", images="images/{case}.nii.gz", labels="labels/{case}.nii.gz")
    root, found = files_of(read_manifest(here / "manifest.json"), here / "manifest.json")
    assert len(layouts.list_cases(where, root, found)) == count


def remembered(count: int, here: Path) -> Iterator[None]:
    """Intake run again with nothing to do: every case is known. Files are made up, so their state is too."""
    import numpy as np

    from voxprior.data import fingerprint, intake
    from voxprior.data.entries import Entry
    from voxprior.data.remembered import Memory

    table, chance = rows(count), np.random.default_rng(0)
    hashes = {row["image"]: row["content_sha256"] for row in table}
    memory = Memory(here / "examined.jsonl", hashes, {})
    state = os.stat(ROOT / "pyproject.toml")
    Path.stat = lambda self, **_: state  # type: ignore[method-assign, assignment]
    with open(here / "examined.jsonl", "w", encoding="utf-8") as file:
        taken = [float(value) for value in chance.integers(-1000, 2000, fingerprint.SAMPLES)]
        told = {"size_zyx_vox": [240, 512, 512], "spacing_zyx_mm": [1.5, 0.78125, 0.78125]}
        same = json.dumps(told | {"channels": [{"all": taken}]})
        for row in table:
            key = intake._key(Entry(row["case"], row["image"], None), Path(), intake.Notes(memory=memory))
            file.write(f'{{"key": "{key}", "kept": [{json.dumps(row)}, {same}]}}\n')
    entries = [Entry(row["case"], row["image"], None) for row in table]
    del table
    yield
    notes = intake.Notes(memory=Memory(here / "examined.jsonl", hashes, {}), thin=intake.thinning(count))
    looked = list(intake.examine(entries, Path(), intake.Identity("many"), notes=notes))
    assert len(looked) == count
    intensity = fingerprint.summarise("many", "ct", [notes.measures[row["case"]] for _, row in looked], ["image"])
    assert intensity["cases"] == count


def split(count: int, here: Path) -> Iterator[None]:
    """Five folds, budgets up to a hundredth of the labelled cases."""
    from voxprior.maths import splits

    known = [
        splits.Case(case["case"], case["patient"], case["person"], case["label"] is not None,
                    frozenset(k for k, voxels in enumerate(case["class_voxels"], 1) if voxels > 30_000))
        for case in index_of(count)["cases"]
    ]  # fmt: skip
    yield
    splits.split(known, count // 100, count // 100, [1, 2, 5], folds=5)


def leakage(count: int, here: Path) -> Iterator[None]:
    """The gate between half of the cases, in five folds, an external dataset and a pool."""
    from voxprior.data.leakage import find_overlaps

    table = rows(count)
    own, pool, outside = table[: count // 2], table[count // 2 : -count // 10], table[-count // 10 :]
    names = [row["case"] for row in own]
    tenth = len(names) // 10
    folds = [
        {"fold": fold, "test": names[fold * tenth : (fold + 1) * tenth], "val": [],
         "train": names[: fold * tenth] + names[(fold + 1) * tenth :],
         "pool": names[: fold * tenth] + names[(fold + 1) * tenth :]}
        for fold in range(5)
    ]  # fmt: skip
    yield
    find_overlaps(folds, [own, outside], [pool])


def opened(count: int, here: Path) -> Iterator[None]:
    """What a training does before its first batch: the index, the fold, the hash of what is learned from, the plan."""
    from voxprior.data import cache, loaders
    from voxprior.maths.boxes import Region
    from voxprior.whole import write_json

    write_json(here / "index.json", index_of(count))
    yield
    names = [case["case"] for case in cache.read_index(here / "index.json")["cases"]]
    cache.content_key(here / "index.json", names)
    loaders.regions(here / "index.json", names, Region((96, 96, 96)), seed=0, batch_size=2, steps=10)


def worker(count: int, here: Path) -> Iterator[None]:
    """What each reading process does before its first sample: takes the plan, reads the index."""
    from voxprior.data import cache, loaders
    from voxprior.maths.boxes import Region
    from voxprior.whole import write_json

    write_json(here / "index.json", index_of(count))
    names = [f"case_{n:06d}" for n in range(count)]
    plan = pickle.dumps(
        loaders.regions(here / "index.json", names, Region((96, 96, 96)), seed=0, batch_size=2, steps=9)
    )
    del names
    cache._read_index.cache_clear()
    cache._read_cases.cache_clear()
    yield
    cache.find_case(pickle.loads(plan).index_path, "case_000000")


def sampler(count: int, here: Path) -> Iterator[None]:
    """One pass: which case each sample reads. Told a sample; the order is drawn once."""
    from voxprior.data import loaders
    from voxprior.maths.boxes import Region
    from voxprior.whole import write_json

    write_json(here / "index.json", index_of(count))
    names = [f"case_{n:06d}" for n in range(count)]
    plan = loaders.regions(here / "index.json", names, Region((96, 96, 96)), seed=0, batch_size=2, steps=count)
    yield
    assert len({plan.case_at(position)[1] for position in range(count)}) == count


def table(count: int, here: Path) -> Iterator[None]:
    """Writing and reading the case table."""
    from voxprior.commands import intake, split
    from voxprior.data.intake import CASES

    made = rows(count)
    yield
    (here / "cases.csv").write_text(intake._table(CASES, made), encoding="utf-8")
    del made
    assert len(split._read_table(here / "cases.csv")) == count


PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (listing, manifest, remembered, table, split, leakage, opened, worker, sampler)
}  # fmt: skip


def one(name: str, count: int) -> dict[str, Any]:
    """Measures a part in this process."""
    with tempfile.TemporaryDirectory() as folder:
        steps = PARTS[name](count, Path(folder))
        next(steps)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what making things up has left is given back
        before, began = _resident(), time.process_time()
        _forget_peak()
        for _ in steps:
            pass
        return {"cpu_s": time.process_time() - began, "bytes": max(0, _peak() - before)}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


class Answers(BaseHTTPRequestHandler):
    """Serves files of the working folder by ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Answers with the range that was asked for."""
        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        with open(self.path.lstrip("/"), "rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


LATE_S, LATE_CROPS = 3.0, 5


def serve(port: Any, late_s: Any) -> None:
    """Serves files in a process of its own, so that its time is not counted."""

    class Late(Answers):
        def do_GET(self) -> None:
            time.sleep(late_s.value)
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Late)
    port.put(server.server_port)
    server.serve_forever()


def serve_bucket(port: Any, late_s: Any) -> None:
    """Serves S3 in a process of its own, over connections that stay open as those of real stores do."""
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    bucket = DomainDispatcherApplication(create_backend_app)

    def late(environ: Any, start_response: Any) -> Any:
        time.sleep(late_s.value)
        return bucket(environ, start_response)

    server = make_server("127.0.0.1", 0, late, threaded=True)
    port.put(server.server_port)
    server.serve_forever()


def with_bucket() -> bool:
    """Says whether there is what serves and reads a bucket; settings that would lead elsewhere are put aside."""
    from importlib.util import find_spec

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        del os.environ[name]
    os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    os.environ |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return bool(find_spec("moto") and find_spec("s3fs"))


def packed(index: Path, servers: dict[str, str]) -> list[str]:
    """Packs a dataset into a folder and a bucket, with an index for each way to read it: their names."""
    import fsspec

    from voxprior.commands import pack

    here = index.parent
    pack.run(index, str(here), here / "shard.json")
    pack.run(index, str(here), here / "server.json", root=servers["server"])
    if "bucket" in servers:
        fsspec.config.conf["s3"] = {"endpoint_url": servers["bucket"]}
        fsspec.filesystem("s3").mkdir("crops")
        pack.run(index, "s3://crops/many", here / "bucket.json")
    return ["index", "shard", *servers]


def ranges(crops: int = 40) -> dict[str, Any]:
    """Reads 96^3 crops of a volume of 240 x 266 x 266: its own file, a shard, one behind a server, one in a bucket."""
    import multiprocessing

    import numpy as np

    from voxprior.data import cache, shards

    chance, shape = np.random.default_rng(0), (240, 266, 266)
    image = np.clip(chance.normal(2000, 20, (1, *shape)), 0, 4095).astype(np.int16)
    image[:, :, :40] = image[:, :, -40:] = 0  # air, a third
    told: dict[str, Any] = {"crops": crops, "crop_vox": 96, "shape_zyx": shape, "late_s": LATE_S}
    asked: list[int] = []
    real = shards._read_once

    def counted(url: str, wanted: Any) -> list[bytes]:
        asked.extend(end - start for start, end in wanted)
        return real(url, wanted)

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        os.chdir(here)
        content = index_of(1)
        entry = content["cases"][0] | {"label": None, "label_sha256": None}
        entry["image_sha256"] = cache.write_array(here / entry["image"], image, content["key"])
        (here / "index.json").write_text(json.dumps({**content, "cases": [entry]}))
        told["file_bytes"] = (here / entry["image"]).stat().st_size
        context = multiprocessing.get_context("fork")
        late_s, servers, running = context.Value("d", 0.0), {}, []
        for name, serves in {"server": serve, **({"bucket": serve_bucket} if with_bucket() else {})}.items():
            port = context.Queue()
            running.append(context.Process(target=serves, args=(port, late_s), daemon=True))
            running[-1].start()
            servers[name] = f"http://127.0.0.1:{port.get()}"
        names = packed(here / "index.json", servers)
        shards._read_once = counted
        corners = [tuple(int(n) for n in chance.integers(0, np.array(shape) - 95)) for _ in range(crops)]

        def read(name: str, count: int = crops) -> tuple[float, float, list[Any]]:
            cpu, walls, boxes = time.process_time(), [], []
            for corner in corners[:count]:
                cache._open.cache_clear()  # among 100,000 cases none is met again soon
                shards.open_array.cache_clear()
                began = time.perf_counter()
                boxes.append(cache.open_case(here / f"{name}.json", entry["case"]).read(corner, (96, 96, 96))[0])
                walls.append(time.perf_counter() - began)
            return (time.process_time() - cpu) / count, float(np.median(walls)), boxes

        seen = []
        for name in names:
            read(name)  # connections and drivers are there
            asked.clear()
            cpu_s, wall_s, boxes = read(name)
            told[name] = {
                "cpu_ms": round(cpu_s * 1000, 2),
                "wall_ms": round(wall_s * 1000, 2),
                "requests": round(len(asked) / crops, 1),
                "bytes": round(sum(asked) / crops),
            }
            if name in servers:
                late_s.value = LATE_S
                late = read(name, LATE_CROPS)[1]
                late_s.value = 0.0
                told[name]["in_a_row"] = round((late - read(name, LATE_CROPS)[1]) / LATE_S, 2)
            seen.append(boxes)
        told["equal"] = all(np.array_equal(boxes, seen[0]) for boxes in seen)
        for process in running:
            process.terminate()
        os.chdir(ROOT)
    told["cpu_ratio"] = {name: round(told[name]["cpu_ms"] / told["index"]["cpu_ms"], 1) for name in names[1:]}
    return told


def looked() -> dict[str, Any]:
    """Looks at one scan of 128 x 512 x 512 as intake does, from its compressed file: read, checked, hashed."""
    import numpy as np
    import SimpleITK as sitk

    from voxprior.data import intake
    from voxprior.data.entries import Entry

    shape = (128, 512, 512)
    image = np.random.default_rng(0).normal(0, 10, shape).astype(np.int16)
    image[:, :, :80] = image[:, :, -80:] = -1000  # air, a third
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(image), str(path), useCompression=True, compressionLevel=6)
        del image
        began = time.process_time()
        ((kind, _),) = intake.examine([Entry("a", path.name, None)], path.parent, intake.Identity("d"))
        assert kind == "case"
        cpu = time.process_time() - began
        return {"shape_zyx": shape, "cpu_s": round(cpu, 2), "file_bytes": path.stat().st_size}


def measured(name: str, counts: list[int]) -> dict[str, Any]:
    """Measures a part at each count."""
    told: dict[str, Any] = {"part": name, "says": (PARTS[name].__doc__ or "").split("\n")[0], "at": []}
    for count in counts:
        command = [sys.executable, __file__, "--one", name, str(count)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        told["at"].append(
            {
                "cases": count,
                "cpu_s": round(found["cpu_s"], 3),
                "us_a_case": round(found["cpu_s"] / count * 1e6, 2),
                "bytes_a_case": round(found["bytes"] / count),
                "mib": round(found["bytes"] / 2**20, 1),
            }
        )
        print(name, told["at"][-1], file=sys.stderr)
    if len(counts) > 1:
        a, b = (at["us_a_case"] for at in told["at"][-2:])
        told["growth"] = round(b / max(a, 0.01), 2)
        told["flat"] = bool(told["growth"] <= FLAT)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--only", choices=["ranges"], help="measure this anew, and keep the rest of the output")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/benchmarks/growth_cpu.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]))))
        return
    if options.only:
        from machine import write

        kept = json.loads(options.output.read_text(encoding="utf-8"))
        write(options.output, kept | {"ranges": ranges()})
        return
    told: dict[str, Any] = {
        "parts": [measured(name, options.counts) for name in options.parts],
        "ranges": ranges(),
        "intake": looked(),
    }
    import torch
    from machine import describe, write

    told = {"format": 1, **describe(torch.device("cpu")), "flat": FLAT, **told}
    write(options.output, told)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
