"""Look into a frozen video encoder: what its tokens hold, where a probe looks, what is expected.

Input: tokens of any encoder of `vidlearn`, and clips of `datasets.synth`, whose truth is known.
Output: tensors and shares, for `show` to draw. Traded: the instruments are linear or compare two
vectors, so they tell what lies open in the features, not what a network on top could dig out.
Taught in chapter 10.
Shapes: B or N clips, T time steps, h x w = S places, D width of a token, P numbers of a patch,
K neighbours. A grid is (T, h, w). Unit of distance: one patch.
"""

from collections.abc import Callable, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidlearn.attentive import AttentiveProbe
from vidlearn.datasets.synth import TWISTS, draw, objects
from vidlearn.loss import normalize_target
from vidlearn.mask import Mask
from vidlearn.model import VJEPA
from vidlearn.probe import score
from vidlearn.schedule import warmup_anneal
from vidlearn.tokens import Grid, positions, token_grid
from vidlearn.transform import normalize

MOVES = ("right", "left", "down", "up")  # the classes whose objects go somewhere
Score = dict[str, float]


def pixels(clips_BTHWC: np.ndarray, size: int) -> Tensor:
    """Drawn clips, resized as an encoder wants them: uint8 [B, C, T, size, size]."""
    clips = torch.from_numpy(np.ascontiguousarray(clips_BTHWC)).permute(0, 4, 1, 2, 3)
    small = F.interpolate(clips.flatten(0, 1), (size, size), mode="bilinear")
    return small.unflatten(0, clips.shape[:2])


def patches(clips_BCTHW: Tensor, grid: Grid) -> Tensor:
    """The pixels under each token: [B, C, frames, H, W] -> [B, T, S, P]."""
    x = clips_BCTHW
    for axis in (4, 3, 2):
        x = x.unflatten(axis, (grid[axis - 2], -1))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(2, 3)


def unpatch(patches_BTSP: Tensor, grid: Grid, shape: Sequence[int]) -> Tensor:
    """Clips of `shape` (C, frames, H, W) from their patches: the way back, [B, *shape]."""
    box = [whole // n for whole, n in zip(shape[1:], grid)]
    x = patches_BTSP.unflatten(3, (shape[0], *box)).unflatten(2, grid[1:])
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(x), *shape)


def centres(
    class_name: str, seed: int, split: str, grid: Grid, *, frames: int = 16, stride: int = 2
) -> Tensor:
    """Where both objects of a drawn clip are: row and column in patches, [2, T, 2].

    (0, 0) is the middle of the first patch. A step is the mean of its frames, every `stride`-th.
    """
    xy = objects(class_name, seed, split, frames=frames).where[:, :2, ::stride]
    steps = torch.from_numpy(xy.copy()).unflatten(-1, (grid[0], -1)).mean(-1)
    return steps.flip(1).transpose(1, 2) * torch.tensor(grid[1:]) - 0.5


def covered(
    class_name: str, seed: int, split: str, grid: Grid, *, frames: int = 16, stride: int = 2
) -> Tensor:
    """Patches that touch an object's circle in some frame of their step: bool [T, h, w]."""
    truth = objects(class_name, seed, split, frames=frames)
    x, y, radius = torch.from_numpy(truth.where.copy())[..., ::stride].unbind(1)  # [2, frames]
    shown = torch.from_numpy(truth.shown.copy())[:, ::stride]
    _, row, column = positions((1, *grid[1:])).T[..., None, None]  # [S, 1, 1]
    sides = zip((row, column), grid[1:], (y, x))
    gaps = [(((i + 0.5) / n - at).abs() - 0.5 / n).clamp_min(0) for i, n, at in sides]
    touched = ((torch.hypot(*gaps) < radius) & shown).any(1)  # [S, frames]
    return touched.unflatten(1, (grid[0], -1)).any(2).T.unflatten(1, grid[1:])


def pca_colours(tokens: Tensor | Sequence[Tensor], grid: Grid, *, zoom: int = 1) -> np.ndarray:
    """The three directions in which tokens vary most, as red, green, blue: uint8 [..., T, h, w, 3].

    Tokens [..., T, S, D], or a sequence of those of several clips; all share the directions and
    the scale, from the 2nd to the 98th per cent. The largest weight of a direction is positive, so
    that no sign is left to chance. Call it once for each encoder. `zoom`: pixels a token.
    """
    x = tokens if isinstance(tokens, Tensor) else torch.stack(list(tokens))
    flat = x.flatten(0, -2).double()
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    axes_D3 = vectors[:, -3:].flip(1)
    axes_D3 = axes_D3 * axes_D3.gather(0, axes_D3.abs().argmax(0, keepdim=True)).sign()
    y = flat @ axes_D3
    low, high = torch.quantile(y, torch.tensor([0.02, 0.98], dtype=y.dtype), dim=0)
    y = ((y - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    image = (255 * y).round().byte().view(*x.shape[:-2], *grid[1:], 3).numpy()
    return image.repeat(zoom, axis=-3).repeat(zoom, axis=-2)


def fit_probe(
    tokens_BND: Tensor, labels_B: Tensor, heads: int, *, steps: int = 300
) -> AttentiveProbe:
    """An attentive probe trained on frozen tokens, 64 clips a step, as `vidlearn.probe` does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = tokens_BND.shape[-1]
        probe = AttentiveProbe(width, heads, int(labels_B.max()) + 1)
        optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=1.0)
        for step in range(steps):
            rate = warmup_anneal(step, steps, warmup=steps // 10, start=0, peak=4 / width, final=0)
            optimizer.param_groups[0]["lr"] = rate
            pick = torch.randint(len(labels_B), (64,))
            loss = F.cross_entropy(probe(tokens_BND[pick]), labels_B[pick])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimizer.step()
    return probe.eval().requires_grad_(False)


@torch.no_grad()
def attention_by_head(probe: AttentiveProbe, tokens_BND: Tensor) -> Tensor:
    """How much of each token each head of the probe's query reads: [B, heads, N], sums of 1."""
    pooler: Any = probe.pooler
    x = tokens_BND
    for block in pooler["blocks"] if "blocks" in pooler and not probe.after else ():
        x = block(x)
    block = pooler["cross_attention_block"]
    x, xattn = (block["norm1"](x), block["xattn"]) if probe.complete else (x, block)
    key = xattn["kv"](x).chunk(2, dim=-1)[0].unflatten(-1, (probe.heads, -1))
    query = xattn["q"](pooler.query_tokens[0, 0]).view(probe.heads, -1)
    return (torch.einsum("hd,bnhd->bhn", query, key) / query.shape[1] ** 0.5).softmax(-1)


def attention_of(probe: AttentiveProbe, tokens_BND: Tensor, grid: Grid) -> Tensor:
    """The same as a mean over heads, on the grid: [B, T, h, w], 1 in sum for each clip."""
    return attention_by_head(probe, tokens_BND).mean(1).unflatten(1, grid)


def neighbours(train_ND: Tensor, query_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest train clips of each query, nearest first: indices and cosines, each [B, K].

    Features are first brought to mean 0 and deviation 1 over the train clips.
    """
    mean, std = train_ND.mean(0), train_ND.std(0).clamp_min(1e-6)
    a, b = (F.normalize((x - mean) / std, dim=1) for x in (train_ND, query_BD))
    near, who = (b @ a.T).topk(min(k, len(a)), dim=1)
    return who, near


def track(tokens_TSD: Tensor, start: tuple[int, int], grid: Grid) -> tuple[Tensor, Tensor]:
    """Follow a patch of the first step: its cosine with all patches, and the most similar ones.

    Similarities [T, h, w], and the path, row and column of the greatest at each step: [T, 2].
    """
    x = F.normalize(tokens_TSD, dim=-1)
    similar = (x @ x[0, start[0] * grid[2] + start[1]]).unflatten(1, grid[1:])
    best = similar.flatten(1).argmax(1)
    return similar, torch.stack([best // grid[2], best % grid[2]], dim=1)


def off_track(path_T2: Tensor, centre_T2: Tensor) -> float:
    """Mean distance, in patches, of a path from the true centres, without the first step."""
    return (path_T2 - centre_T2)[1:].float().norm(dim=-1).mean().item()


def ridge(x_ND: Tensor, y_NP: Tensor, decay: float = 1e-3) -> Callable[[Tensor], Tensor]:
    """The linear map from x to y with least squares, decay times the mean variance of x added."""
    mean_x, mean_y = x_ND.double().mean(0), y_NP.double().mean(0)
    x, y = x_ND.double() - mean_x, y_NP.double() - mean_y
    gram = x.T @ x
    pull = decay * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    weight_DP = torch.linalg.solve(gram + pull, x.T @ y)
    return lambda new: ((new.double() - mean_x) @ weight_DP + mean_y).to(y_NP.dtype)


def explained(guess: Tensor, truth: Tensor) -> float:
    """Share of the variance of `truth` [..., P] about its mean that a guess explains, at most 1."""
    flat = truth.flatten(0, -2)
    return 1 - ((guess - truth).square().sum() / (flat - flat.mean(0)).square().sum()).item()


def courses(
    n: int, first_seed: int, *, split: str = "val", frames: int = 16, stride: int = 2
) -> dict[str, np.ndarray]:
    """n drawn clips, and the same on each other course of `synth.TWISTS`: uint8 [n, T, H, W, 3].

    "" names the clips as they are. Taken are the seeds, from the first, with which the middles of
    both objects stay in the frame on all courses: what nobody sees can surprise nobody.
    """

    def stay(job: tuple[str, int]) -> bool:
        where = [objects(*job, split, frames=frames, twist=name).where for name in ("", *TWISTS)]
        xy = np.stack(where)[:, :, :2]
        return bool(((xy > 0) & (xy < 1)).all())

    jobs = ((MOVES[seed % len(MOVES)], seed) for seed in count(first_seed))
    kept = list(islice(filter(stay, jobs), n))
    return {
        name: np.stack([draw(*job, split, frames=frames, twist=name)[::stride] for job in kept])
        for name in ("", *TWISTS)
    }


def quads(a_BTHWC: np.ndarray, b_BTHWC: np.ndarray, size: int, how: str) -> dict[str, Tensor]:
    """Two courses, cut in half and joined in all four ways: pixels [B, C, T, size, size].

    AA and BB are as the world goes, AB and BA break its law halfway. All four of a clip are
    normalised by the same numbers, so that the first halves of AA and AB are equal.
    """
    (a, after_a), (b, after_b) = (np.split(x, 2, axis=1) for x in (a_BTHWC, b_BTHWC))
    four = np.concatenate([a, after_a, a, after_b, b, after_a, b, after_b], axis=1)
    parts = normalize(pixels(four, size), how).chunk(4, dim=2)
    return dict(zip(("AA", "AB", "BA", "BB"), parts))


@torch.no_grad()
def surprise(
    model: VJEPA, clips_BCTHW: Tensor, steps: Sequence[int], kinds: Sequence[int] = ()
) -> Tensor:
    """Error of each of these steps, predicted from all tokens before it: [B, len(steps), h, w].

    The mean absolute difference from the normalised target, as in the loss. `kinds`: the mask
    token for each step (default: the first). A target has read the whole clip, as in training;
    so it depends a little on the other steps, also for who predicts nothing.
    """
    box, (frames, height, width) = model.encoder.patch_embed, clips_BCTHW.shape[2:]
    grid = token_grid(frames, height, width, box.patch, box.tubelet)
    target = normalize_target(model.teach(clips_BCTHW), model.cfg.levels)
    every, places, errors = torch.arange(target.shape[1]), grid[1] * grid[2], []
    for at, step in enumerate(steps):
        seen, asked = every[: step * places], every[step * places : (step + 1) * places]
        mask = Mask(*(index.expand(len(target), -1) for index in (seen, asked)))
        guess, _ = model(clips_BCTHW, mask, kinds[at] if kinds else 0)
        # A dense model predicts the context as well, behind the targets.
        errors.append((guess[:, :places].float() - target[:, asked]).abs().mean(-1))
    return torch.stack(errors, dim=1).unflatten(2, grid[1:])


def standstill(features_BTSD: Tensor, grid: Grid, steps: Sequence[int]) -> Tensor:
    """The error of expecting these steps to be like those before them: [B, len(steps), h, w]."""
    at = torch.tensor(steps)
    change = (features_BTSD[:, at] - features_BTSD[:, at - 1]).abs().mean(-1)
    return change.unflatten(2, grid[1:])


def weigh(error_BThw: Tensor, usual_NThw: Tensor, top: int = 3) -> dict[str, Tensor]:
    """What may be called the surprise of a step, each [B, T]; here T counts the predicted steps.

    "mean" is the error over all places; "unusual" counts it in deviations from what ordinary clips
    have at that step and place; "mean, top" and "unusual, top" take the `top` worst places alone.
    """
    mean, std = usual_NThw.mean(0), usual_NThw.std(0).clamp_min(1e-6)
    plain, odd = error_BThw.flatten(2), ((error_BThw - mean) / std).flatten(2)
    kinds = {"mean": plain, "unusual": odd}
    worst = {f"{name}, top": x.topk(top).values for name, x in kinds.items()}
    return {name: x.mean(-1) for name, x in {**kinds, **worst}.items()}


def told(impossible_B: Tensor, possible_B: Tensor) -> Score:
    """Per cent of pairs in which the impossible clip surprises more, with its interval."""
    return score((impossible_B > possible_B).long(), torch.ones(len(possible_B), dtype=torch.long))


def compare(surprise_B: dict[str, Tensor]) -> dict[str, Score]:
    """`told` of the clips of `quads`: whose twin is it that surprises less?

    "same beginning": AB against AA, which end in different pictures, one of which may be harder;
    "same ending": AB against BB; "all four": AB + BA against AA + BB, where each half occurs
    equally often on both sides.
    """
    aa, ab, ba, bb = (surprise_B[name] for name in ("AA", "AB", "BA", "BB"))
    pairs = {"same beginning": (ab, aa), "same ending": (ab, bb), "all four": (ab + ba, aa + bb)}
    return {name: told(*pair) for name, pair in pairs.items()}
