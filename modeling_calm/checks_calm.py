"""What a configuration refuses: settings that it does not have, and those of a newer package."""

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

# Raised when a field changes its meaning, so that an older package refuses a newer checkpoint rather than misread it.
CONFIG_VERSION = 1

# What `PreTrainedConfig`, `from_pretrained` and `Trainer` take or write besides its declared fields.
LIBRARY_KEYWORDS = {
    "attn_implementation", "auto_map", "bos_token_id", "custom_pipelines", "eos_token_id", "experts_implementation",
    "model_type", "name_or_path", "num_labels", "output_attentions", "pad_token_id", "quantization_config",
    "tie_last_hidden_states", "tie_word_embeddings", "torch_dtype", "use_cache", "_attn_implementation",
    "_commit_hash", "_name_or_path",
}  # fmt: skip

RESEMBLANCE = 0.85  # of a misspelt setting to the one that was meant, by `difflib`


def check_keywords(config: PreTrainedConfig, keywords: Iterable[str]) -> None:
    """Refuse a keyword that no field takes: the library would store a typo silently and train with the default.

    Where `model_type` is among them, a configuration wrote them, and whatever else was put on it may stand there: only
    what resembles a setting is refused then.

    Raises:
        ValueError: names the unknown keyword and the nearest valid one.
    """
    known = {field.name for field in fields(config)} | LIBRARY_KEYWORDS
    written = "model_type" in keywords
    for keyword in keywords:
        nearest = difflib.get_close_matches(keyword, known, n=1, cutoff=RESEMBLANCE if written else 0.6)
        if keyword not in known and (nearest or not written):
            hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
            raise ValueError(f"`{type(config).__name__}` has no setting `{keyword}`.{hint}")


class RefusesTypos:
    """`from_pretrained` of the configurations, which the library lets ignore what it does not know."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a `config.json`, changed by the keywords given.

        The Auto classes hand on keywords that are meant for a tokenizer or for the loading of weights, so only those
        that resemble a setting are refused.

        Raises:
            ValueError: names a keyword that is a setting misspelt, and the setting.
            StrictDataclassClassValidationError: for a setting that does not fit the others.
        """
        returns_unused = kwargs.pop("return_unused_kwargs", False)
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        config.validate()  # the library puts keywords on a configuration that was checked without them
        known = [field.name for field in fields(config)]
        check_keywords(config, [name for name in unused if difflib.get_close_matches(name, known, cutoff=RESEMBLANCE)])
        return (config, unused) if returns_unused else config


def check_version(config: PreTrainedConfig) -> None:
    """Refuse a configuration written by a newer package.

    Raises:
        ValueError: if `config_version` is above the version this package knows.
    """
    if config.config_version > CONFIG_VERSION:
        raise ValueError(
            f"This configuration has version {config.config_version}, and the installed CALM package knows versions up"
            f" to {CONFIG_VERSION}. Upgrade the package."
        )
