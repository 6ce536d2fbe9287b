"""Confidence intervals by percentile bootstrap over test clips, for one system or the difference of two.

Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. A resample draws N of the N test clips with
replacement, once for all seeds and both systems; the metric is computed for every seed and averaged. So the interval
shows how much the result depends on these clips, not on these seeds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Interval", "bootstrap_interval", "paired_bootstrap"]


class Interval(NamedTuple):
    """An estimate with its bootstrap interval.

    Example:
        >>> Interval(estimate=0.1, low=-0.02, high=0.2).above_zero
        False
    """

    estimate: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the interval lies above 0: for a difference, whether the first system scores above the second."""
        return self.low > 0


def bootstrap_interval(
    metric: Callable[..., float],
    *arrays: ArrayLike,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a metric over test clips.

    Args:
        metric: Function of the given arrays, such as `unweighted_average_recall(labels, predictions)` or, for the
            ranks of queries, `lambda ranks: (ranks <= 1).mean()`.
        arrays: The first is `(N, ...)`, N clips or queries. Each of the others is `(N, ...)` too, or `(S, N, ...)`,
            one run for each of S seeds, with exactly one dimension more than the first.
        num_resamples: Number of resamples.
        confidence: Fraction of the resamples inside the interval.
        seed: Seed of the resampling.

    Returns:
        The metric over all clips (mean over seeds), and the quantiles of the metric over resamples.

    Raises:
        ValueError: If the shapes do not fit, or the metric is not finite on a resample.

    Example:
        >>> from processing.metrics import weighted_accuracy
        >>> labels, two_seeds = [0, 1] * 50, [[0, 1] * 50, [0, 0] * 50]
        >>> interval = bootstrap_interval(weighted_accuracy, labels, two_seeds)
        >>> interval.estimate, round(interval.low, 2), round(interval.high, 2)
        (0.75, 0.7, 0.8)
    """
    num_clips, runs = _runs(arrays)
    return _percentiles(lambda clips: _mean(metric, runs, clips), num_clips, num_resamples, confidence, seed)


def paired_bootstrap(
    metric: Callable[[np.ndarray, np.ndarray], float],
    labels: ArrayLike,
    predictions: ArrayLike,
    baseline: ArrayLike,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the difference `metric(labels, predictions) - metric(labels, baseline)` on the same test clips.

    The system is above the baseline if `.above_zero`. Both are scored on the same resamples: clips that are hard for
    both cancel out, whereas two separate intervals would count them twice.

    Args:
        metric: Function of labels and predictions.
        labels: `(N, ...)`.
        predictions: Predictions of the system, `(N, ...)` or `(S, N, ...)` for S seeds.
        baseline: Predictions of the baseline, likewise; its number of seeds may differ.
        num_resamples: Number of resamples.
        confidence: Fraction of the resamples inside the interval.
        seed: Seed of the resampling.

    Returns:
        The difference over all clips, and its quantiles over resamples.

    Raises:
        ValueError: If the shapes do not fit, or the metric is not finite on a resample.

    Example:
        >>> from processing.metrics import weighted_accuracy
        >>> labels = [0, 1] * 50
        >>> paired_bootstrap(weighted_accuracy, labels, labels, [0, 0] * 50).above_zero
        True
    """
    num_clips, system_runs = _runs([labels, predictions])
    _, baseline_runs = _runs([labels, baseline])
    return _percentiles(
        lambda clips: _mean(metric, system_runs, clips) - _mean(metric, baseline_runs, clips),
        num_clips,
        num_resamples,
        confidence,
        seed,
    )


def _runs(arrays: Sequence[ArrayLike]) -> tuple[int, list[tuple[np.ndarray, ...]]]:
    """The number of clips, and the metric's arguments for each seed, every array (N, ...)."""
    arrays = [np.asarray(array) for array in arrays]
    if not arrays or arrays[0].ndim == 0 or len(arrays[0]) == 0:
        raise ValueError("the first array must hold at least one clip")
    num_clips = len(arrays[0])
    of_seeds = [array.ndim == arrays[0].ndim + 1 and array.shape[1] == num_clips for array in arrays]
    for array, several in zip(arrays, of_seeds, strict=True):
        if not several and (array.ndim == 0 or len(array) != num_clips):
            raise ValueError(f"an array must be ({num_clips}, ...) or (seeds, {num_clips}, ...), got {array.shape}")
    seeds = {len(array) for array, several in zip(arrays, of_seeds, strict=True) if several} or {1}
    if len(seeds) > 1 or 0 in seeds:
        raise ValueError(f"arrays of several seeds must have one number of them, at least 1, got {sorted(seeds)}")
    return num_clips, [
        tuple(array[run] if several else array for array, several in zip(arrays, of_seeds, strict=True))
        for run in range(seeds.pop())
    ]


def _mean(metric: Callable[..., float], runs: list[tuple[np.ndarray, ...]], clips: np.ndarray) -> float:
    return float(np.mean([metric(*(array[clips] for array in run)) for run in runs]))


def _percentiles(
    statistic: Callable[[np.ndarray], float], num_clips: int, num_resamples: int, confidence: float, seed: int
) -> Interval:
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"num_resamples must be positive and confidence in 0 to 1, got {num_resamples}, {confidence}")
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(num_clips, size=num_clips)) for _ in range(num_resamples)]
    if not np.isfinite(values).all():
        raise ValueError("the metric is not finite on a resample: it must be defined on any draw of the clips")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(statistic(np.arange(num_clips)), float(low), float(high))
