"""The atlas of datasets, computed when the book is built: ```{atlas} costs```, access or errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from vidbook import table

from vidlearn.datasets import SPECS, Cell, DatasetSpec, upkeep
from vidlearn.datasets import table as told

RECORD = Path("_static/records/frontier.json")
WAY = "layered"
# Labels of cards that are not the key of their dataset.
CARDS = {"something_something_v2": "ssv2", "epic_kitchens_100": "epic100", "webvid2m": "webvid",
         "waymo_open": "waymo", "walking_tours": "walking-tours"}  # fmt: skip
HEADS = {
    "costs": ("Dataset", "Hours", "Frame size", "As distributed", "To keep", "Clips an epoch",
              "To decode"),
    "access": ("Dataset", "Licence", "How to get it", "Sources"),
    "errors": ("Dataset", "The lecture's table", "What is wrong"),
}  # fmt: skip


def size(n_bytes: float) -> str:
    """Bytes in two digits: 1.4 TB, 92 GB, 0.5 GB."""
    unit, name = (1e12, "TB") if n_bytes >= 999.5e9 else (1e9, "GB")
    value = n_bytes / unit
    return f"{value:.2g}\u00a0{name}" if value < 99.5 else f"{value:,.0f}\u00a0{name}"


def cells_of(spec: DatasetSpec) -> tuple[Cell, ...]:
    """Those with a source."""
    return spec.average_s, spec.videos, spec.hours, spec.frame_size, spec.disk_bytes


def sources(spec: DatasetSpec) -> str:
    """Who says so, each once; a star where nobody opened it for this course."""
    names = dict.fromkeys(cell.source + "*" * (not cell.checked) for cell in cells_of(spec))
    return "; ".join(names)


def costs(spec: DatasetSpec, way: dict[str, Any]) -> list[str]:
    """Frame size and hours as they are, and what layered copies take."""
    found = upkeep(spec, way["bytes_per_s"], way["cpu_ms"])
    cells = [spec.hours.value, spec.frame_size.value, spec.disk_bytes.value]
    if found is None:
        return [*cells, "-", "-", "-"]
    hours = found["decode_core_hours"]
    unit, value = ("h", hours) if hours >= 0.095 else ("min", 60 * hours)
    decoded = f"{value:.2g}" if value < 9.5 else f"{value:,.0f}"
    clips = float(f"{found['clips']:.3g}")
    return [*cells, size(found["keep_bytes"]), f"{clips:,.0f}", f"{decoded}\u00a0{unit}"]


def rows(kind: str, record: dict[str, Any]) -> list[list[Any]]:
    """One row a dataset; its name leads to its card."""
    made = []
    for spec, words in zip(SPECS, told()):
        if kind == "costs":
            cells = costs(spec, record["ways"][WAY])
        elif kind == "access":
            cells = [words["licence"], words["how to get it"], sources(spec)]
        elif not spec.on_slide:
            continue
        else:
            cells = [words["what the slide said"], words["correction"]]
        card = f"#card-{CARDS.get(spec.key, spec.key)}"
        made.append([nodes.reference("", spec.name, refuri=card, internal=True), *cells])
    return made


class Atlas(SphinxDirective):
    """{atlas}: one of the three tables."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table; for costs, what they were computed from."""
        kind, path = self.arguments[0], Path(self.env.srcdir) / RECORD
        self.env.note_dependency(str(path))
        record = json.loads(path.read_text("utf-8"))
        made: list[nodes.Node] = [table(HEADS[kind], rows(kind, record))]
        if kind == "costs":
            way, machine = record["ways"][WAY], record["machine"]
            text = (
                f"Computed from {way['bytes_per_s'] * 3.6e-3:.0f} MB an hour and "
                f"{way['cpu_ms']:.1f} ms of one core a clip ({way['cpu_ms_least']:.1f} to "
                f"{way['cpu_ms_most']:.1f}), measured on {record['videos']} other videos, "
                f"on {machine['cores']} cores of an {machine['cpu']} that others share, "
                f"{record['date']}."
            )
            made.append(nodes.paragraph("", text))
        elif kind == "access":
            made[0]["classes"].append("breaks")
            dates = sorted({cell.checked for spec in SPECS for cell in cells_of(spec)} - {""})
            text = f"Read on {', '.join(dates)}; with a star: cited by such a source, not opened."
            made.append(nodes.paragraph("", text))
        return made


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("atlas", Atlas)
    return {"parallel_read_safe": True}
