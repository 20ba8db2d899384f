"""How much of a pretraining's step is its decoder: counted for every pretraining of a study, as JSON.

    python benchmarks/decoders.py --results results/hippocampus_decoders --output docs/results/hippocampus_decoders

Nothing is computed (`engine/estimate.py`); the study's cards must be there, its runs need not.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from voxprior.cards import read_card  # noqa: E402
from voxprior.commands.pretrain import build, recipe_of  # noqa: E402
from voxprior.engine import estimate  # noqa: E402
from voxprior.study import cells  # noqa: E402
from voxprior.whole import write_json  # noqa: E402


def count(card_path: Path) -> dict[str, Any]:
    """Counts one pretraining: its steps, the FLOPs of one, and those of the decoder among them."""
    card = read_card("pretrain", card_path)
    model, region, _ = build(card, card_path, on="meta")
    run = card.pretrain
    cost = estimate.cost(model, region, run.batch_size, run.precision, recipe_of(card, card_path))
    steps = estimate.steps_for(run.voxels, run.batch_size, model.student_voxels)
    return {"backbone": card.backbone, "method": card.method, "steps": steps, "flops_per_step": cost.flops,
            "decoder_flops_per_step": cost.decoder_flops}  # fmt: skip


def main() -> None:
    """Counts the first pretraining of every arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the study's results folder, with its cards")
    parser.add_argument("--output", type=Path, required=True, help="folder for decoders.json")
    asked = parser.parse_args()
    study = json.loads((asked.results / "config.json").read_text(encoding="utf-8"))["study"]
    found = []
    for backbone, init in cells.pretrained(study):
        name = cells.pretraining_name(cells.pretrainings_of(study, backbone, init)[0])
        found.append({"init": init, **count(asked.results / "cards" / "pretrain" / f"{name}.json")})
        print(found[-1])
    write_json(asked.output / "decoders.json", {"format": 1, "study": study["study"], "arms": found})


if __name__ == "__main__":
    main()
