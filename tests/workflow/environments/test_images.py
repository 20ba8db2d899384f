"""The image of containers/Dockerfile, built and run by podman: a study as another user, and `--sdm apptainer`.

Skipped where VOXPRIOR_BASE_IMAGE names no local image; base_image.sh makes one. The stand-in for Apptainer runs each
command in that image as Apptainer would: as the user who calls it, with the caller's variables, the recipe's on top,
nothing of the image writable, and the folders that it binds.
"""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs/environments.md"
pytestmark = pytest.mark.slow
USER = 4321  # nobody on this machine nor in the image
FINETUNE = {"steps": 4, "batch_size": 2, "crop_vox": [24, 24, 24], "seeds": [0]}


def test_a_build_is_sent_what_the_image_needs_and_nothing_else(image, tmp_path):
    """With what lies beside the sources in a checkout that is in use."""
    wanted = {"pyproject.toml", "constraints.txt", "config/studies/a.yaml", "src/voxprior/a.py", "workflow/Snakefile"}
    others = {
        ".git/config",
        ".venv/bin/python",
        "data/scan.nii.gz",
        "results/report.html",
        "work/state.pt",
        "mlflow.db",
    }
    others |= {"src/voxprior/__pycache__/a.pyc", "src/voxprior.egg-info/PKG-INFO", "tests/a.py", ".snakemake/log/a"}
    for name in wanted | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".dockerignore").write_text((ROOT / ".dockerignore").read_text())
    recipe = "FROM scratch\nCOPY . /\n"
    place = tmp_path.parent / f"{tmp_path.name} copied"
    built = subprocess.run(
        ["podman", "build", "--quiet", "--output", place, "-f", "-", tmp_path],
        input=recipe, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()} == wanted


def command(image: str, *more: str) -> list[str]:
    """Reads the command of docs/environments.md that runs a study in a container, for podman and another user."""
    text = DOCS.read_text().split("## Containers")[1].replace("\\\n", " ")
    (line,) = re.findall(r"^docker run .*snakemake.*$", text, flags=re.M)
    words = shlex.split(line.replace("$(id -u):$(id -g)", f"{USER}:{USER}").replace("$PWD", os.curdir))
    at = words.index("voxprior")
    before = [word for word in words[1:at] if word not in ("--gpus", "all")]
    inside = [word if word != "all" else "2" for word in words[at + 1 :]]
    return ["podman", *before, *more, image, *inside]


@pytest.fixture(scope="module")
def finished(image, told, tmp_path_factory, write_study) -> Path:
    """A study that ran in the image from scans to report, as a user who can write nothing but the study's folder."""
    folder = tmp_path_factory.mktemp("study") / "a path with spaces"
    write_study(folder, inits={"mini_vit": ["scratch", "mae"]}, finetune=FINETUNE, methods={})
    subprocess.run(["chown", "-R", f"{USER}:{USER}", folder], check=True)
    began = time.monotonic()
    done = subprocess.run(
        command(image, "--read-only", "--network", "none"), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told["study_s"] = round(time.monotonic() - began)
    return folder


def test_a_study_runs_from_scans_to_report_as_another_user(finished, image):
    assert "not a medical device" in (finished / "results/report.html").read_text().lower()
    assert len(list(finished.glob("results/finetune/*/*/*/*/*/scores.csv"))) == 4
    owners = {path.lstat().st_uid for path in finished.rglob("*")}
    assert owners == {USER}, "what a study makes is the caller's"
    said = subprocess.run([*command(image), "-n"], cwd=finished, capture_output=True, text=True)
    assert said.returncode == 0 and "Nothing to be done" in said.stdout + said.stderr, said.stdout + said.stderr


def test_what_is_left_out_is_not_asked_for(image):
    """No test, no scan, no .git; every file may be read by everyone; byte code is there, nobody could write it."""
    script = "ls -A /app/voxprior; find /app ! -perm -o=r; python -m compileall -q /app/voxprior/src"
    listed = subprocess.run(
        ["podman", "run", "--rm", "--read-only", "--user", f"{USER}", image, "sh", "-c", script],
        capture_output=True, text=True,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stdout + listed.stderr
    copied = {"LICENSE", "README.md", "Snakefile", "config", "constraints.txt", "pyproject.toml", "src", "workflow"}
    assert set(listed.stdout.split()) == copied


def test_the_doctor_finds_the_image_fit(image, tmp_path):
    tmp_path.chmod(0o777)
    run = ["podman", "run", "--rm", "--user", f"{USER}:{USER}", "--volume", f"{tmp_path}:/study", image]
    done = subprocess.run([*run, "voxprior", "doctor"], capture_output=True, text=True)
    assert done.returncode == 0 and "fit for a study" in done.stdout, done.stdout + done.stderr
    assert "all that voxprior asks for" in done.stdout


def test_a_gpus_kernels_can_be_compiled(image):
    """What Triton does before it first calls a kernel: a module in C, for this Python."""
    script = (
        "echo '#include <Python.h>' > /tmp/a.c && git --version && gcc -shared -fPIC -o /tmp/a.so /tmp/a.c "
        "-I$(python -c 'import sysconfig; print(sysconfig.get_paths()[\"include\"])')"
    )
    done = subprocess.run(["podman", "run", "--rm", "--read-only", "--user", f"{USER}", image, "sh", "-c", script],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


APPTAINER = """\
#!/usr/bin/env python3
import os, subprocess, sys

if sys.argv[1] == "--version":
    sys.exit(print("apptainer version 1.3.4"))
words, binds = sys.argv[sys.argv.index("exec") + 1 :], [os.getcwd(), "/tmp"]
home = os.getcwd()
while words[0].startswith("-"):
    option, value, *words = words
    assert option in ("--home", "--bind"), option
    binds.append(value.split(":")[0])
    home = value if option == "--home" else home
assert words[0] == {image_file!r}, words[0]
given = [word for key in os.environ if key.isidentifier() and key != "PATH" for word in ("--env", key)]
given += [word for pair in {environment!r} for word in ("--env", pair)] + ["--env", "HOME=" + home]
folders = [word for bind in dict.fromkeys(binds) for word in ("--volume", bind + ":" + bind)]
with open({ran!r}, "a") as ran:
    print(*words, file=ran)
run = ["podman", "run", "--rm", "--read-only", "--network", "none", "--user", f"{{os.getuid()}}:{{os.getgid()}}"]
sys.exit(subprocess.call([*run, *given, *folders, "--workdir", os.getcwd(), {image!r}, *words[1:]]))
"""


@pytest.fixture
def apptainer(image, tmp_path, monkeypatch) -> Path:
    """Puts the stand-in on PATH and names the image; returns the file that lists what ran."""
    recipe = (ROOT / "containers/voxprior.def").read_text()
    lines = re.search(r"^%environment\n(.*?)^%", recipe, flags=re.M | re.S).group(1)
    exported = " ".join(line.strip().removeprefix("export ") for line in lines.splitlines())
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = [pair.replace("$PATH", usual) for pair in shlex.split(exported)]
    (tmp_path / "bin").mkdir()
    file, ran = tmp_path / "voxprior.sif", tmp_path / "ran"
    file.write_text("")
    program = tmp_path / "bin/apptainer"
    program.write_text(APPTAINER.format(image=image, image_file=str(file), environment=environment, ran=str(ran)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("VOXPRIOR_IMAGE", str(file))
    return ran


def test_a_study_runs_with_its_jobs_in_the_image(apptainer, tmp_path, told, snakemake, write_study, monkeypatch, jobs):
    """Snakemake outside, each job in a container; one network, to the report."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    study = write_study(tmp_path / "a study", inits={"mini_vit": ["scratch"]}, pool=[], finetune=FINETUNE, methods={})
    began = time.monotonic()
    done = snakemake(study, "--cores", "2", "--sdm", "apptainer")
    assert done.returncode == 0, done.text
    ran = apptainer.read_text()
    told["apptainer_s"], told["apptainer_jobs"] = round(time.monotonic() - began), ran.count("voxprior.sif")
    for verb in ("fetch", "intake", "prepare", "split", "finetune", "predict-test", "score", "report"):
        assert f"voxprior {verb}" in ran, verb
    assert (study / "results/report.html").exists()
    assert jobs(snakemake(study, "-n").text) == {}, "without images there is nothing to do"
