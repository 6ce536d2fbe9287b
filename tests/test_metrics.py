"""`processing.metrics`: hand-worked cases, the equations transcribed word by word, and scikit-learn's numbers."""

import numpy as np
import pytest

from processing.metrics import (
    classification_metrics,
    concordance_correlation_coefficient,
    macro_f1,
    multilabel_metrics,
    unweighted_average_recall,
    weighted_accuracy,
    weighted_f1,
)

NAMES = ["angry", "calm", "happy", "sad"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("named", [False, True])
def test_the_vectorised_numbers_are_the_equations(seed, named):
    """Class by class with sets of clips; two classes occur on one side only."""
    generator = np.random.default_rng(seed)
    labels, predictions = generator.choice([0, 1, 3], 60), generator.choice([0, 1, 2], 60)
    recalls, f1s, weighted = [], [], []
    for k in range(4):
        true = {i for i in range(60) if labels[i] == k}
        predicted = {i for i in range(60) if predictions[i] == k}
        if true:
            recalls.append(len(true & predicted) / len(true))
        f1s.append(2 * len(true & predicted) / (len(true) + len(predicted)))
        weighted.append(len(true) / 60 * f1s[-1])
    if named:
        labels, predictions = np.array(NAMES)[labels], np.array(NAMES)[predictions].tolist()
    assert len(recalls) == 3
    assert unweighted_average_recall(labels, predictions) == pytest.approx(sum(recalls) / 3)
    assert weighted_accuracy(labels, predictions) == np.mean(labels == np.asarray(predictions))
    assert macro_f1(labels, predictions) == pytest.approx(sum(f1s) / 4)
    assert weighted_f1(labels, predictions) == pytest.approx(sum(weighted))


def test_scikit_learn_gives_the_same_numbers():
    """Other people's tables are made with it."""
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    labels, predictions = generator.choice([0, 1, 3], 60), generator.choice([0, 1, 2], 60)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = sklearn.balanced_accuracy_score(labels, predictions)
    assert unweighted_average_recall(labels, predictions) == pytest.approx(balanced)
    assert weighted_accuracy(labels, predictions) == sklearn.accuracy_score(labels, predictions)
    assert macro_f1(labels, predictions) == pytest.approx(sklearn.f1_score(labels, predictions, average="macro"))
    assert weighted_f1(labels, predictions) == pytest.approx(sklearn.f1_score(labels, predictions, average="weighted"))
    confusion = classification_metrics(labels, predictions, NAMES)["confusion_matrix"]
    assert confusion == sklearn.confusion_matrix(labels, predictions, labels=range(4)).tolist()
    labels, predictions = generator.integers(2, size=(2, 60, 3))
    found = multilabel_metrics(labels, predictions, NAMES[:3])
    for k, name in enumerate(NAMES[:3]):
        binary = labels[:, k], predictions[:, k]
        assert found["weighted_f1_per_class"][name] == pytest.approx(sklearn.f1_score(*binary, average="weighted"))
        assert found["weighted_accuracy_per_class"][name] == pytest.approx(sklearn.balanced_accuracy_score(*binary))


def test_the_majority_class_buys_accuracy_but_no_average_recall():
    """Why UAR stands first: always "calm" is 90 % right on this set, and knows nothing."""
    labels = [1] * 90 + [0] * 5 + [3] * 5
    found = classification_metrics(labels, [1] * 100, NAMES)
    assert found["weighted_accuracy"] == pytest.approx(0.9)
    assert found["unweighted_average_recall"] == pytest.approx(1 / 3)  # of the three classes that occur, not of four
    assert found["recall_per_class"] == {"angry": 0.0, "calm": 1.0, "happy": None, "sad": 0.0}
    assert found["confusion_matrix"] == [[0, 5, 0, 0], [0, 90, 0, 0], [0, 0, 0, 0], [0, 5, 0, 0]]
    assert found["num_clips"] == 100


def test_rows_of_the_confusion_matrix_are_the_true_classes():
    """Transposed, recall would be read as precision."""
    assert classification_metrics([0, 0, 0, 1], [1, 1, 0, 1], NAMES[:2])["confusion_matrix"] == [[1, 2], [0, 1]]


def test_inputs_that_are_no_classes_are_refused():
    """Each of these would give a number: logits as classes, names against indices, -100 as the last class."""
    for labels, predictions, problem in [
        ([0, 1], [0.3, 0.7], "integers or both names"),
        ([0, 1], ["0", "1"], "integers or both names"),
        ([0, 1], [[0, 1], [1, 0]], r"\(N,\)"),
        ([0, 1], [0], r"\(N,\)"),
        ([], [], r"N > 0"),
    ]:
        for metric in (unweighted_average_recall, weighted_accuracy, macro_f1, weighted_f1):
            with pytest.raises(ValueError, match=problem):
                metric(labels, predictions)
    for labels in ([0, -100], [0, 4], ["angry", "sad"]):
        with pytest.raises(ValueError, match="indices into the 4 class names"):
            classification_metrics(labels, labels, NAMES)


def test_multilabel_scores_are_the_equations():
    """WA = (TP*N/P + TN)/(2N) and the F1 of both kinds by their frequency, clip by clip."""
    generator = np.random.default_rng(0)
    labels, predictions = (generator.random((2, 80, 4)) < [0.1, 0.3, 0.5, 0.9]).astype(int)
    found = multilabel_metrics(labels, predictions, NAMES)
    accuracies, f1s = [], []
    for k, name in enumerate(NAMES):
        counts = {(t, p): 0 for t in (0, 1) for p in (0, 1)}
        for pair in zip(labels[:, k].tolist(), predictions[:, k].tolist(), strict=True):
            counts[pair] += 1
        tp, fn, fp, tn = counts[1, 1], counts[1, 0], counts[0, 1], counts[0, 0]
        p, n = tp + fn, fp + tn
        accuracies.append((tp * n / p + tn) / (2 * n))
        f1s.append((p * 2 * tp / (2 * tp + fp + fn) + n * 2 * tn / (2 * tn + fp + fn)) / (p + n))
        assert found["weighted_accuracy_per_class"][name] == pytest.approx(accuracies[-1])
        assert found["weighted_f1_per_class"][name] == pytest.approx(f1s[-1])
    assert found["weighted_accuracy"] == pytest.approx(sum(accuracies) / 4)
    assert found["weighted_f1"] == pytest.approx(sum(f1s) / 4)


def test_an_emotion_that_never_occurs_has_no_accuracy():
    """WA divides by its positives: NaN in the mean would spoil the table, 0 or 1 would bias it."""
    labels = predictions = [[0, 1], [0, 0], [0, 1]]
    found = multilabel_metrics(labels, predictions, ["fear", "happy"])
    assert found["weighted_accuracy_per_class"] == {"fear": None, "happy": 1.0}
    assert found["weighted_accuracy"] == 1.0
    assert found["weighted_f1_per_class"]["fear"] == 1  # every clip is rightly negative
    with pytest.raises(ValueError, match="no class"):
        multilabel_metrics([[0], [0]], [[0], [1]], ["fear"])


def test_multilabel_inputs_that_are_not_thresholded_are_refused():
    """MOSEI intensities run from 0 to 3, and a logit of 0.7 is no decision."""
    for labels, predictions in [([[2], [0]], [[1], [0]]), ([[1], [0]], [[0.7], [0.1]])]:
        with pytest.raises(ValueError, match="threshold"):
            multilabel_metrics(labels, predictions, ["sad"])
    for labels, predictions, names in [([1, 0], [1, 0], ["sad"]), ([[1, 0]], [[1, 0]], ["sad"])]:
        with pytest.raises(ValueError, match="must be"):
            multilabel_metrics(labels, predictions, names)


def test_concordance_is_lins_equation():
    """Transcribed with sums; moments over N - 1 would give another number for short series."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal(9)
    y = 0.5 * x + generator.standard_normal(9) + 1
    mean_x, mean_y = sum(x) / 9, sum(y) / 9
    variance_x, variance_y = sum((x - mean_x) ** 2) / 9, sum((y - mean_y) ** 2) / 9
    covariance = sum((x - mean_x) * (y - mean_y)) / 9
    expected = 2 * covariance / (variance_x + variance_y + (mean_x - mean_y) ** 2)
    assert concordance_correlation_coefficient(x, y) == pytest.approx(expected)


def test_concordance_punishes_what_correlation_forgives():
    """A system right up to an offset or a scale has correlation 1: for valence and arousal that is not agreement."""
    x = np.linspace(-1, 1, 101)
    assert concordance_correlation_coefficient(x, x) == 1
    assert concordance_correlation_coefficient(x, -x) == pytest.approx(-1)
    assert concordance_correlation_coefficient(x, 2 * x) == pytest.approx(4 / 5)
    variance = np.var(x)
    assert concordance_correlation_coefficient(x, x + 1) == pytest.approx(2 * variance / (2 * variance + 1))


def test_concordance_of_constants_is_defined():
    """A collapsed regressor agrees with nothing (0); a resample of one value that is met exactly is no NaN."""
    x = np.linspace(-1, 1, 11)
    assert concordance_correlation_coefficient(x, np.full(11, 0.1)) == pytest.approx(0, abs=1e-12)
    assert concordance_correlation_coefficient(np.full(11, 0.3), np.full(11, 0.1)) == pytest.approx(0, abs=1e-12)
    assert concordance_correlation_coefficient([0.1] * 3, [0.1] * 3) == 1
    for bad in ([0.0, np.nan], [0.0], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match="finite"):
            concordance_correlation_coefficient([0.0, 1.0], bad)
    with pytest.raises(ValueError, match="finite"):
        concordance_correlation_coefficient([], [])
