"""What `vidlearn plan` says of 1 and 2 processes, and what they do: JSON, and the record.

    .venv/bin/python tools/bench_scaling.py [--cases laptop ...] [--rounds 9] [--out FILE]

Two processes on two cores, one thread each. In every round, in turn: both train alone at once, with
half and with twice the clips that they will have; they exchange two tensors of other sizes than the
gradients'; these are the parts, and the model predicts from them. Then they train together: that is
the measurement. One alone is predicted from half and from three halves of its clips. All take turns
step by step, and the lower quartile of a round counts: what others do on the cores is in both. The
loader cases are one process with one worker, or with a disk that is made up: it waits.
"""

import argparse
import gc
import inspect
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as td
from torch.nn.parallel import DistributedDataParallel

from vidlearn import dist, measure, step, train
from vidlearn.batch import Batch
from vidlearn.datasets import Manifest, open_data, synth
from vidlearn.dist import scaling
from vidlearn.recipes import Config, recipe

RECORD = Path("book/_static/records/scaling.json")
WIDE = {"batch": 8, "size": 32, "width": 192, "heads": 6, "pred_width": 96}
ADAMW = {**WIDE, "muon_lr": 0.0}
# Choices beside those of the recipe `laptop`, and what a bucket of gradients may hold, MiB.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "laptop": ({"batch": 8}, 25),
    "laptop, 16 clips": ({"batch": 16}, 25),
    "width 192": (WIDE, 25),
    "width 384, AdamW": ({**ADAMW, "width": 384}, 25),
    "width 192, AdamW, buckets of 1 MiB": (ADAMW, 1),
    "width 192, AdamW, half the bytes": ({**ADAMW, "bf16_grads": True}, 25),
}
NARROW = {"width": 24, "depth": 2, "pred_width": 24, "pred_depth": 1}
LOADED: dict[str, dict[str, Any]] = {
    "laptop and its worker on one core": {"batch": 8},
    "narrow and its worker on one core": {"batch": 8, **NARROW},
    "laptop and its worker, a core each": {"batch": 8},
    "narrow and its worker, a core each": {"batch": 8, **NARROW},
    "laptop, a disk that takes half a step": {"batch": 8, "workers": 0},
    "narrow, a disk that takes two steps": {"batch": 8, "workers": 0, **NARROW},
}
TURNS = 12  # of each part in a round, one after the other
KIB = (256, 8192)  # tensors that are exchanged to find bandwidth and latency


class Buckets(DistributedDataParallel):
    """DDP whose buckets hold other than 25 MiB."""

    cap_mb = 25
    __signature__ = inspect.signature(DistributedDataParallel)  # which step.build asks for

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, bucket_cap_mb=self.cap_mb, **how)


def clips(config: Config, n: int, rank: int) -> Batch:
    """n clips of noise."""
    shape = (n, 3, config.frames, config.size, config.size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    return Batch(pixels, torch.full((n,), -1), torch.arange(n) + n * rank, torch.ones(n) > 0, [])


def seconds(call: Callable[[], Any]) -> float:
    """What a call takes, begun by all ranks at once."""
    if td.is_initialized():
        td.barrier()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def quiet(found: np.ndarray) -> float:
    """The lower quartile: what it takes when others leave the cores alone."""
    return float(np.quantile(found, 0.25))


class Pair:
    """One of two processes, which trains alone and with the other."""

    def __init__(self, name: str) -> None:
        choices, Buckets.cap_mb = CASES[name]
        self.config = replace(recipe("laptop"), workers=0, **choices)
        torch.set_num_threads(self.config.threads)
        me = self.me = dist.init_distributed()
        step.DistributedDataParallel = Buckets  # type: ignore[misc]
        self.both = step.build(self.config, me)
        # Its regulariser would look for the other process.
        self.alone = step.build(replace(self.config, var_cov=0), replace(me, rank=0, world=1))
        self.share = self.config.batch // me.world
        trained = [p.numel() for p in self.both.model.parameters() if p.requires_grad]
        self.gradients = sum(trained)
        self.halves = 2 if self.config.bf16_grads else 4
        self.bucket = torch.zeros(self.gradients)
        self.calls = -(-4 * self.gradients // (Buckets.cap_mb << 20))

    def step(self, state: step.State, n: int) -> Callable[[], Any]:
        """A training step of n clips, to be called."""
        batch = clips(self.config, n, self.me.rank)
        return lambda: float(step.train_step(state, batch)["loss_sum"])

    def halve(self) -> None:
        """What becomes of the gradients before and after they travel as 2 bytes each."""
        for i in range(0, self.gradients, part := Buckets.cap_mb << 18):
            bucket = self.bucket[i : i + part]
            bucket.copy_((bucket / self.me.world).bfloat16())

    def calls_of(self) -> dict[str, Callable[[], Any]]:
        """What takes turns."""
        kind, n = torch.bfloat16 if self.halves == 2 else torch.float32, self.config.batch
        small, large = (torch.ones(kib * 1024 // self.halves, dtype=kind) for kib in KIB)
        made = {f"alone {m}": self.step(self.alone, m) for m in (n // 4, n)}
        made |= {"small": lambda: td.all_reduce(small), "large": lambda: td.all_reduce(large)}
        if self.halves == 2:
            made["halve"] = self.halve
        made["both"] = self.step(self.both, n // 2)
        main = self.me.is_main
        one = {f"one {m}": self.step(self.alone, m) for m in (n // 2, n, 3 * n // 2)}
        return made | {name: call if main else lambda: None for name, call in one.items()}

    def round(self) -> dict[str, Any]:
        """Parts, prediction and measurement, once."""
        made, n = self.calls_of(), self.config.batch
        mine = [[seconds(call) for call in made.values()] for _ in range(TURNS)]
        every: list[Any] = [None] * self.me.world
        td.all_gather_object(every, mine)
        found = dict(zip(made, np.array(every).transpose(2, 0, 1)))  # ranks, turns
        s = {name: quiet(x.mean(0) if "alone" in name else x[0]) for name, x in found.items()}
        slope_s = (s[f"alone {n}"] - s[f"alone {n // 4}"]) / (n - n // 4)
        fixed_s = max(0.0, s[f"alone {n}"] - n * slope_s)
        gb_s = (KIB[1] - KIB[0]) * 1024 / (s["large"] - s["small"]) / 1e9
        hop_us = max(0.0, (s["small"] - KIB[0] * 1024 / gb_s / 1e9) * 1e6 / 2)
        # How far the slower of two that know nothing of each other is behind their mean.
        late = [quiet(x.max(0)) / s[m] - 1 for m, x in found.items() if "alone" in m]
        jitter = float(np.mean(late)) / scaling.slowest(2)
        sent, passes = 2.0 * self.halves * self.gradients, self.config.var_cov > 0
        halve_s = s.get("halve", 0.0)
        exchange = (sent, self.calls, 1 + 4 * passes, 0.0, halve_s, 2 + 2 * passes)
        parts = scaling.Parts(1 / slope_s, fixed_s, *exchange)
        cluster = scaling.Cluster(node_gb_s=gb_s, hop_us=hop_us, jitter=jitter)
        two = scaling.predict(parts, cluster, n, 2)
        slope_s = (s[f"one {3 * n // 2}"] - s[f"one {n // 2}"]) / n
        alone = scaling.Parts(1 / slope_s, s[f"one {n // 2}"] - n / 2 * slope_s, 0, 1, 0, 0)
        return {
            "halve_ms": halve_s * 1e3, "gb_s": gb_s, "hop_us": hop_us, "jitter": jitter,
            "update_ms": fixed_s * 1e3,
            "predicted": two["clips_per_s"], "measured": n / s["both"],
            "parts_ms": parts_ms(two), "efficiency": two["efficiency"],
            "one_predicted": scaling.predict(alone, scaling.Cluster(), n, 1)["clips_per_s"],
            "one_measured": n / s[f"one {n}"],
        }  # fmt: skip


def parts_ms(told: dict[str, Any]) -> dict[str, float]:
    """The parts of a prediction that are not 0."""
    return {k[:-3]: x for k, x in told.items() if k.endswith("_ms") and k != "step_ms" and x}


def disk(batch: Batch, wait_s: float) -> Iterator[Batch]:
    """Batches that arrive every wait_s, two of them ahead, and take no core."""
    ready: queue.Queue[Batch] = queue.Queue(2)

    def read() -> None:
        while True:
            time.sleep(wait_s)
            ready.put(batch)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield ready.get()


def loaded(name: str, data: Manifest) -> Iterator[dict[str, float]]:
    """One process: step and loader alone, what the model says of both, and both at once."""
    config, shared = replace(recipe("laptop"), **LOADED[name]), name.endswith("on one core")
    torch.set_num_threads(config.threads)
    if shared and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    me = dist.init_distributed()
    state, held = step.build(config, me), clips(config, config.batch, 0)

    def work(batch: Batch) -> float:
        return float(step.train_step(state, batch)["loss_sum"])

    each_s = quiet(np.array([seconds(lambda: work(held)) for _ in range(TURNS)]))
    slow_s = each_s * (0.5 if name.endswith("half a step") else 2.0)
    while True:
        loader = train.load(config, data, me) if config.workers else disk(held, slow_s)
        load = partial(next, loader)
        for _ in range(4):  # what was read ahead
            load()
        load_s = [seconds(load) for _ in range(3 * TURNS)][4:]
        both_s = [seconds(lambda load=load: work(load())) for _ in range(2 * TURNS)][4:]
        del loader, load
        gc.collect()  # ends the worker, which would read ahead on the step's core
        step_s = [seconds(lambda: work(held)) for _ in range(TURNS)]
        parts = scaling.Parts(config.batch / float(np.mean(step_s)), 0, 0, 1, 0, 0)
        rate = config.batch / float(np.mean(load_s))
        cluster = scaling.Cluster(node_clips_per_s=rate, same_cores=shared)
        told = scaling.predict(parts, cluster, config.batch, 1)
        measured = config.batch / float(np.mean(both_s))
        yield {"predicted": told["clips_per_s"], "measured": measured, **parts_ms(told)}


def port() -> int:
    """A free one."""
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def launch(words: list[str], processes: int) -> dict[str, Any]:
    """Run this program as so many ranks; what rank 0 printed."""
    place = {"WORLD_SIZE": f"{processes}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port()}"}
    run, ranks = [sys.executable, __file__, *words], []
    for rank in range(processes):
        here = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "VIDLEARN_DEVICE": "cpu"}
        env = {**os.environ, **(here | place if processes > 1 else {}), "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen(run, env=env, stdout=subprocess.PIPE, text=True))
    said = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"{' '.join(words)}: a rank failed; see above")
    return json.loads(said[0].splitlines()[-1])


def middle(rounds: list[dict[str, Any]], name: str = "") -> dict[str, Any]:
    """Medians, and predicted over measured: middle, least, greatest."""
    ratios = [r[f"{name}predicted"] / r[f"{name}measured"] for r in rounds]
    told = {x: float(np.median([r[name + x] for r in rounds])) for x in ("predicted", "measured")}
    spread = float(np.median(ratios)), min(ratios), max(ratios)
    rounded = {k: float(f"{v:.4g}") for k, v in told.items()}
    return {**rounded, "ratio": [round(x, 3) for x in spread]}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One case, of 2 processes and of 1."""
    told: dict[str, Any] = {"rounds": len(rounds), "two": middle(rounds)}
    for name in ("halve_ms", "gb_s", "hop_us", "jitter", "update_ms", "efficiency"):
        told[name] = float(f"{np.median([r[name] for r in rounds]):.3g}")
    told["parts_ms"] = {
        part: float(f"{np.median([r['parts_ms'][part] for r in rounds]):.3g}")
        for part in rounds[0]["parts_ms"]
    }
    return {**told, "one": middle(rounds, "one_")}


def work(name: str, rounds: int, data: str) -> Iterator[dict[str, Any]]:
    """One process's rounds of one case."""
    if name in CASES:
        pair = Pair(name)
        yield from (pair.round() for _ in range(rounds + 1))
        dist.shutdown(pair.me)
        return
    yield from islice(loaded(name, open_data(data)), rounds + 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", default=[*CASES, *LOADED], choices=[*CASES, *LOADED])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--rank-of", default="", help="a case: be one of its processes")
    parser.add_argument("--data", default="", help="videos for the loader cases")
    args = parser.parse_args()
    if args.rank_of:  # the first round pays for memory
        print(json.dumps([*work(args.rank_of, args.rounds, args.data)][1:]))
        return
    found: dict[str, Any] = {"cases": {}, "loaded": {}}
    if args.out.exists():  # what is not asked for stays
        found = json.loads(args.out.read_text("utf-8"))
    found |= {"machine": measure.machine_card(), "kib": KIB, "turns": TURNS}
    found["date"] = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    with tempfile.TemporaryDirectory() as folder:
        data = synth.make(folder, train=96, val=0, test=0) if {*args.cases} & {*LOADED} else ""
        for name in args.cases:
            words = ["--rank-of", name, "--rounds", f"{args.rounds}", "--data", f"{data}"]
            rounds = launch(words, 2 if name in CASES else 1)
            if name in CASES:
                found["cases"][name] = summary(rounds)
            else:
                means = {k: float(np.median([r[k] for r in rounds])) for k in ("compute", "loader")}
                found["loaded"][name] = {"rounds": len(rounds), **middle(rounds), "parts_ms": means}
            for kind, names in (("cases", CASES), ("loaded", LOADED)):
                found[kind] = {n: found[kind][n] for n in names if n in found[kind]}
            args.out.write_text(json.dumps(found, indent=1) + "\n")
            print(name, json.dumps({**found["cases"], **found["loaded"]}[name]), flush=True)


if __name__ == "__main__":
    main()
