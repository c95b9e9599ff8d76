"""What `make gpu` does: the GPU tests, then the benchmarks, and a record of both.

The record is book/_static/records/gpu.json: machine, date and commit, the outcome of each test, and
for each benchmark what every repeat measured, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "book" / "_static" / "records" / "gpu.json"
# The first is the published step of one GPU: 24 clips of 16 x 224 x 224, of which mfu tells.
BENCHMARKS = ("step vitl16 --batch 24", "step gpu", "step laptop", "load gpu")


def run_tests(words: Sequence[str], folder: Path) -> dict[str, str]:
    """Test -> passed, failure, error or skipped; none may skip because there is no GPU."""
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", *words, f"--junit-xml={report}"]
    environment = {**os.environ, "VIDLEARN_REQUIRE_CUDA": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=False)
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        tags = [part.tag for part in case if part.tag in ("failure", "error", "skipped")]
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = (tags or ["passed"])[0]
    return outcomes


def benchmark(words: str, folder: Path) -> dict[str, Any]:
    """The numbers of `vidlearn bench WORDS`; a failure ends the program."""
    numbers = folder / "numbers.json"
    command = [sys.executable, "-m", "vidlearn", "bench", *words.split(), "--out", str(numbers)]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(f"make gpu: vidlearn bench {words} failed; see above")
    return json.loads(numbers.read_text())


def record(tests: Sequence[str], benchmarks: Sequence[str], repeats: int, out: Path) -> bool:
    """Run all, write OUT, and say whether every test passed."""
    from vidlearn.measure import machine_card

    ask = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    found: dict[str, Any] = {"machine": machine_card(), "commit": commit.strip()}
    found["date"] = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    with tempfile.TemporaryDirectory() as name:
        found["tests"] = run_tests(tests, Path(name))
        runs = {
            words: [benchmark(words, Path(name)) for _ in range(repeats)] for words in benchmarks
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**found, "benchmarks": runs}, indent=1) + "\n")
    return set(found["tests"].values()) == {"passed"}


if __name__ == "__main__":
    import torch

    if not torch.cuda.is_available():
        sys.exit("make gpu: no CUDA device here; vidlearn doctor says what was found")
    passed = record(["-m", "gpu", "tests"], BENCHMARKS, repeats=3, out=RECORD)
    print(f"{RECORD}: written;", "all tests passed" if passed else "it names the tests that failed")
    sys.exit(not passed)
