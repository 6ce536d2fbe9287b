"""FSDP2 settings that depend on the model; the rest is in accelerate's configuration."""

from accelerate import FullyShardedDataParallelPlugin
from torch import nn


def shard_layers(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Let FSDP gather one layer at a time, unless the configuration names other modules.

    By default it would gather the modules that transformers must not split across devices. These include whole models,
    which are entered by other methods than `forward`, unnoticed by FSDP.

    Raises:
        ValueError: for settings with which the model cannot be built, or would not be saved.
    """
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "With `fsdp_cpu_ram_efficient_loading` only the first process would read the language model, and its"
            " vocabulary's mean is taken on each; set it to false in the configuration of accelerate."
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            "`from_pretrained` cannot read a checkpoint in shards of FSDP; set `fsdp_state_dict_type: FULL_STATE_DICT`"
            " in the configuration of accelerate."
        )
    if plugin.transformer_cls_names_to_wrap is None:
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for stack in stacks for layer in stack})
