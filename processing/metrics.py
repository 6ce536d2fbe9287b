"""Metrics of predictions against labels, each with its formula: emotion classes, MOSEI labels, emotion dimensions.

numpy only; inputs are arrays, lists or CPU tensors, the labels first; rates are fractions, never percentages. Every
function of two arguments also works with [`bootstrap_interval`].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "classification_metrics",
    "concordance_correlation_coefficient",
    "macro_f1",
    "multilabel_metrics",
    "unweighted_average_recall",
    "weighted_accuracy",
    "weighted_f1",
]

# N clips, K classes.


def _confusion(labels: ArrayLike, predictions: ArrayLike) -> np.ndarray:
    """Counts (K, K), true class by predicted class, over the classes that occur in either."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape or len(labels) == 0:
        raise ValueError(f"labels and predictions must be (N,), N > 0, got {labels.shape} and {predictions.shape}")
    # numpy would equate the class 0 with the name "0", and make a class of every logit.
    kinds = {labels.dtype.kind, predictions.dtype.kind}
    if not (kinds <= set("biu") or kinds <= set("USO")):
        raise ValueError(
            f"labels and predictions must both be integers or both names, got {labels.dtype} and {predictions.dtype}"
        )
    classes, codes = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    true, predicted = np.split(codes, 2)
    return np.bincount(true * len(classes) + predicted, minlength=len(classes) ** 2).reshape(len(classes), -1)


def unweighted_average_recall(labels: ArrayLike, predictions: ArrayLike) -> float:
    r"""Mean recall over the classes that occur in the labels, $\frac{1}{K} \sum_k \frac{TP_k}{TP_k + FN_k}$.

    The main metric of speech emotion recognition (Schuller et al., "The INTERSPEECH 2009 Emotion Challenge"), since a
    system that always predicts the most frequent class gets 1/K. A class absent from the labels, as may be in a
    bootstrap resample, has no recall and does not count.

    Example:
        >>> unweighted_average_recall([0, 0, 0, 1], [0, 0, 0, 0])
        0.5
    """
    confusion = _confusion(labels, predictions)
    support = confusion.sum(axis=1)
    return float((confusion.diagonal()[support > 0] / support[support > 0]).mean())


def weighted_accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    r"""Recall weighted by class frequency, $\sum_k \frac{N_k}{N} \frac{TP_k}{N_k} = \frac1N \sum_k TP_k$.

    That is plain accuracy, which speech emotion recognition calls weighted; [`multilabel_metrics`] has MOSEI's.

    Example:
        >>> weighted_accuracy([0, 0, 0, 1], [0, 0, 0, 0])
        0.75
    """
    confusion = _confusion(labels, predictions)
    return float(confusion.trace() / confusion.sum())


def macro_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    r"""Mean over classes of $F_k = \frac{2 TP_k}{2 TP_k + FP_k + FN_k}$, as scikit-learn's `f1_score` defines it.

    The classes are those in the labels or the predictions: one that is only predicted scores 0.

    Example:
        >>> macro_f1(["sad", "sad", "calm"], ["sad", "sad", "sad"])
        0.4
    """
    confusion = _confusion(labels, predictions)
    return float((2 * confusion.diagonal() / (confusion.sum(axis=0) + confusion.sum(axis=1))).mean())


def weighted_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    r"""F1 weighted by class frequency, $\sum_k \frac{N_k}{N} F_k$, with $F_k$ of [`macro_f1`].

    Example:
        >>> round(weighted_f1(["sad", "sad", "calm"], ["sad", "sad", "sad"]), 4)
        0.5333
    """
    confusion = _confusion(labels, predictions)
    support = confusion.sum(axis=1)
    f1 = 2 * confusion.diagonal() / (confusion.sum(axis=0) + support)
    return float((support * f1).sum() / support.sum())


def classification_metrics(labels: ArrayLike, predictions: ArrayLike, class_names: Sequence[str]) -> dict[str, Any]:
    """All reported metrics of a single-label classifier, ready for JSON.

    Args:
        labels: True classes `(N,)`, indices into `class_names`.
        predictions: Predicted classes `(N,)`.
        class_names: The K names.

    Returns:
        `unweighted_average_recall`, `weighted_accuracy`, `macro_f1`, `weighted_f1`, `recall_per_class` (by name, None
        for a class without clips), `confusion_matrix` (K lists of K counts, one row per true class), `class_names`,
        `num_clips`.

    Raises:
        ValueError: If the shapes differ or are empty, or a class is not an index into `class_names`.

    Example:
        >>> classification_metrics([0, 0, 1], [0, 1, 1], ["calm", "sad", "angry"])["recall_per_class"]
        {'calm': 0.5, 'sad': 1.0, 'angry': None}
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    scores = {
        metric.__name__: metric(labels, predictions)
        for metric in (unweighted_average_recall, weighted_accuracy, macro_f1, weighted_f1)
    }
    indices = np.stack([labels, predictions])
    if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(class_names):
        raise ValueError(f"labels and predictions must be indices into the {len(class_names)} class names")
    confusion = np.zeros((len(class_names), len(class_names)), dtype=int)
    np.add.at(confusion, tuple(indices), 1)
    recall = {
        name: float(row[k] / row.sum()) if row.any() else None
        for k, (name, row) in enumerate(zip(class_names, confusion, strict=True))
    }
    details = {"recall_per_class": recall, "confusion_matrix": confusion.tolist(), "class_names": list(class_names)}
    return {**scores, **details, "num_clips": len(labels)}


def multilabel_metrics(labels: ArrayLike, predictions: ArrayLike, class_names: Sequence[str]) -> dict[str, Any]:
    r"""Weighted accuracy and weighted F1 of each class, as scored on CMU-MOSEI, and their means.

    For a class with $P$ positive and $N$ negative clips

    $$ \mathrm{WA} = \frac{TP \cdot N / P + TN}{2N} \qquad
       \mathrm{F1} = \frac{P}{P + N} \frac{2TP}{2TP + FP + FN} + \frac{N}{P + N} \frac{2TN}{2TN + FP + FN} $$

    WA is the mean recall of positives and negatives: Tong et al., ACL 2017 (P17-1142), used by Zadeh et al.,
    "Multimodal Language Analysis in the Wild", ACL 2018, and implemented in github.com/shaoyent/multimodal-elmo. A
    class whose clips are all positive or all negative has no WA (None) and does not count in the mean: our choice.

    Args:
        labels: 0 or 1, `(N, K)`.
        predictions: 0 or 1, `(N, K)`.
        class_names: The K names.

    Returns:
        `weighted_accuracy` and `weighted_f1` (means over classes), `weighted_accuracy_per_class` and
        `weighted_f1_per_class` (by name), `num_clips`.

    Raises:
        ValueError: If the shapes differ, a value is neither 0 nor 1, or no class has both positive and negative clips.

    Example:
        >>> multilabel_metrics([[1], [0], [0]], [[1], [1], [0]], ["sad"])["weighted_accuracy_per_class"]
        {'sad': 0.75}
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 2 or labels.shape != predictions.shape or labels.shape[1] != len(class_names):
        expected = f"(N, {len(class_names)})"
        raise ValueError(f"labels and predictions must be {expected}, got {labels.shape} and {predictions.shape}")
    if not (np.isin(labels, (0, 1)).all() and np.isin(predictions, (0, 1)).all()):
        raise ValueError("labels and predictions must hold 0 and 1 only; threshold intensities and logits first")
    labels, predictions = labels.astype(bool), predictions.astype(bool)
    positive, negative = labels.sum(axis=0), (~labels).sum(axis=0)  # (K,)
    true_positive, true_negative = (labels & predictions).sum(axis=0), (~labels & ~predictions).sum(axis=0)
    wrong = (labels != predictions).sum(axis=0)
    both = (positive > 0) & (negative > 0)
    if not both.any():
        raise ValueError("no class has both positive and negative clips")
    # max(..., 1) only guards quotients that are dropped: those of classes without WA, or an F1 of weight 0.
    accuracy = (true_positive * negative / np.maximum(positive, 1) + true_negative) / (2 * np.maximum(negative, 1))
    f1 = positive * 2 * true_positive / np.maximum(2 * true_positive + wrong, 1)
    f1 = (f1 + negative * 2 * true_negative / np.maximum(2 * true_negative + wrong, 1)) / len(labels)
    known = [value if defined else None for value, defined in zip(accuracy.tolist(), both, strict=True)]
    return {
        "weighted_accuracy": float(accuracy[both].mean()),
        "weighted_f1": float(f1.mean()),
        "weighted_accuracy_per_class": dict(zip(class_names, known, strict=True)),
        "weighted_f1_per_class": dict(zip(class_names, f1.tolist(), strict=True)),
        "num_clips": len(labels),
    }


def concordance_correlation_coefficient(x: ArrayLike, y: ArrayLike) -> float:
    r"""Agreement of two series in shape, mean and scale, $\frac{2 s_{xy}}{s_x^2 + s_y^2 + (\bar x - \bar y)^2}$.

    Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility", Biometrics 45, 1989, moments over N.
    From -1 to 1; `x` and `y` are (N,). A constant series scores 0 against any other. For two equal constants the
    formula gives 0/0: they score 1 like all equal series, our choice.

    Raises:
        ValueError: If the shapes differ or are empty, or a value is not finite.

    Example:
        >>> concordance_correlation_coefficient([0, 1], [1, 2])
        0.3333333333333333
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"both series must be finite and (N,), N > 0, got {x.shape} and {y.shape}")
    if np.array_equal(x, y):
        return 1.0
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))
