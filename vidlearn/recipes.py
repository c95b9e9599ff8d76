"""What a run is made of: Config, every choice of a training run, and the recipes that ship.

A recipe is a Config with its command, its cost and its result in `about`. Everything can be
overridden on the command line, e.g. `vidlearn train laptop --steps 100 --seed 1`.
Nothing here imports torch, so that `vidlearn --help` answers at once. Taught in chapter 11.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vidlearn.errors import ConfigError

if TYPE_CHECKING:
    from vidlearn.model import ModelConfig
    from vidlearn.sample import ClipSpec
    from vidlearn.transform import ClipTransform


@dataclass(frozen=True)
class Config:
    """Every choice of one training run; the batch is the *global* one, which N processes share."""

    about: Annotated[str, tyro.conf.Suppress] = ""  # command, cost and expected result
    # the clips
    size: int = 224  # Side of the square crop, in pixels
    frames: int = 16  # Frames a clip
    stride_frames: int = 4  # Frames from one frame of the clip to the next
    strides: str = "exact"  # exact, or vjepa1 for the published strides of 4, 4, 4, 4, 5 ...
    crop_scale: tuple[float, float] = (0.3, 1.0)  # Area of the random crop as a share of the frame
    flip: float = 0.5  # Probability of mirroring a clip; 0 where left and right matter
    input_norm: str = "imagenet"  # imagenet: fixed mean and deviation; clip: each clip by its own
    backend: str = "decord"  # Decoder: decord, pyav or torchcodec
    workers: int = 4  # Loader processes for each training process
    max_bad_share: float = 0.05  # Stop when more than this share of the videos cannot be read
    # the model
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
    # the task
    masks: str = "vjepa"  # Kinds of masks: vjepa (short and long), future, short or long
    mask_cut: str = "fair"  # fair, or vjepa1 for the published cut
    mask_cycle: bool = False  # Take one kind of mask a step in turn instead of all kinds every step
    one_token: bool = False  # One mask token for all kinds of masks, as V-JEPA 2 has it
    loss_power: float = 1.0  # The loss is |difference|^power / power
    context_loss: float = 0.0  # Weight of the loss on the context, with --dense
    context_ramp: tuple[int, int] = (15_000, 30_000)  # Steps between which that weight rises from 0
    token_var: float = 0.0  # Weight of V-JEPA's variance term on the predictions
    var_cov: float = 0.0  # Weight of the variance-covariance term on the context features
    # the optimiser
    batch: int = 3072  # Clips a step, over all processes
    steps: int = 90_000  # Steps of the run
    warmup: int = 12_000  # Steps of the learning rate's rise
    lr_start: float = 2e-4  # Learning rate at the first step
    lr: float = 6.25e-4  # Highest learning rate
    lr_final: float = 1e-6  # Learning rate at the last step
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
    # the run
    threads: int = 1  # CPU threads of each process
    log_every: int = 10  # Steps between two lines of the log
    save_every: int = 1000  # Steps between two checkpoints
    tensorboard: bool = False  # Write TensorBoard files as well

    # What may differ between a run and its continuation.
    _FREE = (
        *("about", "backend", "workers", "log_every", "save_every", "tensorboard", "threads"),
        *("compile", "recompute", "shard", "bf16_grads"),
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            value, free = (
                getattr(self, field.name),
                ("workers", "warmup", "seed", "anneal", "clip_start"),
            )
            least = 1 if field.type == "int" and field.name not in free else 0
            if field.type in ("int", "float") and not value >= least:
                name = field.name.replace("_", "-")
                raise ConfigError(f"--{name} {value}: give {least} or more")

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

        return ClipSpec(self.frames, self.stride_frames, rule=self.strides)

    def transform(self, train: bool) -> ClipTransform:
        """Crop, resize and flip: at random for training, the centre otherwise."""
        from vidlearn.transform import ClipTransform

        flip = self.flip if train else 0.0
        return ClipTransform(size=self.size, train=train, scale=self.crop_scale, flip=flip)

    def to_json(self) -> str:
        """The choices as JSON, without `about`."""
        return json.dumps({name: x for name, x in asdict(self).items() if name != "about"})

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The Config that `to_json` wrote."""
        values = json.loads(text).items()
        saved: dict[str, Any] = {n: tuple(x) if isinstance(x, list) else x for n, x in values}
        unknown = sorted(set(saved) - {f.name for f in fields(cls)})
        if unknown:
            why = "it was written by another version"
            raise ConfigError(f"config: unknown fields {unknown}; {why}")
        return cls(**saved)

    def differences(self, other: Config) -> list[str]:
        """Fields that make this another run than `other`, each as 'name: mine, theirs'."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{n}: {a}, {b}" for n, a, b in pairs if a != b and n not in self._FREE]


LAPTOP = Config(
    about="""A V-JEPA of 0.5 M parameters on the built-in videos.
    Command: vidlearn train laptop   (or: torchrun --nproc-per-node 2 -m vidlearn train laptop)
    Cost: about 3 CPU-minutes. Result: see chapter 11 and `vidlearn probe`.""",
    size=48, frames=8, stride_frames=2, crop_scale=(0.5, 1.0), flip=0.0, input_norm="clip",
    patch=8, width=96, depth=4, heads=3, pred_width=48, pred_depth=2, pred_heads=3,
    masks="future", mask_cycle=True, var_cov=0.1, workers=1,
    batch=16, steps=600, warmup=60, lr_start=1e-4, lr=1e-3, weight_decay=(0.04, 0.04),
    ema=(0.99, 1.0), save_every=100,
)  # fmt: skip
GPU = Config(
    about="""A ViT-S on clips of 16 x 112 x 112: the first real run on one GPU.
    Command: vidlearn train gpu --data DIR
    Cost: 20,000 steps of 128 clips; not yet timed on a GPU by us. Result: not yet measured.""",
    size=112, width=384, depth=12, heads=6, pred_width=192, pred_depth=6, pred_heads=6,
    batch=128, steps=20_000, warmup=1_000, workers=8,
)  # fmt: skip
VITL16 = Config(
    about="""The published V-JEPA ViT-L/16, 224 px, with the fair masks.
    Command: slurm/submit.sh many_nodes --nodes=16 vitl16   (as published: --mask-cut vjepa1)
    Cost: 7.1e20 FLOPs (2.55 TFLOP a clip), by our count. Result, published: 80.8 % on Kinetics-400
    and 69.5 % on Something-Something v2 with an attentive probe (Bardes et al. 2024).""",
    workers=12,
)
VITH16 = replace(
    VITL16,
    about="""The published V-JEPA ViT-H/16, 224 px, with the fair masks.
    Command: slurm/submit.sh many_nodes --nodes=16 vith16. Cost: 1.3e21 FLOPs, by our count.
    Result, published: 82.0 % on Kinetics-400, 71.4 % on Something-Something v2.""",
    width=1280, depth=32,
)  # fmt: skip
PUBLISHED = replace(
    VITL16,
    about="""V-JEPA ViT-L/16 as its code was: masks, strides, schedules and late clipping, too.
    Command: slurm/submit.sh many_nodes --nodes=16 vitl16-published
    Cost: as vitl16. Result: as published there.""",
    mask_cut="vjepa1", pred_heads=16, strides="vjepa1", rates="vjepa1", clip_start=12_300,
)  # fmt: skip
VITL2 = replace(
    VITL16,
    about="""V-JEPA 2 ViT-L/16, first stage: 256 px, rotary positions (as published: --one-token).
    Command: slurm/submit.sh many_nodes --nodes=16 vjepa2-vitl16
    Cost: 2.7e21 FLOPs, by our count. Result, published, after a second stage of longer clips:
    73.7 % on Something-Something v2 with a probe of four blocks (Assran et al. 2025).""",
    size=256, stride_frames=6, pos="rope2", steps=252_000, lr_start=1e-4, lr=5.25e-4,
    anneal=12_000, fall="linear", weight_decay=(0.04, 0.04), ema=(0.99925, 0.99925),
)  # fmt: skip
VITG2 = replace(
    VITL2,
    about="""V-JEPA 2 ViT-g/16, first stage. Command: slurm/submit.sh many_nodes vjepa2-vitg16
    Cost: 7.5e21 FLOPs, by our count. Result, published: 75.3 % on Something-Something v2.""",
    width=1408, depth=40, heads=22, mlp_ratio=48 / 11, shard=True,
)  # fmt: skip
VITG21 = replace(
    VITG2,
    about="""V-JEPA 2.1 ViT-g/16, videos only: four depths are predicted, and the context, too.
    Command: slurm/submit.sh many_nodes vjepa21-vitg16. Cost: 4.7e21 FLOPs, by our count.
    Result, published, with images as well: 76.9 % on Something-Something v2.""",
    pos="rope21", dense=True, levels=4, pred_depth=24, context_loss=0.5, steps=147_000,
)  # fmt: skip
RECIPES: dict[str, Config] = {
    "laptop": LAPTOP, "gpu": GPU, "vitl16": VITL16, "vith16": VITH16,
    "vitl16-published": PUBLISHED, "vjepa2-vitl16": VITL2, "vjepa2-vitg16": VITG2,
    "vjepa21-vitg16": VITG21,
}  # fmt: skip


def recipe(name: str) -> Config:
    """The recipe of this name; an unknown one is an error that lists those there are."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; known recipes: {', '.join(RECIPES)}")
    return RECIPES[name]
