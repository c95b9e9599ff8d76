"""The shape of the package: imports run one way, files and functions stay short, names are told.

All from the source text; nothing of the package is imported here. Style and types are here, too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import notebooks
from notebooks import ROOT

PACKAGE = ROOT / "vidlearn"
# A module may import only from those before it.
ORDER = (
    *("errors", "storage", "decode", "sample", "transform", "datasets", "batch", "tokens", "mask"),
    *("transformer", "model", "attentive", "loss", "schedule", "checkpoint", "recipes"),
    *("pictures", "pretrained", "runlog", "budget", "dist", "step", "train", "probe"),
    *("measure", "cli", "__main__"),
)
TOTAL_LINES = 3500  # this number may only go down
FILE_LINES = 350
FUNCTION_LINES = 60
STANDARD_NAMES = {"tokenize", "types", "profile", "io", "random", "utils"}
# Seen by a reader when help is asked for, or a test collects: torch takes two seconds to load.
NO_TORCH = ("errors", "storage", "sample", "recipes", "runlog", "cli")

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
# What exists only because others store data and weights in their own ways, and because clusters
# start processes and lose them in theirs, is counted apart.
APART = {PACKAGE / "datasets", PACKAGE / "dist"}
ADAPTERS = [path for path in FILES if APART & set(path.parents)]
ADAPTERS += [PACKAGE / "pretrained.py"]
COUNTED = [path for path in FILES if path not in ADAPTERS]


def module(path: Path) -> str:
    """First name below the package: `datasets` for all files of vidlearn/datasets/."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def own_imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it, for types too."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "vidlearn":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("vidlearn."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith("vidlearn.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return found - {module(path)}


def at_top(path: Path) -> set[str]:
    """Packages that importing the file loads."""
    found = set()
    for node in tree(path).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]


def public(path: Path) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes of the module's top level without underscore."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n for n in tree(path).body if isinstance(n, kinds) and not n.name.startswith("_")]


def test_every_module_has_its_place() -> None:
    assert {module(path) for path in FILES} - {"__init__"} == set(ORDER)
    assert not STANDARD_NAMES & set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    allowed = () if module(path) == "__init__" else ORDER[: ORDER.index(module(path))]
    assert own_imports(path) <= set(allowed)


def test_no_circle() -> None:
    graph = {module(path): own_imports(path) for path in FILES}
    graph["datasets"] = set().union(*(own_imports(p) for p in FILES if module(p) == "datasets"))
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


@pytest.mark.parametrize("name", NO_TORCH)
def test_light_modules_load_no_torch(name: str) -> None:
    reached, todo = set(), {name}
    while todo:
        parts = (name := todo.pop()).split(".")
        path = next(
            p
            for p in (
                PACKAGE.joinpath(*parts) / "__init__.py",
                PACKAGE.joinpath(*parts).with_suffix(".py"),
            )
            if p.exists()
        )
        heavy = at_top(path) & {"torch", "decord", "torchcodec", "ipywidgets"}
        assert not heavy, f"{path.name} imports {heavy} at its top"
        reached.add(name)
        body = ast.Module([n for n in tree(path).body if isinstance(n, ast.ImportFrom)], [])
        names = [n.module for n in body.body if n.module and n.module.startswith("vidlearn.")]
        names = [n.removeprefix("vidlearn.") for n in names if "datasets" not in n]
        todo |= {*names, *(n.partition(".")[0] for n in names)} - reached


def test_the_package_stays_small() -> None:
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in COUNTED}
    assert sum(lines.values()) <= TOTAL_LINES, lines
    assert {name: n for name, n in lines.items() if n > FILE_LINES} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_stay_short(path: Path) -> None:
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path)}
    assert {name: n for name, n in long.items() if n > FUNCTION_LINES} == {}


def test_the_median_function_is_near_a_dozen_lines() -> None:
    sizes = sorted(f.end_lineno - f.lineno + 1 for path in COUNTED for f in functions(path))
    assert sizes[len(sizes) // 2] <= 15


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_public_name_is_documented(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "the module says what it does"
    for node in public(path):
        assert ast.get_docstring(node), node.name
        if isinstance(node, ast.ClassDef):
            inner = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            for method in (n for n in inner if not n.name.startswith("_")):
                assert ast.get_docstring(method), f"{node.name}.{method.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_left_undone_or_hidden(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            assert not names & {"Exception", "BaseException"}, f"line {node.lineno}"


STYLE = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
    "shell": ["shellcheck", ".ci/run", *map(str, sorted(ROOT.glob("tools/*.sh")))],
    "slurm": ["shellcheck", "-x", *map(str, sorted(ROOT.glob("slurm/*")))],
}


@pytest.mark.parametrize("name", STYLE)
def test_style(name: str) -> None:
    program, *words = STYLE[name]
    command = [str(Path(sys.executable).with_name(program)), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def chapters() -> list[ast.Module]:
    """The code of each chapter."""
    cells = [notebooks.code_cells(notebooks.read(path)) for path in notebooks.toc()]
    return [ast.parse("\n".join(cell.source for cell in chapter)) for chapter in cells]


def names_used(program: ast.Module) -> set[str]:
    """Every name that a program reads, imports or takes from a module."""
    used = set()
    for node in ast.walk(program):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used.add(node.id)
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used |= {*re.findall(r"^[\w.]+:(\w+)$", node.value)}  # "module:name", for resolve_name
    return used


def test_no_public_name_is_dead() -> None:
    """Used in a chapter, by a tool, by another module or by its own; tests do not count."""
    programs = chapters() + [tree(path) for path in [*FILES, *ROOT.glob("tools/*.py")]]
    used = set().union(*map(names_used, programs))
    dead = {f"{module(path)}.{n.name}" for path in [*COUNTED, ADAPTERS[-1]] for n in public(path)}
    dead = {name for name in dead if name.split(".")[1] not in used}
    assert dead - {"cli.main"} == set()  # the entry point in pyproject.toml


def test_every_module_is_taught() -> None:
    """Each module is imported in a chapter, apart from those behind a command."""
    used = set().union(*map(names_used, chapters()))
    text = "\n".join(ast.unparse(chapter) for chapter in chapters())
    untold = {m for m in ORDER if m not in used and f"vidlearn.{m}" not in text}
    assert untold - {"__main__", "cli", "pictures", "scaling"} == set()
