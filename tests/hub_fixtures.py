"""Fixtures of the tests of the Hub: what is pushed, what is pulled. `pytest_plugins = ["hub_fixtures"]`."""

import json
import os
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
from transformers import AutoModel, AutoProcessor
from without_package import outputs

import modeling_calm
from modeling_calm import CalmForPreTraining, CalmForSequenceClassification, CalmModel

TESTS = Path(__file__).parent


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
        ("CalmModel", "owner/base", {}),
        ("CalmAudioModel", "owner/spectran", {}),
        ("private", "owner/private", {"revision": "v1"}),
        ("unknown branch", "owner/model", {"revision": "v2"}),
        ("published", "owner/published", {}),
        ("published over a Trainer's", "owner/trained", {}),
        ("Trainer's", "owner/trained", {"revision": hub.repositories["owner/trained"].commits[-2].sha}),
    ):
        jobs.append({"name": f"hub, {name}", "source": source, "options": options})
    for auto, source in (("AutoModel", "owner/model"), ("AutoModelForSequenceClassification", "owner/published")):
        name, folder = f"hub, saved again by {auto}", str(work / f"again-{auto}")
        jobs.append({"name": name, "source": source, "by": auto, "resave": folder})
    jobs += [{"name": f"card of {name}", "source": f"owner/{name}", "card": True} for name in ("published", "private")]
    jobs[-1]["options"] = {"revision": "v1"}
    (work / "jobs.json").write_text(json.dumps(jobs))
    run_script("without_package", hub, work)
    return json.loads((work / "report.json").read_text()), load_file(work / "report.safetensors")


@pytest.fixture(scope="module")
def reference(inputs, work, aligned, fitted):
    """`reference(run, class)`: what a class of the package computes from a run, or its processor."""

    @cache
    def compute(run: str, kind: str) -> dict[str, torch.Tensor]:
        folder = {"aligned": aligned, "fitted": fitted}.get(run, work / run)
        return outputs(getattr(modeling_calm, kind, AutoProcessor).from_pretrained(folder), inputs)

    return compute
