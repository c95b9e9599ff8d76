"""One training run, from the first batch to the last checkpoint.

Input: a Config, a manifest, a folder for results. Output: checkpoints, `metrics.jsonl`,
`train.log`, `quarantine.jsonl` and the exported encoder. The same code runs in one process on a
CPU and in many on GPUs; every random number follows from (seed, step, sample), so a resumed run
and one on another number of processes see the same clips and masks. Chapters 1 and 11.
"""

import inspect
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as td
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vidlearn import checkpoint, schedule
from vidlearn.batch import Batch, ClipDataset, ShardedSampler, make_loader, to_device
from vidlearn.datasets import Manifest, Quarantine
from vidlearn.dist import Dist, init_distributed
from vidlearn.errors import ConfigError, VidlearnError
from vidlearn.loss import (
    context_distance,
    effective_rank,
    latent_l1,
    normalize_target,
    spread,
    token_variance,
    variance_covariance,
)
from vidlearn.mask import Mask, make_masks
from vidlearn.model import VJEPA
from vidlearn.recipes import Config
from vidlearn.runlog import RunLog
from vidlearn.tokens import gather_tokens
from vidlearn.transform import normalize

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # whatever ranks share it


@dataclass
class State:
    """What a run carries from step to step; all of it is in the checkpoint or follows from it."""

    config: Config
    dist: Dist
    model: VJEPA
    wrapped: nn.Module  # the model, inside DistributedDataParallel when there are several ranks
    optimizer: torch.optim.Optimizer
    votes: Tensor  # readable clips, and wishes to stop, of all ranks
    step: int = 0


def parameter_groups(model: VJEPA) -> list[dict[str, Any]]:
    """Encoder and predictor, each with and without weight decay (biases and norms: none)."""
    both = (model.encoder, model.predictor)
    parts = [[p for p in part.parameters() if p.requires_grad] for part in both]
    kinds = [(decay, part) for decay in (True, False) for part in parts]
    return [{"params": [p for p in part if (p.ndim > 1) == d], "decay": d} for d, part in kinds]


def build(config: Config, dist: Dist) -> State:
    """A fresh model and optimiser, equal on all ranks."""
    whole = (config.levels == 4, config.context_loss > 0)  # else some weights get no gradient
    if whole != (config.dense,) * 2:
        raise ConfigError("--dense trains with --levels 4 and a --context-loss, and they with it")
    torch.manual_seed(config.seed)
    model = VJEPA(config.model()).to(dist.device)
    on_gpu = dist.device.type == "cuda"
    if on_gpu and config.compile:  # the fair cut has few lengths, each worth a kernel of its own
        compile_blocks(model, dynamic=config.mask_cut != "fair")
    wrapped = _share(model, config, dist) if dist.world > 1 else model
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=config.lr, fused=True)
    return State(config, dist, model, wrapped, optimizer, torch.zeros(2, device=dist.device))


def compile_blocks(model: VJEPA, *, dynamic: bool) -> None:
    """Compile each block, in place: names and weights stay; `dynamic` for lengths that vary."""
    for block in model.blocks():
        block.compile(dynamic=dynamic)


def _share(model: VJEPA, config: Config, dist: Dist) -> nn.Module:
    """The model as all ranks train it together: copies of it, or with --shard its parts."""
    if config.shard:
        mesh = init_device_mesh(dist.device.type, (dist.world,))
        half = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if config.bf16_grads else None)
        # It warns of changing its outputs in place, which nothing here does.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        for part in (*model.blocks(), model):
            fully_shard(part, mesh=mesh, mp_policy=half)
        return model
    here = [dist.device.index] if dist.device.type == "cuda" else None
    names = inspect.signature(DistributedDataParallel).parameters
    # The only buffers are tables that never change. torch 2.13 renamed the option.
    sync = next(x for x in ("forward_sync_buffers", "broadcast_buffers") if x in names)
    options: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True}
    copies = DistributedDataParallel(model, device_ids=here, **options)
    if config.bf16_grads:
        copies.register_comm_hook(None, _half_mean)  # PyTorch's own does not work with gloo
    return copies


def _half_mean(_: None, bucket: td.GradBucket) -> torch.futures.Future[Tensor]:
    half = (bucket.buffer() / td.get_world_size()).bfloat16()
    work = td.all_reduce(half, async_op=True)
    return work.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))


def set_rates(state: State) -> tuple[float, float, float]:
    """Learning rate and weight decay into the optimiser; returns (lr, weight decay, momentum)."""
    c, end, step = state.config, max(1.0, state.config.steps - 1), state.step
    if c.rates == "vjepa1":  # made for a run of 5/4 the length, and a step ahead, as published
        end, step = c.steps * 1.25, state.step + 1
    span: dict[str, Any] = {"start": c.lr_start, "peak": c.lr, "final": c.lr_final}
    span |= {"anneal": c.anneal, "shape": c.fall, "warmup": c.warmup}
    lr = schedule.warmup_anneal(step, int(end) + 1, **span)
    decay = schedule.cosine(step / int(end), *c.weight_decay)
    for group in state.optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, decay if group["decay"] else 0.0
    return lr, decay, schedule.linear(state.step / end, *c.ema)


def forward_loss(
    state: State, batch: Batch, masks: list[Mask]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss to differentiate, each clip's latent loss [B], the regulariser, target features."""
    c = state.config
    clips = normalize(batch.clips, c.input_norm)
    kinds = [0] * len(masks) if c.mask_cycle or c.one_token else list(range(len(masks)))
    half = c.bf16 if clips.is_cuda else c.bf16_cpu
    with torch.autocast(clips.device.type, torch.bfloat16, half):
        target, predictions, contexts = state.wrapped(clips, masks, kinds)
    goal, ramp = normalize_target(target, c.levels), schedule.ramp(state.step, *c.context_ramp)
    losses = []
    for z, m in zip(predictions, masks):
        ahead, seen = z.tensor_split([m.target_BK.shape[1]], dim=1)  # seen: of a dense model only
        losses.append(latent_l1(ahead, gather_tokens(goal, m.target_BK), c.loss_power))
        if c.context_loss:
            away = context_distance(m.context_BK, m.target_BK, state.model.cfg.grid)
            near = latent_l1(seen, gather_tokens(goal, m.context_BK), distance_BK=away)
            losses[-1] = losses[-1] + c.context_loss * ramp * near
    per_clip = torch.stack(losses).mean(0)
    # The mean over the readable clips of all ranks: N processes minimise what one would.
    loss = (per_clip * batch.valid).sum() * state.dist.world / state.votes[0].clamp_min(1)
    reg = loss.new_zeros(())
    if c.var_cov:
        reg = torch.stack([variance_covariance(x) for x in contexts]).mean()
    if c.token_var:
        loss = loss + c.token_var * token_variance(predictions)
    return loss + c.var_cov * reg, per_clip.detach(), reg.detach(), target


def train_step(
    state: State, batch: Batch, *, stop: bool = False, mark: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """One step: masks, forward, backward, clipping, AdamW, then the target encoder.

    Changes `state` in place. `batch` is this rank's share of the global batch, on its device;
    `stop` says that this rank was asked to stop: all ranks learn of it (`state.votes[1]`); `mark`
    is told what begins, for those who take times.
    Returns the step's numbers; tensors stay on the device, so that nothing waits for the GPU.
    """
    c, dist = state.config, state.dist
    state.votes.copy_(torch.tensor([float(len(batch.indices) - len(batch.bad)), float(stop)]))
    dist.all_reduce(state.votes)
    lr, decay, momentum = set_rates(state)
    indices = batch.indices.tolist()
    key: dict[str, Any] = {"seed": c.seed, "step": state.step, "indices": indices}
    mark("masks_ms")
    masks = make_masks(c.masks, c.mask_cut, state.model.cfg.grid, cycle=c.mask_cycle, **key)
    masks = [mask.to(dist.device) for mask in masks]
    mark("prepare_ms")
    state.optimizer.zero_grad()  # before the forward pass, which needs the memory
    loss, per_clip, reg, target = forward_loss(state, batch, masks)
    numbers = {"lr": lr, "weight_decay": decay, "ema": momentum, **update(state, loss, momentum)}
    loss_sum = (per_clip * batch.valid).sum()
    return {**numbers, "loss_sum": loss_sum, "reg": reg, "target": target}


def update(state: State, loss: Tensor, momentum: float) -> dict[str, Tensor]:
    """From a loss to new weights, and a step further; returns the norms of its gradients."""
    c, found = state.config, {}
    loss.backward()
    limit = c.clip_grad if c.clip_grad and state.step >= c.clip_start else float("inf")
    for name in ("encoder", "predictor"):
        weights = getattr(state.model, name).parameters()
        norm = nn.utils.clip_grad_norm_(weights, limit)
        found[f"grad_{name}"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    state.optimizer.step()
    state.model.update_target(momentum)
    state.step += 1
    return found


def metrics_of(state: State, numbers: dict[str, Any]) -> dict[str, float]:
    """The step's numbers as floats, averaged over ranks where they differ."""
    target = numbers.pop("target")
    total = numbers.pop("loss_sum").clone()
    state.dist.all_reduce(total)
    loss = float(total / state.votes[0].clamp_min(1))
    if loss != loss:
        text = f"the loss is not a number at step {state.step}; the last checkpoint is intact"
        raise VidlearnError(f"{text}. Lower --lr, raise --warmup, or turn off --bf16")
    floats = {name: float(value) for name, value in numbers.items()}
    health = {"spread": spread(target), "effective_rank": effective_rank(target[:, ::4])}
    return {"step": state.step, "loss": loss, **floats, **health}


def save(state: State, out: Path) -> tuple[Path | None, dict[str, Any]]:
    """Write a checkpoint from rank 0; the others wait for it. Its path and weights, on rank 0."""
    path, about = None, {"config": state.config.to_json(), "step": state.step}
    model, optimizer = get_state_dict(state.model, state.optimizer, options=WHOLE)
    if state.dist.is_main:
        parts = {"model": model, "optimizer": optimizer}
        path = checkpoint.save(out / "checkpoints", state.step, {**about, **parts})
    state.dist.barrier()
    return path, model


def resume(state: State, out: Path) -> bool:
    """Go on from the newest checkpoint in `out`, if any. ConfigError: its choices are others."""
    path = checkpoint.latest(out / "checkpoints")
    if path is None:
        return False
    content = checkpoint.load(path)
    if differences := state.config.differences(Config.from_json(content["config"])):
        text = f"{path} belongs to another run ({'; '.join(differences)}: asked, saved)"
        raise ConfigError(f"{text}. Choose another --out, or the same choices")
    checkpoint.check_matches(content["model"], state.model, path)
    if 0 in content["optimizer"]["state"]:  # by number, not by name, up to version 0.1.0
        raise ConfigError(f"{path} is of version 0.1.0: a run goes on with that, or anew elsewhere")
    parts = {"model_state_dict": content["model"], "optim_state_dict": content["optimizer"]}
    set_state_dict(state.model, state.optimizer, **parts, options=WHOLE)
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
    how: dict[str, Any] = {"seed": c.seed, "backend": c.backend}
    dataset = ClipDataset(data, c.clip_spec(), c.transform(True), **how)
    place: dict[str, Any] = {"rank": dist.rank, "world": dist.world, "start_step": start_step}
    sampler = ShardedSampler(len(dataset), c.batch, seed=c.seed, **place)
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
    resumed = resume(state, out)
    log = RunLog(out, state.step, config, active=dist.is_main)
    quarantine = Quarantine(out / "quarantine.jsonl", len(data), config.max_bad_share)
    stop_file = os.environ.get("VIDLEARN_STOP_FILE", "")
    batches = load(config, data, dist, state.step) if state.step < config.steps else iter(())
    where = f"{dist.world} process(es) on {dist.device}; {len(data)} videos to train on"
    begins = "goes on at" if resumed else "starts at"
    log.say(f"{begins} step {state.step} of {config.steps} in {where}, of {data.source}")
    began, waited, first_step, metrics = time.perf_counter(), 0.0, state.step, {}
    with _stop_requests() as asked, log:
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
    seconds = time.perf_counter() - began
    return {**metrics, "seconds": seconds, **_finish(state, out, log)}


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
