"""Published weights: files of V-JEPA, V-JEPA 2 and 2.1, and of Hugging Face, read and written.

Input: a path, or a published name whose file is already there; nothing is downloaded. Output: an
Encoder and a Predictor in the sizes that the tensors' shapes tell. Traded: every name and shape
must fit, so a file with one layer more is refused. What shapes cannot tell follows from tables of
what was published, and can be given: heads, frames, side, layout of positions. Chapter 10.
Sources: the releases of facebookresearch/jepa and /vjepa2; VJEPA2Model of transformers.
"""

import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from tyro.conf import Positional

from vidlearn import checkpoint
from vidlearn.attentive import AttentiveProbe
from vidlearn.errors import ConfigError
from vidlearn.model import SIZES, Encoder, ModelConfig, Predictor
from vidlearn.recipes import Config

Net = TypeVar("Net", bound=nn.Module)
Weights = dict[str, Tensor]
Parts = dict[str, Weights]
Which = Literal["target", "context"]
URL = "https://dl.fbaipublicfiles.com/"
NAMES = {
    **{f"vjepa/{n}": f"jepa/{n}/{n}.pth.tar" for n in ("vitl16", "vith16", "vith16-384")},
    **{f"vjepa2/{n}": f"vjepa2/{n}.pt" for n in ("vitl", "vith", "vitg", "vitg-384")},
    "vjepa2.1/vitb-384": "vjepa2/vjepa2_1_vitb_dist_vitG_384.pt",
    "vjepa2.1/vitl-384": "vjepa2/vjepa2_1_vitl_dist_vitG_384.pt",
    "vjepa2.1/vitg-384": "vjepa2/vjepa2_1_vitg_384.pt",
    # Published as vitG, which some file systems cannot tell from vitg.
    "vjepa2.1/vitgigantic-384": "vjepa2/vjepa2_1_vitG_384.pt",
}
# Heads by width. The two widest were published with V-JEPA 2 and 2.1 only, with other heads.
HEADS = {width: heads for width, _, heads, _ in SIZES.values()} | {1408: 22, 1664: 26}
# The parts of a file that can be the encoder of a kind.
PARTS = {"target": ("target_encoder", "ema_encoder", "one encoder"), "context": ("encoder",)}
# Beginnings of names: ours, and those of transformers' VJEPA2Model.
TWINS = {
    "patch_embed.": "encoder.embeddings.patch_embeddings.", "blocks.": "encoder.layer.",
    "norm.": "encoder.layernorm.", "predictor_blocks.": "predictor.layer.",
    "predictor_embed.": "predictor.embeddings.predictor_embeddings.",
    "predictor_norm.": "predictor.layernorm.", "predictor_proj.": "predictor.proj.",
}  # fmt: skip
QKV, HOLES = ("query", "key", "value"), "predictor.embeddings.mask_tokens"
# Fields of ModelConfig, and of transformers' VJEPA2Config.
FIELDS = {
    "size": "crop_size", "frames": "frames_per_clip", "patch": "patch_size",
    "tubelet": "tubelet_size", "width": "hidden_size", "depth": "num_hidden_layers",
    "heads": "num_attention_heads", "mlp_ratio": "mlp_ratio", "pred_width": "pred_hidden_size",
    "pred_depth": "pred_num_hidden_layers", "pred_heads": "pred_num_attention_heads",
    "mask_tokens": "pred_num_mask_tokens",
}  # fmt: skip
# With other values a VJEPA2Model computes something else than ours.
FIXED = {"model_type": "vjepa2", "hidden_act": "gelu", "layer_norm_eps": 1e-6}


@dataclass(frozen=True)
class Pretrained:
    """What a file holds; `mask_token` is the `kind` with which to ask the predictor."""

    encoder: Encoder
    predictor: Predictor | None
    cfg: ModelConfig
    mask_token: int
    config: Config  # for probes and exports; of files that are not ours it has the shape only
    about: dict[str, Any]  # the path, which part of the file the encoder is, the epoch or step


def load_pretrained(
    source: str | Path, *, encoder: str = "target", mask_token: int | None = None, **shape: Any
) -> Pretrained:
    """Encoder and predictor of an official file, a Hugging Face folder, a run or an export.

    `encoder` is "target", as evaluations take it, or "context", the trained one. The mask token
    is 0, the only trained one of V-JEPA 2, but 1 for Hugging Face, whose model always takes that.
    `shape` may set what tensors do not tell: heads, pred_heads, frames, size, pos; None sets none.
    ConfigError: no such file or name, a foreign or broken file, another model's weights.
    """
    if encoder not in PARTS:
        raise ConfigError(f"encoder={encoder!r}; known: {', '.join(PARTS)}")
    path = _find(source)
    parts, told = _read(path)
    part = next((name for name in PARTS[encoder] if name in parts), None)
    if part is None:
        others = [kind for kind, names in PARTS.items() if {*names} & {*parts}]
        has = f"the {others[0]} encoder: ask for that one" if others else ", ".join(parts)
        raise ConfigError(f"{path}: no {encoder} encoder in it, but {has}")
    weights, guess, config = parts[part], parts.get("predictor", {}), told.get("config")
    shape = {name: x for name, x in shape.items() if x is not None}
    if config:
        config = replace(config, **shape)
        cfg = config.model()
    else:
        cfg = _shape(path, weights, guess, told.get("shape", {}) | shape)
        mine = {f.name: getattr(cfg, f.name) for f in fields(Config) if hasattr(cfg, f.name)}
        clips = told.get("clips", Config())
        config = replace(clips, **{**mine, "levels": 1})  # evaluations read the last level
    if cfg.pos != "sincos":  # released files of V-JEPA 2 hold tables that it does not use
        weights.pop("pos_embed", None)
        guess.pop("predictor_pos_embed", None)
    net = _build(lambda: Encoder(cfg), weights, path)
    predictor = _build(lambda: Predictor(cfg), guess, path) if guess else None
    kind = told.get("mask_token", 0) if mask_token is None else mask_token
    about = {"path": str(path), "encoder": part, "epoch": told.get("epoch", 0)}
    return Pretrained(net, predictor, cfg, kind, config, about)


def _find(source: str | Path) -> Path:
    """The file, or the folder of a Hugging Face model; of a run the newest checkpoint."""
    path, name = Path(source), str(source)
    if not path.exists():
        if name not in NAMES:
            raise ConfigError(f"{source}: no such file; published names: {', '.join(NAMES)}")
        path = Path(os.environ.get("VIDLEARN_WEIGHTS", "weights"), name.replace("/", "-") + ".pt")
        if not path.exists():
            fetch = f"curl -fL --create-dirs -o {path} {URL}{NAMES[name]}"
            raise ConfigError(f"{path} is not there. Fetch it: {fetch}")
    beside = path.with_name("config.json")
    if path.suffix == ".safetensors" and beside.exists() and '"model_type"' in beside.read_text():
        return path.parent  # of Hugging Face
    if path.is_dir():  # runs have a config.json of their own
        newest = checkpoint.latest(path / "checkpoints") or checkpoint.latest(path)
        if newest is None and not (path / "config.json").exists():
            raise ConfigError(f"{path}: neither a run nor a Hugging Face model with a config.json")
        return newest or path
    return path


def _read(path: Path) -> tuple[Parts, dict[str, Any]]:
    """The weights of each part of a file, under our names, and what else it tells."""
    if path.is_dir():
        return _read_hf(path)
    if path.suffix == ".safetensors":
        weights, meta = checkpoint.load_encoder(path)
        parts = {meta.get("encoder", "one encoder"): weights}
    else:
        content, names = _load(path), [*PARTS["target"], *PARTS["context"], "predictor"]
        if meta := content.get("vidlearn", {}):
            flat = meta["model"].items()
            content = {n: {k: x for k, x in flat if k.startswith(f"{n}.")} for n in names}
        parts = {n: _bare(content[n], n) for n in names if content.get(n)}
        if not parts:
            what = "no checkpoint of V-JEPA, with encoder, predictor and target_encoder"
            has = ", ".join([*content][:6])
            raise ConfigError(f"{path}: {what}; it has {has}. Take the published file")
        if not meta:
            return parts, {"epoch": content.get("epoch", 0)}
    return parts, {"config": Config.from_json(meta["config"]), "epoch": meta["step"]}


def _bare(weights: Any, part: str = "") -> Weights:
    """The tensors, without what wrappers put before their names."""
    found = weights if isinstance(weights, dict) else {}
    for start in (f"{part}.", "module.", "backbone."):
        found = {k.removeprefix(start): x for k, x in found.items() if isinstance(x, Tensor)}
    return found


def _load(path: Path) -> dict[str, Any]:
    """The content of a torch file; none of its code runs, and its tensors stay on the disk."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    with open(path, "rb") as f:
        start = f.read(64).lstrip()
    if not zipfile.is_zipfile(path):  # looks for the table of contents, which is written last
        what = {b"<": "a web page, as that server gives to browsers", b"P": "cut short"}
        cause = what.get(start[:1], "not a file of torch")
        raise ConfigError(f"{path}: {cause}. Fetch it again, with curl -fL -o FILE URL")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        cause = "foreign, or with Python objects in it, which could run code"
        raise ConfigError(f"{path}: {cause}. Take the published file") from error
    found = content if isinstance(content, dict) else {type(content).__name__: content}
    return {str(name): x for name, x in found.items()}


def _read_hf(folder: Path) -> tuple[Parts, dict[str, Any]]:
    """`_read` of config.json and the safetensors beside it, one or several."""
    hf: Weights = {}
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        for file in sorted(folder.glob("model*.safetensors")):
            hf |= safetensors.torch.load_file(file)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{folder}: not whole ({error}). Fetch it again") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder}: its config.json is a {type(config).__name__}, not a model's")
    if odd := {k: config.get(k) for k, x in FIXED.items() if config.get(k, x) != x}:
        raise ConfigError(f"{folder}: a model with {odd}; only VJEPA2Model with {FIXED} is read")
    shape = {mine: config[x] for mine, x in FIELDS.items() if x in config} | {"pos": "rope2"}
    cfg, holes = ModelConfig(**shape), hf.pop(HOLES, ())
    with torch.device("meta"):
        nets = {"one encoder": Encoder(cfg), "predictor": Predictor(cfg)}
    parts: Parts = {}
    for part, net in nets.items():
        twins = {n: _twins(n) for n in net.state_dict() if "mask_tokens" not in n}
        whole = {n: them for n, them in twins.items() if hf.keys() >= {*them}}
        parts[part] = {n: torch.cat([hf.pop(x) for x in them]) for n, them in whole.items()}
    parts["predictor"] |= {f"mask_tokens.{i}": x for i, x in enumerate(holes)}
    parts["one encoder"] |= hf  # what is left has no place with us, and will be named
    told = {"shape": shape, "mask_token": 1}
    if "vidlearn" in config:  # exported by us: how its clips were made
        told["clips"] = Config.from_json(json.dumps(config["vidlearn"]))
    return parts, told


def _shape(path: Path, weights: Weights, guess: Weights, given: dict[str, Any]) -> ModelConfig:
    """The model's shape: as given, as the tensors tell, and the rest as it was published."""
    box, fc1 = weights.get("patch_embed.proj.weight"), weights.get("blocks.0.mlp.fc1.weight")
    if box is None or fc1 is None or box.ndim != 5:
        raise ConfigError(f"{path}: no video encoder of V-JEPA; its weights: {[*weights][:3]} ...")
    width, _, tubelet, patch, _ = box.shape
    table, kinds = weights.get("pos_embed"), _count(guess, "mask_tokens")
    dense = "patch_embed_img.proj.weight" in weights
    # Files of V-JEPA 2 may hold the table, too, but they have more mask tokens.
    pos = "rope21" if dense else "sincos" if table is not None and kinds < 3 else "rope2"
    pos = given.get("pos", pos)
    heads = given.get("heads", HEADS.get(width))
    shape: dict[str, Any] = dict(
        patch=patch, tubelet=tubelet, width=width, depth=_count(weights, "blocks"), heads=heads,
        mlp_ratio=len(fc1) / width, pos=pos, frames=64, size=384 if "384" in path.name else 256,
        dense=dense,
    )  # fmt: skip
    if guess:
        narrow, out = (len(guess.get(f"predictor_{x}.bias", ())) for x in ("norm", "proj"))
        levels = 4 if "predictor_embed.0.weight" in guess else 1
        pred_heads = heads if pos == "sincos" else 12 if narrow == 384 else None
        shape |= dict(
            pred_width=narrow, pred_depth=_count(guess, "predictor_blocks"), pred_heads=pred_heads,
            mask_tokens=kinds, levels=levels, pred_out=out if out != levels * width else 0,
        )  # fmt: skip
    if pos == "sincos" and table is not None:
        shape["frames"] = frames = given.get("frames", 16)
        shape["size"] = math.isqrt(table.shape[1] // max(1, frames // tubelet)) * patch
    shape |= given
    for name in (name for name, value in shape.items() if value is None):
        why = "does not stand in it, and no model of this width was published"
        raise ConfigError(f"{path}: {name} {why}. Give {name}=")
    cfg = ModelConfig(**shape)
    if pos == "sincos" and table is not None and table.shape[1] != cfg.n_tokens:
        mine = f"{cfg.frames} frames of {cfg.size} pixels make {cfg.n_tokens}"
        how = "Give those of its training; the encoder takes clips of other sizes as well"
        raise ConfigError(f"{path}: made for {table.shape[1]} tokens, but {mine}. {how}")
    return cfg


def _count(weights: Weights, part: str) -> int:
    below = (name.removeprefix(part + ".") for name in weights if name.startswith(part + "."))
    return len({name.split(".")[0] for name in below})


def _build(make: Callable[[], Net], weights: Weights, path: str | Path) -> Net:
    """The model with these weights, in float32; none is made at random first."""
    with torch.device("meta"):
        net = make()
    checkpoint.check_matches(weights, net, path)
    net.to_empty(device="cpu").load_state_dict(weights)
    return net.eval()


def load_probe(path: str | Path, heads: int = 16, eps: float = 1e-5) -> AttentiveProbe:
    """The classifier in an official evaluation file; all that were published have 16 heads.

    Their norms add 1e-5; transformers' pooler adds 1e-6, which moves logits by some 1e-5.
    It reads the tokens of the target encoder that it was trained on. ConfigError: as above.
    """
    content = _load(Path(path))
    found: Any = content.get("classifier") or next(iter(content.get("classifiers", ())), {})
    # V-JEPA's probes store an output projection that was never used.
    weights = {k: x for k, x in _bare(found).items() if ".xattn.proj." not in k}
    if "linear.weight" not in weights:
        raise ConfigError(f"{path}: no probe of V-JEPA; it has {', '.join([*content][:6])}")
    (classes, width), depth = weights["linear.weight"].shape, 1 + _count(weights, "pooler.blocks")
    after = "classifier" in content  # V-JEPA's further blocks stand behind the query, 2's before
    make = partial(AttentiveProbe, width, heads, classes, depth, after=after, eps=eps)
    return _build(make, weights, path)


def _twins(name: str) -> list[str]:
    """What a weight of ours is called in a VJEPA2Model, where `qkv` are three."""
    mine, theirs = next(pair for pair in TWINS.items() if name.startswith(pair[0]))
    twin = theirs + name.removeprefix(mine).replace(".attn.", ".attention.")
    return [twin.replace("qkv", third) for third in QKV] if ".qkv." in twin else [twin]


def import_weights(
    source: Positional[str], out: Path = Path("encoder.safetensors"), encoder: Which = "target",
    frames: int | None = None, size: int | None = None, heads: int | None = None,
    pred_heads: int | None = None,
) -> None:  # fmt: skip
    """Write the encoder of a published file as one that `vidlearn probe` reads.

    Args:
        source: path or name of published weights, a Hugging Face folder, or a run.
        out: file to write.
        encoder: the slow average, as published, or the trained one.
        frames: frames of the clips to probe, where positions allow others.
        size: side of the clips, in the same way.
        heads: attention heads, for a width that was not published.
        pred_heads: those of the predictor, in the same way.
    """
    shape = {"frames": frames, "size": size, "heads": heads, "pred_heads": pred_heads}
    model = load_pretrained(source, encoder=encoder, **shape)
    meta = {"config": model.config.to_json(), "step": model.about["epoch"]}
    meta |= {"encoder": model.about["encoder"]}
    checkpoint.export_encoder(out, model.encoder.state_dict(), meta)
    told = "{out}: {encoder} of {path}, epoch {epoch}; clips of {frames} frames, {size} pixels"
    print(told.format(out=out, **model.about, frames=model.cfg.frames, size=model.cfg.size))


def export_hf(folder: str | Path, model: Pretrained) -> Path:
    """Write config.json and model.safetensors, which VJEPA2Model.from_pretrained reads.

    It asks its predictor with the second mask token, so `model.mask_token` gets that place.
    ConfigError: transformers has no such model, or there is no predictor.
    """
    cfg, predictor, folder = model.cfg, model.predictor, Path(folder)
    if cfg.pos != "rope2" or cfg.dense or predictor is None:
        why = f"pos={cfg.pos}, dense={cfg.dense}, {'no' if predictor is None else 'a'} predictor"
        how = "Export a run that was trained with --pos rope2"
        raise ConfigError(f"{model.about['path']}: {why}; transformers has V-JEPA 2 only. {how}")
    state = model.encoder.state_dict() | predictor.state_dict()
    holes = [state.pop(f"mask_tokens.{i}") for i in range(cfg.mask_tokens)]
    asked = holes.pop(model.mask_token)
    hf = {HOLES: torch.stack([*(holes[:1] or [asked]), asked, *holes[1:]])}
    for name, x in state.items():
        twins = _twins(name)
        hf |= {twin: y.contiguous() for twin, y in zip(twins, x.chunk(len(twins)))}
    config = {theirs: getattr(cfg, mine) for mine, theirs in FIELDS.items()} | FIXED
    config |= {"architectures": ["VJEPA2Model"], "pred_num_mask_tokens": len(hf[HOLES])}
    config |= {"vidlearn": json.loads(model.config.to_json())}  # how clips are made; others skip it
    data = safetensors.torch.save(hf, {"format": "pt"})
    checkpoint.write(folder / "model.safetensors", lambda f: f.write(data))
    text = json.dumps(config, indent=2)  # last: without it the folder is not a model
    return checkpoint.write(folder / "config.json", lambda f: f.write(text.encode())).parent
