"""relabel: writes predictions with the label values of each dataset's own files."""

import json
from pathlib import Path


def run(card: Path, predictions: Path, output: Path) -> None:
    """Turns the study's class ids back into the datasets' own values: the inverse of what `prepare` does to labels.

    Args:
        card: score card; `datasets[name][i]` lists the values of class i + 1 in that dataset's files. Of several the
            first is written; a class that the dataset does not have becomes background.
        predictions: `predictions.json` of a cell.
        output: folder; `<dataset>.<case>.nii.gz` is written into it for every case.

    Raises:
        Refusal: a prediction is missing, or of a dataset that the card does not know.
    """
    import SimpleITK as sitk

    from voxprior.cards import read_card
    from voxprior.data import labels, volume
    from voxprior.data.files import located
    from voxprior.errors import Refusal

    values = read_card("score", card).datasets
    listed = json.loads(predictions.read_text(encoding="utf-8"))["cases"]
    for entry in listed:
        if entry["dataset"] not in values:
            raise Refusal(f"{predictions} holds dataset '{entry['dataset']}', unknown to {card}: give its own card")
        image, _ = volume.read_label(located(entry["file"], predictions))
        own_ZYX = labels.to_own_values(sitk.GetArrayViewFromImage(image), values[entry["dataset"]])
        name = f"{entry['dataset']}.{entry['case']}.nii.gz"
        volume.write_image(volume.from_array(own_ZYX, volume.Grid.of(image)), output / name)
    print(f"{output}: {len(listed)} label maps with the datasets' own values")
