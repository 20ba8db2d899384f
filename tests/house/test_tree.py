"""What a clone must hold, and what it must not."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_committed_schema_is_fresh():
    from voxprior.commands.schema import build

    committed = json.loads((ROOT / "config" / "schema.json").read_text())
    assert committed == json.loads(json.dumps(build())), "config/schema.json is stale: run `make schema`"


def test_constraints_hold_no_hosts_and_pin_everything():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith("-")]
    assert not [line for line in lines if line and not line.startswith("#") and "==" not in line]


def test_no_data_and_no_large_file_is_tracked():
    for path in tracked():
        assert path.stat().st_size < 1_000_000, f"{path} is too large for a source tree"
        assert not path.name.endswith((".nii", ".nii.gz", ".nrrd", ".dcm", ".safetensors", ".pt"))


def test_nothing_names_a_private_path():
    private = re.compile(r"(?<![\w.])/(work|opt|root|home)/")
    for path in tracked():
        if path.suffix in {".py", ".smk", ".yaml", ".yml", ".md", ".toml", ".sh", ""} and path != Path(__file__):
            found = private.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{path}: {found.group()}"


def in_a_new_interpreter(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv=['voxprior','--help']\n"
        "from voxprior.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy={'torch','monai','SimpleITK','pandas','mlflow','scipy','numpy'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    in_a_new_interpreter(code)


def test_gpu_rooms_import_with_torch_numpy_einops_pydantic_alone():
    """GPU machines may have nothing else."""
    code = (
        "import sys\n"
        "for name in ['monai','SimpleITK','pandas','mlflow','scipy','blosc2','matplotlib','yaml','tqdm','requests',"
        "'numba']:\n"
        "    sys.modules[name] = None\n"
        "import importlib, pkgutil, voxprior.methods, voxprior.nets, voxprior.engine\n"
        "for room in (voxprior.nets, voxprior.methods, voxprior.engine):\n"
        "    for module in pkgutil.iter_modules(room.__path__):\n"
        "        importlib.import_module(f'{room.__name__}.{module.name}')\n"
    )
    in_a_new_interpreter(code)
