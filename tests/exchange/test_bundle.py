"""The MONAI bundle: its files, and what MONAI makes of them beside what we make."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from voxprior.commands import export
from voxprior.errors import Refusal
from voxprior.nets.backbones import Backbone
from voxprior.nets.weights import write_weights

SPACING, WINDOW = (3.0, 2.0, 2.0), (16, 24, 16)
STUNET = {"channels": [4, 8, 8], "blocks": 1, "pretrained_stages": 2}
INTENSITY = {"kind": "window", "low": -1000.0, "high": 500.0}


def write_model(path, channels=1, prepare=None, regions=None):
    torch.manual_seed(0)
    network = Backbone("stunet", "cnn", STUNET, channels).segmenter(2 if regions else 3, WINDOW).eval()
    card = {"backbone": "stunet", "family": "cnn", "architecture": STUNET, "channels": channels}
    told = {"spacing_zyx_mm": list(SPACING), "intensity": INTENSITY} | (prepare or {})
    about = {"card": card, "classes": ["liver", "spleen"], "window": list(WINDOW), "prepare": told}
    about |= {"regions": regions} if regions else {}
    write_weights(path, network.state_dict(), about | {"training_cases": {"a": "0" * 64}})
    return network


def write(output, weights, results=None):
    export.run("monai-bundle", output, weights, results, None, 501, False, 1e-4)
    return output


@pytest.fixture(scope="module")
def bundle(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    network = write_model(folder / "model.safetensors")
    return write(folder / "bundle", folder / "model.safetensors", study), network


def test_files_and_what_they_say(bundle):
    folder, _ = bundle
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.ts",
        "scripts/__init__.py", "scripts/smoothing.py",
    }  # fmt: skip
    told = json.loads((folder / "configs" / "metadata.json").read_text())
    assert "Not a medical device" in told["intended_use"]
    assert told["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background", "1": "liver", "2": "spleen"
    }  # fmt: skip
    assert told["network_data_format"]["inputs"]["image"]["spatial_shape"] == [16, 24, 16]
    assert told["voxprior"]["training_cases"] == {"a": "0" * 64}
    page = (folder / "docs" / "README.md").read_text()
    assert "Not a medical device" in page and "# Balls" in page  # the study's model card
    assert "CC0" in (folder / "LICENSE").read_text()


def test_the_traced_network_takes_monais_axes(bundle):
    folder, network = bundle
    traced = torch.jit.load(folder / "models" / "model.ts")
    volume = torch.rand(3, 1, 16, 24, 16)
    with torch.no_grad():
        there = traced(volume.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(there, network(volume), rtol=0, atol=1e-5)


def test_percentiles_several_channels_and_refusals(tmp_path):
    weights = tmp_path / "model.safetensors"
    write_model(weights, 2, {"intensity": {"kind": "percentile", "low": 1.0, "high": 99.0}})
    config = json.loads((write(tmp_path / "bundle", weights) / "configs" / "inference.json").read_text())
    scaling = config["preprocessing"]["transforms"][2]
    assert (scaling["_target_"], scaling["lower"], scaling["upper"]) == ("ScaleIntensityRangePercentilesd", 1.0, 99.0)
    assert "_0000.nii.gz" in config["dataset"]["data"]
    assert "not given at export" in (tmp_path / "bundle" / "LICENSE").read_text()
    write_model(weights, 2, {"channels": {"flair": INTENSITY}})
    with pytest.raises(Refusal, match="channels flair have intensity ranges of their own"):
        write(tmp_path / "other", weights)
    assert not (tmp_path / "other").exists()


def test_overlapping_classes_are_painted_as_here(tmp_path):
    from voxprior.segment.readout import paint

    weights = tmp_path / "model.safetensors"
    write_model(weights, regions=[[1], [1, 2]])
    folder = write(tmp_path / "bundle", weights)
    config = json.loads((folder / "configs" / "inference.json").read_text())
    step = config["postprocessing"]["transforms"][0]
    assert step["_target_"] == "Lambdad"
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    found = eval(step["func"].removeprefix("$"), {"torch": torch})(logits)  # as MONAI evaluates it
    assert torch.equal(found[0].to(torch.uint8), paint(logits))
    told = json.loads((folder / "configs" / "metadata.json").read_text())
    outputs = told["network_data_format"]["outputs"]["pred"]
    assert (outputs["num_channels"], outputs["channel_def"]) == (2, {"0": "liver", "1": "spleen"})
    assert told["voxprior"]["regions"] == [[1], [1, 2]]
    assert "the union of 1 and 2 (liver); 2 (spleen)" in (folder / "docs" / "README.md").read_text()


PREPROCESS = """
import sys
import numpy as np
from monai.bundle import ConfigParser
parser = ConfigParser()
parser.read_config("configs/inference.json")
parser["dataset_dir"] = sys.argv[1]
sys.path.insert(0, ".")
preprocessing = parser.get_parsed_content("preprocessing")
for item in parser.get_parsed_content("dataset", instantiate=True).data:
    image = preprocessing(item)["image"]
    name = item["image"].rsplit("/", 1)[1].removesuffix(".nii.gz")
    np.save(f"{sys.argv[2]}/{name}.npy", image.numpy()[0].transpose(2, 1, 0))
"""


def interpreter() -> str:
    """Finds a Python with MONAI, nibabel and fire."""
    if os.environ.get("VOXPRIOR_MONAI"):
        return str(Path(os.environ["VOXPRIOR_MONAI"], "python"))
    if missing := [name for name in ("nibabel", "fire") if find_spec(name) is None]:
        pytest.skip(f"{' and '.join(missing)} missing: install them, or name an environment's bin in VOXPRIOR_MONAI")
    return sys.executable


@pytest.mark.slow
def test_monai_runs_it_and_finds_what_we_find(bundle, tmp_path):
    """`same` has the model's spacing, so only arithmetic lies between; `finer` is smoothed and resampled by both."""
    from voxprior.data import phantoms, prepare, volume
    from voxprior.data.cache import open_case
    from voxprior.segment.infer import segment_volume

    python, (folder, network) = interpreter(), bundle
    scans, out, arrays = (tmp_path / name for name in ("scans", "out", "arrays"))
    for made in (scans, out, arrays):
        made.mkdir()
    for name, spacing, orientation in (("same", SPACING, "RAS"), ("finer", (1.5, 0.9, 1.1), "PIR")):
        voxels, _ = phantoms.make(3, (30, 32, 28), 2)
        grid = phantoms.grid_of(voxels.shape, spacing, orientation)
        volume.write_image(volume.from_array(voxels, grid), scans / f"{name}.nii.gz")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run([python, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    run("-c", PREPROCESS, scans, arrays)
    given = ("--bundle_root", ".", "--dataset_dir", scans, "--output_dir", out)
    run("-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *given)
    recipe = prepare.Recipe("key", SPACING, INTENSITY["kind"], INTENSITY["low"], INTENSITY["high"], ())
    for name in ("same", "finer"):
        row = {"case": name, "patient": name, "person": name, "image": str(scans / f"{name}.nii.gz"), "label": ""}
        entry = prepare.prepare_case(row, tmp_path / "prepared", recipe)
        index = {"format": 2, "dataset": "d", "key": "key", "quantum": prepare.QUANTUM, "classes": [], "cases": [entry]}
        (tmp_path / "prepared" / "index.json").write_text(json.dumps(index))
        case = open_case(tmp_path / "prepared" / "index.json", name)
        voxels_CZYX, _, _ = case.read((0, 0, 0), case.shape_zyx)
        theirs = np.load(arrays / f"{name}.npy")
        assert theirs.shape == voxels_CZYX.shape[1:]
        apart = np.abs(voxels_CZYX[0] * case.quantum - theirs).max()
        labels_ZYX = segment_volume(network, voxels_CZYX, case.quantum, WINDOW)
        ours = sitk.GetArrayFromImage(volume.to_native(labels_ZYX, entry["grid"], entry["raw"]))
        written = sitk.ReadImage(str(out / f"{name}_seg.nii.gz"))
        assert written.GetSpacing() == pytest.approx(tuple(entry["raw"]["spacing_xyz_mm"]), abs=1e-4)
        same = float((sitk.GetArrayFromImage(written) == ours).mean())
        print(f"{name}: prepared within {apart * 4096:.2f} steps of 1/4096, {same:.2%} of the labels equal")
        assert apart < 1 / 4096
        assert same > (0.999 if name == "same" else 0.8)
