"""What did the encoder learn? Frozen features, four probes, and baselines beside them, always.

Input: a checkpoint and labelled videos. Output: the share of clips that a small classifier gets
right on the trained encoder, on a random encoder of the same shape with the same input
normalisation, and on pixels. Without the last two the first says nothing. Traded: features are
computed once, from one centre view of each clip; published evaluations use many. Chapter 10.
Shapes: B or N clips, T time steps, S places in space, D width, H heads.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from vidlearn import checkpoint
from vidlearn.batch import ClipDataset, eval_loader
from vidlearn.datasets import Manifest
from vidlearn.errors import ConfigError
from vidlearn.model import MLP, Encoder, init_weights
from vidlearn.recipes import Config
from vidlearn.schedule import warmup_cosine
from vidlearn.transform import normalize

Device = torch.device | str
Function = Callable[[Tensor], Tensor]
Make = Callable[[], nn.Module]
Setting = tuple[float, float]  # highest learning rate, weight decay
STEPS = 400  # of a probe, with 64 clips each; 20 epochs where those are more
Labelled = tuple[Tensor, Tensor]  # features [N, ...], labels [N]


@dataclass
class Features:
    """Frozen float16 features of the readable, labelled clips; who could not be read, and why."""

    tokens_NTSD: Tensor
    labels: Tensor
    indices: Tensor
    bad: list[tuple[str, str]]

    @property
    def time_NTD(self) -> Tensor:
        """Averaged over space only: what happened when is still there."""
        return self.tokens_NTSD.float().mean(2)

    @property
    def mean_ND(self) -> Tensor:
        """Averaged over space and time: the order of the tokens is gone."""
        return self.time_NTD.mean(1)


def whole_clip(clips_BCTHW: Tensor) -> Tensor:
    """The pixel baseline: every frame shrunk to 8 x 8 pixels, as tokens [B, T, 1, C * 64]."""
    small = F.adaptive_avg_pool3d(clips_BCTHW, (clips_BCTHW.shape[2], 8, 8))
    return small.transpose(1, 2).flatten(2).unsqueeze(2)


def one_frame(clips_BCTHW: Tensor) -> Tensor:
    """The same for the middle frame alone: what can be known without any motion."""
    return whole_clip(clips_BCTHW[:, :, clips_BCTHW.shape[2] // 2, None])


def features(source: Encoder | Function, dataset: ClipDataset, **how: Any) -> Features:
    """Frozen features of one encoder, `one_frame` or `whole_clip`; keywords as in `collect`."""
    return collect({"": source}, dataset, **how)[""]


@torch.inference_mode()
def collect(
    sources: dict[str, Encoder | Function],
    dataset: ClipDataset,
    *,
    normalize_how: str,
    device: Device = "cpu",
    batch_size: int = 32,
    workers: int = 0,
) -> dict[str, Features]:
    """Features from several sources in one pass: each video is decoded once, and normalised alike.

    A source is an encoder on the device, or a function from clips to tokens [B, T', S, D].
    """
    found: dict[str, list[Tensor]] = {name: [] for name in sources}
    labels, indices, bad = [], [], []
    bar: dict[str, Any] = {"console": Console(stderr=True), "disable": not sys.stderr.isatty()}
    for batch in track(eval_loader(dataset, batch_size, workers), "features", **bar):
        bad += batch.bad
        keep = batch.valid & (batch.labels >= 0)
        if not keep.any():
            continue
        labels.append(batch.labels[keep])
        indices.append(batch.indices[keep])
        clips = normalize(batch.clips[keep].to(device), normalize_how)
        for name, source in sources.items():
            if isinstance(source, Encoder):
                tokens = source.eval()(clips).unflatten(1, (source.cfg.grid[0], -1))
            else:
                tokens = source(clips)
            found[name].append(tokens.half().cpu())
    if not labels:
        raise ConfigError(f"{dataset.manifest.source}: no video is both labelled and readable")
    y, rows = torch.cat(labels), torch.cat(indices)
    return {name: Features(torch.cat(parts), y, rows, bad) for name, parts in found.items()}


def _standard(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [N, D], in units of the train clips' mean and deviation."""
    a, b = train.float().flatten(1), test.float().flatten(1)
    mean, std = a.mean(0), a.std(0).clamp_min(1e-6)
    return (a - mean) / std, (b - mean) / std


def knn(train: Labelled, test: Tensor, k: int = 10) -> Tensor:
    """Labels [n] by vote of the k nearest train clips: cosine of standardised features.

    A vote weighs exp(cosine / 0.07) (Wu et al. 2018).
    """
    a, b = (F.normalize(x, dim=1) for x in _standard(train[0], test))
    near, who = (b @ a.T).topk(min(k, len(a)), dim=1)
    votes = torch.zeros(len(b), int(train[1].max()) + 1)
    return votes.scatter_add_(1, train[1][who], (near / 0.07).exp()).argmax(1)


def _best(
    make: Make, train: Labelled, test: Tensor, settings: list[Setting], device: Device = "cpu"
) -> Tensor:
    """Labels [n] by AdamW with the setting that does best on a held-out fifth of train."""
    x, y = train
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    held, rest = order.tensor_split([max(1, len(y) // 5)])

    def fit(chosen: Tensor, rate: float, decay: float) -> Function:
        torch.manual_seed(0)
        probe = make().to(device)
        optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=decay)
        steps, queue = max(STEPS, 20 * len(chosen) // 64), chosen[:0]
        for step in range(steps):
            queue = queue if len(queue) else chosen[torch.randperm(len(chosen))]
            pick, queue = queue[:64], queue[64:]
            lr = warmup_cosine(step, steps, warmup=steps // 10, start=0, peak=rate, final=0)
            optimizer.param_groups[0]["lr"] = lr
            loss = F.cross_entropy(probe(x[pick].to(device).float()), y[pick].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimizer.step()
        probe.requires_grad_(False)
        return lambda x: torch.cat([probe(p.to(device).float()).cpu() for p in x.split(256)])

    with torch.random.fork_rng():
        losses = [F.cross_entropy(fit(rest, *s)(x[held]), y[held]).item() for s in settings]
        return fit(order, *settings[int(np.argmin(losses))])(test).argmax(1)


def linear(train: Labelled, test: Tensor) -> Tensor:
    """Labels [n] by logistic regression on standardised features; decay chosen on train."""
    x, z = _standard(train[0], test)
    make = partial(nn.Linear, x.shape[1], int(train[1].max()) + 1)
    return _best(make, (x, train[1]), z, [(0.01, 1.0), (0.01, 10.0)])


def attentive(train: Labelled, test: Tensor, heads: int, device: Device = "cpu") -> Tensor:
    """Labels [n] by an AttentiveProbe on tokens [N, ..., D]; learning rate chosen on train."""
    x, z = train[0].flatten(1, -2), test.flatten(1, -2)
    make = partial(AttentiveProbe, x.shape[-1], heads, int(train[1].max()) + 1)
    # The published rate at the published width, 0.001 at 1024; a narrower probe wants more.
    rates = [(4 / x.shape[-1], 1.0), (1 / x.shape[-1], 1.0)]
    return _best(make, (x, train[1]), z, rates, device)


class AttentiveProbe(nn.Module):
    """A learned query reads all tokens, then a linear layer; parameter names as published.

    No projection follows the attention, as in the published probes (Bardes et al. 2024).
    """

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        xattn = nn.ModuleDict({"q": nn.Linear(width, width), "kv": nn.Linear(width, 2 * width)})
        norms = {"norm1": nn.LayerNorm(width), "norm2": nn.LayerNorm(width)}
        block = nn.ModuleDict({**norms, "xattn": xattn, "mlp": MLP(width, 4 * width)})
        self.pooler = nn.ModuleDict({"cross_attention_block": block})
        self.pooler.query_tokens = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.linear = nn.Linear(width, classes)
        self.apply(init_weights)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """[B, N, D] -> logits [B, classes]."""
        pooler: Any = self.pooler
        block, query = pooler["cross_attention_block"], pooler.query_tokens[0]
        norm, kv = block["norm1"], block["xattn"]["kv"]
        key_HdD, value_HdD = kv.weight.unflatten(0, (2, self.heads, -1))
        q_Hd = block["xattn"]["q"](query).view(self.heads, -1) / math.sqrt(key_HdD.shape[1])
        # With one query it is the same sum, and four times as fast, to bring the query into the
        # tokens' space instead of all tokens into that of keys and values; the norm's scale and
        # shift can wait, too. What is added to every key alike cancels in the softmax.
        x = F.layer_norm(tokens_BND, norm.normalized_shape, eps=norm.eps)
        ask_DH = norm.weight[:, None] * torch.einsum("Hd,HdD->DH", q_Hd, key_HdD)
        read_BHD = (x @ ask_DH).softmax(1).transpose(1, 2) @ x * norm.weight + norm.bias
        y = torch.einsum("BHD,HdD->BHd", read_BHD, value_HdD).flatten(1)
        y = query + y + kv.bias.chunk(2)[1]
        return self.linear(y + block["mlp"](block["norm2"](y)))


def load_frozen(path: str | Path, which: str = "target") -> tuple[Encoder, Config, int]:
    """The "target" or "context" encoder of a checkpoint, an exported file or a run's folder.

    Also its Config and step. ConfigError: nothing there, a foreign file, another model's weights.
    """
    found = Path(path)
    if found.is_dir():
        found = checkpoint.latest(found / "checkpoints") or checkpoint.latest(found) or found
    if found.suffix == ".safetensors":
        state, meta = checkpoint.load_encoder(found)
    else:
        meta = checkpoint.load(found)
        prefix = {"target": "target_encoder.", "context": "encoder."}[which]
        model = meta["model"].items()
        state = {k.removeprefix(prefix): v for k, v in model if k.startswith(prefix)}
    config = Config.from_json(meta["config"])
    encoder = Encoder(config.model())
    checkpoint.check_matches(state, encoder, found)
    encoder.load_state_dict(state)
    return encoder, config, meta["step"]


def splits(data: Manifest, seed: int = 0) -> tuple[dict[str, Manifest], str]:
    """train and what to evaluate on, and in words how the split was made.

    Data without a split gets a fixed one, in which rows of one source_id stay together.
    """
    names = {row.split for row in data.rows if row.label}
    if not names:
        raise ConfigError(f"{data.source}: no labels. A probe needs class folders or a manifest")
    if "train" in names and names & {"val", "test"}:
        return {s: data.split(s) for s in ("train", "val", "test") if s in names}, "the data's own"
    rng, source = np.random.default_rng(seed), [row.source_id or row.path for row in data.rows]
    place: dict[str, str] = {}
    for label in data.classes:
        group = {s for s, row in zip(source, data.rows) if row.label == label} - place.keys()
        for i, s in enumerate(rng.permutation(sorted(group)).tolist()):
            place[s] = "test" if i < round(0.3 * len(group)) else "train"
    rows = (replace(r, split=place.get(s, "train")) for s, r in zip(source, data.rows))
    split = replace(data, rows=tuple(rows))
    how = f"none in the data: 7 to 3 in each class, by source_id or else file, seed {seed}"
    return {s: split.split(s) for s in ("train", "test")}, how


def score(guess: Tensor, labels: Tensor) -> dict[str, float]:
    """Per cent right, with its 95 % interval (Wilson 1927)."""
    n, right = len(labels), int((guess == labels).sum())
    middle, half = right + 1.9208, 1.96 * math.sqrt(right * (n - right) / n + 0.9604)
    low, high = (100 * x / (n + 3.8416) for x in (middle - half, middle + half))
    return {"percent": 100 * right / n, "low": low, "high": high, "right": right, "clips": n}


def _row(found: dict[str, Features], heads: int, device: Device) -> dict[str, Any]:
    """One source: probe -> split -> score. Without heads there is no attentive probe."""
    train, tests = found["train"], {split: f for split, f in found.items() if split != "train"}
    probes = [("knn", "mean_ND", knn), ("linear, mean", "mean_ND", linear)]
    probes += [("linear, time kept", "time_NTD", linear)]
    if heads:
        probes += [("attentive", "tokens_NTSD", partial(attentive, heads=heads, device=device))]
    row = {}
    for name, view, classify in probes:
        z = torch.cat([getattr(f, view) for f in tests.values()])
        guess = classify((getattr(train, view), train.labels), z)
        guesses = guess.split([len(f.labels) for f in tests.values()])
        row[name] = {s: score(g, f.labels) for g, (s, f) in zip(guesses, tests.items())}
    return row


def report(
    path: str | Path, data: Manifest, which: str = "target", seed: int = 0, device: Device = "cpu"
) -> dict[str, Any]:
    """The whole table, ready for JSON and for `show`: rows -> source -> probe -> split -> score.

    Args:
        path, which: see `load_frozen`; the target encoder is what published evaluations take.
        data: labelled videos, with splits of their own or else those of `splits`.
        seed: of the random encoder and of `splits`.
    """
    began = time.perf_counter()
    encoder, config, step = load_frozen(path, which)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = Encoder(config.model())
    sources: dict[str, Encoder | Function] = {
        "trained encoder": encoder.to(device),
        "random encoder": fresh.to(device),
        "pixels, one frame": one_frame,
        "pixels, whole clip": whole_clip,
    }
    parts, how = splits(data, seed)
    found: dict[str, dict[str, Features]] = {name: {} for name in sources}
    spec, transform, norm = config.clip_spec(), config.transform(False), config.input_norm
    for split, part in parts.items():
        clips = ClipDataset(part, spec, transform, backend=config.backend, random_clips=False)
        new = collect(sources, clips, normalize_how=norm, device=device, workers=config.workers)
        for name in sources:
            found[name][split] = new[name]
    one, heads = found["random encoder"], {n: config.heads * ("encoder" in n) for n in sources}
    # What a guess that is always the most frequent class would get.
    most = {s: 100 * int(f.labels.bincount().max()) / len(f.labels) for s, f in one.items()}
    return {
        "checkpoint": str(path),
        "step": step,
        "encoder": which,
        "data": data.source,
        "splits": how,
        "clips": {split: len(f.labels) for split, f in one.items()},
        "chance": {split: most[split] for split in most if split != "train"},
        "unlabelled": sum(data.label_index(row) < 0 for row in data.rows),
        "unreadable": {path: cause for f in one.values() for path, cause in f.bad},
        "rows": {name: _row(found[name], heads[name], device) for name in sources},
        "seconds": round(time.perf_counter() - began, 1),
    }


def show(result: dict[str, Any]) -> None:
    """Print a `report`: one table a split, then what it was made from."""
    out, rows, clips = Console(soft_wrap=True, markup=False), result["rows"], result["clips"]
    for split, chance in result["chance"].items():
        title = f"{split}: {clips[split]} clips, per cent right (95 %), chance {chance:.1f}"
        table = Table("", *rows["random encoder"], title=title, box=None)
        for name, row in rows.items():
            cells = (scores[split] for scores in row.values())
            texts = (f"{s['percent']:.0f} ({s['low']:.0f}-{s['high']:.0f})" for s in cells)
            table.add_row(name, *texts)
        out.print(table)
    out.print(f"{result['encoder']} encoder, step {result['step']}; {clips['train']} train clips;")
    out.print(f"splits: {result['splits']}; {result['unlabelled']} unlabelled, ", end="")
    out.print(f"{len(result['unreadable'])} unreadable; {result['seconds']} s")
    for path, cause in result["unreadable"].items():
        out.print(f"not read: {path}: {cause}")
