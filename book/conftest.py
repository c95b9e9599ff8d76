"""pytest --nbval on these notebooks: run them as their author did, and leave stderr out.

A warning of another library's version is not part of what a chapter says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from notebooks import ENVIRONMENT

os.environ.update(ENVIRONMENT)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """nbval compares every key that is not in this tuple."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
