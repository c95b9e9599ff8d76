"""The loader's table, drawn from its record when the book is built: ```{loader}```."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from vidbook import table

RECORD = Path("_static/records/loader.json")
FILES = {"256": "340 x 256", "lean": "340 x 256, lean", "720": "720p", "1080": "1080p"}
FILES |= {"2160": "4K", "hour": "an hour of 340 x 256"}
SIDES = {
    "published": "published",
    "ours, decord": "ours, decord",
    "ours": "ours, auto",
    "ours, normalised": "the same, normalised here",
    "ours, layered": "auto, layered copies",
}
HEAD = ("files", "loader", "CPU ms a clip", "times less CPU", "times faster", "CPU over the floor")


def spread(three: list[float], digits: int = 1) -> str:
    """Middle, least and greatest, as the tables of the book have them."""
    middle, least, most = (f"{x:.{digits if x < 100 else 0}f}" for x in three)
    return f"{middle} ({least} to {most})"


def kind(name: str, found: dict[str, Any]) -> str:
    """How many pairs, of how many files with how many kbit/s."""
    mean, least, most = (f"{rate:,}" for rate in found["kbit_per_s"])
    rates = f"{mean} kbit/s" + f", {least} to {most}" * (found["files"] > 1)
    files = f"{found['files']} file{'s' * (found['files'] > 1)} of {FILES[name]} ({rates})"
    return f"{found['pairs']} from {files}"


def rows(record: dict[str, Any]) -> list[list[str]]:
    """One row a kind of file and a side."""
    made = []
    for name, found in record["sets"].items():
        for side, label in SIDES.items():
            told = found["sides"][side]
            ratios = [spread(told[key]) for key in ("times_cpu", "times_wall")]
            ratios = ["", ""] if side == "published" else ratios
            floor = spread(told["over_floor"], 2) if "over_floor" in told else ""
            first = FILES[name] if side == "published" else ""  # of five rows
            made.append([first, label, f"{told['cpu_ms']:.1f}", *ratios, floor])
    return made


class Loader(SphinxDirective):
    """{loader}: the table, and on what machine."""

    def run(self) -> list[nodes.Node]:
        """The table; ratios are of pairs: middle, least, greatest."""
        path = Path(self.env.srcdir) / RECORD
        self.env.note_dependency(str(path))
        record = json.loads(path.read_text("utf-8"))
        machine = record["machine"]
        sets = record["sets"].items()
        pairs = "; ".join(kind(name, found) for name, found in sets)
        told = (f"Measured on {machine['cores']} cores of an {machine['cpu']} that others share, "
                f"{record['workers']} worker processes; pairs: {pairs}.")  # fmt: skip
        return [table(HEAD, rows(record)), nodes.paragraph("", told)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("loader", Loader)
    return {"parallel_read_safe": True}
