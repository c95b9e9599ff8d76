"""From pixels to tokens, and where each token sits: patch embeddings and position codes.

Input: a clip of float pixels [B, C, T, H, W]. Output: tokens [B, N, D] in (t, h, w) raster order,
and position codes, added to tokens (sine and cosine) or applied to queries and keys (rotary).
Chapter 8. Source: Arnab et al. 2021 (ViViT), section 3.2; V-JEPA's tubelet is 2 x 16 x 16.
Shapes: B batch, C channels, T frames, H height, W width, N tokens, D embedding width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidlearn.errors import ConfigError

Grid = tuple[int, int, int]  # tokens in time, height and width


class TubeletEmbed(nn.Module):
    """Boxes of `tubelet` frames x `patch` x `patch` pixels, each projected."""

    def __init__(self, patch: int, tubelet: int, width: int, channels: int = 3) -> None:
        super().__init__()
        self.tubelet, self.patch, self.box = tubelet, patch, (tubelet, patch, patch)
        self.proj: nn.Conv2d | nn.Conv3d = nn.Conv3d(channels, width, self.box, stride=self.box)

    def forward(self, clip_BCTHW: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """[B, C, T, H, W], or an image [B, C, H, W] -> tokens [B, N, D], or the kept [B, K, D]."""
        x, channels, box = clip_BCTHW, self.proj.in_channels, self.box
        x = x.unsqueeze(2) if x.ndim == 4 and self.tubelet == 1 else x
        if x.ndim != 5 or x.shape[1] != channels or any(n < k for n, k in zip(x.shape[2:], box)):
            form = f"[B, {channels}, T, H, W], with T, H, W of at least {box}"
            raise ConfigError(f"a clip of shape {list(x.shape)}: give {form}")
        learns = (self.training and torch.is_grad_enabled()) or isinstance(self.proj, nn.Conv2d)
        if not (learns or x.is_meta or torch.is_autocast_enabled(x.device.type)):
            x = self.proj(x).flatten(2).transpose(1, 2)  # to the rounding of others' readers
            return x if keep_BK is None else gather_tokens(x, keep_BK)
        # Boxes as rows, then one linear map: the same sums, of the kept boxes only.
        for axis, k in zip((2, 3, 4), box):
            x = x.unfold(axis, k, k)
        x = x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)
        x = x if keep_BK is None else gather_tokens(x, keep_BK)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class FrameEmbed(TubeletEmbed):
    """Each frame cut into square patches, each projected: uniform frame sampling."""

    def __init__(self, patch: int, width: int, channels: int = 3) -> None:
        super().__init__(patch, 1, width, channels)
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)


def token_grid(frames: int, height: int, width: int, patch: int, tubelet: int) -> Grid:
    """How many tokens a clip of this size has in time, height and width; the rest is cut off."""
    return frames // tubelet, height // patch, width // patch


def positions(grid: Grid, device: torch.device | None = None) -> Tensor:
    """(t, h, w) of every token in raster order: int64 [N, 3]."""
    return torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid))


def _frequencies(n: int, device: torch.device) -> Tensor:
    """1 down to almost 1/10,000 in n steps of one ratio: float64 [n]."""
    return 10000.0 ** (-torch.arange(n, dtype=torch.float64, device=device) / n)


def sincos_table(width: int, grid: Grid, *, uniform: bool = True) -> Tensor:
    """The fixed position table that is added to tokens: float32 [1, N, D].

    Each axis owns sines of falling frequencies, then their cosines. With `uniform` (V-JEPA's
    `uniform_power`) all three get equally many and the last few are cut off; without it time gets
    half. A grid of one time step gives the two-dimensional table of image models.
    Source: Bardes et al. 2024 (V-JEPA); Vaswani et al. 2017 for the sine code.
    """
    place = positions(grid)
    shares = [math.ceil(width / 6) * 2] * 3 if uniform else [width // 2, width // 4, width // 4]
    shares = [0, width // 2, width // 2] if grid[0] == 1 else shares
    angles = [place[:, [i]] * _frequencies(d // 2, place.device) for i, d in enumerate(shares)]
    columns = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.cat(columns, dim=1)[None, :, :width].float()


def resize_table(table_1ND: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """Stretch a position table to another grid by trilinear interpolation: [1, N', D]."""
    if grid == new_grid:
        return table_1ND
    planes = table_1ND.transpose(1, 2).unflatten(2, grid)
    factor = [new / old for new, old in zip(new_grid, grid)]
    return F.interpolate(planes, scale_factor=factor, mode="trilinear").flatten(2).transpose(1, 2)


def rotary_table(
    place_N3: Tensor, head_width: int, *, layout: str = "rope2", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn pairs of query and key numbers by a token's (t, h, w).

    From positions [..., N, 3] to (cos, sin), each [..., N, head_width]. Each axis owns
    2 * ((head_width // 3) // 2) of them; the rest is not turned (cos 1, sin 0). The layout
    "rope2" repeats the list of frequencies (V-JEPA 2), "rope21" each one for its pair (V-JEPA 2.1).
    """
    d = 2 * ((head_width // 3) // 2)
    angle = place_N3.to(torch.float64)[..., None] * _frequencies(d // 2, place_N3.device)
    pair = torch.cat([angle, angle], -1) if layout == "rope2" else angle.repeat_interleave(2, -1)
    angle = F.pad(pair.flatten(-2), (0, head_width - 3 * d))
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last axis: x [..., N, d], cos and sin [N, d]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


def gather_tokens(tokens_BND: Tensor, keep_BK: Tensor) -> Tensor:
    """The kept tokens of each clip: [B, N, D] and indices [B, K] -> [B, K, D]."""
    batch, n, width = tokens_BND.shape
    if batch != 1:  # a batch of 1 is one table for all clips
        keep_BK = keep_BK + torch.arange(batch, device=keep_BK.device)[:, None] * n
    # A gather would first repeat the indices D times: 111 against 24 ms at ViT-L size on a CPU.
    flat = tokens_BND.reshape(batch * n, width).index_select(0, keep_BK.flatten())
    return flat.view(*keep_BK.shape, width)
