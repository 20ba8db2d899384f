"""`voxprior check`: refuses impossible combinations before any other job."""

from pathlib import Path
from typing import Any

from voxprior.errors import Refusal


def run(config: Path, output: Path) -> None:
    """Checks a resolved study and writes what was checked.

    Raises:
        Refusal: a method does not fit its backbone, a crop its strides, a class no dataset, a budget the patients.
    """
    from voxprior.configuration import Resolved
    from voxprior.strict import read_model
    from voxprior.whole import write_json

    resolved = read_model(Resolved, config, "correct the study")
    check_classes(resolved)
    check_regions(resolved)
    check_metrics(resolved)
    check_channels(resolved)
    check_pool(resolved)
    check_names(resolved)
    check_variants(resolved)
    check_split(resolved)
    check_seeds(resolved)
    checked = [check_arm(resolved, backbone, init) for backbone, on in resolved.study.inits.items() for init in on]
    trainings = count_trainings(resolved)
    write_json(output, {"format": 1, "checked": checked, "trainings": trainings})
    print(f"{output}: {trainings['pretrain']} pretrainings and {trainings['finetune']} fine-tunings make this study")


def check_classes(resolved: Any) -> None:
    """Refuses classes that the main dataset does not label, and class names used twice."""
    study = resolved.study
    known = resolved.datasets[study.dataset].classes
    missing = [name for name in study.classes if name not in known]
    if missing:
        raise Refusal(
            f"config: classes {', '.join(missing)} are not labelled in dataset {study.dataset}: "
            f"choose from {', '.join(known)}"
        )
    if len(set(study.classes)) < len(study.classes):
        raise Refusal("config: a class stands twice in classes: name each once")
    for name in study.external:
        if not set(resolved.datasets[name].classes) & set(study.classes):
            raise Refusal(f"config: external dataset {name} labels none of the study's classes: remove it")


def check_regions(resolved: Any) -> None:
    """Refuses classes that overlap and do not say so, and those that no label map can hold in their order."""
    from itertools import combinations

    from voxprior.maths.regions import demand_paintable

    study = resolved.study
    own = resolved.datasets[study.dataset].classes
    for name in (study.dataset, *study.external):
        dataset, file = resolved.datasets[name], f"config/datasets/{name}.yaml"
        check_values(dataset, file)
        chosen = [known for known in study.classes if known in dataset.classes]
        for a, b in combinations(chosen, 2):
            shared = sorted(set(dataset.classes[a]) & set(dataset.classes[b]))
            if shared and not {a, b} <= set(dataset.regions):
                raise Refusal(
                    f"{file}: classes {a} and {b} share the value {shared[0]}: name both in 'regions', larger ones "
                    "first, or give each value to one class"
                )
            if bool(shared) != bool(set(own[a]) & set(own[b])):
                raise Refusal(
                    f"{file}: classes {a} and {b} overlap in {name if shared else study.dataset} and not in "
                    f"{study.dataset if shared else name}: make them mean the same in both, or leave {name} out"
                )
    regions = resolved.datasets[study.dataset].regions
    order = [name for name in regions if name in study.classes]
    if order != [name for name in study.classes if name in regions]:
        raise Refusal(
            f"config: classes must name {', '.join(order)} in this order, in which dataset {study.dataset} paints them"
        )
    demand_paintable(study.classes, [own[name] for name in study.classes], "config: classes")


def check_metrics(resolved: Any) -> None:
    """Refuses a metric that this study's predictions do not allow."""
    overlapping = resolved.datasets[resolved.study.dataset].regions
    if overlapping and "calibration_error" in resolved.study.score.metrics:
        raise Refusal(
            f"config: score.metrics: calibration_error needs one probability a voxel, and {overlapping[0]} overlaps "
            "other classes: leave it out"
        )


def check_values(dataset: Any, file: str) -> None:
    """Refuses regions that are no classes, and values that are both ignored and of a class."""
    if unknown := [name for name in dataset.regions if name not in dataset.classes]:
        raise Refusal(
            f"{file}: regions names {unknown[0]}, which is no class: choose from {', '.join(dataset.classes)}"
        )
    if len(set(dataset.regions)) < len(dataset.regions):
        raise Refusal(f"{file}: a class stands twice in regions: name each once")
    for name, values in dataset.classes.items():
        if both := sorted(set(values) & set(dataset.ignore)):
            raise Refusal(f"{file}: value {both[0]} is ignored and belongs to class {name}: take it out of one of both")


def check_channels(resolved: Any) -> None:
    """Refuses intensity ranges of channels that no scan has, external scans with others, and simulating several."""
    study = resolved.study
    names = resolved.datasets[study.dataset].channels
    unknown = [name for name in study.prepare.channels if name not in names]
    if unknown:
        raise Refusal(
            f"config: prepare.channels names {', '.join(unknown)}, and dataset {study.dataset} has {', '.join(names)}: "
            "choose from these"
        )
    for kind, name in (*(("external", name) for name in study.external), *(("pool", name) for name in study.pool)):
        others = resolved.datasets[name].channels
        if others != names:
            raise Refusal(
                f"config: {kind} dataset {name} has the channels {', '.join(others)} where {study.dataset} has "
                f"{', '.join(names)}: a model needs the same, in the same order"
            )
    for name, dataset in resolved.datasets.items():
        if len(set(dataset.channels)) < len(dataset.channels):
            raise Refusal(f"config/datasets/{name}.yaml: a channel stands twice in channels: name each once")
        if dataset.simulate is not None and len(dataset.channels) > 1:
            raise Refusal(f"config/datasets/{name}.yaml: simulate takes scans of one channel: leave one of the two out")


def check_pool(resolved: Any) -> None:
    """Refuses a pool that nothing is pretrained on, that names a dataset twice, or one that is scored."""
    study = resolved.study
    if twice := [name for name in study.pool if name in (study.dataset, *study.external) or study.pool.count(name) > 1]:
        raise Refusal(
            f"config: pool names {twice[0]}, which is the study's dataset, an external one, or stands there twice: "
            "take it out"
        )
    if study.pool and all(init in ("scratch", *study.files) for on in study.inits.values() for init in on):
        raise Refusal("config: pool is given and no init is pretrained: add one to inits, or take pool out")


def check_names(resolved: Any) -> None:
    """Refuses files that are called like a method or that no backbone starts from, and recipes of no backbone."""
    from voxprior.methods import METHODS

    study = resolved.study
    used = {init for inits in study.inits.values() for init in inits}
    for backbone, inits in study.inits.items():
        if twice := [init for init in inits if list(inits).count(init) > 1]:
            raise Refusal(
                f"config: inits.{backbone} names {twice[0]} twice, and the same network counts once: remove one"
            )
    for name in study.files:
        if name in ("scratch", *METHODS):
            raise Refusal(f"config: files.{name} is called like an init that is no file: give it another name")
        if name not in used:
            raise Refusal(f"config: files.{name} stands in no list of inits: add it there, or remove it")
    for name in study.recipes:
        if name not in study.inits:
            raise Refusal(f"config: recipes.{name} is no backbone of this study: choose from {', '.join(study.inits)}")


def check_variants(resolved: Any) -> None:
    """Refuses changes of methods that there are not, and variants that are named like others or are equal to one."""
    from voxprior.methods import METHODS

    study = resolved.study
    used = {init for inits in study.inits.values() for init in inits}
    known = ", ".join(METHODS)
    for name, changes in study.methods.items():
        where = f"config: methods.{name}"
        if "method" not in changes:
            if name not in METHODS:
                raise Refusal(
                    f"{where} is no method: choose from {known}, or name the one that it varies as its 'method'"
                )
            continue
        if changes["method"] not in METHODS:
            raise Refusal(f"{where} varies {changes['method']!r}, which is no method: choose from {known}")
        if name in ("scratch", *METHODS, *study.files):
            raise Refusal(f"{where} is a variant and called like another init: give it another name")
        if name not in used:
            raise Refusal(f"{where} stands in no list of inits: add it there, or remove it")
        if not isinstance(changes.get("title", ""), str):
            raise Refusal(f"{where}.title is no text: put it into quotes")
    for base, variants in resolved.variants.items():
        seen = {base: numbers_of(resolved, base)}
        for name in variants:
            own = numbers_of(resolved, name)
            if equal := [other for other, config in seen.items() if config == own]:
                raise Refusal(
                    f"config: methods.{name} has the same numbers as {equal[0]}: change one, or start from {equal[0]}"
                )
            seen[name] = own


def numbers_of(resolved: Any, init: str) -> Any:
    """Takes the numbers of a method or of a variant, as the method's own Config.

    Raises:
        Refusal: the method does not know one of them.
    """
    from voxprior.methods import load
    from voxprior.strict import validated

    base = next((base for base, variants in resolved.variants.items() if init in variants), init)
    given = resolved.methods[init] if base == init else resolved.variants[base][init]
    return validated(load(base).Config, given, f"config: methods.{init}", "correct the study")


def check_split(resolved: Any) -> None:
    """Refuses budgets that are not increasing, or larger than the simulated patients that remain for training."""
    study = resolved.study
    budgets = list(study.split.budgets)
    if budgets != sorted(set(budgets)):
        raise Refusal(f"config: split.budgets {budgets} must increase, each once: they are nested")
    if study.finetune.patience and not (study.split.val and study.finetune.validations):
        raise Refusal(
            "config: finetune.patience ends runs by the val patients, and there are none: set split.val and "
            "finetune.validations to 1 or more, or patience to 0"
        )
    simulate = resolved.datasets[study.dataset].simulate
    if simulate is not None:
        left = simulate.patients - study.split.test - study.split.val
        if budgets[-1] > left:
            raise Refusal(
                f"config: split.budgets asks for {budgets[-1]} labelled cases, but {simulate.patients} simulated "
                f"patients less {study.split.test} test and {study.split.val} val leave {left}: lower it"
            )


def check_seeds(resolved: Any) -> None:
    """Refuses a seed that stands twice: the same network would count as two."""
    for stage in ("pretrain", "finetune"):
        seeds = getattr(resolved.study, stage).seeds
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise Refusal(f"config: {stage}.seeds has {twice[0]} twice, and the same network counts once: change one")


def count_trainings(resolved: Any) -> dict[str, int]:
    """Counts the trainings of a study, by stage."""
    from voxprior.study.cells import arms_of, cells_of, pretrainings_of

    study = resolved.study.model_dump(mode="json")
    arms = arms_of(study)
    return {
        "pretrain": sum(len(pretrainings_of(study, *arm)) for arm in arms),
        "finetune": sum(len(cells_of(study, *arm)) for arm in arms),
    }


def check_arm(resolved: Any, backbone_name: str, init: str) -> dict[str, Any]:
    """Refuses one backbone x init that cannot work; returns what was checked."""
    from voxprior.methods import METHODS, load
    from voxprior.nets.backbones import Backbone
    from voxprior.study.cells import method_of

    spec = resolved.backbones[backbone_name]
    backbone = Backbone(backbone_name, spec.family, spec.sizes.model_dump())
    crop_vox = resolved.study.finetune.crop_vox
    unit_vox = backbone.segmenter_unit_vox
    if any(side % unit_vox for side in crop_vox):
        raise Refusal(
            f"config: finetune.crop_vox {list(crop_vox)} does not suit {backbone_name}: "
            f"make each side a multiple of {unit_vox}"
        )
    if init != "scratch" and init not in resolved.study.files:
        base = method_of(resolved.study.model_dump(include={"methods"}), init)
        if base not in METHODS:
            raise Refusal(
                f"config: unknown init {init!r} on {backbone_name}; known: scratch, {', '.join(METHODS)}, and what "
                "stands in the study's files or is a variant among its methods"
            )
        method, config = load(base), numbers_of(resolved, init)
        reason = method.accepts(backbone)
        if reason is not None:
            raise Refusal(f"config: {init} cannot run on {backbone_name}: {reason}")
        method.region(config, backbone)
    return {"backbone": backbone_name, "init": init}
