"""The linear probe: a linear classifier on frozen representations; and eGeMAPS, the baseline features.

One recipe for all: standardised features, a linear SVM with balanced classes, its C selected on the validation split.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from processing.metrics import unweighted_average_recall

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # values of C; our choice


class Probe(NamedTuple):
    """A fitted probe: `machine.predict` maps features (N, F) to classes (N,)."""

    c: float
    validation: float  # UAR with the selected C
    machine: Pipeline


def fit_probe(
    train: np.ndarray, train_labels: np.ndarray, validation: np.ndarray, validation_labels: np.ndarray
) -> Probe:
    """Fit on the training split and select C on the validation split; ties go to the smaller C.

    Args:
        train, validation: features, (N, F) each.
        train_labels, validation_labels: classes, (N,) each.
    """
    probes = []
    for c in STRENGTHS:
        svm = LinearSVC(C=c, class_weight="balanced", max_iter=10_000, random_state=0)
        machine = make_pipeline(StandardScaler(), svm)
        machine.fit(train, train_labels)
        found = machine.predict(validation)
        probes.append(Probe(c, unweighted_average_recall(validation_labels, found), machine))
    return max(probes, key=lambda probe: probe.validation)


def egemaps_functionals(clips: Iterable[np.ndarray], sampling_rate: int) -> np.ndarray:
    """The 88 eGeMAPS functionals (Eyben et al. 2016) of each clip, (N, 88).

    Raises:
        ImportError: without the `baseline` extra.
    """
    try:
        import opensmile
    except ImportError as error:
        raise ImportError('eGeMAPS needs `pip install -e ".[baseline]"`.') from error
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    return np.concatenate([smile.process_signal(clip, sampling_rate).to_numpy() for clip in clips])
