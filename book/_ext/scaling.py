"""Tables and the figure of the page "Scaling", made from records when the book is built.

    ```{scaling}```            predicted and measured here, of _static/records/scaling.json
    ```{scaling} loaded```     the cases with a loader
    ```{scaling} published```  what others measured, of _static/records/scaling_published.json
    ```{scaling} curve```      efficiency of a recipe on 1 to 1,024 GPUs, by the model

The model of `vidlearn.scaling` is run anew for the last two.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from vidbook import table

import show
from vidlearn import scaling

RECORDS = Path("_static/records")
HEAD = ("case", "predicted, clips/s", "measured, clips/s", "predicted / measured", "rounds")
PUBLISHED = ("run", "GPUs", "passes", "measured", "predicted", "efficiency: measured", "predicted",
             "off, points")  # fmt: skip


def ratio(three: list[float]) -> str:
    """Middle, least and greatest."""
    return f"{three[0]:.2f} ({three[1]:.2f} to {three[2]:.2f})"


def rows(record: dict[str, Any]) -> list[list[str]]:
    """Two processes, and one, of each case."""
    made = []
    for name, found in record["cases"].items():
        for label, key in (("2 processes", "two"), ("1 process", "one")):
            told = found[key]
            numbers = [f"{told[x]:.1f}" for x in ("predicted", "measured")]
            made.append([f"{name}: {label}", *numbers, ratio(told["ratio"]), str(found["rounds"])])
    return made


def loaded(record: dict[str, Any]) -> list[list[str]]:
    """One process and its loader; which of them the model says to bind."""
    made = []
    for name, found in record["loaded"].items():
        binds = max(found["parts_ms"], key=found["parts_ms"].__getitem__)
        numbers = [f"{found[x]:.1f}" for x in ("predicted", "measured")]
        made.append([f"{name} ({binds} binds)", *numbers, ratio(found["ratio"]), str(found["rounds"])])
    return made


def parts(case: dict[str, Any], rate: float, n: int) -> scaling.Parts:
    """The model's input for n GPUs of a published run, each of which computes at this rate."""
    update_s = case["update_ms"] / 1e3 / (n if case.get("shared") else 1)
    return scaling.Parts(rate, update_s, case["sent_gb"] * 1e9, case["calls"], 1, case["hide"])


def throughput(case: dict[str, Any], common: dict[str, Any], n: int, passes: int, rate: float) -> float:
    """What the model says of n GPUs, together."""
    cluster = scaling.Cluster(
        nodes=n // case["each"], jitter=common["jitter"], hop_us=common["hop_us"],
        node_gb_s=case["node_gb_s"], net_gb_s=case["net_gb_s"],
    )  # fmt: skip
    batch = n * passes * case["batch"]
    told = scaling.predict(parts(case, rate, n), cluster, batch, case["each"], passes)
    return told["clips_per_s"]


def compared(case: dict[str, Any], common: dict[str, Any]) -> list[dict[str, float]]:
    """Each point: the model is told the first, and must say the others."""
    each = "a GPU" in case["unit"]
    n, first, passes = case["points"][0]
    total = first * (n if each else 1)
    rate = total / n
    for _ in range(100):  # the speed at which one GPU computes, so that the first comes out
        rate *= total / throughput(case, common, n, passes, rate)
    made = []
    for gpus, measured, k in case["points"]:
        predicted = throughput(case, common, gpus, k, rate) / (gpus if each else 1)
        ideal = first * (1 if each else gpus / n)
        made.append({"gpus": gpus, "passes": k, "measured": measured, "predicted": predicted,
                     "efficiency": measured / ideal, "told": predicted / ideal})  # fmt: skip
    return made


def published(record: dict[str, Any]) -> list[list[str]]:
    """One row a point, but for each run's first, which the model is told."""
    made = []
    for case in record["cases"]:
        for p in compared(case, record)[1:]:
            off = 100 * (p["told"] - p["efficiency"])
            numbers = [f"{p['measured']:,.0f}", f"{p['predicted']:,.0f} {case['unit']}"]
            shares = [f"{p['efficiency']:.1%}", f"{p['told']:.1%}"]
            made.append([case["name"], f"{p['gpus']:,}", str(p["passes"]), *numbers, *shares, f"{off:+.1f}"])
    return made


class Scaling(SphinxDirective):
    """{scaling}: one of the tables, or the curve."""

    optional_arguments = 1

    def read(self, name: str) -> dict[str, Any]:
        """A record; the page is built again when it changes."""
        path = Path(self.env.srcdir) / RECORDS / name
        self.env.note_dependency(str(path))
        return json.loads(path.read_text("utf-8"))

    def run(self) -> list[nodes.Node]:
        """What the argument asks for."""
        what = self.arguments[0] if self.arguments else "here"
        if what == "published":
            return [table(PUBLISHED, published(self.read("scaling_published.json")))]
        record = self.read("scaling.json")
        machine = record["machine"]
        told = (f"Measured on {machine['cores']} cores of an {machine['cpu']} that others share, "
                f"{record['date']}. Ratios are of rounds: middle, least, greatest.")  # fmt: skip
        made = loaded(record) if what == "loaded" else rows(record)
        return [table(HEAD, made), nodes.paragraph("", told)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("scaling", Scaling)
    return {"parallel_read_safe": True}
