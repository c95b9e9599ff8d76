"""Which tokens the encoder sees (context) and which the predictor must guess (target).

Input: the token grid and keys for the random numbers. Output: index lists, context [B, Kc]
and target [B, Kt], each in raster order. Blocks are drawn as in V-JEPA; two ways follow of
making the lists of a batch equally long:

- `cut="fair"` (default): every clip is cut by chance to lengths fixed by the recipe, so the
  masks depend on neither the batch size nor the number of processes, and early and late
  tokens are used alike.
- `cut="vjepa1"`: the published cut. All lists are shortened to the shortest of the batch,
  keeping the *first* tokens in raster order; late tokens are then rarely used, and the
  pre-training task changes with the batch size per GPU.

Taught in chapter 9. Source: Bardes et al. 2024 (V-JEPA), section 3 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vidlearn.errors import ConfigError
from vidlearn.tokens import Grid


@dataclass(frozen=True)
class MaskSpec:
    """One kind of mask. Shares are of all tokens of the grid.

    Args:
        blocks: number of blocks, spread over all frames.
        spatial: area of one block as a share of the frame.
        aspect: least and greatest height / width of a block.
        seen_time: the context may only lie in this first share of the clip; below 1
            the rest is the future, and is hidden and predicted as well.
        context, target: shares kept by the fair cut.
    """

    blocks: int
    spatial: float
    aspect: tuple[float, float] = (0.75, 1.5)
    seen_time: float = 1.0
    context: float = 0.23
    target: float = 0.48


SHORT = MaskSpec(blocks=8, spatial=0.15, context=0.23, target=0.48)
LONG = MaskSpec(blocks=2, spatial=0.7, context=0.08, target=0.62)
HALF = MaskSpec(blocks=2, spatial=0.06, seen_time=0.5, context=0.42, target=0.45)
QUARTER = MaskSpec(blocks=2, spatial=0.06, seen_time=0.75, context=0.6, target=0.24)
# What a recipe names: the published pair, or masks that hide the future.
MASKS: dict[str, tuple[MaskSpec, ...]] = {
    "vjepa": (SHORT, LONG),
    "future": (HALF, QUARTER),
    "short": (SHORT,),
    "long": (LONG,),
}


@dataclass
class Mask:
    """Context [B, Kc] and target [B, Kt] token indices of a batch, each row rising."""

    context_BK: Tensor
    target_BK: Tensor

    def to(self, device: torch.device | str) -> Mask:
        """The same indices on another device."""
        return Mask(
            self.context_BK.to(device, non_blocking=True),
            self.target_BK.to(device, non_blocking=True),
        )


def block_size(spec: MaskSpec, grid: Grid, u: float) -> tuple[int, int]:
    """Height and width of a block in tokens, from one uniform number in [0, 1)."""
    _, height, width = grid
    area = int(height * width * spec.spatial)
    ratio = spec.aspect[0] + u * (spec.aspect[1] - spec.aspect[0])
    return min(round(math.sqrt(area * ratio)), height), min(round(math.sqrt(area / ratio)), width)


def draw_hidden(spec: MaskSpec, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """One clip's hidden tokens before any cut: bool [t, h, w], True where hidden."""
    hidden = np.zeros(grid, dtype=bool)
    h, w = block_size(spec, grid, rng.random())
    for _ in range(spec.blocks):
        top = rng.integers(0, grid[1] - h + 1)
        left = rng.integers(0, grid[2] - w + 1)
        hidden[:, top : top + h, left : left + w] = True
    hidden[max(1, round(grid[0] * spec.seen_time)) :] = True
    return hidden


def fair_lengths(spec: MaskSpec, grid: Grid) -> tuple[int, int]:
    """Kept context and target tokens of the fair cut: the same for every clip."""
    tokens = math.prod(grid)
    return max(1, int(tokens * spec.context)), max(1, int(tokens * spec.target))


def fair_masks(spec: MaskSpec, grid: Grid, keys: Sequence[tuple[int, ...]]) -> Mask:
    """Masks of a batch, one clip at a time: clip b depends on `keys[b]` alone.

    Args:
        spec: the kind of mask.
        grid: tokens in time, height and width.
        keys: one tuple of non-negative integers a clip, such as (seed, step, sample index).

    Raises:
        ConfigError: the grid is too small for the lengths that the spec asks for.
    """
    n_context, n_target = fair_lengths(spec, grid)
    rows_c, rows_t = [], []
    for key in keys:
        rng = np.random.default_rng(key)
        for _ in range(200):
            hidden = draw_hidden(spec, grid, rng).ravel()
            seen, guess = np.flatnonzero(~hidden), np.flatnonzero(hidden)
            if len(seen) >= n_context and len(guess) >= n_target:
                break
        else:
            raise ConfigError(
                f"masks: {spec} leaves too few tokens on the grid {grid} for {n_context} context "
                f"and {n_target} target tokens. Use smaller shares, or a larger grid"
            )
        rows_c.append(np.sort(rng.choice(seen, n_context, replace=False)))
        rows_t.append(np.sort(rng.choice(guess, n_target, replace=False)))
    return Mask(torch.from_numpy(np.stack(rows_c)), torch.from_numpy(np.stack(rows_t)))


def published_masks(
    spec: MaskSpec, grid: Grid, batch: int, step: int, generator: torch.Generator | None = None
) -> Mask:
    """Masks of a batch as V-JEPA's released code cuts them.

    The block size comes from a generator seeded by `step` (so all ranks share it), the places
    from `generator` (default: torch's global one), and all lists are cut to the shortest.
    """
    sizes = torch.Generator().manual_seed(step)
    # Three numbers are drawn, for time, area and aspect ratio; V-JEPA's first two ranges are
    # single values, so only the third changes anything.
    u = (
        torch.rand(1, generator=sizes),
        torch.rand(1, generator=sizes),
        torch.rand(1, generator=sizes),
    )
    h, w = block_size(spec, grid, u[2].item())
    rows_c, rows_t = [], []
    for _ in range(batch):
        context = torch.empty(0, dtype=torch.int64)
        while len(context) == 0:
            hidden = torch.zeros(grid, dtype=torch.bool)
            for _ in range(spec.blocks):
                top, left, _start = (
                    int(torch.randint(0, n, (1,), generator=generator))
                    for n in (grid[1] - h + 1, grid[2] - w + 1, 1)
                )
                hidden[:, top : top + h, left : left + w] = True
            context = (~hidden.flatten()).nonzero().flatten()
        rows_c.append(context)
        rows_t.append(hidden.flatten().nonzero().flatten())
    n_context, n_target = min(map(len, rows_c)), min(map(len, rows_t))
    return Mask(
        torch.stack([row[:n_context] for row in rows_c]),
        torch.stack([row[:n_target] for row in rows_t]),
    )


def make_masks(
    names: str, cut: str, grid: Grid, *, seed: int, step: int, indices: Sequence[int], cycle: bool
) -> list[Mask]:
    """The masks of one training step, one for each kind that the recipe uses.

    Args:
        names: a key of MASKS.
        cut: "fair" or "vjepa1".
        indices: sample indices of the clips on this rank.
        cycle: take one kind a step in turn, instead of all kinds every step.
    """
    if names not in MASKS or cut not in ("fair", "vjepa1"):
        raise ConfigError(
            f"masks={names!r}, mask_cut={cut!r}: known masks are {', '.join(MASKS)}; "
            "known cuts are fair and vjepa1"
        )
    specs = list(enumerate(MASKS[names]))
    if cycle:
        specs = [specs[step % len(specs)]]
    if cut == "fair":
        return [
            fair_masks(spec, grid, [(seed, kind, step, i) for i in indices]) for kind, spec in specs
        ]
    place = torch.Generator().manual_seed(hash((seed, step, indices[0])) & 0x7FFFFFFF)
    return [published_masks(spec, grid, len(indices), step, place) for _, spec in specs]
