"""Options from YAML and the command line, the folder of a run, and JSON that any reader reads."""

import json
from dataclasses import fields

import numpy as np
import pytest
import yaml
from checkpoints import seal
from evaluate import EvaluationArguments
from options import CalmTrainingArguments, parse_arguments, start_run, write_json, write_options
from pretrain import DEFAULTS, PretrainingArguments
from speech_data import DataArguments
from transformers import TrainingArguments

KINDS = (PretrainingArguments, DataArguments, CalmTrainingArguments)


def parse(*arguments: str, folder: str = "unused") -> tuple:
    return parse_arguments(*KINDS, arguments=["--output_dir", folder, *arguments], defaults=DEFAULTS)


@pytest.fixture
def config(tmp_path):
    """`config(text)`: a YAML file as the two words of a command line."""

    def write(text: str) -> list[str]:
        file = tmp_path / "options.yaml"
        file.write_text(text)
        return ["--config", str(file)]

    return write


def test_the_command_line_wins_over_yaml_and_yaml_over_the_defaults(config):
    file = config("num_train_epochs: 7\nseed: 3\naugment: false\nstage: fuse\n")
    pretraining, _, training = parse(*file, "--seed", "5", "--stage=align")
    assert (training.num_train_epochs, training.seed, pretraining.stage) == (7, 5, "align")
    assert pretraining.augment is False
    assert training.learning_rate == DEFAULTS["learning_rate"]


def test_yaml_values_become_what_the_option_takes(config):
    """YAML reads 1e-3 as text, for want of a point."""
    pretraining, data, training = parse(
        *config(
            "learning_rate: 1e-3\ntext_learning_rate: 2e-5\nmodel: null\nearly_stopping_patience: 4\n"
            "lr_scheduler_kwargs: {num_cycles: 2}\ntrain_split: train[:90%]\nskip_bad_audio: true\n"
        )
    )
    assert (training.learning_rate, training.text_learning_rate) == (1e-3, 2e-5)
    assert pretraining.model is None and training.early_stopping_patience == 4
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert data.train_split == "train[:90%]" and data.skip_bad_audio is True


@pytest.mark.parametrize(("text", "models"), [("models: runs/a", ["runs/a"]), ("models: [a, b]", ["a", "b"])])
def test_yaml_gives_one_value_or_a_list(config, text, models):
    """A text is no list of letters."""
    (arguments,) = parse_arguments(EvaluationArguments, arguments=config(text))
    assert arguments.models == models


@pytest.mark.parametrize("text", ["learning_rat: 1", "learning_rat: 1\nlearning_rate: 1"])
def test_an_unknown_key_of_yaml_is_refused(config, text):
    with pytest.raises(ValueError, match=r"options.yaml' sets \['learning_rat'\], which no option is called"):
        parse(*config(text))


def test_a_yaml_file_that_is_no_mapping_is_refused(config):
    with pytest.raises(ValueError, match="options.yaml' is not a mapping"):
        parse(*config("- learning_rate"))


@pytest.mark.parametrize(("text", "reason"), [("stage: fues", "invalid choice"), ("seed: many", "invalid int")])
def test_yaml_values_are_checked_like_the_command_line(config, capsys, text, reason):
    with pytest.raises(SystemExit):
        parse(*config(text))
    assert reason in capsys.readouterr().err


def test_a_run_repeats_from_its_config(tmp_path):
    """Every option, also one whose value is the library's default but not the script's."""
    given = parse(
        "--learning_rate", "5e-5", "--num_train_epochs", "3", "--stage", "fuse", "--no_augment", "--train_split",
        "train[:90%]", "--lr_scheduler_kwargs", '{"num_cycles": 0.4}', "--masked_language_loss_weight", "0.5",
        "--early_stopping_patience", "2", "--eval_strategy", "steps", "--save_strategy", "steps", "--save_steps", "7",
        "--eval_steps", "7", "--hub_token", "secret", "--resume", folder=str(tmp_path),
    )  # fmt: skip
    pretraining, data, training = given
    write_options(training, DEFAULTS, pretraining, data)
    text = (tmp_path / "config.yaml").read_text()
    assert "secret" not in text and "resume" not in yaml.safe_load(text)
    training.resume, training.hub_token = False, None
    again = parse_arguments(*KINDS, arguments=["--config", str(tmp_path / "config.yaml")], defaults=DEFAULTS)
    assert again[:2] == given[:2]
    for entry in fields(training):
        value = getattr(training, entry.name)
        if entry.init and isinstance(value, (bool, int, float, str, dict, type(None))):
            assert getattr(again[2], entry.name) == value, entry.name


@pytest.mark.parametrize("report_to", ["wandb", "all", "none"])
def test_the_tracker_of_a_run_stands_in_its_config(tmp_path, monkeypatch, report_to):
    """A run that goes on from its config.yaml would be logged no more."""
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb"])
    training = parse("--report_to", report_to, folder=str(tmp_path))[2]
    write_options(training, DEFAULTS)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()).get("report_to", "none") == report_to


def test_what_was_switched_off_stays_off(tmp_path, config):
    """False where the library would decide by itself, and null instead of the script's own default."""
    given = ("--metric_for_best_model", "audio_to_text_median_rank", "--greater_is_better", "false")
    training = parse(*config("save_total_limit: null"), *given, folder=str(tmp_path))[2]
    write_options(training, DEFAULTS)
    again = parse("--config", str(tmp_path / "config.yaml"), folder=str(tmp_path))[2]
    for found in (training, again):
        assert found.greater_is_better is False and found.save_total_limit is None


@pytest.mark.parametrize("trace", ["config.yaml", "config.json", "checkpoint-3/model.safetensors"])
def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path, trace):
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_text("precious")
    with pytest.raises(ValueError, match="already holds a run.*--output_dir.*--resume"):
        start_run(parse(folder=str(tmp_path))[2])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.read_text() for file in files] == ["precious"]


def test_resuming_takes_the_last_whole_checkpoint(tmp_path):
    assert start_run(parse("--resume", folder=str(tmp_path / "new"))[2]) is None
    assert not (tmp_path / "new").exists()
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
        seal(tmp_path / name)
    assert start_run(parse("--resume", folder=str(tmp_path))[2]) == str(tmp_path / "checkpoint-10")


def test_a_checkpoint_that_a_node_does_not_see_is_refused(tmp_path, monkeypatch):
    """Beginning anew beside a rank that goes on, it would average the weights of two runs."""
    training = parse("--resume", folder=str(tmp_path))[2]
    monkeypatch.setattr(type(training), "process_index", 1)
    monkeypatch.setattr(type(training), "world_size", 2)
    found = [str(tmp_path / "checkpoint-3")]
    monkeypatch.setattr("options.broadcast_object_list", lambda objects: objects.__setitem__(slice(None), found))
    with pytest.raises(ValueError, match="Rank 1 does not see '.*checkpoint-3'.*all nodes share `--output_dir`"):
        start_run(training)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    seal(tmp_path / "checkpoint-3")
    assert start_run(training) == found[0]


def test_of_several_gpus_one_process_uses_one(monkeypatch, caplog):
    """Split over them by the library, a batch would lose its negatives."""
    found = TrainingArguments.__post_init__
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: (found(self), setattr(self, "_n_gpu", 4)))
    assert parse()[2].n_gpu == 1
    assert "One of 4 GPUs is used" in caplog.text


def test_no_workers_need_no_other_option():
    """The default keeps the workers between epochs, which torch refuses where there are none."""
    assert parse()[2].dataloader_persistent_workers
    assert not parse("--dataloader_num_workers", "0")[2].dataloader_persistent_workers


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_does_not_round_the_model(name):
    """The library casts the model itself, and a run saves it after its last evaluation."""
    with pytest.raises(ValueError, match="round the model itself"):
        CalmTrainingArguments(**{name: True})


def test_there_is_one_answer_to_sigterm():
    with pytest.raises(ValueError, match="SIGTERM is answered by a checkpoint anyway.*--enable_jit_checkpoint"):
        parse("--enable_jit_checkpoint", "true")


def test_an_audio_configuration_that_is_not_there():
    with pytest.raises(ValueError, match=r"--audio_config huge.* tiny, small and base"):
        parse("--audio_config", "huge")[0].spectran()


def test_json_holds_numpy_and_no_nan(tmp_path):
    values = {"a": np.float32(0.5), "b": np.arange(2), 3: [float("nan"), np.inf, (np.int64(7), None, True)], "d": "é"}
    write_json(tmp_path / "new" / "results.json", values)
    found = json.loads((tmp_path / "new" / "results.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": 0.5, "b": [0, 1], "3": [None, None, [7, None, True]], "d": "é"}
