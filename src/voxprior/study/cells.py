"""Which networks a study trains: its arms, pretrainings and cells, and the names of their folders.

A *cell* is one fine-tuning: `{"backbone", "init", "budget", "fold", "pretrain_seed", "seed"}`. `pretrain_seed` is None
where the study pretrains nothing: from scratch, and from files of weights. Imports the standard library alone: it is
read every other second by `watch`. The workflow has the same names in `workflow/rules/check.smk`.
"""

import re
from typing import Any, NamedTuple

Cell = dict[str, Any]
NAME = re.compile(
    r"(?P<backbone>[^/]+)/(?P<init>[^/]+)/(?:budget(?P<budget>\d+)/)?fold(?P<fold>\d+)/"
    r"(?:pretrain(?P<pretrain_seed>-?\d+)_)?seed(?P<seed>-?\d+)"
)


class Named(NamedTuple):
    """What the name of a training's folder says. A pretraining has no budget, and `seed` is None."""

    backbone: str
    init: str
    budget: int | None
    fold: int
    pretrain_seed: int | None
    seed: int | None


def arms_of(study: dict[str, Any]) -> list[tuple[str, str]]:
    """Lists (backbone, init) in the order of the study, scratch first."""
    return [(b, init) for b, inits in study["inits"].items() for init in sorted(inits, key=lambda i: i != "scratch")]


def pretrained(study: dict[str, Any]) -> list[tuple[str, str]]:
    """Lists the (backbone, init) that the study itself pretrains: neither scratch nor files of weights."""
    return [(b, init) for b, init in arms_of(study) if init != "scratch" and init not in study.get("files", {})]


def method_of(study: dict[str, Any], init: str) -> str:
    """Names the method of an init that is pretrained: its own name, or what the study says that it is a variant of."""
    return str((study.get("methods") or {}).get(init, {}).get("method", init))


def variant_title(study: dict[str, Any], init: str) -> str | None:
    """Says what tables and figures call a variant of a method; None for an init that is none."""
    if method_of(study, init) == init:
        return None
    return str(study["methods"][init].get("title") or init)


def pretrain_seeds(study: dict[str, Any], init: str | None = None) -> list[Any]:
    """Lists the seeds of a study's pretrainings; `[None]` for an init that it does not pretrain."""
    if init is not None and (init == "scratch" or init in study.get("files", {})):
        return [None]
    return list(study.get("pretrain", {}).get("seeds", [0]))


def pretrainings_of(study: dict[str, Any], backbone: str, init: str) -> list[Cell]:
    """Lists the pretrainings of one arm: backbone, init, fold, pretrain_seed; none where it has no pretraining."""
    return [
        {"backbone": backbone, "init": init, "fold": fold, "pretrain_seed": seed}
        for fold in range(study["split"].get("folds", 1))
        for seed in pretrain_seeds(study, init)
        if seed is not None
    ]


def cells_of(study: dict[str, Any], backbone: str, init: str, budget: int | None = None) -> list[Cell]:
    """Lists the cells of one arm, of all budgets or of one."""
    budgets = study["split"]["budgets"] if budget is None else [budget]
    return [
        {"backbone": backbone, "init": init, "budget": b, "fold": fold, "pretrain_seed": pretrain_seed, "seed": seed}
        for b in budgets
        for fold in range(study["split"].get("folds", 1))
        for pretrain_seed in pretrain_seeds(study, init)
        for seed in study["finetune"]["seeds"]
    ]


def cell_name(cell: Cell) -> str:
    """Names a cell's folder below `finetune`; the last part says by which seeds its network came about."""
    # Cards of before had one pretraining of each method, and did not name its seed.
    before = "" if cell.get("pretrain_seed") is None else f"pretrain{cell['pretrain_seed']}_"
    return "{backbone}/{init}/budget{budget}/fold{fold}/".format(**cell) + f"{before}seed{cell['seed']}"


def pretraining_name(cell: Cell) -> str:
    """Names the folder below `pretrain` of what `pretrainings_of` lists, or of what a cell starts from."""
    return "{backbone}/{init}/fold{fold}/seed{pretrain_seed}".format(**cell)


def read_name(name: str) -> Named | None:
    """Reads what `cell_name` or `pretraining_name` wrote; None where it is neither."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    budget, before, seed = (
        None if found[part] is None else int(found[part]) for part in ("budget", "pretrain_seed", "seed")
    )
    if budget is None:  # of a pretraining
        if before is not None:
            return None
        before, seed = seed, None
    return Named(found["backbone"], found["init"], budget, int(found["fold"]), before, seed)
