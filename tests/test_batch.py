"""Batches: the same samples for any number of processes and workers, and holes that are named."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from videos import cut, read_index, write

from vidlearn.batch import (
    ClipDataset,
    ShardedSampler,
    eval_loader,
    make_loader,
    to_device,
)
from vidlearn.datasets import Manifest, Quarantine, Row
from vidlearn.datasets.kept import table_bytes
from vidlearn.datasets.packets import part_at
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.sample import ClipSpec
from vidlearn.transform import ClipTransform

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a loader forks on Linux only")
SPEC, SMALL = ClipSpec(frames=4, stride_frames=3), ClipTransform(size=16)
FPS, N_FRAMES = 25, 40


@dataclass(frozen=True)
class Whole:
    """Keeps all pixels, so that a frame's number can be read."""

    size: int = 48

    def draw(self, height, width, rng):
        return (0, 0, height, width), False

    def resize(self, part_THWC):
        return part_THWC


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [write(folder / f"{i}.mp4", N_FRAMES) for i in range(10)]


@pytest.fixture(scope="module")
def manifest(videos):
    rows = tuple(Row(str(path), "ab"[i % 2]) for i, path in enumerate(videos))
    return Manifest(rows, ("a", "b"), "the test")


def numbers(clip_CTHW):
    return [read_index(frame.permute(1, 2, 0).numpy()) for frame in clip_CTHW.transpose(0, 1)]


def same(batch, other):
    fields = ("clips", "labels", "indices", "valid")
    return all(torch.equal(getattr(batch, name), getattr(other, name)) for name in fields)


def first(loader, n):
    return list(islice(loader, n))


# One sample.


def test_a_batch_holds_what_the_manifest_says(manifest):
    batches = list(eval_loader(ClipDataset(manifest, SPEC, Whole(), random_clips=False), 4))
    assert [b.clips.shape for b in batches[:2]] == [(4, 3, 4, 48, 64)] * 2
    assert [len(b.indices) for b in batches] == [4, 4, 2]
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(10))
    assert torch.cat([b.labels for b in batches]).tolist() == [0, 1] * 5
    assert all(b.valid.all() and b.bad == [] for b in batches)
    assert batches[0].clips.dtype == torch.uint8
    middle = (N_FRAMES - 1 - 9) // 2
    assert numbers(batches[0].clips[0]) == [middle, middle + 3, middle + 6, middle + 9]


def test_several_clips_of_a_video_are_samples_of_their_own(manifest):
    two = replace(SPEC, clips=2)
    dataset = ClipDataset(manifest, two, Whole(), random_clips=False)
    assert len(dataset) == 20
    samples = [dataset[i] for i in range(4)]
    assert [s["path"] for s in samples] == [manifest.rows[i].path for i in (0, 0, 1, 1)]
    starts = [numbers(s["clip"])[0] for s in samples]
    assert starts[0] < starts[1] and starts[:2] == starts[2:]


def test_a_sample_follows_from_seed_epoch_and_index_alone(manifest):
    dataset = ClipDataset(manifest, SPEC, SMALL, seed=3)
    clip = dataset[(5, 2)]["clip"]
    dataset[(0, 1)]
    assert torch.equal(dataset[(5, 2)]["clip"], clip)
    others = [dataset[(6, 2)], ClipDataset(manifest, SPEC, SMALL, seed=4)[(5, 2)]]
    assert not any(torch.equal(other["clip"], clip) for other in others)
    assert torch.equal(dataset[2]["clip"], dataset[(0, 2)]["clip"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_chosen_before_it_is_read(manifest, monkeypatch, workers):
    """Samples are those that each gives alone; a video that has none is told once."""
    done = []
    choose = ClipDataset.choose

    def chosen(self, epoch, index):
        done.append(f"choose {index}")
        if index == 6:
            raise VideoError("x.mp4", "it is planted")
        return choose(self, epoch, index)

    monkeypatch.setattr(ClipDataset, "choose", chosen)
    read = lambda *a, **k: done.append("read") or part_at(*a, **k)  # noqa: E731
    monkeypatch.setattr("vidlearn.batch.part_at", read)
    dataset = ClipDataset(manifest, SPEC, SMALL, seed=3)
    keys = [(1, 4), (1, 7), (1, 6)]
    samples = dataset.__getitems__(keys)
    assert done == ["choose 4", "choose 7", "choose 6", "read", "read", "choose 6"]
    assert [s["cause"] for s in samples] == ["", "", "it is planted"]
    for key, sample in zip(keys, samples):
        assert torch.equal(dataset[key]["clip"], sample["clip"])
    loader = make_loader(dataset, ShardedSampler(10, 5, seed=3), workers=workers)
    told = [pair for b in first(loader, 2) for pair in b.bad]
    assert told == [(manifest.rows[6].path, "it is planted")]


def test_tables_of_a_batch_have_a_bound(manifest, monkeypatch):
    dataset, held = ClipDataset(manifest, SPEC, SMALL, seed=3), []
    keys, read = [(1, i) for i in range(6)], lambda *a, **k: held.append(len(dataset._ahead))
    want = [sample["clip"] for sample in dataset.__getitems__(keys)]
    monkeypatch.setattr("vidlearn.batch.part_at", lambda *a, **k: (read(), part_at(*a, **k))[1])
    monkeypatch.setattr("vidlearn.batch.TABLES_BYTES", 2 * table_bytes(dataset.choose(1, 0)[0]))
    clips = [sample["clip"] for sample in dataset.__getitems__(keys)]
    assert held == [2, 1, 0, 0, 0, 0] and all(map(torch.equal, clips, want))


def test_segments_bound_the_clips(videos):
    """Two segments of one video: frames 10 to 24 and 25 to the end."""
    path = str(videos[0])
    rows = (Row(path, start_s=10 / FPS, end_s=25 / FPS), Row(path, start_s=25 / FPS))
    dataset = ClipDataset(Manifest(rows, (), ""), SPEC, Whole())
    for index, (low, high) in enumerate(((10, 24), (25, N_FRAMES - 1))):
        drawn = [numbers(dataset[(epoch, index)]["clip"]) for epoch in range(60)]
        assert {x[0] for x in drawn} == set(range(low, high - 9 + 1))
        assert all(np.diff(x).tolist() == [3, 3, 3] for x in drawn)
    assert dataset[0]["label"] == -1


def test_a_grid_counts_from_the_file_not_from_the_segment(videos):
    rows = (Row(str(videos[0]), start_s=10 / FPS), Row(str(videos[0]), start_s=39 / FPS))
    spec = ClipSpec(frames=4, stride_frames=4, start_grid=4)
    dataset = ClipDataset(Manifest(rows, (), ""), spec, Whole())
    drawn = [numbers(dataset[(epoch, 0)]["clip"]) for epoch in range(40)]
    assert {x[0] for x in drawn} == {12, 16, 20, 24}
    assert "no frames from 1.56 s" in dataset[1]["cause"]


# Videos that cannot be read.


@pytest.fixture
def spoiled(tmp_path, videos):
    """A manifest with good videos at 0 and 4, and a bad one of each kind between."""
    missing, text, short = tmp_path / "missing.mp4", tmp_path / "text.mp4", tmp_path / "short.mp4"
    text.write_text("this is not a video")
    cut(write(short, N_FRAMES), 0.3)
    rows = [Row(str(p), "a") for p in (videos[0], missing, text, short, videos[1])]
    rows.append(Row(str(videos[2]), "a", start_s=90.0, end_s=91.0))
    return Manifest(tuple(rows), ("a",), "the test")


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_videos_leave_named_holes(spoiled, workers):
    dataset = ClipDataset(spoiled, SPEC, SMALL, random_clips=False)
    (batch,) = eval_loader(dataset, 6, workers)
    assert batch.valid.tolist() == [True, False, False, False, True, False]
    assert batch.clips.shape == (6, 3, 4, 16, 16)
    assert batch.clips[~batch.valid].max() == 0
    assert all(batch.clips[i].float().std() > 1 for i in (0, 4))
    assert batch.labels.tolist() == [0] * 6 and batch.indices.tolist() == list(range(6))
    assert [path for path, _ in batch.bad] == [spoiled.rows[i].path for i in (1, 2, 3, 5)]
    assert all(cause for _, cause in batch.bad)
    assert batch.bad[3][1] == "no frames from 90.0 s to 91.0 s"


def test_a_wrong_choice_is_an_error_and_not_a_bad_video(manifest):
    with pytest.raises(ConfigError, match="nonsense"):
        ClipDataset(manifest, SPEC, SMALL, backend="nonsense")[0]


def test_a_clip_that_does_not_fit_is_told(manifest):
    spec = replace(SPEC, stride_frames=30, end="error")
    sample = ClipDataset(manifest, spec, SMALL)[0]
    assert not sample["valid"] and "needs 91 frames" in sample["cause"]


def test_quarantine_names_each_video_once(tmp_path):
    file = tmp_path / "new" / "quarantine.jsonl"
    quarantine = Quarantine(file, 100)
    assert quarantine.add([]) == 0 and not file.exists()
    assert quarantine.add([("a.mp4", "cut"), ("b.mp4", "no video")]) == 2
    assert quarantine.add([("a.mp4", "cut"), ("c.mp4", "cut")]) == 3
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [x["path"] for x in lines] == ["a.mp4", "b.mp4", "c.mp4"]
    assert lines[1] == {"path": "b.mp4", "cause": "no video"}


def test_ranks_and_restarts_share_the_quarantine(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    one, two = Quarantine(file, 100), Quarantine(file, 100)
    one.add([("a.mp4", "cut")])
    assert two.add([("a.mp4", "cut"), ("b.mp4", "cut")]) == 2
    assert one.add([]) == 2
    with open(file, "a") as f:
        f.write('{"path": "half')  # another rank is writing
    assert Quarantine(file, 100).add([]) == 2
    assert len(file.read_text().splitlines()) == 3


def test_the_quarantine_reads_each_line_once(tmp_path, monkeypatch):
    """A data set of millions has many thousands that are bad, which come one at a time."""
    file, real, read = tmp_path / "q.jsonl", json.loads, []
    monkeypatch.setattr(json, "loads", lambda line: read.append(line) or real(line))
    one, two = Quarantine(file, 10**6), Quarantine(file, 10**6)
    for i in range(200):
        assert one.add([(f"{i}.mp4", "cut")]) == i + 1
    assert two.add([]) == one.add([]) == 200 and len(read) == 400
    with open(file, "a") as f:
        f.write('{"path": "half')
        f.flush()
        assert one.add([]) == 200
        f.write('.mp4", "cause": "cut"}\n')
    assert one.add([]) == 201 and "half.mp4" in one.names
    file.write_text('{"path": "other.mp4", "cause": "cut"}\n')  # by another call of check
    assert one.add([]) == 202 and "other.mp4" in one.names


def test_too_many_bad_videos_end_the_run(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 40, max_share=0.05)
    assert quarantine.add([("a", "cut"), ("b", "cut")]) == 2
    with pytest.raises(VidlearnError, match=r"3 of 40 videos .*q\.jsonl names them.*--max-bad"):
        quarantine.add([("c", "cut")])
    assert quarantine.names == {"a", "b", "c"}


# Which samples, in which order.


def test_an_epoch_holds_each_sample_once_and_shuffles_anew():
    sampler = ShardedSampler(11, 4, seed=1)
    assert sampler.steps_per_epoch == 2
    keys = first(sampler, 6)
    for epoch in range(3):
        steps = keys[2 * epoch : 2 * epoch + 2]
        indices = [i for step in steps for _, i in step]
        assert {e for step in steps for e, _ in step} == {epoch}
        assert len(set(indices)) == 8
        assert indices == sampler.order(epoch)[:8].tolist()
    assert sampler.order(0).tolist() != sampler.order(1).tolist()
    assert sampler.order(0).tolist() != ShardedSampler(11, 4, seed=2).order(0).tolist()
    seen = {i for step in first(sampler, 40) for _, i in step}
    assert seen == set(range(11))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_together_take_what_one_process_takes(world):
    alone = first(ShardedSampler(20, 6, seed=5), 7)
    ranks = [first(ShardedSampler(20, 6, seed=5, rank=r, world=world), 7) for r in range(world)]
    assert [[key for part in parts for key in part] for parts in zip(*ranks)] == alone


@pytest.mark.parametrize("start", [1, 4, 5, 13])
def test_a_resumed_run_goes_on_in_the_middle_of_an_epoch(start):
    whole = first(ShardedSampler(20, 4, seed=5, rank=1, world=2), 20)
    resumed = ShardedSampler(20, 4, seed=5, rank=1, world=2, start_step=start)
    assert first(resumed, 20 - start) == whole[start:]


@pytest.mark.parametrize("n, batch, world", [(10, 4, 3), (10, 12, 1), (10, 0, 1)])
def test_a_batch_that_cannot_be_shared(n, batch, world):
    with pytest.raises(ConfigError, match=f"a batch of {batch} of {n} samples for {world} ranks"):
        ShardedSampler(n, batch, world=world)


# The loader.


def load(manifest, n=4, *, workers=0, method=None, rank=0, world=1, start=0, **options):
    """n batches of a loader, without a look at how they were made."""
    dataset = ClipDataset(manifest, SPEC, SMALL, seed=7)
    sampler = ShardedSampler(len(dataset), 4, rank=rank, world=world, seed=7, start_step=start)
    loader = make_loader(dataset, sampler, workers=workers, **options)
    if method:
        loader.multiprocessing_context = method
    return first(loader, n)


def test_two_processes_see_the_clips_of_one(manifest):
    alone = load(manifest)
    ranks = [load(manifest, rank=r, world=2) for r in (0, 1)]
    for whole, *parts in zip(alone, *ranks):
        for name in ("clips", "labels", "indices", "valid"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name))


@pytest.mark.parametrize(
    "workers, method",
    [pytest.param(1, "fork", marks=LINUX), pytest.param(3, "fork", marks=LINUX), (1, "spawn")],
)
def test_workers_change_nothing(manifest, workers, method):
    """In this process decord and PyAV have been in use before the workers start."""
    alone = load(manifest)
    with_workers = load(manifest, workers=workers, method=method)
    assert all(same(a, b) for a, b in zip(alone, with_workers, strict=True))


def test_a_resumed_loader_gives_the_clips_that_were_left(manifest):
    whole = load(manifest, 5)
    assert all(same(a, b) for a, b in zip(whole[3:], load(manifest, 2, start=3), strict=True))


def test_read_ahead_has_a_bound(manifest):
    class Counting(ShardedSampler):
        def __iter__(self):
            for keys in super().__iter__():
                drawn.append(keys)
                yield keys

    drawn = []
    dataset = ClipDataset(manifest, SPEC, SMALL)
    iterator = iter(make_loader(dataset, Counting(10, 2), workers=2))
    next(iterator)
    time.sleep(0.5)
    assert len(drawn) == 2 * 2 + 1


class Seeds(ClipDataset):
    """Tells the seeds of its worker as a label."""

    def __getitem__(self, key):
        number = torch.initial_seed() % 2**31 * 2**31 + int(np.random.randint(2**31))
        return {**super().__getitem__(key), "label": number}


def test_workers_have_seeds_of_their_own_and_leave_ours_alone(manifest):
    def seeds(rank):
        dataset = Seeds(manifest, SPEC, SMALL, seed=7)
        sampler = ShardedSampler(10, 4, rank=rank, world=2, seed=7)
        return [b.labels[0].item() for b in first(make_loader(dataset, sampler, workers=2), 2)]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = seeds(0) + seeds(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(found)) == 4
    assert seeds(0) + seeds(1) == found


class Collecting(ClipDataset):
    """Collects garbage in the worker, as Python does sooner or later."""

    def __getitem__(self, key):
        gc.collect()
        return super().__getitem__(key)


FORK = """
import sys, av, gc
from pathlib import Path
sys.path.insert(0, {here!r})
from test_batch import *
gc.disable()
path = sys.argv[1]
with av.open(path) as container:
    for frame in islice(container.decode(video=0), 3):
        frame.to_ndarray(format="rgb24")
        ring = [frame]
        ring.append(ring)
del frame, ring
gc.enable()
rows = Manifest((Row(path),) * 4, (), "")
batches = list(eval_loader(Collecting(rows, SPEC, SMALL), 2, workers=2))
assert len(batches) == 2 and all(b.valid.all() for b in batches)
assert gc.isenabled()
"""


@LINUX
def test_workers_do_not_wait_for_threads_that_a_fork_left_behind(videos):
    """PyAV frames in garbage own threads; a forked worker that collects one hangs for ever."""
    code = FORK.format(here=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code, str(videos[0])], start_new_session=True)
    try:
        assert process.wait(timeout=45) == 0
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)


STUBBORN = """
import sys, signal, time
sys.path.insert(0, {here!r})
from test_batch import *
if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda n, frame: None)
    rows = Manifest((Row(sys.argv[1]),) * 8, (), "")
    loader = make_loader(ClipDataset(rows, SPEC, SMALL), ShardedSampler(8, 2), workers=2)
    batches = iter(loader)
    next(batches)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(20):
        assert next(batches).valid.all()
    print("done", flush=True)
"""


def test_signals_to_the_whole_job_leave_the_workers_at_work(videos):
    """Some clusters signal every process of a job; what to do is the trainer's business."""
    code = STUBBORN.format(here=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(videos[0])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.killpg(process.pid, number)
        time.sleep(0.1)
    out, err = process.communicate("go on\n", timeout=60)
    assert out == "done\n" and process.returncode == 0, err


# To the device.


def test_to_device_on_a_cpu(manifest):
    dataset = ClipDataset(manifest, SPEC, SMALL)
    plain, moved = eval_loader(dataset, 4), list(to_device(eval_loader(dataset, 4), "cpu"))
    assert all(same(a, b) for a, b in zip(plain, moved, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flip_that_is_left_to_the_device_is_the_same_flip(manifest, workers):
    """To the bit, once, and in the same place in memory; a batch without one is not touched."""
    now = ClipDataset(manifest, SPEC, ClipTransform(size=17), seed=7)
    later = replace(now, flip_later=True)
    for want, left in zip(eval_loader(now, 5, workers), eval_loader(later, 5, workers)):
        flip = left.flip.clone()
        assert 0 < flip.sum() < 5 and not want.flip.any()
        raw = left.clips.clone()
        moved = left.to("cpu")
        assert same(moved, want) and same(moved.to("cpu"), want)
        assert moved.clips.stride() == left.clips.stride() == want.clips.stride()
        assert torch.equal(left.clips, raw) and torch.equal(raw[flip].flip(-1), want.clips[flip])
        assert want.to("cpu").clips.data_ptr() == want.clips.data_ptr()


def test_a_gpu_flips_by_itself(manifest):
    dataset, sampler = ClipDataset(manifest, SPEC, SMALL), ShardedSampler(10, 4)
    kept = [make_loader(dataset, sampler, device=d).dataset.flip_later for d in ("cpu", "cuda")]
    assert kept == [False, True] and not dataset.flip_later


def test_what_is_told_of_a_batch_takes_no_shared_memory(manifest):
    """A tensor from a worker takes a file and a connection, for a few bytes."""
    batch = next(iter(eval_loader(ClipDataset(manifest, SPEC, SMALL), 4, workers=1)))
    told = [batch.labels, batch.indices, batch.valid, batch.flip]
    assert [t.dtype for t in told] == [torch.int64, torch.int64, torch.bool, torch.bool]
    assert not any(t.is_shared() for t in told)


@pytest.mark.gpu
def test_to_device_on_a_gpu(manifest):
    """Copied ahead on a side stream from pinned memory, and still the same batches."""
    dataset = ClipDataset(manifest, SPEC, SMALL, seed=7)
    loader = make_loader(dataset, ShardedSampler(10, 4, seed=7), workers=1, device="cuda")
    plain = load(manifest, 30)
    assert next(iter(loader)).clips.is_pinned()
    for batch, expected in zip(islice(to_device(loader, "cuda"), 30), plain):
        assert batch.clips.is_cuda and batch.valid.is_cuda and not batch.indices.is_cuda
        torch.randn(2000, 2000, device="cuda").square().sum()  # keeps the main stream busy
        assert same(batch.to("cpu"), expected)
