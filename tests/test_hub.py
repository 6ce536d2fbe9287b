"""Checkpoints on the Hub: pushed by every way, and pulled where this project is not installed.

The client is the real one, in two subprocesses: one pushes, the other, which cannot import this project, loads what
was pushed and what was saved in folders. The Hub is `hub_stub.HubStub`.
"""

import re

import pytest
import torch
from test_shipped_code import SHIPPED

pytest_plugins = ["example_fixtures", "hub_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

CLASSES = {
    "AutoConfig": "CalmConfig",
    "AutoModel": "CalmModel",
    "AutoModelForPreTraining": "CalmForPreTraining",
    "AutoModelForSequenceClassification": "CalmForSequenceClassification",
    "AutoModelForAudioClassification": "CalmForSequenceClassification",
    "AutoFeatureExtractor": "CalmFeatureExtractor",
    "AutoProcessor": "CalmProcessor",
}
# By name of the source: the reference, and the Auto classes whose head it holds.
PRETRAINING = {"AutoModelForPreTraining"}
CLASSIFIER = {"AutoModelForSequenceClassification", "AutoModelForAudioClassification"}
SOURCES = {
    "folder of CalmModel": ("aligned", set()),
    "folder of CalmForPreTraining": ("aligned", PRETRAINING),
    "folder of CalmForSequenceClassification": ("fitted", CLASSIFIER),
    "folder of publish.py": ("fitted", CLASSIFIER),
    "hub, older commit": ("aligned", PRETRAINING),
    "hub, newest commit": ("newer", PRETRAINING),
    "hub, branch of shards": ("newer", PRETRAINING),
    "hub, CalmModel": ("newer", set()),
    "hub, saved again by AutoModel": ("newer", set()),
    "hub, saved again by AutoModelForSequenceClassification": ("fitted", CLASSIFIER),
    "hub, private": ("aligned", PRETRAINING),
    "hub, published": ("fitted", CLASSIFIER),
    "hub, published over a Trainer's": ("fitted", CLASSIFIER),
    "hub, Trainer's": ("trained-reference", CLASSIFIER),
}


def test_every_auto_class_loads_what_a_machine_without_the_package_finds(pulled):
    """From folders and from the Hub, whichever class was saved."""
    report, _ = pulled
    for source in SOURCES:
        loaded = dict(report[source])
        tokenizer = loaded.pop("AutoTokenizer")
        assert tokenizer.startswith("transformers.") and "Bert" in tokenizer, source
        assert loaded == {auto: f"transformers_modules.{kind}" for auto, kind in CLASSES.items()}, source


@pytest.mark.parametrize("source", SOURCES)
def test_what_was_loaded_computes_what_was_saved(source, pulled, reference):
    """Not one weight differs, and the processor makes the same batch."""
    _, tensors = pulled
    run, heads = SOURCES[source]
    for auto, kind in CLASSES.items():
        if auto == "AutoProcessor":
            expected = reference("aligned", kind)
        elif auto in heads:
            expected = reference(run, kind)
        elif auto.startswith("AutoModel"):  # a head may be new, what it stands on is not
            expected = reference(run, "CalmModel")
        else:
            continue
        for name, value in expected.items():
            assert torch.equal(tensors[f"{source} {auto} {name}"], value), (auto, name)


@pytest.mark.parametrize("source", ["folder of CalmAudioModel", "hub, CalmAudioModel"])
def test_spectran_loads_alone_without_the_package(source, pulled, reference):
    """It has a feature extractor, and neither a tokenizer nor heads."""
    report, tensors = pulled
    loaded = report[source]
    assert loaded["AutoConfig"] == "transformers_modules.CalmAudioConfig"
    assert loaded["AutoModel"] == "transformers_modules.CalmAudioModel"
    assert loaded["AutoFeatureExtractor"] == "transformers_modules.CalmFeatureExtractor"
    expected = reference("CalmAudioModel", "CalmAudioModel")
    assert torch.equal(tensors[f"{source} AutoModel states"], expected["states"])


def test_the_hub_and_the_installed_package_go_together(pushed):
    """Where the project is imported its classes are taken, and nobody need trust any code."""
    loaded = dict(pushed["with package"])
    loaded.pop("AutoTokenizer")
    assert {auto: name.rpartition(".")[2] for auto, name in loaded.items()} == CLASSES
    assert {name.partition(".")[0] for name in loaded.values()} == {"modeling_calm", "processing"}


def test_a_private_repository_and_an_unknown_branch_are_refused(pulled):
    """As the library refuses any other model."""
    report, _ = pulled
    for source, reason in (
        ("hub, private, of a stranger", "404 Client Error|not a valid model identifier"),
        ("hub, private, of nobody", "401 Client Error|not a valid model identifier"),
        ("hub, unknown branch", "not a valid git identifier"),
    ):
        for auto, said in report[source].items():
            assert re.match(f"(OSError|RepositoryNotFoundError).*({reason})", said, re.DOTALL), (auto, said)


def test_pushing_takes_the_options_of_the_library(hub, pushed):
    model = hub.repositories["owner/model"]
    assert model.at("main").message == "Move it" and not model.private
    assert set(model.branches) == {"main", "sharded"}
    assert "model.safetensors.index.json" in model.at("sharded").files
    assert hub.repositories["owner/private"].private and hub.repositories["owner/trained"].private


def test_what_publish_pushes(hub, pushed, fitted):
    """One commit of weights, processor, code and card, and nothing that a run leaves besides."""
    published = hub.repositories["owner/published"]
    assert pushed["published"].endswith(published.commits[-1].sha) and len(published.commits) == 2
    assert set(published.at("main").files) == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json", *(file.name for file in SHIPPED),
    }  # fmt: skip
    private = hub.repositories["owner/private"]
    assert private.at("v1").message == "First" and set(private.at("main").files) == {".gitattributes"}


def test_publishing_leaves_nothing_of_an_earlier_commit_to_be_loaded(hub, pushed):
    """The library prefers `model.safetensors` to the shards beside it, and nobody shall unpickle anything."""
    trained = hub.repositories["owner/trained"]
    before, after = trained.commits[-2].files, trained.at("main").files
    assert {"training_args.bin", "model.safetensors"} <= set(before)
    assert "model.safetensors.index.json" in after and "model.safetensors" not in after
    assert not [name for name in after if name.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        ("public", "ValueError: 'owner/published' exists and is public"),
        ("foreign", "ValueError: Nothing was published. The token may not write to 'owner/published'.*hf auth whoami"),
        ("unknown token", "ValueError: Nothing was published. The Hub does not know this token.*hf auth login"),
        ("no token", "ValueError: There is no token of the Hub.*hf auth login"),
        ("no network", "ConnectionError: Nothing was published: http://127.0.0.1:9 cannot be reached.*--output_dir"),
    ],
)
def test_why_nothing_was_published(hub, pushed, attempt, reason):
    assert re.match(reason, pushed[attempt])
    assert len(hub.repositories["owner/published"].commits) == 2


def test_the_examples_of_a_card_run_without_the_package(pulled):
    """They are what a reader of the Hub copies first: the pipeline, then the Auto classes."""
    report, _ = pulled
    classified = report["card of published"]
    # All labels, then the best, from the voice that it was trained on.
    assert len(re.findall(r"'label': '(?:calm|noisy)', 'score'", classified)) == 3
    assert "{0: 'calm', 1: 'noisy'} tensor(" in classified
    assert "'label': 'enter six two four', 'score'" in report["card of private"]
    assert "torch.Size([1, 5, 32])" in report["card of private"]
