"""The linear probe: it separates what a line separates, heeds no scale, and chooses on the validation split alone."""

import numpy as np
import pytest
from linear_probe import STRENGTHS, egemaps_functionals, fit_probe


def draw(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes, one four times as frequent, that differ in one of three channels of very different scales."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(number) % 5 == 0).astype(int)
    features = generator.normal(size=(number, 3))
    features[:, 1] += 4 * labels
    return features * (1e4, 1e-3, 1.0), labels


def test_what_a_line_separates_is_found_whatever_its_scale():
    """Without standardising, the channel of size 1e-3 would be lost beside one of 1e4."""
    probe = fit_probe(*draw(200, 0), *draw(100, 1))
    unseen, labels = draw(100, 2)
    assert probe.validation > 0.9
    assert (probe.machine.predict(unseen) == labels).mean() > 0.9


def test_classes_weigh_alike():
    """With features that tell nothing, an unbalanced machine would answer the frequent class only."""
    generator = np.random.default_rng(0)
    labels = (np.arange(400) % 10 == 0).astype(int)
    probe = fit_probe(generator.normal(size=(400, 2)), labels, generator.normal(size=(400, 2)), labels)
    assert 0.3 < probe.machine.predict(generator.normal(size=(400, 2))).mean() < 0.7


def test_the_validation_split_chooses():
    """Of equally good strengths the smallest; and no C is invented."""
    train, labels = draw(200, 0)
    assert fit_probe(train, labels, train, labels).c in STRENGTHS
    constant = np.zeros_like(train)
    assert fit_probe(constant, labels, constant, labels).c == min(STRENGTHS)


def test_egemaps_are_88_numbers_a_clip(tone):
    pytest.importorskip("opensmile", reason="needs the `baseline` extra")
    found = egemaps_functionals([tone(220), tone(440, seconds=0.5)], 16000)
    assert found.shape == (2, 88) and np.isfinite(found).all()
    assert not np.allclose(found[0], found[1])
