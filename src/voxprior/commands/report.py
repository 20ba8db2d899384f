"""report: writes the report of a finished study, one HTML file, and the card of its models."""

from pathlib import Path
from typing import Any


def run(config: Path, results: Path, output: Path) -> None:
    """Reads what the steps have written, draws it, and writes the page.

    Beside it lie its figures as `figures/*.svg`, and `model_card.md`.

    Raises:
        Refusal: something that a finished study has is missing.
    """
    from voxprior.configuration import Resolved, read_model
    from voxprior.study import model_card, report
    from voxprior.whole import write_text

    content = read_model(Resolved, config, "correct the study").model_dump(mode="json")
    built = report.build(content, results, _read_overlays(content, results))
    for name, svg in built.figures.items():
        write_text(output.parent / "figures" / f"{name}.svg", svg)
    write_text(output.parent / "model_card.md", model_card.build(content, results))
    write_text(output, built.html)
    print(f"{output}: {len(built.html.encode()) / 2**20:.2f} MiB, {len(built.figures)} figures beside it")


def _read_overlays(config: dict[str, Any], results: Path) -> list[Any]:
    """Reads the worst and the median test case of each backbone, as each init segments them."""
    from voxprior.errors import Refusal
    from voxprior.study import facts, gather
    from voxprior.study.report import Overlay

    study = config["study"]
    table = gather.read_table(results / "intake" / study["dataset"] / "cases.csv")
    rows = table.set_index("case")[["image", "label"]].to_dict("index")
    overlays = []
    for backbone, picked in facts.picked_cases(results, study).items():
        for which, case in picked:
            for init in [init for b, init in facts.arms_of(study) if b == backbone]:
                try:
                    prediction = _prediction_of(results, study, backbone, init, case)
                    overlays.append(Overlay(backbone, init, which, case, _read_scan(config, rows[case], prediction)))
                except Refusal as reason:
                    # A report made where the scans are no longer kept is still a report: it says what is not shown.
                    overlays.append(Overlay(backbone, init, which, case, None, str(reason)))
    return overlays


def _prediction_of(results: Path, study: dict[str, Any], backbone: str, init: str, case: str) -> Path:
    """Finds the prediction of a case with the largest budget, first seed of the fold that tests it."""
    from voxprior.errors import Refusal
    from voxprior.study import facts, gather

    for cell in facts.cells_of(study, backbone, init, max(study["split"]["budgets"])):
        listed = gather.cell_folder(results, cell) / "predictions.json"
        for entry in gather.read_json(listed)["cases"]:
            if entry["case"] == case and entry["dataset"] == study["dataset"]:
                beside = listed.parent / entry["file"]
                return beside if beside.exists() else Path(entry["file"])
    raise Refusal(f"no prediction of case '{case}' by {init} on {backbone} is listed: rerun 'predict'")


def _read_scan(config: dict[str, Any], row: dict[Any, str], prediction: Path) -> Any:
    """Reads scan, label and prediction in LPS order, intensities mapped to [0, 1] as the study maps them."""
    import numpy as np

    from voxprior.data import channels, volume
    from voxprior.errors import Refusal
    from voxprior.study.figures import Scan

    of_all = config["datasets"][config["study"]["dataset"]].get("channels", ["image"])
    first = next(channels.read_channels(row["image"], len(of_all), verify=False))  # the one that is shown
    image, grid = volume.to_lps(first)
    label, _ = volume.to_lps(volume.read_label(row["label"], verify=False)[0])
    predicted, _ = volume.to_lps(volume.read_label(prediction, verify=False)[0])
    if not image.shape == label.shape == predicted.shape:
        raise Refusal(f"{prediction} does not lie on its scan's grid: rerun 'predict'")
    study = config["study"]
    values = config["datasets"][study["dataset"]]["classes"]
    ids = np.zeros(1 << 16, np.uint8)
    for number, name in enumerate(study["classes"], start=1):
        ids[values.get(name, [])] = number
    intensity = study["prepare"]["intensity"]
    low, high = intensity["low"], intensity["high"]
    if intensity["kind"] == "percentile":
        low, high = np.percentile(image, [low, high])
    scaled = np.clip((image.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    return Scan(scaled, ids[label], predicted.astype(np.uint8), grid.spacing_zyx_mm)
