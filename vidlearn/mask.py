"""Which tokens the encoder sees (context) and which the predictor must guess (target): chapter 9.

Input: the token grid and keys for the random numbers. Output: index lists, context [B, Kc] and
target [B, Kt], each in raster order. Blocks are drawn as in V-JEPA (Bardes et al. 2024, section 3
and appendix); two cuts make the lists of a batch equally long. "fair" cuts every clip by chance to
lengths fixed by the recipe. "vjepa1", as published, keeps the *first* tokens, as many as the
shortest list has: late ones are rarely used, and the task changes with the batch of a GPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidlearn.errors import ConfigError
from vidlearn.tokens import Grid


@dataclass(frozen=True)
class MaskSpec:
    """One kind of mask. Below 1, `seen_time` hides the future, which is predicted as well."""

    blocks: int  # number of blocks, each through all frames; 0: single places, drawn by chance
    spatial: float  # area of one block, or of all single places, as a share of the frame
    aspect: tuple[float, float] = (0.75, 1.5)  # least and greatest height / width of a block
    seen_time: float = 1.0  # the context may only lie in this first share of the clip
    context: float = 0.23  # share of all tokens that the fair cut keeps as context
    target: float = 0.48  # and as target


SHORT = MaskSpec(blocks=8, spatial=0.15, context=0.23, target=0.48)
LONG = MaskSpec(blocks=2, spatial=0.7, context=0.08, target=0.62)
HALF = MaskSpec(blocks=2, spatial=0.06, seen_time=0.5, context=0.42, target=0.45)
QUARTER = MaskSpec(blocks=2, spatial=0.06, seen_time=0.75, context=0.6, target=0.24)
TUBE = MaskSpec(blocks=0, spatial=0.9, context=0.06, target=0.85)  # Tong et al. 2022 (VideoMAE)
# What a recipe names: the published pair, or masks that hide the future.
MASKS: dict[str, tuple[MaskSpec, ...]] = {
    "vjepa": (SHORT, LONG), "future": (HALF, QUARTER), "short": (SHORT,), "long": (LONG,),
    "tube": (TUBE,),
}  # fmt: skip


@dataclass
class Mask:
    """Context [B, Kc] and target [B, Kt] token indices of a batch, each row rising."""

    context_BK: Tensor
    target_BK: Tensor

    def __getitem__(self, rows: slice) -> "Mask":
        """Some clips' rows."""
        return Mask(self.context_BK[rows], self.target_BK[rows])

    def to(self, device: torch.device | str) -> "Mask":
        """The same indices on another device."""
        return Mask(*(x.to(device, non_blocking=True) for x in (self.context_BK, self.target_BK)))


def block_size(spec: MaskSpec, grid: Grid, u: float) -> tuple[int, int]:
    """Height and width of a block in tokens, from one uniform number in [0, 1)."""
    _, height, width = grid
    area = int(height * width * spec.spatial)
    ratio = spec.aspect[0] + u * (spec.aspect[1] - spec.aspect[0])
    return min(round(math.sqrt(area * ratio)), height), min(round(math.sqrt(area / ratio)), width)


def draw_hidden(spec: MaskSpec, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """One clip's hidden tokens before any cut: bool [t, h, w], True where hidden."""
    if not spec.blocks:  # single places instead
        places = grid[1] * grid[2]
        hide = np.arange(places) < places - int(places * (1 - spec.spatial))
        return np.broadcast_to(rng.permutation(hide).reshape(grid[1:]), grid)
    return _blocks(spec, grid, (grid[0], *block_size(spec, grid, rng.random())), rng.integers)


def _blocks(spec: MaskSpec, grid: Grid, size: Grid, draw: Callable[[int], Any]) -> np.ndarray:
    """Hides blocks of `size`, at places of which `draw(n)` gives one of n, and the future."""
    hidden, (t, h, w) = np.zeros(grid, dtype=bool), size
    for _ in range(spec.blocks):
        top, left, start = (int(draw(grid[axis] - size[axis] + 1)) for axis in (1, 2, 0))
        hidden[start : start + t, top : top + h, left : left + w] = True
    hidden[max(1, int(grid[0] * spec.seen_time)) :] = True
    return hidden


def fair_lengths(spec: MaskSpec, grid: Grid) -> tuple[int, int]:
    """Kept context and target tokens of the fair cut: the same for every clip."""
    tokens = math.prod(grid)
    return max(1, int(tokens * spec.context)), max(1, int(tokens * spec.target))


def fair_masks(spec: MaskSpec, grid: Grid, keys: Sequence[tuple[int, ...]]) -> Mask:
    """Masks of a batch, one clip at a time: clip b depends on `keys[b]` alone.

    A key is a tuple of non-negative integers, such as (seed, step, sample index). ConfigError:
    the grid is too small for the lengths that the spec asks for.
    """
    lengths, rows = fair_lengths(spec, grid), []
    for key in keys:
        rng = np.random.default_rng(key)
        for _ in range(200):
            hidden = draw_hidden(spec, grid, rng).ravel()
            both = [(np.flatnonzero(x), n) for x, n in zip((~hidden, hidden), lengths)]
            if all(len(x) >= n for x, n in both):
                break
        else:
            few = f"leaves too few tokens on the grid {grid} for {lengths[0]} context and"
            remedy = "Use more --frames, a larger --size or other --masks"
            raise ConfigError(f"masks: {spec} {few} {lengths[1]} target tokens. {remedy}")
        rows.append([np.sort(rng.choice(x, n, replace=False)) for x, n in both])
    return Mask(*(torch.from_numpy(np.stack(side)) for side in zip(*rows)))


def published_masks(
    spec: MaskSpec, grid: Grid, batch: int, step: int, generator: torch.Generator | None = None, *,
    area_to: float | None = None, span: tuple[float, float] = (1.0, 1.0),
    max_keep: int | None = None, complement: str = "", swap: bool = False,
) -> Mask:  # fmt: skip
    """Masks of a batch as V-JEPA's released code cuts them.

    The block size comes from a generator seeded by `step` (so all ranks share it), the places from
    `generator` (default: torch's own), and all lists are cut to the shortest, the context also to
    `max_keep`. Blocks cover spec.spatial up to `area_to` of the frame and `span` of the time. Of
    V-JEPA 2: `complement` makes that list all that the other lacks, `swap` exchanges them.
    """
    # Drawn in this order, also where the range is one value.
    u = torch.rand(3, generator=torch.Generator().manual_seed(step)).tolist()
    t = max(1, int(grid[0] * (span[0] + u[0] * (span[1] - span[0]))))
    area = spec.spatial + u[1] * ((area_to or spec.spatial) - spec.spatial)
    size = t, *block_size(replace(spec, spatial=area), grid, u[2])
    draw = partial(torch.randint, size=(1,), generator=generator)
    rows: list[list[Tensor]] = []
    while len(rows) < batch:
        hidden = torch.from_numpy(_blocks(spec, grid, size, draw).ravel())
        if not hidden.all():  # else there is no context: drawn again
            rows.append([x.nonzero().flatten() for x in (~hidden, hidden)])
    least = [min(len(row[side]) for row in rows) for side in (0, 1)]
    least[0] = min(least[0], max_keep or least[0])
    lists = [torch.stack([row[side][: least[side]] for row in rows]) for side in (0, 1)]
    if complement:
        kept = lists[complement != "target"]
        rest = torch.ones(batch, math.prod(grid), dtype=torch.bool).scatter_(1, kept, False)
        lists[complement == "target"] = rest.nonzero()[:, 1].view(batch, -1)
    return Mask(*lists[::-1] if swap else lists)


def make_masks(
    names: str, cut: str, grid: Grid, *, seed: int, step: int, indices: Sequence[int], cycle: bool
) -> list[Mask]:
    """The masks of one training step, one for each kind in MASKS[names]; with `cycle` one in turn.

    `cut` is "fair" or "vjepa1"; `indices` are the sample indices of the clips on this rank.
    """
    if names not in MASKS or cut not in ("fair", "vjepa1"):
        text = f"masks={names!r}, mask_cut={cut!r}: known masks are {', '.join(MASKS)}"
        raise ConfigError(f"{text}; known cuts are fair and vjepa1")
    specs = list(enumerate(MASKS[names]))
    specs = [specs[step % len(specs)]] if cycle else specs
    if cut == "vjepa1" and not all(spec.blocks for _, spec in specs):
        raise ConfigError(f"masks={names!r} have no published cut: take --mask-cut fair")
    if cut == "fair":
        return [fair_masks(spec, grid, [(seed, k, step, i) for i in indices]) for k, spec in specs]
    place = torch.Generator().manual_seed(hash((seed, step, indices[0])) & 0x7FFFFFFF)
    return [published_masks(spec, grid, len(indices), step, place) for _, spec in specs]
