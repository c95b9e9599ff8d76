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

import bench_loader as bench  # noqa: E402
from published_loader import published_loader  # noqa: E402
from vidlearn.datasets import pictures_to_decode  # noqa: E402
from vidlearn.storage import frame_table, iter_frames  # noqa: E402
from vidlearn.transform import IMAGENET_MEAN, IMAGENET_STD, Box  # noqa: E402


def test_the_table_says_what_the_record_says():
    record = json.loads((ROOT / "book" / page.RECORD).read_text("utf-8"))
    rows = page.rows(record)
    assert len(rows) == len(record["sets"]) * len(page.SIDES)
    first = record["sets"]["256"]["sides"]["ours, layered"]
    row = next(r for r in rows if r[1] == "auto, layered copies")
    assert [r[0] for r in rows if r[0]] == [page.FILES[name] for name in record["sets"]]
    low, high = first["times_cpu"][1:]
    assert row[2] == f"{first['cpu_ms']:.1f}" and f"({low:.1f} to {high:.1f})" in row[3]
    assert row[5] == page.spread(first["over_floor"], 2)
    assert page.kind("256", record["sets"]["256"]).startswith("5 from 12 files of 340 x 256 (222 ")
    assert (
        page.kind("hour", record["sets"]["hour"])
        == "3 from 1 file of an hour of 340 x 256 (215 kbit/s)"
    )


def test_the_sentences_of_the_page_hold_in_the_record():
    sets = json.loads((ROOT / "book" / page.RECORD).read_text("utf-8"))["sets"]
    sides = {name: found["sides"] for name, found in sets.items()}
    least = {"256": 2.2, "lean": 2.2, "720": 3, "1080": 3, "2160": 3, "hour": 3}
    assert sides.keys() == least.keys()
    for name, found in sides.items():
        large, layered = name.isdecimal() and int(name) > 256, found["ours, layered"]
        assert found["ours"]["over_floor"][0] < (1.2 if large or name == "256" else 1.25)
        assert found["ours"]["times_cpu"][1] > least[name]
        if not large:
            rest = {
                k: found[k]["cpu_ms"] - sets[name]["floor_ms"][k] for k in sets[name]["floor_ms"]
            }
            assert 2.7 < rest["ours"] < 4.3 and 2.2 < rest["ours, layered"] < 2.55
        assert 1.9 < layered["over_floor"][0] < 2.3
    assert sides["256"]["ours, layered"]["times_cpu"][1] > 8
    for name, cheaper, than_theirs in (("1080", 45, 159), ("2160", 122, 702)):
        ours, layered = sides[name]["ours"], sides[name]["ours, layered"]
        assert round(ours["cpu_ms"] / layered["cpu_ms"]) == cheaper
        assert round(layered["times_cpu"][0]) == than_theirs
    assert sides["hour"]["ours, decord"]["times_cpu"][2] < 1
    assert 4 < sides["hour"]["published"]["cpu_ms"] / sides["256"]["published"]["cpu_ms"] < 5
    lean, kinetics = (sets[name]["kbit_per_s"][0] for name in ("lean", "256"))
    assert kinetics == 222 and 0.5 < lean / kinetics < 0.6


def test_the_floor_decodes_what_must_be_and_no_more(tmp_path):
    options = videos.x264(bframes=3, keyint=24, open_gop=0)
    table = frame_table(videos.write(tmp_path / "a.mp4", 100, options=options))
    assert table.start.max() > 40 and not table.referenced.all()
    for rows in (np.arange(3, 66, 4), np.arange(20, 36), np.array([70])):
        asked = bench.needed(table, rows)
        assert asked[rows].all() and asked.sum() == pictures_to_decode(table, rows, skip=True)
    assert bench.floor_s([(str(tmp_path / "a.mp4"), np.arange(30, 91, 4))]) > 0


def test_the_opponent_crops_whole_float_frames(tmp_path):
    path = videos.write(tmp_path / "a.mp4", 20)
    rows, box = np.array([3, 7, 11, 15]), Box(4, 10, 30, 40)
    (clip,) = next(iter(published_loader([(str(path), rows, box, True)], 24, 1, 0)))
    frames = torch.from_numpy(np.stack([*iter_frames(path)])[rows]).float().permute(0, 3, 1, 2)
    part = frames[:, :, 4:34, 10:50]
    want = torch.nn.functional.interpolate(part, (24, 24), mode="bilinear").flip(-1)
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(clip, ((want - mean) / std).transpose(0, 1), atol=1e-5)
