"""Schedules start and end where they say."""

import pytest

from vidlearn.schedule import cosine, linear, ramp, warmup_anneal

ARGS = dict(warmup=10, start=1e-4, peak=1e-3, final=1e-6)


def test_ends_and_peak():
    rates = [warmup_anneal(s, 100, **ARGS) for s in range(100)]
    assert rates[0] == 1e-4 and rates[10] == 1e-3 == max(rates)
    assert rates[-1] == pytest.approx(1e-6, rel=1e-9)
    assert all(a < b for a, b in zip(rates[:10], rates[1:11]))
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


def test_halfway():
    assert cosine(0.5, 2.0, 1.0) == pytest.approx(1.5)
    assert linear(0.25, 0.0, 4.0) == 1.0


def test_a_run_shorter_than_its_warmup_still_works():
    assert [warmup_anneal(s, 2, **ARGS) for s in range(2)][1] < 1e-3


def test_a_rate_can_stay_up_and_fall_late_in_a_line():
    rates = [warmup_anneal(s, 100, **ARGS, anneal=20, shape="linear") for s in range(100)]
    peak, final = ARGS["peak"], ARGS["final"]
    assert rates[ARGS["warmup"] : 80] == [peak] * (80 - ARGS["warmup"])
    assert abs(rates[89] - (peak + final) / 2) < 1e-12 and abs(rates[99] - final) < 1e-12


def test_a_ramp_is_flat_straight_flat():
    assert [ramp(s, 10, 20) for s in (0, 10, 15, 20, 99)] == [0, 0, 0.5, 1, 1]
