"""The videos of a data set that cannot be read: which, and why.

Input: (path, cause) pairs from all ranks. Output: one file of JSON lines, and an error when they
are too many. Traded: ranks share the file without a lock; each line is one write. Chapter 2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from vidlearn.errors import VidlearnError

# So begin the causes of videos that end a process.
DEADLY = SILENT, DIED = "no answer", "its decoder died"
KILLED = f"{DIED} (signal 9)"  # so does the system where memory is short


@dataclass
class Quarantine:
    """Names each unreadable video once, as JSON lines {"path", "cause"}; all ranks share them."""

    path: str | Path
    n_videos: int
    max_share: float = 0.05
    names: set[str] = field(default_factory=set)
    read_bytes: int = 0

    def add(self, bad: list[tuple[str, str]]) -> int:
        """Name these (path, cause) pairs; returns how many videos are bad, for all ranks.

        VidlearnError: more than the share `max_share` of the data set's videos are bad.
        """
        path = Path(self.path)
        size = path.stat().st_size if path.exists() else 0
        if size < self.read_bytes:
            self.read_bytes = 0  # it is another file
        if size > self.read_bytes:
            with open(path, "rb") as f:
                f.seek(self.read_bytes)  # what came since
                for line in f:
                    if line.endswith(b"\n"):  # else another rank is at it
                        self.names.add(json.loads(line)["path"])
                        self.read_bytes += len(line)
        new = {name: cause for name, cause in bad if name not in self.names}
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as f:  # one write: lines of several ranks do not mix
                f.write("".join(json.dumps({"path": n, "cause": c}) + "\n" for n, c in new.items()))
            self.names |= set(new)
            if len(self.names) > self.max_share * self.n_videos:
                text = f"{len(self.names)} of {self.n_videos} videos cannot be read; the quarantine"
                remedy = "Mend them, or raise --max-bad-share"
                raise VidlearnError(f"{text} {path} names them. {remedy}")
        return len(self.names)


def is_quarantine(path: Path) -> bool:
    """Whether a file is such a list, maybe an empty one."""
    with open(path, "rb") as f:
        first = f.readline(1 << 20)
    try:
        return not first or {"path", "cause"} <= json.loads(first).keys()
    except (ValueError, AttributeError):
        return False


def deadly(path: str | Path) -> dict[str, str]:
    """Path -> cause of the videos in a quarantine, if there is one, that have ended a process."""
    lines = Path(path).read_bytes().splitlines(keepends=True) if Path(path).exists() else []
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {row["path"]: row["cause"] for row in rows if row["cause"].startswith(DEADLY)}
