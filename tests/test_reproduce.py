"""`make results`: what is done is not done again, what fails is named, and the steps fit the scripts they call."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import reproduce
import yaml
from options import parse_arguments
from reproduce import CORPORA, Command, Step

RECIPES = sorted((reproduce.EXAMPLES / "configs").glob("results_*.yaml"))


def script(folder: Path, name: str, text: str) -> Path:
    (folder / f"{name}.py").write_text(text)
    return folder / f"{name}.py"


def test_a_finished_command_is_not_repeated(tmp_path):
    """Hours stand behind some outputs; an interrupted `make results` is called again as it stands."""
    writer = script(tmp_path, "writer", "import sys; open(sys.argv[2], 'a').write('once')")
    output = tmp_path / "output.txt"
    step = Step("write", [Command(str(writer), {"output": str(output)}, output)])
    for _ in range(2):
        reproduce.reproduce(iter([step]), tmp_path, jobs=2)
    assert output.read_text() == "once"
    assert json.loads((tmp_path / "steps.json").read_text())["write"] > 0
    other = Step("write", [Command(str(writer), {"output": str(output), "epochs": 2}, output)])
    with pytest.raises(ValueError, match=r"write-0\.json' tells of .* other options"):
        reproduce.reproduce(iter([other]), tmp_path, jobs=2)


def test_what_an_interrupted_run_left_goes_before_it_starts_anew(tmp_path):
    """A training for a given time has not had it in one piece, and refuses a folder in use."""
    text = "import os, sys; os.mkdir(os.path.dirname(sys.argv[2])); open(sys.argv[2], 'w')"
    output = tmp_path / "run" / "output.txt"
    output.parent.mkdir()
    command = Command(str(script(tmp_path, "maker", text)), {"output": str(output)}, output, restarts=True)
    reproduce.reproduce(iter([Step("make", [command])]), tmp_path, jobs=1)
    assert output.exists()


def test_an_output_without_a_good_end_is_not_trusted(tmp_path):
    """A script may write its figures and fail at drawing them."""
    text = "import pathlib, sys; p = pathlib.Path(sys.argv[2]); known = p.exists(); p.touch(); sys.exit(not known)"
    output = tmp_path / "output.txt"
    step = Step("draw", [Command(str(script(tmp_path, "draws", text)), {"output": str(output)}, output)])
    with pytest.raises(RuntimeError, match="code 1"):
        reproduce.reproduce(iter([step]), tmp_path, jobs=1)
    assert output.exists()
    reproduce.reproduce(iter([step]), tmp_path, jobs=1)
    assert json.loads((tmp_path / "notes" / "draw-0.json").read_text())["seconds"] is not None


def test_a_command_that_fails_ends_the_run_and_names_its_log(tmp_path):
    """Going on without a part would put a table together that lacks it."""
    breaks = script(tmp_path, "breaks", "raise SystemExit('no such corpus')")
    later = tmp_path / "later.txt"
    steps = [
        Step("first", [Command(str(breaks), {}, tmp_path / "never.txt")]),
        Step("second", [Command(str(breaks), {}, later)]),
    ]
    with pytest.raises(RuntimeError, match=r"code 1; its last words stand in '.*first-0\.txt'"):
        reproduce.reproduce(iter(steps), tmp_path, jobs=1)
    assert "no such corpus" in (tmp_path / "notes" / "first-0.txt").read_text()
    assert not later.exists()


def test_a_command_that_leaves_nothing_has_failed(tmp_path):
    silent = script(tmp_path, "silent", "")
    with pytest.raises(RuntimeError, match="code 0"):
        reproduce.reproduce(iter([Step("a", [Command(str(silent), {}, tmp_path / "never")])]), tmp_path, jobs=1)


def test_without_the_corpora_it_says_so(tmp_path, capsys):
    reproduce.main(["--data", str(tmp_path), "--output", str(tmp_path / "results")])
    assert "Skipped" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_every_option_of_a_recipe_is_one_of_its_script(recipe, tmp_path, monkeypatch):
    """A misspelt one would fail after an hour; and no training reads a test split before the measurements."""
    for name in CORPORA:
        (tmp_path / name).mkdir()
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)  # for a GPU's recipe
    kinds = {
        "pretrain.py": ("pretrain", ("PretrainingArguments", "StreamingArguments", "CalmTrainingArguments")),
        "finetune.py": ("finetune", ("FinetuningArguments", "CalmTrainingArguments")),
        "evaluate.py": ("evaluate", ("EvaluationArguments",)),
        "results/pretrain_peers.py": ("pretrain_peers", ("PeerArguments", "CalmTrainingArguments")),
        "results/probes.py": ("probes", ("ProbeArguments",)),
        "results/alignment.py": ("alignment", ("AlignmentArguments",)),
        "results/robustness.py": ("robustness", ("RobustnessArguments",)),
    }
    steps = list(reproduce.steps(yaml.safe_load(recipe.read_text()), tmp_path, tmp_path / "results"))
    for command in (command for step in steps for command in step.commands if command.script in kinds):
        module, names = kinds[command.script]
        module = importlib.import_module(module)
        parse_arguments(
            *(getattr(module, name) for name in (*names, "DataArguments")),
            arguments=command.words()[2:], defaults=getattr(module, "DEFAULTS", {}),
        )  # fmt: skip
    outputs = [command.output for step in steps for command in step.commands]
    assert len(set(outputs)) == len(outputs)
    assert sys.executable == steps[0].commands[0].words()[0]
