"""A run's figures show what the run logged: every curve, each evaluation once, the matrix by true class."""

import json
import math

import numpy as np
import pytest
import soundfile
import yaml

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification

pytest.importorskip("matplotlib", reason='the plots need matplotlib: pip install -e ".[plot]"')
pytest.importorskip("datasets", reason='the examples need datasets: pip install -e ".[train]"')

import datasets  # noqa: E402
import figures  # noqa: E402
from plot_run import plot_run  # noqa: E402

TEXTS = ["one two", "three four", "the red cat", "one two", "stop"]
NAMES = ["angry", "calm", "sad"]
RECALLS = {f"eval_{way}_recall@{k}": k / 10 for way in ("audio_to_text", "text_to_audio") for k in (1, 5, 10)}
EVALUATION = {"eval_num_clips": 5, "eval_num_texts": 4, **RECALLS}
CHANCE = {"chance_loss": math.log(8)}
PRETRAINING = {
    "best_global_step": 20,
    "log_history": [
        {"step": 10, "epoch": 1, "loss": 3.0, "audio_text_loss": 2.5, "audio_audio_loss": 5.0, **CHANCE},
        {"step": 10, "epoch": 1, **EVALUATION},
        {"step": 20, "epoch": 2, "loss": 2.0, "audio_text_loss": 1.5, "audio_audio_loss": 4.0, **CHANCE},
        {"step": 20, "epoch": 2, **EVALUATION},
        {"step": 20, "epoch": 2, "train_loss": 2.5},
        {"step": 20, "epoch": 2, **EVALUATION},  # of the checkpoint that was restored
    ],
}
CLASSIFYING = {
    "best_global_step": 10,
    "log_history": [
        {"step": 10, "epoch": 1, "loss": 1.1},
        {"step": 10, "epoch": 1, "eval_loss": 1.2, "eval_unweighted_average_recall": 0.5, "eval_weighted_f1": 0.4},
    ],
}
TEST = {
    "unweighted_average_recall": 0.75, "confusion_matrix": [[1, 3, 0], [0, 8, 0], [0, 0, 2]], "class_names": NAMES,
    "num_clips": 14,
}  # fmt: skip


def write_run(folder, model, processor, state, options, results):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def sizes(files):
    """Names of PNG files and whether each holds a picture."""
    from matplotlib.image import imread

    return {file.name: np.ptp(imread(file)) > 0 for file in files}


def test_a_pretraining_run_is_drawn(tmp_path, config, processor, tone, noise):
    """All four figures from what pretrain.py leaves behind, with the clips of its own validation split."""
    clips = tmp_path / "corpus" / "validation"
    clips.mkdir(parents=True)
    for row in range(len(TEXTS)):
        soundfile.write(clips / f"{row}.wav", tone(200 * (row + 1), 0.6) + noise(0.6), 16000)
    lines = [f"{row}.wav,{text}" for row, text in enumerate(TEXTS)]
    (clips / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    options = {"dataset": str(tmp_path / "corpus"), "text_column": "text", "stage": "align", "num_train_epochs": 2.0}
    model = CalmForPreTraining(config)
    run = write_run(tmp_path / "run", model, processor, PRETRAINING, options, {"validation": {}})
    files = plot_run(run)
    assert sizes(files) == dict.fromkeys(("loss.png", "retrieval.png", "similarity.png", "tokens.png"), True)
    assert {file.parent for file in files} == {run / "plots"}


def test_models_and_clips_side_by_side(config, processor, tone):
    """Matrices that are compared have one scale of colours, and each clip of a page its own transcript above it."""
    rows = {"audio": [tone(300, 0.2 * i + 0.2).tolist() for i in range(5)], "text": TEXTS}
    clips = datasets.Dataset.from_dict(rows | {"duration": [0.2 * i + 0.2 for i in range(5)]})
    clips = clips.with_format("numpy", columns=["audio"], output_all_columns=True)
    models = {title: CalmForPreTraining(config).eval() for title in ("before", "after")}
    before, after, bar = figures.draw_similarity(models, processor, clips).axes
    assert before.images[0].get_clim() == after.images[0].get_clim() and bar.get_ylabel() == "cosine"
    assert before.get_title().startswith("before\nmean cosine")
    page = figures.draw_tokens(models["after"], processor, clips, number=3).axes[:3]
    assert [axes.get_title() for axes in page] == [f"“{text}”" for text in TEXTS[2:]]
    assert len({axes.get_xlim() for axes in page}) == 1, "one scale of time"


def test_a_classifier_is_drawn_without_its_data(tmp_path, config, processor):
    """Its figures come from the log and the results, so they can be drawn where the corpus is not."""
    config.num_labels = len(NAMES)
    model = CalmForSequenceClassification(config)
    run = write_run(tmp_path, model, processor, CLASSIFYING, {"dataset": "gone"}, {"test": TEST})
    assert sizes(plot_run(run)) == dict.fromkeys(("loss.png", "metric.png", "confusion.png"), True)


def test_scores_of_a_regression_have_no_confusion_matrix(tmp_path, config, processor):
    """What a run did not log is left out, and nothing fails."""
    model = CalmForSequenceClassification(config)
    run = write_run(tmp_path, model, processor, {"log_history": []}, {}, {"test": {"ccc": 0.5}})
    assert plot_run(run) == []


def test_loss_terms_stand_beside_chance():
    """Without ln(batch) nobody can tell a contrastive loss of 2 from failure."""
    lines = figures.draw_loss(PRETRAINING["log_history"], pretraining=True).axes[0].lines
    curves = {line.get_label(): line.get_xydata().tolist() for line in lines}
    assert curves["audio_text_loss"] == [[10, 2.5], [20, 1.5]]
    assert curves["audio_audio_loss"] == [[10, 5.0], [20, 4.0]]
    assert curves["ln(batch): audio_text_loss by chance"] == [[10, math.log(8)], [20, math.log(8)]]
    assert len(curves) == 3  # terms of weight 0 are not drawn


def test_every_evaluation_is_drawn_once():
    """The evaluation of the restored checkpoint would bend the curve back at its end."""
    left, right = figures.draw_retrieval(PRETRAINING).axes[:2]
    for axes in (left, right):
        curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert curves["recall@5"] == [[1, 0.5], [2, 0.5]]


def test_rows_of_the_confusion_matrix_are_shares_of_the_true_class():
    """Normalised by column, a rare class would look recognised."""
    axes = figures.draw_confusion(TEST).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.25, 0.75, 0], [0, 1, 0], [0, 0, 1]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["angry (4)", "calm (8)", "sad (2)"]
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "1", (1, 0): "3", (1, 1): "8", (2, 2): "2"}


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    """The message names what is missing."""
    with pytest.raises(ValueError, match=r"trainer_state\.json"):
        plot_run(tmp_path)
