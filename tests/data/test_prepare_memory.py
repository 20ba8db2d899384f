import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("to_mm", [1.5, 0.8])
def test_a_case_takes_no_more_memory_than_promised(tmp_path, to_mm):
    """The case of 512 x 512 x 2400 is measured by benchmarks/large.py itself; this is a tenth of it."""
    command = [sys.executable, ROOT / "benchmarks/large.py", "--shape", "240 512 512", "--to-mm", str(to_mm)]
    subprocess.run([*command, "--output", tmp_path / "told.json"], check=True, capture_output=True)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["peak_bytes"] <= min(told["promised_bytes"], told["need_bytes_foretold"])
    assert told["peak_bytes"] > 2 * 240 * 512 * 512  # the scan itself
