"""What a probe gets wrong, in a sentence and as PNG files for `vidlearn probe --draw` (chapter 10).

Input: the numbers of `probe.report`. Output: the confusion matrix of each split, and frames of the
clips of which it was most sure, and wrong. Traded: those are decoded a second time.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vidlearn.batch import ClipDataset
from vidlearn.datasets import Manifest, Row
from vidlearn.recipes import Config

FRAMES = 8  # of each clip, evenly spread


def told(counts: np.ndarray, classes: Sequence[str]) -> str:
    """Counts [truth, guess] in words: how many are right, and what is taken for what."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    worst = f"{classes[row]} taken for {classes[column]}, {wrong[row, column]} times"
    text = f"{np.trace(counts)} of {counts.sum()} right"
    return f"{text}; most often wrong: {worst}" if wrong.any() else text


def confusion(axis: Any, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Counts [truth, guess] on a matplotlib axis, as shades with the numbers in them."""
    axis.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if count > counts.max() / 2 else "black"
            axis.text(column, row, count, color=colour, ha="center", va="center", size=8)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)


def views(data: Manifest, config: Config, clips: int) -> ClipDataset:
    """What an evaluation sees of each video: the centre of so many clips, evenly spread."""
    spec, transform = replace(config.clip_spec(), clips=clips), config.transform(False)
    return ClipDataset(data, spec, transform, backend=config.backend, random_clips=False)


def strip(found: dict[str, Any], config: Config, clips: int) -> np.ndarray:
    """FRAMES frames side by side, uint8 [size, FRAMES * size, 3], of what the encoder saw."""
    row = Row(found["path"], start_s=found["start_s"], end_s=found["end_s"])
    seen = views(Manifest((row,), (), row.path), config, clips)
    frames_CTHW = np.concatenate([seen[i]["clip"].numpy() for i in range(clips)], axis=1)
    chosen = np.linspace(0, frames_CTHW.shape[1] - 1, FRAMES).round().astype(int)
    return np.concatenate(list(frames_CTHW[:, chosen].transpose(1, 2, 3, 0)), axis=1)


def draw(folder: Path, result: dict[str, Any]) -> dict[Path, str]:
    """confusion-SPLIT.png and worst-SPLIT.png in the folder; path -> what it shows in words."""
    from matplotlib.figure import Figure

    made, classes, config = {}, result["classes"], Config(**result["config"])
    for split, found in result["mistakes"].items():
        counts, worst, lines = np.array(found["confusion"]), found["worst"], []
        side_in, rows = 3 + 0.35 * min(60, len(classes)), max(1, len(worst))
        matrix = Figure((side_in, side_in), layout="constrained")
        confusion(matrix.subplots(), counts, classes)
        strips = Figure((8, 1.4 * rows), layout="constrained")
        for axis, clip in zip(strips.subplots(rows, 1, squeeze=False).flat, worst):
            axis.imshow(strip(clip, config, result["views"]))
            sure = f"{100 * clip['confidence']:.0f} % sure: {Path(clip['path']).name}"
            lines.append(f"{clip['truth']} taken for {clip['guess']}, {sure}")
            axis.set_title(lines[-1], fontsize=8, loc="left", pad=2)
            axis.set_axis_off()
        about = told(counts, classes), "; ".join(lines) or "nothing is wrong"
        for name, figure, text in zip(("confusion", "worst"), (matrix, strips), about):
            path = folder / f"{name}-{split}.png"
            figure.savefig(path, dpi=120, metadata={"Description": text})
            made[path] = text
    return made
