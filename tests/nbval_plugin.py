"""pytest -p tests.nbval_plugin --nbval: run notebooks as their author did, and leave stderr out.

A warning of another library's version is not part of what a chapter says. This is a plugin and no
conftest.py, because pytest would give a second one beside the notebooks the same module name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from notebooks import ENVIRONMENT


def pytest_configure() -> None:
    """The kernels inherit what was set when the stored outputs were made."""
    os.environ.update(ENVIRONMENT)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """nbval compares every key that is not in this tuple."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
