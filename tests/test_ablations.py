"""Ablations: variants change what they name, runs repeat, the page says what the record says."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import ablations as page  # noqa: E402

import ablate  # noqa: E402
from vidlearn import dist, step  # noqa: E402
from vidlearn.datasets import synth  # noqa: E402
from vidlearn.recipes import recipe  # noqa: E402

CURVES = [
    [{"step": 0, "val": 50.0, "test": 40.0}, {"step": 9, "loss": 0.5, "spread": 1.0,
      "effective_rank": 80.0, "explained": -0.06, "val": 60.0, "test": 50.0}],
    [{"step": 0, "val": 52.0, "test": 38.0}, {"step": 9, "loss": 0.7, "spread": 1.0,
      "effective_rank": 84.0, "explained": 0.02, "val": 64.0, "test": 53.0}],
]  # fmt: skip
ABOUT = {"machine": {"cpu": "X", "torch": "2"}, "steps": 9, "seeds": 2}
RUNS = [{"name": n, "seed": i, "curve": c} for n in ("as it is", "b") for i, c in enumerate(CURVES)]


@pytest.fixture(scope="module")
def clips():
    drawn = [torch.from_numpy(synth.draw(synth.CLASSES[i % 12], i)) for i in range(24)]
    labels = torch.arange(24) % 12
    ablate.CLIPS.update({split: (torch.stack(drawn), labels) for split in ablate.SPLITS})
    return ablate.CLIPS


def grads(clips, name):
    """Each weight's gradient in the first step of a variant."""
    changes, prepare, _ = (ablate.VARIANTS | ablate.RIVALS)[name]
    config = ablate.replace(recipe("laptop"), **changes, clip_grad=0.0)
    state = step.build(config, dist.init_distributed())
    prepare(state)
    step.train_step(state, ablate.batch_of(config, clips["train"][0], 0))
    return {k: p.grad for k, p in state.model.named_parameters() if p.grad is not None}


def test_each_variant_leaves_out_what_it_names(clips):
    whole = grads(clips, "as it is")
    for name in ("no regulariser", "no stop-gradient", "published masks", "no predictor"):
        key = "encoder.blocks.0.mlp.fc1.weight"
        assert not torch.equal(grads(clips, name)[key], whole[key]), name
    silent = grads(clips, "no prediction, regulariser only")
    for key, grad in silent.items():
        assert grad.any() == key.startswith("encoder."), key
    assert whole["predictor.predictor_proj.weight"].any()
    assert not [k for k in grads(clips, "no predictor") if k.startswith("predictor.")]
    pixels = grads(clips, "pixels in tubes (VideoMAE)")
    assert pixels["predictor.predictor_proj.weight"].shape == (2 * 8 * 8 * 3, 48)


def test_pixels_are_those_of_each_box_in_the_order_of_the_tokens(clips):
    state = step.build(recipe("laptop"), dist.init_distributed())
    ablate.pixels(state)
    x = torch.arange(3 * 8 * 48 * 48.0).view(1, 3, 8, 48, 48)
    boxes = state.model.teach(x)
    assert boxes.shape == (1, 4 * 6 * 6, 3 * 2 * 8 * 8)
    last = x[0, :, 2:4, 40:48, 8:16]  # second step, last row, second column
    assert torch.equal(boxes[0, 36 + 5 * 6 + 1], last.flatten())
    learns = {id(p) for o in state.optimizers for g in o.param_groups for p in g["params"]}
    assert id(state.model.predictor.predictor_proj.weight) in learns


def test_a_run_repeats_and_tells_its_curve(clips):
    found = [ablate.run("as it is", 0, 4) for _ in range(2)]
    assert found[0]["curve"] == found[1]["curve"] != ablate.run("as it is", 1, 4)["curve"]
    assert [p["step"] for p in found[0]["curve"]] == [0, 1, 2, 4]
    assert {"loss", "spread", "effective_rank", "explained", "val", "test", "far"} < {
        *found[0]["curve"][1]
    }


def test_explained_is_0_for_who_tells_no_clip_apart_and_1_for_the_truth(clips):
    g = torch.Generator().manual_seed(0)
    usual = torch.randn(6, 9, generator=g)
    goal = usual + torch.randn(40, 6, 9, generator=g)
    target = torch.stack([torch.randperm(6, generator=g)[:4] for _ in goal])
    truth, shift = ablate.gather_tokens(goal, target), torch.randn(6, 9, generator=g)[target]
    for guess, share in ((truth, 1), (truth + shift, 1), (usual[target], 0), (shift, 0)):
        ours, none = ablate.misses(goal, target, guess)
        assert 1 - ours / none == pytest.approx(share, abs=0.06)
    state = step.build(recipe("laptop"), dist.init_distributed())
    assert ablate.explained(state, clips["val"][0]) < 0.05  # nothing has been learned
    model = state.model
    model.predictor.forward = lambda _z, _c, target, *_a, **_k: truth_of(model, clips)(target)
    assert ablate.explained(state, clips["val"][0]) > 0.8  # 24 clips: few at each place


def truth_of(model, clips):
    """Targets -> what the teacher says of them."""
    x = ablate.normalize(ablate.views(recipe("laptop"), clips["val"][0]), "clip")
    goal = ablate.normalize_target(model.teach(x))
    return lambda target: ablate.gather_tokens(goal, target)


def test_the_table_says_what_the_record_says():
    rows = page.rows({**ABOUT, "runs": RUNS})
    row = ["0.60 (0.50 to 0.70)", "−2 (−6 to 2)", "82 (80 to 84)"]
    row += ["51 → 62 (60 to 64)", "39 → 52 (50 to 53)"]
    assert rows == [["as it is", *row], ["b", *row]]
    drawn = page.figure({**ABOUT, "runs": RUNS}, ["as it is"])
    assert "as it is: loss 0.60 (0.50 to 0.70), new clips 51 → 62 (60 to 64) %" in drawn.alt
    assert page.figure({**ABOUT, "runs": RUNS}, ["as it is"]) == drawn


def test_a_column_for_each_split_that_was_probed():
    far = {**ABOUT, "runs": json.loads(json.dumps(RUNS).replace('"test"', '"far"'))}
    assert page.probed(far) == ["val", "far"] and page.rows(far)[0][-1] == "39 → 52 (50 to 53)"


def test_a_column_that_a_run_lacks_is_left_out():
    runs = json.loads(json.dumps(RUNS))
    del runs[-1]["curve"][-1]["explained"]
    record = {**ABOUT, "runs": runs}
    assert page.measured(record) == ["loss", "effective_rank"] and len(page.rows(record)[0]) == 5
    assert page.figure(record, ["as it is", "b"]).alt


@pytest.mark.parametrize("name", ablate.TABLES)
def test_the_record_holds_three_seeds_of_each_variant(name):
    base, variants, steps = ablate.TABLES[name]
    record = json.loads((ROOT / "book" / page.RECORDS / f"{name}.json").read_text("utf-8"))
    curves = page.by_name(record)
    assert record["seeds"] == 3 and record["recipe"] == base and {*curves} == {*variants}
    assert record["steps"] == (steps or recipe(base).steps)
    for variant, found in curves.items():
        last = round(record["steps"] * variants[variant].longer)
        assert [curve[-1]["step"] for curve in found] == [last] * 3, variant


def test_laptop_learns_by_predicting():
    """The sentences of the page: ahead of all by more than the range of the seeds."""
    record = json.loads((ROOT / "book" / page.RECORDS / "laptop.json").read_text("utf-8"))
    curves = page.by_name(record)
    ours, *rivals = curves.values()
    for split, points in {"val": 20, "test": 20, "far": 10}.items():
        start, *_, end = zip(*([p[split] for p in curve] for curve in ours))
        assert sum(end) / 3 - sum(start) / 3 >= points, split
        others = [start, *([curve[-1][split] for curve in found] for found in rivals)]
        assert min(end) > max(max(found) for found in others), split
    spent = {n: [r["cpu_s"] for r in record["runs"] if r["name"] == n] for n in curves}
    mine, *others = (sum(s) / 3 for s in spent.values())
    assert mine < 600 and min(others) > 0.9 * mine, spent
