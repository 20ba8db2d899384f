"""init-study: looks at a user's folders and writes the two files that a study of them needs."""

import json
import re
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

PATCH_VOX = 8  # of vit_tiny, and the stride of stunet_tiny
CROP_VOX = 48  # largest side of a crop: what a CPU can train on


def run(images: Path, labels: Path | None, name: str | None, output: Path) -> None:
    """Writes `config/datasets/<name>.yaml` and `config/studies/<name>.yaml` below `output` and tells what was found.

    Headers of all scans are read, voxels of a few. Nothing is overwritten.

    Args:
        images: folder of the scans, or a table of paths.
        labels: folder of the label maps; None: beside the scans, or as their layout says.
        name: of dataset and study; None: the folder's name.
        output: the study's folder, in which Snakemake will run.

    Raises:
        Refusal: no scan is recognised, too few have labels, or a file is there already.
    """
    from voxprior.configuration import Dataset, Study
    from voxprior.data import survey
    from voxprior.data.layouts import IGNORE, list_cases
    from voxprior.strict import validated
    from voxprior.whole import write_text

    named = name or re.sub(r"[^a-z0-9]+", "_", images.resolve().stem.lower()).strip("_") or "mine"
    paths = [output / "config" / kind / f"{named}.yaml" for kind in ("datasets", "studies")]
    for path in paths:
        if path.exists():
            raise Refusal(f"{path} is there already and is not overwritten: give another --name, or remove it")
    root, layout, junk, files = _recognised(images, labels)
    named_files = [*layout.classes, *([IGNORE] if layout.ignore else [])]
    entries = list_cases(layout, root, files, named_files, layout.channels)
    headers, wrong = survey.read_headers(entries, root)
    usable = [entry for entry in entries if entry.case in headers]
    if not usable:
        raise Refusal(f"none of the {len(entries)} scans below {root} can be used, the first because {wrong[0]}")
    voxels = survey.read_voxels(usable, root)
    facts = _facts(layout, usable, list(headers.values()), voxels)
    dataset = _dataset(named, _shown(root, output), layout, junk, facts)
    study = _study(named, facts)
    for model, text, path in ((Dataset, dataset, paths[0]), (Study, study, paths[1])):
        import yaml

        validated(model, json.dumps(yaml.safe_load(text)), str(path), "please report this")
        write_text(path, text)
    print("\n".join(_told(root, layout, facts, wrong, paths)))


def _recognised(images: Path, labels: Path | None) -> tuple[Path, Any, list[str], list[str]]:
    """Finds the common folder, the layout, what in that folder is none of the dataset's, and the dataset's files."""
    from voxprior.configuration import Source
    from voxprior.data.recognise import Recognised, recognise

    given = [path.resolve() for path in (images, labels) if path is not None]
    if given[0].is_file():
        table = Recognised("table", given[0].name)
        return given[0].parent, table, [], _files(given[0].parent, [given[0].parent], [])
    if labels is None and given[0].name == "imagesTr" and (given[0].parent / "dataset.json").is_file():
        given = [given[0].parent]
    root = given[0]
    while not all(path.is_relative_to(root) for path in given):
        root = root.parent
    if root == Path(root.anchor):
        raise Refusal(f"{images} and {labels} have no folder in common: put both below one, links to them will do")
    junk = list(Source.model_validate({"kind": "folder"}).junk)
    if len(given) == 2 and root not in given:
        kept = {path.relative_to(root).parts[0] for path in given}
        junk += sorted(path.name for path in root.iterdir() if path.name not in kept)
    files = _files(root, given, junk)
    inside = ["" if path == root else path.relative_to(root).as_posix() for path in given]
    found = recognise(root, inside[0], inside[1] if len(inside) > 1 else None, files)
    if found is None:
        raise Refusal(
            f"{images} holds no scan that is recognised (.nii, .nii.gz, .nrrd, .mha, .mhd or DICOM): give the folder "
            "that holds them, or a table of their paths"
        )
    return root, found, junk, files


def _files(root: Path, below: list[Path], junk: list[str]) -> list[str]:
    """Lists the files of some folders relative to `root`."""
    from voxprior.data.unpack import is_junk

    found = {path.relative_to(root).as_posix() for folder in below for path in folder.rglob("*") if path.is_file()}
    return sorted(file for file in found if not is_junk(file, junk))


def _shown(root: Path, output: Path) -> str:
    """Writes the scans' folder relative to the study's where it lies below it, so that both can be moved together."""
    here = output.resolve()
    return root.relative_to(here).as_posix() if root.is_relative_to(here) else root.as_posix()


def _facts(layout: Any, usable: list[Any], headers: list[Any], voxels: Any) -> dict[str, Any]:
    """Gathers what both files need.

    Raises:
        Refusal: too few labelled scans, or scans too small for a patch.
    """
    from voxprior.data.fingerprint import propose_intensity
    from voxprior.data.survey import AIR_HU, propose_grid

    labelled = [entry for entry in usable if entry.label or entry.parts]
    classes = layout.classes or {f"class_{value}": [value] for value in voxels.values}
    if len(labelled) < 3 or not classes:
        raise Refusal(
            f"{len(labelled)} of {len(usable)} scans have labels, and a study needs three (one to test, two to learn "
            "from): give their folder as --labels, or write both files by docs/own-data.md"
        )
    spacing, why, shape = propose_grid(headers)
    crop = [max(PATCH_VOX, min(CROP_VOX, n // PATCH_VOX * PATCH_VOX)) for n in shape]
    if max(crop) == PATCH_VOX:
        raise Refusal(f"the median scan has {shape} voxels, too few for patches of {PATCH_VOX}: check the folder")
    told = layout.modality.lower()
    guess = "ct" if voxels.air < AIR_HU else "mr"
    modality = "ct" if told in ("ct", "noct") or (not told and guess == "ct") else "mr"
    axes = {header.channels for header in headers}
    several = layout.channels or tuple(f"channel_{n}" for n in range(min(axes))) if min(axes) > 1 else layout.channels
    return {
        "cases": len(usable),
        "labelled": len(labelled),
        "classes": classes,
        "regions": layout.regions,
        "ignore": list(layout.ignore),
        "channels": list(several) or ["image"],
        "modality": modality,
        "modality_from": f"dataset.json says {layout.modality}" if told else f"a guess: {guess_reason(voxels.air)}",
        "spacing": list(spacing),
        "spacing_why": why,
        "shape": list(shape),
        "crop": crop,
        "intensity": propose_intensity(modality, {"foreground": {"p0.5": voxels.low, "p99.5": voxels.high}})[0],
        "split": split(len(labelled)),
        "values": voxels.values,
        "read": voxels.read,
        "patients": _patients([entry.case for entry in usable]),
    }


def guess_reason(air: float) -> str:
    """Says which intensities a modality was guessed from."""
    return f"the darkest half percent of the scans read is at {air:.4g}, and only CT goes below -200"


def split(labelled: int) -> dict[str, Any]:
    """Proposes test and validation shares, and budgets that fit even where a tenth of the scans cannot be used.

    A fifth is tested, a tenth monitored; budgets grow fourfold from 1 (2 where there are many) to what is left.
    """
    test = max(1, round(0.2 * labelled))
    val = round(0.1 * labelled) if labelled >= 10 else 0
    most = max(1, int(0.9 * (labelled - test - val)))
    budgets = [1 if most < 16 else 2]
    while budgets[-1] * 4 <= most:
        budgets.append(budgets[-1] * 4)
    if most >= 2 * budgets[-1]:
        budgets.append(most)
    return {"test": test, "val": val, "budgets": budgets}


def _patients(cases: list[str]) -> int:
    """Counts the beginnings of the cases' names up to a separator, where some but not all are shared; else 0."""
    groups = len({re.split(r"[_\-. ]", case)[0] for case in cases})
    return groups if 2 < groups < len(cases) else 0


# ------------------------------------------------------------------------------------------------- what is written
def _dataset(name: str, path: str, layout: Any, junk: list[str], facts: dict[str, Any]) -> str:
    flow = json.dumps
    place = {"kind": layout.kind, "root": layout.root, "images": layout.images, "labels": layout.labels}
    place = {key: value for key, value in place.items() if value is not None and (key, value) != ("root", ".")}
    classes = "\n".join(f"  {key}: {flow(values)}" for key, values in facts["classes"].items())
    several = facts["channels"] != ["image"]
    channels = f"channels: {flow(facts['channels'])} # in this order\n" if several else ""
    regions = f"regions: {flow(facts['regions'])} # they overlap; painted in this order\n" if facts["regions"] else ""
    ignore = f"ignore: {flow(facts['ignore'])} # values that mean 'not known'\n" if facts["ignore"] else ""
    extra = "" if len(junk) <= 3 else f", junk: {flow(junk, ensure_ascii=False)}"
    patient = (
        '# patient: "^([^_. -]+)" # first group of this in a case\'s name is the patient; without it each case is one\n'
    )
    return (
        f"# Written by `voxprior init-study`; yours to change. Every key: docs/own-data.md.\n"
        f"title: {flow(name)}\n"
        f"modality: {facts['modality']} # {facts['modality_from']}\n"
        f"source: {{kind: folder, path: {flow(path, ensure_ascii=False)}{extra}}} # scans are used where they lie\n"
        f"layout: {flow(place, ensure_ascii=False)}\n"
        f"{channels}"
        f"classes: # name: values in the label maps\n{classes}\n"
        f"{regions}{ignore}"
        f"{patient}"
        f"licence: unknown # stands in the report\n"
    )


def _study(name: str, facts: dict[str, Any]) -> str:
    flow, crop, part = json.dumps, facts["crop"], facts["split"]
    steps = 300
    voxels = steps * 2 * crop[0] * crop[1] * crop[2]
    return f"""\
# Written by `voxprior init-study`; yours to change.
#   snakemake --cores all --configfile config/studies/{name}.yaml
study: {name}
results: results/{name}

dataset: {name} # config/datasets/{name}.yaml
classes: {flow(list(facts["classes"]))}
prepare:
  spacing_zyx_mm: {flow(facts["spacing"])} # {facts["spacing_why"]}; the median scan is then {facts["shape"]} voxels
  intensity: {_block(facts["intensity"])} # {"HU" if facts["modality"] == "ct" else "percentiles of each scan"}

split: # of {facts["labelled"]} labelled scans
  test: {part["test"]} # patients
  val: {part["val"]}
  budgets: {flow(part["budgets"])} # labelled cases to learn from; nested
inits: # backbone -> what it starts from; also glmae, byol, pgl on vit_tiny and anatomask, byol, pgl on stunet_tiny
  vit_tiny: [scratch, mae]
  stunet_tiny: [scratch, spark]

preset: small # for small volumes and CPUs; on a GPU: paper, with vit_base and stunet_b, and crops of 96 voxels
methods:
  mae: {{crop_vox: {flow(crop)}}}
  spark: {{crop_vox: {flow(crop)}}}
pretrain:
  voxels: {voxels} # {steps} steps: enough to see that it runs
  batch_size: 2
finetune:
  steps: {steps}
  batch_size: 2
  crop_vox: {flow(crop)} # multiples of {PATCH_VOX}, within the median scan
  seeds: [0] # three for a claim
predict:
  overlap: 0.25
score:
  tolerance_mm: {max(facts["spacing"]):g} # a surface counts as met within this
"""


def _block(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


# ------------------------------------------------------------------------------------------------- what is told
def _told(root: Path, layout: Any, facts: dict[str, Any], wrong: list[str], paths: list[Path]) -> list[str]:
    """Says what was found, and what a person should check."""
    templates = "; ".join(f"{key} {value}" for key in ("images", "labels") if (value := getattr(layout, key)))
    scans, maps = facts["read"]
    lines = [
        f"{root}: layout '{layout.kind}'{f' ({templates})' if templates else ''}",
        f"  {facts['cases']} scans, {facts['labelled']} with labels, {len(wrong)} that cannot be used as they are",
        f"  modality {facts['modality']} ({facts['modality_from']})",
        f"  {facts['spacing_why']}: {facts['spacing']} mm; the median scan is then {facts['shape']} voxels (z y x)",
        f"  classes {', '.join(facts['classes'])}"
        + (f" (values in {maps} label maps: {facts['values']})" if maps else ""),
        *([f"  {', '.join(facts['regions'])} overlap: each is learned on its own"] if facts["regions"] else []),
        *([f"  values {facts['ignore']} are not known: in no loss and no score"] if facts["ignore"] else []),
        *(f"  not usable: {sentence}" for sentence in wrong[:5]),
        *([f"  ... and {len(wrong) - 5} more; intake lists all with their reasons"] if len(wrong) > 5 else []),
        "",
        f"Written: {paths[0]}, {paths[1]}",
        "Please check:",
    ]
    known = {value for values in facts["classes"].values() for value in values}
    unknown = sorted(set(facts["values"]) - known - set(facts["ignore"]))
    checks = [
        f"the modality and the intensity range, taken from {scans} scans",
        "the names of the classes" + (f"; values {unknown} have none" if unknown else ""),
        "the licence, which stands in the report",
    ]
    if facts["patients"]:
        checks.append(
            f"the patients: {facts['cases']} scans have {facts['patients']} beginnings of names; if scans of one "
            "person share theirs, take the # away from 'patient', or one person may stand on both sides of the split"
        )
    if facts["channels"] != ["image"]:
        checks.append(f"that {', '.join(facts['channels'])} are channels of one scan, in this order")
    lines += [f"  - {check}" for check in checks]
    there = paths[1].parents[2]
    directory = "" if there == Path() else f" --directory '{there}'"
    return [*lines, f"Then: snakemake --cores all{directory} --configfile '{paths[1]}'"]
