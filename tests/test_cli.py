"""The command line: its flags are frozen, bad input gives one line and status 2, commands work.

After a deliberate change of a flag: python tests/test_cli.py > tests/cli_flags.txt
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from vidlearn import checkpoint
from vidlearn.cli import COMMANDS, USAGE, main
from vidlearn.datasets import open_data
from vidlearn.datasets.synth import draw
from vidlearn.datasets.write import encode
from vidlearn.model import VJEPA, ModelConfig
from vidlearn.recipes import RECIPES
from vidlearn.runlog import read_metrics

FLAGS = Path(__file__).with_name("cli_flags.txt")
TINY = (
    "--size 32 --frames 4 --stride-frames 4 --tubelet 1 --width 24 --depth 1 --heads 2 "
    "--pred-width 12 --pred-depth 1 --pred-heads 2 --batch 4 --steps 2 --warmup 1 --workers 0"
).split()


def run(*words, env=None):
    """The command as a reader gives it: status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "vidlearn", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    return done.returncode, done.stdout, done.stderr


def inside(capsys, *words):
    """The same in this process."""
    status = 0
    try:
        main([str(word) for word in words])
    except SystemExit as leave:
        status = leave.code
    return status, *capsys.readouterr()


def flags(help_text):
    """The options of a help text, each with what follows it, one a line."""
    lines = (line.strip("│ ") for line in help_text.splitlines())
    found = [re.match(r"((?:-h, )?--[a-z][^ ,]*(?:, --[^ ]+)?(?: [A-Z{][^ ]*)*)", x) for x in lines]
    return [m[1] for m in found if m]


def described():
    """Every command with its options, from the real parser."""
    text = []
    for name in COMMANDS:
        out = io.StringIO()
        with mock.patch.dict(os.environ, COLUMNS="200"), contextlib.redirect_stdout(out):
            with contextlib.suppress(SystemExit):
                main([*name.split(), "--help"])
        usage = re.search(r"usage: (vidlearn .*)", out.getvalue())[1]
        text += [usage, *(f"    {flag}" for flag in flags(out.getvalue()))]
    return "\n".join(text) + "\n"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes of twelve videos."""
    root = tmp_path_factory.mktemp("set")
    for i in range(24):
        path = root / ("left", "up")[i % 2] / f"{i:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        encode(path, draw(path.parent.name, i, frames=16, size=32), 8)
    return root


def test_flags_are_frozen():
    assert described() == FLAGS.read_text(), __doc__


def test_usage_names_every_command_and_recipe():
    assert all(f"\n  {name} " in USAGE for name in COMMANDS)
    assert "\n  probe CHECKPOINT DATA    probe a frozen encoder, " in USAGE
    assert " ".join(USAGE.split()).endswith("recipes: " + ", ".join(RECIPES))
    assert max(map(len, USAGE.splitlines())) < 100


def test_help_tells_the_command_and_the_recipe(capsys):
    status, out, err = inside(capsys, "bench", "load", "gpu", "--help")
    assert (status, err) == (0, "") and "--batch INT" in out
    assert "time the loader alone" in out and "gpu: A ViT-S on clips" in out
    assert "Probe a frozen encoder, " in inside(capsys, "probe", "--help")[1]


def test_help_and_version_do_not_wait_for_torch():
    code = (
        "import sys; from vidlearn.cli import main; main(['--version'])\n"
        "try: main(['--help'])\n"
        "finally: sys.exit(bool({'torch', 'numpy', 'matplotlib', 'decord'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"^vidlearn \d+\.\d+", done.stdout, re.M)


@pytest.fixture
def bad(videos, tmp_path):
    """Things that are wrong, by name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "column.csv").write_text("path,lable\na.mp4,x\n")
    torch.save({"model": {}}, tmp_path / "other.pt")
    (tmp_path / "x.mp4").touch()
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 cut short")
    return {"videos": videos, "tmp": tmp_path}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("frain", "no command 'frain'; known: train, probe, import, export, data synth"),
        ("train lapto", "no recipe 'lapto' (it comes first); known: laptop, "),
        ("train", "no recipe '' (it comes first); known: laptop, "),
        ("train laptop --data {tmp}/nowhere --out {tmp}/run", "{tmp}/nowhere: no such file"),
        ("train laptop --data {tmp}/empty --out {tmp}/run", "{tmp}/empty: no videos in it"),
        ("train laptop --data {tmp}/column.csv --out {tmp}/run", "'lable'"),
        ("train laptop --data {videos} --out {tmp}/column.csv", "{tmp}/column.csv: File exists"),
        ("data check {tmp}/empty", "{tmp}/empty: no videos in it"),
        ("data manifest {tmp}/nowhere", "{tmp}/nowhere: no such folder"),
        ("probe {tmp}/other.pt {videos}", "{tmp}/other.pt: no checkpoint of V-JEPA"),
        ("probe {tmp}/half.pt {videos}", "{tmp}/half.pt: "),
        ("probe {tmp}/nowhere.pt {videos}", "{tmp}/nowhere.pt: "),
        ("probe {tmp}/nowhere.pt {videos} --draw {tmp}/x.mp4", "{tmp}/x.mp4: File exists"),
        ("import {tmp}/other.pt", "{tmp}/other.pt: no checkpoint of V-JEPA, with encoder, "),
        ("import vjepa2/vitx", "vjepa2/vitx: no such file; published names: vjepa/vitl16, "),
        (
            "export vjepa2/vitl --out {tmp}/hf",
            "weights/vjepa2-vitl.pt is not there. Fetch it:",
        ),
        ("bench step nope", "no recipe 'nope' (it comes first); known: laptop, "),
        ("train {tmp}/column.csv.toml", "{tmp}/column.csv.toml: No such file"),
        ("train laptop --data {tmp}/x.mp4", "x.mp4: is a single video. Give"),
        ("train laptop --fall foo", "--fall 'foo': give cosine or linear"),
        ("train laptop --rates foo", "--rates 'foo': give exact or vjepa1"),
        ("train laptop --steps 0", "--steps 0: give 1 or more"),
        ("train laptop --lr -1", "--lr -1.0: give 0 or more"),
        ("train laptop --data {videos} --backend foo --out {tmp}/run", "there is no backend 'foo'"),
        ("plan vitl16 --gpus 7", "7 GPUs: a batch of 3072 needs one of its divisors"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(bad, capsys, words, message):
    status, _, err = inside(capsys, *(word.format(**bad) for word in words.split()))
    assert status == 2
    assert err.startswith("vidlearn: ") and err.count("\n") == 1 and message.format(**bad) in err


def test_a_checkpoint_of_another_model_is_named(bad, capsys):
    state = {"config": RECIPES["laptop"].to_json(), "step": 1}
    weights = {"target_encoder.norm.bias": torch.zeros(3)}
    path = checkpoint.save(bad["tmp"], 1, {**state, "model": weights})
    status, _, err = inside(capsys, "probe", path, bad["videos"])
    assert status == 2 and err.count("\n") == 1
    assert f"{path} belongs to another model" in err and "norm.bias (3,)" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_more_processes_than_gpus_is_an_error(videos, tmp_path):
    words = ["train", "laptop", "--data", videos, "--out", tmp_path / "run"]
    status, _, err = run(*words, env={"VIDLEARN_DEVICE": "cuda"})
    assert status == 2 and err.count("\n") == 1 and "torch sees 0 GPUs" in err


def test_other_ranks_are_silent_but_for_errors():
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert run("train", "laptop", "--help", env=env) == (0, "", "")
    assert run("train", "laptop", "--step", env=env) == (2, "", "")  # rank 0 tells
    status, out, err = run("train", "lapto", env=env)
    assert (status, out) == (2, "") and err.startswith("vidlearn, rank 1: no recipe 'lapto'")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train laptop --step 3", "--steps INT"),
        ("bench load laptop --steps x", "invalid literal for int() with base 10: 'x'"),
        ("probe {tmp}/other.pt", "--help"),
    ],
)
def test_a_wrong_option_is_told_by_the_parser(capsys, words, told):
    status, _, err = inside(capsys, *words.split())
    assert status == 2 and told in err


def test_check_lists_the_unreadable_and_only_them(videos, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes((videos / "left" / "00.mp4").read_bytes())
    listed = tmp_path / "list.jsonl"
    assert inside(capsys, "data", "check", tmp_path, "--out", listed)[:2] == (
        0, "2 videos, 0 unreadable\n",
    )  # fmt: skip
    broken = tmp_path / "b.mp4"
    broken.write_bytes(broken.read_bytes()[:900])
    status, out, _ = inside(capsys, "data", "check", tmp_path, "--out", listed)
    first, last = out.splitlines()
    assert status == 1 and first.startswith(f"{broken}: ")
    assert last == f"2 videos, 1 unreadable, listed in {listed}"
    (line,) = listed.read_text().splitlines()
    assert json.loads(line)["path"] == str(broken)
    broken.unlink()  # the list is made anew
    assert inside(capsys, "data", "check", tmp_path, "--out", listed)[0] == 0
    assert not listed.exists()


def test_a_manifest_of_ones_own_is_not_written_over(videos, tmp_path, capsys):
    shutil.copytree(videos, tmp_path / "set", dirs_exist_ok=True)
    path = tmp_path / "set" / "manifest.csv"
    path.unlink(missing_ok=True)
    for _ in range(2):  # the same again says the same
        assert inside(capsys, "data", "manifest", "folder", path.parent)[0] == 0
    own = path.read_text().splitlines(keepends=True)[:2]
    path.write_text("".join(own))
    status, _, told = inside(capsys, "data", "manifest", path.parent)
    assert status == 2
    assert "manifest.csv: is there and says something else. Delete it, or choose another" in told
    assert path.read_text() == "".join(own)
    assert [p.name for p in path.parent.iterdir() if "new" in p.name] == []
    assert inside(capsys, "data", "manifest", "folder", path.parent, "--out", path)[0] == 0
    assert len(path.read_text().splitlines()) > 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("data plan SET --gpus 0", "--gpus 0"),
        ("data plan SET --clips-per-s nan", "--clips-per-s nan"),
        ("data plan SET --clips-per-s inf", "--clips-per-s inf"),
        ("data shard SET OUT --seed -1", "--seed -1"),
        ("data frontier SET --out OUT --seconds nan", "--seconds nan"),
        ("data frontier SET --out OUT --seconds inf", "--seconds inf"),
    ],
)
def test_numbers_that_cannot_be(videos, tmp_path, capsys, words, told):
    names = {"SET": str(videos), "OUT": str(tmp_path / "out")}
    status, _, said = inside(capsys, *(names.get(word, word) for word in words.split()))
    assert status == 2 and told in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "could not be written: No space left"),
        (KeyboardInterrupt(), "stopped as asked"),
    ],
)
def test_a_full_disk_and_a_stop_are_one_line(monkeypatch, videos, capsys, error, told):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("vidlearn.datasets.commands.open_data", fails)
    status, _, said = inside(capsys, "data", "stats", videos)
    assert status == 2 and said.count("\n") == 1 and told in said


def test_manifest_of_a_folder_can_be_opened(videos, tmp_path, capsys):
    status, out, _ = inside(capsys, "data", "manifest", videos, "--out", tmp_path / "m.csv")
    assert status == 0 and out == f"{tmp_path / 'm.csv'}: 24 videos, 2 classes\n"
    assert open_data(tmp_path / "m.csv").rows == open_data(videos).rows


def test_from_nothing_to_a_probed_model(tmp_path, capsys, monkeypatch):
    """Videos, a run with overrides, what it learned, the time of its parts: all by commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vidlearn.probe.STEPS", 5)
    counts = ("--train", 24, "--val", 12, "--test", 0, "--far", 0)
    status, out, _ = inside(capsys, "data", "synth", "data/synth", *counts)
    assert (status, out) == (0, "data/synth/manifest.csv\n")
    status, out, _ = inside(capsys, "train", "laptop", "--data", "data/synth", *TINY)
    assert status == 0 and json.loads(out)["step"] == 2
    assert read_metrics("runs/laptop/metrics.jsonl")[-1]["step"] == 2
    words = ("probe", "runs/laptop", "data/synth", "--json", "p.json", "--draw", "drawn/here")
    status, out, _ = inside(capsys, *words)
    assert status == 0 and "random encoder" in out and "chance 8.3" in out
    assert "trained minus random, points" in out and " of 12 right; most often wrong: " in out
    told = json.loads(Path("p.json").read_text())
    assert told["clips"] == {"train": 24, "val": 12} and told["mistakes"]["val"]["worst"]
    assert sorted(p.name for p in Path("drawn/here").iterdir()) == [
        "confusion-val.png", "worst-val.png",
    ]  # fmt: skip
    assert "\ndrawn/here/confusion-val.png: " in out and "\ndrawn/here/worst-val.png: " in out
    for what, word in (("load", "clips_per_s"), ("step", "backward_ms")):
        words = ("bench", what, "laptop", "--data", "data/synth", "--out", "b.json", *TINY)
        status, out, _ = inside(capsys, *words)
        assert status == 0 and word in out and json.loads(Path("b.json").read_text())[word] > 0


def test_published_weights_are_probed_and_exported(videos, tmp_path, capsys, monkeypatch):
    """A small file in the layout of V-JEPA 2, of a width that was published."""
    monkeypatch.setattr("vidlearn.probe.STEPS", 5)
    shape = {"size": 32, "frames": 4, "patch": 8, "width": 192, "depth": 1, "heads": 3}
    net = VJEPA(ModelConfig(**shape, mlp_ratio=2.0, pred_depth=1, pred_heads=12, pos="rope2"))
    parts = {name: part.state_dict() for name, part in net.named_children()}
    torch.save({**parts, "epoch": 9}, tmp_path / "vit.pt")
    out, clip = tmp_path / "e.safetensors", ("--frames", 4, "--size", 32)
    status, said, _ = inside(capsys, "import", tmp_path / "vit.pt", "--out", out, *clip)
    assert status == 0 and said.startswith(f"{out}: target_encoder of {tmp_path}/vit.pt, epoch 9; ")
    assert said.endswith("clips of 4 frames, 32 pixels\n")
    status, said, err = inside(capsys, "probe", out, videos)
    assert status == 0 and "target encoder, step 9" in said, err
    weights, meta = checkpoint.load_encoder(out)
    assert weights.keys() == net.encoder.state_dict().keys()
    assert '"mlp_ratio": 2.0' in meta["config"] and '"pos": "rope2"' in meta["config"]
    other = ("--out", tmp_path / "c.safetensors", "--encoder", "context", *clip)
    assert inside(capsys, "import", tmp_path / "vit.pt", *other)[0] == 0
    status, _, err = inside(capsys, "probe", tmp_path / "c.safetensors", videos)
    assert status == 2 and "no target encoder in it, but the context encoder" in err
    status, said, _ = inside(capsys, "export", tmp_path / "vit.pt", "--out", tmp_path / "hf")
    assert (status, said) == (0, f"{tmp_path / 'hf'}\n")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["hidden_size"] == 192


def test_doctor_prints_its_checks_and_its_status(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    status, out, _ = inside(capsys, "doctor")
    assert status == 1 and "BAD  OMP_NUM_THREADS    none -> " in out and "ok   Python " in out


if __name__ == "__main__":
    print(described(), end="")
