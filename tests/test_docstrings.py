"""The examples of docstrings and README are run: what users copy works, and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import soundfile
import torch

import modeling_calm
import processing.bootstrap
import processing.metrics
import processing.retrieval
from modeling_calm import CalmForPreTraining, CalmForSequenceClassification

PACKAGES = (modeling_calm, processing)
README = Path(__file__).resolve().parents[1] / "README.md"
MODULES = [
    importlib.import_module(f"{package.__name__}.{entry.name}")
    for package in PACKAGES
    for entry in pkgutil.iter_modules(package.__path__)
    if entry.name != "pipeline_calm"  # its example is about a trained model; see test_pipeline_calm.py
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_run(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(module).failed == 0


def test_everything_public_has_an_example():
    """Somebody who asks `help()` sees at once how a thing is called."""
    homes = [*PACKAGES, processing.audio, processing.bootstrap, processing.metrics, processing.retrieval]
    public = {f"{home.__name__}.{name}": getattr(home, name) for home in homes for name in home.__all__}
    assert len(public) > 25
    assert [name for name, value in public.items() if ">>> " not in (value.__doc__ or "")] == []


@pytest.fixture
def workspace(config, processor, tone, tmp_path, monkeypatch):
    """A folder in which the README's names stand for toys: two checkpoints and a recording."""
    monkeypatch.chdir(tmp_path)
    classifier = CalmForSequenceClassification(config)
    torch.nn.init.normal_(classifier.classifier.bias)
    for model, folder in ((CalmForPreTraining(config), "runs/demo/pretrain"), (classifier, "runs/demo/both")):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    for name in ("speech.wav", "call.wav"):
        soundfile.write(name, tone(440), 16000)


BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readme_runs(workspace, number):
    """The first thing that is tried."""
    exec(compile(BLOCKS[number], f"README.md, block {number + 1}", "exec"), {})
