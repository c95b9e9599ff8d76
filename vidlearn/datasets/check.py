"""Which videos of a data set can be read? What `vidlearn data check` does.

Input: a data set. Output: the unreadable ones, told and listed as JSON lines. Traded: one frame
stands for all. Threads share the work: PyAV lets others run while it reads and decodes.
Chapter 5.
"""

from __future__ import annotations

import os
from multiprocessing.pool import ThreadPool
from pathlib import Path

from vidlearn.datasets.folder import open_data
from vidlearn.datasets.quarantine import Quarantine
from vidlearn.decode import frames_at
from vidlearn.errors import VideoError
from vidlearn.storage import frame_table


def check(data: str | Path, out: Path) -> tuple[int, int]:
    """Decode the middle frame of every video; how many there are, and are bad.

    Prints each bad one with its cause, and writes them into `out`, which is made anew.
    VidlearnError: no such data, or a manifest that cannot be read.
    """
    paths = list(dict.fromkeys(row.path for row in open_data(data).rows))
    out.unlink(missing_ok=True)
    quarantine, bad = Quarantine(out, len(paths), max_share=1.0), 0
    with ThreadPool(os.cpu_count()) as pool:
        for path, cause in zip(paths, pool.imap(_cause, paths)):
            if cause:
                bad = quarantine.add([(path, cause)])
                print(f"{path}: {cause}")
    return len(paths), bad


def _cause(path: str) -> str:
    """Why a video cannot be read, or "". Its middle frame, so that seeking is tried, too."""
    try:
        table = frame_table(path)
        frames_at(path, [(table.n_frames - 1) // 2], backend="pyav", table=table)
    except VideoError as error:
        return error.cause
    return ""
