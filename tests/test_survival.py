"""What clusters do to a run: killed, stopped, hung and different ranks; other numbers of ranks."""

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as td
from ranks import end, run, start

from vidlearn import checkpoint, step
from vidlearn.datasets import open_data
from vidlearn.datasets.synth import make
from vidlearn.dist import Dist, init_distributed, shutdown, watch
from vidlearn.errors import VidlearnError
from vidlearn.recipes import recipe
from vidlearn.runlog import read_metrics

TINY = dataclasses.replace(
    recipe("laptop-adamw"),
    size=32, width=24, depth=1, heads=2, pred_width=12, pred_depth=1, pred_heads=2,
    batch=6, steps=8, warmup=2, workers=0, log_every=1, save_every=3,
)  # fmt: skip
ENDLESS = dataclasses.replace(TINY, steps=100_000, save_every=100_000)
QUICK = {"BEAT_S": 0.2, "DEAD_S": 3.0, "STUCK_S": 6.0, "FIRST_S": 20.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("set"), train=24, val=0, test=0, seed=0)


def losses(out):
    return {m["step"]: m["loss"] for m in read_metrics(Path(out) / "metrics.jsonl")}


def weights(out):
    return checkpoint.load(checkpoint.latest(Path(out) / "checkpoints"))["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train_here(config, data, out, **limits):
    """What each rank does: a run with shorter limits of the watch."""
    from vidlearn import train

    torch.set_num_threads(1)
    for name, value in limits.items():
        setattr(watch, name, value)
    me = init_distributed(timeout_s=60)
    train.train(config, open_data(data), out, dist=me)
    shutdown(me)


def wait_for(condition, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_gone_is_named_by_the_others(data, tmp_path, rank, number):
    out = tmp_path / "run"
    ranks = start(2, _train_quickly, ENDLESS, data, out, folder=tmp_path)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(losses(out)) > 5)
    began = time.monotonic()
    os.kill(ranks[rank].pid, number)
    ranks[1 - rank].join(20)
    seconds = time.monotonic() - began
    ranks[rank].kill()
    (code, text) = end(ranks, tmp_path)[1 - rank]
    assert code == 1 and seconds < 4 * QUICK["DEAD_S"], text
    assert f"rank {rank} on {os.uname().nodename} (process {ranks[rank].pid})" in text
    assert ("gave no sign for" if rank else "does not answer") in text
    stack = (out / f"stack-rank{1 - rank}.txt").read_text()
    assert "vidlearn/train.py" in stack and "test_survival" in stack


def _train_quickly(config, data, out):
    train_here(config, data, out, **QUICK)


def _train_and_look_seldom(config, data, out):
    train_here(config, data, out, **QUICK | {"BEAT_S": 3.0})


def test_a_first_rank_that_is_gone_before_it_is_heard_is_named(data, tmp_path):
    out = tmp_path / "run"
    ranks = start(2, _train_and_look_seldom, ENDLESS, data, out, folder=tmp_path)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(losses(out)) > 1)
    os.kill(ranks[0].pid, signal.SIGKILL)
    (code, text) = end(ranks, tmp_path)[1]
    assert code == 1 and "does not answer" in text
    assert f"rank 0 on {os.uname().nodename} (process {ranks[0].pid})" in text


def test_a_job_that_is_stopped_as_a_whole_goes_on(data, tmp_path):
    """As SLURM suspends one: for longer than a single rank may give no sign."""
    out = tmp_path / "run"
    ranks = start(2, _train_quickly, ENDLESS, data, out, folder=tmp_path)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(losses(out)) > 5)
    for number, pause_s in ((signal.SIGSTOP, 2 * QUICK["DEAD_S"]), (signal.SIGCONT, 0)):
        for rank in ranks:
            os.kill(rank.pid, number)
        time.sleep(pause_s)
    before = len(losses(out))
    time.sleep(2 * QUICK["DEAD_S"])
    assert [rank.is_alive() for rank in ranks] == [True, True], (tmp_path / "rank0.txt").read_text()
    assert len(losses(out)) > before
    for rank in ranks:
        rank.kill()
        rank.join()


def _hang(config, data, out, rank, where):
    """One rank comes to a place and stays there; its other threads live on."""
    if os.environ["RANK"] == str(rank):
        make_masks = step.make_masks

        def and_never_return(*args, **how):
            if how["step"] == 20:
                time.sleep(1000)
            return make_masks(*args, **how)

        step.make_masks = and_never_return
    _train_quickly(config, data, out)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named_with_its_stack(data, tmp_path, rank):
    out = tmp_path / "run"
    results = run(2, _hang, ENDLESS, data, out, rank, "masks", folder=tmp_path, limit_s=60)
    for code, text in results:
        assert code == 1 and f"rank {rank} on {os.uname().nodename}" in text, text
        assert "hangs for" in text and "at 'masks'" in text
        assert f"rank {1 - rank} on" not in text.split("All ranks end")[0]
    assert "and_never_return" in (out / f"stack-rank{rank}.txt").read_text()
    assert "and_never_return" in results[rank][1]  # and in the job's log
    assert "and_never_return" not in (out / f"stack-rank{1 - rank}.txt").read_text()
    assert f"rank {rank} on" in (out / "train.log").read_text()


def _fail(config, data, out, rank):
    if os.environ["RANK"] == str(rank):
        make_masks = step.make_masks

        def fail(*args, **how):
            if how["step"] == 5:
                raise VidlearnError("a planted error")
            return make_masks(*args, **how)

        step.make_masks = fail
    _train_quickly(config, data, out)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_ends_the_others(data, tmp_path, rank):
    results = run(2, _fail, ENDLESS, data, tmp_path / "run", rank, folder=tmp_path, limit_s=60)
    assert "VidlearnError: a planted error" in results[rank][1]
    code, text = results[1 - rank]
    assert code == 1 and f"rank {rank} on" in text and "failed: a planted error" in text, text


def _slow(config, data, out):
    """Rank 1 is slow at every step; rank 0 once waits for its data longer than a rank may hang."""
    from vidlearn import train

    train.REPORT_S = 1.0
    if os.environ["RANK"] == "1":
        make_masks = step.make_masks
        step.make_masks = lambda *args, **how: (time.sleep(0.15), make_masks(*args, **how))[1]
    else:
        load = train.load

        def late(*args):
            for number, batch in enumerate(load(*args)):
                time.sleep(1.2 * QUICK["STUCK_S"] if number == 30 else 0)
                yield batch

        train.load = late
    _train_quickly(config, data, out)


def test_slow_is_not_dead_and_the_log_tells_who_is_slow(data, tmp_path):
    config, out = dataclasses.replace(TINY, steps=40, workers=1), tmp_path / "run"
    results = run(2, _slow, config, data, out, folder=tmp_path)
    assert [code for code, _ in results] == [0, 0], results
    said = [x for x in (out / "train.log").read_text().splitlines() if "the last minute" in x]
    rows = []
    for line in said:
        words = re.search(
            r"step (\d+), .* rank (\d), the slowest of 2: (\d+)% .* (\d+)% comp", line
        )
        rows.append(tuple(map(int, words.groups())))
    slow = [row for row in rows if row[0] <= 30][-1]
    starved = next(row for row in rows if row[0] > 30)
    assert slow[1] == 1 and slow[2] < 40, rows
    assert starved[1] == 0 and starved[2] > 60, said


def test_an_old_word_of_a_rank_that_waited_is_not_a_hang(tmp_path, monkeypatch):
    """Rank 0 was long in want of data, gets on, and has no new word of rank 1, which waited."""
    monkeypatch.setattr(watch, "_get_default_store", td.HashStore)
    places = (Dist(rank, 2, rank, torch.device("cpu"), "torchrun") for rank in (0, 1))
    one, two = (watch.Watch(place, tmp_path, print) for place in places)
    two.store = one.store
    one.at("data"), two.at("data"), two.at("others")
    two.me["may_s"] = 0.01
    two._tell()
    assert one._talk() == ""
    time.sleep(0.05)
    one.at("others"), one.at("masks")
    assert [one._talk() for _ in range(3)] == [""] * 3
    two.at("masks")
    two._tell()
    assert one._talk() == ""
    two.me["may_s"] = 0.01  # now it does hang, and says so itself
    for said in ("", "rank 1 on"):
        two._tell()
        time.sleep(0.05)
        assert one._talk()[:9] == said


def _differ(config, data, out, how):
    if os.environ["RANK"] == "1":
        config = dataclasses.replace(config, **how)
    _train_quickly(config, data, out)


def test_ranks_that_are_not_the_same_run_do_not_start(data, tmp_path):
    out = tmp_path / "run"
    results = run(2, _differ, TINY, data, out, {"lr": 1.0}, folder=tmp_path)
    for code, text in results:
        assert code == 1 and "the ranks differ from rank 0 (rank 1: config)" in text
    assert not out.exists()


def _record(config, data, out, stop_at):
    """Each rank writes down which samples it trains on, and asks for a stop at a step."""
    from vidlearn import train

    rank = os.environ.get("RANK", "0")
    train_step = train.train_step

    def recorded(state, batch, **how):
        line = json.dumps([state.step, batch.indices.tolist()])
        with open(f"{out}.rank{rank}.seen", "a") as f:
            f.write(line + "\n")
        how["stop"] = state.step == stop_at
        return train_step(state, batch, **how)

    train.train_step = recorded
    _train_quickly(config, data, out)


def seen(out):
    lines = [
        x for f in out.parent.glob(f"{out.name}.rank*.seen") for x in f.read_text().splitlines()
    ]
    return Counter(i for line in lines for i in json.loads(line)[1])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_run_of_two_ranks_goes_on_with_another_number(data, tmp_path, world):
    """Stopped in the middle of an epoch: each sample of the epoch exactly once, over both parts."""
    config, out = dataclasses.replace(TINY, steps=4), tmp_path / "run"
    for ranks, stop_at in ((2, 1), (world, -1)):
        results = run(ranks, _record, config, data, out, stop_at, folder=tmp_path)
        assert [code for code, _ in results] == [0] * ranks, results
    assert "goes on at step 2 of 4" in results[0][1]
    assert ("it was saved by 2 process(es)" in results[0][1]) == (world != 2)
    assert seen(out) == dict.fromkeys(range(24), 1)
    whole = tmp_path / "whole"
    run(2, _record, config, data, whole, -1, folder=tmp_path)
    assert losses(out) == pytest.approx(losses(whole), rel=0 if world == 2 else 1e-4)
    assert same(weights(out), weights(whole)) == (world == 2)


def test_a_loss_that_is_not_a_number_names_its_videos(data, tmp_path):
    config, out = dataclasses.replace(TINY, lr=1e30, lr_start=1e30, clip_grad=0.0), tmp_path / "run"
    for code, text in run(2, _record, config, data, out, -1, folder=tmp_path):
        assert code == 1 and "the loss is not a number at step" in text, text
    (file,) = out.glob("not-a-number-*.json")
    number = int(file.stem.removeprefix("not-a-number-"))
    told = json.loads(file.read_text())
    rows, last = open_data(data).rows, []
    for rank in (0, 1):
        lines = Path(f"{out}.rank{rank}.seen").read_text().splitlines()
        last += [i for s, some in map(json.loads, lines) if s == number - 1 for i in some]
    assert [x["path"] for x in told] == [rows[i].path for i in last] and len(told) == 6
    assert any(x["loss"] != x["loss"] for x in told)
    saved = checkpoint.latest(out / "checkpoints")
    for tensor in checkpoint.load(saved)["model"].values() if saved else ():
        assert torch.isfinite(tensor).all()


def _many_lives(config, data, out):
    train_here(config, data, out)


@pytest.mark.slow
def test_fifty_kills_at_random_moments(data, tmp_path):
    """Some while a checkpoint is written: nothing saved is lost, and the bits are the same."""
    config = dataclasses.replace(TINY, steps=500, save_every=2, log_every=10, batch=2)
    run(1, _many_lives, config, data, tmp_path / "whole", folder=tmp_path)
    out, rng, kept, in_write = tmp_path / "cut", random.Random(0), 0, 0
    for kill in range(50):
        config = dataclasses.replace(config, workers=kill % 2)
        (life,) = start(1, _many_lives, config, data, out, folder=tmp_path)
        began = time.monotonic()
        before = checkpoint.latest(out / "checkpoints")
        while life.is_alive() and checkpoint.latest(out / "checkpoints") == before:
            time.sleep(0.002)  # until it has saved once, so that it gets on
            assert time.monotonic() - began < 60
        time.sleep(rng.uniform(0, 0.1))
        assert life.is_alive(), (kill, (tmp_path / "rank0.txt").read_text())
        life.kill()
        life.join()
        in_write += (out / "checkpoints" / ".unfinished").exists()
        newest = checkpoint.load(checkpoint.latest(out / "checkpoints"))["step"]
        assert newest > kept
        kept = newest
    assert in_write, "no kill fell into a write"
    assert run(1, _many_lives, config, data, out, folder=tmp_path)[0][0] == 0
    assert losses(out) == losses(tmp_path / "whole")
    assert same(weights(out), weights(tmp_path / "whole"))


def test_saves_go_beside_the_training_and_their_errors_come_out(tmp_path):
    """What training changes after the call is not in the file; a save that failed is told."""
    state = {"step": 1, "model": {"w": torch.zeros(3)}, "groups": [{"lr": torch.ones(1)}]}
    with checkpoint.Writer() as writer:
        for number in itertools.count(1):
            writer.save(tmp_path, number, state, each=0, copy=True)
            state["model"]["w"] += 1
            state["groups"][0]["lr"] *= 2
            if number == 3:
                break
        path = writer.wait()
        (tmp_path / "file").touch()
        writer.save(tmp_path / "file", 4, state, each=0, copy=True)
        with pytest.raises(VidlearnError, match="not written"):
            writer.wait()
    found = checkpoint.load(path)
    assert found["model"]["w"].tolist() == [2.0] * 3 and found["groups"][0]["lr"].tolist() == [4.0]
