"""The transform: one box and one flip for a clip, and the published arithmetic."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from vidlearn.errors import ConfigError, VidlearnError
from vidlearn.transform import ClipTransform, crop_box, normalize


def clip_of(frames: int = 5, height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    """Smooth moving colours: [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.integers(0, 256, (frames, 3, 6, 8)).astype(np.float32))
    large = functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 255)
    return large.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def published(clip_THWC: torch.Tensor, box: tuple, size: int, flip: bool) -> torch.Tensor:
    """The published arithmetic: float32, crop, bilinear without antialias, flip; [C, T, S, S]."""
    top, left, height, width = box
    part = clip_THWC.float().permute(0, 3, 1, 2)[..., top : top + height, left : left + width]
    out = functional.interpolate(part, (size, size), mode="bilinear", align_corners=False)
    return (out.flip(-1) if flip else out).transpose(0, 1)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("height", "width"), [(40, 56), (90, 30), (17, 64), (200, 260)])
def test_equals_the_published_arithmetic_within_one_grey_level(
    height: int, width: int, flip: float
) -> None:
    for seed in range(8):
        clip = clip_of(3, height, width, seed)
        box = crop_box(height, width, np.random.default_rng(seed))
        got = ClipTransform(size=24, flip=flip)(clip, np.random.default_rng(seed))
        want = published(clip, box, 24, bool(flip))
        assert got.dtype == torch.uint8 and got.shape == (3, 3, 24, 24)
        assert got.permute(1, 2, 3, 0).is_contiguous()  # as `batch` stacks it
        assert (got.int() - want.round().int()).abs().max() <= 1
        assert (got.float() - want).abs().mean() < 0.45


@pytest.mark.parametrize("train", [True, False])
def test_all_frames_get_the_same_box_and_flip(train: bool) -> None:
    transform = ClipTransform(size=16, train=train)
    for seed in range(6):
        clip = clip_of(seed=seed)
        whole = transform(clip, np.random.default_rng(seed))
        for t in range(len(clip)):
            alone = transform(clip[t : t + 1], np.random.default_rng(seed))
            assert torch.equal(whole[:, t], alone[:, 0])
        still = transform(clip[:1].expand(4, -1, -1, -1), np.random.default_rng(seed))
        assert (still == still[:, :1]).all()


def test_the_same_generator_gives_the_same_crop_and_another_gives_another() -> None:
    clip, transform = clip_of(), pickle.loads(pickle.dumps(ClipTransform(size=16)))
    one, two, other = (transform(clip, np.random.default_rng(s)) for s in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_boxes_have_the_area_and_ratio_asked_for() -> None:
    rng = np.random.default_rng(0)
    boxes = [crop_box(240, 320, rng) for _ in range(2000)]
    share = np.array([b.height * b.width / (240 * 320) for b in boxes])
    ratio = np.array([b.width / b.height for b in boxes])
    assert 0.29 < share.min() < 0.31 and 0.9 < share.max() <= 1.0
    assert 0.74 < ratio.min() < 0.76 and 1.33 < ratio.max() < 1.37
    assert {b.top for b in boxes} >= {0, 1} and {b.left for b in boxes} >= {0, 1}
    assert all(0 <= b.top <= 240 - b.height and 0 <= b.left <= 320 - b.width for b in boxes)


def test_where_no_box_fits_the_middle_is_taken() -> None:
    rng = np.random.default_rng(0)
    assert crop_box(10, 1000, rng, scale=(0.9, 1.0), ratio=(0.5, 2.0)) == (0, 490, 10, 20)
    assert crop_box(1000, 10, rng, scale=(0.9, 1.0), ratio=(0.5, 2.0)) == (490, 0, 20, 10)
    assert crop_box(1, 1, rng) == (0, 0, 1, 1)


def test_evaluation_draws_nothing_and_keeps_the_middle() -> None:
    clip = torch.zeros(2, 20, 60, 3, dtype=torch.uint8)
    clip[:, :, 20:40] = 200
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    out = ClipTransform(size=10, train=False)(clip, rng)
    assert (out == 200).all() and rng.bit_generator.state == before
    noise = clip_of(2, 20, 60)
    whole = ClipTransform(size=20, train=False)(noise, rng)  # as large as the short side
    assert torch.equal(whole, noise[:, :, 20:40].permute(3, 0, 1, 2))


def test_a_reduction_skips_pixels_as_the_published_one_does() -> None:
    clip = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    clip[:, :, ::8] = 255  # every eighth column is white, and the samples lie between
    assert (ClipTransform(size=8, train=False)(clip, np.random.default_rng(0)) == 0).all()


def test_normalize_imagenet() -> None:
    clip = torch.arange(2 * 3 * 2 * 4 * 4).reshape(2, 3, 2, 4, 4).to(torch.uint8)
    got = normalize(clip)
    for c, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        want = (clip[:, c].float() - 255 * mean) / (255 * std)
        assert torch.allclose(got[:, c], want, atol=1e-5)
    assert got.dtype == torch.float32 and got.shape == clip.shape


def test_normalize_clip_takes_each_clip_and_colour_by_itself() -> None:
    clips = torch.stack([clip_of(seed=s).permute(3, 0, 1, 2) for s in range(3)])
    got = normalize(clips, "clip")
    assert got.mean((2, 3, 4)).abs().max() < 1e-4
    assert (got.std((2, 3, 4), correction=0) - 1).abs().max() < 1e-4
    assert torch.allclose(got[1], normalize(clips[1:2], "clip")[0], atol=1e-6)
    darker = (clips // 2).to(torch.uint8)
    assert (normalize(darker, "clip") - got).abs().max() < 0.05
    assert (normalize(torch.full_like(clips, 7), "clip") == 0).all()


def test_wrong_input_is_named() -> None:
    with pytest.raises(ConfigError, match="'zscore'"):
        normalize(torch.zeros(1, 3, 1, 2, 2, dtype=torch.uint8), "zscore")
    for options in ({"size": 0}, {"scale": (0.5, 1.5)}, {"scale": (0.9, 0.3)}, {"ratio": (0, 1)}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            ClipTransform(**options)
    with pytest.raises(ConfigError, match=r"flip=1\.5"):
        ClipTransform(flip=1.5)
    rng = np.random.default_rng(0)
    for clip in (torch.zeros(2, 8, 8, 3), torch.zeros(0, 8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(VidlearnError, match="give uint8"):
            ClipTransform()(clip, rng)
