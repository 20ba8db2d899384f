"""simulate: makes simulated patients from one labelled scan."""

from pathlib import Path


def run(card: Path, manifest: Path, output: Path) -> None:
    """Writes `images/{case}.nii.gz`, `labels/{case}.nii.gz` and a manifest that says simulated.

    Args:
        card: simulate card.
        manifest: manifest of the fetched dataset; exactly one of its cases has labels.
        output: `…/<dataset>/manifest.json`.

    Raises:
        Refusal: not exactly one labelled case.
    """
    from voxprior.cards import read_card
    from voxprior.data import layouts, simulate, volume
    from voxprior.data.manifest import files_of, read_manifest, write_manifest
    from voxprior.engine.journal import progress
    from voxprior.errors import Refusal

    content = read_card("simulate", card)
    before = read_manifest(manifest)
    root, files = files_of(before, manifest)
    entries = layouts.list_cases(content.layout, root, files)
    found = [(root / entry.image, root / entry.label) for entry in entries if entry.label and not entry.defect]
    if len(found) != 1:
        raise Refusal(f"{manifest} holds {len(found)} labelled cases: patients are simulated from exactly one")
    numbers = content.simulate
    image, label = found[0]
    base = simulate.read_base(str(image), str(label), numbers.spacing_zyx_mm)
    for patient in progress(range(numbers.patients), numbers.patients, f"simulate {content.dataset}"):
        voxels_ZYX, labels_ZYX = simulate.make_patient(base, numbers, patient)
        name = f"sim_{patient:03d}.nii.gz"
        volume.write_image(volume.from_array(voxels_ZYX, base.grid), output.parent / "images" / name)
        volume.write_image(volume.from_array(labels_ZYX, base.grid), output.parent / "labels" / name)
    wanted = {f"sim_{patient:03d}.nii.gz" for patient in range(numbers.patients)}
    for folder in ("images", "labels"):
        for path in (output.parent / folder).iterdir():
            if path.name not in wanted:
                path.unlink()  # of an earlier card with more patients
    write_manifest(output, content.dataset, output.parent, [], before["archives"], simulated=True)
