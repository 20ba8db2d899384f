"""`voxprior schema`: merges the cards' models with every method's Config into one JSON schema."""

import json
import os
from pathlib import Path
from typing import Any


def build() -> dict[str, Any]:
    """Builds the schema of a resolved study: cards.Resolved, with each method's own Config in place of a free dict."""
    from voxprior.cards import Resolved
    from voxprior.methods import METHODS, load

    schema = Resolved.model_json_schema()
    configs: dict[str, Any] = {}
    for name in METHODS:
        config = load(name).Config.model_json_schema()
        schema["$defs"].update(config.pop("$defs", {}))
        schema["$defs"][f"method_{name}"] = config
        configs[name] = {"$ref": f"#/$defs/method_{name}"}
    schema["properties"]["methods"] = {"type": "object", "properties": configs, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "voxprior study", **schema}


def run(output: Path) -> None:
    """Writes the schema; `tests/house` fails when the committed one is stale."""
    part = output.with_name(output.name + ".part")
    part.write_text(json.dumps(build(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, output)
