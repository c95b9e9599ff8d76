"""Save a run so that it can go on, and the encoder so that others can use it (chapter 11).

Input: tensors and plain values. Output: files that are whole or not there at all. Traded: a save
needs room for one file more, and a checkpoint holds no objects, so that loading one runs no code.
"""

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vidlearn.errors import ConfigError, VidlearnError


class Writer(ThreadPoolExecutor):
    """Saves beside the training, one file at a time; leave its `with`, and all is written."""

    def __init__(self) -> None:
        super().__init__(1, "checkpoint")
        self.saving: Future[Path] | None = None
        self.state: Any = None  # memory of the last copy: fresh pages cost more than what they hold

    def save(self, folder: Path, step: int, state: dict, *, each: int, copy: bool) -> None:
        """`save`, later, with a `copy` of what training changes; raises what the last one did."""
        self.wait()
        if copy:
            state = self.state = _copied(state, self.state)
        self.saving = self.submit(save, folder, step, state, each=each)

    def wait(self) -> Path | None:
        """The last file, once it is whole, or None without one; raises what its save raised."""
        return self.saving.result() if self.saving else None


def _copied(new: Any, old: Any) -> Any:
    """The values of `new`, in the tensors of `old` where they fit."""
    if isinstance(new, dict):
        old = old if isinstance(old, dict) else {}
        return {name: _copied(x, old.get(name)) for name, x in new.items()}
    if isinstance(new, Tensor):
        fits = isinstance(old, Tensor) and (old.shape, old.dtype) == (new.shape, new.dtype)
        return old.copy_(new) if fits else new.detach().clone()
    return deepcopy(new)


def save(folder: str | Path, step: int, state: dict, *, keep: int = 2, each: int = 0) -> Path:
    """Write `folder`/step-00000120.pt from one rank; keep the newest, and all of `each` n steps.

    The state is of tensors, numbers and text: `load` refuses other objects. VidlearnError: the
    disk is full or the folder read-only; older checkpoints are untouched.
    """
    path = Path(folder) / f"step-{step:08d}.pt"
    write(path, lambda f: torch.save({"vidlearn": state}, f))
    others = [p for p in _saved(path.parent) if p != path]
    for old in (p for p in others[::-1][keep - 1 :] if not each or int(p.stem[5:]) % each):
        old.unlink()
    return path


def latest(folder: str | Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None; a broken one is skipped with a warning."""
    for path in reversed(_saved(Path(folder))):
        if zipfile.is_zipfile(path):  # looks for the table of contents, which is written last
            return path
        warnings.warn(f"{path} is cut short and was skipped: delete it", stacklevel=2)
    return None


def load(path: str | Path) -> dict[str, Any]:
    """The state that `save` wrote; ConfigError for a file that is missing, damaged or foreign."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {bad}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: no whole checkpoint ({error}). Take another one") from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        cause = "foreign, or with Python objects in it, which could run code"
        raise ConfigError(f"{path}: {cause}. Take a checkpoint of a vidlearn run") from error
    if not isinstance(content, dict) or "vidlearn" not in content:
        raise ConfigError(f"{path}: a torch file, but not a checkpoint of a vidlearn run")
    return content["vidlearn"]


def check_matches(state_dict: Mapping[str, Tensor], model: nn.Module, path: str | Path) -> None:
    """ConfigError, with names, unless the weights in `path` have the model's names and shapes."""
    mine = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    file = {name: tuple(t.shape) for name, t in state_dict.items()}
    problems = {
        "missing": sorted(mine.keys() - file),
        "unexpected": sorted(file.keys() - mine),
        "differ": [f"{n} {file[n]}, not {s}" for n, s in mine.items() if file.get(n, s) != s],
    }
    if texts := [f"{len(n)} {what} ({', '.join(n[:3])} ...)" for what, n in problems.items() if n]:
        raise ConfigError(f"{path} belongs to another model; weights: {'; '.join(texts)}")


def export_encoder(path: str | Path, encoder_state: Mapping[str, Tensor], meta: dict) -> Path:
    """Write weights as safetensors, with `meta` as JSON in the header; returns the path."""
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in encoder_state.items()}
    data = safetensors.torch.save(tensors, {"vidlearn": json.dumps(meta)})
    return write(Path(path), lambda f: f.write(data))


def load_encoder(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, meta) of a file that `export_encoder` wrote; ConfigError for any other."""
    try:
        with safetensors.safe_open(path, "pt") as f:
            meta = json.loads((f.metadata() or {})["vidlearn"])
            return {name: f.get_tensor(name) for name in f.keys()}, meta
    except (OSError, safetensors.SafetensorError, KeyError) as error:
        raise ConfigError(f"{path}: not a whole encoder of vidlearn ({error!r})") from error


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*[0-9].pt"), key=lambda path: (len(path.name), path.name))


def write(path: Path, write: Callable[[IO[bytes]], Any]) -> Path:
    """Let `write` fill a file that is whole, or not there at all; VidlearnError: no room for it."""
    temporary = path.with_name(".unfinished")  # one name: what a killed save leaves is used again
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if temporary.exists():
            temporary.unlink()
        # torch reports a full disk as a position in its file; the system's own words are below.
        cause = str(error.__context__ or error).splitlines()[0]
        raise VidlearnError(f"{path}: not written: {cause}. Older files are untouched") from error
    return path
