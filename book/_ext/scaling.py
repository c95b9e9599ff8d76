"""Tables and the figure of the page "Scaling", made from records when the book is built.

    ```{scaling}```            predicted and measured here, of _static/records/scaling.json
    ```{scaling} loaded```     the cases with a loader
    ```{scaling} published```  what others measured, of _static/records/scaling_published.json
    ```{scaling} curve```      vitl16 on 1 to 1,024 GPUs: efficiency in three networks, and parts

The model of `vidlearn.dist.scaling` is run anew for the last two, and `budget.plan` for the last.
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
from vidlearn import budget, recipes
from vidlearn.dist import scaling

RECORDS = Path("_static/records")
HEAD = ("case", "predicted, clips/s", "measured, clips/s", "predicted / measured", "rounds")
PUBLISHED = ("run", "GPUs", "passes", "measured", "predicted", "efficiency: measured", "predicted",
             "off, points")  # fmt: skip
PARTS = ("compute", "update", "network", "stragglers")
CURVE = ("GPUs", "clips each", "clips/s", "efficiency", *(f"{part}, ms" for part in PARTS), "binds",
         "next")  # fmt: skip
SEEN = 3072
OURS = {  # a network, GB/s a node, and clips a step
    "400 GB/s a node": (400, SEEN),
    "12.5 GB/s a node": (12.5, SEEN),
    "12.5 GB/s, four times the batch": (12.5, 4 * SEEN),
    "1.25 GB/s a node": (1.25, SEEN),
}


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


def curve(net_gb_s: float, batch: int) -> list[dict[str, Any]]:
    """vitl16 on H100s, eight a node: what the model says of 1 to 1,024."""
    config = replace(recipes.recipe("vitl16"), batch=batch)
    cluster = scaling.Cluster(net_gb_s=scaling.REACHED * net_gb_s, curve=True)
    return scaling.scale(config, budget.plan(config, 8), cluster, 8, measured=False)["curve"]


def curve_rows(found: list[dict[str, Any]], batch: int) -> list[list[str]]:
    """A row a number of GPUs."""
    made = []
    for row in found:
        numbers = [f"{row['gpus']:,}", f"{batch // row['gpus']:,}", f"{row['clips_per_s']:,.0f}"]
        cells = [f"{row[f'{part}_ms']:,.1f}" for part in PARTS]
        made.append([*numbers, f"{row['efficiency']:.0%}", *cells, row["binds"], row["next"]])
    return made


def figure() -> show.Picture:
    """Efficiency against GPUs, a line a network."""
    drawn, axis = show.axes(height_in=3.4)
    told = []
    for (name, what), marker in zip(OURS.items(), "osD^"):
        points = [(row["gpus"], 100 * row["efficiency"]) for row in curve(*what)]
        axis.plot(*zip(*points), marker=marker, markersize=4, label=name)
        told.append(f"{name} " + ", ".join(f"{y:.0f} % on {n}" for n, y in points if n in (8, 128, 1024)))
    axis.set_xscale("log", base=2)
    axis.set(xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 103))
    axis.set_xticks([1, 8, 64, 256, 1024], ["1", "8", "64", "256", "1,024"])
    drawn.legend(frameon=False, fontsize=7, loc="outside lower center", ncols=2)
    return show.picture(drawn, f"Efficiency of vitl16 on H100s. {'; '.join(told)}.")


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
        if what == "curve":
            made = curve_rows(curve(*OURS["400 GB/s a node"]), SEEN)
            return [nodes.raw("", figure().html(), format="html"), table(CURVE, made)]
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
