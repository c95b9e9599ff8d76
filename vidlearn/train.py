"""One training run, from the first batch to the last checkpoint.

Input: a Config, a manifest, a folder for results. Output: checkpoints, `metrics.jsonl`,
`train.log`, `quarantine.jsonl` and the exported encoder. A run that was cut goes on from its newest
checkpoint as if nothing had been; what a step does is in `step`. Chapters 1 and 11.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from vidlearn import checkpoint
from vidlearn.batch import Batch, ClipDataset, ShardedSampler, make_loader, to_device
from vidlearn.datasets import Manifest, Quarantine, deadly, lanes
from vidlearn.datasets.cost import Laps
from vidlearn.dist import Dist, Watch, agree, clock, init_distributed, shares
from vidlearn.errors import ConfigError, VidlearnError
from vidlearn.recipes import Config
from vidlearn.runlog import RunLog
from vidlearn.step import State, build, metrics_of, train_step

REPORT_S = 60.0  # between two lines on where time goes
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # whatever ranks share it


def save(state: State, out: Path, writer: checkpoint.Writer) -> dict[str, Any]:
    """Have rank 0 write a checkpoint while training goes on; returns the weights, on rank 0."""
    c, world = state.config, state.dist.world
    model, optim = get_state_dict(state.model, state.optimizers, options=WHOLE)
    if state.dist.is_main:
        saved = {"config": c.to_json(), "step": state.step, "model": model, "optimizer": optim}
        saved["world"] = world
        own = state.dist.device.type == "cpu"  # from a GPU they are copies already
        writer.save(out / "checkpoints", state.step, saved, each=c.keep_every, copy=own)
    return model


def resume(state: State, out: Path) -> int:
    """Go on from the newest checkpoint in `out`; how many processes wrote it, 0 without one.

    ConfigError: its choices are others.
    """
    if (path := checkpoint.latest(out / "checkpoints")) is None:
        return 0
    content = checkpoint.load(path)
    if differences := state.config.differences(Config.from_json(content["config"])):
        text = f"{path} belongs to another run ({'; '.join(differences)}: asked, saved)"
        raise ConfigError(f"{text}. Choose another --out, or the same choices")
    checkpoint.check_matches(content["model"], state.model, path)
    parts = {"model_state_dict": content["model"], "optim_state_dict": content["optimizer"]}
    set_state_dict(state.model, state.optimizers, **parts, options=WHOLE)
    state.step = content["step"]
    return content.get("world", state.dist.world)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect the signals that ask for a stop, instead of dying of them."""
    asked: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1")]
    old = {n: signal.signal(n, lambda n, _frame: asked.append(n)) for n in numbers}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def load(
    c: Config, data: Manifest, dist: Dist, start_step: int = 0, lost: dict | None = None
) -> Iterator[Batch]:
    """This rank's training batches without end, from a step on, on the rank's device.

    `lost`: path -> cause of videos that are not to be tried.
    """
    if c.batch % (shares := dist.world * c.accumulate):
        text = f"--batch {c.batch} cannot be shared by {dist.world} processes"
        text += f" in {c.accumulate} parts each" * (c.accumulate > 1)
        raise ConfigError(f"{text}: give a multiple of {shares}")
    data = data.training()
    if len(data) < c.batch:
        text = f"{data.source}: {len(data)} training videos, but --batch is {c.batch}"
        raise ConfigError(f"{text}. Use a smaller batch or more videos")
    dataset = ClipDataset(data, c.clip_spec(), c.transform(True), c.seed, c.backend)
    order = c.seed, start_step, lanes.of(data, c.batch, dataset.spec.clips)
    sampler = ShardedSampler(len(dataset), c.batch, dist.rank, dist.world, *order)
    how: dict[str, Any] = {"workers": c.workers, "device": dist.device, "lost": lost}
    return iter(to_device(make_loader(dataset, sampler, **how), dist.device))


def train(config: Config, data: Manifest, out: str | Path, *, dist: Dist | None = None) -> dict:
    """Run, or go on with, a training run. Returns the last metrics, and where and why it ended.

    It takes the split "train" of the data if there is one, else all. If `out` holds checkpoints
    of this run, training goes on from them. ConfigError: choices that cannot be, or ranks that
    differ. VidlearnError: too many unreadable videos, a loss that is not a number, a checkpoint
    that cannot be written. A rank that is dead or hung ends all of them.
    """
    dist, data, out = dist or init_distributed(), data.training(), Path(out)
    agree(dist, config=config.to_json(), videos=f"{len(data)} of {data.classes}")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    state = build(config, dist)
    before = resume(state, out)
    left = state.step < config.steps
    lost = deadly(out / "quarantine.jsonl")
    batches = load(config, data, dist, state.step, lost) if left else iter(())
    log = RunLog(out, state.step, config, active=dist.is_main)
    where = f"{dist.world} process(es) on {dist.device}; {lanes.told(data, config.batch)}"
    begins = "goes on" if before else "starts"
    log.say(f"{begins} at step {state.step} of {config.steps} in {where}, of {data.source}")
    if before not in (0, dist.world):
        log.say(f"it was saved by {before} process(es): the same clips, but other last digits")
    ahead = 2 * config.workers * config.batch * 3 * config.frames * config.size**2 / dist.world
    log.say(f"{config.backend} decodes; {ahead / 2**20:.1f} MiB at most are read ahead")
    began = time.perf_counter()
    with _stop_requests() as asked, log.bar, checkpoint.Writer() as writer:
        with Watch(dist, out, log.say) as watch:
            metrics = _steps(state, batches, data, out, log, watch, writer, asked)
            watch.at("save")
            end = _finish(state, out, log, writer)
    return {**metrics, "seconds": time.perf_counter() - began, **end}


def _steps(
    state: State, batches: Iterator[Batch], data: Manifest, out: Path, log: RunLog, watch: Watch,
    writer: checkpoint.Writer, asked: list[int],
) -> dict[str, float]:  # fmt: skip
    """From batch to batch until the last step, or a stop; returns the last metrics."""
    c, dist, metrics = state.config, state.dist, dict[str, float]()
    quarantine = Quarantine(out / "quarantine.jsonl", len(data), c.max_bad_share)
    stop_file = os.environ.get("VIDLEARN_STOP_FILE", "")
    laps, minute = Laps(clock(dist.device)), time.monotonic()

    def mark(name: str) -> None:
        laps.mark(name)
        watch.at(name)

    state.mark = mark
    began, waited, first_step = time.perf_counter(), 0.0, state.step
    while state.step < c.steps and not state.votes[1]:
        mark("data")
        waits = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - waits
        bad = quarantine.add(batch.bad)
        stop = bool(asked) or bool(stop_file and os.path.exists(stop_file))
        report = dist.is_main and time.monotonic() - minute > REPORT_S
        numbers = train_step(state, batch, stop=stop, report=report)
        mark("log")
        _check(state, batch, numbers, data, out)
        last = state.step == c.steps
        if last or state.step % c.log_every == 0:
            metrics = metrics_of(state, numbers)
            seconds = time.perf_counter() - began
            metrics["wait_share"] = waited / seconds
            metrics["clips_per_s"] = (state.step - first_step) * c.batch / seconds
            log.write(metrics, bad=bad)
        if state.votes[2]:
            log.say(f"step {state.step}, the last minute: {shares(dist, laps.totals_ms())}")
            minute = time.monotonic()
        if not last and state.step % c.save_every == 0:
            mark("save")
            save(state, out, writer)
    return metrics


def _check(state: State, batch: Batch, numbers: dict, data: Manifest, out: Path) -> None:
    """VidlearnError: a gradient is not a number; then the videos of all ranks' clips are named."""
    if all(torch.isfinite(numbers[f"grad_{name}"]) for name in ("encoder", "predictor")):
        return  # this waits for the GPU, and is equal on all ranks
    dist, share = state.dist, len(batch.indices)
    indices = torch.zeros(dist.world, share, dtype=torch.int64, device=dist.device)
    losses = torch.zeros(dist.world, share, device=dist.device)
    indices[dist.rank], losses[dist.rank] = batch.indices, numbers["per_clip"].float()
    dist.all_reduce(indices)
    dist.all_reduce(losses)
    names = [data.rows[i].path for i in indices.flatten().tolist()]
    found = [{"path": p, "loss": x} for p, x in zip(names, losses.flatten().tolist())]
    path = out / f"not-a-number-{state.step:08d}.json"
    if dist.is_main:
        path.write_text(json.dumps(found, indent=1) + "\n")
    text = f"the loss is not a number at step {state.step}; the last checkpoint is intact, and"
    remedy = "Look at them, lower --lr, raise --warmup, or turn off --bf16"
    raise VidlearnError(f"{text} {path} names the step's videos. {remedy}")


def _finish(state: State, out: Path, log: RunLog, writer: checkpoint.Writer) -> dict[str, Any]:
    """The last checkpoint, the exported encoder, and where the run stands."""
    c, main, weights = state.config, state.dist.is_main, save(state, out, writer)
    path = writer.wait()
    if main:
        prefix = "target_encoder."
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        meta = {"config": c.to_json(), "step": state.step}
        checkpoint.export_encoder(out / "encoder.safetensors", weights, meta)
    if stopped := state.step < c.steps:
        log.say(f"stopped at step {state.step} as asked; saved. To go on: the same command again")
        if main and (marker := os.environ.get("VIDLEARN_STOPPED_FILE")):
            Path(marker).touch()
    state.dist.barrier()  # all is on disk
    return {"step": state.step, "steps": c.steps, "stopped": stopped, "checkpoint": str(path)}
