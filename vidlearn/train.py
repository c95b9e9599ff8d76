"""One training run, from the first batch to the last checkpoint.

Input: a Config, a manifest, a folder for results. Output: checkpoints, `metrics.jsonl`,
`train.log`, `quarantine.jsonl` and the exported encoder. A run that was cut goes on from its newest
checkpoint as if nothing had been; what a step does is in `step`. Chapters 1 and 11.
"""

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
from vidlearn.datasets import Manifest, Quarantine, lanes
from vidlearn.dist import Dist, init_distributed
from vidlearn.errors import ConfigError
from vidlearn.recipes import Config
from vidlearn.runlog import RunLog
from vidlearn.step import State, build, metrics_of, train_step

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # whatever ranks share it


def save(state: State, out: Path) -> tuple[Path | None, dict[str, Any]]:
    """Write a checkpoint from rank 0; the others wait for it. Its path and weights, on rank 0."""
    c, path = state.config, None
    model, optim = get_state_dict(state.model, state.optimizers, options=WHOLE)
    if state.dist.is_main:
        saved = {"config": c.to_json(), "step": state.step, "model": model, "optimizer": optim}
        path = checkpoint.save(out / "checkpoints", state.step, saved, each=c.keep_every)
    state.dist.barrier()
    return path, model


def resume(state: State, out: Path) -> bool:
    """Go on from the newest checkpoint in `out`, if any. ConfigError: its choices are others."""
    if (path := checkpoint.latest(out / "checkpoints")) is None:
        return False
    content = checkpoint.load(path)
    if differences := state.config.differences(Config.from_json(content["config"])):
        text = f"{path} belongs to another run ({'; '.join(differences)}: asked, saved)"
        raise ConfigError(f"{text}. Choose another --out, or the same choices")
    checkpoint.check_matches(content["model"], state.model, path)
    parts = {"model_state_dict": content["model"], "optim_state_dict": content["optimizer"]}
    set_state_dict(state.model, state.optimizers, **parts, options=WHOLE)
    state.step = content["step"]
    return True


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


def load(c: Config, data: Manifest, dist: Dist, start_step: int = 0) -> Iterator[Batch]:
    """This rank's training batches without end, from a step on, on the rank's device."""
    if c.batch % dist.world:
        text = f"--batch {c.batch} cannot be shared by {dist.world} processes"
        raise ConfigError(f"{text}: give a multiple of {dist.world}")
    data = data.training()
    if len(data) < c.batch:
        text = f"{data.source}: {len(data)} training videos, but --batch is {c.batch}"
        raise ConfigError(f"{text}. Use a smaller batch or more videos")
    dataset = ClipDataset(data, c.clip_spec(), c.transform(True), c.seed, c.backend)
    order = c.seed, start_step, lanes.of(data, c.batch, dataset.spec.clips)
    sampler = ShardedSampler(len(dataset), c.batch, dist.rank, dist.world, *order)
    batches = make_loader(dataset, sampler, workers=c.workers, device=dist.device)
    return iter(to_device(batches, dist.device))


def train(config: Config, data: Manifest, out: str | Path, *, dist: Dist | None = None) -> dict:
    """Run, or go on with, a training run. Returns the last metrics, and where and why it ended.

    It takes the split "train" of the data if there is one, else all. If `out` holds checkpoints
    of this run, training goes on from them. ConfigError: choices that cannot be. VidlearnError:
    too many unreadable videos, a loss that is not a number, a checkpoint that cannot be written.
    """
    dist, data, out = dist or init_distributed(), data.training(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    state = build(config, dist)
    begins = "goes on" if resume(state, out) else "starts"
    log = RunLog(out, state.step, config, active=dist.is_main)
    quarantine = Quarantine(out / "quarantine.jsonl", len(data), config.max_bad_share)
    stop_file = os.environ.get("VIDLEARN_STOP_FILE", "")
    batches = load(config, data, dist, state.step) if state.step < config.steps else iter(())
    where = f"{dist.world} process(es) on {dist.device}; {lanes.told(data, config.batch)}"
    log.say(f"{begins} at step {state.step} of {config.steps} in {where}, of {data.source}")
    ahead = 2 * config.workers * config.batch * 3 * config.frames * config.size**2 / dist.world
    log.say(f"{config.backend} decodes; {ahead / 2**20:.1f} MiB at most are read ahead")
    began, waited, first_step, metrics = time.perf_counter(), 0.0, state.step, {}
    with _stop_requests() as asked, log.bar:
        while state.step < config.steps and not state.votes[1]:
            mark = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - mark
            bad = quarantine.add(batch.bad)
            stop = bool(asked) or bool(stop_file and os.path.exists(stop_file))
            numbers = train_step(state, batch, stop=stop)
            last = state.step == config.steps
            if last or state.step % config.log_every == 0:
                metrics = metrics_of(state, numbers)
                seconds = time.perf_counter() - began
                metrics["wait_share"] = waited / seconds
                metrics["clips_per_s"] = (state.step - first_step) * config.batch / seconds
                log.write(metrics, bad=bad)
            if not last and state.step % config.save_every == 0:
                save(state, out)
    return {**metrics, "seconds": time.perf_counter() - began, **_finish(state, out, log)}


def _finish(state: State, out: Path, log: RunLog) -> dict[str, Any]:
    """The last checkpoint, the exported encoder, and where the run stands."""
    c, main, (path, weights) = state.config, state.dist.is_main, save(state, out)
    if main:
        prefix = "target_encoder."
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        meta = {"config": c.to_json(), "step": state.step}
        checkpoint.export_encoder(out / "encoder.safetensors", weights, meta)
    if stopped := state.step < c.steps:
        log.say(f"stopped at step {state.step} as asked; saved. To go on: the same command again")
        if main and (marker := os.environ.get("VIDLEARN_STOPPED_FILE")):
            Path(marker).touch()
    return {"step": state.step, "steps": c.steps, "stopped": stopped, "checkpoint": str(path)}
