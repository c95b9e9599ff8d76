"""Tokens and positions: shapes, order, and what the two embeddings have in common."""

import math

import pytest
import torch

from vidlearn.tokens import (
    FrameEmbed,
    TubeletEmbed,
    gather_tokens,
    positions,
    resize_table,
    rotary_table,
    rotate,
    sincos_table,
    token_grid,
)


def clip(batch=2, frames=4, size=16):
    return torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(0))


def test_tokens_come_in_raster_order():
    embed = TubeletEmbed(patch=4, tubelet=2, width=5)
    x = clip()
    tokens = embed(x)
    assert tokens.shape == (2, 2 * 4 * 4, 5)
    n = 1 * 16 + 2 * 4 + 3  # t=1, h=2, w=3
    box = x[:, :, 2:4, 8:12, 12:16]
    by_hand = torch.einsum("bcthw,dcthw->bd", box, embed.proj.weight) + embed.proj.bias
    torch.testing.assert_close(tokens[:, n], by_hand)
    assert positions((2, 4, 4))[n].tolist() == [1, 2, 3]


def test_uniform_frames_are_a_special_case_of_tubelets():
    frames = FrameEmbed(patch=4, width=6)
    tubelets = TubeletEmbed(patch=4, tubelet=2, width=6)
    with torch.no_grad():
        tubelets.proj.weight.zero_()
        tubelets.proj.weight[:, :, 0] = frames.proj.weight
        tubelets.proj.bias.copy_(frames.proj.bias)
    x = clip()
    torch.testing.assert_close(tubelets(x), frames(x[:, :, ::2]))


def test_an_image_is_a_clip_of_one_frame():
    embed = FrameEmbed(patch=4, width=6)
    image = clip()[:, :, 0]
    torch.testing.assert_close(embed(image), embed(image.unsqueeze(2)))


@pytest.mark.parametrize("width,grid", [(96, (4, 6, 6)), (36, (4, 4, 4)), (24, (1, 4, 4))])
def test_sincos_rows_are_distinct_and_bounded(width, grid):
    table = sincos_table(width, grid)
    assert table.shape == (1, math.prod(grid), width) and table.dtype == torch.float32
    assert table.abs().max() <= 1
    assert torch.cdist(table[0], table[0]).fill_diagonal_(1).min() > 1e-3


def test_sincos_by_hand():
    # width 12, uniform: 4 numbers an axis = [sin x, sin x/100, cos x, cos x/100]
    row = sincos_table(12, (2, 3, 4))[0, 1 * 12 + 2 * 4 + 3]
    hand = [f(x / s) for x in (1, 2, 3) for f in (math.sin, math.cos) for s in (1, 100)]
    torch.testing.assert_close(row, torch.tensor(hand))


def test_resized_table_keeps_its_own_grid():
    table = sincos_table(24, (2, 4, 4))
    assert resize_table(table, (2, 4, 4), (2, 4, 4)) is table
    assert resize_table(table, (2, 4, 4), (4, 6, 6)).shape == (1, 144, 24)


@pytest.mark.parametrize("layout", ["rope2", "rope21"])
def test_rotary_products_depend_on_distance_only(layout):
    q, k = torch.randn(2, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table = [rotary_table(torch.tensor([[3, 1, 2], [5, 2, 2]]) + s, 24, layout=layout,
                          dtype=torch.float64) for s in (0, 7)]  # fmt: skip
    if layout == "rope2":
        # The published V-JEPA 2 layout turns the two numbers of a pair by different angles,
        # so only the later layout has this property; both keep vectors at distance 0 equal.
        cos, _ = table[0]
        assert not torch.allclose(cos[:, 0], cos[:, 1])
        return
    near, far = ((rotate(q, c[0], s[0]) * rotate(k, c[1], s[1])).sum() for c, s in table)
    torch.testing.assert_close(near, far)


def test_gather_is_indexing():
    x = torch.randn(3, 10, 4)
    keep = torch.tensor([[0, 9, 3], [1, 2, 3], [9, 8, 7]])
    expected = torch.stack([row[k] for row, k in zip(x, keep)])
    assert torch.equal(gather_tokens(x, keep), expected)
    assert torch.equal(gather_tokens(x[:1], keep), x[0][keep])


def test_grid_cuts_off_what_does_not_fit():
    assert token_grid(9, 50, 64, 8, 2) == (4, 6, 8)
