"""Masks: lengths, independence from the batch, fairness in time, and the published cut."""

import numpy as np
import pytest
import torch

from vidlearn.errors import ConfigError
from vidlearn.mask import (
    LONG,
    MASKS,
    SHORT,
    MaskSpec,
    block_size,
    draw_hidden,
    fair_lengths,
    fair_masks,
    make_masks,
    published_masks,
)

LAPTOP_GRID, VIT_GRID = (4, 6, 6), (8, 14, 14)


@pytest.mark.parametrize("grid", [LAPTOP_GRID, VIT_GRID, (4, 4, 4), (8, 8, 8)])
@pytest.mark.parametrize("name", list(MASKS))
def test_context_and_target_are_disjoint_rising_and_of_fixed_length(name, grid):
    for spec in MASKS[name]:
        mask = fair_masks(spec, grid, [(0, 0, i) for i in range(50)])
        n_context, n_target = fair_lengths(spec, grid)
        assert mask.context_BK.shape == (50, n_context) and mask.target_BK.shape == (50, n_target)
        for context, target in zip(mask.context_BK.tolist(), mask.target_BK.tolist()):
            assert context == sorted(set(context)) and target == sorted(set(target))
            assert not set(context) & set(target)
            assert 0 <= min(context + target) and max(context + target) < np.prod(grid)


def test_a_clip_has_the_same_mask_in_any_batch():
    keys = [(0, 7, i) for i in range(8)]
    whole = fair_masks(SHORT, VIT_GRID, keys)
    parts = [fair_masks(SHORT, VIT_GRID, keys[i : i + 3]) for i in (0, 3, 6)]
    assert torch.equal(whole.target_BK, torch.cat([p.target_BK for p in parts]))


def test_the_published_cut_does_depend_on_the_batch():
    kept = [
        np.mean([published_masks(SHORT, VIT_GRID, b, s).context_BK.shape[1] for s in range(20)])
        for b in (1, 24)
    ]
    assert kept[0] > 1.3 * kept[1]


@pytest.mark.parametrize("spec", [SHORT, LONG])
def test_fair_masks_use_early_and_late_tokens_alike_and_the_published_ones_do_not(spec):
    t, per_frame = VIT_GRID[0], VIT_GRID[1] * VIT_GRID[2]

    def by_time(index_lists):
        return np.bincount(np.concatenate(index_lists) // per_frame, minlength=t)

    fair = fair_masks(spec, VIT_GRID, [(3, i) for i in range(300)])
    share = by_time(fair.context_BK.numpy())
    assert share.min() > 0.8 * share.max()
    torch.manual_seed(0)
    published = [published_masks(spec, VIT_GRID, 24, s) for s in range(12)]
    share = by_time([m.context_BK.flatten().numpy() for m in published])
    assert share[-1] < 0.3 * share[0]


def test_the_future_is_hidden():
    half, quarter = MASKS["future"]
    mask = fair_masks(half, LAPTOP_GRID, [(1, i) for i in range(20)])
    assert mask.context_BK.max() < 2 * 36
    mask = fair_masks(quarter, LAPTOP_GRID, [(1, i) for i in range(20)])
    assert mask.context_BK.max() < 3 * 36 and mask.target_BK.max() >= 3 * 36


def test_blocks_span_all_frames():
    hidden = draw_hidden(SHORT, VIT_GRID, np.random.default_rng(0))
    assert (hidden == hidden[:1]).all() and 0 < hidden.mean() < 1


def test_block_size_by_hand():
    # 14 x 14 x 0.15 = 29 tokens; ratio 0.75 -> round(4.66) x round(6.22)
    assert block_size(SHORT, VIT_GRID, 0.0) == (5, 6)
    assert block_size(MaskSpec(1, 0.9, aspect=(3.0, 3.0)), VIT_GRID, 0.5)[0] == 14  # capped


def test_published_options():
    spec = MaskSpec(2, 0.2)
    plain = published_masks(spec, VIT_GRID, 4, 0, torch.Generator().manual_seed(0))
    per_frame = 14 * 14

    def drawn(**how):
        return published_masks(spec, VIT_GRID, 4, 0, torch.Generator().manual_seed(0), **how)

    assert torch.equal(drawn(max_keep=7).context_BK, plain.context_BK[:, :7])
    swapped = drawn(swap=True)
    assert torch.equal(swapped.context_BK, plain.target_BK)
    whole = drawn(complement="target", max_keep=50)
    for context, target in zip(whole.context_BK.tolist(), whole.target_BK.tolist()):
        assert sorted(context + target) == list(range(8 * per_frame)) and len(context) == 50
    rest = drawn(complement="context")
    assert torch.equal(rest.target_BK, plain.target_BK)
    assert rest.context_BK.shape[1] == 8 * per_frame - plain.target_BK.shape[1]
    one = MaskSpec(1, 0.2)
    short = [published_masks(one, VIT_GRID, 1, s, span=(0.3, 0.8)).target_BK[0] for s in range(40)]
    spans = {len((tokens // per_frame).unique()) for tokens in short}
    assert spans == {2, 3, 4, 5, 6} and len({int(tokens[0]) // per_frame for tokens in short}) > 3
    assert len(drawn(area_to=0.9).target_BK[0]) > len(plain.target_BK[0])


def test_tubes_hide_the_same_places_in_all_frames():
    mask = fair_masks(MASKS["tube"][0], VIT_GRID, [(0, i) for i in range(8)])
    for context, target in zip(mask.context_BK, mask.target_BK):
        assert len((context % 196).unique()) <= 19 and not {*(context % 196)} & {*(target % 196)}
    with pytest.raises(ConfigError, match="masks='tube' have no published cut: take --mask-cut"):
        make_masks("tube", "vjepa1", VIT_GRID, seed=0, step=0, indices=[0], cycle=False)
    hidden = draw_hidden(MaskSpec(0, 0.75), (4, 8, 8), np.random.default_rng(0))
    assert (hidden == hidden[:1]).all() and hidden[0].sum() == 48


@pytest.mark.parametrize("batch", [1, 24, 128])
@pytest.mark.parametrize("spec", [SHORT, LONG])
def test_fair_masks_have_one_distribution_at_any_batch_size(spec, batch):
    """Lengths are the same; each time slot has its fair share within a tenth."""
    clips, grid = 768, VIT_GRID
    keys = [(0, i) for i in range(clips)]
    masks = [fair_masks(spec, grid, keys[i : i + batch]) for i in range(0, clips, batch)]
    for field, length in zip(("context_BK", "target_BK"), fair_lengths(spec, grid)):
        rows = torch.cat([getattr(m, field) for m in masks])
        assert rows.shape == (clips, length)
        share = (rows.flatten() // 196).bincount(minlength=8) / rows.numel() * 8
        assert (share - 1).abs().max() < 0.1, share


def test_two_masks_of_a_step_differ_and_cycling_takes_one():
    kwargs = dict(seed=0, step=3, indices=[4, 5])
    both = make_masks("vjepa", "fair", VIT_GRID, cycle=False, **kwargs)
    one = make_masks("vjepa", "fair", VIT_GRID, cycle=True, **kwargs)
    assert len(both) == 2 and len(one) == 1
    assert torch.equal(one[0].target_BK, both[1].target_BK)  # step 3 is odd: the second kind
    assert make_masks("vjepa", "vjepa1", VIT_GRID, cycle=False, **kwargs)[0].context_BK.ndim == 2


def test_impossible_masks_are_one_clear_error():
    with pytest.raises(ConfigError, match="leaves too few tokens"):
        fair_masks(MaskSpec(1, 0.9, context=0.5), VIT_GRID, [(0,)])
    with pytest.raises(ConfigError, match="known masks are vjepa"):
        make_masks("tubes", "fair", VIT_GRID, seed=0, step=0, indices=[0], cycle=False)
