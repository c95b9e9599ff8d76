"""What a training step and a run cost, before they are run: FLOPs, memory, GPU-hours, money.

Input: a Config. Output: numbers. The real model runs on tensors with shapes but no content. Traded:
only matrix products and attention count (2 FLOPs for a product and a sum; not what a backward pass
computes again), and memory is what PyTorch keeps, without the allocator's gaps. Chapter 9.
"""

import re
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from vidlearn.errors import ConfigError
from vidlearn.mask import Mask, make_masks
from vidlearn.model import VJEPA
from vidlearn.recipes import Config

# Of the data sheets: dense products in bfloat16 (V100, T4: float16), TFLOP/s, and memory, GB.
GPUS = {
    "B200": (2250, 180), "H200": (989, 141), "GH200": (989, 96), "H100": (989, 80),
    "A100": (312, 80), "L40S": (362, 48), "L40": (181, 48), "A10": (125, 24), "4090": (165, 24),
    "L4": (121, 24), "V100": (125, 32), "T4": (65, 16),
}  # fmt: skip


def gpu_kind(name: str) -> str:
    """The one of GPUS that a GPU's name holds as a word, or nothing."""
    words = re.split(r"[^A-Z0-9]+", name.upper())
    return next((word for word in GPUS if word in words), "")


def find_gpu(name: str) -> tuple[float | None, float]:
    """Peak and memory of a GPU of this name, or (None, 0)."""
    return GPUS.get(gpu_kind(name), (None, 0))


def kept_lengths(config: Config, clips: int) -> list[tuple[int, int]]:
    """Context and target tokens of each kind of mask: what `clips` a rank keep, on average."""
    grid, rows = config.model().grid, range(clips)
    how: dict[str, Any] = {"seed": config.seed, "indices": rows, "cycle": False}
    steps = range(1 if config.mask_cut == "fair" else 20)
    drawn = [make_masks(config.masks, config.mask_cut, grid, step=s, **how) for s in steps]
    shapes = [[(m.context_BK.shape[1], m.target_BK.shape[1]) for m in masks] for masks in drawn]
    return [(c, t) for c, t in np.rint(np.mean(shapes, 0)).astype(int).tolist()]


@cache
def step_cost(config: Config, clips: int = 1) -> dict[str, float]:
    """TFLOPs and GiB of one step with `clips` on one device; parts with their backward passes.

    memory_gib: weights, gradients, AdamW's moments, target encoder, what the backward pass needs.
    """
    cfg, lengths = config.model(), kept_lengths(config, clips)
    kept: dict[int, Any] = {}
    attention, ops = "_scaled_dot_product_flash_attention_for_cpu", torch.ops.aten
    own = {
        getattr(ops, attention): lambda q, k, v, *_, **__: sdpa_flop(q, k, v),
        getattr(ops, f"{attention}_backward"): lambda _, *qkv, **__: 2 * sdpa_flop(*qkv[:3]),
    }
    with torch.device("meta"):
        model = VJEPA(cfg)
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        model.to_empty(device="cpu")
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(x: Tensor) -> Tensor:
            kept[x.untyped_storage()._cdata] = x.untyped_storage()
            return x

        half = torch.autocast("cpu", torch.bfloat16, config.bf16)
        pixels, saved = torch.empty(clips, 3, cfg.frames, cfg.size, cfg.size), []
        for pair in lengths:
            mask = Mask(*(torch.zeros(clips, n, dtype=torch.long) for n in pair))
            with saved_tensors_hooks(keep, lambda x: x), half:
                prediction, _ = model(pixels, mask)
            prediction.float().mean().backward()
            saved.append(sum(x.nbytes() for key, x in kept.items() if key not in weights))
            kept.clear()
        with half:
            model.teach(pixels)
    counts = {name: sum(ops.values()) / 1e12 for name, ops in counter.get_flop_counts().items()}
    target, turns = counts["VJEPA.target_encoder"], len(lengths) if config.mask_cycle else 1
    predictor, total = counts["VJEPA.predictor"] / turns, counter.get_total_flops() / 1e12
    context = (total - target) / turns - predictor  # kinds of masks may take turns
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    keeps = sum(saved) if config.token_var else max(saved)  # else one mask at a time
    return {
        "tflop": target + context + predictor,
        "target": target, "context": context, "predictor": predictor, "parameters": trained,
        "frozen": frozen, "kinds": 1 if config.mask_cycle or config.token_var else len(lengths),
        "memory_gib": (16 * trained + 4 * frozen + keeps) / 2**30, "saved_gib": keeps / 2**30,
    }  # fmt: skip


def plan(
    config: Config, gpus: int, *, gpu: str = "H100", mfu: float = 0.4, usd: float = 2.5,
    clips_per_s: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """GPU-hours, days and price (`usd` an hour) of a run at a share `mfu` of the GPUs' peak.

    `clips_per_s` of one GPU, as `vidlearn bench step` measures it, is believed in place of both.
    `fits`: does the memory leave a tenth free? That videos are read in time is taken for granted.
    """
    (peak, room), clips = find_gpu(gpu), config.batch // max(1, gpus)
    if gpus < 1 or config.batch % gpus:
        raise ConfigError(f"{gpus} GPUs: a batch of {config.batch} needs one of its divisors")
    if peak is None and clips_per_s is None:
        known = ", ".join(GPUS)
        raise ConfigError(f"--gpu {gpu!r} has no peak here (known: {known}). Give --clips-per-s")
    if not 0 < mfu <= 1 or usd < 0 or (clips_per_s is not None and clips_per_s <= 0):
        text = f"--mfu {mfu}, --usd {usd}, --clips-per-s {clips_per_s}"
        raise ConfigError(f"{text}: a share above 0 up to 1, a price, and clips above 0")
    few = min(clips, 8)  # per clip alike, up to the weights
    one = step_cost(config, few)
    per_clip, saved = one["tflop"] / few, one["saved_gib"] / few
    rate = clips_per_s or mfu * float(peak or 0) / per_clip
    hours = config.batch * config.steps / rate / 3600
    # Weights and optimiser may be shared out; the block that is whole for a moment is not counted.
    whole = (one["memory_gib"] - few * saved) / (gpus if config.shard else 1)
    memory = whole + clips / config.accumulate * saved
    found = {
        "million_parameters": one["parameters"] / 1e6, "tflop_per_clip": per_clip,
        "exaflop": per_clip * config.batch * config.steps / 1e6, "clips_per_s_per_gpu": rate,
        "gpu_hours": hours, "days": hours / gpus / 24, "usd": hours * usd,
        "memory_gib_per_gpu": memory, "mfu": peak and rate * per_clip / peak,
    }  # fmt: skip
    told = {"gpus": gpus, "gpu": gpu, "clips_per_gpu": clips, "steps": config.steps}
    told |= {name: x if x is None else float(f"{x:.4g}") for name, x in found.items()}
    return {**told, "fits": memory * 1.0737 < 0.9 * room if room else None}
