"""What `make book` does: make videos, train on them, probe, build the pages.

    data    data/synth            3,440 small videos of twelve motions
    train   runs/book             the recipe `laptop`; two processes would take longer
    probe   runs/book/probe.json  what the frozen encoder knows, beside a random one and pixels
    pages   _build/html           the book, which shows the result of this run

Every part picks up where it was stopped, and does nothing when its result is there. The summary
that the pages show ({this-run}) is runs/book/result.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from vidlearn.errors import ConfigError
from vidlearn.recipes import RECIPES, Config
from vidlearn.runlog import read_metrics

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data" / "synth"
RUN = ROOT / "runs" / "book"
ENCODER = RUN / "encoder.safetensors"
PROBE = RUN / "probe.json"
RESULT = RUN / "result.json"
SECONDS = RUN / "seconds.json"
RECIPE = "laptop"


def call(*command: str | Path) -> None:
    """One command from the repository's root; a failure ends the program with its status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, check=False)
    if done.returncode:
        words = " ".join(map(str, command))
        sys.exit(f"make book: {words} ended with status {done.returncode}; see above")


def vidlearn(*words: str | Path) -> None:
    """The package's own command, in this Python."""
    call(sys.executable, "-m", "vidlearn", *words)


def make_data() -> None:
    """The built-in videos."""
    vidlearn("data", "synth", DATA)


def probe() -> None:
    """The table that says what was learned."""
    vidlearn("probe", ENCODER, DATA, "--json", PROBE)


def same_recipe() -> bool:
    """Whether runs/book was started with the recipe as it is now."""
    try:
        saved = Config.from_json((RUN / "config.json").read_text())
    except ConfigError:  # fields of another version
        return False
    return not RECIPES[RECIPE].differences(saved)


def trained() -> bool:
    """Whether the run in runs/book reached its last step."""
    log = RUN / "metrics.jsonl"
    return ENCODER.exists() and read_metrics(log)[-1]["step"] == RECIPES[RECIPE].steps


def train() -> None:
    """Start or go on with the run."""
    vidlearn("train", RECIPE, "--data", DATA, "--out", RUN)
    if not trained():  # a stop that was asked for ends a run well, but early
        sys.exit("make book: the training was stopped and saved; make book goes on from there")


def pages_command(out: Path) -> list[str | Path]:
    """The command that builds OUT/_build/html; a warning is a failure."""
    program = Path(sys.executable).with_name("jupyter-book")
    where = ["--config", "_config.yml", "--path-output", out]
    return [program, "build", "book", *where, "-W", "--keep-going"]


def build() -> None:
    """The book's pages."""
    call(*pages_command(ROOT))


def curve_table() -> dict[str, Any]:
    """First, middle and last line of the log, as words."""
    log = read_metrics(RUN / "metrics.jsonl")
    rows = [
        [f"{m['step']:.0f}", f"{m['loss']:.4f}", f"{m['spread']:.3f}", f"{m['effective_rank']:.1f}"]
        for m in (log[0], log[len(log) // 2], log[-1])
    ]
    return {"head": ["step", "loss", "spread of features", "effective rank"], "rows": rows}


def probe_tables() -> list[dict[str, Any]]:
    """For each split, what each source of features lets a probe get right."""
    found = json.loads(PROBE.read_text())
    made = []
    for split, chance in found["chance"].items():
        head = [f"{split}: per cent right", *found["rows"]["random encoder"]]
        rows = []
        for source, row in found["rows"].items():
            told = {name: f"{scores[split]['percent']:.0f}" for name, scores in row.items()}
            rows.append([source, *(told.get(name, "-") for name in head[1:])])  # no such probe
        rows.append(["always the commonest class", *[f"{chance:.0f}"] * (len(head) - 1)])
        made.append({"head": head, "rows": rows})
    return made


def learned() -> str:
    """One sentence: the linear probe with time kept on every split, trained and random encoder."""
    found = json.loads(PROBE.read_text())
    rows = [found["rows"][f"{name} encoder"] for name in ("trained", "random")]
    ours, fresh = (row["linear, time kept"] for row in rows)
    pairs = "; ".join(
        f"{split} {ours[split]['percent']:.0f} against {fresh[split]['percent']:.0f}"
        for split in found["chance"]
    )
    return f"Per cent right (linear, time kept), trained against random encoder: {pairs}."


def summary(seconds: dict[str, float]) -> dict[str, Any]:
    """What the pages and the terminal say of the run; the same for the same run."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    when = datetime.fromtimestamp(PROBE.stat().st_mtime)
    text = (
        f"Recipe {RECIPE}, {RECIPES[RECIPE].steps} steps on {machine}, "
        f"{when:%Y-%m-%d}: {seconds['train']:.0f} s of training, {seconds['probe']:.0f} s of "
        f"probing. {learned()}"
    )
    return {"summary": text, "tables": [curve_table(), *probe_tables()]}


def timed(name: str, work: Callable[[], None], *, done: bool = False) -> None:
    """Run a part unless it was done here before, and keep its seconds with the run."""
    if done and name in seconds():
        print(f"make book: {name}: done before", flush=True)
        return
    print(f"make book: {name} ...", flush=True)
    start = time.perf_counter()
    try:
        work()
    finally:
        spent = time.perf_counter() - start
        kept = seconds()
        # A training that was stopped goes on, so its times add up; the others begin again.
        kept[name] = spent + (kept.get(name, 0.0) if name == "train" else 0.0)
        RUN.mkdir(parents=True, exist_ok=True)
        SECONDS.write_text(json.dumps(kept) + "\n")
    print(f"make book: {name} took {spent:.0f} s", flush=True)


def seconds() -> dict[str, float]:
    """Part -> seconds, of this run."""
    return json.loads(SECONDS.read_text()) if SECONDS.exists() else {}


def main() -> None:
    """All parts in order."""
    start = time.perf_counter()
    if (RUN / "config.json").exists() and not same_recipe():
        aside = RUN.with_name(f"book-{int(RUN.stat().st_mtime)}")
        RUN.rename(aside)
        print(f"make book: the recipe has changed; the earlier run is now in {aside}")
    timed("data", make_data)  # keeps its own stamp, so it may always be asked
    timed("train", train, done=trained())
    timed("probe", probe, done=PROBE.exists() and PROBE.stat().st_mtime > ENCODER.stat().st_mtime)
    result = summary(seconds())
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    timed("pages", build)
    for table in result["tables"]:
        print()
        for row in [table["head"], *table["rows"]]:
            print(f"  {row[0]:26}" + "".join(f"{cell:>20}" for cell in row[1:]))
    print(f"\n{result['summary']}\n")
    parts = ", ".join(f"{name} {spent:.0f} s" for name, spent in seconds().items())
    print(f"{parts}; this time, all together, {time.perf_counter() - start:.0f} s")
    print(f"The book: {(ROOT / '_build/html/index.html').as_uri()}  (or: make serve)")


if __name__ == "__main__":
    main()
