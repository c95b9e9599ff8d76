"""Where each rank stands, what its time goes to, and an end for all when one is dead or hung.

Input: marks that the training sets as it goes. Output: shares of time; and when a rank gives no
sign or does not get on, one line with its number, host and place, stacks, and the end of every
process. Traded: a thread looks every two seconds, through rank 0, which alone hears all; nobody
waits for the GPU. A rank that waits for videos is let be for minutes, as the loader is. Chapter 3.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
from torch.distributed.distributed_c10d import _get_default_store

from vidlearn.datasets import guard
from vidlearn.dist.group import Dist

BEAT_S = 2.0  # between two signs of life
DEAD_S = 20.0  # without a sign: killed, stopped, or its machine is gone
STUCK_S = 30.0  # in one place, or ten times what it took of late, if that is longer
FIRST_S = 600.0  # in a place that is new: kernels are compiled, files are cold


def clock(device: torch.device) -> Callable[[], Any]:
    """What tells the time for laps: seconds, or moments of the GPU, which is not waited for."""

    def event() -> torch.cuda.Event:
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        return now

    return event if device.type == "cuda" else time.perf_counter


def shares(dist: Dist, totals_ms: dict[str, float]) -> str:
    """What the time of these laps went to: on the slowest rank, which waits least, and on average.

    Every rank must call this.
    """
    data, others = totals_ms.get("data", 0.0), totals_ms.get("others", 0.0)
    table = torch.zeros(dist.world, 3, device=dist.device)
    table[dist.rank] = torch.tensor([data, others, sum(totals_ms.values()) - data - others])
    rows = dist.all_reduce(table) / table.sum(1, keepdim=True).clamp_min(1e-9)
    texts = [
        f"{data:.0%} waiting for data, {others:.0%} for other ranks, {own:.0%} computing"
        for data, others, own in [*rows.tolist(), rows.mean(0).tolist()]
    ]
    slowest = int(rows[:, 1].argmin())
    return f"rank {slowest}, the slowest of {dist.world}: {texts[slowest]}; all: {texts[-1]}"


class Watch:
    """A thread on each rank, within `with`, that ends the run when a rank is dead or hung.

    `say` gets the line for the log on rank 0; stacks go to `out`/stack-rankN.txt on every rank.
    An error that leaves the `with` on one rank ends the others, too, who name it.
    """

    def __init__(self, dist: Dist, out: Path, say: Callable[[str], None]) -> None:
        self.dist, self.out, self.say = dist, out, say
        store: Any = td.HashStore() if dist.world == 1 else _get_default_store()
        store = td.PrefixStore("watch", store.clone())  # its own line: this thread waits for nobody
        store.set_timeout(timedelta(seconds=DEAD_S))
        self.store, self.ended = store, threading.Event()
        who = f"rank {dist.rank} on {socket.gethostname()} (process {os.getpid()})"
        self.me: dict[str, Any] = {"who": who, "place": "start", "may_s": FIRST_S}
        self.me |= {"count": 0, "beat": 0}
        self.began, self.took = time.monotonic(), defaultdict[str, Any](lambda: deque(maxlen=16))
        self.seen: dict[int, tuple[dict[str, Any], float, float]] = {}
        self.behind: dict[str, int] = {}  # rank by its words -> its beat when it seemed to hang
        self.line = ThreadPoolExecutor(1, "watch's line")
        self.thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def at(self, place: str) -> None:
        """The main thread has come to this place."""
        now, took = time.monotonic(), self.took[place]
        self.took[self.me["place"]].append(now - self.began)
        may_s = max(STUCK_S, 10 * max(took)) if len(took) > 2 else FIRST_S
        least_s = guard.LIMIT_S + STUCK_S if place == "data" else 0
        self.began, count = now, self.me["count"] + 1
        self.me |= {"place": place, "may_s": max(may_s, least_s), "count": count}

    def __enter__(self) -> "Watch":
        self.store.set("verdict", "")
        self._tell()
        self.dist.barrier()
        self.first = json.loads(self.store.get("0"))["who"]  # it may be gone before it is heard
        self.thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        others = self.dist.world > 1
        if isinstance(error, RuntimeError) and others:
            # Most often another rank is gone, and the watch will know which; its word ends us.
            self.thread.join(DEAD_S + 3 * BEAT_S)
        self.ended.set()
        self.thread.join()
        self.me["place"] = "done"
        if error is None:
            self._tell()
        elif others:
            self.me["place"] = (
                f"failed: {str(error).splitlines()[0] if str(error) else repr(error)}"
            )
            with suppress(td.DistError):  # the error itself goes on its way
                self._tell()
                if self.dist.is_main:
                    self.store.set("verdict", f"{self.me['who']} {self.me['place']}")
                    time.sleep(2 * BEAT_S)  # the store that the others hear it from ends with us

    def _run(self) -> None:
        last = time.monotonic()
        while not self.ended.wait(BEAT_S):
            began = time.monotonic()
            if began - last > DEAD_S / 2:
                self.seen.clear()  # this process was stopped, and the others may have been, too
            last = began
            try:
                verdict = self.line.submit(self._talk).result(DEAD_S)
            except (td.DistError, FutureTimeout):  # a call may wait for ever, whatever its limit
                verdict = f"{self.first} does not answer: dead, stopped, or cut off"
                if time.monotonic() - began > DEAD_S + 2 * BEAT_S:
                    continue  # stopped while it asked
            if verdict and not self.ended.is_set():
                self._end(verdict)

    def _talk(self) -> str:
        self._tell()
        return self._judge() if self.dist.is_main else self._hear()

    def _tell(self) -> None:
        self.me["beat"] += 1
        self.store.set(str(self.dist.rank), json.dumps(self.me))

    def _note(self, rank: int, text: bytes) -> tuple[dict[str, Any], float, float]:
        """What a rank told; seconds without a sign of it, and without it getting on."""
        row, now = json.loads(text), time.monotonic()
        old, sign, moved = self.seen.get(rank, ({}, now, now))
        sign = now if row["beat"] != old.get("beat") else sign
        moved = now if row["count"] != old.get("count") else moved
        self.seen[rank] = row, sign, moved
        return row, now - sign, now - moved

    def _judge(self) -> str:
        """On rank 0: what is wrong, and with whom; empty if nothing is."""
        told = self.store.multi_get([str(rank) for rank in range(self.dist.world)])
        noted = [
            x for r, text in enumerate(told) if (x := self._note(r, text))[0]["place"] != "done"
        ]
        least = min((row["count"] for row, *_ in noted), default=0)
        failed, silent, stuck, behind = [], [], [], {}
        for row, silent_s, still_s in noted:
            if "failed" in row["place"]:
                failed.append(f"{row['who']} {row['place']}")
            elif silent_s > DEAD_S:
                silent.append(f"{row['who']} gave no sign for {silent_s:.0f} s, last {_at(row)}")
            elif row["count"] == least and still_s > row["may_s"]:
                # It may have been waiting for one that got on since: its next word decides.
                since = behind[row["who"]] = self.behind.get(row["who"], row["beat"])
                if row["beat"] > since:
                    stuck.append(f"{row['who']} hangs for {still_s:.0f} s, {_at(row)}")
        self.behind = behind
        found = failed or silent or stuck
        text = "; ".join(found[:3]) + f" and {len(found) - 3} more" * (len(found) > 3)
        self.store.set("verdict", text)
        return text

    def _hear(self) -> str:
        """On the other ranks: what rank 0 has found, or that rank 0 gives no sign."""
        row, silent_s, _ = self._note(0, self.store.get("0"))
        if silent_s > DEAD_S and row["place"] != "done":
            return f"{row['who']} gave no sign for {silent_s:.0f} s, last {_at(row)}"
        return self.store.get("verdict").decode()

    def _end(self, verdict: str) -> None:
        path = self.out / f"stack-rank{self.dist.rank}.txt"
        with open(path, "w") as f:
            f.write(f"{verdict}\n{self.me['who']} is here, {_at(self.me)}\n\n")
            f.flush()
            faulthandler.dump_traceback(f)
        text = f"{verdict}. All ranks end; {path} tells where each was"
        self.say(text.replace(path.name, "stack-rank*.txt"))
        if not self.dist.is_main:
            print(f"vidlearn, rank {self.dist.rank}: {text}", file=sys.stderr, flush=True)
        if self.me["who"] in verdict:
            print(path.read_text(), file=sys.stderr, flush=True)
        if self.dist.is_main and self.dist.world > 1:
            time.sleep(2 * BEAT_S)  # the others hear it through this process
        os._exit(1)  # the main thread may be deep in a collective, which no exception ends


def _at(row: dict[str, Any]) -> str:
    return f"at {row['place']!r}, its mark {row['count']}"
