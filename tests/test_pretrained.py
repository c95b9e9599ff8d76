"""Published weights: what is read computes what it computed, and each bad file has its message.

Small models are made here in the published layouts. Against transformers both ways; against files
of the published code where VIDLEARN_PARITY has them; the names and shapes of all published sizes
where VIDLEARN_FACTS has them.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

import vidlearn
from vidlearn import checkpoint, pretrained
from vidlearn.attentive import AttentiveProbe
from vidlearn.errors import ConfigError
from vidlearn.model import VJEPA, Encoder, ModelConfig, Predictor
from vidlearn.pretrained import HEADS, NAMES, load_pretrained, load_probe
from vidlearn.recipes import Config

os.environ["HF_HUB_OFFLINE"] = "1"
PARITY = ROOT / os.environ.get("VIDLEARN_PARITY", "../shared/parity")
FACTS = ROOT / os.environ.get("VIDLEARN_FACTS", "../shared/facts") / "checkpoint_keys"
V1 = ModelConfig(32, 16, 8, 2, 24, 2, 2, 4.0, 16, 1, 2, 2, "sincos")
V2 = ModelConfig(32, 8, 8, 2, 48, 2, 3, 3.0, 24, 2, 2, 10, "rope2")
V21 = replace(V2, pos="rope21", depth=4, dense=True, mask_tokens=8)
GIVEN = {"heads": 3, "pred_heads": 2, "frames": 8, "size": 32}  # what no file of V2 tells


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shake(net, seed=0):
    """No weight keeps its start: norms, biases and mask tokens take part."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in net.parameters():
            x.add_(torch.randn(x.shape, generator=g) * 0.1)
    return net.eval().requires_grad_(False)


def model_of(cfg):
    net = shake(VJEPA(cfg))
    return shake(net.target_encoder, 1) and net


def wrapped(part, **more):
    return {f"module.backbone.{k}": x for k, x in {**part.state_dict(), **more}.items()}


def official(net, path, *, target="target_encoder", tables=False, **changes):
    """A file as the published training code writes one."""
    more = {"pos_embed": torch.zeros(1, 64, net.cfg.width)} if tables else {}
    pred_more = {"predictor_pos_embed": torch.zeros(1, 64, net.cfg.pred_width)} if tables else {}
    content = {
        "encoder": wrapped(net.encoder, **more),
        "predictor": wrapped(net.predictor, **pred_more),
        "opt": {"state": {}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
        "scaler": None,
        target: wrapped(net.target_encoder, **more),
        "epoch": 7,
        "loss": 0.5,
    }
    torch.save(content | changes, path)
    return path


def clip_of(cfg, batch=2):
    size = cfg.frames, cfg.size, cfg.size
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(3))


def indices(cfg, batch=2):
    g = torch.Generator().manual_seed(4)
    order = torch.stack([torch.randperm(cfg.n_tokens, generator=g) for _ in range(batch)])
    return order[:, :9], order[:, 9:20]


def guess(encoder, predictor, clip, kind, cfg):
    """Predictions from the encoding of all tokens, which transformers takes, too."""
    context, target = indices(cfg)
    full = encoder(clip).take_along_dim(context[..., None], 1)
    return predictor(full, context, target, kind)


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("which", ["target", "context"])
@pytest.mark.parametrize(
    ("cfg", "given"),
    [
        *((V1, {"heads": 2}), (V2, GIVEN)),
        (replace(V21, pred_out=40), GIVEN),  # B and L, taught by G
        (replace(V21, levels=4), GIVEN),  # g and G
    ],
    ids=["v1", "v2", "v2.1-taught", "v2.1"],
)
def test_an_official_file_gives_the_encoder_that_is_asked_for(tmp_path, cfg, given, which):
    net = model_of(cfg)
    found = load_pretrained(official(net, tmp_path / "x.pth.tar"), encoder=which, **given)
    assert found.cfg == cfg and found.mask_token == 0
    mine = net.target_encoder if which == "target" else net.encoder
    assert not same(net.target_encoder.state_dict(), net.encoder.state_dict())
    assert same(found.encoder.state_dict(), mine.state_dict())
    assert same(found.predictor.state_dict(), net.predictor.state_dict())
    assert found.config.model().levels == 1  # a probe reads the last level
    part = {"target": "target_encoder", "context": "encoder"}[which]
    path = str(tmp_path / "x.pth.tar")
    assert found.about == {"path": path, "encoder": part, "epoch": 7}
    clip = clip_of(cfg)
    theirs = guess(mine, net.predictor, clip, 0, cfg)
    assert torch.equal(guess(found.encoder, found.predictor, clip, 0, found.cfg), theirs)


def test_the_other_name_of_a_target_encoder(tmp_path):
    net = model_of(V2)
    found = load_pretrained(official(net, tmp_path / "x.pt", target="ema_encoder"), **GIVEN)
    assert found.about["encoder"] == "ema_encoder"
    assert same(found.encoder.state_dict(), net.target_encoder.state_dict())


def test_tables_in_a_file_of_v_jepa_2_are_not_used(tmp_path):
    net = model_of(V2)
    found = load_pretrained(official(net, tmp_path / "x.pt", tables=True), **GIVEN)
    assert found.cfg == V2 and same(found.predictor.state_dict(), net.predictor.state_dict())


def test_positions_and_mask_token_can_be_chosen(tmp_path):
    path = official(model_of(V2), tmp_path / "x.pt")
    found = load_pretrained(path, pos="rope21", mask_token=1, **GIVEN)
    assert found.cfg.pos == found.encoder.cfg.pos == "rope21" and found.mask_token == 1


def test_sizes_that_were_published(tmp_path):
    """Heads by width, 12 in the predictor, side and frames: nothing needs to be given."""
    cfg = replace(V2, width=192, heads=3, pred_width=384, pred_heads=12, patch=16, tubelet=2)
    for name, size in (("vitt.pt", 256), ("vitt-384.pt", 384)):
        found = load_pretrained(official(VJEPA(cfg), tmp_path / name))
        assert found.cfg == replace(cfg, frames=64, size=size)
    assert (HEADS[1024], HEADS[1280], HEADS[1408], HEADS[1664]) == (16, 16, 22, 26)


def published():
    """Version, name and stored names and shapes of each published model."""
    for version in ("v1", "v2", "v21"):
        path = FACTS / f"{version}_state_dict_shapes.json"
        for name, parts in json.loads(path.read_text()).items() if path.exists() else ():
            yield pytest.param(version, name, parts, id=f"{version}-{name}")


@pytest.mark.skipif(not FACTS.is_dir(), reason=f"no lists at {FACTS}; set VIDLEARN_FACTS")
@pytest.mark.parametrize(("version", "name", "parts"), [*published()])
def test_every_published_size_is_ours(monkeypatch, version, name, parts):
    """On the device `meta`: names, shapes and what follows from them, without a weight."""
    lists = {part: parts[part].items() for part in ("encoder", "predictor")}
    with torch.device("meta"):
        content = {part: {n: torch.empty(s) for n, s in names} for part, names in lists.items()}
    monkeypatch.setattr(pretrained, "_load", lambda path: content)
    monkeypatch.setattr(pretrained, "_find", Path)
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda net, device: net)
    found = load_pretrained(f"{name}.pt", encoder="context")
    for part in ("encoder", "predictor"):
        trained = sum(x.numel() for x in getattr(found, part).parameters())
        assert trained == parts["params_trainable_total"][part][0]
    grid = {"v1": (8, 14, 14)}.get(version, (32, 16, 16))
    assert found.cfg.grid == ((grid[0], 24, 24) if name.endswith("384") else grid)
    pos, heads = {"v1": ("sincos", 16), "v2": ("rope2", 12), "v21": ("rope21", 12)}[version]
    assert (found.cfg.pos, found.cfg.pred_heads) == (pos, heads)
    if version == "v21":
        assert found.cfg.dense and found.cfg.levels == (1 if name.endswith("dist") else 4)
        assert found.cfg.pred_out == (1664 if name.endswith("dist") else 0)
    probe = next((x for k, x in parts.items() if k.startswith("probe_") and k != "probe_params"), 0)
    if probe:
        with torch.device("meta"):
            weights = {n: torch.empty(shape) for n, shape in probe.items()}
        content = {"classifier": weights} if version == "v1" else {"classifiers": [weights]}
        probe = load_probe(f"{name}-probe.pt")
        assert (len(probe.pooler) == 2, probe.after) == (version == "v2", version == "v1")


def case(name):
    path = PARITY / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}; set VIDLEARN_PARITY")
    with safe_open(path, "pt") as f:
        return json.loads(f.metadata()["case"]), {k: f.get_tensor(k) for k in f.keys()}


def probe_file(path, probe, version):
    weights = {f"module.{k}": x for k, x in probe.state_dict().items()}
    if version == 1:  # V-JEPA's have weights that its code does not use
        for name, shape in (("weight", (24, 24)), ("bias", (24,))):
            weights[f"module.pooler.cross_attention_block.xattn.proj.{name}"] = torch.ones(shape)
    key = {"classifier": weights} if version == 1 else {"classifiers": [weights, {}]}
    torch.save({**key, "epoch": 20}, path)
    return path


@pytest.mark.parametrize(("version", "depth"), [(1, 1), (1, 3), (2, 4)])
def test_a_published_probe_gives_its_logits(tmp_path, version, depth):
    probe = shake(AttentiveProbe(24, 2, 7, depth, after=version == 1))
    found = load_probe(probe_file(tmp_path / "p.pt", probe, version), heads=2)
    x = torch.randn(3, 20, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(x), probe(x)) and same(found.state_dict(), probe.state_dict())
    assert probe(x).std(0).max() > 0.1


@pytest.mark.parametrize("name", ["v1_probe", "v2_classifier"])
def test_a_probe_of_the_published_code_gives_its_logits(tmp_path, name):
    config, t = case(name)
    weights = {k.removeprefix("w.").removeprefix("classifier."): x.float() for k, x in t.items()}
    encoder = {k.removeprefix("encoder."): x for k, x in weights.items() if "encoder." in k}
    weights = {k: x for k, x in weights.items() if k.startswith(("pooler.", "linear."))}
    assert any("xattn.proj" in k for k in weights) == (name == "v1_probe")
    more = {"classifier": weights} if name == "v1_probe" else {"classifiers": [weights]}
    torch.save({"encoder": encoder, **more}, tmp_path / "p.pt")
    if name == "v1_probe":
        x, heads = t["in.x_int8"].double() / 32, config["num_heads"]
    else:
        c, heads = config["config"], config["num_heads_probe"]
        given = dict(heads=c["num_heads"], frames=c["num_frames"], size=c["img_size"])
        found = load_pretrained(tmp_path / "p.pt", encoder="context", **given)
        x = found.encoder.double()(t["in.clip_int8"].double() / 32)
    logits = load_probe(tmp_path / "p.pt", heads).double()(x)
    assert (logits - t["out.logits"]).abs().max() < 2e-6


def test_a_file_without_a_probe_is_named(tmp_path):
    path = official(model_of(V1), tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"x.pt: no probe of V-JEPA; it has encoder, predictor,"):
        load_probe(path)
    probe = AttentiveProbe(24, 2, 7)
    del probe.pooler["cross_attention_block"]["mlp"].fc1.bias
    probe.pooler["cross_attention_block"]["mlp"].fc1.bias = None
    with pytest.raises(ConfigError, match=r"1 missing \(pooler.cross_attention_block.mlp.fc1.bias"):
        load_probe(probe_file(tmp_path / "p.pt", probe, 2), heads=2)


@pytest.fixture(scope="module")
def hugging():
    """A small VJEPA2Model with weights that all matter."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(
        crop_size=32, frames_per_clip=8, patch_size=8, tubelet_size=2, hidden_size=48,
        num_hidden_layers=2, num_attention_heads=3, mlp_ratio=3.0, pred_hidden_size=24,
        pred_num_hidden_layers=2, pred_num_attention_heads=2, pred_num_mask_tokens=10,
    )  # fmt: skip
    return shake(transformers.VJEPA2Model(config).eval())


def check_equal(theirs, found):
    """Features and predictions of a VJEPA2Model are ours, in both precisions."""
    (context, target), mine = indices(found.cfg), (found.encoder, found.predictor)
    for dtype, bar in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        clip = clip_of(found.cfg).to(dtype)
        theirs, (encoder, predictor) = theirs.to(dtype), (net.to(dtype) for net in mine)
        out = theirs(clip.transpose(1, 2), context_mask=[context], target_mask=[target])
        ours = encoder(clip), guess(encoder, predictor, clip, found.mask_token, found.cfg)
        hers = out.last_hidden_state, out.predictor_output.last_hidden_state
        for x, y in zip(hers, ours):
            assert y.std() > 0.1 and (x - y).abs().max() < bar * y.abs().max()
    theirs.float(), encoder.float(), predictor.float()


def test_from_hugging_face(hugging, tmp_path):
    hugging.save_pretrained(tmp_path / "one")
    hugging.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len([*(tmp_path / "many").glob("*.safetensors")]) > 2
    for folder in ("one", "many"):
        found = load_pretrained(tmp_path / folder)
        assert found.cfg == V2 and found.mask_token == 1 and found.about["encoder"] == "one encoder"
        check_equal(hugging, found)
    a, b = (guess(found.encoder, found.predictor, clip_of(V2), kind, V2) for kind in (0, 1))
    assert (a - b).abs().max() > 0.1  # so the right token was asked
    assert load_pretrained(tmp_path / "one", frames=4).cfg.frames == 4


@pytest.mark.parametrize("kinds", [1, 2, 10])
def test_to_hugging_face_and_back(hugging, tmp_path, kinds):
    """An official file -> ours -> transformers: the mask token that was trained is asked there."""
    cfg = replace(V2, mask_tokens=kinds)
    found = load_pretrained(official(model_of(cfg), tmp_path / "x.pt"), **GIVEN)
    folder = pretrained.export_hf(tmp_path / "new" / "hf", found)
    auto = pytest.importorskip("transformers").AutoModel  # finds the class by config.json
    theirs, report = auto.from_pretrained(folder, output_loading_info=True)
    assert isinstance(theirs, type(hugging))
    assert not any(report.values()), report
    check_equal(theirs.eval(), found)
    back = load_pretrained(folder)
    assert same(back.encoder.state_dict(), found.encoder.state_dict())
    assert torch.equal(back.predictor.mask_tokens[1], found.predictor.mask_tokens[0])


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_agree_with_hugging_face_to_1e_6(tmp_path, seed):
    """In float32, both ways: as transformers starts a model, and as we do."""
    transformers = pytest.importorskip("transformers")
    shape = dict(
        crop_size=64, frames_per_clip=8, patch_size=16, tubelet_size=2, hidden_size=96,
        num_hidden_layers=4, num_attention_heads=3, pred_hidden_size=48,
        pred_num_hidden_layers=2, pred_num_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    theirs = transformers.VJEPA2Model(transformers.VJEPA2Config(**shape)).eval()
    theirs.save_pretrained(tmp_path / "one")
    found = load_pretrained(tmp_path / "one")
    fresh = replace(found, encoder=Encoder(found.cfg), predictor=Predictor(found.cfg))
    read = transformers.VJEPA2Model.from_pretrained
    back = read(pretrained.export_hf(tmp_path / "two", fresh)).eval()
    clip = torch.randn(2, 3, 8, 64, 64)
    (context, target), kind = indices(found.cfg), found.mask_token
    for hers, ours in ((theirs, found), (back, fresh)):
        with torch.no_grad():
            out = hers(clip.transpose(1, 2), context_mask=[context], target_mask=[target])
            mine = ours.encoder(clip), guess(ours.encoder, ours.predictor, clip, kind, ours.cfg)
        for x, y in zip((out.last_hidden_state, out.predictor_output.last_hidden_state), mine):
            assert y.std() > 0.1 and (x - y).abs().max() < 1e-6


def test_hugging_face_there_and_back_is_the_same(hugging, tmp_path):
    hugging.save_pretrained(tmp_path / "one")
    pretrained.export_hf(tmp_path / "two", load_pretrained(tmp_path / "one"))
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert same(*(pretrained.safetensors.torch.load_file(file) for file in files))
    configs = [json.loads((file.parent / "config.json").read_text()) for file in files]
    assert configs[1].pop("vidlearn")["size"] == configs[0]["crop_size"]
    assert configs[1].items() <= configs[0].items()


def test_a_config_that_is_no_table_is_named(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"its config\.json is a list, not a model's"):
        load_pretrained(tmp_path)


def test_an_export_to_hugging_face_keeps_how_clips_are_made(hugging, tmp_path):
    hugging.save_pretrained(tmp_path / "one")
    found = load_pretrained(tmp_path / "one")
    clips = replace(found.config, input_norm="clip", stride_frames=2, flip=0.0)
    pretrained.export_hf(tmp_path / "two", replace(found, config=clips))
    for path in (tmp_path / "two", tmp_path / "two" / "model.safetensors"):
        assert load_pretrained(path).config == clips


@pytest.mark.parametrize("cfg", [V1, replace(V2, pos="rope21"), V21], ids=["1", "2", "2.1"])
def test_only_v_jepa_2_goes_to_hugging_face(tmp_path, cfg):
    path = official(model_of(cfg), tmp_path / "x.pt")
    given = GIVEN | dict(frames=cfg.frames, heads=cfg.heads, pos=cfg.pos)
    found = load_pretrained(path, **given)
    words = f"pos={cfg.pos}, dense={cfg.dense}, a predictor; transformers has V-JEPA 2 only"
    with pytest.raises(ConfigError, match=words):
        pretrained.export_hf(tmp_path / "hf", found)
    assert not (tmp_path / "hf").exists()


def test_a_run_and_an_export_of_ours(tmp_path):
    """Newest checkpoint of a run, with the choices of the run; an export has no predictor."""
    choices = Config(
        size=32, frames=8, patch=8, width=24, depth=1, heads=2, pred_width=16, pred_depth=1,
        pred_heads=2, pos="rope2", input_norm="clip", stride_frames=2,
    )  # fmt: skip
    net = model_of(choices.model())
    state = {"config": choices.to_json(), "step": 5, "model": net.state_dict()}
    checkpoint.save(tmp_path / "run" / "checkpoints", 5, state)
    found = load_pretrained(tmp_path / "run")
    assert found.config == choices and found.cfg == choices.model() and found.about["epoch"] == 5
    assert same(found.encoder.state_dict(), net.target_encoder.state_dict())
    assert same(found.predictor.state_dict(), net.predictor.state_dict())
    found = load_pretrained(tmp_path / "run", frames=16, encoder="context")
    assert found.config == replace(choices, frames=16) and found.cfg.frames == 16
    assert same(found.encoder.state_dict(), net.encoder.state_dict())
    file = tmp_path / "encoder.safetensors"
    checkpoint.export_encoder(file, net.encoder.state_dict(), state | {"model": None})
    found = load_pretrained(file)
    assert found.predictor is None and found.config == choices
    with pytest.raises(ConfigError, match="no predictor; transformers has V-JEPA 2 only"):
        pretrained.export_hf(tmp_path / "hf", found)


def test_a_name_downloads_nothing_and_tells_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLEARN_WEIGHTS", str(tmp_path / "w"))
    for name, url in NAMES.items():
        with pytest.raises(ConfigError) as caught:
            load_pretrained(name)
        file = tmp_path / "w" / f"{name.replace('/', '-')}.pt"
        fetch = f"curl -fL --create-dirs -o {file} https://dl.fbaipublicfiles.com/{url}"
        assert str(caught.value) == f"{file} is not there. Fetch it: {fetch}"
    assert len({name.lower() for name in NAMES}) == len(NAMES)  # for file systems without case
    (tmp_path / "w").mkdir()
    official(model_of(V1), tmp_path / "w" / "vjepa-vitl16.pt")
    assert load_pretrained("vjepa/vitl16", heads=2).cfg == V1
    assert not (Path("weights")).exists()


class Code:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def spoil(kind, folder):
    """A file or folder that is wrong, and what it is loaded with."""
    path, net = folder / "x.pt", model_of(V1)
    if kind == "name":
        return "vjepa/vitx16", {}
    if kind == "folder":
        return folder, {}
    if kind == "page":
        path.write_text("\n<!DOCTYPE html><html>Access denied</html>")
    elif kind == "other":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(official(net, path).read_bytes()[:-5000])
    elif kind == "code":
        official(net, path, loss=Code(folder / "ran"))
    elif kind == "foreign":
        torch.save({"state_dict": {"fc.bias": torch.zeros(2)}, "arch": "resnet"}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(2), path)
    elif kind == "image":
        frames = {"module.backbone.patch_embed.proj.weight": torch.zeros(24, 3, 8, 8)}
        official(net, path, target_encoder=wrapped(net.encoder) | frames)
    elif kind == "encoder":
        torch.save({"predictor": {}, "encoder": wrapped(net.encoder)}, path)
    else:
        weights = wrapped(net.target_encoder)
        if kind == "weights":
            weights["module.backbone.extra"] = weights.pop("module.backbone.norm.bias")
            weights["module.backbone.norm.weight"] = torch.zeros(5)
        predictor = wrapped(net.predictor)
        if kind == "predictor":
            del predictor["module.backbone.predictor_proj.bias"]
        official(net, path, target_encoder=weights, predictor=predictor)
    given = {"size": {"size": 64}, "frames": {"frames": 8}, "heads": {}}
    return path, {"heads": 2} | given.get(kind, {}) if kind != "heads" else {}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("name", "vjepa/vitx16: no such file; published names: vjepa/vitl16, "),
        ("folder", "neither a run nor a Hugging Face model with a config.json"),
        ("page", "x.pt: a web page, as that server gives to browsers. Fetch it again, with curl"),
        ("other", "x.pt: not a file of torch. Fetch it again"),
        ("empty", "x.pt: not a file of torch. Fetch it again"),
        ("cut", "x.pt: cut short. Fetch it again"),
        ("code", "x.pt: foreign, or with Python objects in it, which could run code"),
        ("foreign", "x.pt: no checkpoint of V-JEPA, with encoder, predictor and target_encoder; "
         "it has state_dict, arch. Take the published file"),
        ("tensor", "it has Tensor. Take"),
        ("image", "x.pt: no video encoder of V-JEPA; its weights: ['pos_embed', 'patch_"),
        ("encoder", "x.pt: no target encoder in it, but the context encoder"),
        ("weights", "x.pt belongs to another model; weights: 1 missing (norm.bias ...); "
         "1 unexpected (extra ...); 1 differ (norm.weight (5,), not (24,) ...)"),
        ("predictor", "x.pt belongs to another model; weights: 1 missing (predictor_proj.bias "),
        ("size", "x.pt: made for 128 tokens, but 16 frames of 64 pixels make 512. Give those"),
        ("frames", "x.pt: made for 128 tokens, but 8 frames of 40 pixels make 100. Give those"),
        ("heads", "x.pt: heads does not stand in it, and no model of this width was published"),
    ],
)  # fmt: skip
def test_each_bad_file_gives_one_error(tmp_path, kind, words):
    path, given = spoil(kind, tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_pretrained(path, **given)
    text = str(caught.value)
    assert words in text and "\n" not in text
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_known_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"x.pt: pred_heads does not .* Give pred_heads="):
        load_pretrained(official(model_of(V2), tmp_path / "x.pt"), heads=3)
    with pytest.raises(ConfigError, match="encoder='online'; known: target, context"):
        load_pretrained(tmp_path / "x.pt", encoder="online")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"model_type": "dinov2"}, "a model with {'model_type': 'dinov2'}; only VJEPA2Model"),
        ({"layer_norm_eps": 1e-5}, "a model with {'layer_norm_eps': 1e-05}; only"),
        ("no config", "not whole (Expecting value"),
        ("cut", "not whole ("),
        ("shard", "unexpected"),
        ({"num_hidden_layers": 3}, "missing (blocks.2.attn.proj.bias, "),
    ],
)
def test_each_bad_folder_gives_one_error(hugging, tmp_path, spoil, words):
    hugging.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    if isinstance(spoil, dict):
        config.write_text(json.dumps(json.loads(config.read_text()) | spoil))
    elif spoil == "no config":
        config.write_text("")
    elif spoil == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        tensors = pretrained.safetensors.torch.load_file(weights)
        del tensors["encoder.layer.0.attention.key.bias"]
        pretrained.safetensors.torch.save_file(tensors, weights)
        words = "1 missing (blocks.0.attn.qkv.bias ...); 2 unexpected (encoder.layer.0.attention.q"
    with pytest.raises(ConfigError) as caught:
        load_pretrained(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_package_offers_it_and_stays_light():
    assert vidlearn.load_pretrained is load_pretrained
    with pytest.raises(AttributeError, match="'load_pretraned'"):
        vidlearn.load_pretraned  # noqa: B018
    code = "import sys, vidlearn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
