"""Writes the tables of the docs from the files that commands made: `python docs/tables.py`.

`results.md` shows the tables that `voxprior compare` wrote for a study, the other pages JSON files of `benchmarks/` and
of tests. A table stands between `<!-- <name> -->` and `<!-- end -->`; everything else on a page is left alone.
`--check` writes nothing and ends with code 1 where a page and its files differ.
"""

import argparse
import csv
import json
import math
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Writes a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps() -> str:
    """Training steps on a CPU: one line per ratio of `steps_cpu.json`."""
    told = json.loads((RESULTS / "benchmarks" / "steps_cpu.json").read_text(encoding="utf-8"))
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
    for path in sorted((RESULTS / "benchmarks").glob("gpu*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        parts.append(measured(told) if told.get("measured", True) else predicted(told))
    return "\n\n".join(parts)


def predicted(told: dict[str, Any]) -> str:
    """One line per method and backbone; nothing of it was run."""
    rows = []
    for arm in told["arms"]:
        ways = [(name, arm[name]) for name in told["gpus"]]
        compiled = [ways_of["bf16 compiled"] for _, ways_of in ways]
        peaks = [arm[way]["peak_memory_bytes"] for way in ("bf16 eager", "bf16 compiled")]
        gib = [f"{size / 2**30:.1f}" for size in (*peaks, arm["memory_bytes_recomputed"])]
        rows.append(
            [
                arm["method"],
                arm["backbone"],
                str(arm["samples"]),
                f"{arm['flops'] / 1e12:.2f}",
                " / ".join(gib),
                " / ".join(short(way["ms"]) for way in compiled),
                " / ".join(f"{way['mfu']:.0%}" for way in compiled),
                " / ".join(f"{way['moving_share']:.0%}" for way in compiled),
                f"{compiled[0]['views_share']:.1%}",
                f"{ways[0][1]['bf16 eager']['ms'] / compiled[0]['ms']:.1f}",
                f"{ways[0][1]['fp32 eager']['ms'] / compiled[0]['ms']:.1f}",
            ]
        )
    names = " / ".join(told["gpus"])
    head = [
        "method",
        "backbone",
        "samples",
        "TFLOP",
        "GiB, as written / compiled / recomputed",
        f"ms, {names}",
        "MFU",
        "memory-bound",
        "views",
    ]
    head += ["bf16 eager", "fp32 eager"]
    assumed = told["assumed"]
    launch = assumed["launch_s"]
    says = (
        f"**Predicted, not measured** (`benchmarks/roofline.py`): bfloat16, compiled; products at "
        f"{assumed['products']:.0%} of the bfloat16 peak, bytes at {assumed['bandwidth']:.0%} of the bandwidth, "
        f"{1e6 * launch['bf16 eager']:.0f} µs to launch a kernel as written and {1e6 * launch['bf16 compiled']:.0f} µs "
        "compiled. Memory-bound: share of the step in kernels that wait for memory. Eager: times the compiled step, on "
        f"{next(iter(told['gpus']))}."
    )
    return f"{table(head, rows)}\n\n{says}"


def finetune_gpu() -> str:
    """Steps of fine-tuning on a GPU: predicted, or measured on the device that `finetune_*.json` names."""
    folder, parts = RESULTS / "benchmarks", []
    told = json.loads((folder / "finetune_gpu_predicted.json").read_text(encoding="utf-8"))
    names, rows = list(told["gpus"]), []
    plain, apart = "bf16 compiled", "bf16 compiled, augmentation as written"
    for arm in told["arms"]:
        ways = [arm[name] for name in names]
        names_of = ("memory_bytes", "memory_bytes_compiled", "memory_bytes_recomputed")
        gib = [f"{arm[name] / 2**30:.1f}" for name in names_of]
        rows.append(
            [
                f"`{arm['backbone']}`, {arm['crop_vox']}³ x {arm['samples']}",
                f"{arm['flops'] / 1e12:.2f}",
                " / ".join(gib),
                " / ".join(str(arm["fits"][name]) for name in names),
                " / ".join(short(way[plain]["ms"]) for way in ways),
                " / ".join(f"{way[plain]['samples_per_second']:.0f}" for way in ways),
                " / ".join(f"{way[plain]['mfu']:.0%}" for way in ways),
                " / ".join(f"{way[plain]['augmentation_share']:.1%}" for way in ways),
                f"{ways[0][apart]['augmentation_share']:.0%}",
                f"{ways[0]['bf16 eager']['ms'] / ways[0][plain]['ms']:.1f}",
                f"{ways[0]['fp32 eager']['ms'] / ways[0][plain]['ms']:.1f}",
            ]
        )
    head = ["network, crop, crops a step", "TFLOP", "GiB, as written / compiled / recomputed", "crops that fit"]
    head += [f"ms, {' / '.join(names)}", "crops/s", "MFU", "augmentation", "as written", "bf16 eager", "fp32 eager"]
    parts.append(
        f"{table(head, rows)}\n\n**Predicted, not measured**: bfloat16, compiled, {told['classes']} classes, with what "
        "the table above assumes. Augmentation: share of the step, compiled and, on H100, as written. Eager: times the "
        "compiled step, on H100."
    )
    for path in sorted(folder.glob("finetune_*_paper.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            [f"`{arm['backbone']}`, {arm['crop_vox']}³ x {arm['samples']}", way, *numbers(run), right(arm)]
            for arm in told["arms"]
            for way, run in arm["ways"].items()
        ]
        head = ["network, crop, crops a step", "way", "ms a step", "from host", "crops/s", "MFU", "device busy"]
        parts.append(f"{table([*head, 'kernels', 'GiB', 'numbers'], rows)}\n\n{told['device']}, {told['date']}.")
    return "\n\n".join(parts)


def authors() -> str:
    """Ours beside the authors' steps: predicted, or measured on the device that `gpu*.json` names."""
    parts = []
    for path in sorted((RESULTS / "benchmarks").glob("gpu*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        if peers := told.get("peers"):
            parts.append(beside(told, peers) if told.get("measured", True) else beside_predicted(told, peers))
    return "\n\n".join(parts)


def beside_predicted(told: dict[str, Any], peers: dict[str, Any]) -> str:
    """One line per step of the authors; nothing of it was run."""
    rows, names = [], list(told["gpus"])
    for name, peer in peers.items():
        if "absent" in peer:
            rows.append([name, peer["absent"], *[""] * 8])
            continue
        mine = peer["ours"]
        both = [(peer[gpu]["ms"], mine[gpu]["bf16 compiled"]["ms"]) for gpu in names]
        theirs = peer["peak_memory_bytes"]
        ours = [mine[way]["peak_memory_bytes"] for way in ("bf16 eager", "bf16 compiled")]
        ours.append(mine["memory_bytes_recomputed"])
        rows.append(
            [
                name,
                " / ".join(short(ms) for ms, _ in both),
                " / ".join(short(ms) for _, ms in both),
                " / ".join(f"{ms / own:.1f}" for ms, own in both),
                " / ".join(f"{peer[gpu]['device_ms'] / peer[gpu]['ms']:.0%}" for gpu in names),
                f"{peer['kernels']:,} / {mine['bf16 compiled']['kernels']:,}",
                str(peer["waits"]),
                f"{mine['flops'] / peer['flops']:.2f}",
                " / ".join(f"{size / 2**30:.1f}" for size in (theirs, *ours)),
                " / ".join(f"{size / theirs:.2f}" for size in ours),
            ]
        )
    head = ["the authors' step", f"its ms, {' / '.join(names)}", "ours", "times ours", "its device is busy"]
    head += [
        "kernels, its / ours",
        "its waits",
        "FLOPs, ours to its",
        "GiB: its / ours as written / compiled / recomputed",
        "ours to its",
    ]
    return table(head, rows)


def beside(told: dict[str, Any], peers: dict[str, Any]) -> str:
    """One line per step of the authors that was timed."""
    rows = []
    for name, peer in peers.items():
        mine = peer.get("ours", {})
        if "ms" not in peer or "ms" not in mine:
            rows.append([name, peer.get("absent") or mine.get("absent", "ours was not timed"), "", "", "", ""])
            continue
        memory = [found["peak_memory_bytes"] / 2**30 for found in (peer, mine)]
        rows.append(
            [
                name,
                short(peer["ms"]),
                short(mine["ms"]),
                f"{peer['ms'] / mine['ms']:.1f}",
                f"{memory[0]:.1f} / {memory[1]:.1f}",
                f"{memory[1] / memory[0]:.2f}" if memory[0] else "",
            ]
        )
    head = ["the authors' step", "its ms", "ours", "times ours", "GiB, its / ours", "to its"]
    return f"{table(head, rows)}\n\n{told['device']}, torch {told['torch']}, {told['date']}."


def kinds() -> str:
    """Where the predicted time of a step goes, on the first GPU."""
    told = json.loads((RESULTS / "benchmarks" / "gpu_predicted.json").read_text(encoding="utf-8"))
    gpu, rows = next(iter(told["gpus"])), []
    for arm in told["arms"]:
        if (arm["method"], arm["backbone"]) not in (("glmae", "vit_base"), ("anatomask", "stunet_b")):
            continue
        by = arm[gpu]["bf16 compiled"]["ms_by_kind"]
        total = sum(by.values())
        rows.append([arm["method"], ", ".join(f"{kind} {ms:.1f} ({ms / total:.0%})" for kind, ms in by.items())])
    return table([f"ms of a step, {gpu}", "by what its kernels do"], rows)


def short(value: float) -> str:
    """Writes milliseconds with two digits that matter."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def measured(told: dict[str, Any]) -> str:
    """One line per method, backbone and way of running; then what the authors' code took."""
    rows = []
    for arm in sorted(told["arms"], key=lambda arm: (arm["method"], arm["backbone"])):
        for way, run in arm["ways"].items():
            rows.append([arm["method"], arm["backbone"], way, *numbers(run), right(arm)])
    for name, run in told.get("peers", {}).items():
        method, way = name.split(" ", 1)
        rows.append([method, "the authors' code", way, *numbers(run), ""])
    head = ["method", "backbone", "way", "ms a step", "from host", "samples/s", "MFU", "device busy", "kernels", "GiB"]
    return f"{table([*head, 'numbers'], rows)}\n\n{told['device']}, torch {told['torch']}, {told['date']}."


def numbers(run: dict[str, Any]) -> list[str]:
    """Writes one run's numbers, or why there are none."""
    if "absent" in run:
        return [run["absent"], "", "", "", "", "", ""]
    share = ["" if run.get(name) is None else f"{run[name]:.0%}" for name in ("mfu", "busy")]
    fed = f"{run['ms_from_host']:.1f}" if "ms_from_host" in run else ""
    kernels = "" if run.get("launches") is None else str(run["launches"])
    memory = f"{run['peak_memory_bytes'] / 2**30:.1f}"
    return [f"{run['ms']:.1f}", fed, f"{run['samples_per_second']:.0f}", *share, kernels, memory]


def right(arm: dict[str, Any]) -> str:
    """Says whether the arm's numbers were found right before it was timed."""
    check = arm["check"]
    return "right" if check.get("right") else check.get("absent", "not right")


def data() -> str:
    """From a scan to a crop: one line per peer of `data_cpu.json`."""
    told = json.loads((RESULTS / "benchmarks" / "data_cpu.json").read_text(encoding="utf-8"))
    rows = []
    for subject in sorted(told["subjects"], key=lambda subject: SUBJECTS.index(subject["name"])):
        ours, *peers = subject["arms"].items()
        for number, (name, arm) in enumerate(peers):
            goal = "" if "goal" not in arm else f"≥ {arm['goal']:g}, {'met' if arm['met'] else 'not met'}"
            first = [subject["name"], f"{1000 * ours[1]['median_s']:,.0f} ms"] if number == 0 else ["", ""]
            span = f"{arm['times_ours']:.3g} ({arm['low']:.2g} to {arm['high']:.2g})"
            rows.append([*first, name, span, goal])
    where = f"{told['device']}, {told['threads']} thread, torch {told['torch']}, {told['date']}"
    head = ["what", "ours", "against", "times ours (least to most)", "goal"]
    return f"{table(head, rows)}\n\n{where}."


# In the order in which a scan passes through them.
SUBJECTS = [
    "image to 1.5 mm", "14 classes to 1.5 mm", "14 classes to 1.5 mm, slow peer", "one case, files to cache",
    "cache: write", "cache: 96^3 crops, warm", "cache: 96^3 crops, cold", "augmentation: affine and label",
    "augmentation: whole recipe, 12 crops",
]  # fmt: skip


def room() -> str:
    """What memory and disk it takes, and how long many cases take, from three files of `benchmarks/`."""
    names = ("data_cpu", "large_cpu", "headers_cpu")
    paths = [RESULTS / "benchmarks" / f"{name}.json" for name in names]
    told, large, many = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    facts = {subject["name"]: subject["facts"] for subject in told["subjects"]}
    image, labels, packed = (facts[name] for name in ("image to 1.5 mm", "14 classes to 1.5 mm", "cache: write"))
    sizes = packed["size / (float32 image + uint8 label)"]
    peak, scan = large["peak_bytes"] / 2**30, " x ".join(map(str, reversed(large["shape_zyx"])))
    beyond = max(0.0, labels[BEYOND])
    half, rest = many["intake_killed_half_way"], many["intake_the_rest"]
    rows = [
        ["image: largest difference to SimpleITK", f"{image['largest difference to SimpleITK, HU']:.4f} HU", "≤ 0.1"],
        [
            "image: (input + peak) / (input + output)",
            f"{image['ours: (input + peak) / (input + output)']:.2f}",
            "≤ 1.2",
        ],
        ["14 classes: voxels unlike SimpleITK's one-hot", f"{labels[NOT_ALIKE]:.4%}", "0"],
        ["14 classes: memory beyond input and output", f"{beyond:.0f} MiB", "< 150"],
        ["cache: size against float32 image and uint8 labels", f"{sizes['ours']:.3f}", "≤ 0.20"],
        ["the same of nnU-Net's b2nd", f"{sizes[PEER]:.3f}", ""],
        ["cache: the image's file alone against float32", f"{packed['image alone / float32']:.3f}", ""],
        [
            f"preparing {scan} int16 with 14 classes: peak",
            f"{peak:.1f} GiB, {large['cpu_seconds']:.0f} s CPU",
            "≤ 8 GiB",
        ],
        [f"headers of {many['cases']:,} scans (`init-study`)", seconds(many["headers"]), "≤ 60 s"],
        [f"intake of all their voxels, {many['workers']} processes: killed after half", f"{half['wall_s']:.0f} s", ""],
        ["the other half", seconds(rest), ""],
        ["once more, nothing to do", seconds(many["intake_nothing_to_do"]), ""],
    ]
    return table(["what", "measured", "goal"], rows)


NOT_ALIKE, PEER = "share unlike SimpleITK's one-hot", "nnU-Net's b2nd"
BEYOND = "ours: peak beyond input and output, MiB (below 0: of memory that was there)"


def seconds(run: dict[str, float]) -> str:
    """Writes how long a command took."""
    return f"{run['wall_s']:.0f} s, {run['cpu_s']:.0f} s CPU"


def prediction() -> str:
    """Sliding windows on a CPU: what `predict_cpu.json` holds of time, memory, the large scan and the whole case."""
    told = json.loads((RESULTS / "benchmarks" / "predict_cpu.json").read_text(encoding="utf-8"))
    rows = []
    if one := told.get("overhead"):
        ratio = f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
        rows.append(
            ["time beside the network", shape(one), f"{ratio} of MONAI's", goal(one["ratio"], told, "overhead")]
        )
    for name in ("peak, 14 classes", "peak, 105 classes"):
        if one := told.get(name):
            ours, theirs = (one["bytes"][who] / 2**30 for who in ("ours", "MONAI"))
            ratio = f"{one['ratio']:.2f} of MONAI's ({ours:.2f} and {theirs:.2f} GiB)"
            rows.append(["memory beyond the scan", shape(one), ratio, goal(one["ratio"], told, name)])
    if one := told.get("large"):
        met = "met" if one["within_8_gib"] else "not met"
        rows.append(
            ["memory of the whole command", shape(one), f"{one['peak_bytes'] / 2**30:.1f} GiB", f"≤ 8 GiB, {met}"]
        )
    if one := told.get("whole"):
        said = f"{one['outside']:.1%} of the processor time is outside the network ({one['network']})"
        rows.append(["one case, file to file", shape(one), said, goal(one["outside"], told, "outside the network")])
    head = ["what", "voxels, classes", "measured", "goal"]
    where = f"{told['device']}, {told['threads']} thread, torch {told['torch']}, {told['date']}"
    return f"{table(head, rows)}\n\n{where}."


def shape(told: dict[str, Any]) -> str:
    """Writes the size of a scan and the number of classes."""
    return f"{' x '.join(map(str, told['shape_zyx']))}, {told['classes']}"


def goal(value: float, told: dict[str, Any], name: str) -> str:
    """Writes a goal and whether it is met."""
    most = told["goals"][name]
    return f"≤ {most:.2f}, {'met' if value <= most else 'not met'}"


def metrics() -> str:
    """Scores beside the peers' on a CPU: one line per subject and arm of `metrics_cpu.json`."""
    told = json.loads((RESULTS / "benchmarks" / "metrics_cpu.json").read_text(encoding="utf-8"))
    rows = []
    for subject in told["subjects"]:
        for name, arm in subject["arms"].items():
            apart = ", ".join(f"{metric} {away:.0e}" for metric, away in subject["apart"].get(name, {}).items())
            times = f"{arm['times_ours']:.1f} ({arm['low']:.1f} to {arm['high']:.1f})" if name != "ours" else "1"
            goal = f"≥ {arm['goal']:g}, {'met' if arm['met'] else 'not met'}" if "goal" in arm else ""
            numbers = [f"{arm['median_s']:.3g}", times, goal, f"{arm['peak_mib']:.0f}", apart]
            rows.append([subject["name"], name, *numbers])
    head = ["14 classes", "by", "processor s", "times ours (least to most)", "goal", "peak MiB", "largest difference"]
    size = " x ".join(map(str, told["shape_zyx"]))
    where = f"{told['device']}, {told['threads']} thread, {told['date']}, {size} voxels"
    return f"{table(head, rows)}\n\n{where}; peak beyond the two maps."


# ------------------------------------------------------------------------------------------------- environments.md
def forecast() -> str:
    """What the forecast said of a study and what that took: one line per stage of `forecast_cpu.json`."""
    told = json.loads((RESULTS / "benchmarks" / "forecast_cpu.json").read_text(encoding="utf-8"))
    rows = []
    for line in told["lines"]:
        sizes = [
            f"{line[f'forecast_{name}'] / 2**20:,.0f} / {line[name] / 2**20:,.0f} MiB"
            if line.get(f"forecast_{name}") and line.get(name)
            else ""
            for name in ("peak_bytes", "disk_bytes")
        ]
        ratio = f"{line['ratio']:.2f}, {'met' if line['met'] else 'missed'}"
        said, took = (f"{line[key]:,.0f} s" for key in ("forecast_s", "measured_s"))
        rows.append([line["what"], str(line["jobs"]), said, took, ratio, *sizes])
    head = ["stage", "jobs", "forecast", "measured", "ratio", "memory, forecast / measured", "disk"]
    where = f"Processor time. {told['device']}, {told['threads']} thread, torch {told['torch']}"
    return f"{table(head, rows)}\n\n{where}, {told['date']}."


# ------------------------------------------------------------------------------------------------- statistics.md
COUNTED = {
    "intervals": "95 % intervals that hold the truth (goal 93 to 97 %)",
    "tests": "equal inits that are called different at 5 % (goal 4 to 6 %)",
    "families": "families of 8 equal inits with any significant contrast (goal ≤ 6 %)",
    "verdicts": "verdicts and power",
    "claims": "probability that a claim is false: stated and true, effects of many sizes",
    "labels": "intervals of labels saved",
    "ranks": "intervals of ranks that hold the true rank",
}


def simulations() -> str:
    """How often the statistics are right: one table per kind of `simulations.json`, one line per simulated world."""
    told = json.loads((RESULTS / "simulations.json").read_text(encoding="utf-8"))
    parts = []
    for kind, title in COUNTED.items():
        some = [result for result in told["results"] if result["kind"] == kind]
        if some:
            rows = [[r["world"]["name"], *(f"{100 * share:.1f} %" for share in r["found"].values())] for r in some]
            parts.append(f"{title[0].upper()}{title[1:]}:\n\n{table(['simulated study', *some[0]['found']], rows)}")
    return "\n\n".join([*parts, f"{told['runs']:,} studies each, {told['resamples']:,} replicates."])


# ------------------------------------------------------------------------------------------------- results.md
TITLES = {"mae": "MAE3D", "glmae": "GL-MAE", "spark": "SparK", "anatomask": "AnatoMask", "byol": "BYOL", "pgl": "PGL"}
ORDER = ["scratch", *TITLES]


def read(name: str, study: str = "hippocampus") -> list[dict[str, str]]:
    """Reads the test cohort's rows of mean Dice from a table of a study, variants behind their methods."""
    with open(RESULTS / study / name, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    mean = [
        row
        for row in rows
        if row["metric"] == "dice" and row.get("cohort", "test") == "test" and row.get("class", "mean") == "mean"
    ]
    return sorted(mean, key=lambda row: (row["backbone"], place(row["init"]), int(row["budget"])))


def place(init: str) -> float:
    """Tells where an init stands in a table: variants right behind their method."""
    return ORDER.index(init) if init in ORDER else ORDER.index(init.rpartition("_")[0]) + 0.5


def dice() -> str:
    """Mean Dice with its interval: one line per init, one column per budget."""
    rows = read("curves.csv")
    budgets = sorted({int(row["budget"]) for row in rows})
    cells = {(row["backbone"], row["init"], int(row["budget"])): row for row in rows}
    lines = []
    for backbone, init in dict.fromkeys((row["backbone"], row["init"]) for row in rows):
        got = [cells.get((backbone, init, budget)) for budget in budgets]
        numbers = ["" if row is None else f"{with_interval(row, 'mean', '.3f')}" for row in got]
        lines.append([f"`{backbone}`", TITLES.get(init, init), *numbers])
    head = ["backbone", "init", *(f"{budget} labels" for budget in budgets)]
    seeds, cases = {row["seeds"] for row in rows}, {row["cases"] for row in rows}
    return f"{table(head, lines)}\n\n{joined(cases)} test patients, {joined(seeds)} seeds, 95 % intervals."


def contrasts() -> str:
    """Differences of Dice that were planned: one line per pair, one column per budget."""
    rows = read("contrasts.csv")
    budgets = sorted({int(row["budget"]) for row in rows})
    pairs: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        key = (row["backbone"], row["init"], row.get("against", "scratch"))
        verdict = f"**{row['verdict']}**" if row["verdict"] in ("better", "worse") else row["verdict"]
        pairs.setdefault(key, {})[int(row["budget"])] = f"{with_interval(row, 'difference', '+.3f')} {verdict}"
    lines = [
        [f"`{backbone}`", f"{TITLES[init]} minus {TITLES.get(against, against)}", *(got.get(b, "") for b in budgets)]
        for (backbone, init, against), got in pairs.items()
    ]
    return table(["backbone", "Dice of", *(f"{budget} labels" for budget in budgets)], lines)


def saved() -> str:
    """Labels that scratch needs for what an init does: one line per init, one column per budget."""
    rows = read("labels_saved.csv")
    budgets = sorted({int(row["budget"]) for row in rows})
    arms: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        words = {"about": "", "below": "fewer than ", "above": "more than "}
        high = ("" if row["high_kind"] == "about" else "more than ") + f"{float(row['high']):.0f}"
        needs = f"{words[row['kind']]}{float(row['labels']):.0f} ({float(row['low']):.0f} to {high})"
        arms.setdefault((row["backbone"], row["init"]), {})[int(row["budget"])] = needs
    lines = [[f"`{b}`", TITLES[init], *(got.get(n, "") for n in budgets)] for (b, init), got in arms.items()]
    return table(["backbone", "init", *(f"scratch needs, for its {n}" for n in budgets)], lines)


def decoders() -> str:
    """Slim decoders beside full ones: their share of a step, and Dice and its difference where they were trained."""
    told = json.loads((RESULTS / "hippocampus_decoders" / "decoders.json").read_text(encoding="utf-8"))
    arms = {(arm["backbone"], arm["init"]): arm for arm in told["arms"]}
    rows = read("curves.csv", "hippocampus_decoders")
    budgets = sorted({int(row["budget"]) for row in rows})
    scores = {(row["backbone"], row["init"], int(row["budget"])): with_interval(row, "mean", ".3f") for row in rows}
    differences = {
        (row["backbone"], row["init"], int(row["budget"])): with_interval(row, "difference", "+.3f")
        for row in read("contrasts.csv", "hippocampus_decoders")
        if row["against"] == arms[row["backbone"], row["init"]]["method"] != row["init"]
    }
    lines = []
    every = {*arms, *((row["backbone"], row["init"]) for row in rows)}
    for backbone, init in sorted(every, key=lambda arm: (arm[0], place(arm[1]))):
        line, arm = [f"`{backbone}`", init, "", ""], arms.get((backbone, init))
        if arm is not None:
            full = arms[backbone, arm["method"]]["flops_per_step"]
            share, size = arm["decoder_flops_per_step"] / arm["flops_per_step"], arm["flops_per_step"] / full
            name = TITLES[arm["method"]] + (", slim" if init != arm["method"] else "")
            line = [f"`{backbone}`", name, f"{share:.0%}", f"{size:.2f}"]
        cells = [some.get((backbone, init, n), "") for n in budgets for some in (scores, differences)]
        lines.append([*line, *cells])
    head = ["backbone", "init", "decoder, of a step's FLOPs", "FLOPs, full decoder is 1"]
    head += [text for n in budgets for text in (f"Dice, {n} labels", "slim minus full")]
    seeds, cases = {row["seeds"] for row in rows}, {row["cases"] for row in rows}
    return f"{table(head, lines)}\n\n{joined(cases)} test patients, {joined(seeds)} fine-tuning seeds, 95 % intervals."


def with_interval(row: dict[str, str], name: str, places: str) -> str:
    """Writes a number and its interval."""
    low, high = (f"{float(row[end]):{places}}" for end in ("low", "high"))
    return f"{float(row[name]):{places}} ({low} to {high})"


def joined(values: set[str]) -> str:
    """Writes what should be one value, and all of them where it is not."""
    return ", ".join(sorted(values, key=int))


def processes() -> str:
    """Runs of several processes beside one: one line per arm of `processes_*.json`."""
    kinds = ("processes_cpu", "processes_double_cpu", "processes_shard_cpu")
    paths = {kind: RESULTS / "benchmarks" / f"{kind}.json" for kind in kinds}
    told = {kind: json.loads(path.read_text(encoding="utf-8")) for kind, path in paths.items() if path.exists()}
    arms = {kind: {arm["arm"]: arm for arm in some["arms"]} for kind, some in told.items()}
    columns = [
        ("2 processes", "processes_cpu", "processes", "2"),
        ("4 processes", "processes_cpu", "processes", "4"),
        ("resumed by 1", "processes_cpu", "resumed", "1"),
        ("resumed by 4", "processes_cpu", "resumed", "4"),
        ("2, double precision", "processes_double_cpu", "processes", "2"),
        ("2, divided", "processes_shard_cpu", "processes", "2"),
    ]
    rows = []
    for name in arms["processes_cpu"]:
        found = [arms.get(kind, {}).get(name, {}).get(part, {}).get(count) for _, kind, part, count in columns]
        rows.append([name.replace("_", ", "), *(f"{one['loss']:.0e}" if one else "" for one in found)])
    first = told["processes_cpu"]
    head = ["arm", *(title for title, *_ in columns)]
    return f"{table(head, rows)}\n\n{first['device']}, torch {first['torch']}, {first['date']}."


def slurm() -> str:
    """Runs on a Slurm of one node: one line per run of `slurm.json`."""
    told = json.loads((RESULTS / "slurm.json").read_text(encoding="utf-8"))
    rows = []
    for run in told["runs"]:
        jobs = run["jobs"]
        tries = [f"{j['state']} after {j['seconds']} s ({j['limit']}, {j['memory']})" for j in jobs]
        few = f"{len(jobs)} jobs, {sum(j['gpus'] > 0 for j in jobs)} of them with GPUs" if len(jobs) > 3 else ""
        rows.append([run["what"], few or ", then ".join(tries), f"{run['seconds']} s"])
    where = f"Slurm {told['slurm']}, Snakemake {told['snakemake']} with its Slurm plugin {told['plugin']}"
    when = f"{where}, {told['cores']} shared cores, {told['date']}; the node was up after {told['up_s']} s."
    return f"{table(['what', 'jobs (time limit, memory)', 'in all'], rows)}\n\n{when}"


def containers() -> str:
    """The built image: its layers, and what ran in it, from `containers.json`."""
    told = json.loads((RESULTS / "containers.json").read_text(encoding="utf-8"))
    rows = [[name, f"{size / 1e6:,.0f} MB"] for name, size in told["layers"].items()]
    rows.append(["the image", f"{sum(told['layers'].values()) / 1e6:,.0f} MB"])
    known = {
        "build_s": "to build it, the base image given",
        "study_s": "a small study in one container, from scans to report",
        "apptainer_s": "one with `--sdm apptainer`",
    }
    rows += [[what, f"{told[key]} s"] for key, what in known.items() if key in told]
    return f"{table(['what', 'takes'], rows)}\n\ntorch for the CPU. {told_where(told)}"


def pods() -> str:
    """What ran through the Kubernetes profile in real containers, from `containers.json`."""
    told = json.loads((RESULTS / "containers.json").read_text(encoding="utf-8"))
    rows = [["a small study, to its report", f"{told['pods']} pods", f"{told['pods_s']} s"]] if "pods" in told else []
    if "deadline" in told:
        tries = [
            f"{one['why'] or ('killed' if one['code'] else 'done')} after {one['seconds']} s "
            f"({one['deadline_s'] // 60} min, {one['memory']})"
            for one in told["deadline"]
        ]
        short = "a fine-tuning with too little memory, then too little time"
        rows.append([short, ", then ".join(tries), f"{told['deadline_s']} s"])
    return f"{table(['what', 'pods (deadline, memory)', 'in all'], rows)}\n\n{told_where(told)}"


def told_where(told: dict[str, Any]) -> str:
    """Says on what the containers ran."""
    return f"podman {told['podman']}, {told['cores']} cores shared with other work, {told['date']}."


def conda() -> str:
    """The default study in an environment that `--use-conda` made."""
    told = json.loads((RESULTS / "conda.json").read_text(encoding="utf-8"))
    equal = "all equal" if not told["unlike"] else f"{len(told['unlike'])} unlike"
    rows = [
        ["the environment", f"{told['packages']} packages, {told['environment_s']} s with wheels at hand"],
        ["the default study in it", f"{told['jobs']} commands, {told['study_s']} s"],
        ["files with scores, beside those of `make run`", f"{told['scores']}, {equal} byte for byte"],
    ]
    return f"{table(['what', 'was'], rows)}\n\n{told['cores']} shared cores, {told['date']}."


def plans() -> str:
    """What Snakemake takes to plan and to run a study of 4,500 cells, from `dag_cpu.json`."""
    told = json.loads((RESULTS / "benchmarks" / "dag_cpu.json").read_text(encoding="utf-8"))
    goal = told["goal"]
    rows = []
    for plan in told["plans"]:
        ours = plan["study"]
        what = f"{plan['cells']:,} fine-tunings: `snakemake -n`, {ours['jobs']:,} jobs"
        memory = f"{ours['wall_s']:.0f} s, {ours['cpu_s']:.0f} s CPU, {ours['peak_bytes'] / 2**20:,.0f} MiB"
        rows.append([what, memory, f"≤ {goal['wall_s']} s, ≤ {goal['peak_bytes'] / 2**30:.1f} GiB"])
        for name, what, least in (
            ("trivial", "against a trivial workflow with as many jobs", f"≤ {goal['ratio']}"),
            ("furnished", "against one whose rules have logs, resources, ...", ""),
        ):
            if f"ratio_to_{name}" in plan:
                rows.append([what, f"{plan[f'ratio_to_{name}']:.2f}", least])
    for run in told["run"]:
        for name in ("greedy", "ilp"):
            what = f"{run['cards']:,} cards written, scheduler `{name}`: a job"
            rows.append([what, f"{run[name]['ms_per_job']:.0f} ms CPU", f"≤ {goal['ms_per_job']} ms"])
    seen = told["watch"]
    what = f"`voxprior watch`, {seen['cells']:,} cells: a look, before any has begun"
    rows.append([what, f"{seen['nothing_begun_ms']} ms CPU", ""])
    where = f"{told['device']}, Snakemake {told['snakemake']}, {told['date']}."
    return f"{table(['what', 'measured', 'goal'], rows)}\n\n{where}"


def growth() -> str:
    """What a case costs at 1,000, 10,000 and 100,000 of them, from `growth_cpu.json`."""
    told = json.loads((RESULTS / "benchmarks" / "growth_cpu.json").read_text(encoding="utf-8"))
    rows = []
    for part in told["parts"]:
        at = part["at"]
        flat = f"{part['growth']:.1f}, {'flat' if part['flat'] else 'not flat'}"
        costs = [f"{one['us_a_case']:,.0f}" for one in at]
        rows.append([part["says"].rstrip("."), *costs, flat, f"{at[-1]['cpu_s']:.1f} s", f"{at[-1]['mib']:,.0f} MiB"])
    counts = [f"{one['cases']:,} cases: µs a case" for one in told["parts"][0]["at"]]
    head = ["what", *counts, "last / one before", "all, CPU", "memory"]
    return f"{table(head, rows)}\n\n{told['device']}, {told['date']}."


def shards() -> str:
    """What a crop costs from a file, a shard, a server and a bucket, from `growth_cpu.json`."""
    told = json.loads((RESULTS / "benchmarks" / "growth_cpu.json").read_text(encoding="utf-8"))["ranges"]
    names = {
        "index": "its own file",
        "shard": "a shard on the disk",
        "server": "a shard behind a web server",
        "bucket": "a shard in a bucket (S3)",
    }
    rows = []
    for name, title in names.items():
        one = told[name]
        asked = [f"{one['requests']:.0f}", f"{one['bytes'] / 1e6:.1f} MB"] if one["requests"] else ["", ""]
        waits = f"{one['in_a_row']:.1f}" if "in_a_row" in one else ""
        rows.append([title, *asked, f"{one['cpu_ms']:.1f}", f"{one['cpu_ms'] / told['index']['cpu_ms']:.1f}", waits])
    head = ["a crop of 96³ from", "requests", "bytes", "CPU ms", "against its own file", "answers waited for in a row"]
    size = " x ".join(map(str, told["shape_zyx"]))
    return (
        f"{table(head, rows)}\n\nOf a volume of {size} voxels, {told['file_bytes'] / 1e6:.1f} MB packed; equal bit by "
        "bit. Each crop opens its volume anew; server and bucket are on the same machine."
    )


COUNT, RAW_ZYX, MADE_ZYX = 100_000, (300, 512, 512), (250, 267, 267)  # 400 mm each way, to 1.5 mm
CROPS = 100  # of each scan


def paper() -> str:
    """What 100,000 scans cost by what was measured for one."""
    names = ("growth_cpu", "data_cpu", "large_cpu")
    grown, told, large = (
        json.loads((RESULTS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8")) for name in names
    )
    facts = {subject["name"]: subject["facts"] for subject in told["subjects"]}
    raw, made, looked = math.prod(RAW_ZYX), math.prod(MADE_ZYX), grown["intake"]
    scans = looked["file_bytes"] / math.prod(looked["shape_zyx"]) * raw * COUNT
    cache = made * 4 * facts["cache: write"]["image alone / float32"] * COUNT
    hours = {
        "intake": looked["cpu_s"] / math.prod(looked["shape_zyx"]) * raw * COUNT / 3600,
        "prepare": large["cpu_seconds"] / math.prod(large["shape_zyx"]) * raw * COUNT / 3600,
    }
    rows = [
        ["scans as NIfTI, compressed", f"{scans / 1e12:.1f} TB"],
        ["cache at 1.5 mm", f"{cache / 1e12:.1f} TB, {3 * COUNT:,} files, or {cache / 1e9:,.0f} shards of 1 GB"],
        ["intake, every voxel", f"{hours['intake']:,.0f} core hours"],
        ["prepare", f"{hours['prepare']:,.0f} core hours"],
    ]
    return table([f"{COUNT:,} scans of {' x '.join(map(str, RAW_ZYX))}", "costs"], rows)


def feeding() -> str:
    """What it takes to feed one GPU at the speed predicted for each method."""
    read = json.loads((RESULTS / "benchmarks" / "growth_cpu.json").read_text(encoding="utf-8"))["ranges"]
    told = json.loads((RESULTS / "benchmarks" / "gpu_predicted.json").read_text(encoding="utf-8"))
    rows = []
    rates = [(1000 * arm["samples"] / arm["H200"]["bf16 compiled"]["ms"], arm) for arm in told["arms"]]
    for rate, arm in sorted(rates, key=lambda pair: pair[0]):
        cores = [f"{rate * read[name]['cpu_ms'] / 1000:,.1f}" for name in ("index", "server")]
        hours = f"{COUNT * CROPS / rate / 3600:,.1f}"
        rows.append(
            [
                arm["method"],
                arm["backbone"],
                f"{rate:,.0f}",
                hours,
                *cores,
                f"{rate * read['server']['bytes'] / 1e9:,.1f}",
            ]
        )
    head = ["method", "backbone", "samples/s", f"GPU hours for {CROPS} crops of each scan", "cores that read files",
            "cores that read a server", "GB/s from it"]  # fmt: skip
    return table(head, rows)


# Published: NVLink of an H100, one way; and a network card of 400 Gbit/s for each of several machines.
LINK_BYTES, CARD_BYTES = 450e9, 50e9


def synchronising() -> str:
    """What adding up gradients costs beside a step, at the samples per GPU of the predicted step."""
    told = json.loads((RESULTS / "benchmarks" / "gpu_predicted.json").read_text(encoding="utf-8"))
    share, rows = told["assumed"]["bandwidth"], []
    for arm in told["arms"]:
        size, step = 4 * arm["parameters"], arm["H100"]["bf16 compiled"]["ms"]
        # A ring sends every byte twice, but for the own part.
        ways = [2 * (n - 1) / n * size / (share * speed) * 1000 for n, speed in ((8, LINK_BYTES), (4, CARD_BYTES))]
        cells = [f"{way:.1f} ({way / step:.0%})" for way in ways]
        rows.append([arm["method"], arm["backbone"], f"{size / 1e6:,.0f}", f"{step:.1f}", *cells])
    head = ["method", "backbone", "gradients, MB", "step, ms", "8 GPUs of a machine, ms", "4 machines, ms"]
    return table(head, rows)


PAGES = {
    "cluster.md": {"slurm": slurm, "pods": pods},
    "several-gpus.md": {"processes": processes, "synchronising": synchronising},
    "performance.md": {
        "steps": steps,
        "gpu": gpu,
        "finetune gpu": finetune_gpu,
        "authors": authors,
        "kinds": kinds,
        "data": data,
        "room": room,
        "prediction": prediction,
        "metrics": metrics,
        "decoders": decoders,
    },
    "environments.md": {"conda": conda, "containers": containers, "forecast": forecast},
    "results.md": {"dice": dice, "contrasts": contrasts, "saved": saved},
    "statistics.md": {"simulations": simulations},
    "scale.md": {"plans": plans, "growth": growth, "shards": shards, "paper": paper, "feeding": feeding},
}


def filled(name: str, page: str) -> str:
    """Returns the text of the page `name` with all its tables renewed."""
    for mark, make in PAGES[name].items():
        place = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        page, count = re.subn(place, lambda hit, text=make(): f"{hit[1]}{text}\n{hit[2]}", page, flags=re.S)
        if count != 1:
            raise SystemExit(f"docs/{name} has {count} places for the table '{mark}': give it one")
    return page


def main() -> None:
    """Renews the pages, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; code 1 where a page and its files differ")
    check = parser.parse_args().check
    stale = []
    for name in PAGES:
        page = (DOCS / name).read_text(encoding="utf-8")
        if (new := filled(name, page)) != page:
            stale.append(name)
            if not check:
                (DOCS / name).write_text(new, encoding="utf-8")
    if check and stale:
        raise SystemExit(f"{', '.join(stale)} is not what its files say: run python docs/tables.py")


if __name__ == "__main__":
    main()
