"""`CalmProcessor`: clips, transcripts or both become one batch, the same before and after it was saved."""

import inspect

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification, CalmModel
from processing import CalmProcessor

TEXTS = ["the cat sat on the mat", "a dog"]


def test_clips_with_transcripts(processor, noise):
    """Each side is what its own part makes of it; the keys are the arguments of the models."""
    clips = [noise(0.3), noise(0.5)]
    batch = processor(audio=clips, text=TEXTS, sampling_rate=16000, return_tensors="pt")
    audio = processor.feature_extractor(clips, sampling_rate=16000, return_tensors="pt")
    text = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    for key, value in {**audio, **text}.items():
        assert torch.equal(batch[key], value), key
    assert set(batch) == set(processor.model_input_names)
    assert torch.equal(
        processor(clips, TEXTS, sampling_rate=16000, return_tensors="pt")["input_ids"], batch["input_ids"]
    )
    for kind in (CalmModel, CalmForPreTraining, CalmForSequenceClassification):
        assert set(batch) <= set(inspect.signature(kind.forward).parameters)


def test_the_batch_goes_into_the_model(processor, config, noise):
    """The two packages agree by keys and numbers only; here they meet."""
    batch = processor(audio=[noise(0.3), noise(0.5)], text=TEXTS, sampling_rate=16000, return_tensors="pt")
    output = CalmModel(config).eval()(**batch)
    assert output.last_hidden_state.shape == (2, 8 + output.acoustic_tokens.shape[1], 24)


def test_either_side_alone(processor, noise):
    """A missing modality has no keys, so that the model is told nothing about it."""
    audio = processor(audio=noise(0.3), sampling_rate=16000, return_tensors="pt")
    assert set(audio) == {"input_features", "input_features_mask"}
    text = processor(text=TEXTS, return_tensors="pt")
    assert set(text) == {"input_ids", "attention_mask"}
    assert text["input_ids"].shape == (2, 8)
    with pytest.raises(ValueError, match="at least one input"):
        processor()


def test_one_clip_with_one_transcript(processor, noise):
    """The shortest call of the README."""
    batch = processor(audio=noise(0.3), text="the cat", sampling_rate=16000, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[2, 5, 7, 3]]
    assert len(batch["input_features"]) == 1


@pytest.mark.parametrize("texts", ["the cat", ["the cat"], ["the cat", "a dog", "go"]])
def test_unequal_numbers_are_refused(processor, noise, texts):
    """Shifted by one, every clip would be taught another clip's words."""
    count = 1 if isinstance(texts, str) else len(texts)
    with pytest.raises(ValueError, match=f"2 clips and {count} transcripts"):
        processor(audio=[noise(0.3), noise(0.5)], text=texts, sampling_rate=16000, return_tensors="pt")


def test_the_sampling_rate_is_required(processor, noise):
    with pytest.raises(ValueError, match="must be given and be 16000 Hz; it is None"):
        processor(audio=noise(0.3), text="the cat", return_tensors="pt")


def test_options_of_one_side_leave_the_other_alone(processor, noise):
    """`max_length` counts pieces of text and patches of sound: cutting one may not cut the other."""
    plain = processor(audio=noise(0.5), text=TEXTS[0], sampling_rate=16000, return_tensors="pt")
    text_cut = processor(
        audio=noise(0.5), text=TEXTS[0], sampling_rate=16000, return_tensors="pt",
        text_kwargs={"truncation": True, "max_length": 4},
    )  # fmt: skip
    assert text_cut["input_ids"].shape == (1, 4)
    assert torch.equal(text_cut["input_features"], plain["input_features"])
    audio_cut = processor(
        audio=noise(0.5), text=TEXTS[0], sampling_rate=16000, return_tensors="pt",
        audio_kwargs={"truncation": True, "max_length": 16},
    )  # fmt: skip
    assert audio_cut["input_features"].shape[1] == 16
    assert torch.equal(audio_cut["input_ids"], plain["input_ids"])


def test_pad_to_multiple_of_keeps_whole_tokens(processor, noise):
    """Tensor cores want text in eights; the sounds must still fill whole windows."""
    batch = processor(
        audio=[noise(0.3), noise(0.5)], text=TEXTS, sampling_rate=16000, return_tensors="pt", pad_to_multiple_of=3
    )
    assert batch["input_ids"].shape[1] == 9
    assert batch["input_features"].shape[1] % processor.feature_extractor.patches_per_token == 0


def test_save_and_load(processor, noise, tmp_path):
    """The processor beside a checkpoint is the only one that fits it."""
    processor.save_pretrained(tmp_path)
    options = {"audio": noise(0.5), "text": TEXTS[0], "sampling_rate": 16000, "return_tensors": "np"}
    expected = processor(**options)
    for kind in (AutoProcessor, CalmProcessor):
        loaded = kind.from_pretrained(tmp_path)
        assert type(loaded) is CalmProcessor
        assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
        for key, value in loaded(**options).items():
            np.testing.assert_array_equal(value, expected[key])


def test_a_long_transcript_is_not_cut_by_the_tokenizers_own_limit(minilm_folder, extractor, noise):
    """MiniLM's tokenizer carries `max_length` 128, which the library would also hand to the audio, as patches."""
    processor = CalmProcessor(extractor, AutoTokenizer.from_pretrained(minilm_folder))
    batch = processor(audio=noise(3), text="the " * 300, sampling_rate=16000, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 302)
    assert batch["input_features_mask"].sum() == 298 // 2 * 2


def test_the_tokenizers_own_settings_hold_for_text_alone(extractor, tokenizer, noise, recwarn):
    """A tokenizer made to pad to 12 pieces gives 12 pieces, but no clip of 12 patches; the call still wins."""
    tokenizer.init_kwargs.update(padding="max_length", max_length=12)
    processor = CalmProcessor(extractor, tokenizer)
    clips, options = [noise(0.3), noise(0.5)], {"sampling_rate": 16000, "return_tensors": "pt"}
    batch = processor(clips, TEXTS, **options)
    assert batch["input_ids"].shape == (2, 12)
    assert torch.equal(batch["input_features"], extractor(clips, **options)["input_features"])
    assert len(processor(text=TEXTS, padding=True)["input_ids"][1]) == 8
    assert len(processor(text=TEXTS, text_kwargs={"padding": "longest"})["input_ids"][1]) == 8
    tokenizer.init_kwargs.pop("padding")
    assert len(processor(text=TEXTS)["input_ids"][1]) == 8  # a length that nothing asks for
    assert not [warning for warning in recwarn if "max_length" in str(warning.message)]
    assert len(processor(text="the cat " * 9, truncation=True)["input_ids"]) == 12


def test_the_demo_tokenizer_and_language_model_agree(minilm_folder, audio_config, extractor, noise):
    """A word's id must be its row in the embeddings: the text target of "happy" is near "glad", not near "table"."""
    processor = CalmProcessor(extractor, AutoTokenizer.from_pretrained(minilm_folder))
    model = CalmModel.from_text_pretrained(minilm_folder, audio_config=audio_config)
    words = processor(text=["happy", "glad", "table"], return_tensors="pt")
    happy, glad, table = model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
    assert happy @ glad > happy @ table + 0.1


def test_no_transcripts_are_refused(processor, noise):
    with pytest.raises(ValueError, match="`text` holds no transcript"):
        processor(audio=noise(0.2), text=[], sampling_rate=16000)


def test_lengths_of_text_do_not_cut_the_audio(processor, noise):
    """128 pieces are a long text, and 128 patches are five seconds."""
    alone = processor(audio=[noise(2.0)], sampling_rate=16000, return_tensors="pt")
    both = processor(
        audio=[noise(2.0)], text=TEXTS[:1], sampling_rate=16000, return_tensors="pt", truncation=True, max_length=4
    )
    assert both["input_ids"].shape == (1, 4)
    assert both["input_features"].shape == alone["input_features"].shape
    common = processor(
        audio=[noise(2.0)], text=TEXTS[:1], sampling_rate=16000, return_tensors="pt",
        common_kwargs={"truncation": True, "max_length": 4},
    )  # fmt: skip
    assert common["input_ids"].shape == (1, 4)
    assert common["input_features"].shape == alone["input_features"].shape
    padded = processor(
        audio=[noise(2.0)], text=TEXTS[:1], sampling_rate=16000, return_tensors="pt",
        padding="max_length", max_length=12,
    )  # fmt: skip
    assert padded["input_ids"].shape == (1, 12)
    assert padded["input_features"].shape == alone["input_features"].shape
    cut = processor(
        audio=[noise(2.0)], text=TEXTS[:1], sampling_rate=16000, return_tensors="pt",
        audio_kwargs={"truncation": True, "max_length": 16},
    )  # fmt: skip
    assert cut["input_features"].shape[1] < both["input_features"].shape[1]
    assert cut["input_ids"].shape == (1, 8)
