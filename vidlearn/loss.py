"""What training minimises, and the meters that say whether it is healthy.

Input: predictions and targets [B, K, D]. Output: numbers to minimise and to watch: the loss can
fall while all clips get the same features (collapse), which spread and rank show. Chapter 9.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as td
from torch.autograd import Function
from torch.nn import functional as F

from vidlearn.tokens import Grid, positions


def normalize_target(target_BND: Tensor, levels: int = 1) -> Tensor:
    """Each token's features, level by level, brought to mean 0 and deviation 1, in float32."""
    x = target_BND.float().unflatten(-1, (levels, -1))
    return F.layer_norm(x, x.shape[-1:], eps=1e-5).flatten(-2)


def latent_l1(
    prediction_BKD: Tensor, target_BKD: Tensor, power: float = 1, distance_BK: Tensor | None = None
) -> Tensor:
    """Mean absolute difference [B] from a normalised target (Bardes et al. 2024, equation 1).

    Published options: `|difference|^power / power`, and tokens that weigh less by their distance.
    """
    off = (prediction_BKD.float() - target_BKD).abs()
    off = off if power == 1 else off**power / power
    return (off if distance_BK is None else off / distance_BK[..., None]).mean(dim=(1, 2))


def context_distance(context_BK: Tensor, target_BK: Tensor, grid: Grid) -> Tensor:
    """Square root of how far, in tokens, each context token is from the nearest target: [B, K].

    The dense loss divides by it, so that what lies beside a gap counts most (V-JEPA 2.1).
    """
    place = positions(grid, context_BK.device).float()
    return torch.cdist(place[context_BK], place[target_BK]).amin(-1).sqrt()


def token_variance(predictions: list[Tensor]) -> Tensor:
    """V-JEPA's penalty on predictions alike in all tokens of a clip: mean relu(1 - std)."""
    std = [(z_BKD.float().var(dim=1) + 1e-4).sqrt() for z_BKD in predictions]
    return F.relu(1 - torch.stack(std).mean(0)).mean()


def _over_ranks(_ctx: Any, x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    if td.is_initialized():
        td.all_reduce(total)
        total /= td.get_world_size()
    return total


class _GlobalMean(Function):
    """Mean over all ranks, as are its gradients, so that N processes equal one."""

    forward = backward = staticmethod(_over_ranks)  # type: ignore[assignment]


def variance_covariance(tokens_BKD: Tensor) -> Tensor:
    """Penalty on features that vary too little, or that vary together: a scalar.

    mean_d relu(1 - std_d) + sum_{d != e} cov_de^2 / D, over all tokens of all ranks. Every
    rank must hold equally many tokens. Source: Bardes et al. 2022 (VICReg).
    """
    x = tokens_BKD.float().flatten(0, 1)
    x = x - _GlobalMean.apply(x.mean(0))
    cov = _GlobalMean.apply(x.T @ x / x.shape[0])
    std = (cov.diagonal() + 1e-4).sqrt()
    return F.relu(1 - std).mean() + (cov.pow(2).sum() - cov.diagonal().pow(2).sum()) / len(cov)


@torch.no_grad()
def spread(features_ND: Tensor) -> float:
    """Mean deviation of a feature over tokens or clips; near 0 means collapse."""
    return features_ND.float().flatten(0, -2).std(0).mean().item()


@torch.no_grad()
def effective_rank(features_ND: Tensor) -> float:
    """Directions in use, 1 to D: exp of the singular values' entropy (Roy and Vetterli 2007)."""
    x = features_ND.float().flatten(0, -2)
    values = torch.linalg.svdvals(x - x.mean(0))
    p = values / values.sum().clamp_min(1e-12)
    return torch.exp(-(p * p.clamp_min(1e-12).log()).sum()).item()
