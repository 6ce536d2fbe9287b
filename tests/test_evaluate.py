"""Evaluation: seeds, comparisons, baselines, chunks of long clips, and checkpoints that do not go together."""

import evaluate
import finetune
import numpy as np
import pytest
from datasets import Dataset
from example_helpers import assert_finite, load_json, rows, run, waveform
from scoring import classify, load_checkpoint

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture(scope="module")
def untrained(folder, corpus, new_model) -> list[str]:
    """Two seeds of a classifier that has hardly been trained."""
    runs = [str(folder / f"untrained-{seed}") for seed in (0, 1)]
    for seed, output in enumerate(runs):
        run(finetune, corpus, output, *new_model, "--seed", str(seed), steps=1)
    return runs


def test_chunks_of_a_long_clip_are_averaged(fitted):
    model, processor = load_checkpoint(fitted, CalmForSequenceClassification)
    chunks = [waveform(i) for i in range(3)]
    long = [{"audio": np.concatenate(chunks), "text": None}]
    logits = classify(model, processor, long, batch_size=2, modalities="audio", chunk_length_s=0.4)
    each = classify(model, processor, [{"audio": chunk, "text": None} for chunk in chunks], 1, "audio")
    np.testing.assert_allclose(logits[0], each.mean(0), atol=1e-5)
    whole = classify(model, processor, long, 1, "audio", chunk_length_s=1.3)
    assert not np.allclose(whole, logits)


def test_seeds_are_averaged_and_compared(fitted, untrained, corpus, tmp_path):
    output = tmp_path / "made" / "compared.json"
    options = ["--models", fitted, "--compare_models", *untrained, "--output", str(output), "--dataset", corpus]
    found = evaluate.main(options)
    assert found["unweighted_average_recall"] == 1.0 and found["num_clips"] == 8
    of_seeds = evaluate.main(["--models", *untrained, "--output", str(output), "--dataset", corpus])
    uar = [seed["unweighted_average_recall"] for seed in of_seeds["seeds"]]
    assert len(uar) == 2 and of_seeds["unweighted_average_recall"] == pytest.approx(np.mean(uar))
    assert found["compared"]["difference"]["estimate"] == pytest.approx(1 - np.mean(uar))
    assert_finite(load_json(output))


def test_seeds_of_a_pretrained_model_are_averaged(aligned, corpus):
    once = evaluate.main(["--models", aligned, "--dataset", corpus])
    twice = evaluate.main(["--models", aligned, aligned, "--dataset", corpus])
    assert twice["seeds"] == once["seeds"] * 2 and twice["num_texts"] == 8
    for name in ("audio_to_text_recall@1", "audio_to_text_recall@10", "word_reading"):
        interval = once[f"{name}_interval"]
        assert interval == twice[f"{name}_interval"], "the same model twice is no more certain"
        assert interval["low"] <= interval["estimate"] == pytest.approx(once[name])


def test_checkpoints_of_other_labels_or_kinds_are_not_mixed(aligned, fitted, corpus, folder):
    """Logits of another order of classes would be scored as if they were of the first."""
    other = str(folder / "other")
    run(finetune, corpus, other, "--model", aligned, "--label_column", "level", steps=1)
    with pytest.raises(ValueError, match=r"other' tells \['0', '1', '2'\].*\['calm', 'noisy'\]"):
        evaluate.main(["--models", fitted, "--compare_models", other, "--dataset", corpus])
    with pytest.raises(ValueError, match="aligned' holds .*CalmForPreTraining.*not a CalmForSequenceClassification"):
        evaluate.main(["--models", fitted, aligned, "--dataset", corpus])
    with pytest.raises(ValueError, match="is no classifier: leave out --egemaps"):
        evaluate.main(["--models", aligned, "--egemaps", "--dataset", corpus])
    with pytest.raises(ValueError, match="is no classifier: leave out --chunk_length_s"):
        evaluate.main(["--models", aligned, "--chunk_length_s", "5", "--dataset", corpus])


def test_a_classifier_in_half_precision(fitted):
    """As it is stored, so it is loaded; numpy knows no bfloat16."""
    model, processor = load_checkpoint(fitted, CalmForSequenceClassification)
    clip = [{"audio": waveform(0), "text": None}]
    whole = classify(model, processor, clip, 1, "audio")
    half = classify(model.bfloat16(), processor, clip, 1, "audio")
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, whole, atol=0.1)


def test_texts_that_are_one_to_the_tokenizer_are_one(aligned):
    """Their embeddings are equal: told apart, they would count against each other."""
    model, processor = load_checkpoint(aligned, CalmForPreTraining)
    texts = [row["text"] for row in rows(4)]
    found = []
    for repeated in (texts, [text.upper() for text in texts]):
        clips = [{"audio": waveform(i % 4), "text": text} for i, text in enumerate(texts + repeated)]
        dataset = Dataset.from_list(clips).with_format("numpy", columns=["audio"], output_all_columns=True)
        found.append(evaluate.measure_space(model, processor, dataset, 4))
    assert found[0].scores == found[1].scores


@pytest.mark.parametrize(("columns", "metric"), [("valence,arousal", "ccc"), ("loud,high", "weighted_f1")])
def test_scores_and_several_labels_are_compared(aligned, corpus, folder, columns, metric):
    runs = [str(folder / f"{metric}-{steps}") for steps in (1, 20)]
    labels = ["--label_column", columns]
    for output, steps in zip(runs, (1, 20), strict=True):
        run(finetune, corpus, output, "--model", aligned, *labels, steps=steps)
    options = ["--models", runs[1], "--compare_models", runs[0], "--dataset", corpus, *labels]
    found = evaluate.main(options)
    alone = evaluate.main(["--models", runs[0], "--dataset", corpus, *labels])
    assert found[f"{metric}_interval"]["estimate"] == pytest.approx(found[metric])
    assert found["compared"]["difference"]["estimate"] == pytest.approx(found[metric] - alone[metric])
    with pytest.raises(ValueError, match="--egemaps.*one an utterance"):
        evaluate.main([*options, "--egemaps"])


def test_egemaps_is_a_baseline(fitted, corpus):
    pytest.importorskip("opensmile")
    found = evaluate.main(["--models", fitted, "--egemaps", "--dataset", corpus])
    assert found["egemaps_svm"]["unweighted_average_recall_interval"]["estimate"] == 1.0


def test_labels_that_do_not_fit_the_model(aligned, corpus, folder):
    run(finetune, corpus, folder / "two", "--model", aligned, "--label_column", "loud,high", steps=1)
    with pytest.raises(ValueError, match=r"2 numbers \['loud', 'high'\].*test.*'calm'.*--label_column"):
        evaluate.main(["--models", str(folder / "two"), "--dataset", corpus])
