"""Keep the book's notebooks executed and tidy.

    .venv/bin/python tools/notebooks.py from-py draft.py book/04_video_files.ipynb
    .venv/bin/python tools/notebooks.py run [book/04_video_files.ipynb ...]
    .venv/bin/python tools/notebooks.py check [book/04_video_files.ipynb ...]

Without a path, `run` and `check` take every notebook of book/_toc.yml. `run` executes and then
tidies, so that executing an unchanged notebook again gives a diff of no lines.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"

TAGS = {"nbval-ignore-output", "raises-exception", "gpu", "cluster", "hide-input", "solution"}
DERIVED_TAGS = {"hide-cell"}  # written by tidy(), never by an author
CELL_LIMIT_BYTES = 100_000
NOTEBOOK_LIMIT_BYTES = 700_000
CHECKED_SHARE = 0.70
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# What the author's machine and the test's machine must have in common for equal text: one thread
# (sums are added in one order), one line width, no colour codes, no progress bars.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def toc() -> list[Path]:
    """Every notebook in book/_toc.yml, in reading order."""

    def files(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from files(child)

    entries = files(yaml.safe_load((BOOK / "_toc.yml").read_text("utf-8")))
    paths = [BOOK / (entry.removesuffix(".ipynb") + ".ipynb") for entry in entries]
    return [path for path in paths if path.exists()]


def read(path: Path) -> NotebookNode:
    """One notebook in format 4."""
    return nbformat.read(path, as_version=4)


def write(path: Path, notebook: NotebookNode) -> None:
    """The notebook's text: one-space indent, as Jupyter itself writes it."""
    path.write_text(dumps(notebook), "utf-8")


def dumps(notebook: NotebookNode) -> str:
    """The notebook as text."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> set[str]:
    """The cell's tags."""
    return set(cell.metadata.get("tags", []))


def asserts(cell: NotebookNode) -> bool:
    """Whether the cell has an `assert`."""
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))


def compared(cell: NotebookNode) -> bool:
    """Whether nbval compares something that this cell prints."""
    return bool(cell.outputs) and "nbval-ignore-output" not in tags(cell)


# ---------------------------------------------------------------- text to notebook


def from_py(text: str) -> NotebookNode:
    """A notebook from percent-format text: `# %% [markdown]` and `# %% tags: a, b` open a cell.

    A markdown cell is either lines that begin with `# ` or one string in triple quotes, which
    is taken literally (no escapes: write LaTeX as it is).
    """
    notebook = nbformat.v4.new_notebook()
    head, *chunks = re.split(r"^# %%", text, flags=re.MULTILINE)
    if head.strip():
        raise SystemExit("from-py: text before the first '# %%' line belongs to no cell")
    for chunk in chunks:
        options, _, body = chunk.partition("\n")
        body = body.strip("\n")
        is_markdown, _, listed = options.partition("tags:")
        cell_tags = [tag.strip() for tag in listed.split(",") if tag.strip()]
        if "[markdown]" in is_markdown:
            quoted = re.fullmatch(r'r?"""\n?(.*?)\n?"""', body, flags=re.DOTALL)
            source = quoted[1] if quoted else re.sub(r"^# ?", "", body, flags=re.MULTILINE)
            cell = nbformat.v4.new_markdown_cell(source)
        else:
            cell = nbformat.v4.new_code_cell(body)
        cell.metadata = NotebookNode(tags=cell_tags) if cell_tags else NotebookNode()
        notebook.cells.append(cell)
    return tidy(notebook)


# ---------------------------------------------------------------- tidy


def tidy(notebook: NotebookNode) -> NotebookNode:
    """The same notebook without what changes from run to run or from editor to editor."""
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    seen: dict[str, int] = {}
    count = 0
    for cell in notebook.cells:
        cell.source = "\n".join(line.rstrip() for line in cell.source.strip("\n").split("\n"))
        # An id from the content: unchanged cells keep theirs when others come and go.
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata = _metadata(cell)
        if cell.cell_type == "code":
            if cell.execution_count is not None:
                count += 1
                cell.execution_count = count
            cell.outputs = [_output(out, count) for out in _kept(cell.outputs)]
    return notebook


def _metadata(cell: NotebookNode) -> NotebookNode:
    kept = [tag for tag in cell.metadata.get("tags", []) if tag not in DERIVED_TAGS]
    if "solution" not in kept or cell.cell_type != "code":
        return NotebookNode(tags=kept) if kept else NotebookNode()
    # Folded on the page (myst-nb) and in JupyterLab (jupyter), each by its own key.
    return NotebookNode(
        jupyter={"outputs_hidden": True, "source_hidden": True},
        mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"},
        tags=[*kept, "hide-cell"],
    )


def _kept(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs without stderr, neighbouring stdout pieces joined."""
    kept: list[NotebookNode] = []
    for out in outputs:
        if out.output_type == "stream" and out.name == "stderr":
            continue
        if kept and out.output_type == "stream" and kept[-1].output_type == "stream":
            kept[-1].text += out.text
        else:
            kept.append(out)
    return kept


def _output(out: NotebookNode, count: int) -> NotebookNode:
    if "data" in out:
        out.data.pop(WIDGET_VIEW, None)  # a live widget needs a kernel; its HTML face stays
        out.metadata = NotebookNode()
    if out.output_type == "execute_result":
        out.execution_count = count
    if out.output_type == "error":
        out.traceback = [f"{out.ename}: {out.evalue}"]  # the rest names folders of this machine
    return out


# ---------------------------------------------------------------- run and check


def run(path: Path, timeout_s: int = 300) -> float:
    """Execute one notebook in its own folder, tidy it, write it; return the seconds."""
    os.environ.update(ENVIRONMENT)
    notebook = read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
    )
    start = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - start
    for number, cell in enumerate(code_cells(notebook), 1):
        for out in cell.outputs:
            if out.output_type == "stream" and out.name == "stderr":
                print(f"{path.name}: code cell {number} wrote to stderr (not stored): {out.text}")
    write(path, tidy(notebook))
    return seconds


def problems(path: Path) -> list[str]:
    """Every broken rule of one notebook, in words; empty when it is in order."""
    notebook = read(path)
    found: list[str] = []
    if dumps(notebook) != dumps(tidy(notebook)):
        found.append("not tidy: run tools/notebooks.py run on it")
    cells = code_cells(notebook)
    for number, cell in enumerate(cells, 1):
        found += [f"code cell {number}: {text}" for text in _cell_problems(cell, number)]
        if "nbval-ignore-output" in tags(cell):
            near = cells[number - 1 : number + 2]
            if not any(asserts(other) for other in near):
                found.append(f"code cell {number}: output ignored, but no assert follows")
    share = sum(compared(cell) or asserts(cell) for cell in cells) / max(1, len(cells))
    if share < CHECKED_SHARE:
        found.append(f"{share:.0%} of the code cells are compared or assert; {CHECKED_SHARE:.0%}")
    if path.stat().st_size > NOTEBOOK_LIMIT_BYTES:
        found.append(f"{path.stat().st_size} bytes, more than {NOTEBOOK_LIMIT_BYTES}")
    return found


def _cell_problems(cell: NotebookNode, number: int) -> Iterator[str]:
    if cell.execution_count != number:
        yield f"execution count is {cell.execution_count}, not {number}"
    if unknown := tags(cell) - TAGS - DERIVED_TAGS:
        yield f"unknown tags {sorted(unknown)}"
    if len(json.dumps(cell)) > CELL_LIMIT_BYTES:
        yield f"{len(json.dumps(cell))} bytes, more than {CELL_LIMIT_BYTES}"
    if "raises-exception" in tags(cell) and not any(o.output_type == "error" for o in cell.outputs):
        yield "tagged raises-exception, but nothing is raised"
    for out in cell.outputs:
        if out.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"stored error {out.ename}: {out.evalue}"
        data = out.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            yield "a bare image without alt text: return a picture of book/show.py"
        for image in re.findall(r"<img\b[^>]*>", data.get("text/html", "")):
            if not re.search(r'\balt="[^"]{15,}"', image):
                yield "an <img> whose alt text is missing or too short to say what to see"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["from-py", "run", "check"])
    parser.add_argument("paths", nargs="*", type=Path)
    args = parser.parse_args()
    if args.command == "from-py":
        source, target = args.paths
        write(target, from_py(source.read_text("utf-8")))
        return
    bad = 0
    for path in [path.resolve() for path in args.paths] or toc():
        if args.command == "run":
            seconds = run(path)
            print(f"{path.name}: {seconds:.0f} s" + (" (limit: 60 s)" if seconds > 60 else ""))
        for text in problems(path):
            bad += 1
            print(f"{path.name}: {text}", file=sys.stderr)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
