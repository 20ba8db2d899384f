"""The only place for functions: names in the study become numbers, and numbers become run cards."""

import json
from hashlib import file_digest, sha256
from pathlib import Path

import jsonschema
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

ROOT = Path(str(workflow.current_basedir.get_path_or_uri(secret_free=True))).parents[1]
SCHEMA = str(ROOT / "config" / "schema.json")


def numbers(kind, name):
    """Reads config/<kind>/<name>.yaml, from the study's folder first, then from the project's."""
    paths = [path for folder in (Path("config"), ROOT / "config") for path in (folder / kind).glob("*.yaml")]
    if found := [path for path in paths if path.stem == name]:
        return yaml.safe_load(found[0].read_text(encoding="utf-8"))
    known = ", ".join(sorted({path.stem for path in paths}))
    raise WorkflowError(f"config: no config/{kind}/{name}.yaml; known {kind}: {known}.")


def method_numbers(study, method, changes):
    """The method's preset with the study's changes."""
    presets, preset = numbers("methods", method), study.get("preset", "small")
    if preset not in presets:
        raise WorkflowError(f"config/methods/{method}.yaml: no preset {preset!r}; known presets: {', '.join(presets)}.")
    return presets[preset] | changes


def backbone_numbers(study, name):
    """The backbone with the study's changes of its recipes."""
    backbone, changes = numbers("backbones", name), (study.get("recipes") or {}).get(name) or {}
    return {**backbone, **{stage: {**backbone.get(stage, {}), **changed} for stage, changed in changes.items()}}


def sentence(error):
    """Says what a schema violation means: the file, the path, the wrong word, the known words."""
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    where = [str(step) for step in error.absolute_path]
    where = ["study", "methods", *where[2:]] if where[:1] == ["variants"] else where
    file = "config" if where[:1] in ([], ["study"]) else "config/{}/{}.yaml".format(*where[:2])
    path = ".".join(where[1 if file == "config" else 2 :]) or "top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = sorted(error.schema.get("properties", {}))
        wrong = sorted(set(error.instance) - set(known))
        return f"{file}: unknown key {', '.join(map(repr, wrong))} at {path}; known keys: {', '.join(known)}."
    if error.validator == "enum":
        return f"{file}: {path} is {error.instance!r}; known words: {', '.join(map(str, error.validator_value))}."
    return f"{file}: {path}: {error.message}."


def resolve(study):
    """Replaces names by numbers, fills in the defaults and refuses what the schema does not know."""
    inits = study.get("inits") if isinstance(study.get("inits"), dict) else {}
    learned = sorted({init for on in inits.values() for init in on or []} - {"scratch", *(study.get("files") or {})})
    changes = {name: own for name, own in (study.get("methods") or {}).items() if isinstance(own, dict)}
    datasets = [study.get("dataset", ""), *(study.get("external") or []), *(study.get("pool") or [])]
    resolved = {"study": study, "datasets": {name: numbers("datasets", name) for name in datasets}}
    resolved["backbones"] = {name: backbone_numbers(study, name) for name in inits}
    bases = {name: changes.get(name, {}).get("method", name) for name in learned}
    resolved["methods"] = {base: method_numbers(study, base, changes.get(base, {})) for base in set(bases.values())}
    for name, base in ((name, base) for name, base in bases.items() if name != base):
        own = changes.get(base, {}) | {k: v for k, v in changes[name].items() if k not in ("method", "title")}
        resolved.setdefault("variants", {}).setdefault(base, {})[name] = method_numbers(study, base, own)
    resolved = json.loads(json.dumps(resolved))  # what a YAML anchor shares would share its defaults too
    known = jsonschema.Draft202012Validator(json.loads(Path(SCHEMA).read_text(encoding="utf-8")))
    if (error := jsonschema.exceptions.best_match(known.iter_errors(resolved))) is not None:
        raise WorkflowError(sentence(error))
    validate(resolved, SCHEMA)  # fills in the defaults
    return resolved


def card_hash(card):
    return sha256(json.dumps(card, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def listing(source):
    """Names and sizes of scans used in place: what is added or replaced is taken in, a new time stamp is no change."""
    found = Path(source["path"]).rglob("*") if source["kind"] == "folder" and source["path"] else []
    return card_hash(sorted((str(p), p.stat().st_size) for p in found if p.is_file()))


def class_values(dataset):
    known = {} if dataset in STUDY["pool"] else RESOLVED["datasets"][dataset]["classes"]
    return [known.get(name, []) for name in STUDY["classes"]]


def dataset_cards(name):
    """Cards of fetch, simulate, intake and prepare for one dataset."""
    d = RESOLVED["datasets"][name] | {"dataset": name, "prepare": STUDY["prepare"]}
    yield f"fetch/{name}", {key: d[key] for key in ("dataset", "source")}
    if "simulate" in d:
        yield f"simulate/{name}", {key: d[key] for key in ("dataset", "layout", "simulate")}
        d["layout"] = {"kind": "folder", "root": "."} | {f"{k}s": f"{k}s/{{case}}.nii.gz" for k in ("image", "label")}
    d["simulated"] = "simulate" in d
    both = ("dataset", "channels", *(["ignore"] if name in IGNORED else []))
    yield f"intake/{name}", {key: d[key] for key in (*both, *TAKEN_IN)}
    yield f"prepare/{name}", {key: d[key] for key in (*both, "prepare")} | {"classes": class_values(name)}


def network(backbone):
    b, channels = RESOLVED["backbones"][backbone], len(RESOLVED["datasets"][STUDY["dataset"]]["channels"])
    return {"backbone": backbone, "family": b["family"], "architecture": b[b["family"]], "channels": channels}


def pretrain_card(cell):
    backbone, init = cell["backbone"], cell["init"]
    rest = {"pretrain": BUDGET | {"seed": cell["pretrain_seed"]}, "pool": STUDY["pool"], "fold": cell["fold"]}
    rest["recipe"] = RESOLVED["backbones"][backbone]["pretrain"]
    return {"method": VARIANTS.get(init, init), "config": METHODS[init], **network(backbone), **rest}


def file_card(file):
    """Says of a file of weights what a card holds: its content, and how it is taken over."""
    if not Path(file["path"]).is_file():
        raise WorkflowError(f"config: files: {file['path']} is missing: correct the path.")
    with open(file["path"], "rb") as content:
        return {"sha256": file_digest(content, "sha256").hexdigest(), **{k: file[k] for k in ("channels", "decoder")}}


def finetune_card(cell):
    backbone, init = cell["backbone"], cell["init"]
    what = {"init": init, "classes": STUDY["classes"], "prepare": STUDY["prepare"], **network(backbone)}
    what["init_card"] = card_hash(pretrain_card(cell)) if init in METHODS else None
    what |= REGIONS | ({"init_file": FILES[init]} if init in FILES else {})
    what["recipe"] = RESOLVED["backbones"][backbone]["scratch" if init == "scratch" else "finetune"]
    what |= {key: value for key, value in STUDY["finetune"].items() if key != "seeds"}
    return what | {key: cell[key] for key in ("budget", "fold", "seed")}


def cell_name(cell):
    before = "" if cell["pretrain_seed"] is None else f"pretrain{cell['pretrain_seed']}_"
    return CELL.format(**cell, network=f"{before}seed{cell['seed']}")


def all_cards():
    """Every run card of the study by its path below R/cards, without the ending."""
    cards = dict(card for name in DATASETS for card in dataset_cards(name))
    cards["split"] = {key: STUDY[key] for key in ("split", "allow_leakage")} | LEARNED
    cards |= {f"pretrain/{PRETRAINING}".format(**run): pretrain_card(run) for run in PRETRAININGS}
    cards |= {f"finetune/{cell_name(cell)}": finetune_card(cell) for cell in CELLS}
    cards |= {f"predict/fold{k}": {"predict": STUDY["predict"], "fold": k} | SURE for k in FOLDS}
    cards["score"] = {k: STUDY[k] for k in ("classes", "score")} | {"datasets": VALUES} | REGIONS | UNKNOWN
    cards["compare"] = {key: STUDY[key] for key in ("study", "title", "dataset", "external", "classes", "compare")}
    cards["compare"] |= {"simulated": "simulate" in RESOLVED["datasets"][STUDY["dataset"]], "cells": CELLS} | VARIED
    return cards
