"""What each part of a small recipe is for: change one, train with several seeds, probe.

    .venv/bin/python tools/ablate.py [NAME ...] [--table laptop] [--seeds 3] [--jobs 2]

Each run is the package's own training step, on the built-in clips, which are decoded once and kept
in memory. Batches, crops and masks follow from the seed and the step, so a run repeats to the bit
on one machine. At some steps the target encoder is frozen and probed: a linear classifier on its
features, averaged over space, time kept, on new clips (val), on new objects, colours and speeds
(test), and on these in front of another kind of background (far). Beside it stand a random encoder,
which is the same run at step 0, and how much the predictions explain of what differs between 240
clips of val at the same place: a loss can fall without that.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vidlearn import dist, measure, probe, step
from vidlearn.batch import Batch
from vidlearn.datasets import open_data, synth
from vidlearn.loss import normalize_target
from vidlearn.mask import MASKS, MaskSpec, make_masks
from vidlearn.recipes import Config, recipe
from vidlearn.sample import clip_indices
from vidlearn.storage import iter_frames
from vidlearn.tokens import gather_tokens
from vidlearn.transform import normalize

RECORDS = Path("book/_static/records")
SPLITS = ("train", "val", "test", "far")
Clips = dict[str, tuple[Tensor, Tensor]]  # split -> uint8 [N, T, H, W, C], labels [N]
CLIPS: Clips = {}  # read once, before the workers are forked


class MeanGuess(nn.Module):
    """In place of a predictor: for every target the mean of the context."""

    def forward(
        self, context_BKD: Tensor, _: Tensor, target_BK: Tensor, *_a: Any, **_k: Any
    ) -> Any:
        """[B, Kc, D] -> [B, Kt, D]."""
        return context_BKD.mean(1, keepdim=True).expand(-1, target_BK.shape[1], -1)


def no_prediction(state: step.State) -> None:
    """Only the regulariser trains: predictions count for nothing."""
    forward = state.wrapped

    def silent(*args: Any) -> tuple[Tensor, Tensor]:
        prediction, context = forward(*args)
        return prediction.detach() + 0 * prediction.sum(), context

    state.wrapped = silent  # type: ignore[assignment]


def no_stop_gradient(state: step.State) -> None:
    """The encoder is its own teacher, and the targets learn, too."""
    state.model.teach = lambda clips: state.model.encoder(clips)  # type: ignore[method-assign]


def no_predictor(state: step.State) -> None:
    """The guess is the mean of the context."""
    state.model.predictor.forward = MeanGuess().forward  # type: ignore[method-assign]


def pixels(state: step.State) -> None:
    """The targets are the pixels of each box, normalised box by box (Tong et al. 2022)."""
    model, config = state.model, state.config
    box = config.tubelet, config.patch, config.patch

    def boxes(clip_BCTHW: Tensor) -> Tensor:
        for axis, k in zip((2, 3, 4), box):
            clip_BCTHW = clip_BCTHW.unfold(axis, k, k)
        return clip_BCTHW.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)

    model.teach = boxes  # type: ignore[method-assign]
    model.predictor.predictor_proj = nn.Linear(config.pred_width, 3 * math.prod(box))
    state.optimizers = step.make_optimizers(model, config)


# How much is hidden: of the time, beside the two blocks of the recipe's masks, or of the places.
MASKS |= {
    "last_quarter": (MASKS["future"][1],),
    "last_half": (MASKS["future"][0],),
    "three_quarters": (replace(MASKS["future"][0], seen_time=0.25, context=0.2, target=0.7),),
    "tube_half": (MaskSpec(0, 0.5, context=0.47, target=0.47),),
    "tube_three_quarters": (MaskSpec(0, 0.75, context=0.23, target=0.72),),
}


class Variant(NamedTuple):
    """Changes of the recipe, what is done to the state, how many times as long it trains."""

    changes: dict[str, Any] = {}  # noqa: RUF012 - never changed
    prepare: Callable[[step.State], None] = lambda _: None
    longer: float = 1.0


VARIANTS: dict[str, Variant] = {
    "as it is": Variant(),
    "no prediction, regulariser only": Variant({}, no_prediction),
    "no regulariser": Variant({"var_cov": 0.0}),
    "no slow teacher": Variant({"ema": (0.0, 0.0)}),
    "no stop-gradient": Variant({}, no_stop_gradient),
    "no predictor": Variant({}, no_predictor),
    "hidden: the last quarter": Variant({"masks": "last_quarter"}),
    "hidden: the last half": Variant({"masks": "last_half"}),
    "hidden: the last three quarters": Variant({"masks": "three_quarters"}),
    "half hidden, in tubes": Variant({"masks": "tube_half"}),
    "three quarters hidden, in tubes": Variant({"masks": "tube_three_quarters"}),
    "nine tenths hidden, in tubes": Variant({"masks": "tube"}),
    "published masks": Variant({"masks": "vjepa"}),
    "published masks and cut": Variant({"masks": "vjepa", "mask_cut": "vjepa1"}),
    "frames, no tubelets": Variant({"tubelet": 1}),
    "every frame, not every second": Variant({"stride_frames": 1}),
}
# Rivals with the same clips, network, optimiser, normalisation and, all in all, a third more CPU
# seconds: a step on pixels is cheaper, for nobody teaches, so there are more of them.
RIVALS: dict[str, Variant] = {
    "as it is": Variant(),
    "no prediction, regulariser only": Variant({}, no_prediction, 1.2),
    "pixels as targets": Variant({}, pixels, 1.68),
    "pixels in tubes (VideoMAE)": Variant({"masks": "tube", "var_cov": 0.0}, pixels, 2.52),
}


class Table(NamedTuple):
    """A record: its recipe, what is changed in it, and the length of a run (None: the recipe's)."""

    recipe: str
    variants: dict[str, Variant]
    steps: int | None = None


ADAMW = [name for name in VARIANTS if "hidden" not in name]
AT_WORK = [name for name in VARIANTS if name != "no prediction, regulariser only"]
TABLES = {  # by the name of the record's file
    "laptop": Table("laptop", RIVALS),
    "ablations": Table("laptop", {name: VARIANTS[name] for name in AT_WORK}, 1200),
    "laptop-adamw": Table("laptop-adamw", {name: VARIANTS[name] for name in ADAMW}),
}


def read_clips(data: Path) -> Clips:
    """The built-in set in memory."""
    manifest, found = open_data(data), {}
    for split in SPLITS:
        rows = [row for row in manifest.rows if row.split == split]
        clips = np.stack([np.stack([*iter_frames(row.path)]) for row in rows])
        labels = torch.tensor([manifest.label_index(row) for row in rows])
        found[split] = torch.from_numpy(clips), labels
    return found


def batch_of(config: Config, clips_NTHWC: Tensor, number: int) -> Batch:
    """The training batch of a step."""
    rng = np.random.default_rng([config.seed, number])
    rows = rng.choice(len(clips_NTHWC), config.batch, replace=False)
    spec, transform = config.clip_spec(), config.transform(True)
    drawn = []
    for row in rows:
        frames = clip_indices(spec, clips_NTHWC.shape[1], rng=rng)[0]
        drawn.append(transform(clips_NTHWC[row, frames], rng))
    n = torch.from_numpy(rows)
    return Batch(torch.stack(drawn), torch.full_like(n, -1), n, n >= 0, [])


def views(config: Config, clips_NTHWC: Tensor) -> Tensor:
    """Centre views, not yet normalised: [N, C, T, H, W]."""
    transform = config.transform(False)
    frames = clip_indices(config.clip_spec(), clips_NTHWC.shape[1])[0]
    return torch.stack([transform(x[frames], np.random.default_rng(0)) for x in clips_NTHWC])


@torch.inference_mode()
def features(encoder: Any, config: Config, clips_NTHWC: Tensor) -> Tensor:
    """Centre views -> features averaged over space: [N, T', D]."""
    found = []
    for part in clips_NTHWC.split(60):
        tokens = encoder(normalize(views(config, part), config.input_norm))
        found.append(tokens.unflatten(1, (encoder.cfg.grid[0], -1)).mean(2))
    return torch.cat(found)


def probed(encoder: Any, config: Config, clips: Clips) -> dict[str, float]:
    """Per cent right on val, test and far."""
    (train, labels), *rest = (clips[split] for split in SPLITS)
    guess = probe.linear(
        (features(encoder, config, train), labels),
        torch.cat([features(encoder, config, x) for x, _ in rest]),
    ).split([len(y) for _, y in rest])
    right = [100 * (g == y).float().mean().item() for g, (_, y) in zip(guess, rest)]
    return dict(zip(SPLITS[1:], (round(x, 1) for x in right)))


def misses(goal_BND: Tensor, target_BK: Tensor, prediction: Tensor) -> tuple[float, float]:
    """Squared errors of what differs between clips: of the prediction, and of no prediction.

    From both sides the mean of each place is taken: what is said of every clip tells none apart.
    """
    places = goal_BND.shape[1]
    wanted = gather_tokens(goal_BND, target_BK) - goal_BND.mean(0)[target_BK]
    count = torch.bincount(target_BK.flatten(), minlength=places).clamp_min(1)[:, None]
    total = torch.zeros(places, goal_BND.shape[2])
    total.index_add_(0, target_BK.flatten(), prediction.flatten(0, 1))
    told = prediction - (total / count)[target_BK]
    return float((told - wanted).pow(2).sum()), float(wanted.pow(2).sum())


@torch.no_grad()
def explained(state: step.State, clips_NTHWC: Tensor) -> float:
    """1 - squared error over variance, of what differs between new clips, all kinds of masks."""
    c = state.config
    x = normalize(views(c, clips_NTHWC), c.input_norm)
    key: dict[str, Any] = {"seed": 0, "step": 0, "indices": range(len(x))}
    masks = make_masks(c.masks, c.mask_cut, state.model.cfg.grid, cycle=False, **key)
    goal = normalize_target(state.model.teach(x))
    kinds = [0 if c.mask_cycle else kind for kind in range(len(masks))]
    pairs = [misses(goal, m.target_BK, state.model(x, m, k)[0]) for k, m in zip(kinds, masks)]
    ours, usual = (sum(side) for side in zip(*pairs))
    return 1 - ours / usual


def run(name: str, seed: int, steps: int, table: str = "ablations") -> dict[str, Any]:
    """One training run of one variant of a recipe: its curve, a line for each probed step."""
    torch.set_num_threads(1)
    clips = CLIPS
    changes, prepare, longer = TABLES[table].variants[name]
    steps = round(steps * longer)
    config = replace(recipe(TABLES[table].recipe), **changes, seed=seed, steps=steps)
    state = step.build(config, dist.init_distributed())
    prepare(state)
    own = name == "no stop-gradient"
    encoder = state.model.encoder if own else state.model.target_encoder
    curve: list[dict[str, float]] = [{"step": 0, **probed(encoder, config, clips)}]
    spent = 0.0
    for number in range(steps):
        began = time.process_time()
        batch = batch_of(config, clips["train"][0], number)
        numbers = step.train_step(state, batch)
        spent += time.process_time() - began
        if state.step in (steps // 4, steps // 2, steps):
            share = explained(state, clips["val"][0][:240])
            with torch.no_grad():  # spread and rank are of features, also where pixels are targets
                numbers["target"] = encoder(normalize(batch.clips, config.input_norm))
            line = step.metrics_of(state, numbers)
            kept = {k: round(line[k], 4) for k in ("loss", "spread", "effective_rank")}
            now = {"step": state.step, **kept, "explained": round(share, 3)}
            curve.append({**now, **probed(encoder, config, clips)})
    return {"name": name, "seed": seed, "cpu_s": round(spent, 1), "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help=", ".join(VARIANTS | RIVALS))
    parser.add_argument("--table", choices=TABLES, default="ablations")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of a run; by default the table's")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data/synth"))
    parser.add_argument("--out", type=Path, help="file to write; by default the table's record")
    args = parser.parse_args()
    base, variants, usual = TABLES[args.table]
    steps = args.steps or usual or recipe(base).steps
    if odd := set(args.names) - set(variants):
        parser.error(f"no variant {sorted(odd)}; known: {', '.join(variants)}")
    if not args.data.exists():
        synth.make_shown(args.data)
    CLIPS.update(read_clips(args.data))
    jobs = [(n, seed) for seed in range(args.seeds) for n in args.names or variants]
    one, runs = partial(run, steps=steps, table=args.table), []
    about = {"machine": measure.machine_card(), "steps": steps, "seeds": args.seeds}
    # Forked workers share the clips; torch has not started a thread here yet.
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("fork")) as pool:
        for found in pool.map(one, *zip(*jobs)):
            runs.append(found)
            print(found["name"], found["seed"], found["curve"][-1], flush=True)
            text = json.dumps({**about, "recipe": base, "runs": runs}, indent=1)
            (args.out or RECORDS / f"{args.table}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
