"""What the book's pages can say beyond MyST.

    {fact}`ch02.h200_steps_per_s`   a number of facts.json, with how it was made as its tooltip
    ```{facts} ```                  the table of all of them
    ```{this-run} ```               what `make book` trained on the reader's own machine

It also finishes the pages so that they ask no other host for anything.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.fileutil import copy_asset_file

LOG = logging.getLogger(__name__)
FIELDS = ("value", "unit", "made_by", "machine", "repeats", "spread", "date")
BOOK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BOOK))  # autodoc imports show.py
RESULT = BOOK.parent / "runs" / "book" / "result.json"


def flatten(tree: dict, prefix: str = "") -> dict[str, dict]:
    """{"ch02": {"rate": FACT}} -> {"ch02.rate": FACT}; a FACT is a mapping with a "value".

    Raises:
        KeyError: a fact lacks one of FIELDS; the text names both.
    """
    facts: dict[str, dict] = {}
    for name, node in tree.items():
        if "value" not in node:
            facts.update(flatten(node, f"{prefix}{name}."))
            continue
        missing = [field for field in FIELDS if field not in node]
        if missing:
            raise KeyError(f"facts.json: {prefix}{name} lacks {', '.join(missing)}")
        facts[prefix + name] = node
    return facts


def spoken(fact: dict) -> str:
    """Value and unit as they are printed: 41.2 steps/s, 83 %, 1,200,000."""
    value = fact["value"]
    text = f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
    return f"{text}\u00a0{fact['unit']}" if fact["unit"] else text


def origin(fact: dict) -> str:
    """How the number was made, in one sentence."""
    spread = f", spread {fact['spread']}" if fact["spread"] else ""
    times = f"{fact['repeats']} run" + ("s" if fact["repeats"] != 1 else "")
    return f"{fact['made_by']}; {fact['machine']}; {times}{spread}; {fact['date']}"


def load(env: BuildEnvironment) -> dict[str, dict]:
    """The facts; pages that use them are built again when the file changes."""
    path = Path(env.srcdir) / "facts.json"
    env.note_dependency(str(path))
    return flatten(json.loads(path.read_text("utf-8")))


class FactRole(SphinxRole):
    """{fact}`key`: a missing key is a warning, and warnings fail the build."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """One <abbr> whose title is the origin."""
        fact = load(self.env).get(self.text)
        if fact is None:
            LOG.warning("facts.json has no %r", self.text, location=self.get_location())
            return [nodes.problematic(self.text, self.text)], []
        return [nodes.abbreviation(self.text, spoken(fact), explanation=origin(fact))], []


class FactsTable(SphinxDirective):
    """{facts}: all of them, for readers who cannot point at a number."""

    def run(self) -> list[nodes.Node]:
        """A table: name, value, origin."""
        rows = [(key, spoken(fact), origin(fact)) for key, fact in load(self.env).items()]
        return [table(("name", "value", "how it was made"), rows)]


class ThisRun(SphinxDirective):
    """{this-run}: the summary that tools/make_book.py wrote, or how to make one."""

    def run(self) -> list[nodes.Node]:
        """An admonition with a table."""
        self.env.note_dependency(str(RESULT))
        self.env.note_reread()
        box = nodes.admonition(classes=["this-run"])
        box += nodes.title(text="Your own run")
        if not RESULT.exists():
            box += nodes.paragraph(
                "",
                "No run is here yet. ",
                nodes.literal("", "make book"),
                nodes.Text(" trains a small V-JEPA on this machine and shows its result here."),
            )
            return [box]
        result = json.loads(RESULT.read_text("utf-8"))
        box += nodes.paragraph("", result["summary"])
        box += [table(part["head"], part["rows"]) for part in result["tables"]]
        return [box]


def table(head: tuple[str, ...] | list[str], rows: list) -> nodes.table:
    """A plain docutils table; a cell in backticks is a literal, whose dashes stay two.

    A cell may be a node, such as a link.
    """
    made = nodes.table(classes=["colwidths-auto"])
    group = nodes.tgroup(cols=len(head))
    made += group
    group += [nodes.colspec(colwidth=1) for _ in head]
    for part, lines in ((nodes.thead(), [head]), (nodes.tbody(), rows)):
        group += part
        for line in lines:
            row = nodes.row()
            part += row
            for cell in line:
                text, entry = str(cell), nodes.entry()
                if isinstance(cell, nodes.Node):
                    entry += nodes.paragraph("", "", cell)
                    row += entry
                    continue
                code = len(text) > 2 and text[0] == text[-1] == "`"
                inner = [nodes.literal("", text.strip("`"))] if code else [nodes.Text(text)]
                entry += nodes.paragraph("", "", *inner)
                row += entry
    return made


def keep_columns(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Indented lines of a module docstring are columns made with spaces: keep them."""
    if what != "module":
        return
    kept: list[str] = []
    for line in lines:
        before = kept[-1] if kept else ""
        if line.startswith("    ") and before and not before.startswith("    "):
            kept += ["", ".. code-block:: none", ""]
        elif line and not line.startswith("    ") and before.startswith("    "):
            kept.append("")
        kept.append(line)
    lines[:] = kept


def finish_html(app: Sphinx, exception: Exception | None) -> None:
    """Make the pages work offline and from a file:// address.

    MathJax is the one file with SVG output, which needs no fonts. The theme's preload hints ask
    for its icon fonts across origins, which browsers refuse (and report) for file:// addresses.
    """
    if exception is not None or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "static" / "mathjax" / "tex-svg.js"
    target = Path(app.outdir) / "_static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    copy_asset_file(str(source), str(target))
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text("utf-8")
        page.write_text(re.sub(r'<link rel="preload" as="font"[^>]*>', "", text), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_role("fact", FactRole())
    app.add_directive("facts", FactsTable)
    app.add_directive("this-run", ThisRun)
    # Jupyter Book sets this for sphinx_comments, which the book leaves out.
    app.add_config_value("comments_config", {}, "")
    app.connect("autodoc-process-docstring", keep_columns)
    app.connect("build-finished", finish_html)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
