import json

import pytest

from voxprior.data import intake, phantoms
from voxprior.data.entries import Entry
from voxprior.data.files import sha256_of
from voxprior.data.remembered import Memory


@pytest.fixture
def root(tmp_path):
    return phantoms.write_folder(tmp_path / "scans", cases=3)


def look(root, seen, monkeypatch, settings=None, classes=None):
    """Runs intake; lists the cases that it really looked at."""
    names = [f"phantom_{number:03d}" for number in range(3)]
    entries = [Entry(name, f"images/{name}.nii.gz", f"labels/{name}.nii.gz") for name in names]
    files = [path.relative_to(root).as_posix() for path in root.rglob("*.nii.gz")]
    memory = Memory(root.parent / "examined.jsonl", {file: sha256_of(root / file) for file in files}, settings)
    before, seen[:] = intake._row, []
    with monkeypatch.context() as patched:
        patched.setattr(intake, "_row", lambda entry, *rest: (seen.append(entry.case), before(entry, *rest))[1])
        notes = intake.Notes(classes=classes or {"one": [1, 2, 3]}, samples=100, memory=memory)
        return list(intake.examine(entries, root, intake.Identity("d"), None, notes)), notes.measures


def test_a_second_run_looks_at_changed_cases_only_and_says_the_same(root, monkeypatch):
    seen = []
    first, measures = look(root, seen, monkeypatch)
    assert len(seen) == 3
    again, same = look(root, seen, monkeypatch)
    assert again == first and not seen
    assert same.keys() == measures.keys() and len(same) == 3
    for case, told in measures.items():
        (before,), (after,) = told["channels"], same[case]["channels"]
        assert {kind: some.tolist() for kind, some in after.items()} == {k: v.tolist() for k, v in before.items()}
        assert {**same[case], "channels": 0} == {**told, "channels": 0}
    label = root / "labels/phantom_001.nii.gz"
    label.write_bytes((root / "labels/phantom_002.nii.gz").read_bytes())
    look(root, seen, monkeypatch)
    assert seen == ["phantom_001"]
    look(root, seen, monkeypatch, settings={"patient": "x"})
    assert len(seen) == 3


def test_an_interrupted_line_and_a_broken_case_are_looked_at_again(root, monkeypatch):
    seen, lines = [], root.parent / "examined.jsonl"
    look(root, seen, monkeypatch)
    content = lines.read_text()
    lines.write_text(content[:-40])
    look(root, seen, monkeypatch)
    assert seen == ["phantom_002"]
    (root / "images/phantom_000.nii.gz").write_bytes(b"")
    for _ in range(2):
        found, _ = look(root, seen, monkeypatch)
        assert seen == ["phantom_000"] and found[0][0] == "quarantine"
    assert all(json.loads(line)["key"] for line in content.splitlines())


def test_a_file_that_is_gone_or_unknown_has_no_name(root):
    memory = Memory(root.parent / "none.jsonl", {"a": "0"}, None)
    assert memory.key(root, ["a"], None) is None  # in the manifest, not on the disk
    assert memory.key(root, ["images/phantom_000.nii.gz"], None) is None  # the other way round
    assert memory.get(None) is None
    memory.keep(None, "x")
    assert not (root.parent / "none.jsonl").exists()
