"""Studies plan without data, and wrong ones are refused before any job."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "config" / "studies").glob("*.yaml"))


def test_the_default_study_plans_every_step(tmp_path, snakemake, jobs):
    done = snakemake(tmp_path, "-n", "--configfile", str(ROOT / "config" / "config.yaml"))
    assert done.returncode == 0, done.text
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    arms = sum(len(inits) for inits in config["inits"].values())
    cells = arms * len(config["split"]["budgets"]) * len(config["finetune"]["seeds"])
    methods = arms - sum("scratch" in inits for inits in config["inits"].values())
    planned = jobs(done.text)
    assert planned.pop("card") > cells
    assert planned == {
        "config_file": 1,
        "check": 1,
        "fetch": 2,
        "simulate": 1,
        "intake": 2,
        "prepare": 2,
        "split": 1,
        "pretrain": methods,
        "finetune": cells,
        "predict": cells,
        "score": cells,
        "compare": 1,
        "report": 1,
        "store": 1,
        "track": 1,
    }


def test_a_pool_is_prepared_and_pretrained_on_and_never_scored(tmp_path, snakemake, jobs):
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text()) | {"pool": ["hippocampus"]}
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(tmp_path, "-n", "-p", "--configfile", str(tmp_path / "pool.yaml"))
    assert done.returncode == 0, done.text
    planned = jobs(done.text)
    assert (planned["fetch"], planned["intake"], planned["prepare"]) == (3, 3, 3)
    commands = [
        line.partition("Shell command: ")[2] for line in done.text.splitlines() if "Shell command: voxprior" in line
    ]
    index = "--index results/prepared/hippocampus/index.json"
    assert {line.split()[1] for line in commands if index in line} == {"pretrain"}
    (split,) = [line for line in commands if line.startswith("voxprior split")]
    assert split.count("--cases") == 2 and "--pool results/intake/hippocampus/cases.csv" in split
    for wrong, words in (
        ({"pool": ["chest_ct"]}, "pool names chest_ct"),
        ({"inits": {"vit_tiny": ["scratch"]}}, "pool is given"),
    ):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config | wrong))
        done = snakemake(tmp_path, "results/check.json", "--cores", "1", "--configfile", str(tmp_path / "wrong.yaml"))
        assert done.returncode != 0
        assert words in (tmp_path / "results/logs/check.log").read_text()


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_study_dry_runs_and_passes_the_check(study, tmp_path, snakemake, jobs):
    done = snakemake(tmp_path, "-n", "--configfile", str(study))
    assert done.returncode == 0, done.text
    assert jobs(done.text)["finetune"] >= 8
    checked = f"{yaml.safe_load(study.read_text())['results']}/check.json"
    done = snakemake(tmp_path, checked, "--cores", "1", "--configfile", str(study))
    assert done.returncode == 0, done.text
    assert (tmp_path / checked).exists()


def test_a_folder_with_a_space_is_refused_where_snakemake_would_break_at_it(tmp_path, snakemake, write_study):
    study = write_study(tmp_path / "with a space")
    assert snakemake(study, "-n").returncode == 0
    done = snakemake(study, "-n", "--use-conda")
    assert done.returncode != 0
    assert f"conda: {str(study)!r} has a space: add --conda-prefix" in done.text


def test_a_file_of_weights_is_an_init_without_a_pretraining(tmp_path, snakemake, jobs):
    """Its hash is on the card: another content is another run, another time stamp is none."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config |= {"inits": {"vit_tiny": ["scratch", "mine"]}, "files": {"mine": {"path": "a file.safetensors"}}}
    config["recipes"] = {"vit_tiny": {"finetune": {"layer_decay": 0.75}}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config))
    missing = snakemake(tmp_path, "-n", "--configfile", str(path))
    assert "a file.safetensors is missing: correct the path" in missing.text
    cards, hashes = [], []
    for content in (b"one", b"two"):
        (tmp_path / "a file.safetensors").write_bytes(content)
        hashes.append(sha256(content).hexdigest())
        wanted = [f"results/cards/finetune/vit_tiny/{init}/budget1/fold0/seed0.json" for init in ("mine", "scratch")]
        done = snakemake(tmp_path, *wanted, "results/check.json", "--cores", "1", "--configfile", str(path))
        assert done.returncode == 0, done.text
        cards.append([json.loads((tmp_path / card).read_text()) for card in wanted])
    assert [mine["init_file"]["sha256"] for mine, _ in cards] == hashes
    assert cards[0][1] == cards[1][1]  # scratch
    assert cards[0][0]["recipe"]["layer_decay"] == 0.75
    assert "layer_decay" not in cards[0][1]["recipe"]
    planned = jobs(snakemake(tmp_path, "-n", "--configfile", str(path)).text)
    assert "pretrain" not in planned
    assert planned["finetune"] == 2 * 2 * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pretrain": {"voxel": 3}}, ["unknown key 'voxel' at pretrain", "known keys", "voxels"]),
        ({"dataset": "nowhere"}, ["no config/datasets/nowhere.yaml", "known datasets", "chest_ct"]),
        ({"methods": {"mae": {"mask_ration": 0.5}}}, ["config/methods/mae.yaml", "mask_ration", "mask_ratio"]),
        (
            {"prepare": {"spacing_zyx_mm": [1, 1, 1], "intensity": {"kind": "windw", "low": 0, "high": 1}}},
            ["'windw'", "window"],
        ),
        ({"finetune": {"steps": "many", "crop_vox": [8, 8, 8]}}, ["finetune.steps", "'many'", "integer"]),
        ({"preset": "huge"}, ["no preset 'huge'", "tiny"]),
        (
            {"recipes": {"vit_tiny": {"finetune": {"layer_decy": 0.5}}}},
            ["config/backbones/vit_tiny.yaml", "layer_decy", "layer_decay"],
        ),
    ],
    ids=[
        "unknown key",
        "unknown dataset",
        "unknown method number",
        "unknown word",
        "wrong type",
        "unknown preset",
        "unknown recipe number",
    ],
)
def test_wrong_studies_are_refused_with_the_path_and_the_known_words(change, words, tmp_path, snakemake):
    config = {**yaml.safe_load((ROOT / "config" / "config.yaml").read_text()), **change}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(tmp_path, "-n", "--configfile", str(tmp_path / "wrong.yaml"))
    assert done.returncode != 0
    assert not [word for word in words if word not in done.text], done.text
    assert not (tmp_path / "results").exists()


def test_a_growing_plan_is_not_looked_through_for_cycles(tmp_path, snakemake):
    """With the thresholds that Python starts with, its collector took a fifth of a large plan's time."""
    watching = tmp_path / "Snakefile"
    watching.write_text(
        f'include: "{ROOT}/workflow/Snakefile"\n'
        "import atexit, gc\n"
        'LOOKS = gc.get_stats()[1]["collections"]\n'
        'atexit.register(lambda: print("second looks:", gc.get_stats()[1]["collections"] - LOOKS))\n'
    )
    study = ROOT / "config" / "config.yaml"
    done = snakemake(tmp_path, "-n", "-q", "all", "--configfile", str(study), "--", "all", snakefile=watching)
    assert done.returncode == 0, done.text
    assert "second looks: 0\n" in done.text
