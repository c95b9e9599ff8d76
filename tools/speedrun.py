"""Try for the speedrun's table: three seeds of a recipe; a line is added to the record.

    .venv/bin/python tools/speedrun.py laptop --steps 1500 --by NAME

What stands after the recipe is passed on to `vidlearn speedrun`. The line holds the CPU seconds and
the per cents of each seed, whether or not they reach the bar, and the commit that made it. A tree
with changes that are not committed is refused: nobody could make that line again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

RECORD = Path("book/_static/records/speedrun.json")
SEEDS = (0, 1, 2)
KEPT = ("seed", "cpu_s", "val", "test", "far")


def commit() -> str:
    """The commit of the tree, or an end with a word about what is not in it."""
    found = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True)
    if found.stdout.strip():
        sys.exit(f"speedrun: commit first:\n{found.stdout}")
    words = ["git", "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def attempt(words: list[str]) -> list[dict]:
    """What `vidlearn speedrun` printed, one a seed."""
    found = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "numbers.json"
            command = ["-m", "vidlearn", "speedrun", *words, "--seed", seed, "--out", out]
            subprocess.run([sys.executable, *map(str, command)], check=True)
            found.append(json.loads(out.read_text()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--by", required=True, help="your name, as the table shall print it")
    args, words = parser.parse_known_args()
    about = {"date": f"{date.today()}", "commit": commit(), "by": args.by}
    found = attempt(words)
    runs = [{k: round(one[k], 1) for k in KEPT} for one in found]
    line = {**about, "command": " ".join(words), "machine": found[0]["cpu"], "runs": runs}
    lines = json.loads(RECORD.read_text()) if RECORD.exists() else []
    RECORD.write_text(json.dumps([*lines, line], indent=1) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
