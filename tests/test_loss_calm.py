"""`modeling_calm.loss_calm`: every term is its published formula; over several ranks see `test_distributed.py`."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from modeling_calm import CalmConfig, loss_calm
from modeling_calm.loss_calm import (
    audio_text_loss,
    classification_loss,
    concordance_loss,
    contrast,
    gather_ids,
    mean_over_ranks,
    pair_loss,
)

SCALE = torch.tensor(5.0, dtype=torch.float64)
ALONE = {"scale": SCALE, "tile_size": None, "gather": True}


def unit(*shape) -> torch.Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def info_nce(queries: np.ndarray, keys: np.ndarray, positives: np.ndarray, scale: float) -> float:
    """Sum over queries of the mean over their positives of -log softmax: Khosla et al. 2020, eq. 2, in float64."""
    total = 0.0
    for query, of_query in zip(queries, positives, strict=True):
        similarities = scale * keys @ query
        log_denominator = np.log(np.exp(similarities).sum())
        total += np.mean([log_denominator - similarities[k] for k in np.flatnonzero(of_query)])
    return total


def test_contrast_is_info_nce_with_several_positives():
    queries, keys = unit(5, 8), unit(7, 8)
    query_groups, key_groups = torch.tensor([0, 1, 1, 2, 3]), torch.tensor([3, 1, 0, 2, 1, 4, 1])
    positives = query_groups.numpy()[:, None] == key_groups.numpy()
    expected = info_nce(queries.numpy(), keys.numpy(), positives, 5.0)
    assert contrast(queries, keys, query_groups, key_groups, SCALE).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tile_size", [1, 2, 3, 5, 100])
def test_tiles_change_neither_value_nor_gradient(tile_size):
    """Tiles exist to save memory; a wrong one would train another model when the batch grows."""
    results = []
    for size in (None, tile_size):
        torch.manual_seed(0)
        queries, keys = (torch.randn(5, 8).requires_grad_() for _ in range(2))
        scale = torch.tensor(5.0, requires_grad=True)
        groups = torch.tensor([0, 1, 1, 2, 3])
        value = contrast(queries, keys, groups, groups, scale, size)
        value.backward()
        results.append((value, queries.grad, keys.grad, scale.grad))
    for plain, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, plain, atol=1e-6, rtol=1e-5)


def test_audio_text_loss_is_symmetric_and_counts_equal_transcripts_as_positives():
    """Commands repeat in a batch: pushing a clip from its own words would unlearn them."""
    audio, text = unit(5, 8), unit(5, 8)
    ids = torch.tensor([[7, 8, -1], [9, -1, -1], [7, 8, -1], [7, 8, 9], [9, -1, -1]])
    rows = [tuple(row) for row in ids.tolist()]
    positives = np.array([[first == second for second in rows] for first in rows])
    assert positives.sum() == 9
    expected = info_nce(audio.numpy(), text.numpy(), positives, 5.0) + info_nce(
        text.numpy(), audio.numpy(), positives, 5.0
    )
    value = audio_text_loss(audio, text, ids, **ALONE)
    assert value.item() == pytest.approx(expected / 10, rel=1e-6)
    assert audio_text_loss(text, audio, ids, **ALONE).item() == pytest.approx(value.item(), rel=1e-6)


def test_without_knowledge_the_loss_is_the_logarithm_of_the_batch():
    """The number beside which a training log is read: 3.47 for 32 clips means that nothing was learned."""
    same = unit(1, 8).expand(32, 8)
    value = audio_text_loss(same, same, torch.arange(32)[:, None], **ALONE)
    assert value.item() == pytest.approx(np.log(32), rel=1e-5)


def test_pair_loss_takes_its_own_key_among_all_keys():
    queries, keys = unit(6, 8), unit(6, 8)
    expected = info_nce(queries.numpy(), keys.numpy(), np.eye(6), 5.0) / 6
    assert pair_loss(queries, keys, **ALONE).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gather", [True, False])
def test_no_pair_at_all_is_a_zero_in_the_graph(gather):
    """A batch of one-window clips has no neighbours; a loss outside the graph would stop distributed training."""
    options = {**ALONE, "gather": gather}
    queries, keys = (torch.zeros(0, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for value in (
        pair_loss(queries, keys, **options),
        audio_text_loss(queries, keys, torch.zeros(0, 3).long(), **options),
    ):
        assert value.item() == 0
        value.backward()
    assert queries.grad.shape == (0, 8)
    nothing = mean_over_ranks((queries * 2).sum(), 0)
    assert nothing.item() == 0
    nothing.backward()


def test_concordance_loss_is_lins_formula():
    """1 - 2 r sx sy / (sx^2 + sy^2 + (mx - my)^2), population moments: Lin 1989, eq. 3."""
    predictions, targets = np.random.default_rng(0).normal(size=(2, 40, 3)) + [[[0.5, 0, 1]], [[0, 0, 0]]]
    expected = []
    for p, t in zip(predictions.T, targets.T, strict=True):
        correlation = np.corrcoef(p, t)[0, 1]
        expected.append(1 - 2 * correlation * p.std() * t.std() / (p.var() + t.var() + (p.mean() - t.mean()) ** 2))
    value = concordance_loss(torch.from_numpy(predictions), torch.from_numpy(targets))
    assert value.item() == pytest.approx(np.mean(expected), abs=1e-6)
    exact = torch.from_numpy(targets)
    assert concordance_loss(exact, exact).item() == pytest.approx(0, abs=1e-6)
    assert concordance_loss(-exact, exact - 2 * exact.mean(0)).item() == pytest.approx(2, abs=1e-6)


def test_one_clip_has_no_concordance_and_that_is_told(monkeypatch):
    """A run of such batches would train nothing."""
    told = []
    monkeypatch.setattr(loss_calm.logger, "warning_once", told.append)
    predictions = torch.tensor([[0.3, 0.2]], requires_grad=True)
    loss = concordance_loss(predictions, torch.tensor([[0.1, 0.9]]))
    loss.backward()
    assert loss == 1 and not predictions.grad.any()
    assert "Raise the batch size" in told[0]


def test_concordance_of_constants_is_finite():
    """A batch of equal targets has no variance to agree with; 0 / 0 would end the run."""
    predictions = torch.zeros(4, 2, requires_grad=True)
    value = concordance_loss(predictions, torch.zeros(4, 2))
    value.backward()
    assert value.isfinite()
    assert predictions.grad.isfinite().all()


LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.2, 0.1, -0.4], [3.0, 0.0, 1.0], [-1.0, 2.0, 2.5]])


@pytest.mark.parametrize("weights", [None, [1, 2.5, 4]])
@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_single_label_loss(weights, problem):
    """Cross-entropy; with class weights the mean is weighted too, as in torch."""
    config = CalmConfig(num_labels=3, problem_type=problem, class_weights=weights)
    labels = np.array([0, 2, 2, 1])
    logits = LOGITS.double().numpy()
    nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), labels]
    weight = np.ones(4) if weights is None else np.array(weights)[labels]
    value = classification_loss(LOGITS, torch.from_numpy(labels), config)
    assert value.item() == pytest.approx((weight * nll).sum() / weight.sum(), rel=1e-6)


@pytest.mark.parametrize("weights", [None, [1, 2.5, 4]])
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_multi_label_loss(weights, problem):
    """Binary cross-entropy of every class, MOSEI's case: several emotions at once."""
    config = CalmConfig(num_labels=3, problem_type=problem, class_weights=weights)
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    probability = 1 / (1 + np.exp(-LOGITS.double().numpy()))
    terms = -(labels * np.log(probability) + (1 - labels) * np.log(1 - probability))
    expected = (terms * (1 if weights is None else np.array(weights))).mean()
    # Long labels are several classes only where the problem says so.
    targets = torch.from_numpy(labels) if problem else torch.from_numpy(labels).float()
    assert classification_loss(LOGITS, targets, config).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
@pytest.mark.parametrize("problem", [None, "regression"])
def test_regression_loss_of_one_target(shape, problem):
    """(B,) against (B, 1) would broadcast to (B, B) and train towards the mean."""
    targets = torch.tensor([0.5, -1.0, 2.0, 0.0])
    value = classification_loss(LOGITS[:, :1], targets.view(shape), CalmConfig(num_labels=1, problem_type=problem))
    assert value.item() == pytest.approx(((LOGITS[:, 0] - targets) ** 2).mean().item(), rel=1e-6)


@pytest.mark.parametrize("problem", [None, "regression"])
def test_valence_arousal_dominance_train_on_concordance(problem):
    """Three float targets look like three classes; `regression_loss="ccc"` says what they are."""
    config = CalmConfig(num_labels=3, regression_loss="ccc", problem_type=problem)
    targets = torch.rand(4, 3)
    assert torch.equal(classification_loss(LOGITS, targets, config), concordance_loss(LOGITS, targets))
    mse = CalmConfig(num_labels=3, problem_type="regression")
    assert classification_loss(LOGITS, targets, mse).item() == pytest.approx(((LOGITS - targets) ** 2).mean().item())


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"num_labels": 3}, torch.tensor([0, 1, 2, 3]), r"must lie in \[0, 3\); these reach \[0, 1, 2, 3\]"),
        ({"num_labels": 3}, torch.tensor([0, -1, 2, 0]), r"must lie in \[0, 3\)"),
        ({"num_labels": 3}, torch.rand(4, 2), r"shape \(4, 2\) do not fit logits of shape \(4, 3\)"),
        ({"num_labels": 3}, torch.rand(3, 4), r"shape \(3, 4\) do not fit"),
        ({"num_labels": 3, "problem_type": "regression"}, torch.rand(5), r"shape \(5,\) do not fit"),
        ({"num_labels": 3}, torch.tensor([0, 1, 2]), "batch_size"),
    ],
)
def test_labels_that_do_not_fit_are_refused(settings, labels, message):
    """On a GPU a label out of range is a device assertion that ends the process without a name."""
    with pytest.raises(ValueError, match=message):
        classification_loss(LOGITS, labels, CalmConfig(**settings))


def test_class_weights_work_in_half_precision():
    """Under autocast the logits are bfloat16, and torch refuses weights of another type."""
    for labels in (torch.tensor([0, 2, 2, 1]), torch.rand(4, 3)):
        config = CalmConfig(num_labels=3, class_weights=[1, 2, 3])
        value = classification_loss(LOGITS.bfloat16(), labels, config)
        assert value.item() == pytest.approx(classification_loss(LOGITS, labels, config).item(), rel=0.01)


def test_equal_transcripts_are_equal_whichever_side_is_padded():
    """Another rank pads to another length; on the left, equal ids would stand in other columns there."""
    left, right = torch.tensor([[-1, -1, 5, 7], [5, 6, 8, 9]]), torch.tensor([[5, 7, -1, -1], [5, 6, 8, 9]])
    assert torch.equal(gather_ids(left), right) and torch.equal(gather_ids(right), right)
