"""A small split study whose scans lie in the world as scanners put them: what is exported as a whole."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

CASES = [f"case_{number}" for number in range(5)]


def ball(chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball with a core, in noise: (scan, labels with the values 7 and 9 of the dataset's own files)."""
    z, y, x = np.indices((24, 20, 26)) - 11.5 - chance.uniform(-2, 2, 3)[:, None, None, None]
    distance = z**2 + y**2 + x**2
    labels = np.where(distance < 9, 9, np.where(distance < 49, 7, 0)).astype(np.uint8)
    return ((labels > 0) * 100 + chance.normal(0, 20, labels.shape)).astype(np.int16), labels


def write_study(root: Path) -> Path:
    """Writes scans, case table, index, splits and the resolved study; returns the results folder."""
    results, chance, rows, entries = root / "results", np.random.default_rng(0), [], []
    for number, case in enumerate(CASES):
        paths = {}
        for kind, array in zip(("image", "label"), ball(chance), strict=True):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.5, 1.5, 2.0))
            image.SetOrigin((-10.0, 5.0 * number, 30.0))
            image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
            paths[kind] = root / "scans" / f"{case}_{kind}.nii.gz"
            paths[kind].parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(paths[kind]))
        row = {"case": case, "dataset": "balls", "image": str(paths["image"]), "label": str(paths["label"])}
        rows.append(row | {"repairs": "origin mended" if number == 0 else ""})
        grid = {"size_xyz": image.GetSize(), "spacing_xyz_mm": image.GetSpacing(), "origin_xyz_mm": image.GetOrigin()}
        entries.append({"case": case, "raw": grid | {"direction": image.GetDirection()}})
    (results / "intake" / "balls").mkdir(parents=True)
    with open(results / "intake" / "balls" / "cases.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows([*rows, {**rows[0], "case": "unlabelled", "label": ""}])
    entries.append({**entries[0], "case": "unlabelled"})
    dataset = {"title": "Balls", "modality": "ct", "classes": {"core": [9], "shell": [7]}, "licence": "CC0"}
    study = {"study": "tiny", "dataset": "balls", "classes": ["shell", "core"]}
    study["prepare"] = {"spacing_zyx_mm": [2.0, 1.5, 1.5], "intensity": {"kind": "window", "low": -100, "high": 200}}
    folds = [
        {"fold": k, "test": CASES[k : k + 1], "budgets": {"1": CASES[2:3], "3": CASES[2:]}} for k in range(2)
    ]  # fmt: skip
    for path, content in {
        "config.json": {"study": study, "datasets": {"balls": dataset}, "backbones": {}, "methods": {}},
        "splits.json": {"format": 1, "folds": folds},
        "prepared/balls/index.json": {"cases": entries},
    }.items():
        (results / path).parent.mkdir(parents=True, exist_ok=True)
        (results / path).write_text(json.dumps(content))
    (results / "model_card.md").write_text("# Balls\n\nNot a medical device.\n")
    return results


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """Makes the study once."""
    return write_study(tmp_path_factory.mktemp("study"))
