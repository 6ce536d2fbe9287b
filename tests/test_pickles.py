"""Nobody's pickle is executed: a checkpoint, a model or a manifest may come from anywhere.

`Trainer` stores the state of a run by `torch.save`, which is a pickle; it must be read as data alone.
"""

import pickle
import shutil
import sys
from pathlib import Path

import checkpoints
import evaluate
import finetune
import pretrain
import pytest
import retrieve
import torch
from example_helpers import run
from transformers import AutoModel

from modeling_calm import CalmForPreTraining

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


class Trap:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(params=["torch.save", "pickle.dump", "torch.save of old"])
def plant(request, tmp_path):
    """`plant(file)` writes a trap in one of the forms that `torch.load` reads; afterwards it must be unsprung."""
    mark = tmp_path / "sprung"

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            if request.param == "pickle.dump":
                pickle.dump(Trap(mark), stream)
            else:
                torch.save({"state": Trap(mark)}, stream, _use_new_zipfile_serialization=request.param == "torch.save")

    write(tmp_path / "alive.pt")
    if request.param == "pickle.dump":
        pickle.loads((tmp_path / "alive.pt").read_bytes())
    else:
        torch.load(tmp_path / "alive.pt", weights_only=False)
    assert mark.exists(), "the trap does not work"
    mark.unlink()
    yield write
    assert not mark.exists(), "a pickle was executed"


@pytest.fixture(scope="module")
def stopped(corpus, new_model, tmp_path_factory) -> Path:
    """A run of two steps, saved after the first."""
    output = tmp_path_factory.mktemp("stopped") / "run"
    run(pretrain, corpus, output, *new_model, "--save_steps", "1", "--eval_steps", "1", steps=2)
    return output


@pytest.fixture
def resume(stopped, corpus, new_model, tmp_path, monkeypatch):
    """`resume(edit)`: goes on with a copy of the run, whose last checkpoint `edit` has changed."""

    def go_on(edit) -> None:
        shutil.copytree(stopped, tmp_path / "run")
        checkpoint = Path(checkpoints.last_whole_checkpoint(tmp_path / "run"))
        edit(checkpoint)
        checkpoints.seal(checkpoint)  # whoever plants a pickle can write a hash
        monkeypatch.setitem(sys.modules, "matplotlib", None)  # plots would take most of the time
        options = ["--save_steps", "1", "--eval_steps", "1", "--resume"]
        run(pretrain, corpus, tmp_path / "run", *new_model, *options, steps=3)

    return go_on


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_the_state_of_a_run_is_read_as_data(resume, plant, name):
    with pytest.raises(Exception, match="(?i)weights.only"):
        resume(lambda checkpoint: plant(checkpoint / name))


def test_pickled_options_are_not_read(resume, plant):
    resume(lambda checkpoint: plant(checkpoint / "training_args.bin"))


def test_pickled_weights_of_a_checkpoint_are_not_executed(resume, plant):
    def edit(checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").unlink()
        plant(checkpoint / "pytorch_model.bin")

    with pytest.raises(Exception, match="(?i)weights.only"):
        resume(edit)


def test_a_run_leaves_no_pickled_options(stopped):
    """`training_args.bin` is a pickle of any object: somebody would load it."""
    assert not list(stopped.rglob("training_args.bin"))


@pytest.fixture
def pickled_model(stopped, plant, tmp_path) -> str:
    """The folder of a model whose weights are a trap."""
    folder = tmp_path / "model"
    shutil.copytree(stopped, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors", "results.json"))
    plant(folder / "pytorch_model.bin")
    return str(folder)


def test_pickled_weights_of_a_model_are_refused(pickled_model, corpus, tmp_path):
    """By the classes and by every script that takes a model."""
    for load in (CalmForPreTraining.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match="model.safetensors"):
            load(pickled_model)
    with pytest.raises(OSError, match="model.safetensors"):
        evaluate.main(["--models", pickled_model, "--dataset", corpus])
    with pytest.raises(OSError, match="model.safetensors"):
        retrieve.main(["--model", pickled_model, "--recordings", corpus, "--query", "red cat"])
    for script in (pretrain, finetune):
        with pytest.raises(OSError, match="model.safetensors"):
            run(script, corpus, tmp_path / "never", "--model", pickled_model)


def test_a_pickled_language_model_is_read_as_data(new_model, plant, tmp_path):
    """Many older language models of the Hub are pickled; the library reads tensors from them and nothing else."""
    folder = tmp_path / "bert"
    shutil.copytree(new_model[1], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    plant(folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only"):
        CalmForPreTraining.from_text_pretrained(folder)


def test_the_tensors_of_a_pickled_language_model_are_taken(new_model, tmp_path):
    expected = AutoModel.from_pretrained(new_model[1]).state_dict()
    folder = tmp_path / "bert"
    shutil.copytree(new_model[1], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(expected, folder / "pytorch_model.bin")
    found = CalmForPreTraining.from_text_pretrained(folder).calm.text_model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items() if name in found)
