"""The training step of the published V-JEPA code, rebuilt from a description of what it does.

It is the opponent of `bench_published.py`. Nothing is copied: it is written from facts that
running and reading the released code gave, and it is proved equal to our step by
`tests/test_published_loop.py` and, on the stored run of the released code, by the same test.
What it does as published, and we do otherwise, is marked (1) to (10). Left out, in its favour:
DistributedDataParallel and the timers that wait for the device. Parameter names are ours.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidlearn.mask import Mask
from vidlearn.model import ModelConfig
from vidlearn.tokens import sincos_table


class Attention(nn.Module):
    """One linear map to queries, keys and values, then PyTorch's fused attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = (
            heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), nn.Module()
        self.mlp.fc1 = nn.Linear(width, int(width * ratio))
        self.mlp.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


def keep(x: Tensor, indices: Tensor) -> Tensor:
    """The kept tokens: (1) by a gather whose indices are repeated for every feature."""
    return torch.gather(x, 1, indices.unsqueeze(-1).repeat(1, 1, x.shape[-1]))


class Encoder(nn.Module):
    """A vision transformer on tubelets; (2) all are embedded again for every mask."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        box = cfg.tubelet, cfg.patch, cfg.patch
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(3, cfg.width, box, box)
        self.pos_embed = nn.Parameter(sincos_table(cfg.width, cfg.grid), requires_grad=False)
        shape = cfg.width, cfg.heads, cfg.mlp_ratio
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)

    def forward(self, clip: Tensor, indices: Tensor | None = None) -> Tensor:
        """[B, C, T, H, W] and optional indices [B, K] -> [B, N or K, D]."""
        x = self.patch_embed.proj(clip).flatten(2).transpose(1, 2) + self.pos_embed
        x = x if indices is None else keep(x, indices)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    """A narrow transformer over context tokens and mask tokens."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        width = cfg.pred_width
        self.predictor_embed = nn.Linear(cfg.width, width)
        table = sincos_table(width, cfg.grid)
        self.predictor_pos_embed = nn.Parameter(table, requires_grad=False)
        holes = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(cfg.mask_tokens))
        self.mask_tokens = nn.ParameterList(holes)
        shape = width, cfg.pred_heads, 4.0
        self.predictor_blocks = nn.ModuleList(Block(*shape) for _ in range(cfg.pred_depth))
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, cfg.width)

    def forward(self, context: Tensor, mask: Mask, kind: int) -> Tensor:
        """Context features [B, Kc, D] -> predictions [B, Kt, D]."""
        x, (b, n_context, _) = self.predictor_embed(context), context.shape
        table = self.predictor_pos_embed.repeat(b, 1, 1)  # (3) tables and mask tokens: B x N
        x = x + keep(table, mask.context_BK)
        hole = self.mask_tokens[kind].repeat(b, table.shape[1], 1)
        hole = keep(hole, mask.target_BK) + keep(table, mask.target_BK)
        x = torch.cat([x, hole], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x)[:, n_context:])  # (4) norm of all


class PublishedLoop:
    """Models, optimiser and step of the released `train.py`, on given weights (names as ours)."""

    def __init__(self, cfg: ModelConfig, weights: dict[str, Tensor], *, bf16: bool = False) -> None:
        self.encoder, self.predictor, self.bf16 = Encoder(cfg), Predictor(cfg), bf16
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        for name, part in self.parts().items():
            below = {k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(name + ".")}
            part.load_state_dict(below, strict=False)  # a file may leave the tables out
            assert below.keys() <= part.state_dict().keys(), f"{name}: other names"
            part.to(next(iter(weights.values())).dtype)
        kinds = [(d, part) for d in (True, False) for part in (self.encoder, self.predictor)]
        groups = [[p for p in x.parameters() if (p.ndim > 1) == d] for d, x in kinds]
        self.decays = [d for d, _ in kinds]
        self.optimizer = torch.optim.AdamW([{"params": x} for x in groups])  # (5) not fused
        # (6) A scaler without use for bfloat16. On a CPU it is off, so it costs nothing here.
        self.scaler = torch.amp.GradScaler("cuda", enabled=False)

    def parts(self) -> dict[str, nn.Module]:
        """The three networks by name."""
        return {n: getattr(self, n) for n in ("encoder", "predictor", "target_encoder")}

    def step(
        self, clips: Tensor, masks: list[Mask], rates: tuple[float, float, float], clip: float = 0
    ) -> dict[str, float]:
        """One step at (lr, weight decay, momentum); numbers as the released code logs them.

        On a CPU the released code computes in float32 whatever its configuration says, because
        it asks CUDA for mixed precision; `bf16` gives it to the CPU as well.
        """
        lr, decay, momentum = rates
        for group, on in zip(self.optimizer.param_groups, self.decays):
            group["lr"], group["weight_decay"] = lr, decay if on else 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                h = self.target_encoder(clips)
                h = F.layer_norm(h, h.shape[-1:])  # autocast: in float32
                goals = [keep(h, mask.target_BK) for mask in masks]
            contexts = [self.encoder(clips, mask.context_BK) for mask in masks]
            z = [self.predictor(*each, kind) for kind, each in enumerate(zip(contexts, masks))]
            jepa = sum(torch.mean(torch.abs(a - b) ** 1.0) / 1.0 for a, b in zip(z, goals))
            jepa = jepa / len(masks)
            # (7) A regulariser that is logged, and enters the loss with weight 0.
            spread = sum(torch.sqrt(a.var(dim=1) + 1e-4) for a in z) / len(z)
            reg = torch.mean(F.relu(1.0 - spread))
            loss = jepa + 0.0 * reg
        self.scaler.scale(loss).backward()
        norms = [math.nan, math.nan]
        if clip:
            pair = self.encoder, self.predictor
            norms = [float(nn.utils.clip_grad_norm_(x.parameters(), clip)) for x in pair]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        logged = self._log()
        self.optimizer.zero_grad()
        with torch.no_grad():  # (8) one parameter after the other, with a temporary each
            for q, k in zip(self.encoder.parameters(), self.target_encoder.parameters()):
                k.data.mul_(momentum).add_((1.0 - momentum) * q.detach().data)
        numbers = {"loss": float(loss.detach()), "jepa": float(jepa.detach())}  # (9) syncs
        numbers["reg"] = float(reg.detach())
        return {**numbers, "norm_encoder": norms[0], "norm_predictor": norms[1], **logged}

    def _log(self) -> dict[str, float]:
        """(10) Every step: the norm of each weight's gradient, the means of both moments of all."""
        sums = [0.0, 0.0, 0.0]
        for part in (self.encoder, self.predictor):
            for name, p in part.named_parameters():
                if p.grad is not None and p.ndim > 1 and not name.endswith(".bias"):
                    sums[0] += float(torch.norm(p.grad))
        for moments in self.optimizer.state.values():
            sums[1] += float(moments["exp_avg"].mean())
            sums[2] += float(moments["exp_avg_sq"].mean())
        return dict(zip(("grad_norms", "first_moments", "second_moments"), sums))
