"""Remember what was computed last, up to so many bytes in all; the least used goes first.

Input: a function, and how large what it gives is. Output: the same function. Traded: as
`functools.lru_cache`, which counts values and not bytes: a table of an hour of video takes as much
as those of a thousand clips, and each worker has its own. Chapter 2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

from vidlearn.storage import FrameTable

TABLES_BYTES = 2**24  # of tables of videos, some 800 of ten seconds


class Kept:
    """A function that remembers; what is larger than all that may be kept is kept alone."""

    def __init__(
        self, function: Callable[..., Any], size_bytes: Callable[[Any], int], most_bytes: int
    ) -> None:
        self.function, self.size_bytes, self.most_bytes = function, size_bytes, most_bytes
        self.values, self.bytes, self.lock = OrderedDict[Hashable, Any](), 0, Lock()

    def __call__(self, *key: Hashable) -> Any:
        """What the function gives for these, now or before."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = self.function(*key)  # what it raises is not kept
        with self.lock:
            if key not in self.values:
                self.bytes += self.size_bytes(value)
                self.values[key] = value
            while self.bytes > self.most_bytes and len(self.values) > 1:
                self.bytes -= self.size_bytes(self.values.popitem(last=False)[1])
        return value

    def cache_clear(self) -> None:
        """Forget all."""
        with self.lock:
            self.values.clear()
            self.bytes = 0


def kept(size_bytes: Callable[[Any], int], most_bytes: int) -> Callable[[Callable[..., Any]], Kept]:
    """A decorator that makes a function remember."""
    return lambda function: Kept(function, size_bytes, most_bytes)


def table_bytes(table: FrameTable) -> int:
    """What a table takes, about: its columns, and of pictures their names."""
    return 2048 + table.n_frames * (160 if table.codec == "pictures" else 64)
