"""The table and the figure of `tools/ablate.py`, drawn from its record when the book is built.

    ```{ablations}```              of _static/records/ablations.json
    ```{ablations} laptop```       of _static/records/laptop.json
    ```{labels}```                 of _static/records/label_efficiency.json, by its own tool

So the page says what the record says. Numbers are means over seeds, with the lowest and highest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from vidbook import table

import show

RECORDS = Path("_static/records")
PROBED = {"val": "new clips, %", "test": "new objects, %", "far": "new backgrounds, %"}
COLUMNS = {  # key -> head, scale, form; a record may lack one
    "loss": ("loss", 1, ".2f"), "explained": ("explained, %", 100, ".0f"),
    "effective_rank": ("effective rank", 1, ".0f"),
}  # fmt: skip
LABELS = {key: head for key, (head, *_) in COLUMNS.items()} | PROBED
STYLES, COLOURS = ("-", "--", "-.", ":"), (show.BLUE, show.ORANGE, show.GREEN, show.RED)


def by_name(record: dict[str, Any]) -> dict[str, list[list[dict[str, float]]]]:
    """The curves of each variant, one a seed, in the order of the record."""
    curves: dict[str, list[list[dict[str, float]]]] = {}
    for run in record["runs"]:
        curves.setdefault(run["name"], []).append(run["curve"])
    return curves


def cell(values: list[float], form: str) -> str:
    """Mean, lowest and highest: "58 (55 to 60)"."""
    texts = [f"{x:{form}}" for x in (sum(values) / len(values), min(values), max(values))]
    mean, low, high = (x.lstrip("-") if float(x) == 0 else x for x in texts)
    return f"{mean} ({low} to {high})".replace("-", "\u2212")


def probed(record: dict[str, Any]) -> list[str]:
    """The splits that were probed."""
    return [split for split in PROBED if split in record["runs"][0]["curve"][0]]


def measured(record: dict[str, Any]) -> list[str]:
    """The columns that all runs of the record have, beside what was probed."""
    return [key for key in COLUMNS if all(key in run["curve"][-1] for run in record["runs"])]


def rows(record: dict[str, Any]) -> list[list[str]]:
    """A line for each variant; before an arrow stands what its encoder had at step 0."""
    lines = []
    for name, found in by_name(record).items():
        ends = [curve[-1] for curve in found]
        cells = []
        for k in measured(record):
            _, scale, form = COLUMNS[k]
            cells.append(cell([scale * end[k] for end in ends], form))
        for k in probed(record):
            start = sum(curve[0][k] for curve in found) / len(found)
            cells.append(f"{start:.0f} \u2192 {cell([end[k] for end in ends], '.0f')}")
        lines.append([name, *cells])
    return lines


def figure(record: dict[str, Any], names: list[str]) -> show.Picture:
    """Loss, explained share, rank and probe along the steps, of some variants, seed by seed."""
    drawn, axes = show.axes(2, 2, height_in=4.4)
    panels = [*measured(record), *probed(record)][:4]
    for axis, key in zip(axes.flat, panels):
        scale = 100 if key == "explained" else 1
        for number, name in enumerate(names):
            for seed, curve in enumerate(by_name(record)[name]):
                points = [(p["step"], scale * p[key]) for p in curve if key in p]
                look = {"color": COLOURS[number % 4], "marker": "o", "markersize": 3}
                label_of = {} if seed else {"label": name}
                axis.plot(*zip(*points), STYLES[number % 4], linewidth=1, **look, **label_of)
        axis.set(xlabel="step", ylabel=LABELS[key])
        if key == "explained":
            highest = max(p[key] for run in record["runs"] for p in run["curve"][1:])
            axis.set(ylim=(-45, max(10, 100 * highest + 5)))
    lines = axes[0, 0].get_legend_handles_labels()  # below all panels, where no curve is
    drawn.legend(*lines, frameon=False, fontsize=7, loc="outside lower center", ncols=2)
    new = 1 + len(measured(record))  # the column of new clips
    told = "; ".join(f"{line[0]}: loss {line[1]}, new clips {line[new]} %"
                     for line in rows(record) if line[0] in names)  # fmt: skip
    by = ", ".join(LABELS[key] for key in panels)
    return show.picture(drawn, f"by step: {by}. At the end {told}")


class Ablations(SphinxDirective):
    """{ablations} RECORD: table, and the curves of the variants that it names, one a line."""

    has_content = True
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Table, figure, and how they were made."""
        name = self.arguments[0] if self.arguments else "ablations"
        path = Path(self.env.srcdir) / RECORDS / f"{name}.json"
        self.env.note_dependency(str(path))
        record = json.loads(path.read_text("utf-8"))
        html = figure(record, list(self.content)).html()
        about = (
            f"{record['seeds']} seeds of {record['steps']} steps each; mean, lowest and highest. "
            f"{record['machine']['cpu']}, torch {record['machine']['torch']}, one thread a run. "
            + "What explains less than \u221245 % is left out of its panel."
            * ("explained" in measured(record))
        )
        drawn = nodes.raw("", html, format="html")
        head = ("changed", *(LABELS[k] for k in (*measured(record), *probed(record))))
        return [table(head, rows(record)), nodes.paragraph("", about), drawn]


def label_rows(record: dict[str, Any]) -> list[list[str]]:
    """A line for each number of labels and each way to use them."""
    kinds = dict.fromkeys((run["labels"], run["way"]) for run in record["runs"])
    lines = []
    for labels, way in sorted(kinds, key=lambda kind: kind[0]):
        mine = [run for run in record["runs"] if (run["labels"], run["way"]) == (labels, way)]
        cells = [cell([run[split] for run in mine], ".0f") for split in PROBED]
        lines.append([str(labels), way, *cells])
    return lines


class Labels(SphinxDirective):
    """{labels}: what few labels are worth, to a frozen encoder and without one."""

    def run(self) -> list[nodes.Node]:
        """Table, and how it was made."""
        path = Path(self.env.srcdir) / RECORDS / "label_efficiency.json"
        self.env.note_dependency(str(path))
        record = json.loads(path.read_text("utf-8"))
        about = (
            f"{record['seeds']} draws of labels; mean, lowest and highest. Supervised: "
            f"{record['steps']} steps, about {record['seconds']:.0f} CPU-seconds. "
            f"{record['machine']['cpu']}, torch {record['machine']['torch']}, one thread a run."
        )
        head = ("labels a class", "what is trained on them", *PROBED.values())
        return [table(head, label_rows(record)), nodes.paragraph("", about)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("ablations", Ablations)
    app.add_directive("labels", Labels)
    return {"parallel_read_safe": True}
