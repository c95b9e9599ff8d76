"""Which videos cannot be read, and why?

Input: their paths. Output: (path, cause) of each bad one. Traded: one frame stands for all.
Threads share the work: PyAV lets others run while it reads and decodes. Chapter 5.
"""

import os
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

from vidlearn.datasets.sequences import frame_table, frames_at
from vidlearn.errors import VideoError


def unreadable(paths: list[str]) -> Iterator[tuple[str, str]]:
    """(path, cause) of the videos that do not give their middle frame, in the order given."""
    with ThreadPool(os.cpu_count()) as pool:
        found = zip(paths, pool.imap(_cause, paths))
        yield from ((path, cause) for path, cause in found if cause)


def _cause(path: str) -> str:
    """Why a video cannot be read, or "". In the middle, so that seeking is tried, too."""
    try:
        table = frame_table(path)
        frames_at(path, [(table.n_frames - 1) // 2], backend="pyav", table=table)
    except VideoError as error:
        return error.cause
    return ""
