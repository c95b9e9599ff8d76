"""Checkpoints: whole or not there, plain data only, and one clear error for each bad file."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from vidlearn import checkpoint
from vidlearn.errors import ConfigError, VidlearnError


def state(step=1):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return {
        "step": step,
        "config": json.dumps({"size": 64}),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "more": [1.5, None, True, ("a", torch.arange(3))],
    }


def steps(folder):
    return sorted(int(p.stem.split("-")[1]) for p in folder.glob("step-*.pt"))


def test_what_is_saved_comes_back(tmp_path):
    saved = state()
    path = checkpoint.save(tmp_path / "new" / "folder", 120, saved)
    assert path.name == "step-00000120.pt"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["model"]["weight"], saved["model"]["weight"])
    moments = loaded["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(moments, saved["optimizer"]["state"][0]["exp_avg"])
    assert loaded["more"][:3] == [1.5, None, True] and loaded["config"] == saved["config"]
    assert torch.equal(loaded["more"][3][1], torch.arange(3))


def test_the_newest_stay(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, step, {"a": step}, keep=2)
    assert steps(tmp_path) == [30, 40]
    for step in (70, 100_000_000):  # nine digits sort after eight
        checkpoint.save(tmp_path, step, {"a": step}, keep=1)
    assert steps(tmp_path) == [100_000_000]
    assert checkpoint.latest(tmp_path).name == "step-100000000.pt"


def test_each_nth_stays_for_good(tmp_path):
    for step in range(10, 90, 10):
        checkpoint.save(tmp_path, step, {"a": step}, keep=2, each=30)
    assert steps(tmp_path) == [30, 60, 70, 80]


def test_a_save_never_drops_itself(tmp_path):
    """Going back to an older step in the same folder must not lose what was just written."""
    for step in (100, 200, 50):
        checkpoint.save(tmp_path, step, {"a": step}, keep=1)
    assert 50 in steps(tmp_path)


def test_latest_is_none_without_checkpoints(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "not there") is None
    (tmp_path / ".unfinished").write_bytes(b"half")
    (tmp_path / "step-best.pt").write_bytes(b"other")
    assert checkpoint.latest(tmp_path) is None


def test_latest_skips_a_file_cut_short(tmp_path):
    old = checkpoint.save(tmp_path, 1, state())
    new = checkpoint.save(tmp_path, 2, state())
    new.write_bytes(new.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="step-00000002.pt is cut short"):
        assert checkpoint.latest(tmp_path) == old


def test_a_reader_never_sees_half_a_file(tmp_path):
    """One process saves without pause, another reads whatever is there."""
    writer = f"""
import torch
from vidlearn import checkpoint
for step in range(1, 40):
    checkpoint.save({str(tmp_path)!r}, step, {{"a": torch.full((400_000,), step)}}, keep=1000)
"""
    process = subprocess.Popen([sys.executable, "-W", "error", "-c", writer])
    seen = set()
    while process.poll() is None:
        path = checkpoint.latest(tmp_path)
        if path:
            a = checkpoint.load(path)["a"]
            assert a.min() == a.max() == int(path.stem.split("-")[1])
            seen.add(int(a[0]))
    assert process.returncode == 0 and len(seen) > 3


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_old_ones_alone(tmp_path):
    """The child may write 200 kB a file; the second checkpoint needs 4 MB."""
    child = f"""
import resource, torch
from vidlearn import checkpoint
from vidlearn.errors import VidlearnError
checkpoint.save({str(tmp_path)!r}, 1, {{"a": torch.zeros(10)}}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for save in (
    lambda: checkpoint.save({str(tmp_path)!r}, 2, {{"a": torch.zeros(1_000_000)}}, keep=1),
    lambda: checkpoint.export_encoder({str(tmp_path / "e.safetensors")!r},
                                      {{"a": torch.zeros(1_000_000)}}, {{}}),
):
    try:
        save()
    except VidlearnError as error:
        print("ERROR", error)
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("ERROR") and "step-00000002.pt: not written" in first
    assert second.startswith("ERROR") and "e.safetensors: not written" in second
    assert all("File too large" in line for line in (first, second))
    assert os.listdir(tmp_path) == ["step-00000001.pt"]
    assert checkpoint.load(checkpoint.latest(tmp_path))["a"].numel() == 10


class Code:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def spoiled(kind, folder):
    path = checkpoint.save(folder, 1, state())
    data = bytearray(path.read_bytes())
    if kind == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "damaged":
        middle = data.index(torch.arange(3).numpy().tobytes())
        data[middle] ^= 0xFF
        path.write_bytes(data)
    elif kind == "code":
        torch.save({"vidlearn": Code(folder / "ran")}, path)
    elif kind == "old pickle":
        path.write_bytes(pickle.dumps(Code(folder / "ran")))
    elif kind == "foreign":
        torch.save({"encoder": {}, "epoch": 3}, path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/readme.txt", "hello")
    else:
        path.unlink()
    return path


@pytest.mark.parametrize(
    "kind, words",
    [
        ("cut short", "no whole checkpoint"),
        ("empty", "no whole checkpoint"),
        ("damaged", "wrong checksum"),
        ("code", "Python objects in it, which could run code"),
        ("old pickle", "no whole checkpoint"),
        ("foreign", "not a checkpoint of a vidlearn run"),
        ("zip", "foreign"),
        ("missing", "No such file"),
    ],
)
def test_each_bad_file_gives_one_error_with_its_name(tmp_path, kind, words):
    path = spoiled(kind, tmp_path)
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and words in text and "\n" not in text
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_model_are_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    checkpoint.check_matches(model.state_dict(), model, "run/step-00000001.pt")
    other = dict(model.state_dict())
    other["0.weight"] = torch.zeros(3, 5)
    other["extra"] = other.pop("1.bias")
    with pytest.raises(ConfigError) as caught:
        checkpoint.check_matches(other, model, "run/step-00000001.pt")
    text = str(caught.value)
    assert "run/step-00000001.pt" in text and "1 missing (1.bias" in text
    assert "1 unexpected (extra" in text and "0.weight (3, 5), not (3, 4)" in text


def test_an_encoder_travels_with_its_description(tmp_path):
    weights = nn.Linear(4, 3).state_dict()
    weights["turned"] = weights["weight"].T  # shares memory, not contiguous
    meta = {"config": {"size": 64, "masks": "future"}, "step": 7}
    path = checkpoint.export_encoder(tmp_path / "out" / "encoder.safetensors", weights, meta)
    loaded, found = checkpoint.load_encoder(path)
    assert found == meta and loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize("kind", ["missing", "cut short", "foreign", "checkpoint"])
def test_a_bad_encoder_file_gives_one_error_with_its_name(tmp_path, kind):
    path = checkpoint.export_encoder(tmp_path / "e", nn.Linear(4, 3).state_dict(), {})
    if kind == "missing":
        path.unlink()
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "foreign":
        safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    else:
        path = checkpoint.save(tmp_path, 1, state())
    with pytest.raises(ConfigError, match="not a whole encoder of vidlearn") as caught:
        checkpoint.load_encoder(path)
    assert str(caught.value).startswith(str(path))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VidlearnError, match=r"file/step-00000001.pt: not written: .*File exists"):
        checkpoint.save(tmp_path / "file", 1, {"a": 1})
