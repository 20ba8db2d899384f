"""`voxprior schema`: merges the cards' models with every method's Config into one JSON schema."""

from pathlib import Path
from typing import Any


def build() -> dict[str, Any]:
    """Builds the schema of a resolved study: `Resolved`, with each method's own Config in place of a free dict."""
    from voxprior.configuration import Resolved
    from voxprior.methods import METHODS, load

    schema = Resolved.model_json_schema()
    configs: dict[str, Any] = {}
    for name in METHODS:
        config = load(name).Config.model_json_schema()
        schema["$defs"].update(config.pop("$defs", {}))
        schema["$defs"][f"method_{name}"] = config
        configs[name] = {"$ref": f"#/$defs/method_{name}"}
    schema["$defs"] = {name: without_null_objects(part) for name, part in schema["$defs"].items()}
    schema["properties"]["methods"] = {"type": "object", "properties": configs, "additionalProperties": False}
    named = {name: {"type": "object", "additionalProperties": config} for name, config in configs.items()}
    schema["properties"]["variants"] = {"type": "object", "properties": named, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "voxprior study", **schema}


def without_null_objects(part: dict[str, Any]) -> dict[str, Any]:
    """Lets optional blocks (`vit`, `simulate`) be absent but not null.

    Snakemake's `validate` fills defaults into every alternative of an `anyOf`, and fails on one that is null.
    """
    for name, given in part.get("properties", {}).items():
        blocks = [choice for choice in given.get("anyOf", []) if "$ref" in choice]
        if blocks:
            part["properties"][name] = blocks[0]
    return part


def run(output: Path) -> None:
    """Writes the schema; `tests/house` fails when the committed one is stale."""
    from voxprior.whole import write_json

    write_json(output, build(), sort_keys=True)
