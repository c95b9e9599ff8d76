"""The worker processes of a loader: how they start, how one that dies is replaced, how they end.

Input: a dataset and the keys of its batches. Output: the batches in order, whatever befalls a
worker. A worker writes down the video that it decodes, in memory that it shares with the loader,
and has the kernel end it when the video takes too long. Batches lie in memory that is used again,
for fresh pages cost more than what is written on them. The video of a dead worker cannot be read
from then on, and new workers begin at the first batch that was not delivered. Traded: what was
read ahead is read again; without workers nothing is guarded. Chapter 2.
"""

from __future__ import annotations

import atexit
import gc
import math
import mmap
import os
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from vidlearn.datasets.quarantine import DEADLY
from vidlearn.errors import VideoError, VidlearnError

LIMIT_S = 300.0  # for a sample; the other ranks wait so long, and NCCL gives up after 600
IN_A_ROW = 8  # dead workers without a batch between; one batch may hold several bad videos
PATH_BYTES = 8192
# A fork starts at once, but outside Linux system libraries do not survive one.
METHOD = "fork" if sys.platform == "linux" else "spawn"
REMEDY = "Give it more (shared) memory (df -h /dev/shm, free -g), or use fewer --workers"

_room: memoryview | None = None  # in a worker: where the batch in hand shall lie, and its address
_address: tuple[int, int] = (0, 0)
_rooms: dict[int, Rooms] = {}  # in the process of the loader: its memory, by number
_slot: Any = None  # in a worker: where it writes the path that it has in hand
_poison: dict[str, str] = {}  # in a worker: path -> cause of what ended another one
_numbers = count()  # of loaders
_waiting = False  # in the loader: is it in want of a batch?


class Rooms:
    """Memory for so many batches, shared with workers; a room is free when its tensor is gone."""

    def __init__(self, count: int, room_bytes: int) -> None:
        self.memory = [mmap.mmap(-1, room_bytes) for _ in range(count)]
        self.lent: set[int] = set()
        self.reclaim()

    def reclaim(self) -> None:
        """All that no tensor lies in: those that did the work are gone."""
        self.free = deque(i for i in range(len(self.memory)) if i not in self.lent)

    def give_back(self, room: int) -> None:
        """Its tensor is gone, and all that saw a part of it."""
        self.lent.discard(room)
        self.free.append(room)

    def lend(self, room: int, shape: tuple[int, ...], axes: tuple[int, ...]) -> torch.Tensor:
        """The tensor that a worker has written there."""
        pixels = np.frombuffer(self.memory[room], np.uint8, math.prod(shape))
        self.lent.add(room)
        weakref.finalize(pixels, self.give_back, room).atexit = False
        return torch.from_numpy(pixels).view(shape).permute(axes)


class _Lent(NamedTuple):
    """What travels in place of a tensor that lies in a room."""

    loader: int
    room: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def __reduce__(self) -> Any:
        return _claim, tuple(self)


def _claim(loader: int, room: int, shape: tuple[int, ...], axes: tuple[int, ...]) -> torch.Tensor:
    return _rooms[loader].lend(room, shape, axes)


class _Keys(list):
    """The keys of a batch, and the number of the loader and of the room that it shall lie in."""

    address: tuple[int, int] | None = None


class _Placed(Dataset):
    """A dataset whose batches lie where their keys say."""

    def __init__(self, dataset: Any, memory: list[Any]) -> None:
        self.dataset, self.memory = dataset, memory

    def __getitems__(self, keys: _Keys) -> list[Any]:
        global _room, _address
        _room = None
        if keys.address is not None:
            _address, _room = keys.address, memoryview(self.memory[keys.address[1]])
        every = getattr(self.dataset, "__getitems__", None)  # as torch asks
        return every(keys) if every else [self.dataset[key] for key in keys]


def together(parts: list[torch.Tensor], axes: tuple[int, ...]) -> Any:
    """Stack uint8 tensors and permute: [B, ...]; in a worker, in the room for the batch in hand."""
    shape = (len(parts), *parts[0].shape)
    if _room is None or math.prod(shape) > len(_room):
        return torch.stack(parts).permute(axes)
    target = torch.frombuffer(_room, dtype=torch.uint8, count=math.prod(shape)).view(shape)
    torch.stack(parts, out=target)
    return _Lent(*_address, shape, axes)


class _Values(list):
    """What travels in place of a small tensor, which would take a file and a connection."""

    def __reduce__(self) -> Any:
        return torch.tensor, ([*self],)


def small(values: list[Any]) -> Any:
    """A tensor of a few numbers; in a worker, what becomes one where it arrives."""
    return torch.tensor(values) if _slot is None else _Values(values)


def hold(path: str = "") -> None:
    """In a worker: this video is begun, or ("") none is in hand. Elsewhere it does nothing.

    VideoError: the video has ended a worker before.
    """
    if _slot is None:
        return
    begun = "" if path in _poison else path
    _slot.value = os.fsencode(begun)[: PATH_BYTES - 1]
    alarm(LIMIT_S if begun else 0)
    if path in _poison:
        raise VideoError(path, _poison[path], "Leave it out.")


def alarm(limit_s: float) -> None:
    """The kernel ends this process after so long, also inside a decoder; 0 calls it off."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)


def quiet_start() -> None:
    """The first thing in a forked process that decodes; `begin` starts it."""
    gc.freeze()  # see `begin`: what was inherited is not this process's to collect
    gc.enable()
    torch.set_num_threads(1)  # a fork leaves OpenMP's behind, and would wait for them
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # A stop is the parent's business; some clusters signal every process of a job.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def begin(start: Callable[[], Any]) -> Any:
    """Call what forks, with no garbage that the new process would collect."""
    # PyAV frames that wait for the collector have threads, which a fork leaves behind: a process
    # that collects one waits for them for ever.
    gc.disable()
    try:
        return start()
    finally:
        gc.enable()


def cause_of(process: BaseProcess, limit_s: float) -> str:
    """Why a process that had a video in hand is dead, in words."""
    process.join()
    code = process.exitcode or 0
    if code == -signal.SIGALRM:
        return f"{DEADLY[0]} in {limit_s:g} s"
    return f"{DEADLY[1]} ({'signal' if code < 0 else 'exit code'} {abs(code)})"


@dataclass(eq=False)
class Loader:
    """Batches of a dataset by keys; `workers` processes read two batches each ahead.

    Each worker that dies or hangs costs the video that it had in hand, and nothing else: the
    dataset calls `hold` before it reads a video, and `collate` when a batch is complete. It may
    put `room_bytes` with `together`, where memory is used again that no tensor of a batch holds.
    VidlearnError: a worker died without a video, or too many died in a row.
    """

    dataset: Dataset
    batch_sampler: Iterable[Any]
    collate: Callable[[list[Any]], Any]
    workers: int = 0
    seed: int = 0
    pin_memory: bool = False
    room_bytes: int = 0
    poison: dict[str, str] = field(default_factory=dict)  # path -> cause: not to be tried again
    multiprocessing_context: str = METHOD

    def __len__(self) -> int:
        return len(cast(Sized, self.batch_sampler))

    def __iter__(self) -> Iterator[Any]:
        if not self.workers:
            yield from self._loader(self.batch_sampler)
            return
        keys, pending, poison = iter(self.batch_sampler), deque[Any](), dict(self.poison)
        forks, number = self.multiprocessing_context == "fork", next(_numbers)
        rooms = Rooms((2 * self.workers + 2) * (forks and self.room_bytes > 0), self.room_bytes)
        _rooms[number] = rooms

        def placed(key: Any) -> _Keys:
            keys = _Keys(key)
            keys.address = (number, rooms.free.popleft()) if rooms.free else None
            return keys

        def undelivered() -> Iterator[Any]:
            yield from map(placed, tuple(pending))
            for key in keys:
                pending.append(key)
                yield placed(key)

        batches, slots, deaths = *self._begin(undelivered(), poison, rooms), 0
        try:
            while True:
                try:
                    batch = _wait_for(batches)
                except (RuntimeError, OSError, EOFError) as error:
                    if not (dead := _dead(batches)):
                        raise  # a bug, not a dead worker
                    found = {os.fsdecode(slots[i].value): why for i, why in dead.items()}
                    deaths += 1
                    _check(found, deaths, error)
                    poison |= found
                    _end(batches)
                    rooms.reclaim()
                    batches, slots = self._begin(undelivered(), poison, rooms)
                    continue
                if batch is None:
                    return
                pending.popleft()
                deaths = 0
                yield batch
        finally:
            _end(batches)
            del _rooms[number]

    def _loader(
        self, keys: Iterable[Any], rooms: Rooms | None = None, **options: Any
    ) -> DataLoader:
        dataset = _Placed(self.dataset, rooms.memory) if rooms else self.dataset
        own = torch.Generator().manual_seed(self.seed)  # leaves torch's as it is
        options |= {"collate_fn": self.collate, "pin_memory": self.pin_memory, "generator": own}
        return DataLoader(dataset, batch_sampler=cast(Any, keys), **options)

    def _begin(
        self, keys: Iterable[Any], poison: dict[str, str], rooms: Rooms
    ) -> tuple[Any, list[Any]]:
        """torch's iterator with its workers, and where each writes what it has in hand."""
        context = get_context(self.multiprocessing_context)
        slots = [context.RawArray("c", PATH_BYTES) for _ in range(self.workers)]
        options = {"num_workers": self.workers, "multiprocessing_context": context}
        init = partial(_start_worker, slots, dict(poison))
        loader = self._loader(keys, rooms, **options, worker_init_fn=init)
        _raise_only_while_waiting()
        batches = begin(partial(iter, loader))
        atexit.register(_end_at_exit, weakref.ref(batches))
        return batches, slots


def _start_worker(slots: list[Any], poison: dict[str, str], worker: int) -> None:
    global _slot
    quiet_start()
    _slot = slots[worker]
    _poison.update(poison)


def _raise_only_while_waiting() -> None:
    """When a worker dies, torch raises wherever the program is, such as in a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        return  # torch sets no handler then, and looks every five seconds
    signal_handling._set_SIGCHLD_handler()
    theirs: Any = signal.getsignal(signal.SIGCHLD)
    if getattr(theirs, "func", None) is not _child_ended:
        signal.signal(signal.SIGCHLD, partial(_child_ended, theirs))


def _child_ended(theirs: Any, number: int, frame: Any) -> None:
    global _waiting
    if _waiting:
        _waiting = False
        theirs(number, frame)


def _wait_for(batches: Any) -> Any:
    """The next batch, or None after the last; RuntimeError, most often: a worker is dead."""
    global _waiting
    try:
        _waiting = True
        if any(worker.exitcode is not None for worker in batches._workers):
            raise RuntimeError("a worker died while nobody waited for it")
        return next(batches, None)
    finally:
        _waiting = False


def _dead(batches: Any) -> dict[int, str]:
    """Number -> cause of each worker that has died; one that is dying gets a second for it."""
    connection.wait([worker.sentinel for worker in batches._workers], timeout=1)
    found = enumerate(batches._workers)
    return {i: cause_of(w, LIMIT_S) for i, w in found if w.exitcode is not None}


def _check(found: dict[str, str], deaths: int, error: BaseException) -> None:
    """VidlearnError: videos do not explain these deaths (path or "" -> cause)."""
    if "" in found:
        how = found[""].removeprefix(f"{DEADLY[1]} ")
        text = f"a loader worker died {how} with no video in hand"
        raise VidlearnError(f"{text}. {REMEDY}") from error
    if deaths > IN_A_ROW:
        path, why = next(iter(found.items()))
        text = f"{deaths} loader workers died in a row, the last at {path}: {why}"
        raise VidlearnError(f"{text}. Try the videos with vidlearn data check. {REMEDY}") from error


def _end(batches: Any) -> None:
    """Workers finish the batch in hand, or are ended after five seconds."""
    workers = batches._workers
    batches._shutdown_workers()
    for worker in workers:
        worker.kill()  # it ignores the SIGTERM of torch and Python, which would wait for ever
        worker.join()


def _end_at_exit(batches: weakref.ref[Any]) -> None:
    if (found := batches()) is not None:
        _end(found)
