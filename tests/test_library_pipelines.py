"""The pipelines that transformers brings along run on CALM's checkpoints."""

import pytest
from pipeline_helpers import TEXTS, named, same
from transformers import pipeline

from modeling_calm import CalmForPreTraining


def test_audio_classification(saved, processor, clips):
    """A voice is classified by what the folder holds, and a longer neighbour in the batch does not change it."""
    model, folder = saved()
    pipe = pipeline("audio-classification", model=folder)
    single = [pipe(clip) for clip in clips]
    inputs = processor(audio=clips[0], sampling_rate=16000, return_tensors="pt")
    same(single[0], named(model(**inputs).logits[0].softmax(-1)))
    for batch_size in (2, 4):
        for answers, alone in zip(pipe(clips, batch_size=batch_size), single, strict=True):
            same(answers, alone)
    assert [len(answers) for answers in pipe(clips, top_k=2)] == [2] * 4


def test_text_classification(saved, processor):
    """So are words."""
    model, folder = saved()
    pipe = pipeline("text-classification", model=folder)
    single = [pipe(text, top_k=None) for text in TEXTS]
    same(single[0], named(model(**processor(text=TEXTS[0], return_tensors="pt")).logits[0].softmax(-1)))
    for answers, alone in zip(pipe(TEXTS, batch_size=3, top_k=None), single, strict=True):
        same(answers, alone)


def test_zero_shot_audio_classification(saved, processor, clips):
    """It sends one clip with any number of texts. By path it loads a class without `logit_scale`, which says so."""
    model, folder = saved(CalmForPreTraining)
    parts = {"feature_extractor": processor.feature_extractor, "tokenizer": processor.tokenizer}
    pipe = pipeline("zero-shot-audio-classification", model=model, **parts)
    options = {"candidate_labels": TEXTS, "hypothesis_template": "{}"}
    single = [pipe(clip, **options) for clip in clips]
    inputs = processor(audio=clips, text=TEXTS, sampling_rate=16000, return_tensors="pt")
    for scores, answers in zip(model(**inputs).logits_per_audio.softmax(-1), single, strict=True):
        same(answers, named(scores, TEXTS))
    for answers, alone in zip(pipe(clips, batch_size=3, **options), single, strict=True):
        same(answers, alone)
    with pytest.raises(ValueError, match="1 clips and 4 texts.*CalmForPreTraining"):
        pipeline("zero-shot-audio-classification", model=folder)(clips[0], **options)
