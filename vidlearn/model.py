"""The V-JEPA model: an encoder, a predictor, and a slow copy of the encoder as the teacher.

Input: clips of normalised float pixels [B, C, T, H, W] and index lists of tokens. Output: features
[B, N, D], and for training the predicted and the target features. Parameter names are those of the
published checkpoints, as are the sizes of ModelConfig.of. Taught in chapters 8 and 9.
Shapes: B batch, N tokens, K kept, D width. Source: Bardes et al. 2024; Dosovitskiy et al. 2021.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from vidlearn import tokens
from vidlearn.errors import ConfigError
from vidlearn.mask import Mask
from vidlearn.tokens import Grid
from vidlearn.transformer import Block, Rotary, init_weights

# width, depth, heads and MLP ratio of the published vision transformers
SIZES: dict[str, tuple[int, int, int, float]] = {
    "micro": (96, 4, 3, 4.0), "tiny": (192, 12, 3, 4.0), "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0), "large": (1024, 24, 16, 4.0), "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11), "gigantic": (1664, 48, 16, 64 / 13),
}  # fmt: skip
# What V-JEPA 2.1 adds to all tokens of a video, and to those of an image.
MARKS = ("video_mod_embed", "img_mod_embed")


@dataclass(frozen=True)
class ModelConfig:
    """The model's shape. `pos` is "sincos" (V-JEPA), "rope2" (V-JEPA 2) or "rope21" (2.1).

    `dense` is what V-JEPA 2.1 adds: images embedded apart, learned marks for image and video, four
    norms along the depth, and predictions of the context. With `levels` 4 the outputs of four
    depths go side by side to predictor and targets. `pred_out`: width of a larger teacher's.
    """

    size: int = 224
    frames: int = 16
    patch: int = 16
    tubelet: int = 2
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    pred_width: int = 384
    pred_depth: int = 12
    pred_heads: int = 16
    mask_tokens: int = 2
    pos: str = "sincos"
    dense: bool = False
    levels: int = 1
    pred_out: int = 0
    recompute: bool = False  # forget what blocks computed, and compute it again in the backward

    def __post_init__(self) -> None:
        pairs = ("width heads", "pred_width pred_heads", "size patch", "frames tubelet")
        for whole, part in map(str.split, pairs):
            a, b = getattr(self, whole), getattr(self, part)
            if b < 1 or (a % b and not (whole == "frames" and a == 1)):
                raise ConfigError(f"model: {whole}={a} is not a multiple of {part}={b}")
        if self.pos not in ("sincos", "rope2", "rope21"):
            raise ConfigError(f"model: pos={self.pos!r}; known: sincos, rope2, rope21")
        if (self.dense and self.depth % 4) or self.levels not in (1, 4 if self.dense else 1):
            text = f"model: dense={self.dense}, levels={self.levels}, depth={self.depth}"
            raise ConfigError(f"{text}: dense wants a depth in fours, and allows 1 or 4 levels")

    @classmethod
    def of(cls, name: str, **changes: Any) -> "ModelConfig":
        """The published size `name`, with any field changed."""
        if name not in SIZES:
            raise ConfigError(f"model: no size {name!r}; known: {', '.join(SIZES)}")
        width, depth, heads, ratio = SIZES[name]
        base = cls(width=width, depth=depth, heads=heads, mlp_ratio=ratio, pred_heads=heads)
        return replace(base, **changes)

    @property
    def grid(self) -> Grid:
        """Tokens in time, height and width."""
        tubelet = 1 if self.frames == 1 else self.tubelet
        return tokens.token_grid(self.frames, self.size, self.size, self.patch, tubelet)

    @property
    def out_width(self) -> int:
        """Numbers of a token that the encoder hands out: D, or 4 D for four levels."""
        return self.width * self.levels

    @property
    def n_tokens(self) -> int:
        """Tokens of one clip."""
        return math.prod(self.grid)


@torch.no_grad()
def _start(net: nn.Module, blocks: Any, cfg: ModelConfig, width: int) -> None:
    """Published weights at step 0. V-JEPA's training undid what its blocks had: less by depth."""
    for name in MARKS if cfg.dense else ():
        net.register_parameter(name, nn.Parameter(torch.randn(1, 1, width) * 1e-6))
    net.apply(init_weights)
    for number, block in enumerate(blocks if cfg.pos != "sincos" else (), 1):
        block.attn.proj.weight /= math.sqrt(2 * number)
        block.mlp.fc2.weight /= math.sqrt(2 * number)


def _run(block: nn.Module, cfg: ModelConfig, *x: Any) -> Tensor:
    if cfg.recompute and torch.is_grad_enabled():
        return checkpoint(block, *x, use_reentrant=False)
    return block(*x)


class Encoder(nn.Module):
    """A vision transformer over tubelets; with index lists it sees only the kept tokens."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch_embed = tokens.TubeletEmbed(cfg.patch, cfg.tubelet, cfg.width)
        if cfg.frames == 1:
            self.patch_embed = tokens.FrameEmbed(cfg.patch, cfg.width)
        if cfg.pos == "sincos":
            self.pos_embed = nn.Buffer(tokens.sincos_table(cfg.width, cfg.grid))
        shape = cfg.width, cfg.heads, cfg.mlp_ratio
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(cfg.depth))
        norms = [nn.LayerNorm(cfg.width, eps=1e-6) for _ in range(4 if cfg.dense else 1)]
        if cfg.dense:
            self.patch_embed_img = tokens.TubeletEmbed(cfg.patch, 1, cfg.width)
            self.norms_block = nn.ModuleList(norms)
        else:
            self.norm = norms[0]
        _start(self, self.blocks, cfg, cfg.width)

    def embed(self, clip_BCTHW: Tensor, keep_BK: Tensor | None = None) -> tuple[Tensor, Grid]:
        """All tokens, or the kept, with their positions added: [B, N or K, D]; and the grid."""
        frames = clip_BCTHW.shape[2] if clip_BCTHW.ndim == 5 else 1
        image = self.cfg.dense and frames == 1
        patches = self.patch_embed_img if image else self.patch_embed
        x, (height, width) = patches(clip_BCTHW, keep_BK), clip_BCTHW.shape[-2:]
        grid = tokens.token_grid(frames, height, width, self.cfg.patch, patches.tubelet)
        if self.cfg.pos == "sincos":
            table = tokens.resize_table(self.pos_embed, self.cfg.grid, grid)
            x = x + (table if keep_BK is None else tokens.gather_tokens(table, keep_BK))
        return x + getattr(self, MARKS[image]) if self.cfg.dense else x, grid

    def forward(self, clip_BCTHW: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """[B, C, T, H, W] and optional indices [B, K] -> features [B, N or K, out_width]."""
        cfg, (x, grid) = self.cfg, self.embed(clip_BCTHW, keep_BK)
        rotary = _rotary(cfg, grid, keep_BK, cfg.width // cfg.heads, x)
        norms = list(self.norms_block if cfg.dense else [self.norm])[-cfg.levels :]
        levels: list[Tensor] = []
        for number, block in enumerate(self.blocks, 1):
            x = _run(block, cfg, x, rotary)
            if number * cfg.levels % cfg.depth == 0:
                levels.append(norms[len(levels)](x))
        return levels[0] if cfg.levels == 1 else torch.cat(levels, dim=-1)


def _rotary(
    cfg: ModelConfig, grid: Grid, keep_BK: Tensor | None, head: int, like: Tensor
) -> Rotary | None:
    """Cosines and sines for the kept tokens, once for all blocks; None where tables are added."""
    if cfg.pos == "sincos":
        return None
    place = tokens.positions(grid, like.device)
    if cfg.pos == "rope21":  # frames of any size span the 16 x 16 places of the first training
        span = torch.tensor([1, *(15 / max(1, n - 1) for n in grid[1:])], dtype=torch.float64)
        place = place * span.to(like.device)
    place = place[None] if keep_BK is None else place[keep_BK]
    exact = torch.promote_types(like.dtype, torch.float32)  # bfloat16 would blur the positions
    cos, sin = tokens.rotary_table(place, head, layout=cfg.pos, dtype=exact)
    return cos[:, None], sin[:, None]


class Predictor(nn.Module):
    """A narrow transformer that guesses the target tokens' features from the context's."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        width, out = cfg.pred_width, cfg.pred_out or cfg.out_width
        self.predictor_embed: nn.Module = nn.Linear(cfg.width, width)
        if cfg.levels > 1:
            first = nn.Linear(cfg.out_width, cfg.width)
            self.predictor_embed = nn.Sequential(first, nn.GELU(), self.predictor_embed)
        if cfg.pos == "sincos":
            self.predictor_pos_embed = nn.Buffer(tokens.sincos_table(width, cfg.grid))
        holes = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(cfg.mask_tokens))
        self.mask_tokens = nn.ParameterList(holes)
        shape = width, cfg.pred_heads, 4.0  # whatever the encoder has, as published
        self.predictor_blocks = nn.ModuleList(Block(*shape) for _ in range(cfg.pred_depth))
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, out)
        if cfg.dense:
            self.predictor_proj_context = nn.Linear(width, out)
        _start(self, self.predictor_blocks, cfg, width)

    def forward(
        self, context_BKD: Tensor, context_BK: Tensor, target_BK: Tensor, kind: int = 0, *,
        grid: Grid | None = None, image: bool = False,
    ) -> Tensor:  # fmt: skip
        """Context features, both index lists, a mask token -> predictions [B, Kt, D].

        A dense model predicts the context as well, after the targets: [B, Kt + Kc, D].
        `grid` is that of the clip where it is not the model's own, `image` its kind.
        """
        cfg = self.cfg
        x, n_target = self.predictor_embed(context_BKD), target_BK.shape[1]
        hole = self.mask_tokens[kind].to(x.dtype).expand(len(x), n_target, -1)
        x, keep = torch.cat([x, hole], dim=1), torch.cat([context_BK, target_BK], dim=1)
        if cfg.pos == "sincos":
            x = x + tokens.gather_tokens(self.predictor_pos_embed, keep)
        x = x + getattr(self, MARKS[image]) if cfg.dense else x
        rotary = _rotary(cfg, grid or cfg.grid, keep, cfg.pred_width // cfg.pred_heads, x)
        *blocks, final = self.predictor_blocks
        for block in blocks:
            x = _run(block, cfg, x, rotary)
        # After the last block nobody reads the context, but in a dense model.
        x = _run(final, cfg, x, rotary, 0 if cfg.dense else n_target)
        targets = self.predictor_proj(self.predictor_norm(x[:, -n_target:]))
        if not cfg.dense:
            return targets
        context = self.predictor_proj_context(self.predictor_norm(x[:, :-n_target]))
        return torch.cat([targets, context], dim=1)


class VJEPA(nn.Module):
    """Encoder, predictor and the target encoder that follows the encoder slowly."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.predictor = Predictor(cfg)
        for name, weight in self.named_parameters():  # training reads videos only, and
            weight.requires_grad_("img_" not in name and "_img" not in name)  # DDP waits for all
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    @torch.no_grad()
    def teach(self, clip_BCTHW: Tensor) -> Tensor:
        """What the target encoder says of normalised pixels, whole: [B, N, out_width]."""
        return self.target_encoder(clip_BCTHW)

    def forward(self, clip_BCTHW: Tensor, mask: Mask, kind: int = 0) -> tuple[Tensor, Tensor]:
        """Predictions [B, Kt, D] and context features [B, Kc, D], with the mask token `kind`."""
        context = self.encoder(clip_BCTHW, mask.context_BK)  # hidden tokens are not even embedded
        boxes, (frames, height, width) = self.encoder.patch_embed, clip_BCTHW.shape[2:]
        grid = tokens.token_grid(frames, height, width, boxes.patch, boxes.tubelet)
        return self.predictor(context, mask.context_BK, mask.target_BK, kind, grid=grid), context

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder towards the encoder: target <- m target + (1 - m) encoder."""
        slow, fast = (
            [p.to_local() if isinstance(p, DTensor) else p for p in part.parameters()]
            for part in (self.target_encoder, self.encoder)
        )
        torch._foreach_lerp_(slow, fast, 1 - momentum)

    def blocks(self) -> list[nn.Module]:
        """All transformer blocks, of the three parts."""
        return [part for part in self.modules() if isinstance(part, Block)]
