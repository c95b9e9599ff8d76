"""How many processes may make, write, check or load videos at once: one for each core of ours.

Input: the machine. Output: a number. Traded: an older kind of quota (cgroup v1) is not read. A job
on a shared node has fewer cores than the node. Chapters 2 and 5.
"""

import os
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may use: its affinity, and its container's quota."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, period = quota.read_text().split() if quota.exists() else ("max", "1")
    return n if limit == "max" else max(1, min(n, round(int(limit) / int(period))))
