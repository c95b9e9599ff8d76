"""The loss and the meters, against numbers worked out by hand."""

import math

import torch

from vidlearn.loss import (
    effective_rank,
    latent_l1,
    normalize_target,
    spread,
    variance_covariance,
)


def test_latent_l1_is_a_mean_of_each_clip():
    a = torch.zeros(2, 3, 4)
    b = torch.stack([torch.full((3, 4), 1.0), torch.full((3, 4), -0.5)])
    assert latent_l1(a, b).tolist() == [1.0, 0.5]


def test_targets_have_mean_zero_and_deviation_one():
    y = normalize_target(torch.randn(2, 5, 64) * 7 + 3)
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(-1, unbiased=False), torch.ones(2, 5), atol=1e-3, rtol=0)


def test_collapse_costs_and_independent_features_do_not():
    torch.manual_seed(0)
    healthy = torch.randn(64, 64, 8)
    assert variance_covariance(healthy) < 0.02
    constant = torch.ones(4, 4, 8)
    assert abs(variance_covariance(constant) - (1 - 1e-2)) < 1e-5
    copies = healthy[..., :1].expand(-1, -1, 8)
    assert variance_covariance(copies) > 6  # 8 features, 7 others each, covariance 1


def test_meters_see_collapse():
    torch.manual_seed(0)
    x = torch.randn(4096, 16)
    assert abs(spread(x) - 1) < 0.05 and spread(torch.ones(10, 16)) == 0
    assert effective_rank(x) > 15
    assert effective_rank(x[:, :1] * torch.randn(1, 16)) < 1.01
    two = torch.cat([x[:, :2], torch.zeros(4096, 14)], dim=1)
    assert math.isclose(effective_rank(two), 2, rel_tol=0.01)
