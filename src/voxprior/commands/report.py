"""report: writes the report of a finished study, one HTML file, and the card of its models."""

from pathlib import Path
from typing import Any


def run(config: Path, results: Path, output: Path) -> None:
    """Reads what the steps have written, draws it, and writes the page.

    Beside it lie its figures as `figures/*.svg` and `*.pdf`, its tables for a paper as `tables/*.tex`, and
    `model_card.md`.

    Raises:
        Refusal: something that a finished study has is missing.
    """
    from voxprior.configuration import Resolved
    from voxprior.strict import read_model
    from voxprior.study import model_card, report
    from voxprior.whole import whole, write_text

    content = read_model(Resolved, config, "correct the study").model_dump(mode="json")
    built = report.build(content, results, _read_looks(content, results), beside=output.parent)
    for name, some in built.files.items():
        with whole(output.parent / name, need_bytes=len(some)) as part:
            part.write_bytes(some)
    write_text(output.parent / "model_card.md", model_card.build(content, results))
    write_text(output, built.html)
    print(f"{output}: {len(built.html.encode()) / 2**20:.2f} MiB, {len(built.files)} figures and tables beside it")


def _read_looks(config: dict[str, Any], results: Path) -> list[Any]:
    """Reads the picked test cases of each backbone, as each init segments them."""
    from voxprior.errors import Refusal
    from voxprior.study import cells, gather
    from voxprior.study.looks import Look, picked_cases

    study = config["study"]
    table = gather.read_table(results / "intake" / study["dataset"] / "cases.csv")
    rows = table.set_index("case")[["image", "label"]].to_dict("index")
    looks = []
    for backbone, picked in picked_cases(results, study).items():
        inits = [init for b, init in cells.arms_of(study) if b == backbone]
        for which, case in picked:
            found: dict[str, Path] = {}
            reasons: dict[str, str] = {}
            for init in inits:
                try:
                    found[init] = _prediction_of(results, study, backbone, init, case)
                except Refusal as reason:
                    reasons[init] = str(reason)
            try:
                look = Look(backbone, which, case, _read_case(config, rows[case], found, reasons), reasons)
            except Refusal as reason:
                # A report made where the scans are no longer kept is still a report: it says what is not shown.
                look = Look(backbone, which, case, None, {"": str(reason)})
            looks.append(look)
    return looks


def _prediction_of(results: Path, study: dict[str, Any], backbone: str, init: str, case: str) -> Path:
    """Finds the prediction of a case with the largest budget, first seeds of the fold that tests it."""
    from voxprior.errors import Refusal
    from voxprior.study import cells, gather

    for cell in cells.cells_of(study, backbone, init, max(study["split"]["budgets"])):
        listed = gather.cell_folder(results, cell) / "predictions.json"
        for entry in gather.read_json(listed)["cases"]:
            if entry["case"] == case and entry["dataset"] == study["dataset"]:
                beside = listed.parent / entry["file"]
                return beside if beside.exists() else Path(entry["file"])
    raise Refusal(f"no prediction of case '{case}' by {init} on {backbone} is listed: rerun 'predict'")


def _read_case(config: dict[str, Any], row: dict[Any, str], found: dict[str, Path], reasons: dict[str, str]) -> Any:
    """Reads scan, label and predictions in LPS order, intensities mapped to [0, 1] as the study maps them.

    A prediction that cannot be read is left out, and the reason added to `reasons`.
    """
    import numpy as np

    from voxprior.data import channels, volume
    from voxprior.errors import Refusal
    from voxprior.study.slices import Case

    of_all = config["datasets"][config["study"]["dataset"]].get("channels", ["image"])
    first = next(channels.read_channels(row["image"], len(of_all), verify=False))  # the one that is shown
    image, grid = volume.to_lps(first)
    label, _ = volume.to_lps(volume.read_label(row["label"], verify=False)[0])
    if image.shape != label.shape:
        raise Refusal(f"{row['label']} does not lie on its scan's grid: rerun 'intake'")
    predictions = {}
    for init, path in found.items():
        try:
            predicted, _ = volume.to_lps(volume.read_label(path, verify=False)[0])
        except Refusal as reason:
            reasons[init] = str(reason)
            continue
        if predicted.shape == image.shape:
            predictions[init] = predicted.astype(np.uint8)
        else:
            reasons[init] = f"{path} does not lie on its scan's grid: rerun 'predict'"
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
    return Case(scaled, ids[label], predictions, grid.spacing_zyx_mm)
