"""The page on speed shows what the benchmarks' files hold."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables():
    """Loads `benchmarks/tables.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_files_say():
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/tables.py"


def test_a_page_that_differs_is_found_and_mended(tables):
    page = tables.PAGE.read_text(encoding="utf-8")
    stale = page.replace("≤ 0.90", "≤ 0.95")
    assert stale != page
    assert tables.filled(stale) == page
    with pytest.raises(SystemExit, match="0 places for the table 'gpu'"):
        tables.filled(page.replace("<!-- gpu -->", ""))


def test_what_a_device_measured_becomes_a_table(tables, tmp_path, monkeypatch):
    mode = {"precision": "bf16", "compiled": True, "ms": 12.34, "samples_per_second": 162.0, "mfu": 0.456, "busy": 0.98}
    full = {"precision": "fp32", "compiled": False, "absent": "does not fit the device's memory"}
    arm = {"method": "mae", "backbone": "vit_base", "check": {"right": True}}
    arm["modes"] = [full, mode | {"peak_memory_bytes": 3 * 2**30}]
    told = {"device": "a GPU", "torch": "2.13.0", "date": "2026-11-21", "arms": [arm]}
    (tmp_path / "gpu.json").write_text(json.dumps(told))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.gpu()
    assert "| mae | vit_base | bf16 compiled | 12.3 | 162 | 46% | 98% | 3.0 | right |" in text
    assert "| mae | vit_base | fp32 eager | does not fit the device's memory |" in text
    assert text.endswith("a GPU, torch 2.13.0, 2026-11-21.")
