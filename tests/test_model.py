"""The model: published names and sizes, masks as index lists, the slow copy."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidlearn.errors import ConfigError
from vidlearn.mask import MASKS, Mask, fair_masks
from vidlearn.model import SIZES, VJEPA, Encoder, ModelConfig, Predictor, _rotary
from vidlearn.tokens import TubeletEmbed, rotary_table

SMALL = ModelConfig(size=16, frames=4, patch=4, tubelet=2, width=24, depth=2, heads=2,
                    pred_width=12, pred_depth=1, pred_heads=2)  # fmt: skip


def small(pos="sincos"):
    torch.manual_seed(0)
    return VJEPA(replace(SMALL, pos=pos))


def keep(batch=2):
    return torch.tensor([[0, 3, 5, 17, 30], [1, 2, 9, 20, 31]])[:batch]


@pytest.mark.parametrize("pos", ["sincos", "rope2", "rope21"])
def test_kept_tokens_see_only_each_other(pos):
    model = small(pos)
    x = torch.randn(2, 3, 4, 16, 16)
    y = model.encoder(x, keep())
    assert y.shape == (2, 5, 24)
    changed = x.clone()
    changed[:, :, 2:, 12:, :4] += 5  # token t=1, h=3, w=0 = 16 + 12 = 28, kept in neither clip
    torch.testing.assert_close(model.encoder(changed, keep()), y)
    assert not torch.allclose(model.encoder(changed)[:, 0], model.encoder(x)[:, 0])


@pytest.mark.parametrize("pos", ["sincos", "rope2", "rope21"])
def test_order_of_the_index_list_does_not_matter(pos):
    model = small(pos)
    x, order = torch.randn(2, 3, 4, 16, 16), torch.tensor([4, 2, 0, 1, 3])
    a, b = model.encoder(x, keep()), model.encoder(x, keep()[:, order])
    torch.testing.assert_close(a[:, order], b, atol=1e-5, rtol=1e-4)


def test_without_positions_time_has_no_order():
    model = small()
    x = torch.randn(1, 3, 4, 16, 16)
    swapped = torch.cat([x[:, :, 2:], x[:, :, :2]], dim=2)
    assert not torch.allclose(model.encoder(x).mean(1), model.encoder(swapped).mean(1), atol=1e-4)
    model.encoder.pos_embed.zero_()
    torch.testing.assert_close(model.encoder(x).mean(1), model.encoder(swapped).mean(1))


def test_training_pass_shapes_and_gradients():
    model = small()
    masks = [fair_masks(s, SMALL.grid, [(0, i) for i in range(2)]) for s in MASKS["vjepa"]]
    clips = torch.randn(2, 3, 4, 16, 16)
    target = model.teach(clips)
    assert target.shape == (2, 32, 24) and not target.requires_grad
    for kind, mask in enumerate(masks):
        z, c = model(clips, mask, kind)
        assert z.shape[:2] == mask.target_BK.shape and c.shape[:2] == mask.context_BK.shape
        z.pow(2).sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.predictor.parameters())
    assert all(p.grad is None for p in model.target_encoder.parameters())


def test_the_target_encoder_follows():
    model = small()
    before = model.target_encoder.norm.weight.clone()
    with torch.no_grad():
        model.encoder.norm.weight += 1
    model.update_target(0.9)
    torch.testing.assert_close(model.target_encoder.norm.weight, before + 0.1)


def test_other_sizes_than_the_table():
    model = small()
    assert model.encoder(torch.randn(1, 3, 8, 24, 24)).shape == (1, 4 * 6 * 6, 24)


def test_an_image_model():
    model = Encoder(ModelConfig(size=16, frames=1, patch=4, width=24, depth=1, heads=2))
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 16, 24)
    assert model.patch_embed.proj.weight.ndim == 4


@pytest.mark.parametrize("change", [{"heads": 5}, {"patch": 5}, {"tubelet": 3}, {"pos": "none"}])
def test_shapes_that_cannot_be_are_named(change):
    with pytest.raises(ConfigError, match=next(iter(change)) if "pos" in change else "multiple"):
        replace(SMALL, **change)


def test_published_parameter_counts():
    with torch.device("meta"):
        for name, count in (("large", 303_885_312), ("huge", 631_648_000)):
            encoder = Encoder(ModelConfig.of(name))
            assert sum(p.numel() for p in encoder.parameters()) == count
        predictor = Predictor(ModelConfig.of("large"))
        assert sum(p.numel() for p in predictor.parameters()) == 22_082_944
    assert set(SIZES) >= {"tiny", "small", "base", "large", "huge", "giant", "gigantic"}


def test_published_names_and_shapes():
    """The state dict of ViT-L has the names and shapes of the published checkpoint."""
    expected = json.loads((Path(__file__).parent / "vitl16_names.json").read_text())
    with torch.device("meta"):
        model = VJEPA(ModelConfig.of("large"))
    for part in ("encoder", "predictor"):
        found = {k: list(v.shape) for k, v in getattr(model, part).state_dict().items()}
        assert found == expected[part]


def test_a_mask_moves_between_devices():
    mask = Mask(keep(), keep()).to("cpu")
    assert mask.context_BK.device.type == "cpu"


DENSE = replace(SMALL, pos="rope21", dense=True, levels=4, depth=8, mask_tokens=1)


def test_four_depths_side_by_side_each_with_its_norm():
    torch.manual_seed(0)
    encoder, x, seen = Encoder(DENSE), torch.randn(1, 3, 4, 16, 16), []
    for norm in encoder.norms_block:
        torch.nn.init.normal_(norm.weight)
    for block in encoder.blocks:
        block.register_forward_hook(lambda _block, _inputs, out: seen.append(out))
    y = encoder(x)
    assert y.shape == (1, 32, 96)
    for level, (after, norm) in enumerate(zip((1, 3, 5, 7), encoder.norms_block)):
        torch.testing.assert_close(y[..., 24 * level : 24 * level + 24], norm(seen[after]))
    last = Encoder(replace(DENSE, levels=1))
    last.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(last(x), y[..., -24:])


def test_images_have_their_own_embedding_and_mark():
    encoder = Encoder(DENSE)
    image, video = torch.randn(2, 3, 1, 16, 16), torch.randn(2, 3, 4, 16, 16)
    assert encoder(image).shape == (2, 16, 96)
    before = encoder(image), encoder(video)
    with torch.no_grad():
        encoder.img_mod_embed += torch.randn(24)
        encoder.patch_embed_img.proj.weight *= 2
    assert not torch.allclose(encoder(image), before[0], atol=1e-3)
    torch.testing.assert_close(encoder(video), before[1])


def test_a_dense_model_predicts_the_context_after_the_targets():
    torch.manual_seed(0)
    model = VJEPA(DENSE)
    mask = fair_masks(MASKS["vjepa"][0], SMALL.grid, [(0, i) for i in range(2)])
    clips = torch.randn(2, 3, 4, 16, 16)
    target, (z, context) = model.teach(clips), model(clips, mask)
    n, k = mask.target_BK.shape[1], mask.context_BK.shape[1]
    assert z.shape == (2, n + k, 96) and target.shape == (2, 32, 96) and context.shape[-1] == 96
    with torch.no_grad():
        model.predictor.predictor_proj_context.bias += 1
    again = model.predictor(context, mask.context_BK, mask.target_BK)
    torch.testing.assert_close(again[:, :n], z[:, :n])
    torch.testing.assert_close(again[:, n:], z[:, n:] + 1)
    other = Predictor(replace(DENSE, levels=1, pred_out=40))  # of a student, to a wider teacher
    assert other(context[..., :24], mask.context_BK, mask.target_BK).shape == (2, n + k, 40)


def test_rotary_positions_of_2_1_span_the_same_places_at_any_size():
    """On a grid of 16 x 16 nothing changes; on 6 x 6 the corners lie where those of 16 lie."""
    for side, same in ((16, True), (6, False)):
        x, grid = torch.zeros(1, 1, 24), (1, side, side)
        corner = torch.tensor([[side * side - 1]])
        cos, _ = _rotary(DENSE, grid, corner, 12, x)
        place = torch.tensor([[[0, 15, 15]]])
        torch.testing.assert_close(cos[:, 0], rotary_table(place, 12, layout="rope21")[0])
        plain = rotary_table(torch.tensor([[[0, side - 1, side - 1]]]), 12, layout="rope21")[0]
        assert torch.allclose(cos[:, 0], plain) == same


@pytest.mark.parametrize("pos", ["sincos", "rope2"])
def test_later_blocks_start_smaller_in_version_2(pos):
    torch.manual_seed(0)
    blocks = Encoder(ModelConfig.of("tiny", pos=pos)).blocks
    for number in (1, 12):
        less = 1 if pos == "sincos" else (2 * number) ** 0.5
        for layer in (blocks[number - 1].attn.proj, blocks[number - 1].mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02 / less, rel=0.02)


def test_impossible_dense_models_are_one_clear_error():
    for changes in ({"dense": False}, {"depth": 6}, {"levels": 2}):
        with pytest.raises(ConfigError, match="dense wants a depth in fours"):
            replace(DENSE, **changes)


def test_the_last_block_of_the_predictor_asks_for_the_targets_only():
    """The same numbers as all tokens through all blocks, and the same gradients."""
    model, mask = small(), fair_masks(MASKS["vjepa"][0], SMALL.grid, [(0, i) for i in range(2)])
    context = torch.randn(2, mask.context_BK.shape[1], 24)
    found = []
    for plain in (False, True):
        model.zero_grad()
        final, n = model.predictor.predictor_blocks[-1], mask.target_BK.shape[1]
        whole = final.forward
        if plain:
            final.forward = lambda x, rotary, _last, run=whole, n=n: run(x, rotary)[:, -n:]
        z = model.predictor(context, mask.context_BK, mask.target_BK)
        z.square().sum().backward()
        found.append([z, *(p.grad for p in model.predictor.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_ways_to_embed_agree():
    """Learning, by one linear map; else, in full precision, by the convolution; kept or whole."""
    torch.manual_seed(0)
    embed, x = TubeletEmbed(4, 2, 24), torch.randn(2, 3, 4, 16, 16)
    keep = torch.tensor([[0, 3, 31], [5, 6, 7]])
    learned, kept = embed(x), embed(x, keep)
    assert learned.grad_fn.name().startswith(("Add", "View", "Reshape", "Unsafe"))
    with torch.no_grad():
        exact, some = embed(x), embed(x, keep)
        assert torch.equal(exact, embed.proj(x).flatten(2).transpose(1, 2))
    assert torch.equal(exact, embed.eval()(x)) and torch.equal(some, embed(x, keep))
    torch.testing.assert_close(learned, exact, atol=1e-5, rtol=0)
    for picked, whole in ((kept, learned), (some, exact)):
        torch.testing.assert_close(picked, whole[torch.arange(2)[:, None], keep])


def test_tubelets_by_one_linear_map_are_the_convolution():
    embed, x = TubeletEmbed(4, 2, 24), torch.randn(2, 3, 5, 17, 18)
    plain = embed.proj(x).flatten(2).transpose(1, 2)  # what is left at the sides is cut off
    torch.testing.assert_close(embed(x), plain, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"shape \[2, 5, 3, 17, 18\]: give \[B, 3, T, H, W\]"):
        embed(x.transpose(1, 2))


def test_rotary_positions_stay_exact_in_half_precision():
    """A cosine in bfloat16 would have three digits."""
    cfg, keep = replace(SMALL, pos="rope2"), torch.tensor([[15]])
    exact = _rotary(cfg, (2, 4, 4), keep, 12, torch.zeros(1, 1, 24))
    half = _rotary(cfg, (2, 4, 4), keep, 12, torch.zeros(1, 1, 24, dtype=torch.bfloat16))
    assert all(torch.equal(a, b) for a, b in zip(exact, half))
    model, x = small("rope2"), torch.randn(2, 3, 4, 16, 16)
    y = model.encoder(x)
    assert (model.encoder.bfloat16()(x.bfloat16()) - y).norm() < 0.03 * y.norm()
