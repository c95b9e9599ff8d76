"""What did the encoder learn? Frozen features, four probes, and baselines beside them, always.

Input: a checkpoint and labelled videos. Output: the share of clips that a small classifier gets
right on the trained encoder, on a random one of the same shape with the same input normalisation,
and on pixels. Traded: one centre view of each clip; published evaluations use many. Chapter 10.
Shapes: B or N clips, T time steps, S places in space, D width, C classes.
"""

import json
import math
import sys
import time
from collections import namedtuple
from collections.abc import Callable
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

from vidlearn import pictures
from vidlearn.attentive import AttentiveProbe
from vidlearn.batch import Device, eval_loader
from vidlearn.datasets import Manifest, Row
from vidlearn.errors import ConfigError
from vidlearn.model import Encoder
from vidlearn.pretrained import load_pretrained
from vidlearn.recipes import Config
from vidlearn.schedule import warmup_anneal
from vidlearn.transform import normalize

Source = Callable[[Tensor], Tensor]  # clips on the device -> tokens [B, N, D] or [B, T', S, D]
Labelled = tuple[Tensor, Tensor]  # features [N, ...], labels [N]
Read = namedtuple("Read", "tokens labels bad rows")  # of N clips; bad: path -> cause
STEPS = 400  # of a probe, with 64 clips each; 20 epochs where those are more
WORST = 8  # clips that are named and drawn, of those that were wrong


def whole_clip(clips_BCTHW: Tensor) -> Tensor:
    """The pixel baseline: every frame shrunk to 8 x 8 pixels, as tokens [B, T, 1, C * 64]."""
    small = F.adaptive_avg_pool3d(clips_BCTHW, (clips_BCTHW.shape[2], 8, 8))
    return small.transpose(1, 2).flatten(2).unsqueeze(2)


def one_frame(clips_BCTHW: Tensor) -> Tensor:
    """The middle frame through the whole clip: what can be known without any motion."""
    frames = clips_BCTHW.shape[2]
    return clips_BCTHW[:, :, [frames // 2] * frames]


def join_clips(tokens_BTSD: Tensor, clips: int) -> Tensor:
    """The clips of each video, one after the other: [B * clips, T, ...] -> [B, clips * T, ...]."""
    return tokens_BTSD.unflatten(0, (-1, clips)).flatten(1, 2)


@torch.inference_mode()
def collect(
    sources: dict[str, Source], data: Manifest, config: Config, device: Device = "cpu",
    clips: int = 1,
) -> Read:  # fmt: skip
    """Float16 tokens [N, T', S, D] of each source, labels [N], why a video was not read, N rows.

    In one pass over `clips` centre views of each video, T' steps in all: each is decoded once, and
    normalised alike for all. ConfigError: no video is both labelled and readable.
    """
    batch_size = max(1, 32 // clips) * clips
    loader = eval_loader(pictures.views(data, config, clips), batch_size, config.workers)
    found: dict[str, list[Tensor]] = {name: [] for name in sources}
    bad: dict[str, str] = {}
    labels, rows = [], []
    bar: dict[str, Any] = {"console": Console(stderr=True), "disable": not sys.stderr.isatty()}
    for batch in track(loader, "features", **bar):
        bad |= dict(batch.bad)
        keep = (batch.valid & (batch.labels >= 0)).view(-1, clips).all(1)
        if not keep.any():
            continue
        labels.append(batch.labels[::clips][keep])
        rows += [data.rows[i // clips] for i in batch.indices[::clips][keep].tolist()]
        pixels = normalize(batch.clips[keep.repeat_interleave(clips)].to(device), config.input_norm)
        for name, source in sources.items():
            tokens = source(pixels)
            if tokens.ndim == 3:  # of an encoder
                tokens = tokens.unflatten(1, (config.model().grid[0], -1))
            found[name].append(join_clips(tokens, clips).half().cpu())
    if not labels:
        raise ConfigError(f"{data.source}: no video is both labelled and readable")
    every = {name: torch.cat(parts) for name, parts in found.items()}
    return Read(every, torch.cat(labels), bad, rows)


def _standard(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [N, D], in units of the train clips' mean and deviation."""
    a, b = train.float().flatten(1), test.float().flatten(1)
    mean, std = a.mean(0), a.std(0).clamp_min(1e-6)
    return (a - mean) / std, (b - mean) / std


def knn(train: Labelled, test: Tensor, k: int = 10) -> Tensor:
    """Labels [n] by the k nearest train clips, votes of exp(cosine / 0.07) (Wu et al. 2018)."""
    a, b = (F.normalize(x, dim=1) for x in _standard(train[0], test))
    near, who = (b @ a.T).topk(min(k, len(a)), dim=1)
    votes = torch.zeros(len(b), int(train[1].max()) + 1)
    return votes.scatter_add_(1, train[1][who], (near / 0.07).exp()).argmax(1)


def _best(
    make: Callable[[], nn.Module], train: Labelled, test: Tensor,
    settings: list[tuple[float, float]], device: Device = "cpu",
) -> Tensor:  # fmt: skip
    """Logits [n, C] by AdamW with the (rate, decay) that does best on a held-out fifth of train."""
    x, y = train
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    held, rest = order.tensor_split([max(1, len(y) // 5)])

    def fit(chosen: Tensor, rate: float, decay: float) -> Callable[[Tensor], Tensor]:
        """Features -> logits, by a probe trained on the chosen clips."""
        torch.manual_seed(0)
        probe = make().to(device)
        optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=decay)
        steps, queue = max(STEPS, 20 * len(chosen) // 64), chosen[:0]
        for step in range(steps):
            queue = queue if len(queue) else chosen[torch.randperm(len(chosen))]
            pick, queue = queue[:64], queue[64:]
            lr = warmup_anneal(step, steps, warmup=steps // 10, start=0, peak=rate, final=0)
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
        return fit(order, *settings[int(np.argmin(losses))])(test)


def linear(train: Labelled, test: Tensor) -> Tensor:
    """Labels [n] by logistic regression on standardised features; decay chosen on train."""
    return linear_chances(train, test).argmax(1)


def linear_chances(train: Labelled, test: Tensor) -> Tensor:
    """The same as chances [n, C]: how sure it is of each class."""
    x, z = _standard(train[0], test)
    make = partial(nn.Linear, x.shape[1], int(train[1].max()) + 1)
    return _best(make, (x, train[1]), z, [(0.01, 1.0), (0.01, 10.0)]).softmax(1)


def attentive(train: Labelled, test: Tensor, heads: int, device: Device = "cpu") -> Tensor:
    """Labels [n] by an AttentiveProbe on tokens [N, ..., D]; learning rate chosen on train."""
    x, z = train[0].flatten(1, -2), test.flatten(1, -2)
    make = partial(AttentiveProbe, x.shape[-1], heads, int(train[1].max()) + 1)
    # The published rate at the published width, 0.001 at 1024; a narrower probe wants more.
    rates = [(4 / x.shape[-1], 1.0), (1 / x.shape[-1], 1.0)]
    return _best(make, (x, train[1]), z, rates, device).argmax(1)


def score(guess: Tensor, labels: Tensor) -> dict[str, float]:
    """Per cent right, with its 95 % interval (Wilson 1927)."""
    n, right = len(labels), int((guess == labels).sum())
    middle, half = right + 1.9208, 1.96 * math.sqrt(right * (n - right) / n + 0.9604)
    low, high = (100 * x / (n + 3.8416) for x in (middle - half, middle + half))
    return {"percent": 100 * right / n, "low": low, "high": high, "right": right, "clips": n}


def compare(a: Tensor, b: Tensor, labels: Tensor) -> dict[str, float]:
    """By how many points the guesses a are better than b on the same clips, and a 95 % interval.

    What both get right or wrong says nothing; of n clips a alone gets `won` right and b alone
    `lost`. (won - lost) / m +- 1.96 sqrt(won + lost + 1 - (won - lost)^2 / m) / m, m = n + 2, is
    the interval of Agresti and Min 2005, Statistics in Medicine 24, 729: half a clip in each case.
    """
    n, ahead = len(labels), (a == labels).int() - (b == labels).int()
    won, lost, m = int((ahead > 0).sum()), int((ahead < 0).sum()), n + 2
    half = 1.96 * math.sqrt(won + lost + 1 - (won - lost) ** 2 / m)
    low, high = (max(-100.0, min(100.0, 100 * (won - lost + x) / m)) for x in (-half, half))
    return {"points": 100 * (won - lost) / n, "low": low, "high": high, "won": won, "lost": lost}


def _guesses(train: Labelled, test: Tensor, heads: int, device: Device) -> tuple[dict, Tensor]:
    """One source: probe -> labels [n], attentive if it has heads; chances of linear, time kept."""
    a_NTD, b_NTD = (x.float().mean(2) for x in (train[0], test))  # what happened when
    means = (a_NTD.mean(1), train[1]), b_NTD.mean(1)  # the order is gone
    chances = linear_chances((a_NTD, train[1]), b_NTD)
    found = {"knn": knn(*means), "linear, mean": linear(*means)}
    found["linear, time kept"] = chances.argmax(1)
    if heads:
        found["attentive"] = attentive(train, test, heads, device)
    return found, chances


def _mistakes(chances: Tensor, labels: Tensor, rows: list[Row], names: tuple[str, ...]) -> dict:
    """Counts [truth][guess], and the clips of which a probe was most sure, and wrong."""
    (sure, guess), n = chances.max(1), len(names)
    counts = torch.bincount(labels * n + guess, minlength=n * n).view(n, n).tolist()
    wrong = [i for i in sure.argsort(descending=True).tolist() if guess[i] != labels[i]]
    worst = [
        {"path": rows[i].path, "start_s": rows[i].start_s, "end_s": rows[i].end_s,
         "truth": rows[i].label, "guess": names[guess[i]], "confidence": round(float(sure[i]), 4)}
        for i in wrong[:WORST]
    ]  # fmt: skip
    return {"confusion": counts, "worst": worst}


def report(
    path: str | Path, data: Manifest, which: str = "target", seed: int = 0, device: Device = "cpu",
    clips: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """The whole table, ready for JSON and for `show`: rows -> source -> probe -> split -> score.

    ahead -> probe -> split -> `compare`: the trained encoder minus the random one; mistakes ->
    split -> confusion [truth][guess] and worst clips, of its linear probe with time kept.
    `path` and `which` as in `load_pretrained`; `seed` of the random encoder and, where needed, of
    `Manifest.splits`. Of each video so many `clips` are read as one; published work takes 2 to 8.
    """
    began = time.perf_counter()
    found = load_pretrained(path, encoder=which)
    encoder, config, step = found.encoder, found.config, found.about["epoch"]
    encoder.cfg = config.model()  # of four depths, evaluations read the last
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = Encoder(config.model())
    sources: dict[str, Source] = {
        "trained encoder": encoder.to(device).eval(), "random encoder": fresh.to(device).eval(),
        "encoder, one frame": lambda clips: encoder(one_frame(clips)),
        "pixels, one frame": lambda clips: whole_clip(one_frame(clips))[:, :1],
        "pixels, whole clip": whole_clip,
    }  # fmt: skip
    parts, how = data.splits(seed)
    read = {split: collect(sources, part, config, device, clips) for split, part in parts.items()}
    bad = {path: cause for part in read.values() for path, cause in part.bad.items()}
    train = read.pop("train")
    sizes = [len(part.labels) for part in read.values()]
    truth = torch.cat([part.labels for part in read.values()])
    tests = dict(zip(read, torch.arange(len(truth)).split(sizes)))
    guesses, chances = {}, {}
    for name in sources:
        test = torch.cat([part.tokens[name] for part in read.values()])
        heads, known = config.heads * ("encoder" in name), (train.tokens[name], train.labels)
        guesses[name], chances[name] = _guesses(known, test, heads, device)
    ours, other = (guesses[name] for name in ("trained encoder", "random encoder"))
    return {
        "checkpoint": str(path), "step": step, "encoder": which, "data": data.source,
        "splits": how, "views": clips,
        "clips": {"train": len(train.labels), **{s: len(i) for s, i in tests.items()}},
        # What a guess that is always the most frequent class would get.
        "chance": {s: 100 * int(truth[i].bincount().max()) / len(i) for s, i in tests.items()},
        "unlabelled": sum(data.label_index(row) < 0 for row in data.rows), "unreadable": bad,
        "rows": {
            name: {p: {s: score(g[i], truth[i]) for s, i in tests.items()} for p, g in x.items()}
            for name, x in guesses.items()
        },
        "ahead": {
            p: {s: compare(g[i], other[p][i], truth[i]) for s, i in tests.items()}
            for p, g in ours.items()
        },
        "mistakes": {
            s: _mistakes(chances["trained encoder"][i], truth[i], read[s].rows, data.classes)
            for s, i in tests.items()
        },
        "classes": data.classes, "config": json.loads(config.to_json()),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """Print a `report`: one table a split, then what it was made from."""
    out, rows, clips = Console(soft_wrap=True, markup=False), result["rows"], result["clips"]
    for split, chance in result["chance"].items():
        title = f"{split}: {clips[split]} clips, per cent right (95 %), chance {chance:.1f}"
        table = Table("", *rows["random encoder"], title=title, box=None)
        for name, row in rows.items():
            cell = "{percent:.0f} ({low:.0f}-{high:.0f})"
            table.add_row(name, *(cell.format(**scores[split]) for scores in row.values()))
        out.print(table)
        form = "{} {points:+.0f} ({low:+.0f} to {high:+.0f})"
        gains = (form.format(name, **x[split]) for name, x in result["ahead"].items())
        out.print(f"trained minus random, points (95 %): {'; '.join(gains)}")
        counts = np.array(result["mistakes"][split]["confusion"])
        out.print(f"linear, time kept: {pictures.told(counts, result['classes'])}")
    out.print(f"{result['encoder']} encoder, step {result['step']}; {clips['train']} train clips;")
    form = "splits: {splits}; {unlabelled} unlabelled, {} unreadable; {seconds} s"
    out.print(form.format(len(result["unreadable"]), **result))
    for path, cause in result["unreadable"].items():
        out.print(f"not read: {path}: {cause}")
