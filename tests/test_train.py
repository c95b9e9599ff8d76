"""Training: golden curve, resume equals uninterrupted, two processes equal one, clean stops."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

from vidlearn import checkpoint
from vidlearn.datasets import open_data
from vidlearn.datasets.synth import make
from vidlearn.dist import init_distributed
from vidlearn.errors import ConfigError, VidlearnError
from vidlearn.loss import normalize_target
from vidlearn.mask import make_masks
from vidlearn.recipes import recipe
from vidlearn.runlog import RunLog, read_metrics
from vidlearn.step import (
    backward,
    build,
    compile_blocks,
    forward_loss,
    parameter_groups,
    set_rates,
    train_step,
)
from vidlearn.train import load, train
from vidlearn.transform import normalize

TINY = dataclasses.replace(
    recipe("laptop-adamw"),
    size=32, width=24, depth=1, heads=2, pred_width=12, pred_depth=1, pred_heads=2,
    batch=4, steps=8, warmup=2, workers=0, log_every=1, save_every=3,
)  # fmt: skip
GOLDEN = Path(__file__).parent / "golden_curve.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    return make(root, train=24, val=0, test=0, seed=0)


def overrides(config):
    """The command line that turns the recipe into `config`."""
    base, flags = recipe("laptop-adamw"), []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        option = f.name.replace("_", "-")
        if isinstance(value, bool) and value != getattr(base, f.name):
            flags += [f"--{option}" if value else f"--no-{option}"]
        elif value != getattr(base, f.name):
            values = value if isinstance(value, tuple) else [value]
            flags += [f"--{option}", *map(str, values)]
    return flags


def start(data, out, *, world=1, config=TINY, env=None):
    """Start `vidlearn train laptop-adamw` as a reader would, in one process or through torchrun."""
    command = [sys.executable, "-m"]
    if world > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m"]
    command += ["vidlearn", "train", "laptop-adamw", "--data", str(data), "--out", str(out)]
    return subprocess.Popen(
        command + overrides(config),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out + err


def losses(out):
    return {m["step"]: m["loss"] for m in read_metrics(Path(out) / "metrics.jsonl")}


def weights(out):
    return checkpoint.load(checkpoint.latest(Path(out) / "checkpoints"))["model"]


def test_golden_curve(data, tmp_path):
    """The first steps give the losses that are stored beside this test."""
    train(TINY, open_data(data), tmp_path)
    golden = {int(k): v for k, v in json.loads(GOLDEN.read_text()).items()}
    assert losses(tmp_path) == pytest.approx(golden, rel=2e-3)


def test_runs_repeat_to_the_bit(data, tmp_path):
    for name in ("a", "b"):
        train(TINY, open_data(data), tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_resume_equals_uninterrupted(data, tmp_path, muon_lr):
    """Killed without warning after a checkpoint, started again: the same bits."""
    config = dataclasses.replace(TINY, muon_lr=muon_lr)
    train(config, open_data(data), tmp_path / "whole")
    process = start(data, tmp_path / "cut", config=config)
    saved = tmp_path / "cut" / "checkpoints"
    deadline = time.time() + 60
    while checkpoint.latest(saved) is None and time.time() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert checkpoint.load(checkpoint.latest(saved))["step"] in (3, 6, 8)
    summary = train(config, open_data(data), tmp_path / "cut")
    assert summary["step"] == 8
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    a, b = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(a[k], b[k]) for k in a)


V2 = dict(width=36, heads=3, pred_width=24, pos="rope2", one_token=True, mask_cycle=False)
V21 = dict(pos="rope21", dense=True, levels=4, depth=4, context_loss=0.5, context_ramp=(0, 4))


KINDS = {"masks": "vjepa", "mask_cycle": False}  # both in a step, each with a token of its own


@pytest.mark.parametrize(
    "version",
    [{}, KINDS, V2, {**V2, **V21}, {"muon_lr": 0.02}],
    ids=["1", "1, all kinds", "2", "2.1", "muon"],
)
def test_two_processes_learn_what_one_learns(data, tmp_path, version):
    """Same clips, masks and mean loss; only the order of additions differs (1e-4 relative)."""
    config = dataclasses.replace(TINY, **version)
    for world in (1, 2):
        finish(start(data, tmp_path / str(world), world=world, config=config))
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)


@pytest.mark.parametrize("world", [1, 2])
def test_clips_taken_in_parts_give_the_gradients_of_the_whole(data, tmp_path, world):
    """--accumulate: the same curve; the fair cut has the same lengths in each part."""
    for parts in (1, 2):
        # Without the regulariser, whose statistics are those of a part.
        config = dataclasses.replace(TINY, **KINDS, var_cov=0.0, accumulate=parts, steps=4)
        finish(start(data, tmp_path / str(parts), world=world, config=config))
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)
    norms = [
        [m["grad_encoder"] for m in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in "12"
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_parts_that_do_not_come_out_even_are_refused(data):
    config = dataclasses.replace(TINY, accumulate=3)
    with pytest.raises(ConfigError, match="by 1 processes in 3 parts each: give a multiple of 3"):
        load(config, open_data(data), init_distributed())


@pytest.mark.parametrize(
    ("options", "off"), [({"shard": True}, 1e-6), ({"bf16_grads": True}, 1e-3)], ids=str
)
def test_other_ways_to_share_a_model(data, tmp_path, options, off):
    """Weights shared out, or gradients in half the bytes: the curve of two plain copies."""
    plain = dataclasses.replace(TINY, **KINDS)
    finish(start(data, tmp_path / "plain", world=2, config=plain))
    config = dataclasses.replace(plain, **options)
    finish(start(data, tmp_path / "other", world=2, config=config))
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=off)
    # AdamW does not notice gradients that are all too long; their norms do.
    norms = [
        [m["grad_encoder"] for m in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("other", "plain")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=30 * off)
    a, b = weights(tmp_path / "other"), weights(tmp_path / "plain")
    assert a.keys() == b.keys()
    apart = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
    assert apart.mean() < 100 * off * TINY.lr


def test_a_run_goes_on_with_shared_weights_where_one_process_stopped(data, tmp_path):
    for name in ("whole", "cut"):
        train(TINY, open_data(data), tmp_path / name)
    (tmp_path / "cut" / "checkpoints" / "step-00000008.pt").unlink()
    shared = dataclasses.replace(TINY, shard=True)
    text = finish(start(data, tmp_path / "cut", world=2, config=shared))
    assert "goes on at step 6 of 8" in text
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.mark.parametrize(
    "version",
    [{}, {"token_var": 0.5}, V2, {**V2, **V21}],
    ids=["1", "token variance", "2", "2.1"],
)
def test_one_mask_at_a_time_equals_all_at_once(data, version):
    """The gradients of turns with one mask each, against those of the mean loss of all masks."""
    config = dataclasses.replace(TINY, **{"masks": "vjepa", "mask_cycle": False, **version})
    batch, found = next(load(config, open_data(data), init_distributed())), []
    for together in (False, True):
        state = build(config, init_distributed())
        with torch.no_grad():  # predictions that vary about as much as token_variance asks for
            state.model.predictor.predictor_proj.weight *= 22 if config.token_var else 1
        pixels = dataclasses.replace(batch, clips=normalize(batch.clips, config.input_norm))
        goal = normalize_target(state.model.teach(pixels.clips), config.levels)
        key = {"seed": 0, "step": 0, "indices": range(4), "cycle": False}
        masks = make_masks(config.masks, "fair", state.model.cfg.grid, **key)
        pairs = [(0 if config.one_token else kind, mask) for kind, mask in enumerate(masks)]
        state.votes[0] = 4
        if together:
            loss, per_clip, reg = forward_loss(state, pixels, goal, pairs)
            loss.backward()
        else:
            per_clip, reg = backward(state, pixels, goal, pairs)
        found.append([per_clip, reg, *(p.grad for p in state.model.parameters())])
    assert len(pairs) == 2 and found[0][1] > 0
    for one, both in zip(*found):
        assert (one is None) == (both is None)
        torch.testing.assert_close(one, both, rtol=1e-5, atol=1e-8)


def step_of(data, **options):
    config = dataclasses.replace(TINY, **options)
    batch = next(load(config, open_data(data), init_distributed()))
    state = build(config, init_distributed())
    return state, train_step(state, batch)


def test_the_context_counts_as_its_ramp_says(data):
    """Nothing before the ramp, all after it, half of it halfway."""
    dense = {**V2, **V21, "context_ramp": (10, 20)}
    config = dataclasses.replace(TINY, **dense)
    batch, found = next(load(config, open_data(data), init_distributed())), {}
    for step, weight in ((0, 0.0), (0, 0.5), (15, 0.5), (20, 0.5)):
        state = build(config, init_distributed())
        state.config = dataclasses.replace(config, context_loss=weight)
        how = {"seed": 0, "step": 0, "indices": range(4), "cycle": False}
        masks = make_masks("future", "fair", state.model.cfg.grid, **how)
        state.step, state.votes[0] = step, 4
        pixels = dataclasses.replace(batch, clips=normalize(batch.clips, config.input_norm))
        goal = normalize_target(state.model.teach(pixels.clips), config.levels)
        loss, *_ = forward_loss(state, pixels, goal, [(0, mask) for mask in masks])
        found[step, weight] = loss.item()
    plain, half, whole = found[0, 0.0], found[15, 0.5], found[20, 0.5]
    assert found[0, 0.5] == plain and whole > 1.1 * plain
    assert half - plain == pytest.approx((whole - plain) / 2, rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"context_loss": 0.5}, {**V2, **V21, "context_loss": 0.0}, {**V2, **V21, "levels": 1}],
)
def test_a_dense_model_is_trained_whole_or_not(options):
    with pytest.raises(ConfigError, match="--dense trains with --levels 4 and a --context-loss"):
        build(dataclasses.replace(TINY, **options), init_distributed())


def test_gradients_are_clipped_from_the_step_on_that_is_asked_for(data):
    """Clipped to almost nothing, AdamW's first step is as long: the gradients tell."""
    norms = []
    for start_at in (0, 1):
        state, _ = step_of(data, clip_grad=1e-6, clip_start=start_at)
        grads = [p.grad for p in state.model.encoder.parameters() if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())
    assert norms[0] == pytest.approx(1e-6, rel=0.01) and norms[1] > 1e-4


headers = Path(sysconfig.get_path("include"), "Python.h")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") and headers.exists()),
    reason="torch.compile on a CPU needs g++ and Python's headers",
)


@pytest.mark.parametrize(
    "option", ["recompute", "bf16_cpu", pytest.param("compile", marks=needs_compiler)]
)
def test_other_ways_to_compute_a_step(data, option):
    """Blocks computed twice or compiled: the same gradients; half precision: nearly."""
    found, off = [], {"recompute": 0, "bf16_cpu": 0.05, "compile": 1e-5}[option]
    batch = next(load(TINY, open_data(data), init_distributed()))
    for on in (False, True):
        config = dataclasses.replace(TINY, depth=2, mask_cycle=False, **{option: on})
        state = build(config, init_distributed())
        if option == "compile" and on:  # what `build` does on CUDA
            compile_blocks(state.model, dynamic=True)
        numbers = train_step(state, batch)
        grads = [p.grad for p in state.model.parameters() if p.grad is not None]
        found.append((numbers["loss_sum"], grads))
    (a, ours), (b, theirs) = found
    assert a == b if not off else abs(a - b) <= off * a
    for x, y in zip(ours, theirs, strict=True):
        assert torch.equal(x, y) if not off else (x - y).norm() <= off * x.norm() + 1e-8
    assert off == 0 or any(not torch.equal(x, y) for x, y in zip(ours, theirs))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("cut", ["fair", "vjepa1"])
def test_blocks_are_compiled_once(data, cut):
    """The fair cut has the same lengths at every step; where they vary, the kernels allow it."""
    config = dataclasses.replace(TINY, masks="vjepa", mask_cycle=False, mask_cut=cut)
    batches = load(config, open_data(data), init_distributed())
    state, graphs = build(config, init_distributed()), []
    torch._dynamo.reset()
    compile_blocks(state.model, dynamic=cut != "fair")
    for _ in range(4):
        train_step(state, next(batches))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs)) == 1, graphs


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_stop_saves_and_says_how_to_go_on(data, tmp_path, how):
    config = dataclasses.replace(TINY, steps=100_000, save_every=100_000)
    stop, stopped = tmp_path / "stop", tmp_path / "stopped"
    env = {"VIDLEARN_STOP_FILE": str(stop), "VIDLEARN_STOPPED_FILE": str(stopped)}
    process = start(data, tmp_path / "run", config=config, env=env)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.time() + 60
    while not (log.exists() and log.read_text()) and time.time() < deadline:
        time.sleep(0.05)
    if how == "signal":
        process.send_signal(signal.SIGINT)
    else:
        stop.touch()
    text = finish(process)
    assert "To go on: the same command again" in text and stopped.exists()
    step = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))["step"]
    assert 0 < step < 100_000


def test_torchrun_is_told_why_a_rank_failed(data, tmp_path):
    config = dataclasses.replace(TINY, lr=1e30, lr_start=1e30, clip_grad=0.0)
    text = finish(start(data, tmp_path / "run", world=2, config=config), code=1)
    cause = text.split("Root Cause")[1]
    assert "VidlearnError: the loss is not a number at step" in cause, text


def test_a_finished_run_is_left_alone(data, tmp_path):
    train(TINY, open_data(data), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(TINY, open_data(data), tmp_path)["step"] == 8
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    train(dataclasses.replace(TINY, steps=2), open_data(data), tmp_path)
    with pytest.raises(ConfigError, match=r"another run \(steps: 8, 2"):
        train(TINY, open_data(data), tmp_path)


def test_too_few_videos_and_too_many_unreadable(data, tmp_path):
    with pytest.raises(ConfigError, match="24 training videos, but --batch is 64"):
        train(dataclasses.replace(TINY, batch=64), open_data(data), tmp_path / "a")
    manifest = open_data(data)
    for row in manifest.rows[:6]:
        Path(row.path).rename(row.path + ".away")
    try:
        with pytest.raises(VidlearnError, match="quarantine"):
            train(TINY, manifest, tmp_path / "b")
        patient = dataclasses.replace(TINY, max_bad_share=0.5)
        train(patient, manifest, tmp_path / "c")
    finally:
        for row in manifest.rows[:6]:
            Path(row.path + ".away").rename(row.path)
    bad = read_metrics(tmp_path / "c" / "metrics.jsonl")[-1]["bad_videos"]
    named = (tmp_path / "c" / "quarantine.jsonl").read_text().splitlines()
    assert 0 < bad == len(named) <= 6


def test_groups_and_rates(data):
    state = build(dataclasses.replace(TINY, muon_lr=0.0), init_distributed())
    groups = parameter_groups(state.model)
    assert all(p.ndim > 1 for g in groups if g["decay"] for p in g["params"])
    assert all(p.ndim == 1 for g in groups if not g["decay"] for p in g["params"])
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    assert sum(p.numel() for g in groups for p in g["params"]) == trained
    state.step = TINY.steps - 1
    lr, decay, momentum = set_rates(state)
    assert lr == pytest.approx(TINY.lr_final) and momentum == pytest.approx(1.0)
    (adamw,) = state.optimizers
    assert [g["weight_decay"] for g in adamw.param_groups] == [decay, decay, 0.0, 0.0]


def test_muon_takes_the_matrices_and_adamw_the_rest(data):
    state = build(dataclasses.replace(TINY, muon_lr=0.02), init_distributed())
    adamw, muon = ([g["params"] for g in each.param_groups] for each in state.optimizers)
    assert all(p.ndim == 2 for p in muon[0]) and all(p.ndim != 2 for g in adamw for p in g)
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    assert sum(p.numel() for g in (*adamw, *muon) for p in g) == trained
    state.step = TINY.warmup
    lr, decay, _ = set_rates(state)
    group = state.optimizers[1].param_groups[0]
    assert lr == pytest.approx(TINY.lr) and group["lr"] == pytest.approx(0.02)
    assert group["weight_decay"] == decay
    before = [p.detach().clone() for p in muon[0]]
    train_step(state, next(load(state.config, open_data(data), state.dist)))
    for old, p in zip(before, muon[0]):  # Muon evens out the directions of the gradient
        moved, grad = (torch.linalg.svdvals(x) for x in (p - (1 - 0.02 * decay) * old, p.grad))
        assert moved.median() / moved.max() > 2 * grad.median() / grad.max(), old.shape


def test_muon_and_shared_weights_are_refused(data):
    both = dataclasses.replace(TINY, muon_lr=0.02, shard=True)
    with pytest.raises(ConfigError, match="--muon-lr wants whole matrices"):
        build(both, init_distributed())


def test_log_drops_what_a_dead_run_left_behind(tmp_path):
    numbers = {"step": 0, "loss": 1.0, "spread": 1.0, "effective_rank": 2.0, "clips_per_s": 1.0,
               "wait_share": 0.0}  # fmt: skip
    log = RunLog(tmp_path, 0, TINY, active=True)
    for step in (1, 2, 3):
        log.write({**numbers, "step": step}, bad=0)
    RunLog(tmp_path, 2, TINY, active=True)
    assert [m["step"] for m in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "train.log").read_text().count("step ") == 3
