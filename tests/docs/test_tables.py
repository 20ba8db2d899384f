"""The tables of the docs show what the files hold that commands made."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "tables.py"


@pytest.fixture
def tables():
    """Loads `docs/tables.py`, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_what_the_files_say():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_page_that_differs_is_found_and_mended(tables):
    page = (tables.DOCS / "performance.md").read_text(encoding="utf-8")
    stale = page.replace("≤ 0.90", "≤ 0.95")
    assert stale != page
    assert tables.filled("performance.md", stale) == page
    with pytest.raises(SystemExit, match="0 places for the table 'gpu'"):
        tables.filled("performance.md", page.replace("<!-- gpu -->", ""))


def test_what_a_device_measured_becomes_a_table(tables, tmp_path, monkeypatch):
    run = {"ms": 12.34, "ms_from_host": 12.5, "samples_per_second": 162.0, "mfu": 0.456, "busy": 0.98, "launches": 321}
    arm = {"method": "mae", "backbone": "vit_base", "check": {"right": True}}
    arm["ways"] = {"bf16 compiled": run | {"peak_memory_bytes": 3 * 2**30}, "fp32 eager": {"absent": "does not fit"}}
    told = {"device": "a GPU", "torch": "2.13.0", "date": "2026-11-21", "arms": [arm]}
    told["peers"] = {"mae shipped": {"ms": 30.0, "samples_per_second": 5.0, "peak_memory_bytes": 2**30}}
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu.json").write_text(json.dumps(told))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.gpu()
    assert "| mae | vit_base | bf16 compiled | 12.3 | 12.5 | 162 | 46% | 98% | 321 | 3.0 | right |" in text
    assert "| mae | vit_base | fp32 eager | does not fit |" in text
    assert "| mae | the authors' code | shipped | 30.0 |  | 5 |  |  |  | 1.0 |  |" in text
    assert text.endswith("a GPU, torch 2.13.0, 2026-11-21.")


def test_a_studys_tables_become_a_line_per_init_and_a_column_per_budget(tables, tmp_path, monkeypatch):
    folder = tmp_path / "hippocampus"
    folder.mkdir()
    (folder / "curves.csv").write_text(
        "cohort,backbone,init,budget,class,metric,mean,low,high,cases,seeds\n"
        "test,vit,glmae,16,mean,dice,0.8123,0.80,0.82,50,3\n"
        "test,vit,scratch,4,mean,dice,0.5,0.4,0.6,50,3\n"
        "test,vit,scratch,4,mean,nsd,0.1,0.1,0.1,50,3\n"
        "external,vit,scratch,4,mean,dice,0.1,0.1,0.1,50,3\n"
    )
    (folder / "contrasts.csv").write_text(
        "cohort,backbone,init,against,budget,metric,difference,low,high,verdict\n"
        "test,vit,glmae,scratch,4,dice,-0.0123,-0.02,-0.001,worse\n"
        "test,vit,glmae,scratch,16,dice,-0.0123,-0.02,0.001,not separated\n"
    )
    (folder / "labels_saved.csv").write_text(
        "backbone,init,metric,budget,kind,labels,low,high,high_kind\n"
        "vit,glmae,dice,4,about,7.6,4,16,above\n"
        "vit,glmae,dice,16,below,4,4,5.2,about\n"
    )
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    lines = tables.dice().splitlines()
    assert lines[0] == "| backbone | init | 4 labels | 16 labels |"
    assert lines[2:4] == [
        "| `vit` | scratch | 0.500 (0.400 to 0.600) |  |",
        "| `vit` | GL-MAE |  | 0.812 (0.800 to 0.820) |",
    ]
    assert lines[-1] == "50 test patients, 3 seeds, 95 % intervals."
    worse, open_ = "-0.012 (-0.020 to -0.001) **worse**", "-0.012 (-0.020 to +0.001) not separated"
    assert tables.contrasts().splitlines()[-1] == f"| `vit` | GL-MAE minus scratch | {worse} | {open_} |"
    assert tables.saved().splitlines()[-1] == "| `vit` | GL-MAE | 8 (4 to more than 16) | fewer than 4 (4 to 5) |"


def test_slim_decoders_stand_beside_full_ones_with_their_share_of_a_step(tables, tmp_path, monkeypatch):
    folder = tmp_path / "hippocampus_decoders"
    folder.mkdir()
    costs = {"mae": (1000, 400), "mae_slim": (700, 70)}
    arms = [
        {"backbone": "vit", "init": init, "method": "mae", "flops_per_step": all_, "decoder_flops_per_step": own}
        for init, (all_, own) in costs.items()
    ]
    # Counted and not trained: a line without scores.
    arms.append(
        {"backbone": "vit", "init": "glmae", "method": "glmae", "flops_per_step": 9, "decoder_flops_per_step": 3}
    )
    (folder / "decoders.json").write_text(json.dumps({"arms": arms}))
    (folder / "curves.csv").write_text(
        "cohort,backbone,init,budget,class,metric,mean,low,high,cases,seeds\n"
        "test,vit,mae_slim,8,mean,dice,0.81,0.80,0.82,50,3\n"
        "test,vit,mae,8,mean,dice,0.82,0.81,0.83,50,3\n"
        "test,vit,scratch,8,mean,dice,0.5,0.4,0.6,50,3\n"
    )
    (folder / "contrasts.csv").write_text(
        "cohort,backbone,init,against,budget,metric,difference,low,high,verdict\n"
        "test,vit,mae,scratch,8,dice,0.32,0.3,0.4,better\n"
        "test,vit,mae_slim,scratch,8,dice,0.31,0.3,0.4,better\n"
        "test,vit,mae_slim,mae,8,dice,-0.01,-0.02,0.001,not separated\n"
    )
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    lines = tables.decoders().splitlines()
    assert lines[2:6] == [
        "| `vit` | scratch |  |  | 0.500 (0.400 to 0.600) |  |",
        "| `vit` | MAE3D | 40% | 1.00 | 0.820 (0.810 to 0.830) |  |",
        "| `vit` | MAE3D, slim | 10% | 0.70 | 0.810 (0.800 to 0.820) | -0.010 (-0.020 to +0.001) |",
        "| `vit` | GL-MAE | 33% | 1.00 |  |  |",
    ]
    assert lines[-1] == "50 test patients, 3 fine-tuning seeds, 95 % intervals."
