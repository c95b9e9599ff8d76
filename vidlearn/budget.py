"""What a training step and a run cost, before they are run: FLOPs, memory, GPU-hours, money.

Input: a Config. Output: numbers. The real model is run on tensors that have shapes but no
content, so every layer counts itself; a laptop predicts ViT-g in seconds. Traded: only matrix
products, convolutions and attention count (2 FLOPs for a product and a sum; what a backward pass
computes again does not count), and memory is what PyTorch keeps for the backward pass, without
the allocator's gaps. Taught in chapter 9.
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from vidlearn.errors import ConfigError
from vidlearn.mask import Mask, make_masks
from vidlearn.model import VJEPA
from vidlearn.recipes import Config

# Dense bf16 products of the data sheets, in TFLOP/s; the first name found in the GPU's own counts.
PEAKS = {
    "B200": 2250, "H200": 989, "H100": 989, "GH200": 989, "A100": 312, "L40S": 362, "L4": 121,
    "4090": 165, "A10": 125, "V100": 125, "T4": 65,
}  # fmt: skip


def peak_tflops(gpu: str) -> float | None:
    """The dense bf16 peak of a GPU by a part of its name, or None."""
    return next((peak for name, peak in PEAKS.items() if name in gpu), None)


def kept_lengths(config: Config, clips: int) -> list[tuple[int, int]]:
    """Context and target tokens of each kind of mask: what `clips` a rank keep, on average."""
    grid, rows = config.model().grid, range(clips)
    how: dict[str, Any] = {"seed": config.seed, "indices": rows, "cycle": False}
    steps = range(1 if config.mask_cut == "fair" else 20)
    drawn = [make_masks(config.masks, config.mask_cut, grid, step=s, **how) for s in steps]
    shapes = [[(m.context_BK.shape[1], m.target_BK.shape[1]) for m in masks] for masks in drawn]
    return [
        (round(sum(c for c, _ in kind) / len(kind)), round(sum(t for _, t in kind) / len(kind)))
        for kind in zip(*shapes)
    ]


def step_cost(config: Config, clips: int = 1) -> dict[str, float]:
    """TFLOPs and GiB of one step with `clips` on one device, with all its weights there.

    tflop, and its parts target, context, predictor (with their backward passes); memory_gib:
    weights, gradients, AdamW's moments, the target encoder, and what the backward pass needs.
    """
    cfg, lengths = config.model(), kept_lengths(config, clips)
    kept: dict[int, Any] = {}
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attention_back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    own = {
        attention: lambda q, k, v, *_, **__: sdpa_flop(q, k, v),
        attention_back: lambda _, q, k, v, *__, **___: 2 * sdpa_flop(q, k, v),
    }
    with torch.device("meta"):
        model = VJEPA(cfg)
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        model.to_empty(device="cpu")
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(x: Tensor) -> Tensor:
            if x.untyped_storage()._cdata not in weights:
                kept[x.untyped_storage()._cdata] = x.untyped_storage()
            return x

        masks = [Mask(*(torch.zeros(clips, n, dtype=torch.long) for n in pair)) for pair in lengths]
        pixels = torch.empty(clips, 3, cfg.frames, cfg.size, cfg.size)
        half = torch.autocast("cpu", torch.bfloat16, config.bf16)
        with saved_tensors_hooks(keep, lambda x: x), half:
            _, predictions, _ = model(pixels, masks, [0] * len(masks))
        torch.stack([z.float().mean() for z in predictions]).sum().backward()
    counts = {name: sum(ops.values()) / 1e12 for name, ops in counter.get_flop_counts().items()}
    target, turns = counts["VJEPA.target_encoder"], len(lengths) if config.mask_cycle else 1
    predictor, total = counts["VJEPA.predictor"] / turns, counter.get_total_flops() / 1e12
    context = (total - target) / turns - predictor  # kinds of masks may take turns
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    saved = sum(storage.nbytes() for storage in kept.values())
    return {
        "tflop": target + context + predictor,
        "target": target, "context": context, "predictor": predictor, "parameters": trained,
        "memory_gib": (16 * trained + 4 * frozen + saved) / 2**30, "saved_gib": saved / 2**30,
    }  # fmt: skip


def plan(
    config: Config, gpus: int, *, gpu: str = "H100", mfu: float = 0.4, usd: float = 2.5,
    clips_per_s: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """GPU-hours, days and price of a run on `gpus`, at a share `mfu` of the GPU's peak.

    `clips_per_s` of one GPU, as `vidlearn bench step` measures it, is believed in place of the
    peak and the share. `usd` is the price of a GPU for an hour. ConfigError: an unknown GPU.
    """
    peak = peak_tflops(gpu)
    if gpus < 1 or config.batch % gpus:
        raise ConfigError(f"--gpus {gpus}: a batch of {config.batch} needs one of its divisors")
    if peak is None and not clips_per_s:
        known = f"known: {', '.join(PEAKS)}"
        raise ConfigError(f"--gpu {gpu!r} has no peak here ({known}); measure: --clips-per-s")
    clips = config.batch // gpus
    one = step_cost(config, min(clips, 8))  # per clip alike, up to the weights
    per_clip = one["tflop"] / min(clips, 8)
    rate = clips_per_s or mfu * float(peak or 0) / per_clip
    hours = config.batch * config.steps / rate / 3600
    saved = one["saved_gib"] / min(clips, 8)
    return {
        "gpus": gpus, "gpu": gpu, "clips_per_gpu": clips, "steps": config.steps,
        "million_parameters": round(one["parameters"] / 1e6, 1),
        "tflop_per_clip": round(per_clip, 3),
        "exaflop": round(per_clip * config.batch * config.steps / 1e6, 3),
        "clips_per_s_per_gpu": round(rate, 2), "gpu_hours": round(hours, 1),
        "days": round(hours / gpus / 24, 2), "usd": round(hours * usd),
        "memory_gib_per_gpu": round(one["memory_gib"] + saved * (clips - min(clips, 8)), 1),
        "mfu": None if peak is None else round(rate * per_clip / peak, 3),
    }  # fmt: skip
