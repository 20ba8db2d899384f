"""`voxprior predict`: segments scans that nobody has labelled, with one model or several."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voxprior.errors import Incomplete, Refusal

COLUMNS = ("case", "class", "value", "volume_ml", "voxels", "flag", "scan_flag", "file")
SHOWN = 12  # classes on a case's line; of more, only those that were found


@dataclass(frozen=True)
class Wanted:
    """What is written, and how windows are laid."""

    ids: str = "dataset"  # label values of the training dataset's own files, or `study`: 1, 2, ... in the study's order
    overlay: bool = False
    probabilities: bool = False
    mirror: bool = False
    dicom_seg: bool = False
    overlap: float = 0.5


def run(models: list[Path], scans: Path, output: Path, wanted: Wanted, threads: int, device: str) -> None:
    """Writes one label map per scan, in the scan's own grid, and `predictions.csv` last.

    A scan that an earlier run has done with the same models and wishes is not done again. One that is refused does not
    stop the others; `failed.csv` lists them.

    Raises:
        Refusal: a model or the only scan is refused; the disk is full.
        Incomplete: some of several scans were refused; the others are done.
    """
    from voxprior.data.incoming import list_scans
    from voxprior.whole import NoRoom

    worker = _Worker(models, output, wanted, threads, device)
    todo = list_scans(scans, worker.card.channels, output)
    done, failed = [], []
    for number, scan in enumerate(todo, 1):
        try:
            done.append(worker.case(scan))
        except NoRoom:
            raise
        except Refusal as refusal:
            if scans.is_file():
                raise
            failed.append((scan.case, scan.name, str(refusal)))
        line = _line(done[-1]) if not failed or failed[-1][0] != scan.case else f"{scan.case}: {failed[-1][2]}"
        print(f"[{number}/{len(todo)}] {line}", flush=True)
    _write_table(output / "predictions.csv", COLUMNS, [row for told in done for row in told["rows"]])
    if failed:
        _write_table(output / "failed.csv", ("case", "file", "defect"), failed)
        names = ", ".join(case for case, _, _ in failed[:5]) + (", ..." if len(failed) > 5 else "")
        listed = output / "failed.csv"
        raise Incomplete(f"{len(failed)} of {len(todo)} scans could not be segmented ({names}): {listed} says why")
    (output / "failed.csv").unlink(missing_ok=True)


class _Worker:
    """Holds the models and segments scan after scan."""

    def __init__(self, models: list[Path], output: Path, wanted: Wanted, threads: int, device: str) -> None:
        from voxprior.commands import trained
        from voxprior.data import dicomseg
        from voxprior.engine import device as devices
        from voxprior.segment import ensemble

        if wanted.ids not in ("dataset", "study"):
            raise Refusal(f"--ids {wanted.ids!r} is not known: choose dataset or study")
        if wanted.dicom_seg:
            dicomseg.demand()
        self.output, self.wanted, self.where = output, wanted, devices.pick(device, threads)
        loaded = trained.load_ensemble(models)
        self.first, self.card = loaded[0], loaded[0].card
        self.recipe = self.first.recipe()
        self.values = self.first.values if wanted.ids == "dataset" else None
        if wanted.ids == "dataset" and self.values is None:
            _say(f"{self.first.path} does not hold its dataset's label values: labels are the study's 1, 2, ...")
        axes = ensemble.mirrored_axes(self.card.classes) if wanted.mirror else ()
        if wanted.mirror and not axes:
            _say("mirroring is left out: classes have a left and a right, which it would exchange")
        self.network = ensemble.joined([self._placed(model) for model in loaded], axes)
        made_by = [model.sha256 for model in loaded]
        self.made_from = {"format": 1, "models": made_by, "wanted": asdict(wanted)}

    def _placed(self, model: Any) -> Any:
        """Puts a network on the device, in its own precision."""
        from voxprior.engine.device import autocast

        network, precision = model.network.to(self.where), model.card.precision
        if precision == "fp32":
            return network

        def call(windows_BCZYX: Any) -> Any:
            with autocast(self.where, precision):
                return network(windows_BCZYX)

        return call

    def case(self, scan: Any) -> dict[str, Any]:
        """Segments a scan, or finds that it is done: what its line and its rows of the table say."""
        from voxprior.data.files import read_note, write_note

        if scan.defect:
            raise Refusal(f"{scan.name}: {scan.defect}: mend or rename it")
        note = self.output / f"{scan.case}.json"
        made_from = self.made_from | {"scan_sha256": scan.sha256()}
        if (told := read_note(note, made_from)) is not None:
            return told | {"seconds": None}
        note.unlink(missing_ok=True)
        told = self._segment(scan)
        write_note(note, made_from, told["files"], told)
        return told

    def _segment(self, scan: Any) -> dict[str, Any]:
        from tempfile import TemporaryDirectory

        from voxprior.data import channels, export, familiar, fingerprint, prepare, volume

        began = time.monotonic()
        self.output.mkdir(parents=True, exist_ok=True)
        looked: list[Any] = []

        def watched(image: str) -> Iterator[Any]:
            for channel in channels.read_channels(image, self.recipe.channels):
                looked.append(fingerprint.sample(channel, None, {}, familiar.SAMPLES)["all"])
                yield channel

        with TemporaryDirectory(prefix=".unfinished-", dir=self.output) as place:
            image = scan.image(Path(place))
            voxels_CZYX, raw, grid = prepare.prepare_image(watched(image), scan.name, self.recipe)
            labels_ZYX, held = self._labels(voxels_CZYX, Path(place))
            ids = volume.to_native(labels_ZYX, grid, raw)
            files = self._extras(scan, ids, (voxels_CZYX[0], labels_ZYX, grid, raw), held)
        found = export.measure(ids, len(self.card.classes), self.first.regions)
        export.write_labels(ids, self.values, self.output / f"{scan.case}.nii.gz")
        files = [f"{scan.case}.nii.gz", *files]
        flags = self._flags(scan, looked[0])
        return {
            "case": scan.case,
            "files": files,
            "seconds": time.monotonic() - began,
            "flags": flags,
            "rows": self._rows(scan.case, found, flags),
        }

    def _labels(self, voxels_CZYX: Any, place: Path) -> tuple[Any, Any]:
        """Segments prepared voxels: (labels, probabilities where they are wanted)."""
        import torch

        from voxprior.data import export, prepare
        from voxprior.segment import infer
        from voxprior.segment.readout import readout_of

        tiling = infer.Tiling(self.card.crop_vox, self.wanted.overlap, most_bytes=self._most_bytes())
        held = None
        if self.wanted.probabilities:
            held = export.Probabilities(place / "shares", self.card.outputs, voxels_CZYX.shape[1:])
        keep = None if held is None else held.put
        how = (tiling, self.where, keep, None, readout_of(self.card.regions))
        try:
            labels_ZYX = infer.segment_with(self.network, voxels_CZYX, prepare.QUANTUM, *how)
        except torch.OutOfMemoryError:
            raise Refusal(f"the device {self.where} has too little memory for this scan: use --device cpu") from None
        return labels_ZYX, held

    def _most_bytes(self) -> int:
        """Says what the sums of logits may take: half of what is free, and no more than is usual."""
        import torch

        from voxprior.data import memory
        from voxprior.segment.infer import MOST_BYTES

        if self.where.type == "cuda":
            return int(torch.cuda.mem_get_info(self.where)[0] // 2)
        free = memory.free_bytes()
        return MOST_BYTES if free is None else max(1 << 28, min(MOST_BYTES, free // 2))

    def _extras(self, scan: Any, ids: Any, prepared: tuple[Any, ...], held: Any) -> list[str]:
        """Writes what was wanted beside the labels: names of files below the output."""
        from voxprior.data import dicomseg, prepare, series
        from voxprior.engine.device import versions
        from voxprior.whole import whole

        image_ZYX, labels_ZYX, grid, raw = prepared
        files = []
        if self.wanted.dicom_seg:
            if not scan.is_series:
                raise Refusal(f"{scan.name} is no DICOM series, and a DICOM SEG refers to one: leave out --dicom-seg")
            ordered = [Path(file) for file in series.order(scan.files, scan.name)[0]]
            files.append(f"{scan.case}.seg.dcm")
            named = dicomseg.Classes(self.card.classes, self.first.regions)
            dicomseg.write(ids, named, ordered, versions().get("voxprior", "0"), self.output / files[-1])
        if held is not None:
            with held:
                shown = [*([] if self.card.regions else ["background"]), *self.card.classes]
                names = [f"{scan.case}.probabilities/{name}.nii.gz" for name in shown]
                held.write(grid, raw, [self.output / name for name in names])
                files += names
        if self.wanted.overlay:
            from voxprior.study import overlay

            files.append(f"{scan.case}.overlay.png")
            white = 1 / prepare.QUANTUM
            picture = overlay.draw(image_ZYX, white, labels_ZYX, grid.spacing_zyx_mm, self.card.classes)
            with whole(self.output / files[-1]) as part:
                part.write_bytes(picture)
        return files

    def _flags(self, scan: Any, values: list[float]) -> list[str]:
        """Says in which way the scan is unlike those of training."""
        from voxprior.data import familiar

        modality, flags = self.first.data.get("modality", "other"), []
        stated = familiar.other_modality(scan.files[0], modality) if scan.is_series and self.first.data else None
        if stated:
            flags.append(f"modality {stated}, trained on {modality}")
        if familiar.is_far(values, self.first.data.get("intensity") or {}, modality):
            flags.append("intensities far from training")
        return flags

    def _rows(self, case: str, found: list[Any], flags: list[str]) -> list[tuple[Any, ...]]:
        """Makes the case's rows of the table."""
        from voxprior.data import labels

        values = labels.own_values(self.values) if self.values else list(range(1, len(found) + 1))
        rows = []
        for name, value, one in zip(self.card.classes, values, found, strict=True):
            flag = "empty" if not one.voxels else "touches border" if one.touches_border else ""
            volume_ml = float(f"{one.volume_ml:.6g}")
            told = (value or "", volume_ml, one.voxels, flag, "; ".join(flags), f"{case}.nii.gz")
            rows.append((case, name, *told))
        return rows


def _line(told: dict[str, Any]) -> str:
    """Says in one line what was found: volume per class, flags, how long it took."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in told["rows"]]
    shown = rows if len(rows) <= SHOWN else [row for row in rows if row["voxels"]]
    parts = [
        f"{row['class']} {row['volume_ml']:.4g} ml" + (f" ({row['flag']})" if row["flag"] else "") for row in shown
    ]
    if len(shown) < len(rows):
        parts.append(f"{len(rows) - len(shown)} classes empty")
    took = "done before" if told["seconds"] is None else f"{told['seconds']:.1f} s"
    warned = "".join(f" [{flag}]" for flag in told["flags"])
    return f"{told['case']}: {', '.join(parts)}{warned}; {took}"


def _say(sentence: str) -> None:
    print(f"voxprior: {sentence}", file=sys.stderr, flush=True)


def _write_table(path: Path, columns: tuple[str, ...], rows: list[Any]) -> None:
    """Writes a CSV file whole."""
    import csv
    import io

    from voxprior.whole import write_text

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([columns, *rows])
    write_text(path, stream.getvalue())
