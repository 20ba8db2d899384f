"""What a name stands for: files of `config/`, of the working folder first, then of the project's checkout."""

from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

PROJECT = Path(__file__).parents[3]


def folders(kind: str) -> list[Path]:
    """Lists where files of a kind (`datasets`, `backbones`, `methods`) may lie, the nearer first."""
    return [Path("config") / kind, PROJECT / "config" / kind]


def numbers(kind: str, name: str) -> tuple[dict[str, Any], Path]:
    """Reads config/<kind>/<name>.yaml: (its content, the file).

    Raises:
        Refusal: there is none; the sentence names those that are there.
    """
    import yaml

    for folder in folders(kind):
        if (path := folder / f"{name}.yaml").exists():
            return yaml.safe_load(path.read_text(encoding="utf-8")), path
    known = sorted({path.stem for folder in folders(kind) for path in folder.glob("*.yaml")})
    raise Refusal(f"no config/{kind}/{name}.yaml: choose from {', '.join(known)}, or go to the study's folder")
