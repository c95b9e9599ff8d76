"""The table of the speedrun, drawn from its record when the book is built: ```{speedrun}```."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ablations import cell
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from vidbook import table

RECORD = Path("_static/records/speedrun.json")
BAR, SPLIT = 70, "test"  # per cent right on new objects, the mean of the seeds
HEAD = ("date, commit", "by", "`vidlearn speedrun`", "CPU s", "new objects, %", "processor", "")


def rows(lines: list[dict[str, Any]]) -> list[list[str]]:
    """One row a line of the record, oldest first; the last cell says what it was worth."""
    made, best = [], float("inf")
    for line in lines:
        spent, right = ([run[key] for run in line["runs"]] for key in ("cpu_s", SPLIT))
        cpu_s, verdict = sum(spent) / len(spent), f"below {BAR} %"
        if sum(right) / len(right) >= BAR:
            verdict = "record" if cpu_s < best else "reached"
            best = min(best, cpu_s)
        told = [f"{line['date']}, {line['commit']}", line["by"], f"`{line['command']}`"]
        numbers = [cell(spent, ".0f"), cell(right, ".1f")]
        made.append([*told, *numbers, line["machine"], verdict])
    return made


class Speedrun(SphinxDirective):
    """{speedrun}: the table."""

    def run(self) -> list[nodes.Node]:
        """The table; each number the mean over seeds, with the lowest and highest."""
        path = Path(self.env.srcdir) / RECORD
        self.env.note_dependency(str(path))
        lines = rows(json.loads(path.read_text("utf-8")))
        if not lines:
            return [nodes.paragraph("", "No line is here yet. Yours can be the first.")]
        return [table(HEAD, lines)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("speedrun", Speedrun)
    return {"parallel_read_safe": True}
