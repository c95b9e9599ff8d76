"""The model: published names and sizes, masks as index lists, the slow copy."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidlearn.errors import ConfigError
from vidlearn.mask import MASKS, Mask, fair_masks
from vidlearn.model import SIZES, VJEPA, Encoder, ModelConfig, Predictor

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
    target, predictions, contexts = model(torch.randn(2, 3, 4, 16, 16), masks, [0, 1])
    assert target.shape == (2, 32, 24) and not target.requires_grad
    for mask, z, c in zip(masks, predictions, contexts):
        assert z.shape[:2] == mask.target_BK.shape and c.shape[:2] == mask.context_BK.shape
    sum(z.pow(2).sum() for z in predictions).backward()
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
