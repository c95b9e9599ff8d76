"""Recipes: complete, documented, and faithful through JSON."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from vidlearn.errors import ConfigError
from vidlearn.recipes import RECIPES, Config, recipe


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_says_its_command_cost_and_result(name):
    config = recipe(name)
    for word in ("Command:", "Cost:", "Result"):
        assert word in config.about
    model = config.model()
    assert model.n_tokens > 0 and config.clip_spec().frames == config.frames
    assert config.transform(True).size == config.size
    assert config.transform(False).flip == 0


@pytest.mark.parametrize("name", list(RECIPES))
def test_json_keeps_every_choice(name):
    config = recipe(name)
    back = Config.from_json(config.to_json())
    assert dataclasses.replace(back, about=config.about) == config
    assert not config.differences(back)


def test_published_recipe_has_the_published_numbers():
    c = recipe("vitl16")
    assert (c.batch, c.steps, c.warmup, c.lr_start, c.lr) == (3072, 90_000, 12_000, 2e-4, 6.25e-4)
    assert c.model().grid == (8, 14, 14) and math.prod(c.model().grid) == 1568


def test_differences_name_the_field_and_leave_out_what_may_change():
    a, b = recipe("laptop"), dataclasses.replace(recipe("laptop"), lr=0.5, workers=7)
    assert a.differences(b) == [f"lr: {a.lr}, 0.5"]


def test_errors_name_the_remedy():
    with pytest.raises(ConfigError, match=r"no recipe 'lapto' \(it comes first\); known: laptop"):
        recipe("lapto")
    text = json.dumps({**json.loads(recipe("laptop").to_json()), "colour": 1})
    with pytest.raises(ConfigError, match="colour"):
        Config.from_json(text)


def test_recipes_do_not_wait_for_torch():
    code = "import sys, vidlearn.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "least"), [("steps", -1, 1), ("lr", -1.0, 0), ("workers", -1, 0)]
)
def test_a_number_below_its_least_is_refused(name, value, least):
    with pytest.raises(ConfigError, match=f"--{name} {value}: give {least} or more"):
        dataclasses.replace(recipe("laptop"), **{name: value})


def test_a_recipe_of_your_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[mine]\nbase = "gpu"\nsteps = 7\nema = [0.9, 1.0]\n')
    mine = recipe(str(file))
    assert (mine.steps, mine.ema, mine.width) == (7, (0.9, 1.0), recipe("gpu").width)
    wrong = (
        *(("steps", "="), ('[a]\nbase = "b"\n', "'b'"), ("[a]\nspeed = 1\n", "speed")),
        *(
            ("[a]\nema = 0.9\n", "--ema 0.9: give tuple"),
            ('[a]\nwidth = "big"\n', "'big': give int"),
        ),
        *(("steps = 3\n", "table"), ("[a]\nsteps = 1.5\n", "--steps 1.5: give int")),
    )
    for text, why in wrong:
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"mine\.toml: no recipe in it .*{why}"):
            recipe(str(file))
    for text in ("", "[a]\nsteps = 1\n[b]\nsteps = 2\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"[02] recipes in it: give one table"):
            recipe(str(file))
    file.write_text("[laptop]\nsteps = 3\n")
    assert recipe(str(file)).steps == 3 and recipe("laptop").steps == 2500


def test_released_recipe_differs_from_the_published_one_in_what_the_code_did():
    found = recipe("vitl16").differences(recipe("vitl16-released"))
    names = {x.split(":")[0] for x in found}
    assert names == {"mask_cut", "pred_heads", "strides", "rates", "clip_start"}
    for version, width, grid in (
        ("vjepa2-vitg16", 1408, (8, 16, 16)),
        ("vjepa21-vitg16", 5632, (8, 16, 16)),
    ):
        model = recipe(version).model()
        assert model.out_width == width and model.grid == grid
        assert round(model.width * model.mlp_ratio) == 6144
