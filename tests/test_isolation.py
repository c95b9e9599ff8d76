"""A video that hangs or crashes its decoder costs itself: not the check, not the training run."""

import faulthandler
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from PIL import Image
from videos import AWKWARD, HEIGHT, TRUSTED, WIDTH, picture, read_index
from videos import write as write_video

from vidlearn.batch import ClipDataset, ShardedSampler, collate, eval_loader, make_loader
from vidlearn.cli import main
from vidlearn.datasets import Manifest, Row, guard, open_data, read_manifest
from vidlearn.datasets.check import check_all, journal_of, stamp, tried, whole
from vidlearn.datasets.quarantine import DIED
from vidlearn.datasets.sequences import frame_table
from vidlearn.datasets.synth import make
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.recipes import recipe
from vidlearn.runlog import read_metrics
from vidlearn.sample import ClipSpec
from vidlearn.storage import iter_frames
from vidlearn.train import train
from vidlearn.transform import ClipTransform

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="plants inherited by a fork")
TINY = replace(
    recipe("laptop-adamw"),
    size=32, width=24, depth=1, heads=2, pred_width=12, pred_depth=1, pred_heads=2,
    batch=4, steps=8, warmup=2, workers=2, log_every=1, save_every=8, max_bad_share=1.0,
)  # fmt: skip
LIMIT_S = 6


def segfault():
    faulthandler.disable()  # pytest's would tell where
    os.kill(os.getpid(), signal.SIGSEGV)


def out_of_memory():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def hang():
    while True:
        time.sleep(60)


CAUSES = {
    segfault: "its decoder died (signal 11)",
    out_of_memory: "its decoder died (signal 9)",
    leave: "its decoder died (exit code 3)",
    hang: f"no answer in {LIMIT_S} s",
}


@pytest.fixture
def plant(monkeypatch):
    """Gives the decoder of these paths a deed; every path that is opened is written down."""

    def plant(deeds, seen=None):
        def planted(path, *_):
            if seen:
                with open(seen, "a") as file:
                    file.write(f"{path}\n")
            deeds.get(path, lambda: None)()
            return frame_table(path)

        monkeypatch.setattr("vidlearn.batch.table_of", planted)
        monkeypatch.setattr("vidlearn.datasets.check.frame_table", planted)
        monkeypatch.setattr(guard, "LIMIT_S", LIMIT_S)

    return plant


def refuse(path, cause):
    """What an unreadable video does, in place of a deed."""

    def raise_it():
        raise VideoError(path, cause)

    return raise_it


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("set"), train=24, val=0, test=0, seed=0).parent


def paths_of(root):
    return [row.path for row in open_data(root).rows]


def quarantined(path):
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {line["path"]: line["cause"] for line in lines}


def losses(out):
    return [m["loss"] for m in read_metrics(out / "metrics.jsonl")]


# Training.


def test_a_run_loses_the_videos_that_end_its_workers_and_nothing_else(root, tmp_path, plant):
    paths = paths_of(root)
    deeds = dict(zip(paths[1::6], CAUSES))
    causes = {path: CAUSES[deed] for path, deed in deeds.items()}
    plant({path: refuse(path, cause) for path, cause in causes.items()})
    train(TINY, open_data(root), tmp_path / "refused")
    plant(deeds)
    train(TINY, open_data(root), tmp_path / "died")
    assert quarantined(tmp_path / "died" / "quarantine.jsonl") == causes
    assert losses(tmp_path / "died") == losses(tmp_path / "refused") and len(causes) == 4
    assert "unreadable videos 4 (quarantine.jsonl)" in (tmp_path / "died/train.log").read_text()
    assert multiprocessing.active_children() == []


def test_a_run_that_goes_on_does_not_try_them_again(root, tmp_path, plant):
    deeds = dict(zip(paths_of(root)[1::6], CAUSES))
    plant(deeds, seen := tmp_path / "seen")
    train(replace(TINY, save_every=4), open_data(root), out := tmp_path / "run")
    assert {*deeds} < {*seen.read_text().split()}
    whole = losses(out)
    (out / "checkpoints" / "step-00000008.pt").unlink()
    seen.unlink()
    train(replace(TINY, save_every=4), open_data(root), out)
    assert losses(out) == whole and len(whole) == 8
    assert not {*deeds} & {*seen.read_text().split()}


def dataset(root):
    spec, small = ClipSpec(frames=4, stride_frames=2), ClipTransform(size=16)
    return ClipDataset(open_data(root), spec, small, seed=5)


def test_batches_are_those_of_a_run_in_which_the_video_is_refused(root, plant):
    """Same order, same pixels, same holes, over three epochs and into a resumed one."""
    bad = paths_of(root)[7]
    found = []
    for deed, workers in ((refuse(bad, CAUSES[segfault]), 0), (segfault, 2)):
        plant({bad: deed})
        sampler = ShardedSampler(24, 6, seed=5, start_step=3)
        found.append(list(islice(make_loader(dataset(root), sampler, workers=workers), 10)))
    for one, other in zip(*found, strict=True):
        assert one.bad == other.bad
        for name in ("clips", "labels", "indices", "valid"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert sum(len(batch.bad) for batch in found[1]) == 3


def test_an_evaluation_sees_every_sample_once(root, plant):
    paths = paths_of(root)
    plant({paths[0]: segfault, paths[23]: segfault})
    loader = eval_loader(dataset(root), 5, workers=2)
    batches = list(loader)
    assert len(loader) == len(batches) == 5
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(24))
    assert [path for b in batches for path, _ in b.bad] == [paths[0], paths[23]]


def test_a_death_is_told_to_who_waits_for_a_batch_only(root, plant):
    """Left to itself, torch raises in whatever the program does, such as writing a checkpoint."""
    plant({paths_of(root)[11]: segfault})  # in the second batch
    batches = iter(eval_loader(dataset(root), 6, workers=1))
    assert not next(batches).bad
    for _ in range(100):
        time.sleep(0.02)
    assert [len(batch.bad) for batch in batches] == [1, 0, 0]


def test_a_death_without_a_video_is_an_error(root, tmp_path, plant, monkeypatch):
    plant({}, tmp_path / "seen")
    monkeypatch.setattr("vidlearn.datasets.guard.together", lambda *_: out_of_memory())
    told = r"a loader worker died \(signal 9\) with no video in hand.*/dev/shm.*--workers"
    with pytest.raises(VidlearnError, match=told):
        list(eval_loader(dataset(root), 12, workers=1))
    assert len((tmp_path / "seen").read_text().split()) == 12  # none was blamed and left out
    assert multiprocessing.active_children() == []


def test_many_deaths_in_a_row_are_an_error(root, plant):
    plant(dict.fromkeys(paths_of(root), segfault))
    with pytest.raises(VidlearnError, match=r"9 loader workers died in a row, the last at .*--wor"):
        list(eval_loader(dataset(root), 24, workers=1))


def test_a_bug_in_a_worker_keeps_its_traceback(root, plant):
    def bug():
        raise RuntimeError("a bug")

    plant({paths_of(root)[0]: bug})
    with pytest.raises(RuntimeError, match="a bug"):
        list(eval_loader(dataset(root), 4, workers=1))


# vidlearn data check.


def check(*words):
    try:
        main(["data", "check", *map(str, words)])
    except SystemExit as left:
        return left.code
    return 0


def test_check_names_what_ends_its_processes(root, tmp_path, plant, capsys):
    paths = paths_of(root)
    deeds = dict(zip(paths[::5], CAUSES))
    causes = {path: CAUSES[deed] for path, deed in deeds.items()}
    plant(deeds)
    out, good = tmp_path / "new" / "bad.jsonl", tmp_path / "good.csv"
    words = (root, "--out", out, "--manifest", good, "--limit-s", LIMIT_S, "--jobs", 3)
    assert check(*words) == 1
    assert quarantined(out) == causes
    lines = [f"{path}: {cause}" for path, cause in causes.items()]
    summary = f"24 videos, 4 unreadable, listed in {out}"
    assert capsys.readouterr().out.splitlines() == [*lines, summary]
    rows = tuple(row for row in open_data(root).rows if row.path not in causes)
    assert read_manifest(good).rows == rows
    assert multiprocessing.active_children() == []


def test_check_goes_on_where_it_stopped(root, tmp_path, plant):
    data, out = open_data(root), tmp_path / "bad.jsonl"
    paths, seen = paths_of(root), tmp_path / "seen"
    deeds = {paths[0]: segfault}
    plant(deeds, seen)

    def stop(done, _total):
        if done == 9:
            raise KeyboardInterrupt

    def opened(**options):
        seen.write_text("")
        bad = check_all(data, out, **options)
        assert list(quarantined(out)) == list(bad) == paths[:1]
        return seen.read_text().split()

    with pytest.raises(KeyboardInterrupt):
        check_all(data, out, jobs=2, progress=stop)
    with open(journal_of(out), "a") as journal:
        journal.write('{"path": "cut sho')
    assert len(opened()) == 15
    assert opened() == []
    os.utime(paths[3], ns=(1, 1))
    assert opened() == [paths[3]]
    assert sorted(opened(full=True)) == sorted(paths)
    assert opened() == opened(full=True) == []


def test_what_has_become_good_is_no_longer_bad(root, tmp_path):
    """And a file that is put back as it was has its old cause back."""
    data, out = open_data(root), tmp_path / "bad.jsonl"
    path = Path(paths_of(root)[2])
    good = path.read_bytes()

    def bad(content, time_ns):
        path.write_bytes(content)
        os.utime(path, ns=(time_ns, time_ns))
        return [*check_all(data, out, jobs=1)]

    assert [bad(good, 1), bad(b"nothing", 2), bad(good, 3)] == [[], [str(path)], []]
    assert [bad(b"nothing", 2), bad(good, 3)] == [[str(path)], []]
    about = {"path": str(path), "stamp": [len(good), 3], "full": True}
    for cause, found in (("a frame is damaged", [str(path)]), ("", [])):  # the last line counts
        with open(journal_of(out), "a") as journal:
            journal.write(json.dumps({**about, "cause": cause}) + "\n")
        assert [*check_all(data, out, jobs=1)] == found


def test_pictures_that_were_mended_are_tried_again(tmp_path):
    """A picture that is written anew leaves its folder's time as it was."""
    for i in range(5):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{i:06d}.jpg")
    data = Manifest((Row(f"{tmp_path}#fps=25"),), (), str(tmp_path))
    good = (tmp_path / "000002.jpg").read_bytes()
    (tmp_path / "000002.jpg").write_bytes(b"nothing")
    (tmp_path / "out").mkdir()
    assert len(check_all(data, tmp_path / "out" / "q", jobs=1)) == 1
    (tmp_path / "000002.jpg").write_bytes(good)
    assert check_all(data, tmp_path / "out" / "q", jobs=1) == {}


@pytest.mark.parametrize("line", ["x", '{"path": "a"}', "[]", "7"])
def test_a_damaged_journal_is_an_error(root, tmp_path, line):
    journal_of(tmp_path / "q").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"q\.tried\.jsonl: the line that ends at .*Delete the"):
        check_all(open_data(root), tmp_path / "q")


def answers_and_dies(path, _touch):
    Timer(0.05, os._exit, (1,)).start()
    return os.path.basename(path)


def slowly(paths):
    for path in paths:
        yield path
        time.sleep(0.3)


def test_a_process_that_dies_between_two_videos_costs_none():
    paths = [f"/x/{i}" for i in range(4)]
    found = dict(tried(slowly(paths), jobs=1, work=answers_and_dies))
    assert found == {path: path[-1] for path in paths}


PARALLEL = """
import torch
from vidlearn.datasets.check import tried

def work(path, touch):
    return float(torch.stack([torch.ones(10**6)] * 4).sum())

torch.set_num_threads(2)
work("", None)  # this process has its threads now
print(dict(tried(["a", "b"], limit_s=20, jobs=1, work=work)))
"""


def test_threads_of_the_parent_are_not_waited_for():
    """Of a notebook that has computed, for one: a fork has none of them."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", PARALLEL]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "{'a': 4000000.0, 'b': 4000000.0}\n"


ORPHANS = """
import sys, time
from vidlearn.datasets.check import tried

def slow(path, touch):
    print(__import__("os").getpid(), flush=True)
    time.sleep(0.2)
    return ""

for _ in tried(map(str, range(10**6)), jobs=2, work=slow):
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_processes_end_with_a_parent_that_is_killed():
    command = [sys.executable, "-c", ORPHANS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pids = {int(parent.stdout.readline()) for _ in range(4)}
        parent.kill()
        parent.wait()
        assert len(pids) == 2
        deadline = time.monotonic() + 10
        while any(os.path.exists(f"/proc/{pid}") for pid in pids):
            assert time.monotonic() < deadline, "they live on"
            time.sleep(0.05)


def test_all_frames_find_what_the_middle_one_does_not(tmp_path):
    path = write_video(tmp_path / "late.mp4", 48, movflags="faststart")
    data = bytearray(path.read_bytes())
    data[-600:-200] = bytes(400)
    path.write_bytes(data)
    assert dict(tried([str(path)])) == {str(path): ""}
    ((_, cause),) = tried([str(path)], work=whole)
    assert cause.startswith(("frame", "reading stops"))


def test_all_frames_of_good_videos_are_there(tmp_path):
    made = TRUSTED | AWKWARD
    paths = [str(made[name](tmp_path / name)) for name in made]
    assert {path: cause for path, cause in tried(paths, work=whole) if cause} == {}


def pid_of(_path, _touch):
    return os.getpid()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux binds processes to cores")
def test_one_process_for_each_core_that_is_ours(root):
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(all_cores)})
    try:
        assert len({pid for _, pid in tried(paths_of(root), work=pid_of)}) == 1
    finally:
        os.sched_setaffinity(0, all_cores)


@pytest.mark.parametrize("options", [{"limit_s": 0.0}, {"jobs": 0}])
def test_a_choice_that_cannot_be(root, tmp_path, options):
    with pytest.raises(ConfigError, match="give"):
        check_all(open_data(root), tmp_path / "bad.jsonl", **options)


def test_the_manifest_of_the_data_is_not_written_over(root, tmp_path):
    for data in (root, root / "manifest.csv"):
        with pytest.raises(ConfigError, match="would be written over"):
            check_all(open_data(data), tmp_path / "b.jsonl", manifest=root / "manifest.csv")
        with pytest.raises(ConfigError, match=r"manifest\.csv: would be written over.*--out"):
            check_all(open_data(data), root / "manifest.csv")


def test_what_is_no_quarantine_is_not_written_over(root, tmp_path):
    data, videos_before = open_data(root), {p: Path(p).read_bytes() for p in paths_of(root)}
    (tmp_path / "good.csv").write_text("path,label\na.mp4,x\n")
    (tmp_path / "list.json").write_text('["path", "cause"]\n')
    for file in (Path(paths_of(root)[0]), tmp_path / "good.csv", tmp_path / "list.json"):
        before = file.read_bytes()
        with pytest.raises(
            ConfigError, match=r"is no list of such videos and stays\. Choose .*--out"
        ):
            check_all(data, file)
        assert file.read_bytes() == before
    with pytest.raises(ConfigError, match=r"is named as a video\. Choose another"):
        check_all(data, tmp_path / "q", manifest=Path(paths_of(root)[0]))
    assert videos_before == {p: Path(p).read_bytes() for p in paths_of(root)}
    for known in ("", '{"path": "a.mp4", "cause": "cut"}\n'):
        (tmp_path / "q").write_text(known)
        assert check_all(data, tmp_path / "q", jobs=1) == {}


def test_more_time_and_more_memory_may_find_something_else(root, tmp_path):
    data, out, path = open_data(root), tmp_path / "q", paths_of(root)[0]
    about = {"path": path, "stamp": stamp(path), "full": False}

    def told(**more):
        journal_of(out).write_text(json.dumps(about | more) + "\n")
        return check_all(data, out, jobs=1, limit_s=60)

    silent = {"cause": "no answer in 0.02 s"}
    assert told(**silent, limit_s=0.02) == told(**silent) == {}  # tried again, and is good
    assert told(**silent, limit_s=60) == {path: silent["cause"]}
    assert told(cause="its decoder died (signal 9)", limit_s=60) == {}
    assert told(cause="its decoder died (signal 11)", limit_s=1) == {path: f"{DIED} (signal 11)"}
    assert told(cause="frame 3 is damaged", limit_s=0.02) == {path: "frame 3 is damaged"}
    for limit_s in (0, -1, float("inf"), float("nan"), 1e12):
        with pytest.raises(ConfigError, match=r"--limit-s .*: give more than 0 seconds, at most"):
            check_all(data, out, limit_s=limit_s)


# A thousand damaged files.


def cut(data, rng):
    return data[: rng.integers(1, len(data) * 9 // 10)]


def flip(data, rng):
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    bits[rng.integers(len(bits), size=rng.integers(1, 60))] ^= 1
    return np.packbits(bits).tobytes()


def blank(data, rng):
    first = rng.integers(len(data) // 2)
    return data[:first] + bytes(len(data) // 4) + data[first + len(data) // 4 :]


def text(_data, rng):
    return b"this is not a video\n" * int(rng.integers(1, 99))


def empty(_data, _rng):
    return b""


def headless(data, rng):
    return rng.bytes(64) + data[64:]


DAMAGE = (cut, flip, blank, text, empty, headless)
HOPELESS = (text, empty)


def spoil(folder, n):
    """So many damaged files, of every kind, container and name in turn; path -> kind."""
    rng, whole, made = np.random.default_rng(0), [], {}
    for i, name in enumerate(("a.mp4", "b.mkv", "c.mov", "d.avi", "e.webm")):
        path, codec = folder / name, "libvpx" if name == "e.webm" else "libx264"
        write_video(path, 24, gop=(4, 24)[i % 2], codec=codec)
        whole.append(path.read_bytes())
        path.unlink()
    for i in range(n):
        kind = DAMAGE[i % len(DAMAGE)]
        suffix = ("mp4", "mkv", "avi", "mov", "webm")[rng.integers(5)]
        path = folder / f"{kind.__name__}{i:04d}.{suffix}"
        path.write_bytes(kind(whole[rng.integers(len(whole))], rng))
        made[str(path)] = kind
    return made


def damage_of(path):
    """How far a frame of a file is from the one that it says it is, at most; grey levels."""
    frames = list(iter_frames(path))
    if frames[0].shape != (HEIGHT, WIDTH, 3):
        return 255.0
    whole = (picture(read_index(frame)) for frame in frames)
    return max(np.abs(frame.astype(int) - other).mean() for frame, other in zip(frames, whole))


def test_a_thousand_damaged_files_harm_nobody(tmp_path):
    """Every one is named, or gives whole pictures; a few flips show, and no decoder notices."""
    n = 1000
    (tmp_path / "set").mkdir()
    made, out = spoil(tmp_path / "set", n), tmp_path / "bad.jsonl"
    data = open_data(tmp_path / "set")
    bad = check_all(data, out, limit_s=30, full=True)
    assert quarantined(out) == bad and all(bad.values()) and len(data) == n
    passed = {path: kind for path, kind in made.items() if path not in bad}
    assert not set(passed.values()) & set(HOPELESS) and len(passed) < n / 5
    assert sum(damage_of(path) > 8 for path in passed) < n / 20
    run, steps = tmp_path / "run", n // 8
    settings = {"batch": 8, "steps": steps, "save_every": steps, "log_every": steps}
    assert train(replace(TINY, **settings), data, run)["step"] == steps
    named = quarantined(run / "quarantine.jsonl")
    assert {path for path, kind in made.items() if kind in HOPELESS} <= named.keys()
    assert read_metrics(run / "metrics.jsonl")[-1]["bad_videos"] == len(named) > 0.7 * n


def rooms_of(monkeypatch):
    """Every `Rooms` that is made from now on."""
    made, real = [], guard.Rooms.__init__

    def init(self, *args):
        real(self, *args)
        made.append(self)

    monkeypatch.setattr(guard.Rooms, "__init__", init)
    return made


def test_batches_lie_in_memory_that_is_used_again(root, plant, monkeypatch):
    plant({})
    made = rooms_of(monkeypatch)
    places = [batch.clips.data_ptr() for batch in eval_loader(dataset(root), 1, workers=1)]
    assert len(places) > len(set(places)) and len(set(places)) <= len(made[0].memory) == 4


def test_a_batch_that_is_kept_stays_as_it_is(root, plant, monkeypatch):
    """Also if only a part of it is kept, and when the loader is gone."""
    plant({})
    made = rooms_of(monkeypatch)
    want = [batch.clips for batch in eval_loader(dataset(root), 1)]
    every = [batch.clips for batch in eval_loader(dataset(root), 1, workers=2)]
    assert len(every) > len(made[-1].memory) and all(map(torch.equal, every, want))
    parts = [b.clips[0, :, 1] for b in eval_loader(dataset(root), 1, workers=2)]
    assert all(torch.equal(part, clip[0, :, 1]) for part, clip in zip(parts, want))
    assert len(made[-1].lent) > 0
    del every, parts
    gc.collect()
    assert all(not rooms.lent for rooms in made)
    assert not guard._rooms  # no memory is kept for loaders that are gone


def test_a_room_of_a_dead_worker_is_used_again(root, plant, monkeypatch):
    made = rooms_of(monkeypatch)
    plant({paths_of(root)[1]: segfault})
    for batch in eval_loader(dataset(root), 2, workers=2):
        del batch
    gc.collect()
    assert sorted(made[0].free) == list(range(6))


def test_a_batch_too_large_for_its_room_travels_as_ever(root, plant):
    plant({})
    keys = [[0, 1], [2, 3]]
    small = guard.Loader(dataset(root), keys, collate, workers=1, room_bytes=8)
    large = guard.Loader(dataset(root), keys, collate, workers=1, room_bytes=10**6)
    for a, b in zip(small, large):
        assert torch.equal(a.clips, b.clips) and a.clips.stride() == b.clips.stride()
