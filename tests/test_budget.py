"""Predicted costs: against formulas by hand, published counts, and what a real pass keeps."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from vidlearn.budget import find_gpu, kept_lengths, plan, step_cost
from vidlearn.errors import ConfigError
from vidlearn.mask import Mask
from vidlearn.model import VJEPA
from vidlearn.recipes import recipe

TINY = replace(
    recipe("laptop"), size=32, width=24, depth=2, heads=2, pred_width=12, pred_depth=1,
    pred_heads=2, masks="vjepa", mask_cycle=False, batch=4,
)  # fmt: skip


def blocks(depth, width, tokens):
    """FLOPs of transformer blocks forward: 12 width^2 products a token, and attention."""
    return depth * tokens * (24 * width**2 + 4 * tokens * width)


def test_flops_are_those_worked_out_by_hand():
    n, d, p, patch = 4 * 4 * 4, 24, 12, 3 * 2 * 8 * 8
    target = 2 * n * patch * d + blocks(2, d, n)
    context = predictor = 0
    for kept, guessed in kept_lengths(TINY, 1):
        context += 2 * 2 * kept * patch * d  # a weight's gradient, but no pixel's: twice
        context += 3 * blocks(2, d, kept)
        n_both = kept + guessed  # in the last block only targets ask, and only they go on
        both = n_both * 6 * p**2 + guessed * (18 * p**2 + 4 * n_both * p)
        both += 2 * kept * d * p + 2 * guessed * p * d
        predictor += 3 * both
    found = step_cost(replace(TINY, bf16=False))
    assert found["target"] * 1e12 == pytest.approx(target, rel=1e-9)
    assert found["context"] * 1e12 == pytest.approx(context, rel=1e-9)
    assert found["predictor"] * 1e12 == pytest.approx(predictor, rel=1e-9)
    assert found["tflop"] == pytest.approx(found["target"] + found["context"] + found["predictor"])


def test_memory_is_what_a_real_pass_keeps():
    torch.manual_seed(0)
    model, kept, real = VJEPA(TINY.model()), {}, []
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    for pair in kept_lengths(TINY, 4):
        mask = Mask(*(torch.zeros(4, n, dtype=torch.long) for n in pair))
        with saved_tensors_hooks(keep, lambda x: x):
            model(torch.zeros(4, 3, 8, 32, 32), mask)
        real.append(sum(s.nbytes() for at, s in kept.items() if at not in weights))
        kept.clear()
    found = step_cost(replace(TINY, bf16=False), 4)
    assert found["saved_gib"] * 2**30 == pytest.approx(max(real), rel=0.01)
    at_once = step_cost(replace(TINY, bf16=False, token_var=0.1), 4)  # needs all masks together
    assert at_once["saved_gib"] * 2**30 == pytest.approx(sum(real), rel=0.01)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.target_encoder.parameters())
    rest = (found["memory_gib"] - found["saved_gib"]) * 2**30
    assert rest == pytest.approx(16 * trained + 4 * frozen)


@pytest.mark.parametrize(("name", "tflop"), [("vitl16-released", 2.55), ("vith16", 4.70)])
def test_published_counts(name, tflop):
    """Counted elsewhere from the released code, with its masks at 24 clips on a GPU."""
    found = step_cost(replace(recipe(name), mask_cut="vjepa1", pred_heads=16), 24)
    assert found["tflop"] / 24 == pytest.approx(tflop, rel=0.02)
    assert found["memory_gib"] < 80  # on one GPU, without computing anything twice


def test_less_memory_for_more_time():
    plain, again = (step_cost(replace(TINY, recompute=x), 4) for x in (False, True))
    assert again["saved_gib"] < 0.7 * plain["saved_gib"]


def test_kinds_of_masks_that_take_turns_cost_their_mean():
    both, turns = step_cost(TINY), step_cost(replace(TINY, mask_cycle=True))
    assert turns["target"] == both["target"]
    assert turns["context"] < both["context"] and turns["predictor"] == both["predictor"] / 2


def test_a_plan_scales_and_believes_a_measurement():
    one, two = (plan(TINY, gpus, gpu="NVIDIA H100 80GB HBM3") for gpus in (1, 2))
    assert one["gpu_hours"] == two["gpu_hours"] and two["clips_per_gpu"] == 2
    config = replace(TINY, batch=64, steps=3600)
    measured = plan(config, 1, gpu="cpu", clips_per_s=64.0, usd=3.0)
    assert measured["gpu_hours"] == 1.0 and measured["usd"] == 3 and measured["mfu"] is None
    assert find_gpu("NVIDIA H200")[0] == 989 and find_gpu("a100-SXM4-40GB")[0] == 312
    assert {find_gpu(x) for x in ("Radeon", "A1000", "L400")} == {(None, 0)}
    assert one["fits"] is True and measured["fits"] is None
    large = recipe("vjepa2-vitg16")
    alone, shared = (plan(replace(large, shard=x), 64) for x in (False, True))
    assert not alone["fits"] and shared["memory_gib_per_gpu"] < alone["memory_gib_per_gpu"] - 10
    for wrong in ({"mfu": 40}, {"mfu": 0}, {"usd": -1}, {"clips_per_s": 0}):
        with pytest.raises(ConfigError, match="a share above 0 up to 1, a price, and clips"):
            plan(TINY, 1, **wrong)
    with pytest.raises(ConfigError, match="3 GPUs: a batch of 4 needs one of its divisors"):
        plan(TINY, 3)
    with pytest.raises(ConfigError, match="'Radeon' has no peak here"):
        plan(TINY, 1, gpu="Radeon")


def test_clips_in_parts_need_less_memory_and_the_same_time():
    """What the backward pass needs is of one part; weights and optimiser stay as they are."""
    config = replace(recipe("gpu"), batch=64)
    whole, parts = (plan(replace(config, accumulate=n), 1) for n in (1, 4))
    assert parts["gpu_hours"] == whole["gpu_hours"]
    fixed = plan(replace(config, batch=8), 1)
    kept = (whole["memory_gib_per_gpu"] - fixed["memory_gib_per_gpu"]) / 56  # of a clip
    saved = whole["memory_gib_per_gpu"] - parts["memory_gib_per_gpu"]
    assert saved == pytest.approx(48 * kept, rel=0.02)
