"""The example scripts from end to end on eight clips: files, metrics, and what they show when learnt by heart."""

import subprocess
import sys
from pathlib import Path

import demo
import evaluate
import finetune
import numpy as np
import pretrain
import pytest
import soundfile
import torch
from demo_corpus import build_demo_corpus
from example_helpers import (
    assert_finite,
    assert_is_a_run,
    load_json,
    read,
    rows,
    run,
    waveform,
    write_corpus,
    write_table,
)
from scoring import embed
from training import ModelArguments
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from modeling_calm import CalmForPreTraining
from processing.retrieval import audio_text_retrieval

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
LABELS = {"classes": "emotion", "multi-label": "loud,high", "scores": "valence,arousal", "score": "valence"}


def test_alignment_learns_eight_clips_by_heart(aligned, corpus, new_model):
    assert_is_a_run(aligned, AutoModel, AutoModelForPreTraining)
    found = evaluate.main(["--models", aligned, "--dataset", corpus])
    assert_finite(load_json(Path(aligned) / "evaluation.json"))
    arguments = ModelArguments(text_model=new_model[1], audio_config=new_model[3])
    untrained = arguments.load_model(CalmForPreTraining).eval()
    dataset = read(corpus, "test")
    embeds = embed(untrained, arguments.load_processor(), dataset, batch_size=8)
    before = audio_text_retrieval(embeds["audio_embeds"], embeds["text_embeds"], list(dataset["text"]))
    for direction in ("audio_to_text", "text_to_audio"):
        assert found[f"{direction}_recall@1"] == 1.0
        assert found[f"{direction}_map@10"] > before[f"{direction}_map@10"]


def test_alignment_leaves_the_language_model_alone(aligned, new_model):
    """Its word embeddings are the target, and its layers never run."""
    trained = AutoModel.from_pretrained(aligned).text_model.state_dict()
    for name, weight in AutoModel.from_pretrained(new_model[1]).state_dict().items():
        if name in trained:
            torch.testing.assert_close(trained[name], weight, msg=name)


def test_added_datasets_join_the_training_split(corpus, new_model, folder):
    """Without them nothing but the eight clips of one data set would be heard; validation stays what it is."""
    added = ["--added_datasets", corpus, corpus]
    metrics = run(
        pretrain, corpus, folder / "mixed", *new_model, *added, "--per_device_train_batch_size", "24", steps=2
    )
    state = load_json(folder / "mixed" / "trainer_state.json")
    assert state["num_train_epochs"] == 2  # steps of 24 clips: an epoch holds the corpus three times
    assert metrics["eval_num_clips"] == 8
    with pytest.raises(ValueError, match="for a stream put all shards in one folder"):
        run(pretrain, corpus, folder / "refused", *new_model, *added, "--streaming")


def test_fusing_goes_on_from_alignment(aligned, corpus, folder):
    output = str(folder / "fused")
    before = AutoModel.from_pretrained(aligned)
    # One worker over one batch, as by default.
    metrics = run(
        pretrain,
        corpus,
        folder / "fused",
        "--model",
        aligned,
        "--stage",
        "fuse",
        "--dataloader_num_workers",
        "1",
        "--augment",
        "true",
        steps=2,
    )
    assert_is_a_run(output, AutoModelForPreTraining)
    after = AutoModel.from_pretrained(output)
    assert torch.equal(after.get_input_embeddings().weight, before.get_input_embeddings().weight)
    changed = [n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert any("text_model.encoder" in name for name in changed) and any("audio_model" in name for name in changed)
    history = load_json(folder / "fused" / "trainer_state.json")["log_history"]
    terms = ("audio_text_loss", "audio_audio_loss", "masked_language_loss", "masked_acoustic_loss")
    assert any(set(terms) <= set(entry) for entry in history)
    assert_finite(metrics)


@pytest.mark.parametrize("modalities", ["both", "audio", "text"])
@pytest.mark.parametrize("problem", LABELS)
def test_finetuning_and_evaluation(aligned, corpus, folder, problem, modalities):
    output = folder / f"{problem}-{modalities}"
    options = ["--label_column", LABELS[problem], "--modalities", modalities]
    results = run(finetune, corpus, output, "--model", aligned, *options, steps=3)
    assert_is_a_run(str(output), AutoModel, AutoModelForSequenceClassification)
    evaluated = evaluate.main(["--models", str(output), "--dataset", corpus, "--label_column", LABELS[problem]])
    report = load_json(output / "evaluation.json")
    assert_finite(report)
    # The script that trained and the script that evaluates score the same clips alike.
    for name, value in finetune.flat(results["test"]).items():
        assert evaluated[name] == pytest.approx(value, abs=1e-4), name
    names = AutoModelForSequenceClassification.from_pretrained(output).config.id2label
    assert AutoModelForSequenceClassification.from_pretrained(output).config.modalities == modalities
    assert list(names.values()) == (["calm", "noisy"] if problem == "classes" else LABELS[problem].split(","))


def test_eight_clips_are_classified_without_a_fault(fitted):
    """What a network cannot learn by heart, it cannot learn: labels, loss and metric fit together."""
    results = load_json(Path(fitted) / "results.json")
    assert results["test"]["unweighted_average_recall"] == 1.0
    assert load_json(Path(fitted) / "config.json")["class_weights"] == [1.0, 1.0]


def test_a_classifier_goes_on_with_other_classes(fitted, corpus, folder):
    """Its head alone starts anew, and nothing of the former labels stays."""
    options = ["--model", fitted, "--label_column", "level", "--modalities", "audio"]
    run(finetune, corpus, folder / "refitted", *options, steps=1)
    config = AutoModelForSequenceClassification.from_pretrained(folder / "refitted").config
    assert config.id2label == {0: "0", 1: "1", 2: "2"} and config.class_weights is None


@pytest.mark.parametrize("content", ["nothing", "a language model"])
def test_a_checkpoint_without_a_processor(corpus, folder, new_model, tmp_path, content):
    model = str(tmp_path) if content == "nothing" else new_model[1]
    for script in (pretrain, finetune):
        with pytest.raises(ValueError, match=f"'{model}' holds .*no processor"):
            run(script, corpus, folder / "never", "--model", model)
    with pytest.raises(ValueError, match=f"'{model}' holds"):
        evaluate.main(["--models", model, "--dataset", corpus])


@pytest.mark.parametrize(
    ("script", "fault", "message"),
    [
        (finetune, {"emotion": "angry"}, r"Split 'test' has the labels \['angry'\].*knows \['calm', 'noisy'\]"),
        (finetune, {"emotion": ""}, r"Rows \[3\] of split 'test' have no label"),
        (finetune, {"loud": 2}, r"Rows \[3\] of split 'test' have labels other than 0 and 1"),
        (pretrain, {"text": "кот"}, r"knows no piece of these transcripts of split 'test', by row: \{3: 'кот'\}"),
    ],
)  # fmt: skip
def test_a_fault_of_the_data_is_told_before_training_and_leaves_no_run(
    folder, new_model, tmp_path, script, fault, message
):
    """It is told before training; a folder that is left behind would refuse the next attempt."""
    table = rows()
    table[3] |= fault
    faulty = write_corpus(tmp_path / "corpus")
    write_table(faulty / "test" / "metadata.csv", table)
    options = (
        ["--label_column", "loud,high"] if "loud" in fault else ["--validation_split", "test"] * (script is pretrain)
    )
    with pytest.raises(ValueError, match=message):
        run(script, str(faulty), tmp_path / "run", *new_model, *options)
    assert not (tmp_path / "run").exists()


def test_recordings_without_room_are_told_before_training(folder, corpus, new_model, tmp_path):
    """64 positions are 5.1 s; a step in their midst would fail, and every attempt to resume with it."""
    longer = write_corpus(tmp_path / "corpus")
    soundfile.write(longer / "train" / "clip_3.wav", np.concatenate([waveform(3, 2.5)] * 2), 16000)
    train = [finetune, str(longer), tmp_path / "run", *new_model]
    fused = [pretrain, str(longer), tmp_path / "run", *new_model, "--stage", "fuse"]
    for call in (train, fused):
        with pytest.raises(ValueError, match=r"1 of 8 recordings of split 'train'.*\n  row 3: 5.0 s\nCut them"):
            run(*call)
    with pytest.raises(ValueError, match="as long as augmentation makes them"):
        run(*train, "--modalities", "audio", "--augment", "true")
    assert not (tmp_path / "run").exists()
    run(pretrain, str(longer), tmp_path / "aligned", *new_model, steps=1)  # the aligned space has no limit


def test_speakers_in_two_splits_are_told(corpus, new_model, tmp_path, caplog):
    run(finetune, corpus, tmp_path / "run", *new_model, steps=1)
    assert "2 speakers are in split 'train' and in 'test' too, s0 the first:" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_steps", "-1", "--num_train_epochs", "0"], "nothing is trained.*--fit_classifier"),
        (["--label_column", "loud,high", "--balance_classes"], "--balance_classes.*for classes"),
        (["--label_column", "valence", "--fit_classifier"], "--fit_classifier.*for classes"),
    ],
)
def test_options_of_classes_alone(corpus, new_model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(finetune, corpus, tmp_path / "run", *new_model, *options)


def test_a_batch_larger_than_the_corpus_is_refused(corpus, new_model, tmp_path):
    """The Trainer would train for no step at all, and save the untrained model without a word."""
    options = [*new_model, "--per_device_train_batch_size", "9"]
    with pytest.raises(ValueError, match="8 clips, fewer than the 9 of one batch.*--per_device_train_batch_size"):
        run(pretrain, corpus, tmp_path, *options)


@pytest.mark.parametrize("script", [pretrain, finetune, evaluate])
def test_help_is_printed(script, capsys):
    """A per cent sign in a help text is enough to break it."""
    with pytest.raises(SystemExit) as caught:
        script.main(["--help"])
    assert caught.value.code == 0
    assert "--dataset" in capsys.readouterr().out


def test_a_script_runs_from_any_folder(tmp_path):
    command = [sys.executable, str(Path(pretrain.__file__).resolve()), "--help"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "--stage" in finished.stdout


def test_the_demo_removes_no_runs_but_its_own(tmp_path, monkeypatch):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "config.yaml").write_text("seed: 1")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="holds runs, and not those of a demo"):
        demo.main()
    assert (tmp_path / "pretrain" / "config.yaml").exists()


@pytest.mark.slow
def test_the_demo_in_small(tmp_path, minilm_folder):
    """Speech, a real language model and the default options: words of known voices are found again."""
    pytest.importorskip("espeakng_loader")
    speech = str(build_demo_corpus(tmp_path / "corpus", num_sentences=6))
    options = ["--dataset", speech, "--validation_split", "train", "--disable_tqdm", "true"]
    options += ["--per_device_train_batch_size", "16"]
    model = ["--text_model", minilm_folder, "--audio_config", "tiny", "--num_train_epochs", "20"]
    pretrain.main([*options, *model, "--output_dir", str(tmp_path / "aligned")])
    found = evaluate.main(["--models", str(tmp_path / "aligned"), "--dataset", speech, "--split", "train"])
    assert found["num_clips"] == 36 and found["num_texts"] == 6
    assert found["audio_to_text_recall@1"] > 0.5  # of 6 transcripts
    assert found["word_reading"] > found["word_reading_other_transcript"]
    aligned = ["--model", str(tmp_path / "aligned"), "--num_train_epochs", "3"]
    finetune.main([*options, *aligned, "--output_dir", str(tmp_path / "emotion")])
    found = evaluate.main(["--models", str(tmp_path / "emotion"), "--dataset", speech, "--split", "train"])
    assert found["unweighted_average_recall"] > 0.25  # chance, of four emotions
