"""Loading a checkpoint, whole or not at all: no weight that it should hold may start from random numbers unnoticed."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, Self

from safetensors import SafetensorError
from transformers import PreTrainedModel


def shown(keys: Iterable[str]) -> str:
    """The first of many names."""
    keys = sorted(keys)
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def check_weights(model: PreTrainedModel, report: dict, name: str | PathLike) -> None:
    """Refuse a checkpoint that lacks weights of its own model.

    A new head on the weights of another class is how fine-tuning begins, and the library names it in a warning. But
    the head of the very class that was saved, or a part of the model below the head, is missing by mistake.

    Args:
        model: the model as loaded.
        report: the library's loading info.
        name: where it came from.

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
    """Refuse a model without a head that was spread over several accelerators: its parts share tensors.

    Raises:
        ValueError: names the devices, and the way to load it on one.
    """
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()} - {"cpu", "disk"}
    if len(places) > 1 and not hasattr(model, model.base_model_prefix):
        raise ValueError(
            f"`device_map` spread {type(model).__name__} over {shown(places)}; its parts share tensors of one device."
            ' Load it with `device_map={"": 0}`; what does not fit goes to "cpu" or "disk" by `max_memory`.'
        )


class CheckedLoading:
    """`from_pretrained` of the models, with an error where the library starts weights anew or says too little."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike | None,
        *model_args: Any,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint; arguments as in `PreTrainedModel.from_pretrained`, and safetensors alone by default.

        Raises:
            OSError: if there is no checkpoint, its files are truncated or corrupt, or its weights are pickled.
            RuntimeError: if the weights do not fit the configuration, or lack what the model should hold: any part
                below the head, and the head too if the checkpoint was saved from this class.
            ValueError: if a `device_map` spread a model without a head over several accelerators.
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
        return (model, report) if output_loading_info else model
