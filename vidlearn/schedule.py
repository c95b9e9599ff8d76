"""Learning rate, weight decay and momentum as pure functions of the step, from 0 (chapter 9)."""

import math


def warmup_anneal(
    step: int, steps: int, *, warmup: int, start: float, peak: float, final: float,
    anneal: int = 0, shape: str = "cosine",
) -> float:  # fmt: skip
    """From `start` to `peak` in `warmup` steps, then by the shape to `final` at steps - 1.

    `shape` is "cosine" or "linear"; with `anneal` only the last so many steps fall.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = ramp(step, steps - 1 - anneal if anneal else warmup, steps - 1)
    return {"cosine": cosine, "linear": linear}[shape](progress, peak, final)


def cosine(progress: float, start: float, final: float) -> float:
    """From `start` at progress 0 to `final` at progress 1 along half a cosine wave."""
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * progress))


def ramp(step: int, begin: int, end: int) -> float:
    """0 up to step `begin`, 1 from `end` on, a straight line between."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))


def linear(progress: float, start: float, final: float) -> float:
    """From `start` at progress 0 to `final` at progress 1 in a straight line."""
    return start + (final - start) * progress
