"""The transformer block of encoder, predictor and probe, under published names (chapter 8).

Tokens [B, N, D] in and out, turned by rotary positions if given. Source: Dosovitskiy et al. 2021.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from vidlearn.tokens import rotate

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each [B or 1, 1, N, head width]


class Attention(nn.Module):
    """Every token asks every other token; rotary positions turn queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, rotary: Rotary | None = None, last: int = 0) -> Tensor:
        """[B, N, D] -> [B, N, D]; only of the `last` tokens, if it is given: [B, last, D]."""
        heads = self.qkv(x_BND).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        q, k, v = heads.split(self.heads, dim=1)  # whose gradients are joined by one copy
        if rotary is not None:
            q, k = (rotate(x, *rotary).to(v.dtype) for x in (q, k))
        y = F.scaled_dot_product_attention(q[:, :, -last:], k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Sequential):
    """Two linear maps with a GELU between, on each token alone: [..., D] -> [..., D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)


class Block(nn.Module):
    """Attention, then MLP; each reads a normalised copy and adds to the stream."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, round(width * mlp_ratio))

    def forward(self, x_BND: Tensor, rotary: Rotary | None = None, last: int = 0) -> Tensor:
        """[B, N, D] -> [B, N, D]; only of the `last` tokens, if it is given: [B, last, D]."""
        x_BND = x_BND[:, -last:] + self.attn(self.norm1(x_BND), rotary, last)
        return x_BND + self.mlp(self.norm2(x_BND))


def init_weights(module: nn.Module) -> None:
    """The published start: trunc-normal 0.02 weights, zero biases, plain layer norms."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
        if not module.weight.is_meta:  # a shape without numbers
            nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
