"""Timings count what they say, the parts of a step are told apart, doctor finds what is wrong."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import torch

import gpu_record
from vidlearn import measure, transform
from vidlearn.datasets import canvas, folder_manifest, index, open_data, parts_ms, write_manifest
from vidlearn.datasets.cost import Laps, needs
from vidlearn.datasets.synth import draw, make
from vidlearn.datasets.write import encode
from vidlearn.dist import init_distributed
from vidlearn.errors import VidlearnError
from vidlearn.recipes import recipe
from vidlearn.step import build, train_step
from vidlearn.train import load

TINY = dataclasses.replace(
    recipe("laptop"), size=32, frames=8, width=24, depth=1, heads=2, pred_width=12, pred_depth=1,
    pred_heads=2, batch=4, workers=0,
)  # fmt: skip
PROBED = {"trained encoder": {"linear, time kept": {"val": {"percent": 50.0}}}}
PARTS = "prepare masks target context predictor loss backward optimiser ema logging".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(8):
        encode(folder / f"{i}.mp4", draw("left", i, frames=8, size=48), 8)
    return folder_manifest(folder)


def test_timeit_counts_calls_and_leaves_the_warm_up_out():
    waits = iter([0.4, 0.01, 0.03, 0.3, 0.01])
    first = measure.timeit(lambda: time.sleep(next(waits)), repeats=1, warmup=1)
    assert first.median_s == first.min_s < 0.2 and first.spread_s == 0
    timing = measure.timeit(lambda: time.sleep(next(waits)), repeats=3, warmup=0)
    assert timing.repeats == 3 and next(waits, None) is None
    assert 0.01 <= timing.min_s < timing.median_s < 0.3 and timing.spread_s > 0.1


def test_machine_card_says_what_a_timing_is_read_with():
    card = measure.machine_card()
    assert card["torch"] == torch.__version__ and card["threads"] == torch.get_num_threads()
    assert 1 <= card["cores"] <= os.cpu_count() and card["memory_gib"] > 0.5
    assert all(str(value) for value in card.values())


def test_breakdown_names_every_part_and_adds_up(data):
    numbers = measure.step_breakdown(TINY, data, steps=3)
    parts = [numbers[f"{name}_ms"] for name in PARTS]
    assert all(ms > 0 for ms in parts) and numbers["batch"] == 4
    # Nothing is read ahead here, so the step waits for all the work of the loader.
    assert numbers["load_wait_ms"] > 0.3 * measure.load_rate(TINY, data, batches=3)["batch_ms"]
    assert numbers["step_ms"] == pytest.approx(sum(parts), rel=0.5)
    assert numbers["clips_per_s"] * numbers["step_ms"] == pytest.approx(4000)
    assert numbers["tokens_per_s"] == pytest.approx(64 * numbers["clips_per_s"])
    assert numbers["mfu"] is None and 0.05 < numbers["peak_memory_gib"] < 64
    seconds = numbers["step_ms"] / 1e3
    assert numbers["tflops"] * seconds == pytest.approx(numbers["tflop_per_step"])


def test_logging_is_shared_by_the_steps_between_two_lines(data):
    often, rarely = (
        measure.step_breakdown(dataclasses.replace(TINY, log_every=n), data, steps=3)["logging_ms"]
        for n in (1, 1000)
    )
    assert 0 < rarely < 0.1 * often


def test_the_share_of_the_peak_where_it_is_known(data, monkeypatch):
    monkeypatch.setattr(measure.budget, "find_gpu", lambda _: (2.0, 0))
    numbers = measure.step_breakdown(TINY, data, steps=1)
    assert numbers["mfu"] == pytest.approx(numbers["tflops"] / 2)


def slow(*_):
    time.sleep(0.05)


@pytest.mark.parametrize("part", ["target", "context", "predictor", "backward", "optimiser", "ema"])
def test_a_slow_part_is_found(data, part, monkeypatch):
    """Each part in turn sleeps for 50 ms; that part, and no other, gets longer by so much."""
    state = build(dataclasses.replace(TINY, mask_cycle=False), init_distributed())
    laps, model = Laps(time.perf_counter), state.model
    measure._watch(laps, state)
    if part in ("target", "context", "predictor"):
        norm = {
            "target": model.target_encoder.norm,
            "context": model.encoder.norm,
            "predictor": model.predictor.predictor_norm,
        }[part]
        norm.register_forward_hook(slow)
    elif part == "backward":
        model.encoder.patch_embed.proj.weight.register_hook(slow)
    elif part == "optimiser":
        state.optimizers[0].register_step_pre_hook(slow)
    else:
        update = model.update_target
        monkeypatch.setattr(model, "update_target", lambda m: (slow(), update(m)))
    batch = next(load(TINY, data, state.dist))
    rows = []
    for _ in range(4):
        laps.mark("prepare_ms")
        train_step(state, batch)
        laps.mark("")
        rows.append(laps.totals_ms())
    least = {name: min(row[name] for row in rows) for name in rows[0]}  # the machine may be busy
    sleeps = 2 if part in ("context", "predictor") else 1  # one for each of two masks
    assert least.pop(f"{part}_ms") > 50 * sleeps
    assert max(least.values()) < 45


def test_load_rate_is_what_a_loop_gets(data):
    numbers = measure.load_rate(TINY, data, batches=5)
    assert numbers["clips_per_s"] == pytest.approx(4e3 / numbers["batch_ms"])
    assert (numbers["workers"], numbers["batch"]) == (0, 4)


def found():
    return {check.name: check for check in measure.doctor()}


def test_doctor_finds_this_machine_in_order(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    checks = found()
    for name in ("Python", "torch", "one decord", "decoder pyav", "OMP_NUM_THREADS", "launcher"):
        assert checks[name].ok, checks[name]
        assert "->" not in str(checks[name])
    assert {"GPU", "cores", "open files", "disk", "temporary files"} <= set(checks)
    assert all(check.remedy for check in checks.values() if not check.ok)


def test_doctor_names_what_is_wrong_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    other = tmp_path / "decord2-3.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: decord2\nVersion: 3.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    checks = found()
    assert not checks["one decord"].ok and "decord2 3.0" in checks["one decord"].found
    assert not checks["OMP_NUM_THREADS"].ok
    assert not checks["launcher"].ok and "WORLD_SIZE" in str(checks["launcher"])
    for name in ("one decord", "OMP_NUM_THREADS", "launcher"):
        assert str(checks[name]).startswith("BAD ") and " -> " in str(checks[name])


def test_doctor_tells_a_batch_script_to_use_srun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert "srun" in str(found()["launcher"].found)


def test_a_speedrun_counts_the_workers_and_not_the_probe(monkeypatch, tmp_path):
    busy = "import time\nwhile time.process_time() < 0.5: pass"

    def burn(*_: object) -> dict:
        subprocess.run([sys.executable, "-c", busy], check=True)
        return {}

    data = make(tmp_path, train=48, val=24, test=0, size=48)
    whole = dataclasses.replace(TINY, steps=2, warmup=1)
    real = measure.speedrun(whole, open_data(data))
    assert {*real} == {"cpu_s", "seed", "val"} and 0 < real["cpu_s"] and 0 <= real["val"] <= 100
    monkeypatch.setattr(measure.probe, "report", lambda *_: burn() or {"rows": PROBED})
    monkeypatch.setattr(measure.train, "train", lambda *_: None)
    assert measure.speedrun(whole, open_data(data))["cpu_s"] < 0.3
    monkeypatch.setattr(measure.train, "train", burn)
    assert measure.speedrun(whole, open_data(data))["cpu_s"] > 0.4


@pytest.mark.slow
def test_gpu_record_holds_outcomes_and_every_repeat(data, monkeypatch, tmp_path):
    monkeypatch.setenv("VIDLEARN_DEVICE", "cpu")
    (tmp_path / "test_three.py").write_text(
        "import os, pytest\n"
        "def test_a(): assert os.environ['VIDLEARN_REQUIRE_CUDA'] == '1'\n"
        "def test_b(): assert False\n"
        "def test_c(): pytest.skip()\n"
    )
    tests = [str(tmp_path / "test_three.py"), "-p", "no:cacheprovider"]
    write_manifest(tmp_path / "data.csv", data.rows)
    small = "--size 32 --width 24 --depth 1 --heads 2 --pred-width 12 --batch 4 --workers 0"
    words = f"step laptop --data {tmp_path}/data.csv {small}"
    out = tmp_path / "new" / "record.json"
    assert not gpu_record.record(tests, [words], repeats=2, out=out)
    found = json.loads(out.read_text())
    outcomes = {name.split("::")[-1]: outcome for name, outcome in found["tests"].items()}
    assert outcomes == {"test_a": "passed", "test_b": "failure", "test_c": "skipped"}
    first, second = found["benchmarks"][words]
    assert first["device"] == second["device"] == "cpu" and first["step_ms"] != second["step_ms"]
    assert found["machine"]["torch"] == torch.__version__ and found["date"].startswith("20")
    assert gpu_record.record([f"{tests[0]}::test_a"], [], repeats=0, out=out)


@pytest.mark.gpu
def test_breakdown_on_a_gpu(data):
    numbers = measure.step_breakdown(TINY, data, steps=3)
    assert numbers["device"].startswith("cuda")
    assert all(numbers[f"{name}_ms"] > 0 for name in PARTS)


def test_load_rate_tries_settings_and_names_what_binds(data):
    numbers = measure.load_rate(TINY, data, batches=2)
    assert {(t["backend"], t["workers"]) for t in numbers["tries"]} >= {("decord", 0), ("auto", 0)}
    assert numbers["best"] in numbers["tries"]
    assert numbers["best"]["clips_per_s"] == max(t["clips_per_s"] for t in numbers["tries"])
    parts = numbers["parts_ms"]
    assert list(parts) == ["open", "decode", "read", "colour", "resize", "copy", "device"]
    assert parts[numbers["binds"]] == max(parts.values()) and min(parts.values()) >= 0


@pytest.mark.parametrize("part", ["open", "colour", "resize", "device"])
def test_a_slow_part_of_loading_is_found(part, data, monkeypatch):
    def slow(function):
        def slowed(*args, **options):
            end = time.process_time() + 0.03
            while time.process_time() < end:
                pass
            return function(*args, **options)

        return slowed

    where = {
        "open": (index, "table_of"), "colour": (canvas.Canvas, "draw"),
        "resize": (transform.ClipTransform, "resize"), "device": (transform, "normalize"),
    }[part]  # fmt: skip
    monkeypatch.setattr(*where, slow(getattr(*where)))
    clips = data, TINY.clip_spec(), TINY.transform(True), TINY.input_norm
    parts = parts_ms(*clips, clips=3)
    assert max(parts, key=parts.get) == part and parts[part] > 25


def test_no_clip_to_be_had_is_an_error(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    clips = folder_manifest(tmp_path), TINY.clip_spec(), TINY.transform(True), TINY.input_norm
    with pytest.raises(VidlearnError, match="none of 24 clips can be read"):
        parts_ms(*clips)
    with pytest.raises(VidlearnError, match="no video of the sample can be read"):
        needs(folder_manifest(tmp_path), 1, 1.0)


def test_needs_are_in_proportion(data):
    one, eight = needs(data, 1, 50.0, sample=4), needs(data, 8, 50.0, sample=4)
    assert one["sampled"] == 4 and one["rows"] == len(data)
    assert eight["to_gpus_bytes_per_s"] == 8 * one["to_gpus_bytes_per_s"] == 400 * 16 * 224**2 * 3
    assert eight["read_bytes_per_s"] == pytest.approx(8 * one["read_bytes_per_s"])
    assert one["cores"] == pytest.approx(50 * one["cpu_ms_per_clip"] / 1e3)
