"""The loss and the meters, against numbers worked out by hand."""

import math
import subprocess
import sys

import torch

from vidlearn.loss import (
    context_distance,
    effective_rank,
    latent_l1,
    normalize_target,
    spread,
    token_variance,
    variance_covariance,
)


def test_latent_l1_is_a_mean_of_each_clip():
    a = torch.zeros(2, 3, 4)
    b = torch.stack([torch.full((3, 4), 1.0), torch.full((3, 4), -0.5)])
    assert latent_l1(a, b).tolist() == [1.0, 0.5]


def test_the_loss_with_its_published_options():
    a, b = torch.zeros(1, 2, 4), torch.tensor([[[2.0] * 4, [4.0] * 4]])
    assert latent_l1(a, b, 2.0).item() == 5  # (4 + 16) / 2, over 2
    assert latent_l1(a, b, distance_BK=torch.tensor([[1.0, 2.0]])).item() == 2


def test_each_level_of_a_target_is_normalised_alone():
    x = torch.cat([torch.randn(2, 3, 8), 100 + 9 * torch.randn(2, 3, 8)], -1)
    y = normalize_target(x, 2)
    torch.testing.assert_close(y[..., 8:], normalize_target(x[..., 8:]))
    assert y[..., :8].std() > 0.5 > normalize_target(x)[..., :8].std()


def test_context_tokens_are_as_far_as_the_nearest_target():
    grid = (2, 3, 3)  # token = 9 t + 3 h + w
    away = context_distance(torch.tensor([[0, 8, 4]]), torch.tensor([[13, 12]]), grid)
    nearest = [2, 3, 1]  # squared: (1,1,0) from 12; (1,1,1) from 13; right below
    torch.testing.assert_close(away, torch.tensor([nearest]).float() ** 0.25)


def test_token_variance_is_zero_where_tokens_differ_enough():
    alike = token_variance([torch.ones(2, 5, 4)])
    assert abs(alike - (1 - 1e-2)) < 1e-6
    spread_out = torch.linspace(-9, 9, 5)[None, :, None].expand(2, 5, 4)
    assert token_variance([spread_out]) == 0
    assert token_variance([spread_out, torch.ones(2, 5, 4)]) == 0  # kinds are averaged first


CHILD = """
import sys, torch
from vidlearn.dist import init_distributed, shutdown
from vidlearn.loss import variance_covariance
me = init_distributed()
x = torch.load(sys.argv[1], weights_only=True).chunk(me.world)[me.rank].requires_grad_()
variance_covariance(x).backward()
torch.save(x.grad / me.world, f"{sys.argv[1]}.{me.rank}")
shutdown(me)
"""


def test_the_regulariser_of_two_processes_has_the_gradients_of_one(tmp_path):
    """Each with its own tokens, whose mean and covariance are those of all."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(3, 4, 6) * 0.3, torch.randn(3, 4, 6) * 0.8 + 1])
    torch.save(x, tmp_path / "x")
    x.requires_grad_()
    variance_covariance(x).backward()
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", str(tmp_path / "child.py"), str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = [torch.load(f"{tmp_path}/x.{rank}", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat(parts), x.grad, rtol=1e-5, atol=1e-7)


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
