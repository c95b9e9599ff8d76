"""Learning rate, weight decay and EMA momentum as functions of the step.

Input: a step, counted from 0, and the number of steps. Output: a float. Nothing is kept
between calls, so a resumed run needs no scheduler state. Taught in chapter 9.
"""

import math


def warmup_cosine(
    step: int, steps: int, *, warmup: int, start: float, peak: float, final: float
) -> float:
    """From `start` to `peak` in `warmup` steps, then along a cosine to `final` at steps - 1."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return cosine(min(1.0, progress), peak, final)


def cosine(progress: float, start: float, final: float) -> float:
    """From `start` at progress 0 to `final` at progress 1 along half a cosine wave."""
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float, start: float, final: float) -> float:
    """From `start` at progress 0 to `final` at progress 1 in a straight line."""
    return start + (final - start) * progress
