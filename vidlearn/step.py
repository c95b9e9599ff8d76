"""One training step: the model as all processes train it, losses, gradients, new weights.

Input: a Config, a batch on the device. Output: a changed State, and the step's numbers. One CPU or
many GPUs: randomness follows from (seed, step, sample) alone. Taught in chapters 1, 9 and 11.
"""

import inspect
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as td
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vidlearn import loss as losses
from vidlearn import schedule
from vidlearn.batch import Batch
from vidlearn.dist import Dist
from vidlearn.errors import ConfigError
from vidlearn.mask import Mask, make_masks
from vidlearn.model import VJEPA
from vidlearn.recipes import Config
from vidlearn.tokens import gather_tokens
from vidlearn.transform import normalize


@dataclass
class State:
    """What a run carries from step to step; all of it is in the checkpoint or follows from it."""

    config: Config
    dist: Dist
    model: VJEPA
    wrapped: nn.Module  # the model, inside DistributedDataParallel when there are several ranks
    optimizers: list[torch.optim.Optimizer]  # AdamW, and with `muon_lr` Muon for the matrices
    votes: Tensor  # of all ranks: readable clips, wishes to stop, and to hear where time goes
    step: int = 0
    mark: Callable[[str], object] = lambda _: None  # is told what begins, to take times


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
    if config.compile and dist.device.type == "cuda":  # the fair cut has few lengths
        compile_blocks(model, dynamic=config.mask_cut != "fair")
    wrapped = _share(model, config, dist) if dist.world > 1 else model
    votes = torch.zeros(3, device=dist.device)
    state = State(config, dist, model, wrapped, make_optimizers(model, config), votes)
    # What backward does after its last gradient is waiting for other ranks.
    last = next(model.encoder.patch_embed.parameters())
    last.register_post_accumulate_grad_hook(partial(_mark_others, state))
    return state


def make_optimizers(model: VJEPA, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for all weights; with `muon_lr` Muon for the matrices (Jordan et al. 2024)."""
    if config.muon_lr and config.shard:
        raise ConfigError("--muon-lr wants whole matrices on each process: leave out --shard")
    groups, matrices = parameter_groups(model), []
    for group in groups if config.muon_lr else ():
        matrices += [p for p in group["params"] if p.ndim == 2]
        group["params"] = [p for p in group["params"] if p.ndim != 2]
    muon = {"params": matrices, "decay": True, "scale": config.muon_lr / config.lr}
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, fused=True)]
    return found + ([torch.optim.Muon([muon], lr=config.muon_lr)] if matrices else [])


def compile_blocks(model: VJEPA, *, dynamic: bool) -> None:
    """Compile each block, in place: names and weights stay; `dynamic` for lengths that vary."""
    for block in model.blocks():
        block.compile(dynamic=dynamic)


def _share(model: VJEPA, config: Config, dist: Dist) -> nn.Module:
    """The model as all ranks train it together: copies of it, or with --shard its parts."""
    if config.shard:
        mesh = init_device_mesh(dist.device.type, (dist.world,))
        half = fsdp.MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if config.bf16_grads else None)
        # It warns of changing its outputs in place, which nothing here does.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        for part in (*model.blocks(), model):
            fsdp.fully_shard(part, mesh=mesh, mp_policy=half)
        fsdp.register_fsdp_forward_method(model, "teach")
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
    for group in (group for each in state.optimizers for group in each.param_groups):
        group["lr"], group["weight_decay"] = lr * group.get("scale", 1.0), decay * group["decay"]
    return lr, decay, schedule.linear(state.step / end, *c.ema)


def _autocast(state: State) -> torch.autocast:
    c, kind = state.config, state.dist.device.type
    return torch.autocast(kind, torch.bfloat16, c.bf16_cpu if kind == "cpu" else c.bf16)


def forward_loss(
    state: State, batch: Batch, goal_BND: Tensor, masks: list[tuple[int, Mask]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss to differentiate, each clip's latent loss [B], and the regulariser.

    The batch holds normalised pixels, `goal_BND` the targets; a mask comes with its token's number.
    """
    c = state.config
    with _autocast(state):
        outputs = [state.wrapped(batch.clips, mask, kind) for kind, mask in masks]
    (predictions, contexts), terms = zip(*outputs), []
    ramp = schedule.ramp(state.step, *c.context_ramp)
    for z, (_, m) in zip(predictions, masks):
        ahead, seen = z.tensor_split([m.target_BK.shape[1]], dim=1)  # seen: of a dense model only
        terms.append(losses.latent_l1(ahead, gather_tokens(goal_BND, m.target_BK), c.loss_power))
        if c.context_loss:
            away = losses.context_distance(m.context_BK, m.target_BK, state.model.cfg.grid)
            near = losses.latent_l1(seen, gather_tokens(goal_BND, m.context_BK), distance_BK=away)
            terms[-1] = terms[-1] + c.context_loss * ramp * near
    per_clip = torch.stack(terms).mean(0)
    # The mean over the readable clips of all ranks: N processes minimise what one would.
    loss = (per_clip * batch.valid).sum() * state.dist.world / state.votes[0].clamp_min(1)
    reg = loss.new_zeros(())
    if c.var_cov:
        _mark_others(state)  # its means are over all ranks
        reg = torch.stack([losses.variance_covariance(x) for x in contexts]).mean()
        state.mark("loss")
    if c.token_var:
        loss = loss + c.token_var / c.accumulate * losses.token_variance([*predictions])
    return loss + c.var_cov / c.accumulate * reg, per_clip.detach(), reg.detach()


def backward(
    state: State, batch: Batch, goal_BND: Tensor, masks: list[tuple[int, Mask]], last: bool = True
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss of all masks; returns each clip's loss [B] and the regulariser.

    `last`: no more clips follow in this step, so the ranks share their gradients.
    """
    # One mask at a time takes 0.6 of the memory; only token_variance wants them all. The dearest
    # comes last: in its backward pass the ranks share gradients.
    turns = [[mask] for mask in sorted(masks, key=lambda mask: mask[1].context_BK.shape[1])]
    turns = [masks] if state.config.token_var else turns
    found, tokens = [], state.model.predictor.mask_tokens
    for turn in turns:
        copies: Any = state.wrapped if turn is not turns[-1] or not last else None
        quiet = isinstance(copies, DistributedDataParallel)
        with copies.no_sync() if quiet else nullcontext():  # ranks share gradients once
            loss, *numbers = forward_loss(state, batch, goal_BND, turn)
            # Ranks wait in the last turn for every weight, the tokens of earlier turns among them.
            used = sum(0 * p.sum() for p in tokens if p.grad is not None)
            (loss / len(turns) + used).backward()
        found.append(numbers)
    per_clip, reg = (torch.stack(x).mean(0) for x in zip(*found))
    return per_clip, reg


def _mark_others(state: State, *_: Any) -> None:
    if state.dist.world > 1:
        state.mark("others")


def train_step(
    state: State, batch: Batch, *, stop: bool = False, report: bool = False
) -> dict[str, Any]:
    """One step: masks, targets, forward and backward, clipping, AdamW, then the target encoder.

    Changes `state` in place. `batch` is this rank's share of the global batch, on its device;
    `stop` says that this rank was asked to stop, `report` that it wants to hear where time goes:
    all ranks learn of both (`state.votes`). With --accumulate a rank takes its clips in parts.
    Returns the step's numbers; tensors stay on the device, so that nothing waits for the GPU.
    """
    c, dist = state.config, state.dist
    valid = len(batch.indices) - len(batch.bad)
    _mark_others(state)
    state.votes.copy_(torch.tensor([float(valid), float(stop), float(report)]))
    dist.all_reduce(state.votes)
    state.mark("prepare")
    lr, decay, momentum = set_rates(state)
    indices = batch.indices.tolist()
    key: dict[str, Any] = {"seed": c.seed, "step": state.step, "indices": indices}
    state.mark("masks")
    masks = make_masks(c.masks, c.mask_cut, state.model.cfg.grid, cycle=c.mask_cycle, **key)
    kinds = [0] * len(masks) if c.mask_cycle or c.one_token else range(len(masks))
    pairs = [(kind, mask.to(dist.device)) for kind, mask in zip(kinds, masks)]
    state.mark("prepare")
    state.model.zero_grad()  # before the forward pass, which needs the memory
    found, share = [], len(indices) // c.accumulate
    for first in range(0, share * c.accumulate, share):
        rows, last = slice(first, first + share), first + share == share * c.accumulate
        clips = normalize(batch.clips[rows], c.input_norm)
        part = replace(batch, clips=clips, valid=batch.valid[rows])
        with _autocast(state):
            target = state.model.teach(part.clips)
        goal, its = losses.normalize_target(target, c.levels), [(k, m[rows]) for k, m in pairs]
        found.append(backward(state, part, goal, its, last))
    if dist.world > 1:
        state.mark("update")
    per_clip, reg = torch.cat([x for x, _ in found]), torch.stack([x for _, x in found]).mean()
    numbers = {"lr": lr, "weight_decay": decay, "ema": momentum, **update(state, momentum)}
    numbers |= {"loss_sum": (per_clip * batch.valid).sum(), "reg": reg}
    return {**numbers, "per_clip": per_clip, "target": target}


def update(state: State, momentum: float) -> dict[str, Tensor]:
    """From gradients to new weights, and a step further; returns the norms of the gradients."""
    c, found = state.config, {}
    limit = c.clip_grad if c.clip_grad and state.step >= c.clip_start else float("inf")
    for name in ("encoder", "predictor"):
        norm = nn.utils.clip_grad_norm_(getattr(state.model, name).parameters(), limit)
        found[f"grad_{name}"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    for optimizer in state.optimizers:
        optimizer.step()
    state.model.update_target(momentum)
    state.step += 1
    return found


def metrics_of(state: State, numbers: dict[str, Any]) -> dict[str, float]:
    """The step's numbers as floats, averaged over ranks where they differ."""
    target, total = numbers["target"], numbers["loss_sum"].clone()
    state.dist.all_reduce(total)
    loss = float(total / state.votes[0].clamp_min(1))
    shown = numbers.keys() - {"target", "loss_sum", "per_clip"}
    floats = {name: float(x) for name, x in numbers.items() if name in shown}
    rank = losses.effective_rank(target[:, ::4])
    health = {"spread": losses.spread(target), "effective_rank": rank}
    return {"step": state.step, "loss": loss, **floats, **health}
