"""From numbers over images to evidence: a mean, its spread, and an interval that says how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import BatchError

RESAMPLES = 10_000
ENOUGH = 3  # values; a bootstrap of two knows three outcomes


@dataclass(frozen=True)
class Mean:
    """A mean over n values: its 95 % interval [low, high], and the values' standard deviation, `spread` (n - 1)."""

    mean: float
    low: float
    high: float
    spread: float
    n: int


def summary(values: Sequence[float] | np.ndarray, seed: int = 0) -> Mean:
    """Mean, 95 % bootstrap interval and spread of one number an image (or of one paired difference an image).

    Raises:
        BatchError: no values, not one-dimensional, or not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise BatchError(
            f"values of shape {x.shape}, {int(np.isfinite(x).sum())} of {x.size} finite",
            expected="one finite number an image",
            do="drop the images whose run failed",
        )
    low, high = interval(x, seed)
    return Mean(float(x.mean()), low, high, float(x.std(ddof=1)) if len(x) > 1 else 0.0, len(x))


def interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean (percentiles of 10,000 resamples); with fewer than 3 values (-inf, inf).

    Percentile intervals of so few values are a little narrow: of eleven normal values, 92 % held the true mean.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < ENOUGH:
        return -np.inf, np.inf
    from scipy.stats import bootstrap

    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    found = bootstrap((x,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
