"""Eight clips learned by heart, from the waveform: if that fails, nothing else can work."""

import numpy as np
import pytest
import torch
from model_helpers import ALIGN, INPUTS, quiet

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification


@pytest.fixture
def eight_clips(processor):
    """Melodies of eight notes with a transcript each, through the processor."""
    generator = np.random.default_rng(0)
    time = np.arange(16000 * 0.08) / 16000
    clips = [
        np.concatenate([0.2 * np.sin(2 * np.pi * note * time) for note in generator.uniform(100, 6000, 8)])
        for _ in range(8)
    ]
    texts = ["the cat sat", "a dog ran", "red tree", "blue mat", "one two", "three four five", "stop", "go left"]
    return processor(audio=clips, text=texts, sampling_rate=16000, return_tensors="pt")


def fit(model, batch, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()


def test_eight_clips_find_their_words(config, eight_clips):
    """The way from waveform to loss in one truth: if eight clips cannot be learned by heart, nothing can."""
    for name, value in ALIGN.items():
        setattr(config, name, value)
    model = CalmForPreTraining(quiet(config))
    model.calm.text_model.requires_grad_(False)
    fit(model, eight_clips, 150)
    output = model(**eight_clips)
    assert output.audio_text_loss < 0.1
    assert output.logits_per_audio.argmax(-1).tolist() == list(range(8))
    assert output.logits_per_text.argmax(-1).tolist() == list(range(8))


@pytest.mark.parametrize("given", [INPUTS, INPUTS[2:], INPUTS[:2]])
def test_eight_clips_find_their_class(config, eight_clips, given):
    """With both modalities and with either."""
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    model = CalmForSequenceClassification(quiet(config))
    inputs = {key: eight_clips[key] for key in given}
    fit(model, {**inputs, "labels": labels}, 100)
    output = model(**inputs, labels=labels)
    assert output.loss < 0.1
    assert output.logits.argmax(-1).tolist() == labels.tolist()
