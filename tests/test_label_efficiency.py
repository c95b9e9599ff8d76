"""Label efficiency: draws hold as many labels as they say, training learns them, runs repeat."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import ablations as page  # noqa: E402

import ablate  # noqa: E402
import label_efficiency as few  # noqa: E402
from vidlearn import checkpoint  # noqa: E402
from vidlearn.datasets import synth  # noqa: E402
from vidlearn.model import Encoder  # noqa: E402
from vidlearn.recipes import recipe  # noqa: E402

CONFIG = few.replace(recipe("laptop"), width=48, depth=1, batch=6)


@pytest.fixture(scope="module")
def clips():
    """Three clips of each of four classes in every split, other ones in each."""
    for at, split in enumerate(ablate.SPLITS):
        drawn = [synth.draw(synth.CLASSES[i % 4], 100 * at + i) for i in range(12)]
        stacked = torch.stack([torch.from_numpy(x) for x in drawn])
        ablate.CLIPS[split] = stacked, torch.arange(12) % 4
    return ablate.CLIPS


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random encoder in a file."""
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    meta = {"config": CONFIG.to_json(), "step": 0}
    return checkpoint.export_encoder(path, Encoder(CONFIG.model()).state_dict(), meta)


def test_a_draw_holds_so_many_of_each_class_and_follows_from_its_seed():
    labels = torch.tensor([2, 0, 1, 2, 0, 1, 2, 0, 0, 2])
    draws = [few.choose(labels, 2, seed) for seed in range(9)]
    for pick in draws:
        assert labels[pick].bincount().tolist() == [2, 2, 2]
        assert pick.tolist() == sorted({*pick.tolist()})
    assert torch.equal(few.choose(labels, 2, 3), draws[3])
    assert len({tuple(pick.tolist()) for pick in draws}) > 3


def test_supervised_training_learns_its_labels_and_all_weights(clips):
    net, (x, y) = few.Supervised(CONFIG, 4, 120), clips["train"]
    before = [p.clone() for p in net.encoder.parameters()]
    losses = [net.step(x, y, number) for number in range(120)]
    assert losses[0] == pytest.approx(torch.tensor(4.0).log().item(), abs=0.5)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert all(not torch.equal(a, b) for a, b in zip(before, net.encoder.parameters()))
    assert net.percent(x, y) > 60


def test_a_run_repeats_and_tells_all_three_ways(clips, encoder, monkeypatch):
    monkeypatch.setattr("vidlearn.probe.STEPS", 20)
    task = few.Task(encoder, steps=2)
    first, again = ([{**x, "cpu_s": 0} for x in few.run(2, 0, task)] for _ in range(2))
    assert first == again and len(clips["train"][0]) == 12
    assert [x["way"] for x in first] == ["trained encoder", "random encoder", "supervised"]
    assert all(0 <= x[split] <= 100 for x in first for split in ablate.SPLITS[1:])
    every = [few.run(3, seed, task) for seed in (0, 1)]  # all clips, so only the start differs
    assert every[0][2]["loss"] != every[1][2]["loss"] and every[0][2]["labels"] == 3


def test_the_table_gives_mean_least_and_most():
    line = {"labels": 10, "way": "supervised", "test": 20.0, "far": 9.0}
    lines = [{**line, "seed": i, "val": v} for i, v in enumerate((10.0, 40.0))]
    row = "  10 labels a class, supervised      val 25.0 (10.0 to 40.0), test 20.0 (20.0 to 20.0)"
    assert few.table(lines) == [row + ", far 9.0 (9.0 to 9.0)"]


def test_the_command_writes_its_record(clips, encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vidlearn.probe.STEPS", 5)
    monkeypatch.setattr(few, "read_clips", lambda _: dict(clips))
    out = tmp_path / "record.json"
    words = ["--labels", 2, 3, "--seeds", 2, "--seconds", 0.05, "--jobs", 1, "--data", tmp_path]
    words += ["--encoder", encoder, "--out", out]
    monkeypatch.setattr(sys, "argv", ["label_efficiency.py", *map(str, words)])
    few.main()
    record = json.loads(out.read_text())
    assert record["steps"] >= 1 and record["machine"]["torch"] and record["seconds"] == 0.05
    found = [(x["labels"], x["seed"]) for x in record["runs"]]
    assert found == [(n, seed) for n in (2, 3) for seed in (0, 1) for _ in range(3)]
    assert capsys.readouterr().out.count(" labels a class, ") == 6
    monkeypatch.setattr(sys, "argv", ["x", "--labels", "4", "--data", str(tmp_path)])
    with pytest.raises(SystemExit):
        few.main()
    assert "--labels 4: a class of" in capsys.readouterr().err


def test_the_page_says_what_the_record_says():
    found = ((50, "b", 3.0), (9, "a", 60.0), (9, "b", 1.0), (9, "a", 70.0))
    runs = [{"labels": n, "way": w, "val": v, "test": 50.0, "far": 40.0} for n, w, v in found]
    rows = page.label_rows({"runs": runs})
    assert [row[:3] for row in rows] == [
        ["9", "a", "65 (60 to 70)"], ["9", "b", "1 (1 to 1)"], ["50", "b", "3 (3 to 3)"],
    ]  # fmt: skip
    record = json.loads((ROOT / "book" / page.RECORDS / "label_efficiency.json").read_text("utf-8"))
    kinds = {(run["labels"], run["way"]) for run in record["runs"]}
    assert record["seeds"] == 3 and len(record["runs"]) == 3 * len(kinds) == 27
