"""Loading and saving: complete checkpoints only, and initialisation from a pretrained language model.

No weight that a checkpoint should hold may be randomly initialised unnoticed.
"""

from collections.abc import Iterable
from os import PathLike, path
from typing import Any, Self

from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from .configuration_calm import CalmAudioConfig, CalmConfig

# Keywords that `from_text_pretrained` uses to load the language model instead of passing them to the configuration.
LOADING_KEYWORDS = (
    "revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "trust_remote_code", "dtype",
)  # fmt: skip


def shown(keys: Iterable[str]) -> str:
    """The first four names and the number of the others."""
    keys = sorted(keys)
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def check_weights(model: PreTrainedModel, report: dict, name: str | PathLike) -> None:
    """Reject a checkpoint that lacks weights of its own model.

    A new head on the weights of another class is how fine-tuning begins, and the library warns about it. But a missing
    head of the class that was saved, or a missing part of the base model, is a mistake.

    Args:
        model: the model as loaded.
        report: the library's loading info.
        name: where the checkpoint came from.

    Raises:
        RuntimeError: names the missing keys.
    """
    missing, saved = report["missing_keys"], model.config.architectures or []
    if hasattr(model, model.base_model_prefix) and type(model).__name__ not in saved:
        missing = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
    if missing:
        others = report["unexpected_keys"]
        raise RuntimeError(
            f"'{name}', saved from {' or '.join(saved) or 'an unnamed class'}, lacks {len(missing)} weights of"
            f" {type(model).__name__}: {shown(missing)}."
            + (f" It holds others instead: {shown(others)}." if others else "")
            + " They would start from random numbers. Copy the whole checkpoint again, or load it by the class that it"
            " was saved from."
        )


def check_devices(model: PreTrainedModel) -> None:
    """Reject a model without a head that is split across accelerators: its parts share tensors.

    Raises:
        ValueError: names the devices, and how to load it on one.
    """
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()} - {"cpu", "disk"}
    if len(places) > 1 and not hasattr(model, model.base_model_prefix):
        raise ValueError(
            f"`device_map` spread {type(model).__name__} over {shown(places)}; its parts share tensors of one device."
            ' Load it with `device_map={"": 0}`; what does not fit goes to "cpu" or "disk" by `max_memory`.'
        )


class CheckedLoading:
    """Mixin whose `from_pretrained` raises where the library reinitialises weights or says too little."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike | None,
        *model_args: Any,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint; arguments as in `PreTrainedModel.from_pretrained`, but only safetensors by default.

        Raises:
            OSError: if there is no checkpoint, its files are truncated or corrupt, or its weights are pickled.
            RuntimeError: if the weights do not fit the configuration, or some are missing: any of the base model's,
                and the head's too if the checkpoint was saved from this class.
            ValueError: if a `device_map` splits a model without a head across accelerators.
        """
        name = pretrained_model_name_or_path
        load = super().from_pretrained
        options = {"use_safetensors": True, **kwargs, "output_loading_info": True}
        try:
            model, report = load(name, *model_args, ignore_mismatched_sizes=ignore_mismatched_sizes, **options)
        except SafetensorError as error:
            raise OSError(
                f"The weights of '{name}' cannot be read: a file is truncated, corrupt or no safetensors file"
                f" ({error}). Copy or download the checkpoint again; a clone by git needs `git lfs pull`."
            ) from error
        except RuntimeError as error:
            if ignore_mismatched_sizes or "ignore_mismatched_sizes" not in str(error):
                raise
            _, report = load(name, *model_args, ignore_mismatched_sizes=True, **options)
            keys = [f"{key} {tuple(there)} instead of {tuple(here)}" for key, there, here in report["mismatched_keys"]]
            raise RuntimeError(
                f"The weights of '{name}' do not fit this configuration: {shown(keys)}. For a head of other classes,"
                " ask for the saved number (leave out `num_labels` and `id2label`), or start a new head by"
                " `ignore_mismatched_sizes=True`; otherwise its config.json is missing"
                " or belongs to other weights."
            ) from error
        if name is not None:
            check_weights(model, report, name)
        check_devices(model)
        model.freeze_idle()  # the library recreates every weight as trainable
        return (model, report) if output_loading_info else model

    def freeze_idle(self) -> None:
        """Freeze the parameters that the configuration leaves unused; none here."""


class CalmPreTrainedModel(CheckedLoading, PreTrainedModel):
    """Base class of the models that contain a language model."""

    config_class = CalmConfig
    base_model_prefix = "calm"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    # On one device when below a head: the device map of a module that is split omits the module's own buffers.
    _no_split_modules = ["CalmModel"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def save_pretrained(self, save_directory: str | PathLike, **kwargs) -> None:
        """Save as `PreTrainedModel` does, with the source of this class even if FSDP2 has sharded the model.

        FSDP2 gives a sharded model a class derived from ours, whose source would otherwise be saved instead.
        """
        current = type(self)
        if current.__name__.startswith("FSDP"):
            self.__class__ = current.__bases__[-1]
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.__class__ = current

    def get_input_embeddings(self) -> nn.Module:
        return self.calm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.calm.set_input_embeddings(value)

    @classmethod
    def from_text_pretrained(
        cls, name_or_path: str | PathLike, audio_config: CalmAudioConfig | dict | None = None, **kwargs: Any
    ) -> Self:
        """Start from a pretrained language model, with a new SpecTran in front of it.

        Args:
            name_or_path (`str`): folder or Hub repository of a transformers encoder and its tokenizer.
            audio_config (`CalmAudioConfig` or `dict`, *optional*): SpecTran.
            kwargs: settings of [`CalmConfig`]; `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`,
                `force_download`, `trust_remote_code` and `dtype` are used to load the language model.

        Returns:
            The model in evaluation mode, as from `from_pretrained`.

        Raises:
            ValueError: if `quantization_config` is given: only a trained checkpoint can be quantised, on loading.
        """
        if kwargs.get("quantization_config") is not None:
            raise ValueError(
                "SpecTran is new here and has to be trained before it is quantised. Save the model, and give"
                " `quantization_config` to `from_pretrained`."
            )
        if "torch_dtype" in kwargs:  # the library's older name
            kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
        loading = {name: kwargs.pop(name) for name in LOADING_KEYWORDS if name in kwargs}
        text_model = AutoModel.from_pretrained(name_or_path, **loading)
        if path.isdir(name_or_path):
            text_model.config._name_or_path = ""  # a local path does not belong in a checkpoint
        loading.pop("dtype", None)
        if kwargs.get("special_token_ids") is None:
            kwargs["special_token_ids"] = sorted(
                AutoTokenizer.from_pretrained(name_or_path, **loading).all_special_ids
            )
        model = cls(CalmConfig(text_config=text_model.config, audio_config=audio_config, **kwargs)).to(
            text_model.dtype
        )
        base = getattr(model, cls.base_model_prefix, model)
        known = base.text_model.state_dict().keys()
        weights = {k: v for k, v in text_model.state_dict().items() if k in known}
        base.text_model.load_state_dict(weights)
        base.describe_vocabulary()
        return model.eval()
