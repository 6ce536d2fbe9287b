"""`fsdp.py`: FSDP2 is led around what it cannot see; `test_distributed.py` trains with it."""

import pytest
from accelerate import FullyShardedDataParallelPlugin
from fsdp import shard_layers
from torch import nn

from modeling_calm import CalmForPreTraining


@pytest.fixture
def plugin() -> FullyShardedDataParallelPlugin:
    return FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")


def test_layers_are_gathered_one_at_a_time(plugin, config):
    """Whole models, which the library names, are entered by other ways than `forward`; FSDP would not see it."""
    shard_layers(plugin, CalmForPreTraining(config))
    assert plugin.transformer_cls_names_to_wrap == ["BertLayer", "CalmAudioLayer"]


def test_modules_that_the_configuration_names_stay(plugin, config):
    plugin.transformer_cls_names_to_wrap = ["CalmAudioLayer"]
    shard_layers(plugin, CalmForPreTraining(config))
    assert plugin.transformer_cls_names_to_wrap == ["CalmAudioLayer"]


@pytest.mark.parametrize(
    ("setting", "value"), [("cpu_ram_efficient_loading", True), ("state_dict_type", "SHARDED_STATE_DICT")]
)
def test_settings_that_load_or_save_no_whole_model_are_refused(plugin, setting, value):
    """The run would fail on its first step, or end without a checkpoint that `from_pretrained` reads."""
    setattr(plugin, setting, value)
    with pytest.raises(ValueError, match=f"fsdp_{setting}"):
        shard_layers(plugin, nn.Module())
