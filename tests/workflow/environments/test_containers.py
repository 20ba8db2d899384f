"""The container recipes: their steps, run as plain shell scripts in a fresh folder. test_images.py builds the image."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECIPES = ["Dockerfile", "voxprior.def"]


def instructions(text: str) -> list[tuple[str, str]]:
    """Reads a Dockerfile: (instruction, the rest of its lines)."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")).replace("\\\n", " ")
    pairs = [line.partition(" ") for line in lines.splitlines() if line.strip()]
    return [(word, re.sub(r"\s+", " ", rest.strip())) for word, _, rest in pairs]


def sections(text: str) -> dict[str, str]:
    """Reads an Apptainer recipe: its header and its sections by name."""
    parts = re.split(r"^%(\w+)[^\n]*\n", text, flags=re.M)
    return {"header": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def steps(name: str) -> tuple[list[tuple[str, str]], str, dict[str, str]]:
    """Reads a recipe: (what is copied, the script that is run, the environment that is set)."""
    text = (ROOT / "containers" / name).read_text()
    if name == "Dockerfile":
        found = instructions(text)
        copies, runs = ([rest for word, rest in found if word == kind] for kind in ("COPY", "RUN"))
        # Without the secrets, which a build may lack. A line that fails ends a build.
        runs = ["{ " + re.sub(r"--mount=\S+ ", "", run) + "\n} || exit 1" for run in runs]
        copied = [
            (source, target + Path(source).name if target.endswith("/") else target)
            for *sources, target in map(shlex.split, copies)
            for source in sources
        ]
        settings = " ".join(rest for word, rest in found if word == "ENV")
        return copied, "set -eu\n" + "\n".join(runs), dict(word.split("=", 1) for word in shlex.split(settings))
    found = sections(text)
    copied = [tuple(line.split()) for line in found["files"].splitlines() if line.strip()]
    settings = " ".join(line.strip().removeprefix("export ") for line in found["environment"].splitlines())
    given = dict(word.split("=", 1) for word in shlex.split(settings))
    return copied, found["post"].replace("{{ TORCH_BACKEND }}", ""), given


def run_recipe(name: str, root: Path, packages: bool) -> subprocess.CompletedProcess[str]:
    """Copies and runs a recipe's steps with `root` in place of the image's root; apt-get is not called.

    Without `packages` the environment has a pip that only tells how it was called: the real one takes seconds.
    """
    copied, script, _ = steps(name)
    for source, target in copied:
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / source, place)
    programs, version = root / "programs", "{}.{}".format(*sys.version_info)
    programs.mkdir()
    (programs / "apt-get").write_text('#!/bin/sh\necho "apt-get $*"\n')
    (programs / "python3.11").write_text(
        f'#!/bin/sh\n"{sys.executable}" "$@" {"" if packages else "--without-pip"}\n'
        + ("" if packages else f'cp -R "{root}/pip" "$3/lib/python{version}/site-packages"\n')
    )
    (root / "pip").mkdir()
    (root / "pip/__main__.py").write_text("import sys\nprint('pip', *sys.argv[1:])\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    script = script.replace("rm -rf /var/lib/apt/lists/*", "true").replace("mkdir /app", "mkdir -p /app")
    script = script.replace("/app/", f"{root}/app/")
    path = [root / "app/env/bin", programs, *os.environ["PATH"].split(os.pathsep)]
    environment = {**os.environ, "PATH": os.pathsep.join(map(str, path)), "TORCH_BACKEND": ""}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, cwd=root)


@pytest.mark.parametrize("name", RECIPES)
def test_the_steps_run_and_install_by_the_lock(name, tmp_path):
    """With a uv that only tells how it was called, and leaves the program that the recipe then looks for."""
    stub = tmp_path / "stub"
    stub.mkdir()
    program = tmp_path / "root/app/env/bin/voxprior"
    made = f'printf "#!/bin/sh\\n" > "{program}"; chmod +x "{program}"'
    (stub / "uv").write_text(f'#!/bin/sh\necho "uv $*"\n{made}\n')
    (stub / "uv").chmod(0o755)
    (tmp_path / "root").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{stub}{os.pathsep}{os.environ['PATH']}")
        done = run_recipe(name, tmp_path / "root", packages=False)
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "root/app"
    assert f"-c {home}/voxprior/constraints.txt -e {home}/voxprior[dicom,kubernetes]" in done.stdout
    assert "apt-get install --yes --no-install-recommends git gcc libc6-dev" in done.stdout


@pytest.mark.slow
def test_what_a_recipe_installs_is_fit_for_a_study(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    done = run_recipe("Dockerfile", root, packages=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    said = subprocess.run([root / "app/env/bin/voxprior", "doctor"], capture_output=True, text=True, env=environment)
    assert "all that voxprior asks for" in said.stdout, said.stdout + said.stderr
    plan = [root / "app/env/bin/snakemake", "-s", root / "app/voxprior/Snakefile", "-n", "--directory", tmp_path]
    plan += ["--configfile", root / "app/voxprior/config/config.yaml"]
    planned = subprocess.run(plan, capture_output=True, text=True, env=environment)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "pretrain" in planned.stdout + planned.stderr


def test_both_recipes_are_one():
    docker, apptainer = (steps(name) for name in RECIPES)
    inside = {pair for pair in docker[0] if pair[0].startswith("workflow/")}  # copied earlier, for a layer of its own
    assert set(docker[0]) - inside == set(apptainer[0]), "what is copied"
    unlike = {"HOME", "USER"}  # Apptainer keeps the user's
    for step in ("apt-get install", "install.sh /app/env", "pip uninstall", "compileall", "chmod"):
        (ours,) = re.findall(rf"{step}[^\n&]*", docker[1])
        (theirs,) = re.findall(rf"{step}[^\n&]*", apptainer[1])
        assert ours.strip() == theirs.strip(), step
    assert {key: value for key, value in docker[2].items() if key not in unlike} == apptainer[2]
    text = (ROOT / "containers/Dockerfile").read_text()
    (image,) = [rest for word, rest in instructions(text) if word == "FROM"]
    assert f"From: {image}\n" in sections((ROOT / "containers/voxprior.def").read_text())["header"]


def test_the_recipes_keep_the_rules_of_the_trade():
    """What hadolint asks for: a pinned base, no cache of apt, no sudo, commands as lists, known instructions only."""
    found = instructions((ROOT / "containers/Dockerfile").read_text())
    words = [word for word, _ in found]
    assert set(words) <= {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "CMD"}
    assert words[0] == "FROM" and re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", found[0][1]), (
        "pinned to a patch version"
    )
    for word, rest in found:
        if word == "RUN":
            assert "sudo" not in rest
            if "apt-get install" in rest:
                assert "--no-install-recommends" in rest and "--yes" in rest and "rm -rf /var/lib/apt/lists" in rest
        elif word == "COPY":
            assert shlex.split(rest)[:-1] != ["."], "copies data, results and .venv"
        elif word in ("CMD", "ENTRYPOINT"):
            assert rest.startswith("["), "a shell would get the signals"
        elif word == "WORKDIR":
            assert rest.startswith("/")
    assert set(sections((ROOT / "containers/voxprior.def").read_text())) == {
        "header", "arguments", "files", "post", "environment", "runscript", "test"
    }  # fmt: skip


@pytest.fixture
def apptainer(tmp_path, monkeypatch) -> Path:
    """A stand-in that runs `apptainer exec` in an empty environment, an 'image' first on PATH; returns the image."""
    image = tmp_path / "image.sif"
    image.write_text("")
    (tmp_path / "inside").mkdir()
    program = tmp_path / "inside" / "voxprior"
    program.write_text(f'#!/bin/sh\necho "$1" >> "{tmp_path}/ran"\nexec "{sys.executable}" -m voxprior "$@"\n')
    (tmp_path / "host").mkdir()
    lines = [
        "#!/bin/sh",
        '[ "$1" = --version ] && echo "apptainer version 1.3.4" && exit',
        'while [ "$1" != -c ]; do last=$before before=$1; shift; done',
        f'[ "$last" = "{image}" ] || {{ echo "no such image: $last"; exit 255; }}',
        f'exec env -i PYTHONPATH="$PYTHONPATH" PATH="{tmp_path}/inside:/usr/bin:/bin" "$before" -c "$2"',
    ]
    (tmp_path / "host" / "apptainer").write_text("\n".join(lines) + "\n")
    for file in (program, tmp_path / "host" / "apptainer"):
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'host'}{os.pathsep}{os.environ['PATH']}")
    return image


@pytest.mark.slow
def test_jobs_run_in_the_image_that_is_named(apptainer, tmp_path, snakemake, write_study, monkeypatch, jobs):
    study = write_study(tmp_path / "study")
    plain = snakemake(study, "results/check.json", "--cores", "1")
    assert plain.returncode == 0, plain.text
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("VOXPRIOR_IMAGE", str(apptainer))
    there = jobs(snakemake(study, "results/check.json", "-n", "--sdm", "apptainer").text)
    assert there == {}, "switching it on recomputes nothing"
    done = snakemake(study, "results/check.json", "--forcerun", "check", "--cores", "1", "--sdm", "apptainer")
    assert done.returncode == 0, done.text
    assert (tmp_path / "ran").read_text().split() == ["check"]
