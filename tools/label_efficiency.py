"""Few labels: a frozen encoder and a line, or the same network trained on the labels alone?

    .venv/bin/python tools/label_efficiency.py [--labels 10 50 100] [--seeds 3] [--seconds 65]

For so many labelled clips a class, drawn by each seed from the built-in clips: a linear probe with
time kept on the trained encoder and on a random one, both frozen; and the encoder of that shape
with a linear layer on the same features, trained from scratch on these clips, with the crops and
the optimisers of the pre-training, for some CPU seconds (--seconds). All are asked about new clips
(val), new objects, colours and speeds (test), and other backgrounds (far). Rates and decay of the
supervised training are one setting that was not tuned, and its last step is what counts. Memory,
batches and features are those of ablate.py.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate import CLIPS, SPLITS, batch_of, features, probed, read_clips
from vidlearn import measure
from vidlearn.datasets import synth
from vidlearn.model import Encoder
from vidlearn.pretrained import load_pretrained
from vidlearn.recipes import Config
from vidlearn.schedule import warmup_anneal
from vidlearn.transform import normalize

OUT = Path("book/_static/records/label_efficiency.json")
SHIPPED = Path("book/assets/laptop/encoder.safetensors")
RATE, DECAY = 1e-3, 0.05  # of the supervised training: AdamW; matrices as the recipe trains them


@dataclass(frozen=True)
class Task:
    """What all runs share."""

    encoder: Path  # the trained one
    steps: int  # of the supervised training


def choose(labels: Tensor, each: int, seed: int) -> Tensor:
    """Numbers of `each` clips of every class, in rising order; ValueError: there are fewer."""
    rng, picks = np.random.default_rng(seed), []
    for label in labels.unique().tolist():
        mine = np.flatnonzero(labels.numpy() == label)
        picks.append(rng.choice(mine, each, replace=False))
    return torch.from_numpy(np.sort(np.concatenate(picks)))


def fresh(config: Config, seed: int) -> Encoder:
    """A random encoder."""
    torch.manual_seed(seed)
    return Encoder(config.model())


class Supervised:
    """The encoder and a linear layer on its features with time kept, and what trains them."""

    def __init__(self, config: Config, classes: int, steps: int) -> None:
        self.config, self.steps = config, steps
        self.encoder = fresh(config, config.seed)
        self.head = nn.Linear(self.encoder.cfg.grid[0] * config.width, classes)
        both = [*self.encoder.parameters(), *self.head.parameters()]
        flat, rest = ([p for p in both if (p.ndim == 2) == matrix] for matrix in (True, False))
        if not config.muon_lr:
            flat, rest = [], both
        adamw = torch.optim.AdamW(rest, lr=RATE, weight_decay=DECAY, fused=True)
        self.optimizers: list[tuple[float, torch.optim.Optimizer]] = [(RATE, adamw)]
        if flat:  # a baseline gets every trick of the method
            muon = torch.optim.Muon(flat, lr=config.muon_lr, weight_decay=DECAY)
            self.optimizers.append((config.muon_lr, muon))

    def step(self, clips_NTHWC: Tensor, labels_N: Tensor, number: int) -> float:
        """One step on a batch of these clips; returns the loss."""
        batch = batch_of(self.config, clips_NTHWC, number)
        share = warmup_anneal(number, self.steps, warmup=self.steps // 10, start=0, peak=1, final=0)
        for rate, optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate * share
        tokens = self.encoder(normalize(batch.clips, self.config.input_norm))
        x = tokens.unflatten(1, (self.encoder.cfg.grid[0], -1)).mean(2)
        loss = F.cross_entropy(self.head(x.flatten(1)), labels_N[batch.indices])
        for _, optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for _, optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def percent(self, clips_NTHWC: Tensor, labels_N: Tensor) -> float:
        """Per cent right of centre views."""
        logits = self.head(features(self.encoder, self.config, clips_NTHWC).flatten(1))
        return round(100 * (logits.argmax(1) == labels_N).float().mean().item(), 1)


def steps_in(seconds: float, config: Config, tries: int = 12) -> int:
    """How many supervised steps take so many CPU seconds here, by the middle of some tries."""
    clips, labels = CLIPS["train"]
    trial, spent = Supervised(config, int(labels.max()) + 1, tries), []
    for number in range(tries):
        began = time.process_time()
        trial.step(clips, labels, number)
        spent.append(time.process_time() - began)
    return max(1, round(seconds / float(np.median(spent[2:]))))


def run(each: int, seed: int, task: Task) -> list[dict[str, Any]]:
    """One draw of labels: a line for each of the three ways."""
    torch.set_num_threads(1)
    (clips, labels), shipped = CLIPS["train"], load_pretrained(task.encoder)
    config, pick = shipped.config, choose(labels, each, seed)
    few = {**CLIPS, "train": (clips[pick], labels[pick])}
    ways = {"trained encoder": shipped.encoder, "random encoder": fresh(config, seed)}
    about: dict[str, Any] = {"labels": each, "seed": seed}
    lines = [{**about, "way": w, **probed(net.eval(), config, few)} for w, net in ways.items()]
    began, config = time.process_time(), replace(config, seed=seed)
    net = Supervised(config, int(labels.max()) + 1, task.steps)
    losses = [net.step(*few["train"], number) for number in range(task.steps)]
    spent = {"cpu_s": round(time.process_time() - began, 1), "loss": round(losses[-1], 4)}
    right = {split: net.percent(*few[split]) for split in SPLITS}
    return [*lines, {**about, "way": "supervised", **right, **spent}]


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Mean, least and most over seeds, a row for each way and number of labels."""
    told = []
    for each, way in product(sorted({x["labels"] for x in lines}), {x["way"]: 0 for x in lines}):
        mine = [x for x in lines if (x["labels"], x["way"]) == (each, way)]
        cells = []
        for split in SPLITS[1:]:
            x = [line[split] for line in mine]
            cells.append(f"{split} {np.mean(x):.1f} ({min(x):.1f} to {max(x):.1f})")
        told.append(f"{each:4} labels a class, {way:16}{', '.join(cells)}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=65, help="of CPU, supervised training")
    parser.add_argument("--encoder", type=Path, default=SHIPPED)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data/synth"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.data.exists():
        synth.make_shown(args.data)
    CLIPS.update(read_clips(args.data))
    fewest = int(CLIPS["train"][1].bincount().min())
    if max(args.labels) > fewest:
        parser.error(f"--labels {max(args.labels)}: a class of {args.data} has {fewest} clips")
    steps = steps_in(args.seconds, load_pretrained(args.encoder).config)
    one, lines = partial(run, task=Task(args.encoder, steps)), []
    jobs = list(product(args.labels, range(args.seeds)))
    # Forked workers share the clips; torch runs one thread here.
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("fork")) as pool:
        for found in pool.map(one, *zip(*jobs)):
            lines += found
            print(*found, sep="\n", flush=True)
    print(*table(lines), sep="\n")
    about = {"machine": measure.machine_card(), "encoder": str(args.encoder), "rate": RATE}
    about |= {"decay": DECAY, "seconds": args.seconds, "steps": steps, "seeds": args.seeds}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**about, "runs": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
