"""score: measures predictions against labels in each scan's own grid."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxprior.errors import Refusal

COLUMNS = ("dataset", "case", "patient", "class", "metric", "value", "flag")


def run(card: Path, predictions: Path, cases: list[Path], output: Path) -> None:
    """Scores every predicted case that has labels and writes the tidy table (`docs/formats.md`, "scores").

    Raises:
        Refusal: a prediction is missing, unknown or does not lie on its label's grid.
    """
    from voxprior.cards import read_card
    from voxprior.data.files import located
    from voxprior.engine.journal import progress
    from voxprior.whole import write_text

    content = read_card("score", card)
    listed = json.loads(predictions.read_text(encoding="utf-8"))["cases"]
    table = {(row["dataset"], row["case"]): row for path in cases for row in _read_table(path)}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    unlabelled = 0
    for entry in progress(listed, len(listed), f"score {predictions.parent}"):
        row = _row_of(entry, table, content.datasets, predictions)
        if row["label"]:
            files = {what: located(entry[what], predictions) for what in ("file", "confidence") if what in entry}
            writer.writerows(_score_case(content, row, files))
        else:
            unlabelled += 1
    write_text(output, text.getvalue())
    print(f"{len(listed) - unlabelled} cases scored, {unlabelled} without labels")


def _read_table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _row_of(
    entry: dict[str, Any], table: dict[tuple[str, str], dict[str, str]], datasets: dict[str, Any], predictions: Path
) -> dict[str, str]:

    dataset, case = entry["dataset"], entry["case"]
    if dataset not in datasets:
        raise Refusal(f"{predictions} holds dataset '{dataset}', which the score card does not know: rerun 'predict'")
    if (dataset, case) not in table:
        raise Refusal(f"{predictions} holds case '{case}' of {dataset}, which no case table lists: rerun 'predict'")
    return table[dataset, case]


def _score_case(content: Any, row: dict[str, str], files: dict[str, Path]) -> list[tuple[str, ...]]:
    """Scores one case: a table row per class that its dataset labels, and metric."""
    import numpy as np
    import SimpleITK

    from voxprior.data import volume
    from voxprior.maths import overlap

    prediction_path = files["file"]
    for path in files.values():
        if not path.is_file():
            raise Refusal(f"{path} is missing, the prediction of case '{row['case']}': rerun 'predict'")
    label, _ = volume.read_label(row["label"])
    prediction, _ = volume.read_label(prediction_path)
    volume.Grid.of(prediction).demand_same(prediction_path, volume.Grid.of(label), row["label"], "rerun 'predict'")
    values = content.datasets[row["dataset"]]
    label_ZYX, prediction_ZYX = (SimpleITK.GetArrayViewFromImage(image) for image in (label, prediction))
    if (most := prediction_ZYX.max()) > len(values):
        raise Refusal(f"{prediction_path} holds the label {most} of {len(values)} classes: rerun 'predict'")
    unknown_ZYX = np.isin(label_ZYX, content.ignore.get(row["dataset"], []))
    spacing = volume.Grid.of(label).spacing_zyx_mm
    sure_ZYX = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files["confidence"])) if "confidence" in files else None
    found: dict[tuple[str, int], tuple[float, str]] = {}  # by metric and class
    for numbers, of_label, of_prediction in _compared(values, content.regions):
        maps = of_label[label_ZYX], of_prediction[prediction_ZYX]
        for ids_ZYX in maps:
            ids_ZYX[unknown_ZYX] = 0  # nobody knows what is there: no score of it
        counts = overlap.confusion(*maps, len(numbers))
        measured = _measure(content.score, *maps, counts, spacing, sure_ZYX)
        for metric in content.score.metrics:
            for number, score, flag in zip(numbers, measured[metric], overlap.flags(counts), strict=True):
                found[metric, number] = score, flag
    rows: list[tuple[str, ...]] = []
    for metric in content.score.metrics:
        for number, (name, in_file) in enumerate(zip(content.classes, values, strict=True), 1):
            if in_file:
                score, flag = found[metric, number]
                text = "" if np.isnan(score) else f"{score:.8g}"
                rows.append((row["dataset"], row["case"], row["patient"], name, metric, text, flag))
    return rows


def _compared(values: list[list[int]], regions: list[list[int]]) -> Iterator[tuple[list[int], Any, Any]]:
    """Says which maps of ids are compared: all classes in one pair of maps, or a pair per class where they overlap.

    Yields:
        Numbers of classes that become ids 1, 2, ...; tables from values to ids: of the label's file, of the prediction.
    """
    import numpy as np

    from voxprior.maths.regions import memberships, union

    overlapping = memberships(regions)
    every = list(range(1, len(values) + 1))
    for numbers in [[number] for number in every if values[number - 1]] if overlapping else [every]:
        tables = np.zeros((2, 1 << 16), dtype=np.uint8)
        for place, number in enumerate(numbers, 1):
            in_file = values[number - 1]
            tables[0, in_file] = place
            # What this dataset does not label is no mistake: it becomes background.
            tables[1, union(overlapping, number)] = place if in_file else 0
        yield numbers, *tables


def _measure(
    asked: Any, label_ZYX: Any, prediction_ZYX: Any, counts: Any, spacing: Any, sure_ZYX: Any
) -> dict[str, Any]:
    """Computes the metrics that are asked for: (K,) by name, and those that come with them."""
    import numpy as np

    from voxprior.maths import areas, calibration, lesions, overlap, surfaces

    classes = len(counts) - 1
    found: dict[str, Any] = {"dice": overlap.dice(counts), "volume_error": overlap.volume_errors(counts)}
    found["volume_ml"] = overlap.volume_differences_ml(counts, float(np.prod(spacing)))
    maps = label_ZYX, prediction_ZYX, classes
    if set(surfaces.SurfaceScores._fields) & set(asked.metrics):
        found |= surfaces.surface_scores(*maps, spacing, asked.tolerance_mm)._asdict()
    if "nsd_area" in asked.metrics:
        found["nsd_area"] = areas.area_weighted_nsd(*maps, spacing, asked.tolerance_mm, _corner_areas(spacing))
    if "lesion_f1" in asked.metrics:
        found["lesion_f1"] = lesions.lesion_f1(*maps, asked.lesion_iou)
    if "calibration_error" in asked.metrics:
        if sure_ZYX is None:
            raise Refusal("calibration_error needs probabilities, and these predictions have none: rerun 'predict'")
        found["calibration_error"] = calibration.calibration_error(label_ZYX, prediction_ZYX, sure_ZYX, classes)
    return found


def _corner_areas(spacing: Any) -> Any:
    """Looks up the area of each corner code at a spacing, in mm2: MONAI's table, which is DeepMind's; 4 s to import."""
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    return create_table_neighbour_code_to_surface_area(tuple(spacing))[0].numpy().astype(float)
