"""Checkpoints on the Hub: pushed by every way, and pulled where this project is not installed.

The client is the real one, in two subprocesses: one pushes, the other, which cannot import this project, loads what
was pushed and what was saved in folders. The Hub is `hub_stub.HubStub`.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import publish
import pytest
import soundfile
import torch
from example_helpers import waveform
from hub_stub import STRANGER, HubStub
from safetensors.torch import load_file, save_file
from test_shipped_code import SHIPPED
from transformers import AutoModel, AutoProcessor
from without_package import outputs

import modeling_calm
from modeling_calm import CalmForPreTraining, CalmForSequenceClassification, CalmModel

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

TESTS = Path(__file__).parent
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
PRETRAINING, CLASSIFIER = (
    {"AutoModelForPreTraining"},
    {f"AutoModelFor{x}Classification" for x in ("Sequence", "Audio")},
)
SOURCES = {
    "folder of CalmModel": ("aligned", set()),
    "folder of CalmForPreTraining": ("aligned", PRETRAINING),
    "folder of CalmForSequenceClassification": ("fitted", CLASSIFIER),
    "folder of publish.py": ("fitted", CLASSIFIER),
    "hub, older commit": ("aligned", PRETRAINING),
    "hub, newest commit": ("newer", PRETRAINING),
    "hub, branch of shards": ("newer", PRETRAINING),
    "hub, saved again": ("newer", set()),
    "hub, private": ("aligned", PRETRAINING),
    "hub, published": ("fitted", CLASSIFIER),
    "hub, published over a Trainer's": ("fitted", CLASSIFIER),
    "hub, Trainer's": ("trained-reference", CLASSIFIER),
}


@pytest.fixture(scope="module")
def hub():
    with HubStub() as stub:
        yield stub


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


def run_script(name: str, hub: HubStub, work: Path, *arguments, token: str | None = None) -> None:
    """A script of this folder with the stub for the Hub, far from the repository."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    given = {} if token is None else {"token": token}
    environment |= hub.environment(work / name, **given)
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, str(TESTS / f"{name}.py"), str(work), *map(str, arguments)]
    finished = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def pushed(hub, work, aligned, fitted) -> dict:
    """What `push_everything.py` reports."""
    run_script("push_everything", hub, work, aligned, fitted)
    return json.loads((work / "pushed.json").read_text())


@pytest.fixture(scope="module")
def inputs(work) -> dict[str, torch.Tensor]:
    """Patches, words and a waveform, also as `speech.wav`."""
    clip = waveform(0)
    soundfile.write(work / "speech.wav", clip, 16000)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "input_features": torch.randn(2, 12, 32, generator=generator),
        "input_ids": torch.randint(5, 10, (2, 4), generator=generator),
        "waveform": torch.from_numpy(clip),
    }
    save_file(drawn, work / "inputs.safetensors")
    return drawn


@pytest.fixture(scope="module")
def folders(work, aligned, fitted) -> dict[str, Path]:
    """Every class saved with its processor, the one before the other or after it."""
    processor = AutoProcessor.from_pretrained(aligned)
    kinds = {CalmModel: aligned, CalmForPreTraining: aligned, CalmForSequenceClassification: fitted}
    found = {kind.__name__: work / kind.__name__ for kind in kinds}
    for kind, run in kinds.items():
        parts = [kind.from_pretrained(run), processor]
        for part in parts[::-1] if kind is CalmForPreTraining else parts:
            part.save_pretrained(work / kind.__name__)
    AutoModel.from_pretrained(aligned).audio_model.save_pretrained(work / "CalmAudioModel")
    processor.feature_extractor.save_pretrained(work / "CalmAudioModel")
    options = ["--model", fitted, "--repo_id", "owner/x", "--license", "mit", "--training_data", "Tones: CC0"]
    publish.main([*options, "--output_dir", str(work / "looked-at")])
    return found | {"CalmAudioModel": work / "CalmAudioModel", "publish.py": work / "looked-at"}


@pytest.fixture(scope="module")
def pulled(hub, work, pushed, inputs, folders) -> tuple[dict, dict[str, torch.Tensor]]:
    """What `without_package.py` reports of all sources, and its tensors."""
    jobs = [{"name": f"folder of {name}", "source": str(folder)} for name, folder in folders.items()]
    # Refusals come first: what has been downloaded once is loaded from the disk.
    for name, source, options in (
        ("private, of a stranger", "owner/private", {"revision": "v1", "token": STRANGER}),
        ("private, of nobody", "owner/private", {"revision": "v1", "token": False}),
        ("older commit", "owner/model", {"revision": pushed["older"]}),
        ("newest commit", "owner/model", {}),
        ("branch of shards", "owner/model", {"revision": "sharded"}),
        ("private", "owner/private", {"revision": "v1"}),
        ("unknown branch", "owner/model", {"revision": "v2"}),
        ("published", "owner/published", {}),
        ("published over a Trainer's", "owner/trained", {}),
        ("Trainer's", "owner/trained", {"revision": hub.repositories["owner/trained"].commits[-2].sha}),
    ):
        jobs.append({"name": f"hub, {name}", "source": source, "options": options})
    jobs.append({"name": "hub, saved again", "source": "owner/model", "resave": str(work / "again")})
    jobs += [{"name": f"card of {name}", "source": f"owner/{name}", "card": True} for name in ("published", "private")]
    jobs[-1]["options"] = {"revision": "v1"}
    (work / "jobs.json").write_text(json.dumps(jobs))
    run_script("without_package", hub, work)
    return json.loads((work / "report.json").read_text()), load_file(work / "report.safetensors")


def test_every_auto_class_loads_what_a_machine_without_the_package_finds(pulled):
    """From folders and from the Hub, whichever class was saved."""
    report, _ = pulled
    for source in SOURCES:
        loaded = dict(report[source])
        tokenizer = loaded.pop("AutoTokenizer")
        assert tokenizer.startswith("transformers.") and "Bert" in tokenizer, source
        assert loaded == {auto: f"transformers_modules.{kind}" for auto, kind in CLASSES.items()}, source


def test_spectran_loads_alone_without_the_package(pulled, folders, inputs):
    """It has a feature extractor, and neither a tokenizer nor heads."""
    report, tensors = pulled
    loaded = report["folder of CalmAudioModel"]
    assert loaded["AutoConfig"] == "transformers_modules.CalmAudioConfig"
    assert loaded["AutoModel"] == "transformers_modules.CalmAudioModel"
    assert loaded["AutoFeatureExtractor"] == "transformers_modules.CalmFeatureExtractor"
    expected = outputs(AutoModel.from_pretrained(folders["CalmAudioModel"]), inputs)
    assert torch.equal(tensors["folder of CalmAudioModel AutoModel states"], expected["states"])


@pytest.fixture(scope="module")
def reference(inputs, work, aligned, fitted):
    """`reference(run, class)`: what a class of the package computes from a run, or its processor."""

    @cache
    def compute(run: str, kind: str) -> dict[str, torch.Tensor]:
        folder = {"aligned": aligned, "fitted": fitted}.get(run, work / run)
        return outputs(getattr(modeling_calm, kind, AutoProcessor).from_pretrained(folder), inputs)

    return compute


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
    assert len(re.findall(r"'label': '(?:calm|noisy)', 'score'", classified)) == 4
    assert "{0: 'calm', 1: 'noisy'} tensor(" in classified
    assert "'label': 'enter six two four', 'score'" in report["card of private"]
    assert "torch.Size([1, 5, 32])" in report["card of private"]
