"""The command `vidlearn`: train, probe, weights, data, bench, plan and doctor, each a thin call.

Input: words. Output: text, files, a status: 0 done, 1 `doctor` found something or a video cannot
be read, 2 an error that the reader can mend, in one line (a wrong option: in a box). Traded:
commands import what is heavy, so that help answers at once. Of ranks only 0 talks, but for errors.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from json import dumps
from pathlib import Path
from pkgutil import resolve_name
from textwrap import wrap
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from vidlearn.dist.scaling import Cluster, scale
from vidlearn.errors import ConfigError, VidlearnError
from vidlearn.recipes import RECIPES, Config, recipe

BUILT_IN = Path("data/synth")
Which = Annotated[Literal["target", "context"], arg(help="the slow average or the trained one.")]


@dataclass(frozen=True)
class Run:
    """What a command about a recipe is given."""

    recipe: Positional[str]  # Name of the recipe; it comes first.
    config: Annotated[Config, arg(name="")]
    data: Path | None = None  # Folder of videos or manifest; default: the built-in set, made here.
    out: Path | None = None  # Folder of the run, runs/RECIPE by default; bench: file for numbers.


@dataclass(frozen=True)
class Plan(Run):
    """What the prediction of a run is given beside that."""

    cluster: Annotated[Cluster, arg(name="")] = field(default_factory=Cluster)
    gpus: int = 1  # GPUs that share the batch, on each of the nodes.
    gpu: str = "H100"  # Their kind, whose peak is looked up.
    mfu: float = 0.4  # Share of the peak that is reached.
    usd: float = 2.5  # Price of one for an hour.
    clips_per_s: float | None = None  # What one does, if `vidlearn bench step` has measured it.


def train(run: Run) -> None:
    """Train a recipe, or go on with a run; every choice can be changed."""
    from vidlearn import dist
    from vidlearn.datasets import open_data, synth
    from vidlearn.train import train as run_it

    start: Callable[..., Any] = run_it
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun tells which rank failed first, and why
        from torch.distributed.elastic.multiprocessing.errors import record

        start = record(run_it)
    me = dist.init_distributed()
    if run.data is None and me.is_main:
        synth.make_shown(BUILT_IN)
    me.barrier()
    out = run.out or Path("runs") / run.recipe
    summary = start(run.config, open_data(run.data or BUILT_IN), out, dist=me)
    dist.shutdown(me)
    if me.is_main:
        print(dumps(summary))


def probe(
    checkpoint: Positional[Path], data: Positional[Path], json: Path | None = None,
    encoder: Which = "target", seed: int = 0, clips: int = 1, draw: Path | None = None,
) -> None:  # fmt: skip
    """Probe a frozen encoder, beside a random one and pixels.

    Args:
        checkpoint: a run's folder, a checkpoint, or path or name of published weights.
        data: folder of class folders, or manifest.
        json: write the numbers here as well.
        seed: of the random encoder, and of the split where the data has none.
        clips: read so many of each video as one, evenly spread.
        draw: folder for pictures of what is mistaken for what, and of the worst clips.
    """
    from vidlearn import datasets, dist, pictures
    from vidlearn.probe import report, show

    if draw:
        draw.mkdir(parents=True, exist_ok=True)
    device = dist.init_distributed().device
    result = report(checkpoint, datasets.open_data(data), encoder, seed, device, clips)
    show(result)
    if json:
        json.write_text(dumps(result, indent=1) + "\n")
    for path, text in pictures.draw(draw, result).items() if draw else ():
        print(f"{path}: {text}")


def export(source: Positional[str], out: Path, encoder: Which = "target") -> None:
    """Write a V-JEPA 2 as a folder that transformers' VJEPA2Model reads.

    Args:
        source: a run's folder, a checkpoint, or path or name of published weights.
        out: folder to write.
    """
    from vidlearn.pretrained import export_hf, load_pretrained

    print(export_hf(out, load_pretrained(source, encoder=encoder)))


def bench(run: Run, what: str) -> dict[str, Any]:
    """Time the loader of a recipe ("load"), the parts of a step ("step"), or all of it ("run")."""
    from vidlearn import measure
    from vidlearn.datasets import open_data, synth

    ways = {"load": measure.load_rate, "step": measure.step_breakdown, "run": measure.speedrun}
    found = ways[what](run.config, open_data(run.data or synth.make_shown(BUILT_IN)))
    return {"recipe": run.recipe, **measure.machine_card(), **found}


def plan(run: Plan) -> dict[str, Any]:
    """Predict a run's FLOPs, memory, throughput, GPU-hours and price, and what binds."""
    from vidlearn import budget

    names = ("gpu", "mfu", "usd", "clips_per_s")
    choices, world = {name: getattr(run, name) for name in names}, run.cluster.nodes * run.gpus
    told = budget.plan(run.config, world, **choices)
    return scale(run.config, told, run.cluster, run.gpus, measured=bool(run.clips_per_s))


def doctor() -> int:
    """Check Python, packages, decoders, GPU, memory, disk and environment."""
    from vidlearn import measure

    print(*(checks := measure.doctor()), sep="\n")
    return int(any(check.ok is False for check in checks))


COMMANDS: dict[str, tuple[Callable[..., Any] | str, str, str]] = {  # who or where, given, does
    "train": (train, "RECIPE", "train, or go on with a run"),
    "probe": (probe, "CHECKPOINT DATA", "probe a frozen encoder, beside a random one and pixels"),
    "import": ("pretrained:import_weights", "SOURCE", "write a published encoder, for probe"),
    "export": (export, "SOURCE", "write a model for transformers, as Hugging Face stores it"),
    "data synth": ("datasets.commands:synth", "FOLDER", "make the built-in videos"),
    "data manifest": ("datasets.commands:manifest", "KIND ROOT", "list a data set's videos"),
    "data stats": ("datasets.commands:stats", "DATA", "count rows, hours, what is missing"),
    "data plan": ("datasets.commands:plan", "DATA", "tell cores and bandwidth that GPUs will need"),
    "data check": ("datasets.commands:check", "DATA", "try every video, list what is bad"),
    "data index": ("datasets.commands:index", "DATA", "find each picture: a clip is one read"),
    "data transcode": ("datasets.commands:transcode", "DATA OUT", "write videos for training"),
    "data shard": ("datasets.commands:shard", "DATA OUT", "put the videos into tars for clusters"),
    "data lanes": ("datasets.commands:lanes", "DATA", "tell which tars a node reads"),
    "data frontier": ("datasets.commands:frontier", "DATA", "weigh bytes against time, draw it"),
    "bench load": (partial(bench, what="load"), "RECIPE", "time the loader alone"),
    "bench step": (partial(bench, what="step"), "RECIPE", "time the parts of a training step"),
    "speedrun": (partial(bench, what="run"), "RECIPE", "train it, count CPU seconds, probe it"),
    "plan": (plan, "RECIPE", "predict a run's throughput, memory, hours and price"),
    "doctor": (doctor, "", "check this machine: packages, decoders, GPU, disk, environment"),
}
USAGE = "\n".join(
    ["usage: vidlearn COMMAND ...; vidlearn COMMAND --help tells its options"]
    + [f"  {f'{name} {given}':25}{told}" for name, (_, given, told) in COMMANDS.items()]
    + wrap(f"recipes: {', '.join(RECIPES)}", 98, subsequent_indent="  ")
)


def _run(words: list[str], talks: bool) -> int | None:
    name = next((n for n in COMMANDS if words[: len(n.split())] == n.split()), None)
    if name is None and words[-1:] in ([], ["-h"], ["--help"]):
        return print(USAGE)
    if name is None:
        raise ConfigError(f"no command {' '.join(words[:2])!r}; known: {', '.join(COMMANDS)}")
    (command, given, told), rest = COMMANDS[name], words[len(name.split()) :]
    command = resolve_name(f"vidlearn.{command}") if isinstance(command, str) else command
    how: dict[str, Any] = {"prog": f"vidlearn {name}", "args": rest, "console_outputs": talks}
    if given != "RECIPE":
        return tyro.cli(command, **how)
    # The options' defaults are the recipe's; help without a recipe shows the first one's.
    chosen = rest[0] if rest else ""
    chosen = next(iter(RECIPES)) if chosen in ("-h", "--help") else chosen
    kind = Plan if name == "plan" else Run
    default = kind(chosen, recipe(chosen))
    about = f"{told}\n\n{chosen}: {default.config.about}"
    run = tyro.cli(kind, default=default, description=about, **how)
    if numbers := command(run):
        print(text := dumps(numbers, indent=1))
        if run.out:
            run.out.write_text(text + "\n")
    return 0


def main(words: list[str] | None = None) -> None:
    """Run the command line and leave with its status."""
    words = sys.argv[1:] if words is None else words
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    if words == ["--version"]:
        return print("vidlearn", version("vidlearn"))
    try:
        sys.exit(_run(words, talks=rank == "0") or 0)
    except VidlearnError as error:
        text = str(error)
    except OSError as error:
        if error.filename is None and error.errno != 28:  # no space left: writing has no name
            raise
        text = f"{error.filename or 'a file could not be written'}: {error.strerror}"
    except KeyboardInterrupt:
        text = "stopped as asked"
    who = "vidlearn" if rank == "0" else f"vidlearn, rank {rank}"
    print(f"{who}: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)
