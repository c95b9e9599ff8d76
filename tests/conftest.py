"""What all tests share: where things are, GPU tests, the real clips, a table of times."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "book")]
os.environ["PYTHONPATH"] = str(ROOT / "book")  # for chapters that tests run elsewhere
POLICY = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else 0
REAL_VIDEOS = Path(os.environ.get("VIDLEARN_VIDEOS", ROOT.parent / "shared/videos/singles"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """GPU tests skip without a GPU, unless VIDLEARN_REQUIRE_CUDA=1 says that they must not."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        text = "no CUDA device"
        (pytest.fail if os.environ.get("VIDLEARN_REQUIRE_CUDA") == "1" else pytest.skip)(text)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """No test leaves its process at a priority at which all others wait for ever."""
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != POLICY:
        os.sched_setscheduler(0, POLICY, os.sched_param(0))
        pytest.fail(f"{item.nodeid} left its process at real-time priority")


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """A folder of real clips, which are not part of the repository."""
    if not REAL_VIDEOS.is_dir():
        pytest.skip(f"no real clips at {REAL_VIDEOS}; set VIDLEARN_VIDEOS to a folder of videos")
    return REAL_VIDEOS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds a file, slowest first, so that the slow part of `make test` has a name."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.split("::")[0]] += report.duration
    if len(seconds) > 1:
        terminalreporter.section("seconds a file (two run at a time)")
        for name, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
            terminalreporter.line(f"{spent:7.1f}  {name}")
