"""The notebooks are executed, tidy and checkable; the tool that makes them so does what it says.

`make test` compares every output of every notebook with a fresh run (pytest --nbval). That check
passes in silence where a cell was never executed, has no text, or is told to be ignored; the tests
here close those gaps.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

import notebooks
from notebooks import ROOT

CHAPTERS = (
    *("01_training_step", "02_feeding_the_gpu", "03_many_gpus", "04_video_files", "05_datasets"),
    *("06_storage_and_time", "07_choosing_frames", "08_tokens", "09_vjepa"),
    *("10_what_did_it_learn", "11_the_full_run"),
)
DRAFT = r'''# %% [markdown]
r"""
# Title
Maths $\frac{T}{2}$ stays as it is.
"""

# %% [markdown]
# Lines with a hash
#
# are text, too.

# %%
import sys
print("two", 1 + 1)
print("noise", file=sys.stderr)
print("three")

# %% tags: nbval-ignore-output
import time
print(time.time())

# %%
assert 1 < 2
1 + 1

# %% tags: raises-exception
int("x")

# %% tags: solution
assert print("solved") is None
'''


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The draft above as an executed, tidy notebook."""
    path = tmp_path_factory.mktemp("draft") / "draft.ipynb"
    notebooks.write(path, notebooks.from_py(DRAFT))
    notebooks.run(path)
    return path


def test_all_chapters_are_in_the_table_of_contents_in_order() -> None:
    assert tuple(path.stem for path in notebooks.toc()) == CHAPTERS


def test_no_notebook_outside_the_table_of_contents() -> None:
    assert sorted((ROOT / "book").rglob("*.ipynb")) == sorted(notebooks.toc())


def test_make_test_compares_every_notebook_strictly() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "--nbval --nbval-sanitize-with tests/nbval_sanitize.cfg" in makefile
    assert "--nbval-lax" not in makefile
    assert "$(nbval) tests book/*.ipynb" in makefile


@pytest.mark.parametrize("path", notebooks.toc(), ids=lambda path: path.stem)
def test_chapter_breaks_no_rule(path: Path) -> None:
    assert notebooks.problems(path) == []


@pytest.mark.parametrize("path", notebooks.toc(), ids=lambda path: path.stem)
def test_chapter_depends_on_nothing_outside_itself(path: Path) -> None:
    """No shell, no magics, no path of one machine, and nothing left behind in the repository."""
    for cell in notebooks.code_cells(notebooks.read(path)):
        for text in ("get_ipython(", "/home/", "/Users/", "/tmp/", "%matplotlib", "plt.show"):
            assert text not in cell.source, f"{path.name}: {text} in {cell.source[:60]!r}"


def test_draft_becomes_cells() -> None:
    cells = notebooks.from_py(DRAFT).cells
    assert [cell.cell_type for cell in cells] == ["markdown"] * 2 + ["code"] * 5
    assert cells[0].source == "# Title\nMaths $\\frac{T}{2}$ stays as it is."
    assert cells[1].source == "Lines with a hash\n\nare text, too."
    assert [sorted(notebooks.tags(cell)) for cell in cells[3:]] == [
        ["nbval-ignore-output"],
        [],
        ["raises-exception"],
        ["hide-cell", "solution"],
    ]


def test_text_before_the_first_cell_is_refused() -> None:
    with pytest.raises(SystemExit, match="belongs to no cell"):
        notebooks.from_py("print(1)\n# %%\nprint(2)\n")


def test_a_run_is_in_order_and_keeps_no_stderr(executed: Path) -> None:
    cells = notebooks.code_cells(notebooks.read(executed))
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5]
    assert cells[0].outputs[0].text == "two 2\nthree\n"
    assert len(cells[0].outputs) == 1
    assert cells[2].outputs[0].data == {"text/plain": "2"}
    assert cells[3].outputs[0].traceback == [
        "ValueError: invalid literal for int() with base 10: 'x'"
    ]
    assert cells[4].metadata.jupyter == {"outputs_hidden": True, "source_hidden": True}
    assert notebooks.problems(executed) == []


def test_running_again_changes_nothing_but_the_ignored_output(executed: Path) -> None:
    before = notebooks.read(executed)
    notebooks.run(executed)
    after = notebooks.read(executed)
    for old, new in zip(before.cells, after.cells, strict=True):
        if "nbval-ignore-output" not in notebooks.tags(old):
            assert old == new


def _unexecuted(cells: list) -> None:
    cells[0].execution_count = None


def _jump(cells: list) -> None:
    cells[1].execution_count = 7


def _unknown_tag(cells: list) -> None:
    cells[0].metadata["tags"] = ["nbval-skip"]


def _bare_image(cells: list) -> None:
    cells[0].outputs = [nbformat.v4.new_output("display_data", {"image/png": "AAAA"})]


def _no_alt(cells: list) -> None:
    html = {"text/html": '<figure><img alt="" src="data:,"></figure>'}
    cells[0].outputs = [nbformat.v4.new_output("display_data", html)]


def _heavy(cells: list) -> None:
    cells[0].outputs = [nbformat.v4.new_output("stream", text="x" * 100_001)]


def _failed(cells: list) -> None:
    cells[0].outputs = [nbformat.v4.new_output("error", ename="KeyError", evalue="1")]


def _nothing_raised(cells: list) -> None:
    cells[0].metadata["tags"] = ["raises-exception"]


def _nothing_asserts(cells: list) -> None:
    for cell in cells:
        cell.source = cell.source.replace("assert ", "pass; ")


def _all_ignored(cells: list) -> None:
    for cell in cells[2:]:
        cell.metadata["tags"] = ["nbval-ignore-output"]


def _stderr(cells: list) -> None:
    cells[0].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="warning"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_unexecuted, "execution count is None, not 1"),
        (_jump, "execution count is 7, not 2"),
        (_unknown_tag, r"unknown tags \['nbval-skip'\]"),
        (_bare_image, "bare image"),
        (_no_alt, "alt text is missing"),
        (_heavy, "more than 100000"),
        (_failed, "stored error KeyError: 1"),
        (_nothing_raised, "tagged raises-exception, but nothing"),
        (_nothing_asserts, "output ignored, but no assert follows"),
        (_all_ignored, "of the code cells are compared or assert"),
        (_stderr, "not tidy"),
    ],
)
def test_each_broken_rule_is_named(executed: Path, tmp_path: Path, spoil, said: str) -> None:
    notebook = notebooks.read(executed)
    spoil(notebooks.code_cells(notebook))
    if spoil is _all_ignored:  # asserts count as checks, so take them away as well
        for cell in notebooks.code_cells(notebook)[1:]:
            cell.source = cell.source.replace("assert ", "pass; ")
    path = tmp_path / "spoilt.ipynb"
    notebooks.write(path, notebook)
    assert any(re.search(said, text) for text in notebooks.problems(path))
