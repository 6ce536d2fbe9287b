"""Runs that are interrupted: killed, terminated, torn while saving, out of disk. What goes on ends like a whole run.

"Equal" is bit for bit, in float32 on the CPU.
"""

import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import finetune
import numpy as np
import pretrain
import pytest
import torch
import transformers
from accelerate import PartialState
from checkpoints import CheckpointError, last_whole_checkpoint
from example_helpers import load_json, run, save_language_model, save_spectran
from process_helpers import forked, forked_ranks
from transformers import TrainerCallback

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


class Interrupt(TrainerCallback):
    """Something happens at the end of a step, before what is due there; by default the process is killed."""

    def __init__(self, step: int, task=lambda: os.kill(os.getpid(), signal.SIGKILL)):
        self.step, self.task = step, task

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.task()


def terminate() -> None:
    """SIGTERM from elsewhere to this process and its workers."""
    workers = [process.pid for process in multiprocessing.active_children()]
    subprocess.run(["kill", "-TERM", *map(str, [os.getpid(), *workers])], check=True)


def train(options: list, output: Path, *more: str, script=pretrain, callbacks=(), patch=None, steps: int = 10) -> int:
    """The exit code of a run in a process of its own; `callbacks` join the Trainer's, `patch()` is called first."""

    def task():
        transformers.trainer.DEFAULT_CALLBACKS += list(callbacks)
        if patch is not None:
            patch()
        run(script, *options[:1], output, *options[1:], *more, steps=steps)

    return forked(task)


def train_on_two_ranks(options: list, output: Path, *more: str, callback: TrainerCallback | None = None) -> list[int]:
    """The exit codes of a run of two ranks, of which rank 1 has the callback."""

    def task(rank):
        if callback is not None and rank == 1:
            transformers.trainer.DEFAULT_CALLBACKS.append(callback)
        run(pretrain, *options[:1], output, *options[1:], *more, "--use_cpu", "true", steps=6)
        assert PartialState().num_processes == 2

    return forked_ranks(task)


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


def assert_equal(found: dict, expected: dict, *names: str) -> None:
    for name in names or expected:
        assert found[name] == expected[name], name


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


@pytest.mark.parametrize("step", [4, 5])
def test_a_terminated_run_is_saved_and_says_so(options, uninterrupted, tmp_path, step, capfd):
    """A scheduler sends SIGTERM to every process, workers too, and looks at the exit code. Step 4 ends an epoch."""
    workers = ["--dataloader_num_workers", "1", "--save_total_limit", "1"]
    stop = Interrupt(step, terminate)
    assert train(options, tmp_path / "run", *workers, callbacks=[stop]) == 143
    assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / f"checkpoint-{step}")
    assert f"SIGTERM: step {step} is saved; go on by `--resume`" in capfd.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()
    assert train(options, tmp_path / "run", *workers, "--resume") == 0
    assert_equal(outcome(tmp_path / "run"), uninterrupted, "model", "best", "log")


def test_all_ranks_stop_after_the_same_step(options, tmp_path):
    """One rank alone is told; in the middle of its second epoch every rank must go on with the rows it had before."""
    options = [*options, "--dataloader_num_workers", "1"]
    stop = Interrupt(3, terminate)
    assert train_on_two_ranks(options, tmp_path / "whole") == [0, 0]
    assert train_on_two_ranks(options, tmp_path / "run", callback=stop) == [143, 143]
    assert train_on_two_ranks(options, tmp_path / "run", "--resume") == [0, 0]
    assert_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


class InterruptAfterSaving(Interrupt):
    """The process is killed when the checkpoint of a step is whole."""

    def on_step_end(self, args, state, control, **kwargs):
        pass

    on_save = Interrupt.on_step_end


STILL = ["--learning_rate", "0", "--text_learning_rate", "0", "--head_learning_rate", "0"]  # so no result gets better
ENDS = {
    "in the middle of an epoch": (10, []),
    "early": (
        8,
        [*STILL, "--eval_strategy", "epoch", "--save_strategy", "epoch", "--early_stopping_patience", "1",
         "--max_steps", "-1", "--num_train_epochs", "5"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_run_killed_when_it_was_over_trains_no_more(options, tmp_path, end):
    """The library would train for another step, or on until the next evaluation."""
    last, more = ENDS[end]
    assert train(options, tmp_path / "whole", *more) == 0
    assert (tmp_path / "whole" / f"checkpoint-{last}").is_dir()
    assert train(options, tmp_path / "run", *more, callbacks=[InterruptAfterSaving(last)]) == -signal.SIGKILL
    assert train(options, tmp_path / "run", *more, "--resume") == 0
    assert_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


MOMENTS = {
    "weights half written": (transformers.PreTrainedModel, "save_pretrained", "checkpoint-3"),
    "optimizer half written": (torch, "save", "checkpoint-3"),
    "all written, not sealed": (checkpoints, "seal", "checkpoint-3"),
    "older ones not removed": (checkpoints, "rotate_checkpoints", "checkpoint-6"),
}


@pytest.mark.parametrize(
    "moment",
    ["weights half written", "all written, not sealed"]
    + [
        pytest.param(moment, marks=pytest.mark.slow) for moment in ("optimizer half written", "older ones not removed")
    ],
)
def test_a_run_killed_while_it_saves_goes_on_from_the_last_whole_checkpoint(
    options, uninterrupted, tmp_path, moment, caplog
):
    """With one checkpoint kept, a newer one that is not whole must not have cost the older one."""
    owner, name, expected = MOMENTS[moment]
    options = [*options, "--save_total_limit", "1"]
    assert train(options, tmp_path / "run", patch=lambda: kill_in(owner, name, "checkpoint-6")) == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoint-6").is_dir()
    assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / expected)
    if expected == "checkpoint-3":
        assert "checkpoint-6' is not used: it has no SHA256SUMS" in caplog.text
        assert (tmp_path / "run" / "_torn-checkpoint-6").is_dir()
    assert train(options, tmp_path / "run", "--resume") == 0
    assert_equal(outcome(tmp_path / "run"), uninterrupted, "model", "best", "log")


def kill_in(owner, name: str, checkpoint: str) -> None:
    """Let the process die in the middle of `owner.name` for a checkpoint, half of the last file written."""
    function = getattr(owner, name)

    def die(*arguments, **options):
        target = [Path(value) for value in arguments if isinstance(value, (str, Path)) and checkpoint in str(value)]
        if name == "rotate_checkpoints":
            target = [folder for folder in Path(arguments[0]).glob(checkpoint)]
        if target and name not in ("seal", "rotate_checkpoints"):
            function(*arguments, **options)
            file = target[0] if target[0].is_file() else target[0] / "model.safetensors"
            os.truncate(file, file.stat().st_size // 2)
        if target:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, die)


def write_checkpoints(run: Path, *steps: int) -> list[Path]:
    """Small sealed checkpoints."""
    folders = [run / f"checkpoint-{step}" for step in steps]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (folder / name).write_bytes(f"{name} of {folder.name}".encode())
        checkpoints.seal(folder)
    return folders


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", checkpoints.SEAL])
@pytest.mark.parametrize("damage", ["cut short", "emptied", "zeroed", "scrambled", "lost"])
def test_a_damaged_checkpoint_is_reported_and_set_aside(tmp_path, name, damage, caplog):
    """Zeros where the weights were load without an error."""
    last = write_checkpoints(tmp_path, 9, 10)[-1]
    file = last / name
    size = file.stat().st_size
    contents = {
        "cut short": file.read_bytes()[: size // 2], "emptied": b"", "zeroed": bytes(size), "lost": b"",
        "scrambled": np.random.default_rng(0).bytes(size),
    }  # fmt: skip
    file.write_bytes(contents[damage])
    if damage == "lost":
        file.unlink()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert name in caplog.text and "_torn-checkpoint-10" in caplog.text
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_torn-checkpoint-10", "checkpoint-9"]


def test_a_seal_is_that_of_coreutils(tmp_path):
    """Anyone can check a checkpoint without this repository; a report that was added later does no harm."""
    (folder,) = write_checkpoints(tmp_path, 3)
    (folder / "evaluation.json").write_text("{}")
    assert checkpoints.find_damage(folder) is None
    lines = [line.split("  ") for line in (folder / checkpoints.SEAL).read_text().splitlines()]
    assert {name: digest for digest, name in lines} == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json")
    }


def test_without_a_whole_checkpoint_a_run_begins_anew(tmp_path, caplog):
    (folder,) = write_checkpoints(tmp_path, 3)
    (folder / checkpoints.SEAL).unlink()
    assert last_whole_checkpoint(tmp_path) is None
    assert "checkpoint-3' is not used" in caplog.text


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(options, tmp_path, capfd):
    """The system refuses to write more than 40 kB into a file, which is less than the weights take."""
    full = Interrupt(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY)))
    options = [*options, "--save_total_limit", "1"]
    assert train(options, tmp_path / "run", callbacks=[full]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    for words in ("checkpoint-6' could not be written", "File too large", "GiB are free", "checkpoint-3'", "--resume"):
        assert words in error
    assert not (tmp_path / "run" / "checkpoint-6").exists()
    assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")


def test_a_full_disk_at_the_end_leaves_no_torn_weights_in_the_run(tmp_path):
    """Beside a config.json they would be taken for the result."""
    write_checkpoints(tmp_path, 3)
    told = "No space left.*last whole checkpoint is '.*checkpoint-3'"
    with pytest.raises(CheckpointError, match=told), checkpoints.writing(tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(torch.OutOfMemoryError), checkpoints.writing(tmp_path / "checkpoint-3"):
        raise torch.OutOfMemoryError("of the device")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


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


@pytest.mark.slow
def test_sigterm_to_the_launcher_of_two_ranks(options, tmp_path):
    """`accelerate launch` hands the signal on; that its own exit code is 1 is told in examples/README.md."""
    script = [str(Path(pretrain.__file__).resolve()), "--dataset", *options, "--use_cpu", "true"]
    script += ["--dataloader_num_workers", "2", "--logging_steps", "1", "--eval_strategy", "steps", "--save_strategy"]
    script += ["steps", "--disable_tqdm", "true", "--max_steps", "20", "--output_dir"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0"]

    def start(output: str, *more: str) -> subprocess.Popen:
        stream = (tmp_path / f"{output}.log").open("a")
        return subprocess.Popen(
            [*launcher, *script, str(tmp_path / output), *more], stdout=stream, stderr=subprocess.STDOUT
        )

    assert start("whole").wait(300) == 0
    process = start("run")
    while "'loss'" not in (tmp_path / "run.log").read_text():
        assert process.poll() is None, (tmp_path / "run.log").read_text()
        time.sleep(0.2)
    process.terminate()
    assert process.wait(60) != 0
    assert (tmp_path / "run.log").read_text().count("is saved; go on by `--resume`") == 2
    assert last_whole_checkpoint(tmp_path / "run") is not None
    assert start("run", "--resume").wait(300) == 0
    assert_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
