"""Make a small run again and ship it with the book: weights, log, probe results, hashes.

    .venv/bin/python tools/ship_run.py laptop      # writes book/assets/laptop

Trains the recipe on built-in videos (a run in runs/NAME goes on), probes it on the 3,440 of them
that all chapters use, and copies what the chapters read. Every checkpoint that is still there is
probed as in ablate.py: how accuracy grows with compute (curve.json). `about.json` names the seed,
the versions and the SHA-256 of each file; the machine's own paths stay behind.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ablate import probed, read_clips
from vidlearn import checkpoint, measure
from vidlearn.datasets import synth
from vidlearn.model import VJEPA
from vidlearn.recipes import RECIPES, Config

DATA = Path("data/synth")
MORE = {"hour": 16_000}  # training videos of the recipes that want other than 2,000
COPIED = ("config.json", "metrics.jsonl", "encoder.safetensors")


def curve(run: Path, config: Config) -> list[dict[str, float]]:
    """Per cent right of the random encoder, step 0, and of the checkpoints that were kept."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    model, clips = VJEPA(config.model()).eval(), read_clips(DATA)
    points = [{"step": 0, **probed(model.target_encoder, config, clips)}]
    for path in sorted((run / "checkpoints").glob("step-*.pt")):
        state = checkpoint.load(path)
        model.load_state_dict(state["model"])
        points.append({"step": state["step"], **probed(model.target_encoder, config, clips)})
    return points


def ship(run: Path, assets: Path) -> dict[str, str]:
    """Copy a finished run to `assets`; returns the SHA-256 of each file."""
    path = checkpoint.latest(run / "checkpoints")
    assert path is not None, f"{run}: no checkpoint"
    state = checkpoint.load(path)
    config = Config.from_json(state["config"])
    assert state["step"] == config.steps, f"{run}: not at its end; train it first"
    assets.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(run / name, assets / name)
    meta = {"config": state["config"], "step": state["step"]}
    checkpoint.export_encoder(assets / "model.safetensors", state["model"], meta)
    result = json.loads((run / "probe.json").read_text())
    for line in (worst for found in result["mistakes"].values() for worst in found["worst"]):
        line["path"] = Path(os.path.relpath(line["path"], DATA)).as_posix()
    told = {"checkpoint": assets.name, "data": "the built-in videos"}
    (assets / "result.json").write_text(json.dumps({**result, **told}, indent=1) + "\n")
    text = json.dumps(curve(run, config), indent=1)
    (assets / "curve.json").write_text(text + "\n")
    files = sorted(path for path in assets.iterdir() if path.name != "about.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", choices=["laptop", "laptop-adamw", "hour"])
    name = parser.parse_args().recipe
    run, assets = Path("runs") / name, Path("book/assets") / name
    data, clips = DATA, MORE.get(name)
    synth.make_shown(DATA)
    if clips:
        data = DATA.with_name(f"synth{clips}")
        synth.make_shown(data, train=clips)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    train = ["-m", "vidlearn", "train", name, "--data", data, "--out", run]
    probe = ["-m", "vidlearn", "probe", run, DATA, "--json", run / "probe.json"]
    for command in (train, probe):
        words = [sys.executable, *map(str, command)]
        subprocess.run(words, env=environment, check=True)
    hashes = ship(run, assets)
    seed = RECIPES[name].seed
    about = {"recipe": name, "seed": seed, "machine": measure.machine_card()}
    text = json.dumps({**about, "sha256": hashes}, indent=1)
    (assets / "about.json").write_text(text + "\n")
    print(assets, *hashes, sep="\n  ")


if __name__ == "__main__":
    main()
