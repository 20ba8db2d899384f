"""`voxprior doctor`: is this machine fit for a study, and what does each backbone cost?"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from voxprior.errors import Refusal

_LEAST_DISK, _LEAST_MEMORY = 10 << 30, 4 << 30  # a small study's caches and models; a job of the workflow
# What a network is counted at where no study is given: crops, samples, precision and classes of the studies for GPUs.
_PAPER: dict[str, Any] = {"crop_vox": (96, 96, 96), "batch_size": 2, "precision": "bf16", "classes": 14, "channels": 1}
# (first bad, first good version of torch, what is wrong). All on CUDA alone.
KNOWN_BAD = [
    (
        (2, 9),
        (2, 10),
        "Conv3d under autocast is about 4 times slower and takes several times the memory "
        "(pytorch issues 166122, 166643): take torch 2.10",
    ),
]


class Finding(NamedTuple):
    """One line: `mark` is ok, warn or bad; a bad one makes the exit code 1."""

    mark: str
    what: str
    text: str


# ---------------------------------------------------------------------------------------------------- the machine
def run(store: str) -> bool:
    """Prints what was found, one line each; tells whether nothing is bad.

    Args:
        store: the MLflow tracking URI that `voxprior track` would use.
    """
    from voxprior.commands import surroundings as around

    findings: list[Finding] = [*packages(), *machine(), reachable(store)]
    for looked in (around.folders(store), around.dvc(), around.conda(), around.containers(), around.slurm()):
        findings += [Finding(*line) for line in looked]
    for mark, what, text in findings:
        print(f"{mark:<5}{what:<10}{text}")
    bad = sum(finding.mark == "bad" for finding in findings)
    print(f"{bad} to mend" if bad else "fit for a study")
    return not bad


def packages() -> Iterator[Finding]:
    """Compares what is installed with what voxprior asks for."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    yield Finding("ok", "python", sys.version.split()[0])
    wanted = [Requirement(text) for text in requires("voxprior") or []]
    wrong = []
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            if not one.specifier.contains(found := version(one.name), prereleases=True):
                wrong.append(f"{one.name} is {found}, wanted {one.specifier}")
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
    text = "; ".join(wrong) + ": run `pip install -c constraints.txt .`" if wrong else "all that voxprior asks for"
    yield Finding("bad" if wrong else "ok", "packages", text)


def machine() -> Iterator[Finding]:
    """Looks at torch, GPU, processor, memory and disk."""
    import torch

    from voxprior.commands import surroundings
    from voxprior.data.memory import free_bytes

    build = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.version.cuda else "CPU only"
    trouble = known_bad(torch.__version__, torch.version.cuda is not None)
    yield Finding("bad" if trouble else "ok", "torch", f"{torch.__version__}, {build}" + (trouble and f": {trouble}"))
    yield from (Finding(*line) for line in surroundings.driver(torch.version.cuda))
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            yield Finding("ok", "GPU", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    elif shutil.which("nvidia-smi"):
        text = "this machine has a GPU and torch sees none: install a CUDA build of torch, or mend the driver"
        yield Finding("bad", "GPU", text)
    else:
        yield Finding("warn", "GPU", "none: the default study runs, those of config/studies are for GPUs")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("ok", "cores", str(cores))
    if (free := free_bytes()) is not None:
        text = f"{free / 2**30:.1f} GiB free" + (", jobs ask for 4" if free < _LEAST_MEMORY else "")
        yield Finding("ok" if free >= _LEAST_MEMORY else "warn", "memory", text)
    left = shutil.disk_usage(Path.cwd()).free
    text = f"{left / 2**30:.1f} GiB free in {Path.cwd()}"
    mark = "ok" if left >= _LEAST_DISK else "warn" if left >= _LEAST_DISK // 10 else "bad"
    yield Finding(mark, "disk", text + (", a small study takes up to 10" if mark != "ok" else ""))
    if not os.access(Path.cwd(), os.W_OK):
        yield Finding("bad", "disk", f"{Path.cwd()} is not yours to write in: start in a folder of your own")


def known_bad(torch_version: str, cuda: bool) -> str:
    """Says what is wrong with a version of torch; empty: nothing that we know of."""
    numbers = tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2])
    return next((text for first, good, text in KNOWN_BAD if cuda and first <= numbers < good), "")


def reachable(store: str) -> Finding:
    """Asks the MLflow store whether it is there. A dead one stops no study, so it is never bad."""
    if store.startswith("sqlite:///"):
        path = Path(store.removeprefix("sqlite:///"))
        if not path.exists():
            return Finding("ok", "MLflow", f"{path} is not there yet: the first study makes it")
        import sqlite3

        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2) as database:
                count = database.execute("select count(*) from runs").fetchone()[0]
            locked = _locked(path)
            return Finding("warn" if locked else "ok", "MLflow", f"{path}, {count} runs{locked}")
        except sqlite3.Error as error:
            return Finding(
                "warn", "MLflow", f"{path} cannot be read ({error}): move it away, `make track` makes it anew"
            )
    if store.startswith(("http://", "https://")):
        import requests

        try:
            answer = requests.get(store.rstrip("/") + "/health", timeout=3)
        except requests.RequestException as error:
            return Finding(
                "warn", "MLflow", f"{store} does not answer ({type(error).__name__}): start it, or go on without"
            )
        good = answer.status_code < 400
        return Finding("ok" if good else "warn", "MLflow", f"{store} answers {answer.status_code}")
    return Finding("warn", "MLflow", f"{store}: not looked at, this kind of store is not known here")


def _locked(path: Path) -> str:
    """Says why nothing can be written to a SQLite store; empty: it can."""
    import sqlite3
    from contextlib import closing

    try:
        # Asks for the writer's lock and gives it back; nothing is written.
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=2, isolation_level=None)) as database:
            database.execute("begin immediate")
            database.execute("rollback")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return ", locked by another process: stop it, or wait; studies go on, and `make track` publishes later"
        return f", cannot be written ({error}): change its permissions"
    return ""


# ---------------------------------------------------------------------------------------------------- the backbones
def run_backbones(study: Path | None) -> None:
    """Prints parameters, operations and memory of every backbone of config/backbones, as a segmentation network.

    Args:
        study: a study file, whose crop, batch, precision, classes and channels are counted; None: those of the studies
            for GPUs.

    Raises:
        Refusal: the study or a backbone's file is not one.
    """
    asked = _asked(study) if study else _PAPER
    print(
        f"segmentation networks at {asked['batch_size']} crops of {'x'.join(map(str, asked['crop_vox']))}, "
        f"{asked['channels']} channel{'s' if asked['channels'] != 1 else ''}, {asked['classes']} classes, "
        f"{asked['precision']}, AdamW; counted, nothing was run"
    )
    names = ["million", "of which", "GFLOP forward,", "GFLOP of a", "GiB to train,"]
    more = ["parameters", "pretrained", "one crop", "training step", "at least"]
    width = 15
    print(f"{'':<14}" + "".join(f"{name:>{width}}" for name in names))
    print(f"{'':<14}" + "".join(f"{name:>{width}}" for name in more))
    for path in _files():
        print(f"{path.stem:<14}{_row(path, asked, width)}")


def _files() -> list[Path]:
    """Lists config/backbones of the working folder and of the project; the same name counts once, the nearer."""
    from voxprior.commands.named import folders

    found = {path.stem: path for folder in reversed(folders("backbones")) for path in sorted(folder.glob("*.yaml"))}
    if not found:
        raise Refusal("no config/backbones here: go to a study's folder or to the project's")
    return [found[name] for name in sorted(found, key=lambda name: (found[name].stem.split("_")[0], name))]


def _asked(path: Path) -> dict[str, Any]:
    import yaml

    from voxprior.commands.named import PROJECT
    from voxprior.configuration import Study
    from voxprior.strict import validated

    study = validated(Study, yaml.safe_load(path.read_text(encoding="utf-8")), str(path), "correct the study")
    file = next((f for f in (path.parent, path.parents[1], PROJECT / "config") if (f / "datasets").is_dir()), None)
    dataset = file / "datasets" / f"{study.dataset}.yaml" if file else None
    content = yaml.safe_load(dataset.read_text(encoding="utf-8")) if dataset and dataset.is_file() else {}
    asked = {key: getattr(study.finetune, key) for key in ("crop_vox", "batch_size", "precision")}
    return asked | {"classes": len(study.classes), "channels": len(content.get("channels", ["image"]))}


def _row(path: Path, asked: dict[str, Any], width: int) -> str:
    try:
        cells = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in count(path, asked)]
    except Refusal as refusal:
        return f"  {refusal}"
    return "".join(f"{cell:>{width}}" for cell in cells)


def count(path: Path, asked: dict[str, Any]) -> tuple[float, float, float, float, float]:
    """Counts a backbone's network on the meta device.

    Returns:
        Million parameters; million that a pretraining hands over; GFLOP of a forward pass of one crop, of a training
        step; GiB that training holds at least.

    Raises:
        Refusal: the file is no backbone, or the network does not take crops of this size.
    """
    import torch
    import yaml

    from voxprior.configuration import Backbone as Spec
    from voxprior.engine import estimate
    from voxprior.engine.flops import counter
    from voxprior.maths.boxes import Region
    from voxprior.nets.backbones import Backbone
    from voxprior.segment import model as segment
    from voxprior.strict import validated

    spec = validated(Spec, yaml.safe_load(path.read_text(encoding="utf-8")), str(path), "correct the file")
    crop = tuple(asked["crop_vox"])
    backbone = Backbone(path.stem, spec.family, spec.sizes.model_dump(), asked["channels"])
    if any(side % backbone.segmenter_unit_vox for side in crop):
        raise Refusal(f"takes crops in multiples of {backbone.segmenter_unit_vox} voxels")
    with torch.device("meta"):
        network = backbone.segmenter(asked["classes"] + 1, crop)
        handed_on = sum(parameter.numel() for parameter in backbone.encoder().parameters())
        labels = torch.zeros(asked["batch_size"], *crop, dtype=torch.uint8)
        volume = torch.zeros(1, asked["channels"], *crop)
    model: Any = segment.Model(segment.Config(crop), network)
    model.views = lambda batch, key_B: segment.Views(batch["region_BCZYX"].float(), labels)  # not augmented
    cost = estimate.cost(model, Region(crop), asked["batch_size"], asked["precision"], spec.scratch)
    with torch.no_grad(), counter() as forward:
        network.eval()(volume)
    flops = (forward.get_total_flops() / 1e9, cost.flops / 1e9)
    return cost.parameters / 1e6, handed_on / 1e6, *flops, cost.memory_bytes / 2**30
