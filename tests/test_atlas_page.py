"""The atlas says what the specs and the record say, and every name leads to a card."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import atlas  # noqa: E402

from vidlearn.datasets import SPECS  # noqa: E402

RECORD = json.loads((ROOT / "book" / atlas.RECORD).read_text("utf-8"))


def of(kind: str) -> dict[str, list[str]]:
    """Name of a dataset -> the other cells of its row."""
    return {name.astext(): cells for name, *cells in atlas.rows(kind, RECORD)}


@pytest.mark.parametrize("kind", atlas.HEADS)
def test_rows_fit_their_heads(kind: str) -> None:
    assert {len(cells) + 1 for cells in of(kind).values()} == {len(atlas.HEADS[kind])}
    assert all(cell for cells in of(kind).values() for cell in cells)


def test_costs_are_hours_times_what_was_measured() -> None:
    way = RECORD["ways"]["layered"]
    hours, _, _, keep, clips, decode = of("costs")["Ego4D"]
    kept_gb = 3670 * 3600 * way["bytes_per_s"] / 1e9
    assert hours == "3,670 h" and keep == f"{kept_gb:,.0f}\u00a0GB" and clips == "1,320,000"
    assert decode == f"{1_321_200 * way['cpu_ms'] / 3.6e6:.2g}\u00a0h"
    assert of("costs")["R2V2"][-3:] == ["-", "-", "-"]
    assert of("costs")["MECCANO"][-1] == f"{6.93 * 360 * way['cpu_ms'] / 6e4:.2g}\u00a0min"
    assert not any("e+" in cell for cells in of("costs").values() for cell in cells)


def test_every_set_has_licence_way_and_source() -> None:
    assert [*of("access")] == [spec.name for spec in SPECS]
    assert of("access")["WebVid-2M"][1] == "no longer"
    assert "arXiv 1906.03327*" in of("access")["HowTo100M"][2]


def test_the_errors_are_those_of_the_lecture() -> None:
    found = of("errors")
    assert len(found) == 10 and "400 is the number of classes" in found["Kinetics-400"][1]


def test_every_name_leads_to_a_card() -> None:
    text = (ROOT / "book" / "reference" / "datasets.md").read_text("utf-8")
    for name, *_ in atlas.rows("costs", RECORD):
        assert f"({name['refuri'][1:]})=\n" in text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(2.1e9, "2.1 GB"), (92.4e9, "92 GB"), (132e9, "132 GB"), (1.43e12, "1.4 TB"), (7e8, "0.7 GB")],
)
def test_sizes_in_words(n_bytes: float, text: str) -> None:
    assert atlas.size(n_bytes) == text.replace(" ", "\u00a0")
