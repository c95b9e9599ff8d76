"""The loader's table says what its record says, and its opponent is the published arithmetic."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import videos

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book" / "_ext"), str(ROOT / "tools")]

import loader as page  # noqa: E402

from published_loader import published_loader  # noqa: E402
from vidlearn.storage import iter_frames  # noqa: E402
from vidlearn.transform import IMAGENET_MEAN, IMAGENET_STD, Box  # noqa: E402


def test_the_table_says_what_the_record_says():
    record = json.loads((ROOT / "book" / page.RECORD).read_text("utf-8"))
    rows = page.rows(record)
    assert len(rows) == len(record["sets"]) * len(page.SIDES)
    first = record["sets"]["256"]["sides"]["ours, layered"]
    row = next(r for r in rows if r[:2] == ["340 x 256", "the same, from layered copies"])
    low, high = first["times_cpu"][1:]
    assert row[2] == f"{first['cpu_ms']:.1f}" and f"({low:.1f} to {high:.1f})" in row[3]
    assert row[5] == page.spread(first["over_floor"], 2)
    assert page.kind("256", record["sets"]["256"]).startswith("5 from 12 files of 340 x 256 (222 ")


def test_the_sentences_of_the_page_hold_in_the_record():
    sets = json.loads((ROOT / "book" / page.RECORD).read_text("utf-8"))["sets"]
    sides = {name: found["sides"] for name, found in sets.items()}
    for name, least in (("256", 2.2), ("720", 3), ("1080", 3)):
        assert sides[name]["ours"]["over_floor"][0] < 1.2
        assert sides[name]["ours"]["times_cpu"][0] > least
        assert sides[name]["ours"]["times_cpu"][1] > least or name == "720"  # the page says so
        layered = sides[name]["ours, layered"]
        assert 4 < layered["cpu_ms"] - sets[name]["floor_ms"]["ours, layered"] < 6
        assert layered["over_floor"][1] > 1.8
    assert sides["256"]["ours, layered"]["times_cpu"][1] > 8
    assert sides["1080"]["ours, layered"]["times_cpu"][1] > 100


def test_the_opponent_crops_whole_float_frames(tmp_path):
    path = videos.write(tmp_path / "a.mp4", 20)
    rows, box = np.array([3, 7, 11, 15]), Box(4, 10, 30, 40)
    (clip,) = next(iter(published_loader([(str(path), rows, box, True)], 24, 1, 0)))
    frames = torch.from_numpy(np.stack([*iter_frames(path)])[rows]).float().permute(0, 3, 1, 2)
    part = frames[:, :, 4:34, 10:50]
    want = torch.nn.functional.interpolate(part, (24, 24), mode="bilinear").flip(-1)
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(clip, ((want - mean) / std).transpose(0, 1), atol=1e-5)
