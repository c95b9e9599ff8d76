"""How long does it take, on what machine, and is the machine in order (chapters 1 and 2)?

Input: functions, recipes, the computer itself. Output: timings, the parts of a training step, the
checks of `vidlearn doctor`. Traded: the real `train_step` is timed by PyTorch's hooks, on CUDA by
events, so that nothing waits for the GPU; what happens between two hooks counts for the first.
"""

import ctypes
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vidlearn import budget, dist, probe, step, train
from vidlearn.datasets import Manifest, parts_ms
from vidlearn.datasets.cores import cores
from vidlearn.datasets.cost import Laps
from vidlearn.decode import backends
from vidlearn.errors import ConfigError
from vidlearn.recipes import Config


class Timing(NamedTuple):
    """Seconds of repeated calls: middle, best, and the distance between the quartiles."""

    median_s: float
    min_s: float
    spread_s: float
    repeats: int


def timeit(fn: Callable[[], Any], repeats: int = 7, warmup: int = 1) -> Timing:
    """Wall time of `fn()`; once CUDA is in use, each call is waited for."""
    seconds = []
    for _ in range(warmup + repeats):
        began = time.perf_counter()
        fn()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    low, middle, high = np.percentile(seconds[warmup:], (25, 50, 75)).tolist()
    return Timing(middle, min(seconds[warmup:]), high - low, repeats)


def machine_card() -> dict[str, Any]:
    """What a timing must be read with."""
    info = Path("/proc/cpuinfo")  # of Linux; elsewhere Python knows at least the kind
    name = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": name[1] if name else platform.machine(), "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": ", ".join(gpus) or "none", "os": platform.platform(), "torch": torch.__version__,
        "python": platform.python_version(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def _watch(laps: Laps, state: step.State) -> None:
    """Hooks that mark where each part of `train_step` begins."""

    def predicted(_module: Any, _args: Any, output: torch.Tensor) -> None:
        laps.mark("loss_ms")
        output.register_hook(partial(laps.mark, "backward_ms"))  # its gradient comes first

    state.mark = lambda name: laps.mark(f"{name}_ms")
    model, optimizers = state.model, state.optimizers
    for part, name in (
        (model.target_encoder, "target_ms"), (model.encoder.patch_embed, "context_ms"),
        (model.encoder.blocks[0], "context_ms"), (model.predictor, "predictor_ms"),
    ):  # fmt: skip
        part.register_forward_pre_hook(partial(laps.mark, name))
    model.predictor.register_forward_hook(predicted)
    optimizers[0].register_step_pre_hook(partial(laps.mark, "optimiser_ms"))
    optimizers[-1].register_step_post_hook(partial(laps.mark, "ema_ms"))


def load_rate(config: Config, data: Manifest, batches: int = 20) -> dict[str, Any]:
    """How fast clips come when nobody makes the loader wait: so, and in other settings.

    `parts_ms` is what a clip takes of a core, `binds` the largest; `best` the fastest of `tries`.
    """
    tries, me = [], dist.init_distributed()
    numbers = dict.fromkeys((config.workers, *(n for n in (0, 1, 2, 4, 8, 16) if n <= cores())))
    for backend, workers in product(dict.fromkeys((config.backend, "auto", "decord")), numbers):
        loader = train.load(replace(config, backend=backend, workers=workers), data, me)
        # What the workers read ahead while they started is not counted.
        batch_s = timeit(partial(next, loader), batches, warmup=1 + 2 * workers).median_s
        where = {"backend": backend, "workers": workers, "batch_ms": batch_s * 1e3}
        tries.append({**where, "clips_per_s": config.batch / batch_s})
    clips = data.training(), config.clip_spec(), config.transform(True), config.input_norm
    parts, best = parts_ms(*clips), max(tries, key=lambda found: found["clips_per_s"])
    told = {"batch": config.batch, "batches": batches, **tries[0], "parts_ms": parts}
    return {**told, "binds": max(parts, key=parts.__getitem__), "best": best, "tries": tries}


def step_breakdown(config: Config, data: Manifest, steps: int = 20) -> dict[str, Any]:
    """Where a training step's time goes: medians over `steps`, in ms a step, by part, in turn.

    load_wait (for the loader), prepare (rates, normalisation), masks, target, context, predictor,
    loss, backward (with clipping), optimiser, ema, logging (once every log_every steps); step is
    all but the wait, spread the distance of its quartiles; mfu the share of the peak, or None.
    """
    torch.set_num_threads(config.threads)
    me, rows = dist.init_distributed(), []
    laps = Laps(dist.clock(me.device))
    state, loader = step.build(config, me), train.load(config, data, me)
    _watch(laps, state)
    for _ in range(steps + 3):
        laps.mark("load_wait_ms")
        batch = next(loader)  # on the device; on CUDA the copy was started a step ago
        laps.mark("prepare_ms")
        numbers = step.train_step(state, batch)
        laps.mark("logging_ms")
        step.metrics_of(state, numbers)
        laps.mark("")
        rows.append(laps.totals_ms())
        rows[-1]["logging_ms"] /= config.log_every
    del rows[:3]  # the first steps pay for memory, compilation and the workers' start
    parts = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    totals = [sum(row.values()) - row["load_wait_ms"] for row in rows]
    low, middle, high = np.percentile(totals, (25, 50, 75)).tolist()
    if me.device.type == "cuda":
        memory, gpu = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name(me.device)
    else:  # the most that this process ever held; macOS counts in bytes, Linux in KiB
        unit, gpu = 1 if sys.platform == "darwin" else 1024, ""
        memory = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tflop, rate = budget.step_cost(config, config.batch // me.world)["tflop"], 1e3 / middle
    peak, _ = budget.find_gpu(gpu)
    return {
        "device": str(me.device), "processes": me.world, "workers": config.workers,
        "batch": config.batch, "steps": steps, "step_ms": middle, "spread_ms": high - low,
        "clips_per_s": config.batch * rate, "peak_memory_gib": memory / 2**30,
        "tokens_per_s": config.batch * rate * state.model.cfg.n_tokens,
        "tflop_per_step": tflop * me.world, "tflops": tflop * rate,
        "mfu": peak and tflop * rate / peak, **parts,
    }  # fmt: skip


def speedrun(config: Config, data: Manifest) -> dict[str, Any]:
    """CPU seconds of a whole training, loading included, and per cent right by a linear probe."""
    with tempfile.TemporaryDirectory() as out:
        began = sum(os.times()[:4])  # of this process and of the workers that have ended
        train.train(config, data, out)
        cpu_s = sum(os.times()[:4]) - began
        right = probe.report(out, data)["rows"]["trained encoder"]["linear, time kept"]
    return {"cpu_s": cpu_s, "seed": config.seed, **{s: x["percent"] for s, x in right.items()}}


class Check(NamedTuple):
    """One finding of `doctor`. ok: True, False, or None for what only some need."""

    name: str
    ok: bool | None
    found: object
    remedy: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "BAD", None: "note"}[self.ok]
        return f"{mark:4} {self.name:18} {self.found}" + ("" if self.ok else f" -> {self.remedy}")


def _gpu() -> Check:
    """Does torch fit the driver? The driver itself is asked: torch for CPU does not know it."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return Check("GPU", None, "no NVIDIA driver", "the course is made for the CPU")
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    found = f"driver for CUDA {driver}, torch for {torch.version.cuda or 'CPU'}"
    remedy = "install torch for this driver's CUDA, or look at CUDA_VISIBLE_DEVICES"
    return Check("GPU", torch.cuda.is_available(), found, remedy)


def _launcher() -> Check:
    """Did torchrun, srun or nobody start this, and is all there that they set?"""
    try:
        launcher, rank, world, *_ = dist.find_place()
        return Check("launcher", True, f"{launcher}, rank {rank} of {world}", "")
    except ConfigError as error:
        return Check("launcher", False, error, "chapter 3 tells which variables belong together")


def doctor() -> list[Check]:
    """All checks of this machine and environment; nothing is sent or changed."""
    have = {d.metadata["Name"].lower(): d.version for d in distributions()}
    need = ("torch", "numpy", "av", "matplotlib", "ipywidgets", "safetensors", "rich", "tyro")
    kinds = [f"{n} {have[n]}" for n in ("decord", "eva-decord", "decord2") if n in have]
    one = "pip uninstall decord eva-decord decord2, then pip install vidlearn"
    n, files = cores(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    omp = os.environ.get("OMP_NUM_THREADS", "unset")
    omp_ok = omp == "unset" or (omp.isdigit() and 1 <= int(omp) <= n)
    checks = [
        Check("Python", True, platform.python_version(), ""),  # pip accepts no other than ours
        *(Check(x, x in have, have.get(x, "missing"), "pip install vidlearn") for x in need),
        Check("one decord", len(kinds) == 1, ", ".join(kinds) or "none", one),
        _gpu(),
        Check("cores", n > 1, f"{n} of {os.cpu_count()}", "ask for more, or give --workers 0"),
        Check("OMP_NUM_THREADS", omp_ok, omp, f"unset it, or set it to 1 up to {n}"),
        Check("open files", files >= 1024, files, "ulimit -n 4096"),
        _launcher(),
    ]
    for name, why in backends().items():  # TorchCodec is a choice: it wants FFmpeg on the system
        ok = not why or (None if name == "torchcodec" else False)
        checks.append(Check(f"decoder {name}", ok, why or "loads", "--backend pyav needs no other"))
    for name, place, least, remedy in (
        ("disk", ".", 2, "free some, or work elsewhere"),
        ("temporary files", tempfile.gettempdir(), 2, "free some, or set TMPDIR"),
        ("shared memory", "/dev/shm", 1, "docker run --shm-size=8g, or --workers 0"),
    ):
        if os.path.exists(place):  # macOS has no /dev/shm, where workers hand batches over
            free = shutil.disk_usage(place).free / 2**30
            found = f"{free:.1f} GiB free at {os.path.abspath(place)}"
            checks.append(Check(name, free >= least, found, remedy))
    return checks
