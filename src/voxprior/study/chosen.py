"""The one segmentation model of a study that is registered, by a rule that never looks at the test set."""

from pathlib import Path
from typing import Any, NamedTuple

from voxprior.study import cells, gather

# Columns of registries hold this many characters.
LONGEST = 5000
RULE = (
    "Chosen by a fixed rule and not by its scores: the largest label budget, of the last init of the last backbone in "
    "the study, the last fold and seeds. Nothing but the test cases was scored, and whoever chooses by these must not "
    "report them."
)


class Chosen(NamedTuple):
    """A model, its place below the results folder, and the text that goes with it."""

    name: str
    weights: Path
    card: Path | None
    description: str
    tags: dict[str, str]


def choose(config: dict[str, Any], results: Path) -> Chosen | None:
    """Takes the model that stands as the example on the model card; None while it is not trained and scored.

    Args:
        config: the resolved study.
        results: its results folder.
    """
    study = config["study"]
    cell = cells.cells_of(study, *cells.arms_of(study)[-1], budget=max(study["split"]["budgets"]))[-1]
    folder = gather.cell_folder(results, cell)
    if not all((folder / name).is_file() for name in ("model.safetensors", "summary.json", "scores.csv")):
        return None
    summary = gather.read_json(folder / "summary.json")
    card = results / "model_card.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    tags = {"study": study["study"], "dataset": study["dataset"], "card_hash": summary["card_hash"]}
    tags |= {key: str(value) for key, value in cell.items() if value is not None} | {
        "chosen_by": "fixed rule, not by test scores"
    }
    name = folder.relative_to(results).as_posix()
    return Chosen(name, folder / "model.safetensors", card if text else None, _shorten(f"{RULE}\n\n{text}"), tags)


def _shorten(text: str) -> str:
    """Cuts a text to what a registry holds, at the end of a paragraph."""
    if len(text) <= LONGEST:
        return text
    tail = "\n\nThe rest stands in `model_card.md` among the run's artifacts."
    return text[: LONGEST - len(tail)].rsplit("\n\n", 1)[0] + tail
