"""Ablations: what differs is what the name says, a finished run is not repeated, and differences are paired."""

import contextlib
import subprocess
from types import SimpleNamespace

import ablation_runs
import ablations
import changes
import discriminant
import finetune
import numpy as np
import pretrain
import pytest
import tables
import yaml
from example_helpers import assert_finite, load_json, save_language_model
from options import CalmTrainingArguments
from speech_data import DataArguments
from training import ModelArguments
from transformers import HfArgumentParser, set_seed

from modeling_calm import CalmForPreTraining
from processing.metrics import unweighted_average_recall
from processing.retrieval import retrieval_metrics

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
TOY = {"hidden_size": 32, "num_hidden_layers": 1, "num_context_layers": 1, "num_attention_heads": 4}
CHANGED = {name: replaced[0][1] for name, replaced in changes.CHANGES.items()}
STEPS = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture
def recipes(tmp_path):
    """A file of toys: the base, one without context layers, one without an objective."""
    text_model = save_language_model(tmp_path / "bert")
    base = {"stage": "align", "audio_config": "tiny", "text_model": text_model, "dataloader_num_workers": 0, **STEPS}
    variants = {
        "no_context_layers": {"audio_config": {**TOY, "num_context_layers": 0}},
        "no_audio_audio": {"audio_audio_loss_weight": 0},
    }
    file = tmp_path / "recipes.yaml"
    file.write_text(
        yaml.safe_dump({"base": base | {"per_device_train_batch_size": 8}, "variants": variants}, sort_keys=False)
    )
    return file


@pytest.fixture
def drawn_for_trained(monkeypatch):
    """Instead of minutes of training a model is drawn from the seed; counts the trainings."""
    trained = []

    def draw(folder, options):
        trained.append(folder.name)
        set_seed(options["seed"])
        file = folder.parent / f"{folder.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        values = options["audio_config"] if isinstance(options["audio_config"], dict) else TOY
        file.write_text(yaml.safe_dump(TOY | values))
        arguments = ModelArguments(text_model=options["text_model"], audio_config=str(file))
        arguments.load_model(CalmForPreTraining).save_pretrained(folder)
        arguments.load_processor().save_pretrained(folder)

    monkeypatch.setattr(ablation_runs, "train", draw)
    return trained


def options_of(recipes, corpus, tmp_path, *more: str) -> list[str]:
    given = {"--recipes": recipes, "--dataset": corpus, "--output_dir": tmp_path / "runs"}
    given["--output"] = tmp_path / "results" / "ablations.json"
    return [str(word) for option in given.items() for word in option] + ["--jobs", "1", *more]


def test_runs_are_measured_on_validation_and_not_repeated(recipes, drawn_for_trained, corpus, tmp_path):
    """The corpus has no test split here: who reads one fails. Killed and started again, only what is missing runs."""
    splits = ["--test_split", "none", "--emotion_dataset", corpus]
    first = options_of(recipes, corpus, tmp_path, "--seeds", "1", "--variants", "no_audio_audio", *splits)
    ablations.main(first)
    assert drawn_for_trained == ["base-0", "no_audio_audio-0"]
    report = ablations.main(options_of(recipes, corpus, tmp_path, "--seeds", "2", *splits))
    assert drawn_for_trained[2:] == ["no_context_layers-0", "base-1", "no_context_layers-1", "no_audio_audio-1"]
    assert load_json(tmp_path / "results" / "ablations.json")["results"] == report["results"]
    assert_finite(report["results"])
    assert (tmp_path / "results" / "ablations.png").stat().st_size > 0
    assert list(report["results"]["base"]) == list(ablations.MEASURES) == list(tables.ABLATIONS)
    same, other = report["results"]["variants"]["no_audio_audio"], report["results"]["variants"]["no_context_layers"]
    for figures in same.values():  # drawn alike, whatever the weight of a loss
        assert figures["difference"] == {"estimate": 0, "low": 0, "high": 0, "seeds": [0, 0]}
    assert any(figures["difference"]["estimate"] for figures in other.values())
    changed = yaml.safe_load(recipes.read_text())
    changed["base"]["max_steps"] = 3
    recipes.write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(ValueError, match="other options"):
        ablations.main(first)


def test_a_variant_is_a_training_of_its_own(recipes, corpus, tmp_path, monkeypatch):
    """What the process is told makes a run with the recipe's settings; one that fails is named with its log."""
    found = ablations.read_recipes(str(recipes), ["no_context_layers"])
    assert list(found) == ["base", "no_context_layers"]
    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs, "EXAMPLES", tmp_path)
        with pytest.raises(RuntimeError, match=r"code 2.*log\.txt"):
            ablation_runs.train(tmp_path / "broken", found["base"])
    told = {}

    def in_this_process(command, env, **options):
        told.update(env)
        pretrain.main(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablation_runs.subprocess, "run", in_this_process)
    folder = tmp_path / "run"
    ablation_runs.train(folder, found["no_context_layers"] | {"dataset": corpus, "seed": 3})
    model = CalmForPreTraining.from_pretrained(folder)
    assert (model.config.audio_config.num_context_layers, model.config.audio_config.hidden_size) == (0, 32)
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert (kept["seed"], kept["max_steps"], kept["stage"]) == (3, 2, "align")
    assert told["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("name", [name for name in changes.CHANGES if not hasattr(discriminant, CHANGED[name])])
def test_a_change_trains_and_ends_with_its_run(name, recipes, corpus, tmp_path):
    """What it replaces is another training; and the package is itself again."""
    base = ablations.read_recipes(str(recipes), ["no_audio_audio"])["base"] | {"dataset": corpus}
    base.pop("script")
    pooling, told = changes.CalmAudioPooling.forward, {}
    for change in (None, name):
        folder = tmp_path / str(change)
        with changes.changed(change):
            options = base | {"output_dir": str(folder), "logging_steps": 1}
            pretrain.main([word for key, value in options.items() for word in (f"--{key}", str(value))])
        told[change] = [step["loss"] for step in load_json(folder / "trainer_state.json")["log_history"][:2]]
    assert told[None] != told[name]
    assert changes.CalmAudioPooling.forward is pooling and pretrain.SPEC_AUGMENT is not None
    with pytest.raises(ValueError, match="no change 'nothing'; there are .*mean_pooling"):
        changes.main(["nothing", "pretrain.py"])


def test_a_changed_training_is_a_process_of_the_change(recipes, tmp_path, monkeypatch):
    found = yaml.safe_load(recipes.read_text())
    found["variants"] = {"mean_pooling": {"change": "mean_pooling"}, "other": {"change": "nothing"}}
    recipes.write_text(yaml.safe_dump(found, sort_keys=False))
    with pytest.raises(ValueError, match="has the changes .*'nothing'.*there are"):
        ablations.read_recipes(str(recipes), [])
    commands = []

    def note(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablation_runs.subprocess, "run", note)
    base = found["base"] | {"script": "pretrain.py"}
    ablation_runs.train(tmp_path / "run", base | found["variants"]["mean_pooling"])
    assert commands[0][1:4] == [str(ablation_runs.CHANGES_SCRIPT), "mean_pooling", "pretrain.py"]
    assert not {"change", "script"} & set(yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()))


def test_classifiers_are_ablated_too(aligned, corpus, tmp_path, monkeypatch):
    """By the answers of the classifier itself, to validation clips; a model that is missing is told at once."""
    base = {
        "model": aligned,
        "modalities": "audio",
        "linear_probe": True,
        "fit_classifier": True,
        "num_train_epochs": 0,
    }
    variants = {"no_augmentation": {"augment": False}, "one_pass": {"change": "one_pass"}}
    file = tmp_path / "recipes.yaml"
    file.write_text(yaml.safe_dump({"script": "finetune.py", "base": base, "variants": variants}, sort_keys=False))

    def in_this_process(command, env, **options):
        if command[1] == str(ablation_runs.CHANGES_SCRIPT):
            changes.main(command[2:])
        else:
            finetune.main(command[2:])
        return subprocess.CompletedProcess(command, 0)

    # Not of all modules: git is a process too.
    monkeypatch.setattr(ablation_runs, "subprocess", SimpleNamespace(run=in_this_process, STDOUT=subprocess.STDOUT))
    one_by_one = contextlib.nullcontext(SimpleNamespace(map=map))  # a training takes signals: not in a thread
    monkeypatch.setattr(ablations, "ThreadPoolExecutor", lambda jobs: one_by_one)
    report = ablations.main(options_of(file, corpus, tmp_path, "--seeds", "1"))
    found = report["results"]
    assert list(found["base"]) == ["unweighted_average_recall"] and list(found["variants"]) == list(variants)
    told = load_json(tmp_path / "runs" / "base-0" / "results.json")["validation"]["unweighted_average_recall"]
    assert found["base"]["unweighted_average_recall"]["mean"] == pytest.approx(told)
    assert found["variants"]["one_pass"]["unweighted_average_recall"]["difference"]["seeds"]
    for wrong, message in (
        ({"script": "evaluate.py", "base": base}, "names the script 'evaluate.py'; there are .*finetune.py"),
        ({"base": base | {"label_column": "arousal"}}, r"sets \['label_column'\], which are options of ablations.py"),
    ):
        file.write_text(yaml.safe_dump({"variants": {}} | wrong))
        with pytest.raises(ValueError, match=message):
            ablations.main(options_of(file, corpus, tmp_path, "--seeds", "1"))


def test_data_that_are_not_there_are_told_before_any_training(recipes, drawn_for_trained, corpus, tmp_path):
    """The variant that needs them would end the others after an hour."""
    found = yaml.safe_load(recipes.read_text())
    found["variants"]["with_more"] = {"added_datasets": [str(tmp_path / "words"), corpus]}
    recipes.write_text(yaml.safe_dump(found, sort_keys=False))
    with pytest.raises(ValueError, match=r"words'\] are not there.*--until words"):
        ablations.main(options_of(recipes, corpus, tmp_path, "--seeds", "1"))
    assert drawn_for_trained == []


def test_the_recipes_of_the_repository_are_options_of_pretraining(tmp_path):
    """A misspelt one would fail hours later; and every variant differs from the base."""
    classifiers = ablations.read_recipes(str(ablations.CONFIGS / "classifier_ablations.yaml"), [])
    recipes = ablations.read_recipes(str(ablations.CONFIGS / "ablations.yaml"), [])
    for found, kinds in (
        (recipes, (pretrain.PretrainingArguments, CalmTrainingArguments)),
        (classifiers, (finetune.FinetuningArguments, CalmTrainingArguments, DataArguments)),
    ):
        known = {action.dest for action in HfArgumentParser(kinds)._actions} | {"script", "change"}
        for name, recipe in found.items():
            assert set(recipe) <= known
            assert name == "base" or recipe != found["base"]
    assert recipes["no_context_layers"]["audio_config"]["num_context_layers"] == 0
    switched = {option for recipe in recipes.values() for option in recipe if option.endswith("_loss_weight")}
    objectives = ("audio_text", "audio_audio", "transcript", "masked_language", "masked_acoustic")
    assert switched == {f"{name}_loss_weight" for name in objectives}
    empty = tmp_path / "empty.yaml"
    empty.write_text("base: {stage: align}\nvariants: {alike: }")
    with pytest.raises(ValueError, match=r"variants \['alike'\] .*options of their own"):
        ablations.read_recipes(str(empty), [])
    with pytest.raises(ValueError, match="no variants.*nothing.*no_audio_text"):
        ablations.read_recipes(str(ablations.CONFIGS / "ablations.yaml"), ["nothing"])


def test_measures_of_facts_are_those_of_the_whole():
    """An interval that resamples facts must be one of the figure that the metrics give."""
    generator = np.random.default_rng(0)
    similarity, relevant = generator.normal(size=(40, 15)), np.eye(15, dtype=bool)[generator.integers(15, size=40)]
    expected = retrieval_metrics(similarity, relevant)
    ranks = 1 + (similarity >= similarity[relevant][:, None]).sum(1, keepdims=True) - 1
    for title, (fact, metric) in ablations.MEASURES.items():
        if fact == "ranks":
            assert metric(ranks) == pytest.approx(expected[title.removeprefix("audio_to_text_")])
    labels, predictions = generator.integers(3, size=(2, 40))
    found = ablations.MEASURES["unweighted_average_recall"].metric(np.stack((labels, predictions), axis=1))
    assert found == unweighted_average_recall(labels, predictions)


def test_a_difference_is_paired():
    """Seeds of one number are compared, and clips that are hard for both cancel out."""
    hard = np.arange(60)[:, None] % 2 * 20
    base = [{"ranks": (hard + 2).tolist()}, {"ranks": (hard + 1).tolist()}]
    worse = [{"ranks": (hard + 2).tolist()}, {"ranks": (hard + 2).tolist()}]
    found = ablations.summarize({"base": base, "worse": worse})
    recall = found["variants"]["worse"]["audio_to_text_recall@1"]
    assert found["base"]["audio_to_text_recall@1"]["seeds"] == [0, 0.5]
    assert recall["difference"]["seeds"] == [0, -0.5] and recall["difference"]["estimate"] == -0.25
    assert recall["difference"]["high"] < 0
    assert found["base"]["audio_to_text_recall@1"]["standard_deviation"] == pytest.approx(0.5 / np.sqrt(2))
