"""Instruments that look into an encoder: each one on made data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import see
from vidlearn.attentive import AttentiveProbe
from vidlearn.datasets import synth
from vidlearn.loss import normalize_target
from vidlearn.model import VJEPA, ModelConfig
from vidlearn.tokens import TubeletEmbed
from vidlearn.transform import normalize

GRID = (4, 6, 5)  # no two sides alike, so that a swapped axis shows
SMALL = ModelConfig(
    size=48, frames=8, patch=8, width=24, depth=2, heads=2, pred_width=12, pred_depth=1,
    pred_heads=1,
)  # fmt: skip


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_patches_are_the_pixels_under_each_token_and_come_back() -> None:
    """A tubelet embedding is one linear map of the same patches, in the same order."""
    clips = rand(2, 3, 8, 48, 40)
    found = see.patches(clips, GRID)
    assert found.shape == (2, 4, 30, 3 * 2 * 8 * 8)
    embed = TubeletEmbed(8, 2, 7)
    by_hand = found.flatten(1, 2) @ embed.proj.weight.flatten(1).T + embed.proj.bias
    assert torch.allclose(by_hand, embed(clips), atol=1e-4)
    assert torch.equal(see.unpatch(found, GRID, (3, 8, 48, 40)), clips)


def test_pixels_keep_clips_and_frames_apart() -> None:
    clips = np.zeros((2, 3, 8, 8, 3), np.uint8)
    clips[1, 2, :, :, 0] = 200
    small = see.pixels(clips, 4)
    assert small.shape == (2, 3, 3, 4, 4) and small.dtype == torch.uint8
    assert (small[1, 0, 2] == 200).all() and small.sum() == 200 * 16


@pytest.mark.parametrize("name", ["right", "up", "counterclockwise", "approaches"])
def test_centres_are_where_the_clip_shows_its_objects(name: str) -> None:
    """Without the first object other pixels change: their middle is its centre."""

    def whole(seed: int) -> bool:  # in the frame, and of a shape whose middle is its centre
        where = synth.objects(name, seed, "val").where[0]
        inside = (abs(where[:2] - 0.5) + where[2] < 0.5).all()
        return inside and synth.nuisances(seed, "val").shape != "triangle"

    seed = next(filter(whole, range(200)))
    with_it, without = (synth.draw(name, seed, "val", twist=t) for t in ("", "vanish"))
    away = np.abs(with_it.astype(int) - without).max(-1) > 12
    centre = see.centres(name, seed, "val", (16, 8, 8), stride=1)[0]
    for frame, (row, column) in zip(away, centre.tolist()):
        y, x = ((at.min() + at.max() + 1) / 2 / 8 - 0.5 for at in np.nonzero(frame))
        assert abs(x - column) < 0.15 and abs(y - row) < 0.15
    four = see.centres(name, seed, "val", (4, 8, 8))[0]
    assert torch.allclose(four, centre[::2].unflatten(0, (4, 2)).mean(1))


def test_centres_count_rows_and_columns_in_patches() -> None:
    truth = synth.objects("down", 3, "val")
    row, column = see.centres("down", 3, "val", GRID)[1, 2]
    x, y, _ = truth.where[1][:, [8, 10]].mean(1)
    assert (float(row), float(column)) == pytest.approx((6 * y - 0.5, 5 * x - 0.5))


def test_covered_patches_are_those_that_the_objects_touch() -> None:
    """All that changes when an object goes lies in covered patches, and those are not many."""
    grid, hits = (8, 8, 8), 0
    for seed in range(6):
        with_it, without = (synth.draw("right", seed, "val", twist=t) for t in ("", "vanish"))
        away = (np.abs(with_it.astype(int) - without).max(-1) > 25)[None, ..., None]
        changed = see.patches(torch.from_numpy(away).float().permute(0, 4, 1, 2, 3), grid)
        changed = changed.amax(-1)[0].unflatten(1, (8, 8)) > 0
        both = see.covered("right", seed, "val", grid, stride=1)
        assert not (changed & ~both).any()
        assert both.float().mean() < 0.4
        hits += int(changed.sum())
    assert hits > 100
    half = see.covered("appears", 1, "val", (16, 8, 8), stride=1).flatten(1).any(1)
    assert half.tolist() == synth.objects("appears", 1, "val").shown[0].tolist()


def test_colours_show_the_three_widest_directions_in_order() -> None:
    """Red is the widest; the sign follows the largest weight; all clips share the scale."""
    a, b, c = rand(2, 4, 30, seed=1), rand(2, 4, 30, seed=2), rand(2, 4, 30, seed=3)
    noise = 0.01 * rand(2, 4, 30, 7, seed=4)
    noise[..., 4] -= 9 * a
    noise[..., 1] += 4 * b
    noise[..., 6] += 2 * c
    image = see.pca_colours(noise, GRID)
    assert image.shape == (2, 4, 6, 5, 3) and image.dtype == np.uint8
    for channel, value in zip(range(3), (-a, b, c)):
        seen = torch.from_numpy(image[..., channel].astype(np.float32)).flatten()
        assert torch.corrcoef(torch.stack([seen, value.flatten()]))[0, 1] > 0.95
    assert np.array_equal(image, see.pca_colours(list(noise), GRID))
    assert np.array_equal(see.pca_colours(noise, GRID, zoom=3)[..., ::3, ::3, :], image)
    alone = see.pca_colours(noise[0], GRID)
    assert alone.shape == (4, 6, 5, 3) and not np.array_equal(alone, image[0])


FORMS = {
    "plain": {}, "four blocks": {"depth": 3}, "blocks after": {"depth": 2, "after": True},
    "incomplete": {"complete": False},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_attention_is_what_the_probe_reads(form: str) -> None:
    """The values, weighed by these weights, give what the probe's own forward makes of them."""
    torch.manual_seed(0)
    probe = AttentiveProbe(24, 3, 5, **FORMS[form]).eval().requires_grad_(False)
    probe.pooler["cross_attention_block"].requires_grad_(False)
    for p in probe.parameters():  # far from the flat attention of a fresh probe
        p += 0.3 * rand(*p.shape, seed=p.numel())
    tokens = rand(2, 120, 24)
    heads = see.attention_by_head(probe, tokens)
    assert heads.shape == (2, 3, 120)
    assert heads.std() > 0.2 / 120
    x = tokens
    for block in probe.pooler["blocks"] if form == "four blocks" else ():
        x = block(x)
    block = probe.pooler["cross_attention_block"]
    xattn = block["xattn"] if probe.complete else block
    read = block["norm1"](x) if probe.complete else x
    value = xattn["kv"](read).chunk(2, dim=-1)[1].unflatten(-1, (3, -1))
    pooled = torch.einsum("bhn,bnhd->bhd", heads, value).flatten(1)
    if probe.complete:
        pooled = pooled + probe.pooler.query_tokens[0]
        pooled = pooled + block["mlp"](block["norm2"](pooled))
    assert torch.allclose(pooled, probe._read(x), atol=1e-4)
    shares = see.attention_of(probe, tokens, GRID)
    assert shares.shape == (2, *GRID)
    assert torch.allclose(shares.sum((1, 2, 3)), torch.ones(2))
    assert torch.allclose(shares.flatten(1), heads.mean(1))


def test_a_fitted_probe_looks_where_the_label_is() -> None:
    """One token of 120 says what the class is; the others are noise."""
    labels = torch.arange(200) % 2
    tokens = rand(200, 120, 96)
    tokens[:, 47, :8] += 9.0  # the mark to look for
    tokens[:, 47, 20:28] += 9.0 * (2 * labels - 1)[:, None]
    probe = see.fit_probe(tokens[:150], labels[:150], 2, steps=150)
    assert (probe(tokens[150:]).argmax(1) == labels[150:]).float().mean() > 0.9
    shares = see.attention_of(probe, tokens[150:], GRID).mean(0)
    assert np.unravel_index(int(shares.argmax()), GRID) == (1, 3, 2)
    assert not probe.training


def test_neighbours_are_found_nearest_first() -> None:
    train = rand(50, 8) * torch.linspace(0.1, 30, 8) + 7
    query = train[[4, 9]] + 0.01
    who, near = see.neighbours(train, query, 3)
    assert who.shape == near.shape == (2, 3)
    assert who[:, 0].tolist() == [4, 9] and (near[:, 0] > 0.99).all()
    assert (near.diff(dim=1) <= 0).all()
    z = (train - train.mean(0)) / train.std(0)
    by_hand = torch.cosine_similarity((query[:1] - train.mean(0)) / train.std(0), z)
    assert near[0].tolist() == pytest.approx(by_hand.sort(descending=True).values[:3].tolist())
    assert see.neighbours(train, query, 99)[0].shape == (2, 50)


def test_a_planted_patch_is_tracked() -> None:
    tokens, way = rand(4, 30, 16), [(1, 2), (2, 2), (2, 3), (5, 4)]
    for step, (row, column) in enumerate(way):
        tokens[step, row * 5 + column] = (step + 1) * rand(16, seed=9)  # cosine, so length is free
    similar, path = see.track(tokens, (1, 2), GRID)
    assert similar.shape == GRID
    assert path.tolist() == [list(place) for place in way]
    assert similar[3, 5, 4].item() == pytest.approx(1)
    truth = torch.tensor(way) + torch.tensor([[9, 9], [0, 0], [3, 4], [0, 1]])
    assert see.off_track(path, truth) == pytest.approx((0 + 5 + 1) / 3)


def test_ridge_finds_a_linear_map_and_explained_counts_its_share() -> None:
    x = rand(400, 6) * 3 + 2
    y = x @ rand(6, 4, seed=1) + 5
    assert see.explained(see.ridge(x, y, 1e-9)(x), y) > 0.9999
    noisy = y + y.std() * rand(400, 4, seed=2)
    assert 0.3 < see.explained(see.ridge(x, noisy)(x), noisy) < 0.7
    assert see.explained(y.mean(0).expand_as(y), y) == pytest.approx(0, abs=1e-5)
    strong = see.ridge(x, y, 1e6)(x)  # so much decay leaves only the mean
    assert torch.allclose(strong, y.mean(0).expand_as(y), atol=1e-3)


def test_courses_share_all_but_the_objects() -> None:
    found = see.courses(2, 40)
    assert list(found) == ["", *synth.TWISTS]
    assert all(clips.shape == (2, 8, 64, 64, 3) for clips in found.values())
    for name in synth.TWISTS:
        assert 0.01 < (found[name] != found[""]).any(-1).mean() < 0.4
    middle = np.abs(found["reverse"][:, 4].astype(int) - found[""][:, 3]).max(-1)
    assert (middle > 60).mean() < 0.15, "the way back begins where the way there ended"
    assert not np.array_equal(found[""][0], found[""][1])


def test_courses_hold_clips_whose_objects_stay_in_sight() -> None:
    """Else there is nothing to be surprised by; on every course, of both objects, all the time."""

    def least(job: tuple[str, int, str]) -> float:  # distance of an object from the frame's edge
        both = [synth.objects(*job, twist=t).where[:, :2] for t in ("", "teleport", "reverse")]
        return min(0.5 - np.abs(where - 0.5).max() for where in both)

    jobs = [(see.MOVES[seed % 4], seed, "val") for seed in range(100)]
    inside = [job for job in jobs if least(job) > 0]
    assert 0.05 < len(inside) / len(jobs) < 0.8
    found = see.courses(3, 0)
    for clips, job in zip(zip(*found.values()), inside):
        for clip, twist in zip(clips, found, strict=True):
            assert np.array_equal(clip, synth.draw(*job, twist=twist)[::2])


def test_quads_join_halves_and_are_normalised_alike() -> None:
    a, b = (
        np.random.default_rng(n).integers(0, 100 + 100 * n, (2, 8, 48, 48, 3), np.uint8)
        for n in (0, 1)
    )
    four = see.quads(a, b, 48, "clip")
    assert list(four) == ["AA", "AB", "BA", "BB"]
    assert all(x.shape == (2, 3, 8, 48, 48) for x in four.values())
    for name, x in four.items():
        for half, letter in ((slice(0, 4), name[0]), (slice(4, 8), name[1])):
            assert torch.equal(x[:, :, half], four[2 * letter][:, :, half]), name
    plain = normalize(see.pixels(a, 48), "imagenet")
    assert torch.allclose(see.quads(a, b, 48, "imagenet")["AA"], plain)
    assert four["AA"].std() < 0.8 < four["BB"].std()  # not each by its own


@pytest.fixture(scope="module")
def model() -> VJEPA:
    torch.manual_seed(0)
    return VJEPA(SMALL).eval().requires_grad_(False)


class Knows(nn.Module):
    """A predictor that knows the truth, but for what it is told to add at one place of a step."""

    def __init__(self, target_BND: Tensor) -> None:
        super().__init__()
        self.target, self.asked = target_BND, []

    def forward(self, context, context_BK, target_BK, kind=0, *, grid=None):
        self.asked.append((context_BK[0].tolist(), target_BK[0].tolist(), kind))
        guess = self.target[:, target_BK[0]].clone()
        guess[:, 7] += 0.5 * len(self.asked)
        return torch.cat([guess, context + 99], dim=1)  # as a dense model, which adds the context


def test_surprise_is_the_error_at_each_place_of_the_next_step(model: VJEPA) -> None:
    clips = rand(2, 3, 8, 48, 48)
    knows = Knows(normalize_target(model.teach(clips)))
    kept, model.predictor = model.predictor, knows
    try:
        error = see.surprise(model, clips, (1, 2, 3), kinds=(0, 1, 1))
    finally:
        model.predictor = kept
    assert error.shape == (2, 3, 6, 6)
    expected = torch.zeros(3, 36)
    expected[:, 7] = torch.tensor([0.5, 1.0, 1.5])
    assert torch.allclose(error, expected.view(3, 6, 6).expand(2, -1, -1, -1), atol=1e-5)
    for step, (seen, asked, kind) in enumerate(knows.asked, 1):
        assert seen == list(range(36 * step))
        assert asked == list(range(36 * step, 36 * (step + 1)))
        assert kind == (0, 1, 1)[step - 1]


def test_the_past_alone_makes_the_prediction(model: VJEPA) -> None:
    """What happens after a step changes its target, never its guess."""
    guesses: list[Tensor] = []
    hook = model.predictor.register_forward_hook(lambda *call: guesses.append(call[2]))
    clips = rand(1, 3, 8, 48, 48)
    later = clips.clone()
    later[:, :, 4:] = 0
    for x in (clips, later):
        see.surprise(model, x, (2, 3))
    hook.remove()
    assert torch.equal(guesses[0], guesses[2]) and not torch.equal(guesses[1], guesses[3])


def test_other_sizes_and_dense_models_have_a_surprise(model: VJEPA) -> None:
    assert see.surprise(model, rand(1, 3, 12, 48, 32), (5,)).shape == (1, 1, 6, 4)
    dense = {**SMALL.__dict__, "dense": True, "levels": 4, "depth": 4, "pos": "rope21"}
    four = VJEPA(ModelConfig(**dense)).eval()
    assert see.surprise(four, rand(1, 3, 8, 48, 48), (2, 3)).shape == (1, 2, 6, 6)


def test_who_expects_no_change_errs_by_the_change() -> None:
    steps = torch.tensor([0.0, 1.0, 3.0, 7.0])[None, :, None, None].expand(2, 4, 30, 5)
    still = see.standstill(steps, GRID, (2, 3))
    assert still.shape == (2, 2, 6, 5)
    assert still[:, 0].unique().tolist() == [2.0] and still[:, 1].unique().tolist() == [4.0]


def test_surprise_is_weighed_against_all_places_the_worst_and_the_usual() -> None:
    usual = 1 + 0.1 * rand(500, 2, 3, 3)
    usual[:, :, 0, 0] = 10 + 5 * rand(500, 2)  # a place that is always hard
    error = torch.ones(1, 2, 3, 3)
    error[:, :, 0, 0] = 12
    error[0, 1, 2, 1] = 2.0  # one that is hard for once
    found = see.weigh(error, usual, top=1)
    assert all(value.shape == (1, 2) for value in found.values())
    assert found["mean"][0].tolist() == pytest.approx([20 / 9, 21 / 9])
    assert found["mean, top"][0].tolist() == [12, 12]
    assert found["unusual, top"][0, 0] < 1 and 8 < found["unusual, top"][0, 1] < 12
    assert 0.8 < found["unusual"][0, 1] - found["unusual"][0, 0] < 1.4
    two = see.weigh(error, usual, top=2)["mean, top"][0].tolist()
    assert two == [6.5, 7]


def test_told_counts_pairs_and_a_tie_is_not_told() -> None:
    rate = see.told(torch.tensor([2.0, 2, 1, 5]), torch.tensor([1.0, 3, 1, 4]))
    assert (rate["right"], rate["clips"], rate["percent"]) == (2, 4, 50)
    assert rate["low"] < 50 < rate["high"]


def test_a_harder_ending_is_not_taken_for_surprise() -> None:
    """Its half is on both sides where all four clips are compared; there only surprise counts."""
    harder, shock = torch.full((40,), 1.0), 0.1 + 0.05 * rand(40).abs()
    noise = 0.01 * rand(4, 40)
    names = ("AA", "AB", "BA", "BB")
    ends = dict(zip(names, (harder, 0 * harder, harder, 0 * harder)))  # A ends harder than B
    error = {n: ends[n] + shock * (n in ("AB", "BA")) + e for n, e in zip(names, noise)}
    rates = {name: rate["percent"] for name, rate in see.compare(error).items()}
    assert rates == {"same beginning": 0, "same ending": 100, "all four": 100}
