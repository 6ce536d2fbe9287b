"""What a rate carries is read from its real places alone, and from the sequence that its name says."""

import numpy as np
import pytest
import rates
import torch
from datasets import Dataset

from modeling_calm import CalmForPreTraining
from processing import DataCollatorForCalmPreTraining

TEXTS = ["one two", "the red cat", "stop", "three"]


@pytest.fixture
def model(config) -> CalmForPreTraining:
    return CalmForPreTraining(config).eval()


@pytest.fixture
def dataset(clips) -> Dataset:
    rows = Dataset.from_dict({"audio": [clip.tolist() for clip in clips], "text": TEXTS, "label": [0, 1, 0, 1]})
    return rows.with_format("numpy", columns=["audio"], output_all_columns=True)


@pytest.fixture
def batch(dataset, processor) -> dict[str, torch.Tensor]:
    collator = DataCollatorForCalmPreTraining(processor, mlm_probability=0, mask_time_prob=0, draw_pairs=False)
    return dict(collator([dataset[i] for i in range(len(dataset))]))


@pytest.mark.parametrize("words", [True, False])
def test_a_clip_alone_is_the_clip_in_a_batch(model, processor, dataset, words):
    """Else a probe would read how long the others of the batch were."""
    together = rates.represent(model, processor, dataset, 4, words)
    alone = rates.represent(model, processor, dataset, 1, words)
    assert list(together) == list(rates.RATES)
    for rate, vectors in together.items():
        assert len(vectors) == len(dataset)
        np.testing.assert_allclose(vectors, alone[rate], atol=1e-4, err_msg=rate)


@torch.no_grad()
def test_the_rates_are_those_of_the_model(model, batch):
    """What is probed is what the model computes on its way, at the rate that is named."""
    found = rates.sequences(model, batch, words=True)
    size = model.config.audio_config.patches_per_token
    windows, mask = model.calm.audio_model.encode_windows(batch["input_features"], batch["input_features_mask"])
    output = model.calm(**batch)
    for name, expected in {
        "windows": windows, "acoustic_tokens": output.acoustic_tokens, "utterance": output.last_hidden_state
    }.items():  # fmt: skip
        torch.testing.assert_close(found[name][0], expected, msg=name)
    assert torch.equal(found["windows"][1], mask)
    assert found["sub_tokens"][0].shape[1] == found["patches"][0].shape[1] == size * mask.shape[1]
    assert found["utterance"][1].sum() == batch["attention_mask"].sum() + mask.sum()
    deaf = rates.sequences(model, batch, words=False)["utterance"]
    assert deaf[0].shape[1] == mask.shape[1], "without words the language model sees acoustic tokens alone"


def test_the_ridge_finds_a_linear_map(monkeypatch):
    """With next to no penalty; and its dual form is scikit-learn's primal one."""
    from sklearn.linear_model import Ridge

    generator = np.random.default_rng(0)
    features, queries, weights = generator.normal(size=(40, 6)), generator.normal(size=(9, 6)), np.eye(6)[:, :3]
    targets = features @ weights + 2
    monkeypatch.setattr(rates, "RIDGE", 1e-9)
    np.testing.assert_allclose(rates.ridge(features, targets, queries), queries @ weights + 2, atol=1e-6)
    monkeypatch.setattr(rates, "RIDGE", 0.5)
    mean, deviation = features.mean(0), features.std(0)
    penalty = 0.5 * 6  # the mean square norm of six standardised features
    reference = Ridge(alpha=penalty).fit((features - mean) / deviation, targets)
    found = rates.ridge(features, targets, queries)
    np.testing.assert_allclose(found, reference.predict((queries - mean) / deviation), atol=1e-6)


def test_emotion_is_told_by_what_holds_it(model, processor, tone, noise):
    """Tones and noise differ at every rate: even a random SpecTran lets a linear probe tell them apart."""
    splits = {}
    for offset, split in enumerate(("train", "validation", "test")):
        audio = [
            tone(300 + 40 * i + 10 * offset, 0.5) + 0.05 * noise(0.5, i) if i % 2 else noise(0.5, 20 * offset + i)
            for i in range(12)
        ]
        rows = {"audio": [clip.tolist() for clip in audio], "text": ["stop"] * 12, "label": [i % 2 for i in range(12)]}
        splits[split] = Dataset.from_dict(rows).with_format("numpy", columns=["audio"], output_all_columns=True)
    found = rates.emotion_by_rate({"before": model, "after": model}, processor, splits, batch_size=4)
    for rate in rates.RATES:
        assert found[rate]["after"]["unweighted_average_recall_interval"]["estimate"] > 0.9, rate
        assert found[rate]["gain"]["estimate"] == 0 and not found[rate]["gain"]["above"], "a model gains nothing"


def test_words_learnt_by_heart_are_found(model, processor, dataset, monkeypatch):
    """Four clips and a ridge of next to no penalty: every rate tells them apart."""
    monkeypatch.setattr(rates, "RIDGE", 1e-6)
    found = rates.words_by_rate({"after": model}, processor, {"train": dataset, "test": dataset}, batch_size=4)
    recalls = {rate: found[rate]["after"]["audio_to_text_recall@1_interval"]["estimate"] for rate in rates.RATES}
    assert recalls == dict.fromkeys(rates.RATES, 1.0)
