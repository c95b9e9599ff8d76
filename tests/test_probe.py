"""Probes: the published attention, classifiers that do what they claim, honest baselines."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vidlearn import checkpoint, pictures, probe
from vidlearn.attentive import AttentiveProbe
from vidlearn.batch import ClipDataset
from vidlearn.datasets import Manifest, Row, folder_manifest, read_manifest
from vidlearn.datasets.write import encode
from vidlearn.dist import init_distributed
from vidlearn.errors import ConfigError
from vidlearn.model import Encoder
from vidlearn.pretrained import load_pretrained
from vidlearn.recipes import recipe
from vidlearn.step import build
from vidlearn.train import save
from vidlearn.transform import normalize

ROOT = Path(__file__).resolve().parents[1]
TINY = dataclasses.replace(
    recipe("laptop"), size=32, frames=5, stride_frames=2, tubelet=1, width=24, depth=1, heads=2,
    pred_width=12, pred_depth=1, pred_heads=2, workers=0,
)  # fmt: skip
PUBLISHED = """pooler.query_tokens
    pooler.cross_attention_block.norm1.weight pooler.cross_attention_block.norm1.bias
    pooler.cross_attention_block.norm2.weight pooler.cross_attention_block.norm2.bias
    pooler.cross_attention_block.xattn.q.weight pooler.cross_attention_block.xattn.q.bias
    pooler.cross_attention_block.xattn.kv.weight pooler.cross_attention_block.xattn.kv.bias
    pooler.cross_attention_block.mlp.fc1.weight pooler.cross_attention_block.mlp.fc1.bias
    pooler.cross_attention_block.mlp.fc2.weight pooler.cross_attention_block.mlp.fc2.bias
    linear.weight linear.bias""".split()


def frames(label: str, seed: int) -> np.ndarray:
    """9 frames of noise in which a bright square grows ("opens") or shrinks, alike halfway."""
    rng = np.random.default_rng(seed)
    clip = rng.integers(60, 120, (9, 32, 32, 3)).astype(np.uint8)
    y, x = rng.integers(0, 4, 2)
    for t, side in enumerate(range(2, 29, 3)):
        clip[t, y : y + side, x : x + side] = 230
    return clip if label == "opens" else clip[::-1].copy()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes that differ in the direction of time alone; one file is no video."""
    folder = tmp_path_factory.mktemp("clips")
    for split, n in (("train", 40), ("val", 20), ("test", 20)):
        for i in range(n):
            label = ("opens", "shuts")[i % 2]
            target = folder / split / label / f"{i:02d}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            encode(target, frames(label, 1000 * n + i // 2), 8)
    (folder / "val" / "opens" / "zz.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with one checkpoint whose two encoders differ, and its exported encoder."""
    out = tmp_path_factory.mktemp("run")
    state = build(TINY, init_distributed())
    with torch.no_grad():
        state.model.target_encoder.norm.bias += 1.0
    with checkpoint.Writer() as writer:
        save(state, out, writer)
    meta = {"config": TINY.to_json(), "step": 0}
    checkpoint.export_encoder(
        out / "encoder.safetensors", state.model.target_encoder.state_dict(), meta
    )
    return out


def test_attentive_probe_is_the_published_one():
    """Names, eps, and the attention itself, written out the long way."""
    torch.manual_seed(0)
    p = AttentiveProbe(24, 3, 5).double()
    assert sorted(p.state_dict()) == sorted(PUBLISHED)
    for weight in p.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    block, x = p.pooler["cross_attention_block"], torch.randn(4, 10, 24, dtype=torch.float64)
    assert block["norm1"].eps == block["norm2"].eps == 1e-5
    query = p.pooler.query_tokens.expand(4, -1, -1)
    k, v = block["xattn"]["kv"](block["norm1"](x)).view(4, 10, 2, 3, 8).permute(2, 0, 3, 1, 4)
    q = block["xattn"]["q"](query).view(4, 1, 3, 8).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(4, 1, 24)
    y = query + y
    y = y + block["mlp"](block["norm2"](y))
    torch.testing.assert_close(p(x), p.linear(y[:, 0]))


def test_attentive_reads_one_token_where_the_mean_drowns_it():
    rng = torch.Generator().manual_seed(0)
    n, y = 600, torch.arange(600) % 3
    x = torch.randn(n, 1, 20, 8, generator=rng) * 2
    place = torch.randint(20, (n,), generator=rng)
    x[torch.arange(n), 0, place] = torch.eye(8)[y] * 8 + torch.eye(8)[7] * 8  # marked by the last
    train, test = (x[:450], y[:450]), x[450:]
    right = probe.attentive(train, test, heads=2) == y[450:]
    mean = probe.linear((x.mean((1, 2))[:450], y[:450]), x.mean((1, 2))[450:]) == y[450:]
    assert right.float().mean() > 0.9 and right.float().mean() > mean.float().mean() + 0.1


def test_linear_learns_repeats_and_leaves_the_global_seed_alone(monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 100)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(300, 20))).float()
    y = (x[:, 3] > 0).long()
    x[:, 3] /= 1000  # a feature's unit must not matter
    torch.manual_seed(1)
    before = torch.get_rng_state()
    guesses = [probe.linear((x[:200], y[:200]), x[200:]) for _ in range(2)]
    assert torch.equal(guesses[0], guesses[1]) and torch.equal(before, torch.get_rng_state())
    assert (guesses[0] == y[200:]).float().mean() > 0.8
    noise = torch.from_numpy(rng.integers(0, 2, 300))
    guess = probe.linear((x[:200], noise[:200]), x[200:])
    assert 0.3 < (guess == noise[200:]).float().mean() < 0.7


def test_knn_against_counting_by_hand():
    x = torch.tensor([[1.0, 0], [0.9, 0.2], [-1, 0], [-0.8, -0.1], [0, -2.0]])
    y = torch.tensor([0, 0, 1, 1, 1])
    assert probe.knn((x, y), torch.tensor([[2.0, 0.1], [-3.0, 0.1]]), k=1).tolist() == [0, 1]
    # All five vote, and the two that are near outweigh the three that are far.
    assert probe.knn((x, y), torch.tensor([[2.0, 0.1]]), k=99).tolist() == [0]


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(8, 10, 49.0, 94.3), (0, 10, 0, 27.8), (50, 100, 40.4, 59.6)]
)
def test_interval_is_wilsons(right, n, low, high):
    s = probe.score(torch.arange(n) < right, torch.ones(n, dtype=torch.bool))
    assert (s["low"], s["high"]) == pytest.approx((low, high), abs=0.06)
    assert s["percent"] == 100 * right / n and (s["right"], s["clips"]) == (right, n)


def test_features_are_the_encoders_in_order_without_the_unreadable(root):
    torch.manual_seed(0)
    encoder, data = Encoder(TINY.model()), folder_manifest(root).split("val")
    twice = dataclasses.replace(data, rows=data.rows * 2)  # more than a batch
    found, labels, bad, rows = probe.collect({"it": encoder}, twice, TINY)
    assert rows == [row for row in twice.rows if row.path not in bad]
    assert found["it"].shape == (40, 5, 16, 24) and found["it"].dtype == torch.float16
    assert list(bad) == [row.path for row in data.rows if row.path.endswith("zz.mp4")]
    assert labels.tolist() == ([0] * 10 + [1] * 10) * 2 and len(data) == 21
    clips = ClipDataset(data, TINY.clip_spec(), TINY.transform(False), random_clips=False)
    for place, index in ((0, 0), (12, 13), (39, 20)):  # the tenth cannot be read
        with torch.no_grad():
            tokens = encoder(normalize(clips[index]["clip"][None], TINY.input_norm))
        close = {"atol": 2e-3, "rtol": 0, "check_dtype": False}
        torch.testing.assert_close(found["it"][place], tokens.view(5, 16, 24), **close)


def test_clips_of_a_video_are_read_one_after_the_other(root):
    torch.manual_seed(0)
    short = dataclasses.replace(TINY, frames=2, stride_frames=2)
    encoder, data = Encoder(short.model()), folder_manifest(root).split("val")
    found, labels, bad, rows = probe.collect({"it": encoder}, data, short, clips=3)
    assert rows == [row for row in data.rows if row.path not in bad]
    assert found["it"].shape == (20, 6, 16, 24) and len(bad) == 1
    assert labels.tolist() == [0] * 10 + [1] * 10
    spec = dataclasses.replace(short.clip_spec(), clips=3)
    clips = ClipDataset(data, spec, short.transform(False), random_clips=False)
    for place, video in ((0, 0), (12, 13)):
        with torch.no_grad():
            three = torch.stack([clips[3 * video + i]["clip"] for i in range(3)])
            tokens = encoder(normalize(three, short.input_norm)).view(6, 16, 24)
        close = {"atol": 2e-3, "rtol": 0, "check_dtype": False}
        torch.testing.assert_close(found["it"][place], tokens, **close)


@pytest.mark.parametrize("after", [False, True])
def test_blocks_before_the_query_mix_tokens_and_those_after_it_do_not(after):
    """Behind the query there is one token, whose attention to itself is no choice."""
    torch.manual_seed(0)
    net = AttentiveProbe(24, 2, 5, depth=3, after=after).double().eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    before = net(x)
    with torch.no_grad():
        for block in net.pooler["blocks"]:  # what queries and keys are
            block.attn.qkv.weight[:48] *= -3
    assert torch.allclose(net(x), before) == after
    assert sum(k.startswith("pooler.blocks.1.") for k in net.state_dict()) == 12


@pytest.mark.parametrize("complete", [False, True])
def test_the_quick_way_to_read_tokens_is_the_plain_one(complete):
    torch.manual_seed(0)
    net = AttentiveProbe(24, 2, 5, complete=complete)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x = torch.randn(3, 9, 24)
    torch.testing.assert_close(net.train()(x), net.eval()(x), atol=1e-5, rtol=1e-5)


def test_no_readable_video_is_an_error(root, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    data = Manifest((Row(str(tmp_path / "a.mp4"), "opens"),), ("opens",), "here")
    with pytest.raises(ConfigError, match="here: no video is both labelled and readable"):
        probe.collect({"pixels": probe.one_frame}, data, TINY)


def test_pixel_baselines_see_one_frame_and_all():
    clip = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(2, 3, 4, 32, 32)
    assert probe.whole_clip(clip).shape == (2, 4, 1, 192)
    assert probe.whole_clip(clip)[0, :, 0, 0].tolist() == [0, 1, 2, 3]
    assert probe.one_frame(clip).shape == clip.shape
    assert probe.one_frame(clip).unique().tolist() == [2]


def test_baselines_of_one_frame_are_given_no_other(run, root, monkeypatch):
    """All frames but the middle one are changed: what sees motion gives other features."""
    seen, collect = [], probe.collect

    def twice(sources, data, config, *how):
        torch.manual_seed(0)
        clip = torch.randn(2, 3, 5, 32, 32)
        other = clip.clone()
        other[:, :, [0, 1, 3, 4]] += torch.randn(2, 3, 4, 32, 32)
        with torch.no_grad():
            seen.append({n: torch.equal(s(clip), s(other)) for n, s in sources.items()})
        return collect(sources, data, config, *how)

    monkeypatch.setattr(probe, "collect", twice)
    monkeypatch.setattr(probe, "STEPS", 1)
    probe.report(run, folder_manifest(root))
    same = [name for name, equal in seen[0].items() if equal]
    assert same == ["encoder, one frame", "pixels, one frame"]


def test_frozen_encoder_from_a_run_a_checkpoint_and_an_export(run):
    step = next((run / "checkpoints").glob("*.pt"))
    states = [
        load_pretrained(p).encoder.state_dict() for p in (run, step, run / "encoder.safetensors")
    ]
    assert all(torch.equal(s["norm.bias"], torch.ones(24)) for s in states)
    assert all(torch.equal(s[k], states[0][k]) for s in states for k in s)
    assert torch.equal(load_pretrained(run, encoder="context").encoder.norm.bias, torch.zeros(24))


def test_weights_of_another_model_are_refused(run, tmp_path):
    state = checkpoint.load(next((run / "checkpoints").glob("*.pt")))
    state["config"] = dataclasses.replace(TINY, depth=2).to_json()
    other = checkpoint.save(tmp_path, 1, state)
    with pytest.raises(ConfigError, match=r"another model.*missing \(blocks.1"):
        load_pretrained(other)
    with pytest.raises(ConfigError, match="nowhere: no such file; published names: vjepa/vitl16"):
        load_pretrained(tmp_path / "nowhere")


def test_report_tells_time_from_its_reverse_and_names_all_sources(run, root, capsys, monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 40)
    data = folder_manifest(root)
    result = probe.report(run, data)
    rows = result["rows"]
    assert list(rows) == [
        *("trained encoder", "random encoder", "encoder, one frame"),
        *("pixels, one frame", "pixels, whole clip"),
    ]
    for split in ("val", "test"):
        assert rows["pixels, whole clip"]["linear, time kept"][split]["percent"] == 100
        still = rows["pixels, one frame"]["linear, time kept"][split]
        assert still["low"] < 50 < still["high"] and result["chance"][split] == 50
        assert set(rows["trained encoder"]) == set(rows["pixels, one frame"]) | {"attentive"}
    assert result["clips"] == {"train": 40, "val": 20, "test": 20}
    assert [path[-6:] for path in result["unreadable"]] == ["zz.mp4"]
    again = probe.report(run, data)
    assert json.dumps({**result, "seconds": 0}) == json.dumps({**again, "seconds": 0})
    probe.show(result)
    text = capsys.readouterr().out
    assert "val: 20 clips" in text and "chance 50.0" in text and "zz.mp4" in text
    assert "100 (84-100)" in text and "1 unreadable" in text
    assert f"linear, time kept: {told(result, 'test')}\n" in text


def told(result, split):
    """The sentence about a split's mistakes."""
    return pictures.told(np.array(result["mistakes"][split]["confusion"]), result["classes"])


def mislabelled(root):
    """The clips, every fourth of a class under the other name, so that a good probe errs."""
    data, other = folder_manifest(root), {"opens": "shuts", "shuts": "opens"}
    rows = [
        dataclasses.replace(row, label=other[row.label] if i % 4 == 1 else row.label)
        for i, row in enumerate(data.rows)
    ]
    return dataclasses.replace(data, rows=tuple(rows))


def test_report_says_what_was_mistaken_and_by_how_much_training_helps(
    run, root, monkeypatch, capsys
):
    monkeypatch.setattr(probe, "STEPS", 5)
    data = mislabelled(root)
    label = {row.path: row.label for row in data.rows}
    result = probe.report(run, data, seed=3)  # the run's own start was seed 0
    assert json.loads(json.dumps(result))["classes"] == ["opens", "shuts"]
    rows = result["rows"]
    for split in ("val", "test"):
        scores = rows["trained encoder"]["linear, time kept"][split]
        counts = np.array(result["mistakes"][split]["confusion"])
        truth = [row.label for row in data.split(split).rows if row.path[-6:-4] != "zz"]
        assert counts.sum(1).tolist() == [truth.count(name) for name in result["classes"]]
        assert counts.trace() == scores["right"] < 20
        worst = result["mistakes"][split]["worst"]
        assert len(worst) == min(8, 20 - scores["right"])
        assert all(label[clip["path"]] == clip["truth"] for clip in worst)
        assert all(clip["guess"] != clip["truth"] for clip in worst)
        sure = [clip["confidence"] for clip in worst]
        assert sure == sorted(sure, reverse=True) and 0.5 <= min(sure) <= max(sure) <= 1
        for name, ahead in result["ahead"].items():
            ours, theirs = (rows[f"{kind} encoder"][name][split] for kind in ("trained", "random"))
            assert ahead[split]["points"] == ours["percent"] - theirs["percent"]
            assert ahead[split]["low"] <= ahead[split]["points"] <= ahead[split]["high"]
    assert any(x["points"] for ahead in result["ahead"].values() for x in ahead.values())
    probe.show(result)
    x, text = result["ahead"]["knn"]["val"], capsys.readouterr().out
    said = f"knn {x['points']:+.0f} ({x['low']:+.0f} to {x['high']:+.0f}); linear, mean "
    assert f"trained minus random, points (95 %): {said}" in text


def test_paired_difference_is_that_of_agresti_and_min():
    """40 of 160 clips for a alone and 20 for b alone; the interval by the formula, by hand."""
    labels = torch.zeros(160, dtype=torch.long)
    a, b = torch.ones(2, 160, dtype=torch.long)
    a[:90], b[:50], b[140:] = 0, 0, 0
    found = probe.compare(a, b, labels)
    assert (found["won"], found["lost"], found["points"]) == (40, 20, 12.5)
    assert found["low"] == pytest.approx(100 * (20 - 14.9951) / 162, abs=1e-3)
    assert found["high"] == pytest.approx(100 * (20 + 14.9951) / 162, abs=1e-3)
    back = probe.compare(b, a, labels)
    assert (back["low"], back["high"]) == (-found["high"], -found["low"])
    everything = probe.compare(labels, labels + 1, labels)
    assert everything["points"] == everything["high"] == 100
    same = probe.compare(a, a, labels)
    assert same["points"] == 0 and same["high"] == -same["low"] == pytest.approx(1.21, abs=0.01)


def test_the_paired_interval_holds_the_truth_as_often_as_it_says():
    rng = torch.Generator().manual_seed(0)
    labels, hits, plain = torch.zeros(60, dtype=torch.long), 0, 0
    for _ in range(1000):
        both = torch.rand(60, generator=rng) < 0.5  # a: 0.5 + 0.5 * 0.4 = 0.7, b: 0.6, linked
        a, b = (both | (torch.rand(60, generator=rng) < p) for p in (0.4, 0.2))
        found = probe.compare((~a).long(), (~b).long(), labels)
        hits += found["low"] < 10 < found["high"]
        widths = [probe.score((~x).long(), labels) for x in (a, b)]
        plain += max(x["high"] - x["low"] for x in widths) < found["high"] - found["low"]
    assert 930 <= hits <= 975
    assert plain < 500  # what both get right in common does not widen it


def test_pictures_are_drawn_with_their_words(run, root, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 5)
    result = probe.report(run, mislabelled(root), clips=2)
    result["mistakes"]["val"]["worst"] = []
    made = pictures.draw(tmp_path, json.loads(json.dumps(result)))
    names = [f"{kind}-{split}.png" for kind in ("confusion", "worst") for split in ("test", "val")]
    assert sorted(path.name for path in made) == names == sorted(p.name for p in tmp_path.iterdir())
    assert made.pop(tmp_path / "worst-val.png") == "nothing is wrong"
    for path, text in made.items():
        with Image.open(path) as image:
            assert image.text["Description"] == text and min(image.size) > 100
            assert np.ptp(np.asarray(image.convert("L"))) > 100
    assert made[tmp_path / "confusion-val.png"] == told(result, "val")
    worst, text = result["mistakes"]["test"]["worst"], made[tmp_path / "worst-test.png"]
    assert text.count(" taken for ") == len(worst) > 0
    first = worst[0]
    sure, name = f"{100 * first['confidence']:.0f} % sure", first["path"].rsplit("/")[-1]
    assert text.startswith(f"{first['truth']} taken for {first['guess']}, {sure}: {name}")


def test_the_strip_shows_what_the_encoder_saw(root):
    rows = folder_manifest(root).split("test").rows
    shown = pictures.strip({"path": rows[0].path, "start_s": 0.0, "end_s": None}, TINY, 1)
    data = Manifest(rows, (), "")
    clips = ClipDataset(data, TINY.clip_spec(), TINY.transform(False), random_clips=False)
    clip_CTHW = clips[0]["clip"].numpy()
    assert shown.shape == (32, 8 * 32, 3)
    for place, frame in ((0, 0), (7, 4)):
        one = clip_CTHW[:, frame].transpose(1, 2, 0)
        assert np.array_equal(shown[:, 32 * place : 32 * place + 32], one)
    assert shown[:, :32].mean() < shown[:, -32:].mean()  # it "opens"


def test_what_is_mistaken_is_told():
    counts = np.array([[8, 2, 0], [0, 7, 3], [1, 0, 9]])
    text = "24 of 30 right; most often wrong: right taken for up, 3 times"
    assert pictures.told(counts, ["left", "right", "up"]) == text
    assert pictures.told(np.diag([3, 4]), ["a", "b"]) == "7 of 7 right"


LABELLED = Path(os.environ.get("VIDLEARN_LABELLED", ROOT.parent / "shared/videos/ucf101-6"))


@pytest.mark.slow
@pytest.mark.skipif(not LABELLED.is_dir(), reason=f"no labelled videos at {LABELLED}")
def test_real_videos_are_probed_in_their_official_split(run, monkeypatch):
    """Six classes of UCF101: all read, no group in both parts, and a look tells more than chance.

    A still frame knows some of them, so this is no test of motion.
    """
    monkeypatch.setattr(probe, "STEPS", 100)
    rows = []
    for split in ("train", "test"):
        listed = read_manifest(LABELLED / f"{split}.csv")
        group = [re.search(r"_(\w+_g\d+)_c", row.path)[1] for row in listed.rows]
        rows += [
            dataclasses.replace(row, split=split, source_id=g) for row, g in zip(listed.rows, group)
        ]
    parts, _ = Manifest(tuple(rows), listed.classes, str(LABELLED)).splits()
    groups = [{row.source_id for row in part.rows} for part in parts.values()]
    assert not groups[0] & groups[1] and min(map(len, groups)) > 20
    data = Manifest(tuple(rows), listed.classes, str(LABELLED))
    result = probe.report(run, data)
    assert result["splits"] == "the data's own" and result["unreadable"] == {}
    assert result["clips"] == {split: len(part) for split, part in parts.items()}
    assert result["clips"] == {"train": 214, "test": 90}
    still = result["rows"]["pixels, one frame"]["linear, mean"]["test"]
    assert result["chance"]["test"] == pytest.approx(100 * 22 / 90) and still["low"] > 25
    counts = np.array(result["mistakes"]["test"]["confusion"])
    assert counts.sum(1).tolist() == [16, 18, 6, 22, 6, 22]
