"""pack: puts a prepared dataset into shards that are read by byte ranges."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run(index: Path, shards: str, output: Path, root: str | None = None, shard_mb: int = 1000) -> None:
    """Copies every array of a cache into shards, and writes an index that names them; finished shards are kept.

    The arrays stay the same bit by bit, and so does what was learned from them: an index that is replaced keeps its
    time of change, and no job runs again. The cache's own files may be deleted then.

    Args:
        index: of the prepared dataset.
        shards: folder or URL that the shards are written to.
        output: the new index; may be `index`.
        root: folder or URL that they are read from; default: `shards`.
        shard_mb: about how large a shard is, in MB. One is made at a time, beside `output`.

    Raises:
        Refusal: the index is of a packed dataset already; a file is damaged; the shards cannot be written.
        Resumable: the storage cannot be reached.
    """
    from voxprior.data import cache
    from voxprior.data import shards as packing
    from voxprior.data.files import sha256_of_json
    from voxprior.engine.journal import progress
    from voxprior.errors import Refusal
    from voxprior.whole import add_line, read_lines, write_json

    packing.check(shards)  # refused now, if it is
    content, changed = cache.read_index(index), index.stat()
    if "shards" in content:
        raise Refusal(f"{index} is of a dataset that is packed already: give the one that 'prepare' wrote")
    entries = {entry["case"]: dict(entry) for entry in content["cases"]}
    sizes = {case: _bytes_of(index.parent, entry) for case, entry in entries.items()}
    notes = output.with_name(output.name + ".packing.jsonl")
    done = {line["made_of"]: line for line in read_lines(notes)}
    planned = packing.plan(sizes, shard_mb * 10**6)
    files = []
    for number, cases in enumerate(progress(planned, len(planned), f"pack {content['dataset']}")):
        file = f"shard-{number:05d}.bin"
        hashes = [[case, entries[case]["image_sha256"], entries[case]["label_sha256"]] for case in cases]
        made_of = sha256_of_json([shards, file, content["key"], hashes])
        told = done.get(made_of)
        if told is None or packing.size_of(shards, file) != told["bytes"]:
            told = {"made_of": made_of, **_make(index, cases, shards, file, output.with_name(f"{output.name}.{file}"))}
            add_line(notes, told)
        files.append({"file": file, "bytes": told["bytes"]})
        for case, places in zip(cases, told["places"], strict=True):
            entries[case] |= places
    where = root or shards
    shown = where if "://" in where else os.path.relpath(where, output.parent)
    packed = {"root": shown, "files": files}
    write_json(output, {**content, "shards": packed, "cases": list(entries.values())})
    if output.resolve() == index.resolve():
        os.utime(output, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    notes.unlink(missing_ok=True)
    print(f"{output}: {len(entries)} cases in {len(files)} shards, {sum(file['bytes'] for file in files):,} bytes")


def _bytes_of(folder: Path, entry: dict[str, Any]) -> int:
    paths = [folder / entry[kind] for kind in ("image", "label") if entry[kind]]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _make(index: Path, cases: Sequence[str], root: str, file: str, here: Path) -> dict[str, Any]:
    """Makes one shard and sends it: {"bytes", "places": [{"image_at", "label_at"} per case]}."""
    from voxprior.data import cache, shards

    places = []
    try:
        with open(here, "wb") as shard:
            for case in cases:
                opened = cache.open_case(index, case)
                image = shards.append(shard, file, opened.image)
                label = None if opened.label is None else shards.append(shard, file, opened.label)
                places.append({"image_at": image, "label_at": label})
        shards.send(here, root, file)
        return {"bytes": here.stat().st_size, "places": places}
    finally:
        here.unlink(missing_ok=True)
