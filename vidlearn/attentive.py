"""A small classifier on frozen tokens, in the forms and names that V-JEPA and V-JEPA 2 published.

Input: an encoder's tokens [B, N, D]. Output: logits [B, classes]. Traded: while it trains it takes
a shorter way to the same sum, which is four times as fast and rounds otherwise. Chapter 10.
Shapes: B clips, N tokens, D width, H heads.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidlearn.transformer import MLP, Block, init_weights


class AttentiveProbe(nn.Module):
    """A learned query reads all tokens, then a linear layer.

    V-JEPA 2 has `depth` 4: three blocks of self-attention on the tokens before the query reads
    them. V-JEPA's blocks come `after` it. Without `complete` there are no norms and no MLP.
    """

    def __init__(
        self, width: int, heads: int, classes: int, depth: int = 1, *,
        after: bool = False, complete: bool = True, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.after, self.complete = heads, after, complete
        xattn = nn.ModuleDict({"q": nn.Linear(width, width), "kv": nn.Linear(width, 2 * width)})
        norms = {name: nn.LayerNorm(width, eps) for name in ("norm1", "norm2")}
        block = nn.ModuleDict({**norms, "xattn": xattn, "mlp": MLP(width, 4 * width)})
        self.pooler = nn.ModuleDict({"cross_attention_block": block if complete else xattn})
        if depth > 1:
            blocks = (Block(width, heads, 4.0, eps) for _ in range(depth - 1))
            self.pooler["blocks"] = nn.Sequential(*blocks)
        self.pooler.query_tokens = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.linear = nn.Linear(width, classes)
        self.apply(init_weights)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """[B, N, D] -> logits [B, classes]."""
        blocks = self.pooler["blocks"] if "blocks" in self.pooler else nn.Identity()
        if self.after:
            return self.linear(blocks(self._read(tokens_BND)[:, None])[:, 0])
        return self.linear(self._read(blocks(tokens_BND)))

    def _read(self, x_BND: Tensor) -> Tensor:
        pooler: Any = self.pooler
        block, query = pooler["cross_attention_block"], pooler.query_tokens[0]
        norm, xattn = (block["norm1"], block["xattn"]) if self.complete else (None, block)
        y = (_attend_fast if self.training else _attend)(query, x_BND, norm, xattn, self.heads)
        if self.complete:
            y = query + y
            y = y + block["mlp"](block["norm2"](y))
        return y


def _attend(query_1D: Tensor, x_BND: Tensor, norm: Any, xattn: Any, heads: int) -> Tensor:
    x_BND = x_BND if norm is None else norm(x_BND)
    key, value = xattn["kv"](x_BND).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    q = xattn["q"](query_1D).view(1, heads, 1, -1).expand(len(x_BND), -1, -1, -1)
    return F.scaled_dot_product_attention(q, key, value).flatten(1)


def _attend_fast(query_1D: Tensor, x_BND: Tensor, norm: Any, xattn: Any, heads: int) -> Tensor:
    """The same sum with one query, four times as fast: the query goes to the tokens' space."""
    # The norm's scale and shift can wait, too. What is added to every key alike cancels.
    key_HdD, value_HdD = xattn["kv"].weight.unflatten(0, (2, heads, -1))
    q_Hd = xattn["q"](query_1D).view(heads, -1) / math.sqrt(key_HdD.shape[1])
    ask_DH = torch.einsum("Hd,HdD->DH", q_Hd, key_HdD)
    if norm is not None:
        x_BND = F.layer_norm(x_BND, norm.normalized_shape, eps=norm.eps)
        ask_DH = norm.weight[:, None] * ask_DH
    read_BHD = (x_BND @ ask_DH).softmax(1).transpose(1, 2) @ x_BND
    if norm is not None:
        read_BHD = read_BHD * norm.weight + norm.bias
    y = torch.einsum("BHD,HdD->BHd", read_BHD, value_HdD).flatten(1)
    return y + xattn["kv"].bias.chunk(2)[1]
