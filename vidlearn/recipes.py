"""What a run is made of: Config, every choice of a training run, and the recipes that ship.

A recipe is a Config with its command, its cost and its result in `about`; those that ship are in
recipes.toml, and you can write your own. The command line overrides each choice: `--steps 100`.
Nothing here imports torch, so that `vidlearn --help` answers at once. Taught in chapter 11.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from vidlearn.errors import ConfigError

if TYPE_CHECKING:
    from vidlearn.model import ModelConfig
    from vidlearn.sample import ClipSpec
    from vidlearn.transform import ClipTransform

_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool}
_KNOWN = {"fall": ("cosine", "linear"), "rates": ("exact", "vjepa1")}


@dataclass(frozen=True)
class Config:
    """Every choice of one training run; the batch is the *global* one, which N processes share."""

    about: Annotated[str, tyro.conf.Suppress] = ""  # command, cost and expected result
    size: int = 224  # Side of the square crop, in pixels
    frames: int = 16  # Frames a clip
    stride_frames: int = 4  # Frames from one frame of the clip to the next
    strides: str = "exact"  # exact, or vjepa1 for the published strides of 4, 4, 4, 4, 5 ...
    start_grid: int = 1  # Clips start on multiples of it; 4 for layered files, read with pyav
    crop_scale: tuple[float, float] = (0.3, 1.0)  # Area of the random crop as a share of the frame
    flip: float = 0.5  # Probability of mirroring a clip; 0 where left and right matter
    input_norm: str = "imagenet"  # imagenet: fixed mean and deviation; clip: each clip by its own
    backend: str = "decord"  # Decoder: decord, pyav, torchcodec or auto, which is the fastest
    workers: int = 4  # Loader processes for each training process
    max_bad_share: float = 0.05  # Stop when more than this share of the videos cannot be read
    patch: int = 16  # Side of a patch, in pixels
    tubelet: int = 2  # Frames a token spans
    width: int = 1024  # Width of the encoder
    depth: int = 24  # Blocks of the encoder
    heads: int = 16  # Attention heads of the encoder
    mlp_ratio: float = 4.0  # Width of its MLPs, in widths of the encoder
    pred_width: int = 384  # Width of the predictor
    pred_depth: int = 12  # Blocks of the predictor
    pred_heads: int = 12  # Attention heads of the predictor
    pos: str = "sincos"  # Positions: sincos (V-JEPA), rope2 (V-JEPA 2) or rope21 (V-JEPA 2.1)
    dense: bool = False  # Predict the context, too, and what else V-JEPA 2.1 has
    levels: int = 1  # Depths of the encoder that are predicted: 1, or 4 with --dense
    recompute: bool = False  # Save memory: forget what blocks computed until the backward pass
    masks: str = "vjepa"  # Kinds of masks: vjepa (short and long), future, short, long or tube
    mask_cut: str = "fair"  # fair, or vjepa1 for the published cut
    mask_cycle: bool = False  # Take one kind of mask a step in turn instead of all kinds every step
    one_token: bool = False  # One mask token for all kinds of masks, as V-JEPA 2 has it
    loss_power: float = 1.0  # The loss is |difference|^power / power
    context_loss: float = 0.0  # Weight of the loss on the context, with --dense
    context_ramp: tuple[int, int] = (15_000, 30_000)  # Steps between which that weight rises from 0
    token_var: float = 0.0  # Weight of V-JEPA's variance term on the predictions
    var_cov: float = 0.0  # Weight of the variance-covariance term on the context features
    batch: int = 3072  # Clips a step, over all processes
    accumulate: int = 1  # Parts in which each process takes its clips: less memory, one exchange
    steps: int = 90_000  # Steps of the run
    warmup: int = 12_000  # Steps of the learning rate's rise
    lr_start: float = 2e-4  # Learning rate at the first step
    lr: float = 6.25e-4  # Highest learning rate
    lr_final: float = 1e-6  # Learning rate at the last step
    muon_lr: float = 0.0  # Highest learning rate of matrices, by Muon; 0: AdamW for all weights
    anneal: int = 0  # Steps of its fall; 0: all after the rise
    fall: str = "cosine"  # Shape of its fall: cosine or linear
    rates: str = "exact"  # exact: they end where they say; vjepa1: at 4/5 of the way, as published
    weight_decay: tuple[float, float] = (0.04, 0.4)  # Weight decay at the first and the last step
    ema: tuple[float, float] = (0.998, 1.0)  # Momentum of the target encoder: first, last step
    clip_grad: float = 10.0  # Greatest gradient norm, encoder and predictor each; 0: no clipping
    clip_start: int = 0  # First step that is clipped; 12,300 in V-JEPA
    bf16: bool = True  # Mixed precision on CUDA
    bf16_cpu: bool = False  # Mixed precision on a CPU, which pays from a width of 384
    compile: bool = True  # Compile the blocks on CUDA
    shard: bool = False  # Share weights and optimiser among the processes (FSDP2), for ViT-g and up
    bf16_grads: bool = False  # Exchange gradients in half the bytes
    seed: int = 0  # Seed of everything
    threads: int = 1  # CPU threads of each process
    log_every: int = 10  # Steps between two lines of the log
    save_every: int = 1000  # Steps between two checkpoints, of which the newest two are kept
    keep_every: int = 0  # Steps between two that are kept for good; 0: none

    # What may differ between a run and its continuation.
    _FREE = "about backend workers log_every save_every keep_every threads compile recompute shard"

    def __post_init__(self) -> None:
        may_be_0 = ("workers", "warmup", "seed", "anneal", "clip_start", "keep_every")
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            kind, option = str(field.type), f"--{name.replace('_', '-')} {value!r}"
            if isinstance(value, list):  # JSON and TOML have no tuples
                object.__setattr__(self, name, tuple(value))
            if not isinstance(value, _KINDS.get(kind, (str, list, tuple))):
                raise ConfigError(f"{option}: give {kind}")
            least = 1 if kind == "int" and name not in may_be_0 else 0
            if kind in ("int", "float") and not value >= least:
                raise ConfigError(f"{option}: give {least} or more")
            if value not in (known := _KNOWN.get(name, (value,))):
                raise ConfigError(f"{option}: give {' or '.join(known)}")

    def model(self) -> ModelConfig:
        """The shape of the model."""
        from vidlearn.mask import MASKS
        from vidlearn.model import ModelConfig

        shared = [f.name for f in fields(ModelConfig) if hasattr(self, f.name)]
        kinds = 1 if self.mask_cycle or self.one_token else len(MASKS.get(self.masks, "?"))
        return ModelConfig(mask_tokens=kinds, **{name: getattr(self, name) for name in shared})

    def clip_spec(self) -> ClipSpec:
        """Which frames make a clip."""
        from vidlearn.sample import ClipSpec

        step, grid = self.stride_frames, self.start_grid
        return ClipSpec(self.frames, step, rule=self.strides, start_grid=grid)

    def transform(self, train: bool) -> ClipTransform:
        """Crop, resize and flip: at random for training, the centre otherwise."""
        from vidlearn.transform import ClipTransform

        return ClipTransform(self.size, train, self.crop_scale, flip=self.flip if train else 0.0)

    def to_json(self) -> str:
        """The choices as JSON, without `about`."""
        return json.dumps({name: x for name, x in asdict(self).items() if name != "about"})

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The Config that `to_json` wrote."""
        saved = json.loads(text)
        if odd := sorted(set(saved) - {f.name for f in fields(cls)}):
            raise ConfigError(f"config: unknown fields {odd}; it was written by another version")
        return cls(**saved)

    def differences(self, other: Config) -> list[str]:
        """Fields that make this another run than `other`, each as 'name: mine, theirs'."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{n}: {a}, {b}" for n, a, b in pairs if a != b and n not in self._FREE.split()]


def _read(path: Path, known: Mapping[str, Config]) -> dict[str, Config]:
    """The recipes of a TOML file, each a table; `base` names what it starts from."""
    found: dict[str, Config] = {}
    try:
        for name, choices in tomllib.loads(path.read_text("utf-8")).items():
            start = {"": Config(), **known, **found}[choices.pop("base", "")]
            found[name] = replace(start, **choices)
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        remedy = "give a table, [name], of a run's choices, as the API reference shows"
        raise ConfigError(f"{path}: no recipe in it ({error}): {remedy}") from error
    return found


RECIPES = _read(Path(__file__).with_suffix(".toml"), {})


def recipe(name: str) -> Config:
    """The recipe of this name, or the one in a TOML file of yours; ConfigError: neither."""
    if name.endswith(".toml"):
        if len(own := list(_read(Path(name), RECIPES).values())) != 1:
            raise ConfigError(f"{name}: {len(own)} recipes in it: give one table, [name]")
        return own[0]
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r} (it comes first); known: {', '.join(RECIPES)}")
    return RECIPES[name]
