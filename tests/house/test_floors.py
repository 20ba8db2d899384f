"""The house's rules (docs/architecture.md): who may import whom, and how long anything may get."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "voxprior").rglob("*.py"))

EVERYTHING = {
    "maths",
    "data",
    "nets",
    "methods",
    "segment",
    "engine",
    "study",
    "exchange",
    "commands",
    "cards",
    "strict",
    "configuration",
}

# room -> (rooms of ours it may import, outside libraries it may never import)
ROOMS = {
    "maths": ({"maths"}, {"SimpleITK", "pandas", "monai", "mlflow"}),
    "data": ({"maths", "data"}, {"monai", "mlflow"}),
    "nets": ({"maths", "nets"}, {"SimpleITK", "pandas", "mlflow"}),
    "methods": ({"maths", "nets", "methods"}, {"SimpleITK", "pandas", "monai", "mlflow", "logging", "yaml"}),
    "segment": ({"maths", "nets", "segment"}, {"SimpleITK", "pandas", "mlflow"}),
    "engine": ({"maths", "engine"}, {"SimpleITK", "pandas", "monai"}),
    "study": ({"maths", "study"}, {"torch", "monai", "SimpleITK"}),
    "exchange": ({"maths", "nets", "exchange"}, {"SimpleITK", "pandas", "mlflow"}),
    "commands": (EVERYTHING, set()),
}
WITHOUT_TORCH = {
    "overlap",
    "surfaces",
    "statistics",
    "splits",
    "paired",
    "savings",
    "ranks",
    "variance",
    "areas",
    "lesions",
}
HEAVY = {"torch", "monai", "SimpleITK", "pandas", "mlflow", "scipy", "matplotlib", "blosc2", "requests", "numpy"}
NEVER_NAMED = re.compile(r"(utils?|helpers?|common|base|manager|trainer)\.py$")


def imports(tree: ast.AST):
    """Yields (module, inside a function) for every import."""
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", id(node) in inside
            if node.module == "voxprior":
                for alias in node.names:
                    yield f"voxprior.{alias.name}", id(node) in inside
            elif node.module == "voxprior.commands":
                yield "voxprior.commands", id(node) in inside


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "voxprior").parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_imports_keep_to_their_floor(path):
    room = room_of(path)
    if room not in ROOMS:
        return
    allowed, forbidden = ROOMS[room]
    for module, inside in imports(ast.parse(path.read_text())):
        first, *rest = module.split(".")
        if first == "voxprior" and rest:
            assert rest[0] in allowed | {"errors", "whole"}, f"{room} may not import {module}"
        assert first not in forbidden, f"{room} may not import {module}"
        if room == "maths" and path.stem in WITHOUT_TORCH:
            assert first != "torch", "these maths run where torch is not installed"
        if room == "commands":
            assert inside or first not in HEAVY, f"{path.name}: import {module} inside the function that needs it"
            assert inside or not (first == "voxprior" and rest and rest[0] != "errors"), f"{module}: import inside"
        if room == "engine" and first == "mlflow":
            assert inside, "mlflow is imported inside one function"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert not NEVER_NAMED.search(path.name)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} is longer than 60 lines"
            given = [a for a in [*node.args.args, *node.args.kwonlyargs] if a.arg not in ("self", "cls")]
            # A verb's parameters are the options of a command, each with its name and its help.
            # A Triton kernel takes sizes and pointers one by one: nothing else reaches a GPU.
            flat = path.parent.name == "cli" or "triton.jit" in map(ast.unparse, node.decorator_list)
            assert len(given) <= 8 or flat, f"{node.name} has {len(given)} arguments"


def test_only_the_command_line_imports_commands():
    for path in SOURCES:
        if room_of(path) in ("cli", "commands"):
            continue
        assert all(not module.startswith("voxprior.commands") for module, _ in imports(ast.parse(path.read_text())))


def test_rules_call_the_command_line():
    common = ROOT / "workflow" / "rules" / "common.smk"
    assert len(common.read_text().splitlines()) <= 150
    for path in [ROOT / "Snakefile", ROOT / "workflow" / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]:
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) (torch|monai|voxprior)", text, re.MULTILINE), path
        assert not re.search(r"^\s+run:", text, re.MULTILINE), f"{path}: never run: for work"


def test_every_rule_has_what_a_cluster_needs():
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for block in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            name = block.split(":")[0]
            wanted = ["message:", "output:", "log:", "conda:", "shell:"]
            if name not in ("card", "config_file"):  # local rules of one printf
                wanted += ["input:", "benchmark:", "threads:", "resources:"]
            missing = [key for key in wanted if key not in block]
            assert not missing, f"rule {name}: {missing}"
