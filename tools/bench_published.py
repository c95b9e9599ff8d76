"""Our training step against the published one, paired in one run: prints JSON.

    .venv/bin/python tools/bench_published.py [tiny small ...] [--pairs 12] [--narrow]

Each side lives in a fresh process with one thread; they get the same weights, clips and masks and
take turns, one step at a time, in changing order. Time is process CPU time, which a busy machine
changes least; memory is what the backward pass needs, a count, and each process's peak, which also
holds what the allocator and the libraries take. Neither time holds reading clips or drawing masks.
The published step is `published_loop.py`. On a CPU its configured bfloat16 does nothing, so small
is compared with it as it is and with bfloat16 switched on. The predictor is 384 wide, as published
for large encoders, and most of the work of a tiny one; with --narrow half as wide as the encoder.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from published_loop import PublishedLoop
from vidlearn import dist, mask, measure, step
from vidlearn.batch import Batch
from vidlearn.model import SIZES, VJEPA
from vidlearn.recipes import Config

RUNS = {  # by size: our side, then the published ones to compare with
    "tiny": ("ours", "published"),
    "small": ("ours_bf16", "published", "published_bf16"),
}


class Kept:
    """The most bytes that backward passes needed at one time, weights among them."""

    def __init__(self) -> None:
        self.users: Counter[int] = Counter()  # of each storage
        self.now = self.most = 0

    def pack(self, x: torch.Tensor) -> tuple[torch.Tensor, "Held"]:
        """For `saved_tensors_hooks`: the tensor, and what tells when it is let go."""
        return x, Held(self, x.untyped_storage())

    def count(self, storage: torch.UntypedStorage, change: int) -> None:
        """One user more or fewer of a storage."""
        before, where = self.users[storage.data_ptr()], storage.data_ptr()
        self.users[where] += change
        self.now += storage.nbytes() * ((self.users[where] > 0) - (before > 0))
        self.most = max(self.most, self.now)


class Held:
    """One saved tensor's storage, counted until autograd lets it go."""

    def __init__(self, kept: Kept, storage: torch.UntypedStorage) -> None:
        self.kept, self.storage = kept, storage
        kept.count(storage, 1)

    def __del__(self) -> None:
        self.kept.count(self.storage, -1)


def worker(size: str, who: str, narrow: bool) -> None:
    """One side: a step and its CPU seconds for each line that comes; then the peak in MiB."""
    width, depth, heads, _ = SIZES[size]
    shape = dict(width=width, depth=depth, heads=heads, pred_heads=heads, size=112)
    shape["pred_width"] = width // 2 if narrow else 384
    bf16 = who.endswith("_bf16")
    c = Config(**shape, batch=4, clip_grad=0.0, mask_cut="vjepa1", bf16_cpu=bf16)
    torch.set_num_threads(1)
    n, cfg = torch.arange(c.batch), c.model()
    key: dict[str, Any] = dict(seed=0, indices=n.tolist(), cycle=False)
    clips = torch.randn(c.batch, 3, c.frames, c.size, c.size)
    batch = Batch(clips, n, n, n >= 0, [])
    ours = theirs = None
    if who.startswith("ours"):
        ours = step.build(c, dist.init_distributed())
    else:
        torch.manual_seed(c.seed)
        theirs = PublishedLoop(cfg, VJEPA(cfg).state_dict(), bf16=bf16)
    kept = Kept()

    for i, _ in enumerate(sys.stdin):
        masks = mask.make_masks(c.masks, c.mask_cut, cfg.grid, step=i, **key)
        step.normalize, step.make_masks = lambda clips, _: clips, lambda *_a, _m=masks, **_k: _m
        watch = contextlib.nullcontext() if i else saved_tensors_hooks(kept.pack, lambda x: x[0])
        began = time.process_time()
        with watch:
            if theirs:
                theirs.step(clips, masks, (1e-4, 0.04, 0.998))
            if ours:
                step.train_step(ours, batch)
        print(time.process_time() - began, flush=True)
    print(kept.most / 2**20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def compare(size: str, sides: tuple[str, ...], pairs: int, narrow: bool) -> dict[str, Any]:
    """Seconds a step of each side, ratios of the pairs (theirs to ours), peak MiB."""
    me: list[str] = [sys.executable, __file__, *["--narrow"] * narrow, "--worker", size]
    pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    runs = {x: subprocess.Popen([*me, x], **pipes) for x in sides}
    seconds: dict[str, list[float]] = {x: [] for x in sides}
    for i in range(pairs + 2):
        for side in sides if i % 2 else sides[::-1]:
            print(file=runs[side].stdin, flush=True)
            seconds[side].append(float(runs[side].stdout.readline()))
    ends = {x: [float(line) for line in run.communicate()[0].split()] for x, run in runs.items()}
    times = {x: np.array(s[2:]) for x, s in seconds.items()}  # the first two pay for memory
    ours = sides[0]

    def quartiles(x: np.ndarray) -> dict[str, float]:
        return dict(zip(("q25", "median", "q75"), np.percentile(x, (25, 50, 75)).round(3).tolist()))

    names = ("kept_mib", "peak_mib")
    memory = {x: dict(zip(names, map(round, ends[x]))) for x in sides}
    ratios = {x: quartiles(times[x] / times[ours]) for x in sides[1:]}
    seconds_of = {x: quartiles(s) for x, s in times.items()}
    return {"seconds": seconds_of, "ratio": ratios, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", default=list(RUNS))
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--worker", nargs=2)
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker, args.narrow)
    torch.set_num_threads(1)
    sizes = {x: compare(x, RUNS[x], args.pairs, args.narrow) for x in args.sizes}
    about = {"machine": measure.machine_card(), "pairs": args.pairs, "narrow": args.narrow}
    print(json.dumps({**about, **sizes}, indent=1))


if __name__ == "__main__":
    main()
