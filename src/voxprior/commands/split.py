"""split: freezes who trains, who validates, who tests, and which labels each budget may use."""

from pathlib import Path


def run(card: Path, index: Path, output: Path) -> None:
    """Splits the cases of a prepared dataset by patient and writes the lists with their hash."""
    from voxprior.cards import read_card
    from voxprior.data import cache
    from voxprior.data.files import sha256_of_json
    from voxprior.maths import splits
    from voxprior.whole import write_json

    wanted = read_card("split", card).split
    cases = [
        splits.Case(
            case["case"],
            case["patient"],
            case["person"],
            case["label"] is not None,
            frozenset(number for number, voxels in enumerate(case["class_voxels"], 1) if voxels),
        )
        for case in cache.read_index(index)["cases"]
    ]
    folds = splits.split(cases, wanted.test, wanted.val, wanted.budgets, wanted.folds, wanted.seed)
    write_json(output, {"format": 1, "sha256": sha256_of_json(folds), "folds": folds})
