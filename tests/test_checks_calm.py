"""`modeling_calm.checks_calm`: a typo is refused, and nothing that belongs in a `config.json`."""

import json

import pytest
from transformers import AutoConfig

from modeling_calm import CalmAudioConfig, CalmConfig
from modeling_calm.checks_calm import CONFIG_VERSION


@pytest.mark.parametrize(
    ("kind", "typo", "nearest"),
    [
        (CalmConfig, {"audio_text_los_weight": 2.0}, "audio_text_loss_weight"),
        (CalmConfig, {"audio_config": {"num_context_layer": 0}}, "num_context_layers"),
        (CalmAudioConfig, {"patch_bin": 40}, "patch_bins"),
    ],
)
def test_a_typo_is_refused_with_the_nearest_name(kind, typo, nearest):
    """The library stores unknown settings silently, and a run of hours would use the default instead."""
    with pytest.raises(ValueError, match=f"has no setting.*Did you mean `{nearest}`"):
        kind(**typo)


@pytest.mark.parametrize("kind", [CalmConfig, CalmAudioConfig])
def test_a_newer_format_asks_for_a_newer_package(kind, tmp_path):
    """Its new settings are no typos: the user must hear of the version, in a file as in the code."""
    newer = {"config_version": CONFIG_VERSION + 1, "a_setting_of_the_future": True}
    with pytest.raises(ValueError, match="Upgrade the package"):
        kind(**newer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind.model_type, **newer}))
    with pytest.raises(ValueError, match="Upgrade the package"):
        AutoConfig.from_pretrained(tmp_path)


def test_what_the_library_writes_into_a_configuration_is_no_typo():
    """Pipelines and quantizers add entries to `config.json`; refusing them would make saved checkpoints unreadable."""
    config = CalmConfig(custom_pipelines={"calm": {"impl": "pipeline_calm.CalmPipeline"}}, dtype="float16")
    assert config.custom_pipelines == {"calm": {"impl": "pipeline_calm.CalmPipeline"}}
    for kind in (CalmConfig, CalmAudioConfig):
        config = kind(attn_implementation="eager", output_attentions=True)
        config.tie_word_embeddings = config.tie_last_hidden_states = config.use_cache = False
        assert kind(**config.to_dict()).tie_word_embeddings is False


def test_what_a_user_puts_on_a_configuration_is_read_again(config, tmp_path):
    """A note on a model must not make its checkpoint unreadable; a typo in the call is still refused."""
    config.audio_text_loss_weight = 0.5
    config.note, config.audio_config.note = "seed 1", "seed 2"
    config.save_pretrained(tmp_path)
    for loaded in (CalmConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert (loaded.note, loaded.audio_config.note) == ("seed 1", "seed 2")
        assert loaded.audio_text_loss_weight == 0.5
    assert CalmAudioConfig.from_pretrained(tmp_path).note == "seed 2"
    assert CalmAudioConfig(**config.audio_config.to_dict()).note == "seed 2"
    with pytest.raises(ValueError, match="has no setting `num_context_layer`"):
        CalmConfig.from_pretrained(tmp_path, audio_config={"num_context_layer": 0})
