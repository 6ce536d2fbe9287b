"""Runs that are interrupted: killed, terminated, torn while saving, out of disk. What goes on ends like a whole run.

"Equal" is bit for bit, in float32 on the CPU. Runs are forked from this process, which has imported everything.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import finetune
import numpy as np
import pretrain
import pytest
import transformers
from example_helpers import load_json, run, save_language_model, save_spectran
from transformers import TrainerCallback

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


class Interrupt(TrainerCallback):
    """Sends a signal to the training process at the end of a step, before what is due there is saved."""

    def __init__(self, step: int, number: int = signal.SIGKILL):
        self.step, self.number = step, number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def forked(task, *arguments) -> int:
    """The exit code of a process that runs `task(*arguments)`; minus the signal's number if one ended it."""
    process = multiprocessing.get_context("fork").Process(target=task, args=arguments)
    process.start()
    process.join(120)
    assert not process.is_alive(), "the run hangs"
    return process.exitcode


def train(options: list, output: Path, *more: str, script=pretrain, callbacks=(), patch=None, steps: int = 10) -> int:
    """A run in a process of its own; `callbacks` join the Trainer's, `patch()` is called there first."""

    def task():
        sys.modules["matplotlib"] = None  # plots would take most of the time
        transformers.trainer.DEFAULT_CALLBACKS += list(callbacks)
        if patch is not None:
            patch()
        run(script, *options[:1], output, *options[1:], *more, steps=steps)

    return forked(task)


def outcome(output: Path) -> dict:
    """What must be equal at the end of two runs: weights, optimizer, best checkpoint, evaluations, early stopping."""
    checkpoint = max(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    state = load_json(output / "trainer_state.json")
    kept = load_json(checkpoint / "trainer_state.json")
    timed = ("runtime", "per_second", "gib")
    return {
        "model": (output / "model.safetensors").read_bytes(),
        "checkpoint": checkpoint.name,
        "last weights": (checkpoint / "model.safetensors").read_bytes(),
        "optimizer": (checkpoint / "optimizer.pt").read_bytes(),
        "best": (state["best_metric"], state["best_global_step"]),
        "callbacks": kept["stateful_callbacks"],
        "log": [
            {name: value for name, value in entry.items() if not any(word in name for word in timed)}
            for entry in state["log_history"]
            if "train_loss" not in entry
        ],
    }


def assert_equal(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert found[name] == value, name


@pytest.fixture(scope="module")
def options(corpus, tmp_path_factory) -> list[str]:
    """Corpus and options of a run of four steps an epoch, with dropout and augmentation, saved every three steps."""
    folder = tmp_path_factory.mktemp("models")
    text_model = save_language_model(folder / "bert", dropout=0.1)
    spectran = save_spectran(folder / "spectran.yaml", dropout=0.1)
    return [
        corpus, "--text_model", text_model, "--audio_config", spectran, "--per_device_train_batch_size", "2",
        "--augment", "true", "--save_steps", "3", "--eval_steps", "3", "--save_total_limit", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(options, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert train(options, output) == 0
    return outcome(output)


@pytest.mark.parametrize("step", np.random.default_rng(0).choice(np.arange(1, 10), 2, replace=False).tolist())
def test_a_killed_run_goes_on_to_the_same_end(options, uninterrupted, tmp_path, step):
    """A lost random state, a row seen twice or a schedule begun anew would change the weights."""
    assert train(options, tmp_path / "run", callbacks=[Interrupt(step)]) == -signal.SIGKILL
    assert train(options, tmp_path / "run", "--resume") == 0
    assert_equal(outcome(tmp_path / "run"), uninterrupted)


RECIPES = {
    "workers": (pretrain, ["--dataloader_num_workers", "2"]),
    "one worker, by length, accumulation": (
        pretrain,
        ["--dataloader_num_workers", "1", "--gradient_accumulation_steps", "2", "--train_sampling_strategy",
         "group_by_length", "--length_column_name", "duration"],
    ),
    "fuse": (
        pretrain,
        ["--stage", "fuse", "--train_word_embeddings", "--gradient_accumulation_steps", "3", "--save_steps", "2",
         "--eval_steps", "2", "--dataloader_num_workers", "1"],
    ),
    "by epochs": (
        pretrain,
        ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--save_total_limit", "1",
         "--early_stopping_patience", "1", "--max_steps", "-1", "--num_train_epochs", "4"],
    ),
    "classifier": (
        finetune,
        ["--save_steps", "2", "--eval_steps", "2", "--early_stopping_patience", "3", "--dataloader_num_workers", "2",
         "--per_device_train_batch_size", "3"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_killed_many_times_goes_on_to_the_same_end(options, tmp_path, recipe):
    """Whatever the recipe, at whatever steps."""
    script, more = RECIPES[recipe]
    steps = 12
    assert train(options, tmp_path / "whole", *more, script=script, steps=steps) == 0
    expected = outcome(tmp_path / "whole")
    for trial in range(3):
        output, resume = tmp_path / f"run-{trial}", []
        for step in np.sort(np.random.default_rng(trial).choice(np.arange(1, steps), 3, replace=False)):
            code = train(options, output, *more, *resume, script=script, callbacks=[Interrupt(step)], steps=steps)
            assert code in (-signal.SIGKILL, 0)  # early stopping may come first
            resume = ["--resume"]
        assert train(options, output, *more, *resume, script=script, steps=steps) == 0
        assert_equal(outcome(output), expected)
