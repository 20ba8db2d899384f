"""`voxprior export --to onnx | torchscript`: the network alone, with a sidecar that says what goes in and comes out."""

from pathlib import Path


def write(weights: Path, output: Path, to: str, tolerance: float) -> None:
    """Exports, compares with the network, and writes the graph and `<output>.json`.

    Raises:
        Refusal: no model file, packages are missing, or the graph differs by more than the tolerance.
    """
    from voxprior.data.files import sha256_of
    from voxprior.exchange import graph
    from voxprior.exchange.models import read_model
    from voxprior.whole import whole, write_json

    model = read_model(weights)
    make, open_ = (graph.onnx, graph.run_onnx) if to == "onnx" else (graph.torchscript, graph.run_torchscript)
    content = make(model.network, model.shape_czyx)
    worst = graph.difference(model.network, open_(content), model.shape_czyx)
    graph.demand_equal(worst, tolerance, to)
    with whole(output, need_bytes=len(content)) as part:
        part.write_bytes(content)
    told = {"format": 1, "kind": to, **model.layout(), "largest_difference": worst}
    told |= {"made_from": {"model_sha256": sha256_of(weights)}, "card": model.about.get("card")}
    told["training_cases"] = model.about.get("training_cases", {})
    write_json(output.with_name(output.name + ".json"), told)
    print(f"{output}: {len(content) / 2**20:.1f} MiB, logits within {worst:.1e} of the network's")
    print(f"{output.name}.json beside it says what goes in and comes out")
