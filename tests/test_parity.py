"""The same numbers as the published V-JEPA code, on stored inputs and weights.

The cases are data files outside the repository, in the folder VIDLEARN_PARITY; their metadata hold
sizes and options. Our float64 must be within 2e-6, and our float32 within five times what the
published code's own float32 is off. What the package cannot do is in NOT_YET, and is skipped.
"""

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

from vidlearn import errors, mask, model, probe, sample, schedule, tokens, train, transform

FOLDER = ROOT / os.environ.get("VIDLEARN_PARITY", "../shared/parity")
if not FOLDER.is_dir():
    pytest.skip(f"no parity data at {FOLDER}; set VIDLEARN_PARITY", allow_module_level=True)
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".md")
NOT_YET = {
    "v1_clip_aggregation*": "evaluation takes one clip of a video, not many clips and views",
    "v1_*ckpt*": "nothing reads an official checkpoint file",
    "v1_probe_?*": "AttentiveProbe has one form: one block, with norms and MLP",
    "v1_train_reg*": "no other exponent of the loss, no variance term on the predictions",
    "v1_tube*": "no random tube masks",
    "v2_ac_predictor*": "no action-conditioned predictor",
    "v2_classifier*": "AttentiveProbe has no self-attention blocks before its own",
    "v2_init_stats*": "weights of deeper blocks do not start smaller, as those of V-JEPA 2 do",
    "v2_masks_multiseq*": "clips of a batch are equally long: no buckets, no complements as masks",
    "v2_train*": "two kinds of masks in one step cannot share a mask token; no buckets",
    "v21_forward*": "of V-JEPA 2.1 only the rotation: no image tokens, levels, dense loss",
}
COVERED = []  # patterns of files, from `files`
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def fits(name, patterns):
    return [pattern for pattern in patterns if fnmatch(name, pattern)]


def files(*patterns):
    COVERED.extend(patterns)
    return [name for name in NAMES if fits(name, patterns) and not fits(name, NOT_YET)]


@cache
def load(name):
    if name.endswith(".json"):
        return json.loads((FOLDER / name).read_text("utf-8")), {}
    with safe_open(FOLDER / name, "pt") as file:
        return json.loads(file.metadata()["case"]), {k: file.get_tensor(k) for k in file.keys()}


def part(values, prefix=""):
    """What stands below a prefix; names lose the wrappers of the published training code."""
    below = {k[len(prefix) :]: v for k, v in values.items() if k.startswith(prefix)}
    return {k.replace("module.", "").replace("backbone.", ""): v for k, v in below.items()}


def check(name, ours, theirs=None, dtype=torch.float64):
    """All of theirs (the outputs in the file) are in ours, and close."""
    case, t = load(name)
    theirs = {k: t[k] for k in t if k.startswith("out.")} if theirs is None else theirs
    assert theirs.keys() <= ours.keys(), f"{name}: no {theirs.keys() - ours.keys()}"
    fp32 = case["fp32_run_max_abs_err"] if dtype == torch.float32 else dict.fromkeys(theirs, 4e-7)
    for key in theirs.keys() & fp32.keys():
        a, b = ours[key].double(), torch.as_tensor(theirs[key]).double()
        off, bar = (a - b).abs().max(), 5 * fp32[key]
        assert a.shape == b.shape and off <= bar, f"{name}, {key}: off by {off:.2g}, over {bar:.2g}"


def config_of(name, weights):
    """The shape of a stored model; what the metadata leave out is in the weights."""
    c, kinds = load(name)[0]["config"], sum("mask_tokens" in key for key in weights)
    fc1 = next(v for k, v in weights.items() if k.endswith("mlp.fc1.weight"))
    names = ("img_size", "num_frames", "patch_size", "tubelet_size", "embed_dim", "depth")
    sizes = [*(c[name] for name in names), c["num_heads"], fc1.shape[0] / fc1.shape[1]]
    if kinds:  # it is a predictor
        sizes += [c["pred_dim"], c["pred_depth"], c.get("pred_heads", c["num_heads"]), kinds]
    return model.ModelConfig(*sizes, pos="sincos" if name.startswith("v1") else "rope2")


def build(name, dtype, kind, layers):
    """The stored Encoder or Predictor; what its blocks put out is appended to `layers`."""
    weights = part(load(name)[1], f"w.{kind.__name__.lower()}.")
    net = kind(config_of(name, weights))
    net.load_state_dict(weights)
    for block in net.blocks if kind is model.Encoder else net.predictor_blocks:
        block.register_forward_hook(lambda _block, _inputs, out: layers.append(out))
    return net.to(dtype).requires_grad_(False)


def masks_of(name, prefix="in.mask_"):
    t = load(name)[1]
    kinds = range(sum(key.startswith(f"{prefix}enc") for key in t))
    return [mask.Mask(t[f"{prefix}enc{i}"].long(), t[f"{prefix}pred{i}"].long()) for i in kinds]


@BOTH
@pytest.mark.parametrize("name", files("v1_forward*", "v1_interp*", "v1_image*", "v2_forward*"))
def test_encoder_and_predictor(name, dtype):
    masks, layers = masks_of(name), []
    clips = {k[3:-5]: v.to(dtype) / 32 for k, v in load(name)[1].items() if k.endswith("_int8")}
    encoder = build(name, dtype, model.Encoder, layers)
    predictor = build(name, dtype, model.Predictor, layers) if masks else None
    x = clips.get("clip", clips.get("image"))
    embedded, grid = encoder.embed(x)
    out = {"out.full": encoder(x), **{f"out.{key}": encoder(clip) for key, clip in clips.items()}}
    if encoder.cfg.pos == "sincos":
        out["out.pos_embed_interp"] = tokens.resize_table(encoder.pos_embed, encoder.cfg.grid, grid)
    for i, m in reversed(list(enumerate(masks))):
        both = m.context_BK, m.target_BK
        out[f"out.masked{i}"] = context = encoder(x, m.context_BK)
        out["out.layers"] = torch.stack([encoder.norm(y) for y in layers[-len(encoder.blocks) :]])
        # Two masks of one length: the second is the first, its rows in the other order.
        out["out.masked_concat"] = encoder(torch.cat([x, x]), torch.cat([both[0], both[0].flip(0)]))
        out[f"out.multimask{i}"] = encoder.encode(embedded, grid, m.context_BK)  # as in training
        of_full = out["out.full"].take_along_dim(m.context_BK[..., None], 1)
        for token in reversed(range(len(predictor.mask_tokens))):
            out[f"out.pred_full_context_maskidx{token}"] = predictor(of_full, *both, token)
            out[f"out.pred{i}_maskidx{token}"] = predictor(context, *both, token)
        out[f"out.pred{i}"] = out[f"out.pred{i}_maskidx{i}"]
        # Our predictor returns the targets only: this is all it makes, in the order of places.
        last = layers[-1].take_along_dim(torch.cat(both, 1).argsort(1)[..., None], 1)
        last = predictor.predictor_proj(predictor.predictor_norm(last))
        out[f"out.pred{i}_alltokens_sorted"] = last
    check(name, out, dtype=dtype)


@pytest.mark.parametrize("name", files("v1_pos_tables*"))
def test_position_tables(name):
    case, t = load(name)
    for c in case if isinstance(case, list) else case["cases"]:
        width, n, kind = c["embed_dim"], c["grid_size"], c.get("kind", "3d")
        grid = {"3d": (c.get("grid_depth"), n, n), "2d": (1, n, n), "1d": (n, 1, 1)}[kind]
        wide = width * (3 if kind == "1d" else 1)  # of which the share of time is a third
        ours = tokens.sincos_table(wide, grid, uniform=c.get("uniform_power", True))[0, :, :width]
        ends = dict(row1=ours[1, :4], rowLast_first8=ours[-1, :8], rowLast_last8=ours[-1, -8:])
        if "i" in c:
            check(name, {kind: ours}, {kind: t[f"table.{c['i']}"]})
        else:
            check(name, ends, {key: c[key] for key in ends})
            sums = [*ours.shape, ours.double().sum().item(), ours.double().abs().sum().item()]
            assert sums == pytest.approx([*c["shape"], c["sum"], c["abs_sum"]], rel=1e-9), c["name"]


@pytest.mark.parametrize("name", files("v2_rope*", "v21_rope*"))
def test_rotation(name):
    t, layout = load(name)[1], name.split("_")[0].replace("v", "rope")
    x = torch.cat([t["in.x"].double()] * 3, -1)  # the file has one axis; three of them, alike
    for key in (key for key in t if key.startswith("out")):
        place = torch.stack([t.get(key.replace("out", "in"), t.get("in.pos"))] * 3, -1)
        table = tokens.rotary_table(place, x.shape[-1], layout=layout, dtype=x.dtype)
        check(name, {key: tokens.rotate(x, *table)}, {key: torch.cat([t[key]] * 3, -1)})


@pytest.mark.parametrize("name", files("v1_init_stats*"))
def test_initial_weights(name):
    """Mean and deviation of every parameter, within five standard errors."""
    stats = [load(name)[0][f"training_{which}"] for which in ("encoder", "predictor")]
    shapes = {k: stat["shape"] for stored in stats for k, stat in stored.items()}
    width, _, tubelet, patch, _ = shapes["patch_embed.proj.weight"]
    depths = [sum(key.endswith("fc1.bias") for key in stored) for stored in stats]
    ratio, pred_width = shapes["blocks.0.mlp.fc1.bias"][0] / width, shapes["mask_tokens.0"][-1]
    sizes = [patch, tubelet, patch, tubelet, width, depths[0], 1, ratio, pred_width, depths[1], 1]
    torch.manual_seed(0)
    net = model.VJEPA(model.ModelConfig(*sizes, sum("mask_tok" in key for key in shapes)))
    for half, stored in zip((net.encoder, net.predictor), stats):
        ours = dict(half.named_parameters())
        assert {k: list(p.shape) for k, p in ours.items()} == {k: shapes[k] for k in stored}
        for key, p in ours.items():
            error = 5 * stored[key]["std"] / p.numel() ** 0.5 + 1e-6
            off = p.std().item() - stored[key]["std"], p.mean().item() - stored[key]["mean"]
            assert abs(off[0]) <= error and abs(off[1]) <= 1.5 * error, f"{key} is off by {off}"


def lr_of(kind, o, step):
    line = 0 if kind == "linear_decay" else o["T_max"] - o.get("anneal_steps", 0)
    if step >= line:
        return schedule.linear((step + 1 - line) / (o["T_max"] - line), o["lr"], o["final_lr"])
    ends = dict(start=o["start_lr"], peak=o["lr"], final=o["lr" if kind == "wsd" else "final_lr"])
    return schedule.warmup_anneal(step + 1, o["T_max"] + 1, warmup=o["warmup_steps"], **ends)


def v1_rates(o, step):
    """lr, weight decay, momentum of a run that ends early; the first two stepped before use."""
    n, warmup = o["ipe"] * o["epochs"] * o["ipe_scale"], int(o["warmup"] * o["ipe"])
    lr = lr_of("warmup_cosine", {**o, "T_max": int(n), "warmup_steps": warmup}, step)
    ends = [o.get(f"{x}wd", o.get(f"{x}weight_decay")) for x in ("", "final_")]
    return [lr, schedule.cosine((step + 1) / int(n), *ends), schedule.linear(step / n, *o["ema"])]


@pytest.mark.parametrize("name", files("v1_schedules*", "v2_schedules*"))
def test_schedules(name):
    for case in load(name)[0]:
        o, kind = case["config"], case.get("kind")
        for step, *theirs in case["rows"]:
            ours = [lr_of(kind, o, step)] if kind else v1_rates(o, step)
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-15), f"{kind}, {o}, {step}"


def stored_run(name, patch):
    """Our `build` with the stored weights, and our `train_step` with the inputs of iteration i."""
    case, t = load(name)
    weights = part(t, "w0.")
    patch.setattr(train.Config, "model", lambda _: config_of(name, weights))
    patch.setattr(train, "normalize", lambda clips, _: clips)  # stored as the model sees them
    state, o = train.build(train.Config(), train.init_distributed()), case["optimization"]
    target = {f"target_encoder.{k}": v for k, v in part(weights, "encoder.").items()}
    state.model.double().load_state_dict({**weights, **target})

    def step(i):
        clips = t[f"in.clip_int8.{case['batch_for_iteration'][i]}"].double() / 32
        limit = o["clip_grad"] if i // o["ipe"] > o["warmup"] else None
        state.config, decay = replace(state.config, clip_grad=limit or 0.0), case["wd_per_group"][i]
        for group, weight_decay in zip(state.optimizer.param_groups, decay):
            group.update(lr=case["lr"][i], weight_decay=weight_decay)
        rates, masks = (case["lr"][i], decay[0], case["momentum"][i]), f"in.it{i}.mask_"
        patch.setattr(train, "set_rates", lambda _: rates)
        patch.setattr(train, "make_masks", lambda *_a, **_k: masks_of(name, masks))
        n = torch.arange(len(clips))
        numbers = train.train_step(state, train.Batch(clips, n, n, n >= 0, []))
        norms = [numbers["grad_encoder"], numbers["grad_predictor"]] if limit else []
        return rates, [numbers["loss_sum"] / len(n), *norms]

    return state, step


@pytest.mark.parametrize("name", files("v1_train*"))
def test_training_run(name, monkeypatch):
    """Groups, rates, losses, gradient norms; all of the first iteration; weights at the end."""
    (state, step), (case, t), seen = stored_run(name, monkeypatch), load(name), []
    state.model.register_forward_hook(lambda _model, _inputs, out: seen.append(out))
    names = {p: k for k, p in state.model.named_parameters()}
    for ours, theirs in zip(state.optimizer.param_groups, case["param_groups"], strict=True):
        stored = part(dict.fromkeys(theirs["params"]))  # where the fixed tables are parameters
        assert [names[p] for p in ours["params"]] == [k for k in stored if "pos_embed" not in k]
        assert ours["decay"] is not theirs["WD_exclude"]
    columns = [i for i, x in enumerate(case["csv_header"]) if x == "loss-jepa" or "grad" in x]
    for i, row in enumerate(case["csv"]):
        rates, ours = step(i)  # the loss, and where gradients are clipped their norms before
        assert v1_rates(case["optimization"], i) == pytest.approx(rates, rel=1e-9), f"rates, {i}"
        theirs = [row[column] for column in columns[: len(ours)]]  # rounded to five places
        assert [x.item() for x in ours] == pytest.approx(theirs, abs=6e-6), f"iteration {i}"
        grads = {k: p.grad for p, k in names.items() if p.grad is not None}
        norms = {k: grad.norm() for k, grad in grads.items()}
        check(name, norms, part(case["grad_l2_per_param_after_clip"][i]))
        if i == 0:
            first = {"target_raw": seen[0][0], **{f"grad.{k}": grad for k, grad in grads.items()}}
            for x, outputs in zip(("pred", "enc"), seen[0][1:]):
                first |= {f"{x}{kind}": y for kind, y in enumerate(outputs)}
            stored = {**part(t, "out.it0."), "loss": case["it0_loss_jepa_exact"]}
            check(name, {**first, "loss": ours[0]}, stored)
    assert set(names.values()) <= part(t, "out.final.").keys()
    check(name, state.model.state_dict(), part(t, "out.final."))


KINDS = [(n, i) for n in files("v1_masks*") for i in range(len(load(n)[0]["cfgs"]))]


@pytest.mark.parametrize(("name", "i"), KINDS)
def test_masks(name, i, steps=100):
    """Tokens one by one; how many and where they are, within five standard errors."""
    case, t = load(name)
    c, stats, side = case["cfgs"][i], case["types"][i], case["crop"] // case["patch"]
    plain = {**c, "max_temporal_keep": 1, "max_keep": None, "temporal_scale": [1, 1]}
    if c != {**plain, "spatial_scale": [c["spatial_scale"][0]] * 2}:
        pytest.skip("not yet: max_temporal_keep, max_keep, blocks of random area or length")
    grid = case["frames"] // case["tubelet"], side, side
    spec = mask.MaskSpec(c["num_blocks"], c["spatial_scale"][0], tuple(c["aspect_ratio"]))
    for seed, theirs in enumerate(stats["block_size_by_seed_t_h_w"]):
        block = mask.published_masks(replace(spec, blocks=1), grid, 1, seed).target_BK[0]
        assert [len(x.unique()) for x in torch.unravel_index(block, grid)] == theirs, f"seed {seed}"
    torch.manual_seed(case["seed"] + 1000 + i)
    for step in (0, 1):
        context, target = (t[f"exact.type{i}.it{step}.{x}"].long() for x in ("enc", "pred"))
        m = mask.published_masks(spec, grid, len(context), step)
        assert torch.equal(m.context_BK, context), f"context of kind {i}, step {step}"
        assert torch.equal(m.target_BK, target), f"target of kind {i}, step {step}"
    masks = [mask.published_masks(spec, grid, case["batch"], step) for step in range(steps)]
    for x, field in (("enc", "context_BK"), ("pred", "target_BK")):
        kept = [getattr(m, field).flatten().bincount(minlength=int(np.prod(grid))) for m in masks]
        ours = torch.stack(kept).view(-1, *grid) / case["batch"]  # shares of the clips
        theirs = t[f"freq.type{i}.{x}"].float()
        pairs = [(ours.mean((2, 3)), theirs.mean((1, 2))), (ours.mean(1), theirs.mean(0))]
        for a, b in [*pairs, (ours.sum((1, 2, 3))[:, None], stats[f"{x}_len"]["mean"])]:
            error = 5 * a.std(0) * (1 / steps + 1 / case["iters"]) ** 0.5 + 1e-3
            assert ((a.mean(0) - b).abs() < error).all(), f"{name}, {x}: {a.mean(0)}, not {b}"


@pytest.mark.parametrize("name", files("v1_frame_indices*", "v2_frame_indices*"))
def test_frame_indices(name):
    """Drawn from the generator that the published code draws from; its exceptions are ours, too."""
    for row in load(name)[0]["rows"]:
        span_s, delta_t_s = row["duration_s"], row.get("fps") and 1 / row["fps"]
        step = (None if span_s or delta_t_s else row["frame_step"], delta_t_s, span_s)
        how = dict(clips=row["num_clips"], overlap=row["allow_overlap"], rule="vjepa1")
        rng = SimpleNamespace(integers=np.random.RandomState(row["np_seed"]).randint)
        fails = isinstance(row["indices"], str)
        with pytest.raises(errors.VidlearnError) if fails else nullcontext():
            spec = sample.ClipSpec(row["frames_per_clip"], *step, **how)
            video = row["num_video_frames"], row["video_fps"]
            ours = sample.clip_indices(spec, *video, rng=rng if row["random"] else None)
            assert ours.tolist() == row["indices"], row


@pytest.mark.parametrize("name", files("v1_transform*"))
def test_crop_resize_flip_normalise(name, monkeypatch):
    """Published: float32. Ours resizes uint8, and may be off by one grey level, 0.1 on average."""
    case, t = load(name)
    grey = 255 * torch.tensor(transform.IMAGENET_STD).view(3, 1, 1, 1)
    for c in case["cases"]:
        small, box = t[f"in.video_small_uint8.{c['i']}"], transform.Box(*c["crop_i_j_h_w"])
        monkeypatch.setattr(transform, "crop_box", lambda *_a, box=box, **_k: box)
        crop = transform.ClipTransform(case["out_size"], flip=float(c["flip"]))
        clip = crop(small.repeat_interleave(4, 1).repeat_interleave(4, 2), np.random.default_rng(0))
        off = (transform.normalize(clip[None])[0] - t[f"out.{c['i']}"]).abs() * grey
        assert off.max() <= 1.001 and off.mean() < 0.2, f"{name}, {c}: off by {off.max()}"


@BOTH
@pytest.mark.parametrize("name", files("v1_probe*"))
def test_attentive_probe(name, dtype):
    """The published weights also hold a projection, xattn.proj, that is never used."""
    (case, t), pooled = load(name), []
    net = probe.AttentiveProbe(case["embed_dim"], case["num_heads"], case["num_classes"])
    net.load_state_dict({k: v for k, v in part(t, "w.").items() if "xattn.proj" not in k})
    net.to(dtype).linear.register_forward_pre_hook(lambda _m, args: pooled.append(args[0]))
    logits = net(t["in.x_int8"].to(dtype) / 32)
    loss = torch.nn.functional.cross_entropy(logits, t["in.y"])
    ours = {"out.pooled": pooled[0][:, None], "out.logits": logits, "out.loss": loss[None]}
    check(name, ours, dtype=dtype)
    loss.backward()
    norms = {k: p.grad.norm() for k, p in net.named_parameters()}
    check(name, norms, {k: v for k, v in case["grad_l2"].items() if v is not None}, dtype)


@pytest.mark.parametrize("name", [x for x in NAMES if fits(x, NOT_YET) or not fits(x, COVERED)])
def test_not_yet(name):
    assert fits(name, NOT_YET), f"{name}: no test takes it on, and NOT_YET does not say why"
    pytest.skip(f"not yet: {NOT_YET[fits(name, NOT_YET)[0]]}")
