"""The notebook check checks: a wrong stored number makes exactly its own cell fail.

For each chapter, the first cells that hold compared numbers get one digit changed in a copy, and
the copy, cut off behind the last of them, goes through the same strict nbval. Cells after the cut
are held by a cheaper proof: a changed digit must survive the sanitiser.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from nbformat import NotebookNode

import notebooks
from notebooks import ROOT

SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"
RULES = re.findall(r"^regex: (.*)$\n^replace: (.*)$", SANITIZE.read_text("utf-8"), re.MULTILINE)
PLANTS = 3


def sanitized(text: str) -> str:
    """What nbval compares."""
    for rule, replacement in RULES:
        text = re.sub(rule, replacement, text)
    return text


def plant(output: NotebookNode) -> bool:
    """Change one compared digit of a stored output; False if it has none."""
    holder, key = (output, "text") if "text" in output else (output.get("data", {}), "text/plain")
    if output.output_type == "error":
        holder, key = output, "evalue"
    text = holder.get(key, "")
    for found in reversed(list(re.finditer(r"\d", text))):
        wrong = str((int(found[0]) + 1) % 10)
        changed = text[: found.start()] + wrong + text[found.end() :]
        if sanitized(changed) != sanitized(text):
            holder[key] = changed
            return True
    return False


def has_number(cell: NotebookNode) -> bool:
    """Whether a compared output of the cell holds a digit."""
    texts = [
        str(out.get("text", out.get("evalue", out.get("data", {}).get("text/plain", ""))))
        for out in cell.outputs
    ]
    return notebooks.compared(cell) and any(re.search(r"\d", text) for text in texts)


def mirror(folder: Path, notebook: NotebookNode) -> Path:
    """book/ once more, with one notebook in place of all and everything else linked."""
    (folder / "book").mkdir(parents=True)
    for source in ROOT.iterdir():
        if source.name not in ("book", "pyproject.toml"):
            (folder / source.name).symlink_to(source)
    for source in (ROOT / "book").iterdir():
        if source.suffix != ".ipynb":
            (folder / "book" / source.name).symlink_to(source)
    path = folder / "book" / "planted.ipynb"
    notebooks.write(path, notebook)
    return path


def strict(path: Path) -> dict[int, bool]:
    """Code cell number (from 0) -> whether nbval passed it."""
    report = path.parents[1] / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no", "-q"]
    command += [
        "-p",
        "tests.nbval_plugin",
        "--nbval",
        f"--nbval-sanitize-with={SANITIZE}",
        "--nbval-cell-timeout=300",
    ]
    command += [f"--rootdir={path.parent}", f"--junitxml={report}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert report.exists(), done.stdout + done.stderr
    return {
        int(case.attrib["name"].removeprefix("Cell ")): not list(case)
        for case in ElementTree.parse(report).iter("testcase")
    }


def planted_copy(notebook: NotebookNode) -> tuple[NotebookNode, list[int]]:
    """The notebook cut behind its planted cells, and which code cells those are."""
    planted: list[int] = []
    number = -1
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        number += 1
        if has_number(cell) and any(plant(out) for out in cell.outputs):
            planted.append(number)
        if len(planted) == PLANTS:
            notebook.cells = notebook.cells[: position + 1]
            break
    return notebook, planted


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.toc(), ids=lambda path: path.stem)
def test_a_wrong_number_fails_its_cell_and_no_other(path: Path, tmp_path: Path) -> None:
    copy, planted = planted_copy(notebooks.read(path))
    assert len(planted) == PLANTS, f"{path.name} has fewer than {PLANTS} cells with numbers"
    passed = strict(mirror(tmp_path / "mirror", copy))
    assert [cell for cell, good in passed.items() if not good] == planted
    assert len(passed) == len(notebooks.code_cells(copy))


@pytest.mark.parametrize("path", notebooks.toc(), ids=lambda path: path.stem)
def test_a_changed_digit_survives_the_sanitiser(path: Path) -> None:
    for number, cell in enumerate(notebooks.code_cells(notebooks.read(path)), 1):
        if has_number(cell):
            assert any(plant(out) for out in cell.outputs), f"{path.name}, code cell {number}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss 0.4123 after 60 steps", "loss 0.4123 after 60 steps"),
        ("a clip of 2.13 s", "a clip of 2.13 s"),
        ("took 12.3 s", "took SECONDS"),
        ("frames 200x100", "frames 200x100"),
        ("<object at 0x7f3a2b1c>", "<object at ADDRESS>"),
        ("wrote /tmp/tmpab12/x.mp4", "wrote FOLDER"),
        ("/private/var/folders/zz/T/tmp1/x.mp4: 3 frames", "FOLDER: 3 frames"),
        ("since 2026-11-22 19:04:11", "since DATE"),
        ('<img alt="3 bars" src="data:image/png;base64,AAA+/=">', '<img alt="3 bars" src="IMAGE">'),
    ],
)
def test_the_sanitiser_takes_no_more_than_it_must(text: str, expected: str) -> None:
    assert sanitized(text) == expected
