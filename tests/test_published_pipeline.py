"""The pipeline away from home: saved, loaded where the packages are not installed, and as the README shows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from pipeline_helpers import TEXTS, same
from transformers import pipeline

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification
from processing import AudioTextClassificationPipeline

TASK = "audio-text-classification"
README = Path(__file__).resolve().parents[1] / "README.md"

ELSEWHERE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_calm", "processing"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from transformers import pipeline

answers = []
for folder, options in json.load(sys.stdin):
    pipe = pipeline("audio-text-classification", model=folder, trust_remote_code=True)
    assert type(pipe).__module__.startswith("transformers_modules."), type(pipe)
    pipe.save_pretrained(folder + "-again")
    again = pipeline(model=folder + "-again", trust_remote_code=True)  # the only task of that folder
    clip = {"audio": "clip.wav"}
    answers.append([type(pipe.model).__name__, pipe(clip, **options), again(clip, **options)])
json.dump(answers, sys.stdout)
"""


def test_a_saved_pipeline_works_without_the_packages(saved, noise, tmp_path):
    """Model, processor, weights of every head, decoding and resampling: all come from the folder."""
    soundfile.write(tmp_path / "clip.wav", noise(1.0), 22050)
    runs, expected = [], []
    for kind, options in (
        (CalmForSequenceClassification, {"top_k": None}),
        (CalmForPreTraining, {"candidate_texts": TEXTS}),
    ):
        pipe = pipeline(TASK, model=saved(kind)[1])
        published = str(tmp_path / f"published-{kind.__name__}")
        pipe.save_pretrained(published)
        runs.append((published, options))
        expected.append((kind.__name__, pipe({"audio": str(tmp_path / "clip.wav")}, **options)))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], input=json.dumps(runs), cwd=tmp_path, text=True, capture_output=True,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (kind, answers), (loaded, there, again) in zip(expected, json.loads(done.stdout), strict=True):
        assert loaded == kind
        same(there, answers)
        same(again, answers)


def test_a_published_folder_runs_the_installed_code(saved, clips):
    """Whoever installed the package need not trust the copy in the folder; and the copy is not run."""
    _, folder = saved()
    pipe = pipeline(TASK, model=folder)
    pipe.save_pretrained(folder)
    assert TASK in json.loads((Path(folder) / "config.json").read_text())["custom_pipelines"]
    for trust in (None, True):
        again = pipeline(TASK, model=folder, trust_remote_code=trust)
        assert type(again) is AudioTextClassificationPipeline
        assert again({"audio": clips[0]}) == pipe({"audio": clips[0]})
    with pytest.raises(ValueError, match=r"pipe.push_to_hub\(repo_id\)"):
        pipe.save_pretrained(folder, push_to_hub=True)


def test_the_example_of_the_readme(saved, noise, tmp_path, monkeypatch):
    """It runs as it stands, on checkpoints of the names it uses."""
    section = README.read_text().partition("## Pipelines")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("speech.wav", "call.wav"):
        soundfile.write(name, noise(1.0), 16000)
    named = {CalmForSequenceClassification: "runs/demo/both", CalmForPreTraining: "runs/demo/pretrain"}
    for kind, folder in named.items():
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        Path(saved(kind)[1]).rename(folder)
    scope = {}
    exec(example, scope)
    assert type(scope["classify"].model) is CalmForSequenceClassification
    assert type(scope["match"].model) is CalmForPreTraining
