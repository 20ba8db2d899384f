"""score: native space, label values per dataset, what is missing, and what it may import."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from voxprior.commands import score
from voxprior.errors import Refusal

SPACING_XYZ = (0.8, 0.9, 2.5)


def write_map(path: Path, array_ZYX: np.ndarray, spacing=SPACING_XYZ, origin=(3.0, -7.0, 11.0)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array_ZYX)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    SimpleITK.WriteImage(image, str(path))
    return str(path)


@pytest.fixture
def study(tmp_path):
    """One case of each of two datasets, whose files use other label values: a box, found two slices too far."""
    box, shifted = np.zeros((2, 20, 16, 16), np.uint8)
    box[4:10, 4:10, 4:10] = 1
    shifted[6:12, 4:10, 4:10] = 1
    rows, listed = [], []
    for dataset, factor in (("here", 7), ("there", 300)):
        label = (box.astype(np.uint16) * factor).astype(np.uint16)
        label[0, 0, 0] = 5  # a value that is no class of ours
        path = write_map(tmp_path / dataset / "labels" / "a.nii.gz", label)
        rows.append({"case": "a", "dataset": dataset, "patient": f"{dataset}_p", "label": path})
        predicted = shifted.copy()
        predicted[15, 15, 15] = 2  # class "other": labelled in `here` only, and absent from its label
        file = f"predictions/{dataset}_a.nii.gz"
        write_map(tmp_path / "cell" / file, predicted)
        listed.append({"dataset": dataset, "case": "a", "file": file, "seconds": 1.0, "volume_ml": [0.0, 0.0, 0.0]})
    cases = tmp_path / "cases.csv"
    with open(cases, "w", newline="") as file:
        writer = csv.DictWriter(file, ["case", "dataset", "patient", "label"])
        writer.writeheader()
        writer.writerows(rows)
    card = {
        "classes": ["box", "other", "never"],
        "datasets": {"here": [[7, 8], [9], [10]], "there": [[300], [], []]},
        "score": {"tolerance_mm": 2.0},
    }
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "cell" / "predictions.json").write_text(json.dumps({"format": 1, "cases": listed}))
    return tmp_path


def run(study: Path) -> list[dict[str, str]]:
    output = study / "cell" / "scores.csv"
    score.run(study / "card.json", study / "cell" / "predictions.json", [study / "cases.csv"], output)
    with open(output, newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_shifted_box(study):
    rows = run(study)
    found = {(r["dataset"], r["class"], r["metric"]): r for r in rows}
    for dataset in ("here", "there"):
        assert float(found[dataset, "box", "dice"]["value"]) == pytest.approx(2 * 4 / 12)
        assert float(found[dataset, "box", "hd95_mm"]["value"]) == pytest.approx(5.0)  # two slices of 2.5 mm
        assert 0 < float(found[dataset, "box", "nsd"]["value"]) < 1
        assert found[dataset, "box", "nsd"]["patient"] == f"{dataset}_p"
    diagonal = np.linalg.norm([16 * 0.8, 16 * 0.9, 20 * 2.5])
    assert found["here", "other", "dice"] | {"value": "0"} == found["here", "other", "dice"]
    assert found["here", "other", "hd95_mm"]["flag"] == "invented"
    assert float(found["here", "other", "hd95_mm"]["value"]) == pytest.approx(diagonal)
    assert found["here", "never", "dice"]["flag"] == "both_empty"
    assert found["here", "never", "dice"]["value"] == ""
    assert not [key for key in found if key[0] == "there" and key[1] != "box"]
    assert list(rows[0]) == list(score.COLUMNS)
    assert not list(study.rglob("*.part"))


def test_volumes_and_distances_come_with_the_first_three(study):
    found = {(r["dataset"], r["class"], r["metric"]): r for r in run(study)}
    assert list(dict.fromkeys(metric for _, _, metric in found)) == [
        "dice", "nsd", "hd95_mm", "assd_mm", "volume_ml", "volume_error"
    ]  # fmt: skip
    assert float(found["here", "box", "volume_ml"]["value"]) == 0
    assert float(found["here", "box", "volume_error"]["value"]) == 0
    assert 0 < float(found["here", "box", "assd_mm"]["value"]) < 5
    assert float(found["here", "other", "volume_ml"]["value"]) == pytest.approx(0.8 * 0.9 * 2.5 / 1000)
    assert float(found["here", "other", "volume_error"]["value"]) == 2
    assert found["here", "never", "volume_ml"]["value"] == ""


def test_a_study_chooses_its_metrics(study):
    card = json.loads((study / "card.json").read_text())
    card["score"] |= {"metrics": ["lesion_f1", "nsd_area", "dice"], "lesion_iou": 0.3}
    (study / "card.json").write_text(json.dumps(card))
    rows = run(study)
    assert list(dict.fromkeys(row["metric"] for row in rows)) == ["lesion_f1", "nsd_area", "dice"]
    found = {(r["dataset"], r["class"], r["metric"]): r["value"] for r in rows}
    assert float(found["here", "box", "lesion_f1"]) == 1  # 4 of 8 planes are shared
    assert 0 < float(found["here", "box", "nsd_area"]) < 1
    assert float(found["here", "other", "lesion_f1"]) == float(found["here", "other", "nsd_area"]) == 0
    card["score"]["metrics"] = ["ece"]
    (study / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal, match="score.metrics.0"):
        run(study)


def test_scans_without_labels_are_counted_not_scored(study, capsys):
    table = (study / "cases.csv").read_text().splitlines()
    table[2] = "a,there,there_p,"
    (study / "cases.csv").write_text("\n".join(table))
    assert {row["dataset"] for row in run(study)} == {"here"}
    assert "1 cases scored, 1 without labels" in capsys.readouterr().out


def test_what_is_missing_or_elsewhere_is_refused(study):
    file = study / "cell" / "predictions" / "there_a.nii.gz"
    good = SimpleITK.ReadImage(str(file))
    array = SimpleITK.GetArrayFromImage(good)
    write_map(file, array, origin=(3.0, -7.0, 13.5))
    with pytest.raises(Refusal, match=r"there_a\.nii\.gz lies up to 2.5 mm beside .*: rerun 'predict'"):
        run(study)
    write_map(file, array[:-1])
    with pytest.raises(Refusal, match="19x16x16 voxels where"):
        run(study)
    write_map(file, array + np.uint8(3))
    with pytest.raises(Refusal, match="holds the label 5 of 3 classes"):
        run(study)
    file.unlink()
    with pytest.raises(Refusal, match=r"there_a\.nii\.gz is missing, the prediction of case 'a'"):
        run(study)
    (study / "cases.csv").write_text("case,dataset,patient,label\n")
    with pytest.raises(Refusal, match="no case table lists"):
        run(study)
    assert not (study / "cell" / "scores.csv").exists()


def test_scoring_pays_for_neither_torch_nor_pandas(study):
    code = (
        "import sys; from pathlib import Path; from voxprior.commands import score\n"
        "s = Path(sys.argv[1]); score.run(s / 'card.json', s / 'cell/predictions.json', [s / 'cases.csv'], s / 'out')\n"
        "print(sorted({'torch', 'pandas', 'monai', 'blosc2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(study)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_voxels_that_nobody_knows_are_not_scored(study):
    """Value 5 means `not known` in one dataset: what is predicted there is no mistake."""
    card = json.loads((study / "card.json").read_text())
    for row in ("here", "there"):
        path = study / row / "labels" / "a.nii.gz"
        label = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        label[10:12] = 5  # all that was predicted beyond the box
        write_map(path, label)
    before = {
        row["dataset"]: float(row["value"]) for row in run(study) if (row["class"], row["metric"]) == ("box", "dice")
    }
    (study / "card.json").write_text(json.dumps({**card, "ignore": {"here": [5]}}))
    after = {
        row["dataset"]: float(row["value"]) for row in run(study) if (row["class"], row["metric"]) == ("box", "dice")
    }
    assert after["there"] == before["there"] == pytest.approx(2 * 4 / 12)
    assert after["here"] == pytest.approx(2 * 4 / 10)


def test_calibration_needs_the_probabilities(study):
    card = json.loads((study / "card.json").read_text())
    card["score"] |= {"metrics": ["calibration_error"]}
    (study / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal, match="have none: rerun 'predict'"):
        run(study)
    listing = study / "cell" / "predictions.json"
    content = json.loads(listing.read_text())
    for case in content["cases"]:
        case["confidence"] = case["file"].replace(".nii.gz", ".confidence.nii.gz")
        write_map(study / "cell" / case["confidence"], np.full((20, 16, 16), 204, np.uint8))
    listing.write_text(json.dumps(content))
    found = {(r["dataset"], r["class"]): r["value"] for r in run(study)}
    assert float(found["here", "box"]) == pytest.approx(0.8 - 4 / 6, abs=1e-6)  # 80 % sure, right in 4 of 6 slices
    assert float(found["here", "other"]) == pytest.approx(0.8)  # invented
    assert found["here", "never"] == ""
