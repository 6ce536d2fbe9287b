"""`processing.bootstrap`: intervals that statistics predicts, seeds that are averaged, pairs that stay paired."""

import math

import numpy as np
import pytest

from processing.bootstrap import bootstrap_interval, paired_bootstrap
from processing.metrics import unweighted_average_recall, weighted_accuracy


def mean(values: np.ndarray) -> float:
    """The simplest metric."""
    return float(values.mean())


def predict(labels: np.ndarray, accuracy: float, generator: np.random.Generator) -> np.ndarray:
    """Predictions of 4 classes that are right with the given probability."""
    return np.where(generator.random(len(labels)) < accuracy, labels, (labels + 1) % 4)


def test_the_interval_of_a_mean_is_the_one_of_the_central_limit_theorem():
    """Estimate -+ 1.96 standard errors; resamples drawn without replacement would give width 0."""
    values = np.random.default_rng(0).standard_normal(400)
    estimate, low, high = bootstrap_interval(mean, values, num_resamples=4000)
    error = values.std() / math.sqrt(400)
    assert estimate == pytest.approx(values.mean())
    assert low == pytest.approx(estimate - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(estimate + 1.96 * error, abs=0.1 * error)
    narrow = bootstrap_interval(mean, values, num_resamples=4000, confidence=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_the_resampling_is_transcribed():
    """One draw of clips for all arrays and seeds at a time, and quantiles at 2.5 % and 97.5 %."""
    generator = np.random.default_rng(1)
    labels = generator.integers(4, size=30)
    runs = np.stack([predict(labels, accuracy, generator) for accuracy in (0.4, 0.5, 0.9)])
    draws = np.random.default_rng(7)
    values = []
    for _ in range(200):
        clips = draws.integers(30, size=30)
        values.append(sum(unweighted_average_recall(labels[clips], run[clips]) for run in runs) / 3)
    found = bootstrap_interval(unweighted_average_recall, labels, runs, num_resamples=200, seed=7)
    assert found.low == pytest.approx(np.percentile(values, 2.5))
    assert found.high == pytest.approx(np.percentile(values, 97.5))
    assert found.estimate == pytest.approx(np.mean([unweighted_average_recall(labels, run) for run in runs]))


def test_seeds_are_averaged_and_not_pooled():
    """Three equal runs are no more evidence than one: pooled as 3 N clips they would narrow the interval."""
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=60)
    run = predict(labels, 0.6, generator)
    once = bootstrap_interval(unweighted_average_recall, labels, run)
    assert bootstrap_interval(unweighted_average_recall, labels, [run] * 3) == pytest.approx(once)
    assert bootstrap_interval(unweighted_average_recall, labels, [run]) == pytest.approx(once)


def test_multilabel_runs_keep_their_classes():
    """(S, N, K) beside (N, K): taking the axis of classes for clips would mix up the emotions."""
    generator = np.random.default_rng(0)
    labels, *runs = generator.integers(2, size=(4, 50, 3))

    def exact(labels, predictions):
        assert labels.shape == predictions.shape == (50, 3)
        return float((labels == predictions).all(axis=1).mean())

    found = bootstrap_interval(exact, labels, runs, num_resamples=50)
    assert found.estimate == pytest.approx(np.mean([(labels == run).all(axis=1).mean() for run in runs]))


def test_pairing_finds_a_difference_that_two_intervals_hide():
    """Two systems that err on the same hard clips: their intervals overlap, the difference is sure all the same."""
    labels = np.random.default_rng(0).integers(4, size=200)
    baseline = np.where(np.arange(200) < 100, labels, (labels + 1) % 4)
    system = np.where(np.arange(200) < 112, labels, (labels + 1) % 4)  # right wherever the baseline is, and on 12 more
    first = bootstrap_interval(weighted_accuracy, labels, system)
    second = bootstrap_interval(weighted_accuracy, labels, baseline)
    assert first.low < second.high
    difference = paired_bootstrap(weighted_accuracy, labels, system, baseline)
    assert difference.estimate == pytest.approx(0.06)
    assert difference.above_zero
    assert difference.low > 0.02
    reverse = paired_bootstrap(weighted_accuracy, labels, baseline, system)
    assert reverse == pytest.approx((-difference.estimate, -difference.high, -difference.low))
    assert not reverse.above_zero


def test_a_system_is_not_above_itself_and_chance_is_rarely_above_chance():
    """At 95 % confidence two equal systems may be called different about 5 times in 100, 2.5 on this side."""
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=100)
    run = predict(labels, 0.5, generator)
    assert paired_bootstrap(weighted_accuracy, labels, run, run) == (0, 0, 0)
    assert not paired_bootstrap(weighted_accuracy, labels, run, run).above_zero
    above = [
        paired_bootstrap(
            lambda labels, predictions: float((labels == predictions).mean()),
            labels,
            predict(labels, 0.5, generator),
            predict(labels, 0.5, generator),
            num_resamples=100,
            seed=trial,
        ).above_zero
        for trial in range(100)
    ]
    assert 0 < np.mean(above) < 0.06


def test_the_numbers_of_seeds_may_differ_between_the_systems():
    """A deterministic baseline such as an SVM has one run, the network three."""
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=100)
    runs = [predict(labels, 0.9, generator) for _ in range(3)]
    assert paired_bootstrap(unweighted_average_recall, labels, runs, predict(labels, 0.3, generator)).above_zero


def test_shapes_that_cannot_be_paired_are_refused():
    """Fancy indexing would index the first N clips of a longer array without a word."""
    labels = np.zeros(10, dtype=int)
    for wrong in (np.zeros(11, dtype=int), np.zeros((3, 11), dtype=int), np.zeros((0, 10), dtype=int), np.int64(0)):
        with pytest.raises(ValueError, match="array"):
            bootstrap_interval(weighted_accuracy, labels, wrong)
    with pytest.raises(ValueError, match="number of them"):
        bootstrap_interval(mean, labels, np.zeros((2, 10)), np.zeros((3, 10)))
    with pytest.raises(ValueError, match="at least one clip"):
        bootstrap_interval(mean, [])
    for settings in ({"num_resamples": 0}, {"confidence": 1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            bootstrap_interval(mean, labels, **settings)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_interval(lambda values: float("nan"), labels)
