"""Saving, loading, and starting from a pretrained language model: no weight is lost, none comes back random."""

import logging

import pytest
import torch
from model_helpers import close
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    BertModel,
)

from modeling_calm import CalmAudioModel, CalmConfig, CalmForPreTraining, CalmForSequenceClassification, CalmModel
from processing import CalmFeatureExtractor, CalmProcessor


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        (CalmModel, AutoModel),
        (CalmForPreTraining, AutoModelForPreTraining),
        (CalmForSequenceClassification, AutoModelForSequenceClassification),
        (CalmForSequenceClassification, AutoModelForAudioClassification),
    ],
)
def test_saving_and_loading_are_exact(kind, auto, config, batch, tmp_path):
    """A weight that is not saved comes back random, and scores collapse to chance without a word."""
    model = kind(config).eval()
    with torch.no_grad():
        for value in filter(torch.is_floating_point, (*model.parameters(), *model.buffers())):
            value.add_(0.01)  # so that nothing can come back by being initialised alike
    model.save_pretrained(tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is kind
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    expected, actual = model(**batch), loaded(**batch)
    assert list(actual) == list(expected)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("kind", [CalmModel, CalmForPreTraining, CalmForSequenceClassification])
def test_every_auto_class_reads_the_folder(kind, config, processor, tmp_path):
    """Whichever class was saved, before its processor or after it; `test_hub.py` does so without the package."""
    parts = [kind(config), processor]
    for part in parts if kind is CalmModel else parts[::-1]:
        part.save_pretrained(tmp_path)
    for auto, expected in (
        (AutoConfig, CalmConfig),
        (AutoModel, CalmModel),
        (AutoModelForPreTraining, CalmForPreTraining),
        (AutoModelForSequenceClassification, CalmForSequenceClassification),
        (AutoModelForAudioClassification, CalmForSequenceClassification),
        (AutoFeatureExtractor, CalmFeatureExtractor),
        (AutoTokenizer, type(processor.tokenizer)),
        (AutoProcessor, CalmProcessor),
    ):
        assert type(auto.from_pretrained(tmp_path)) is expected


def test_spectran_saves_and_loads_alone(audio_config, batch, tmp_path):
    model = CalmAudioModel(audio_config).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is CalmAudioModel
    assert torch.equal(loaded.mask_embedding, model.mask_embedding)
    assert torch.equal(loaded(batch["input_features"])[0], model(batch["input_features"])[0])


def test_a_pretraining_checkpoint_serves_every_model(config, batch, tmp_path, caplog):
    """Features, classification and further pretraining all start from it; a head that is missing is named loudly."""
    model = CalmForPreTraining(config).eval()
    model.save_pretrained(tmp_path)
    expected = model.calm(**batch)
    loaded, report = CalmModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(loaded(**batch).last_hidden_state, expected.last_hidden_state)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        classifier, report = CalmForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert "classifier.weight" in caplog.text
    assert classifier(**batch).logits.shape == (4, 5)
    assert torch.equal(classifier.calm(**batch).last_hidden_state, expected.last_hidden_state)


def test_heads_that_are_missing_are_initialised(config, tmp_path):
    """Models are built without memory and filled from the file: what the file lacks must not stay uninitialised."""
    config.logit_scale_init_value = 1.25
    CalmModel(config).save_pretrained(tmp_path)
    model, report = CalmForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    heads = {"logit_scale", "lm_head", "acoustic_head", "reader"}
    assert {name.split(".")[0] for name in report["missing_keys"]} == heads
    assert model.logit_scale == model.reader.logit_scale == 1.25
    assert 0 < model.reader.blank_embedding.std() < 0.1
    assert 0 < model.acoustic_head.weight.std() < 0.1
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.bias.eq(0).all()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_what_has_no_use_asks_for_no_gradient_after_loading(config, tmp_path, weight):
    """An idle parameter stops distributed training, and loading makes every parameter anew."""
    config.transcript_loss_weight = weight
    model = CalmForPreTraining(config)
    model.save_pretrained(tmp_path)
    for one in (model, CalmForPreTraining.from_pretrained(tmp_path)):
        assert {parameter.requires_grad for parameter in one.reader.parameters()} == {bool(weight)}


def test_the_language_head_shares_the_word_embeddings_or_not(config, tmp_path):
    """Tied, they are one parameter also after loading; untied, two."""
    for config.tie_word_embeddings in (True, False):
        model = CalmForPreTraining(config)
        model.save_pretrained(tmp_path / str(config.tie_word_embeddings))
        for one in (model, CalmForPreTraining.from_pretrained(tmp_path / str(config.tie_word_embeddings))):
            tied = one.lm_head.decoder.weight is one.calm.text_model.get_input_embeddings().weight
            assert tied is config.tie_word_embeddings


@pytest.fixture
def language_model(text_config, tokenizer, tmp_path):
    """A pretrained language model with its tokenizer, and its folder."""
    model = BertModel(text_config)
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return model, tmp_path / "bert"


@pytest.mark.parametrize("kind", [CalmModel, CalmForPreTraining, CalmForSequenceClassification])
def test_a_model_starts_from_a_pretrained_language_model(kind, language_model, audio_config, tmp_path):
    """Its weights arrive unchanged, and the aligned space has its origin in the middle of its vocabulary."""
    reference, folder = language_model
    model = kind.from_text_pretrained(folder, audio_config=audio_config, audio_text_loss_weight=0.5)
    base = model if kind is CalmModel else model.calm
    for name, value in base.text_model.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name
    close(base.word_embedding_mean, reference.get_input_embeddings().weight.mean(0))
    assert model.config.special_token_ids == [0, 1, 2, 3, 4]
    assert model.config.audio_text_loss_weight == 0.5
    assert model.config.audio_config.hidden_size == 32
    model.save_pretrained(tmp_path / "calm")
    loaded = kind.from_pretrained(tmp_path / "calm")
    assert str(folder) not in (tmp_path / "calm" / "config.json").read_text()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_language_model_starts_with_its_own_options(language_model, audio_config):
    """What belongs to the loading goes there, what belongs to the configuration goes there, a typo goes nowhere."""
    _, folder = language_model
    model = CalmModel.from_text_pretrained(
        folder, audio_config=audio_config, dtype=torch.bfloat16, local_files_only=True, special_token_ids=[2, 3]
    )
    assert model.dtype == torch.bfloat16 and not model.training
    assert CalmModel.from_text_pretrained(folder, audio_config, torch_dtype=torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match="trained before it is quantised"):
        CalmModel.from_text_pretrained(folder, audio_config, quantization_config=object())
    assert model.config.special_token_ids == [2, 3]
    with pytest.raises(ValueError, match="audio_text_loss_weight"):
        CalmModel.from_text_pretrained(folder, audio_config=audio_config, audio_text_loss_wieght=0.5)


def test_the_origin_of_the_aligned_space_moves_only_when_told(config, tmp_path):
    """Loading brings it back as saved, whatever the embeddings have become; told to, it moves, also after loading."""
    model = CalmModel(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)  # training
    model.save_pretrained(tmp_path)
    loaded = CalmModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.word_embedding_mean, model.word_embedding_mean)
    loaded.describe_vocabulary()
    close(loaded.word_embedding_mean, model.word_embedding_mean + 1)
    close(loaded.word_embedding_norm, model.word_embedding_norm)


def test_the_demo_language_model_loads(minilm_folder, audio_config):
    """The README's first command stands on it."""
    model = CalmModel.from_text_pretrained(minilm_folder, audio_config=audio_config, local_files_only=True)
    assert model.config.hidden_size == 384
    assert model.config.special_token_ids == [0, 100, 101, 102, 103]
    assert model.word_embedding_mean.norm() > 0.1
