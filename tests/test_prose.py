"""The text of the chapters: the same parts in the same order, measured, cited, and linked.

Sphinx resolves cross references when the pages are built (test_browser.py); what Sphinx lets pass
in silence is checked here.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from nbformat import NotebookNode

import notebooks
from notebooks import ROOT

BOOK = ROOT / "book"
PARTS = (
    *("Question", "Predict", "Measure", "Explain", "The function in vidlearn"),
    *("What can go wrong", "What to remember", "Exercises"),
)
WORDS = (1500, 2500)
CODE_CELLS = (15, 25)
BANNED = r"\b(simply|just|obviously|easy|easily|trivial|trivially|of course)\b"
# One meaning each, everywhere: these must be in the glossary.
HOUSE_WORDS = (
    *("video", "frame", "clip", "sample", "batch", "step", "context", "target", "predictor"),
    *("tubelet", "probe", "rank", "world size", "local rank"),
)
PAGES = [p for p in sorted(BOOK.rglob("*.md")) if "_build" not in p.parts]


def markdown(path: Path) -> list[str]:
    """The markdown cells of a notebook, or the text of a page."""
    if path.suffix == ".md":
        return [path.read_text("utf-8")]
    return [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown"]


def prose(path: Path) -> str:
    """Text without code, maths, addresses and directives."""
    text = "\n".join(markdown(path))
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1`*$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^:{3,}.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    text = re.sub(r"(?:\{[\w:+-]+\})?`[^`]*`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def headings(path: Path, level: int) -> list[str]:
    """Headings of one level, in order."""
    text = "\n".join(markdown(path))
    return re.findall(rf"^{'#' * level} (.+?)\s*$", text, flags=re.MULTILINE)


def exercises(path: Path) -> dict[str, list[NotebookNode]]:
    """Heading of each exercise -> its solution cells."""
    found: dict[str, list[NotebookNode]] = {}
    for cell in notebooks.read(path).cells:
        titles = re.findall(r"^### (Exercise \d+.*)$", cell.source, flags=re.MULTILINE)
        if cell.cell_type == "markdown" and titles:
            found.update({title: [] for title in titles})
        elif found and cell.cell_type == "code" and "solution" in notebooks.tags(cell):
            found[list(found)[-1]].append(cell)
    return found


chapter = pytest.mark.parametrize("path", notebooks.toc(), ids=lambda path: path.stem)
page = pytest.mark.parametrize(
    "path", [*notebooks.toc(), *PAGES], ids=lambda path: str(path.relative_to(BOOK))
)


@chapter
def test_parts_stand_in_order(path: Path) -> None:
    told = [next((p for p in PARTS if h.startswith(p)), h) for h in headings(path, 2)]
    assert told == list(PARTS)
    assert len(headings(path, 1)) == 1


@chapter
def test_length(path: Path) -> None:
    words = len(re.findall(r"[A-Za-z0-9][\w'’-]*", prose(path)))
    assert WORDS[0] <= words <= WORDS[1], f"{words} words"
    code = [
        c
        for c in notebooks.code_cells(notebooks.read(path))
        if "solution" not in c.metadata.get("tags", [])
    ]
    assert CODE_CELLS[0] <= len(code) <= CODE_CELLS[1], f"{len(code)} code cells"


@chapter
def test_prediction_comes_before_the_first_measurement(path: Path) -> None:
    """The reader writes a number down before any cell shows one."""
    for cell in notebooks.read(path).cells:
        if cell.cell_type == "markdown" and re.search(r"^## Predict", cell.source, re.MULTILINE):
            return
        assert cell.cell_type == "markdown" or not cell.outputs, cell.source[:60]


@chapter
def test_exercises_have_executed_solutions(path: Path) -> None:
    found = exercises(path)
    assert len(found) >= 3
    assert [title for title, cells in found.items() if not cells] == []
    for cells in found.values():
        assert all(cell.execution_count for cell in cells)
        assert any(cell.outputs for cell in cells)


@chapter
def test_code_fits_the_page(path: Path) -> None:
    for cell in notebooks.code_cells(notebooks.read(path)):
        long = [line for line in cell.source.splitlines() if len(line) > 100]
        assert long == []


@page
def test_no_word_that_makes_a_reader_feel_slow(path: Path) -> None:
    found = re.findall(BANNED, prose(path), flags=re.IGNORECASE)
    assert found == []


@page
def test_every_citation_is_in_the_bibliography(path: Path) -> None:
    bibliography = (BOOK / "references.bib").read_text("utf-8")
    keys = set(re.findall(r"^@\w+\{([^,\s]+),", bibliography, re.MULTILINE))
    roles = re.findall(r"\{cite:[a-z]+\}`([\w:, -]+)`", "\n".join(markdown(path)))
    cited = {key.strip() for role in roles for key in role.split(",")}
    assert cited <= keys


@page
def test_links_inside_the_book_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(markdown(path))):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        assert (path.parent / target.split("#")[0]).exists(), target


@page
def test_names_of_the_package_exist(path: Path) -> None:
    """Sphinx stays silent where a {py:func} leads nowhere."""
    for dotted in re.findall(r"\{py:\w+\}`~?(vidlearn[\w.]*)`", "\n".join(markdown(path))):
        parts = dotted.split(".")[1:]
        if not parts:
            continue
        file = ROOT / "vidlearn" / f"{parts[0]}.py"
        files = [file] if file.exists() else list((ROOT / "vidlearn" / parts[0]).glob("*.py"))
        assert files, dotted
        tree = [ast.parse(source.read_text("utf-8")) for source in files]
        kinds = (ast.FunctionDef, ast.ClassDef)
        names = {n.name for t in tree for n in ast.walk(t) if isinstance(n, kinds)}
        for t in tree:  # constants and fields
            names |= {n.id for n in ast.walk(t) if isinstance(n, ast.Name)}
        missing = [part for part in parts[1:] if part not in names and len(files) == 1]
        assert missing == [], dotted


def test_the_glossary_holds_the_words_of_the_house() -> None:
    text = (BOOK / "reference" / "glossary.md").read_text("utf-8")
    body = re.search(r"\{glossary\}[^\n]*\n(.*?)^`{3,}", text, re.DOTALL | re.MULTILINE)[1]
    terms = {line.strip().lower() for line in body.splitlines() if line and line[0] not in " :\t"}
    assert set(HOUSE_WORDS) <= terms


def test_every_entry_of_the_bibliography_can_be_looked_up() -> None:
    text = (BOOK / "references.bib").read_text("utf-8")
    entries = re.split(r"^@", text, flags=re.MULTILINE)[1:]
    keys = [re.match(r"\w+\{([^,\s]+),", entry)[1] for entry in entries]
    assert len(set(keys)) == len(keys)
    for key, entry in zip(keys, entries):
        assert re.search(r"^\s*(doi|eprint|url)\s*=", entry, re.MULTILINE), key


def test_every_fact_is_printed_somewhere() -> None:
    def keys(tree: dict, prefix: str = "") -> list[str]:
        if "value" in tree:
            return [prefix.rstrip(".")]
        return [key for name, node in tree.items() for key in keys(node, f"{prefix}{name}.")]

    text = "\n".join(cell for path in [*notebooks.toc(), *PAGES] for cell in markdown(path))
    facts = keys(json.loads((BOOK / "facts.json").read_text("utf-8")))
    assert [key for key in facts if f"{{fact}}`{key}`" not in text] == []
