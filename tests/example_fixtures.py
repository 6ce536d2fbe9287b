"""Fixtures of the tests of the example scripts: `pytest_plugins = ["example_fixtures"]`."""

from pathlib import Path

import datasets
import finetune
import pretrain
import pytest
import torch
from example_helpers import run, save_language_model, save_spectran, write_corpus


@pytest.fixture(scope="session")
def own_cache(tmp_path_factory):
    """`datasets` keeps what the tests read in a folder that goes away with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Models this small compute faster than two threads meet, above all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The folder of the runs."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="session")
def corpus(folder) -> str:
    """Three splits of the same eight clips."""
    return str(write_corpus(folder / "corpus"))


@pytest.fixture(scope="session")
def new_model(folder) -> list[str]:
    """The options of a model from scratch: a toy SpecTran before a toy BERT."""
    text_model = save_language_model(folder / "bert")
    return ["--text_model", text_model, "--audio_config", save_spectran(folder / "spectran.yaml")]


@pytest.fixture(scope="session")
def aligned(folder, corpus, new_model) -> str:
    """A run of stage `align` from scratch."""
    run(pretrain, corpus, folder / "aligned", *new_model, steps=60)
    return str(folder / "aligned")


@pytest.fixture(scope="session")
def fitted(folder, corpus, aligned) -> str:
    """A classifier of the two emotions by the audio, trained until it knows the clips by heart."""
    run(finetune, corpus, folder / "fitted", "--model", aligned, "--modalities", "audio", "--balance_classes")
    return str(folder / "fitted")
