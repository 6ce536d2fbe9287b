"""`CalmAudioConfig` and `CalmConfig`: what cannot work is refused at once; files mean what they say."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AlbertConfig, AutoConfig, DistilBertConfig

from modeling_calm import CalmAudioConfig, CalmConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_mel_bins": 80, "patch_bins": 30}, r"`num_mel_bins` \(80\) must be a positive multiple of `patch_bins`"),
        ({"token_frames": 25}, r"`token_frames` \(25\) must be a positive multiple of `patch_frames` \(4\)"),
        ({"hidden_size": 100}, r"`hidden_size` \(100\) must be a positive multiple of `num_attention_heads`"),
        ({"patch_bins": 0}, "positive multiple"),
        ({"num_mel_bins": 0}, "positive multiple"),
        ({"patch_frames": -4}, "positive multiple"),
        ({"hidden_size": 36, "num_attention_heads": 12}, "must be even; it is 3"),
        ({"num_context_layers": -1}, "cannot be negative"),
        ({"num_hidden_layers": -1}, "cannot be negative"),
        ({"hop_length": 0}, "must be positive"),
        ({"sliding_window": 0}, "must be positive"),
        ({"sampling_rate": -16000}, "must be positive"),
    ],
)
def test_a_geometry_that_does_not_tile_is_refused(wrong, message):
    """Found in the forward pass instead, it would be a reshape error that names no setting."""
    with pytest.raises(StrictDataclassError, match=message):
        CalmAudioConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"audio_text_loss_weight": -1}, "`audio_text_loss_weight` cannot be negative"),
        ({"masked_acoustic_loss_weight": -0.1}, "`masked_acoustic_loss_weight` cannot be negative"),
        ({"contrastive_chunk_size": 0}, "`contrastive_chunk_size` must be at least 1"),
        ({"num_labels": 3, "class_weights": [1.0, 2.0]}, "2 entries for 3 labels"),
        ({"problem_type": "single_label"}, "`problem_type` must be one of"),
        ({"regression_loss": "mae"}, "regression_loss"),
        ({"audio_config": {"token_frames": 25}}, "`token_frames`"),
    ],
)
def test_objectives_that_cannot_be_computed_are_refused(wrong, message):
    """A misspelt problem would train a classifier by regression without a word."""
    with pytest.raises(StrictDataclassError, match=message):
        CalmConfig(**wrong)


def test_derived_quantities_follow_from_the_units():
    """32 frames of 10 ms are 8 steps of 40 ms; 80 bins are 2 bands of 40: the model's shapes hang on these numbers."""
    config = CalmAudioConfig(patch_frames=4, patch_bins=40, token_frames=32)
    assert config.patch_dim == 160
    assert config.patches_per_token == 16
    assert config.seconds_per_token == pytest.approx(0.32)
    telephone = CalmAudioConfig(sampling_rate=8000, hop_length=80)
    assert telephone.seconds_per_token == pytest.approx(0.24)


def test_the_defaults_stand_for_three_to_five_tokens_a_second():
    """An acoustic token is to be about as long as a word; the paper's claim of alignment with words rests on it."""
    assert 2 <= 1 / CalmAudioConfig().seconds_per_token <= 5


def test_the_width_is_the_language_models(audio_config):
    """The heads read `config.hidden_size`; ALBERT's embeddings are narrower, DistilBERT calls it `dim`."""
    assert CalmConfig(text_config=AlbertConfig(embedding_size=16, hidden_size=48)).hidden_size == 48
    assert CalmConfig(audio_config=audio_config, text_config=DistilBertConfig(dim=64)).hidden_size == 64


def test_sub_configurations_may_be_dicts():
    """A YAML file and `config.json` hold dicts; they must mean the same as the classes."""
    config = CalmConfig(
        audio_config={"hidden_size": 384, "num_context_layers": 0}, text_config={"model_type": "distilbert", "dim": 64}
    )
    assert type(config.audio_config) is CalmAudioConfig
    assert config.audio_config == CalmAudioConfig(hidden_size=384, num_context_layers=0)
    assert type(config.text_config) is DistilBertConfig
    assert config.text_config.dim == 64
    assert CalmConfig().text_config.model_type == "bert"
    assert CalmConfig().audio_config == CalmAudioConfig()


def meaning(config) -> dict:
    """Everything but the folder it came from."""
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


def test_save_and_load_are_exact(audio_config, text_config, tmp_path):
    """A setting lost on the way would make a checkpoint another model."""
    config = CalmConfig(
        audio_config=audio_config, text_config=text_config, audio_text_loss_weight=0.5, audio_audio_loss_weight=0,
        masked_language_loss_weight=2, masked_acoustic_loss_weight=0.25, logit_scale_init_value=1.5,
        contrastive_chunk_size=7, special_token_ids=[0, 2, 3], classifier_dropout=0.3, class_weights=[1, 2.5, 4],
        regression_loss="ccc", tie_word_embeddings=False, initializer_range=0.01, problem_type="regression",
        id2label={0: "valence", 1: "arousal", 2: "dominance"},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for loaded in (CalmConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is CalmConfig
        assert meaning(loaded) == meaning(config)
    assert meaning(CalmAudioConfig.from_pretrained(tmp_path)) == meaning(config.audio_config)


def test_a_checkpoint_can_be_given_other_labels(config, tmp_path):
    """Fine-tuning starts from a pretraining checkpoint and brings its own classes and their weights."""
    config.save_pretrained(tmp_path)
    loaded = CalmConfig.from_pretrained(tmp_path, num_labels=3, class_weights=[1, 2, 3], problem_type="regression")
    assert (loaded.num_labels, loaded.class_weights) == (3, [1, 2, 3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"contrastive_chunk_size": 0}, "at least 1"),
        ({"masked_language_loss_weight": -1}, "cannot be negative"),
        ({"num_labels": 3, "class_weights": [1.0, 2.0]}, "2 entries for 3 labels"),
    ],
)
def test_what_is_given_when_loading_is_checked_too(config, tmp_path, given, message):
    """The library puts keywords on a configuration that was checked without them."""
    config.save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=message):
        CalmConfig.from_pretrained(tmp_path, **given)
    with pytest.raises(StrictDataclassError, match="`token_frames` .7. must be a positive multiple"):
        CalmAudioConfig.from_pretrained(tmp_path, token_frames=7)


def test_every_auto_class_is_named_in_every_file(config, audio_config):
    """The library names only the class that was saved: a pretraining checkpoint would not load as `AutoModel`."""
    kinds = {"AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoModelForSequenceClassification"}
    assert set(config.auto_map) == kinds | {"AutoModelForAudioClassification"}
    assert set(audio_config.auto_map) == {"AutoConfig", "AutoModel"}
    given = CalmConfig(auto_map={"AutoProcessor": "processing_calm.CalmProcessor"}).auto_map
    assert given == config.auto_map | {"AutoProcessor": "processing_calm.CalmProcessor"}
