"""The rebuilt published step (tools/published_loop.py) and ours compute the same."""

import sys

import pytest
import torch
from conftest import ROOT

from vidlearn import dist, mask, step
from vidlearn.batch import Batch
from vidlearn.recipes import Config

sys.path.insert(0, str(ROOT / "tools"))
from published_loop import PublishedLoop

SMALL = Config(
    size=64, frames=4, width=48, depth=2, heads=3, pred_width=36, pred_depth=2, pred_heads=3,
    mask_cut="vjepa1", batch=3, lr=1e-2, lr_start=1e-2, warmup=0, clip_grad=0.05,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_to_our_step(dtype, monkeypatch):
    """Losses, norms, gradients of three steps, and all weights after them."""
    monkeypatch.setattr(step, "normalize", lambda clips, _: clips)
    state = step.build(SMALL, dist.init_distributed())
    state.model.to(dtype)
    with torch.no_grad():  # a fresh model's biases and mask tokens are 0: their terms must count
        for p in state.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    theirs = PublishedLoop(state.model.cfg, state.model.state_dict())
    tolerance = {"rtol": 0, "atol": 1e-8 if dtype == torch.float64 else 1e-5}  # goals: float32
    seen, n = [], torch.arange(SMALL.batch)

    def keep_gradients(*_):
        seen.append({k: p.grad.clone() for k, p in state.model.named_parameters() if k[0] != "t"})

    state.optimizers[0].register_step_pre_hook(keep_gradients)
    for i in range(3):
        clips = torch.randn(SMALL.batch, 3, SMALL.frames, SMALL.size, SMALL.size, dtype=dtype)
        numbers = step.train_step(state, Batch(clips, n, n, n >= 0, []))
        key = dict(seed=SMALL.seed, step=i, indices=n.tolist(), cycle=False)
        masks = mask.make_masks("vjepa", "vjepa1", state.model.cfg.grid, **key)
        rates = numbers["lr"], numbers["weight_decay"], numbers["ema"]
        grads = {}
        hook = theirs.optimizer.register_step_pre_hook(
            lambda *_, grads=grads: grads.update(
                {f"{part}.{k}": p.grad.clone() for part, net in theirs.parts().items()
                 for k, p in net.named_parameters() if p.grad is not None}
            )
        )  # fmt: skip
        log = theirs.step(clips, masks, rates, SMALL.clip_grad)
        hook.remove()
        assert log["loss"] == pytest.approx(numbers["loss_sum"].item() / len(n), abs=1e-5)
        ours = numbers["grad_encoder"], numbers["grad_predictor"]
        assert [x.item() for x in ours] == pytest.approx(
            [log["norm_encoder"], log["norm_predictor"]]
        )
        torch.testing.assert_close(grads, seen[i], **tolerance)
    weights = {f"{n}.{k}": v for n, x in theirs.parts().items() for k, v in x.state_dict().items()}
    if dtype == torch.float64:  # in float32 AdamW turns a gradient's last digit into a whole step
        torch.testing.assert_close(weights, dict(state.model.state_dict()), rtol=0, atol=1e-5)


def test_replays_the_stored_run():
    """All iterations of the released code's own run: losses, regulariser, weights at the end."""
    import test_parity as parity

    name = "v1_train.safetensors"
    case, t = parity.load(name)
    weights, o = parity.part(t, "w0."), case["optimization"]
    weights |= {f"target_{k}": v for k, v in weights.items() if k.startswith("encoder.")}
    weights = {k: v.double() for k, v in weights.items()}
    theirs = PublishedLoop(parity.config_of(name, weights), weights)
    for i, row in enumerate(case["csv"]):
        clips = t[f"in.clip_int8.{case['batch_for_iteration'][i]}"].double() / 32
        rates = case["lr"][i], case["wd_per_group"][i][0], case["momentum"][i]
        limit = o["clip_grad"] if i // o["ipe"] > o["warmup"] else None
        numbers = theirs.step(clips, parity.masks_of(name, f"in.it{i}.mask_"), rates, limit or 0)
        stored = dict(zip(case["csv_header"], row))
        assert numbers["jepa"] == pytest.approx(stored["loss-jepa"], abs=6e-6), f"iteration {i}"
        assert numbers["reg"] == pytest.approx(stored["reg-loss"], abs=6e-6), f"iteration {i}"
    parity.check(
        name,
        {f"{n}.{k}": v for n, x in theirs.parts().items() for k, v in x.state_dict().items()},
        parity.part(t, "out.final."),
    )
