"""`voxprior export --to monai-bundle`: a folder that `python -m monai.bundle run` segments scans with."""

from pathlib import Path
from typing import Any


def write(weights: Path, output: Path, study: dict[str, Any] | None, tolerance: float) -> None:
    """Writes the bundle; `configs/metadata.json` comes last.

    Args:
        weights: `model.safetensors`.
        output: the bundle's folder.
        study: {"config", "results"} of the study, where it was given.
        tolerance: largest difference of the traced network.

    Raises:
        Refusal: no model file, a preprocessing that a bundle cannot say, or the traced network differs.
    """
    from importlib.metadata import version

    from voxprior.exchange import bundle, graph
    from voxprior.exchange.models import read_model
    from voxprior.whole import whole, write_json, write_text

    model = read_model(weights)
    z, y, x = model.window_zyx
    axes, shape = bundle.MonaisAxes(model.network).eval(), (model.channels, x, y, z)
    config = bundle.inference(model, _overlap(study))
    content = graph.torchscript(axes, shape)
    worst = graph.difference(axes, graph.run_torchscript(content), shape)
    graph.demand_equal(worst, tolerance, "TorchScript")
    with whole(output / "models" / "model.ts", need_bytes=len(content)) as part:
        part.write_bytes(content)
    data = [study["config"]["datasets"][study["config"]["study"]["dataset"]]] if study else []
    title = (study["config"]["study"].get("title") or study["config"]["study"]["study"]) if study else "voxprior model"
    script = Path(bundle.__file__).with_name("smoothing.py").read_text(encoding="utf-8")
    write_text(output / "scripts" / "smoothing.py", script)
    write_text(output / "scripts" / "__init__.py", "")
    write_json(output / "configs" / "inference.json", config)
    write_text(output / "docs" / "README.md", bundle.readme(title, model, _card(study), worst))
    write_text(output / "LICENSE", bundle.licence(data))
    versions = {name: version(name).split("+")[0] for name in ("monai", "torch", "numpy")}
    write_json(output / "configs" / "metadata.json", bundle.metadata(model, title, data, versions))
    print(f"{output}: MONAI bundle, logits within {worst:.1e} of the network's")
    print(f"cd {output} && python -m monai.bundle run --config_file configs/inference.json --bundle_root .")


def _overlap(study: dict[str, Any] | None) -> float:
    """Finds how far windows overlap when the study predicts."""
    return float((study["config"]["study"].get("predict") or {}).get("overlap", 0.5)) if study else 0.5


def _card(study: dict[str, Any] | None) -> str | None:
    """Reads the study's model card, where it has one."""
    path = study["results"] / "model_card.md" if study else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None
