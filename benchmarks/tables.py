"""Writes the tables of docs/performance.md from the JSON files of the benchmarks: `python benchmarks/tables.py`.

A table stands between `<!-- <name> -->` and `<!-- end -->`; everything else on the page is left alone. `--check` writes
nothing and ends with code 1 where the page and the files differ.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "docs" / "results" / "benchmarks"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Writes a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps() -> str:
    """Training steps on a CPU: one line per ratio of `steps_cpu.json`."""
    told = json.loads((RESULTS / "steps_cpu.json").read_text(encoding="utf-8"))
    rows = []
    for ratio in told["ratios"]:
        goal = "" if ratio["goal"] is None else f"≤ {ratio['goal']:.2f}, {'met' if ratio['met'] else 'not met'}"
        rows.append(
            [
                ratio["of"],
                ratio["to"],
                f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                f"{ratio['flops_ratio']:.2f}",
                goal,
            ]
        )
    where = f"{told['device']}, {told['threads']} thread, torch {told['torch']}, {told['date']}"
    head = ["a step of", "against one of", "processor time (least to most)", "FLOPs", "goal"]
    return f"{table(head, rows)}\n\n{where}, median over {rounds(told)} rounds."


def rounds(told: dict[str, Any]) -> int:
    """Counts the rounds of a measurement."""
    return min(len(arm["rounds"]) for arm in told["arms"].values())


def gpu() -> str:
    """Steps at paper size: predicted, or measured on the device that `gpu*.json` names."""
    parts = []
    for path in sorted(RESULTS.glob("gpu*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        parts.append(measured(told) if told.get("measured", True) else predicted(told))
    return "\n\n".join(parts)


def predicted(told: dict[str, Any]) -> str:
    """One line per method and backbone; nothing of it was run."""
    rows = [
        [
            arm["method"],
            arm["backbone"],
            str(arm["samples"]),
            f"{arm['parameters'] / 1e6:.1f}",
            f"{arm['flops'] / 1e12:.2f}",
            f"{arm['memory_bytes'] / 2**30:.1f}",
            f"{arm['ms']:.0f}" if arm["ms"] >= 10 else f"{arm['ms']:.1f}",
        ]
        for arm in sorted(told["arms"], key=lambda arm: (arm["method"], arm["backbone"]))
    ]
    head = ["method", "backbone", "samples a step", "million parameters", "TFLOP a step", "GiB", "ms a step"]
    says = (
        "**Predicted, not measured**: FLOPs and memory counted on the meta device, milliseconds at "
        f"{told['mfu']:.0%} of {told['peak_tflops']:.0f} TFLOP/s."
    )
    return f"{table(head, rows)}\n\n{says}"


def measured(told: dict[str, Any]) -> str:
    """One line per method, backbone, precision and way of running."""
    rows = []
    for arm in sorted(told["arms"], key=lambda arm: (arm["method"], arm["backbone"])):
        for mode in arm["modes"]:
            way = f"{mode['precision']} {'compiled' if mode['compiled'] else 'eager'}"
            if "absent" in mode:
                rows.append([arm["method"], arm["backbone"], way, mode["absent"], "", "", "", ""])
                continue
            share = ["" if mode[name] is None else f"{mode[name]:.0%}" for name in ("mfu", "busy")]
            numbers = [f"{mode['ms']:.1f}", f"{mode['samples_per_second']:.0f}", *share]
            memory = f"{mode['peak_memory_bytes'] / 2**30:.1f}"
            rows.append([arm["method"], arm["backbone"], way, *numbers, memory, right(arm)])
    head = ["method", "backbone", "way", "ms a step", "samples/s", "MFU", "device busy", "GiB", "numbers"]
    return f"{table(head, rows)}\n\n{told['device']}, torch {told['torch']}, {told['date']}."


def right(arm: dict[str, Any]) -> str:
    """Says whether the arm's numbers were found right before it was timed."""
    return "right" if arm["check"]["right"] else "not right"


TABLES = {"steps": steps, "gpu": gpu}


def filled(page: str) -> str:
    """Returns the page with all its tables renewed."""
    for name, make in TABLES.items():
        place = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = f"\\1{make()}\n\\2"
        page, count = re.subn(place, text, page, flags=re.S)
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table '{name}': give it one")
    return page


def main() -> None:
    """Renews the page, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; code 1 where page and files differ")
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if parser.parse_args().check:
        raise SystemExit(new != page)
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
