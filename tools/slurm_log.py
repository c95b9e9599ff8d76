"""Make the log of a run that a real SLURM stops, requeues and lets go on: chapter 11 shows it.

    .venv/bin/python tools/slurm_log.py                   # writes book/assets/slurm/many_nodes.out
    .venv/bin/python tools/slurm_log.py --minutes 6       # a longer time limit: fewer stops

Two made-up nodes of one task each train the recipe `laptop` on the built-in videos. SLURM warns 180
seconds before the limit, and up to 60 earlier, so each start trains for one minute at most if
the limit is four. What follows the options goes to the training, such as `--steps 20`. Needs root
and the packages of `make test-slurm`.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from vidlearn.datasets import synth

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from cluster import real_slurm, site, why_not  # noqa: E402

LOG = ROOT / "book" / "assets" / "slurm" / "many_nodes.out"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--minutes", type=int, default=4, help="SLURM's time limit for a start")
    own, more = parser.parse_known_args()
    if why := why_not():
        sys.exit(f"slurm_log: {why}; make test-slurm installs what Debian has")
    synth.make_shown(ROOT / "data" / "synth")
    with tempfile.TemporaryDirectory() as made, real_slurm(nodes=2, gpus=1) as slurm:
        folder = site(Path(made), data="data/synth", gpus=1)
        (folder / "data").symlink_to(ROOT / "data")  # so that the log says data/synth
        words = "many_nodes", "--nodes=2", f"--time={own.minutes}", "laptop", *more
        job = slurm.submit(folder, *words)
        log = folder / "logs" / f"many_nodes-{job}.out"
        print(f"job {job}; follow it: tail -F {log}", flush=True)
        end = slurm.wait(job, seconds=86_400)
        text = log.read_text().replace(f"{folder}/", "").replace(f"{ROOT}/", "")
    paths = re.findall(r"(?:^|[\s'\"=(:])(/\w\S*)", text, re.MULTILINE)
    assert end["JobState"] == "COMPLETED" and not paths, f"{end['JobState']} {paths}\n{text}"
    LOG.write_text(text)
    print(f"{LOG.relative_to(ROOT)}: put back into the queue {end['Restarts']} times")


if __name__ == "__main__":
    main()
