"""What a run says while it trains: a progress bar, a log file, metrics as JSON lines.

Input: numbers of a step. Output: `train.log`, `metrics.jsonl` (one object a line), and
a live bar on a terminal. Only rank 0 writes. Taught in chapter 11.
"""

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from vidlearn.recipes import Config


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, oldest first."""
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


class RunLog:
    """The log of one run from `step` on; metrics beyond it, of a run that died, are dropped."""

    def __init__(self, out: Path, step: int, config: Config, *, active: bool) -> None:
        self.active, self.out, self.file = active, out, out / "metrics.jsonl"
        live = active and sys.stderr.isatty()
        self.bar = Progress(console=Console(stderr=True), disable=not live)
        self.task = self.bar.add_task(f"step {step}", total=config.steps, completed=step)
        if not active:
            return
        if self.file.exists():
            kept = [m for m in read_metrics(self.file) if m["step"] <= step]
            self.file.write_text("".join(json.dumps(m) + "\n" for m in kept))
        (out / "config.json").write_text(config.to_json() + "\n")

    def say(self, text: str) -> None:
        """One line for people, to `train.log` and the terminal."""
        if self.active:
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"
            with open(self.out / "train.log", "a") as f:
                f.write(line + "\n")
            print(line, file=sys.stderr, flush=True)  # a live bar lets it pass above itself

    def write(self, metrics: dict[str, float], *, bad: int) -> None:
        """The numbers of a step; `bad` is how many videos could not be read so far."""
        if not self.active:
            return
        with open(self.file, "a") as f:
            f.write(json.dumps({**metrics, "bad_videos": bad}) + "\n")
        text = f"step {metrics['step']:6d}  loss {metrics['loss']:.4f}"
        self.bar.update(self.task, completed=metrics["step"], description=text)
        text += f"  spread {metrics['spread']:.3f}  rank {metrics['effective_rank']:.1f}"
        text += f"  {metrics['clips_per_s']:.1f} clips/s  waiting {metrics['wait_share']:.0%}"
        self.say(text + f"  unreadable videos {bad} (quarantine.jsonl)" * bool(bad))
