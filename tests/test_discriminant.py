"""The classifier in closed form: the library's discriminants as a linear layer, beside encoders that stay."""

import discriminant
import finetune
import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from modeling_calm import CalmForSequenceClassification

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_logits_are_the_log_posteriors_of_the_library(num_labels, balanced):
    """On inputs as they are: standardising them is part of the weights. One input that never varies does no harm."""
    generator = np.random.default_rng(0)
    labels = generator.integers(num_labels, size=60) * (generator.random(60) < 0.7)
    inputs = generator.normal(5.0, 3.0, size=(60, 6)) + labels[:, None] * generator.normal(size=6)
    inputs[:, 2] = 7.0
    weights, biases = discriminant.discriminants(inputs, labels, num_labels, balanced)
    logits = inputs @ weights.T + biases
    priors = np.full(num_labels, 1 / num_labels) if balanced else np.bincount(labels) / len(labels)
    library = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=discriminant.SHRINKAGE, priors=priors)
    standard = StandardScaler().fit_transform(inputs)
    expected = library.fit(standard, labels).predict_proba(standard)
    np.testing.assert_allclose(torch.as_tensor(logits).softmax(-1), expected, atol=1e-6)


def options(corpus: str, aligned: str, folder) -> list[str]:
    return [
        "--dataset", corpus, "--label_column", "emotion", "--model", aligned, "--output_dir", str(folder),
        "--fit_classifier", "true", "--linear_probe", "true", "--num_train_epochs", "0",
        "--per_device_train_batch_size", "3", "--dataloader_num_workers", "0",
        "--dataloader_persistent_workers", "false", "--report_to", "none", "--disable_tqdm", "true",
    ]  # fmt: skip


def test_a_fitted_classifier_stays_where_no_epoch_follows(corpus, aligned, tmp_path):
    """All clips count, also those of an incomplete batch; the encoders are those of the checkpoint, to the bit."""
    found = finetune.main([*options(corpus, aligned, tmp_path), "--modalities", "audio"])
    assert found["validation"]["unweighted_average_recall"] > 0.5  # the clips that it was fitted to, of two classes
    model = CalmForSequenceClassification.from_pretrained(tmp_path)
    before = CalmForSequenceClassification.from_pretrained(aligned, num_labels=2)
    for name, weight in before.calm.state_dict().items():
        assert torch.equal(model.calm.state_dict()[name], weight), name
    width = model.config.hidden_size
    assert model.classifier.weight[:, :width].eq(0).all() and model.classifier.weight[:, width:].ne(0).any()
    assert model.classifier.bias.any()  # by which the pipeline knows a head that was trained


def test_words_count_where_they_are_given(corpus, aligned, tmp_path):
    finetune.main(options(corpus, aligned, tmp_path))
    model = CalmForSequenceClassification.from_pretrained(tmp_path)
    assert model.classifier.weight[:, : model.config.hidden_size].ne(0).any()


def test_several_labels_have_no_discriminants(corpus, aligned, tmp_path):
    """Scores and several labels at once are learned by steps."""
    with pytest.raises(ValueError, match="--fit_classifier` is for classes.*'valence' is a regression problem"):
        finetune.main([*options(corpus, aligned, tmp_path), "--label_column", "valence"])
