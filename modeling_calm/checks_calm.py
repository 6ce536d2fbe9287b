"""Configuration checks: reject unknown settings, and configurations written by a newer package."""

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

# Incremented when a field changes meaning, so that an older package rejects a newer checkpoint, not misreads it.
CONFIG_VERSION = 1

# Keywords that `PreTrainedConfig`, `from_pretrained` and `Trainer` accept or write besides the declared fields.
LIBRARY_KEYWORDS = {
    "attn_implementation", "auto_map", "bos_token_id", "custom_pipelines", "eos_token_id", "experts_implementation",
    "model_type", "name_or_path", "num_labels", "output_attentions", "pad_token_id", "quantization_config",
    "tie_last_hidden_states", "tie_word_embeddings", "torch_dtype", "use_cache", "_attn_implementation",
    "_commit_hash", "_name_or_path",
}  # fmt: skip

RESEMBLANCE = 0.85  # `difflib` similarity of a misspelt setting to the intended one


def check_keywords(config: PreTrainedConfig, keywords: Iterable[str]) -> None:
    """Reject keywords that are not fields: the library would silently store a typo and train with the default.

    If `model_type` is among them, they come from a saved configuration, which may hold arbitrary extra attributes:
    then only those that resemble a setting are rejected.

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
    """Mixin that makes a configuration's `from_pretrained` reject misspelt settings, which the library ignores."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the configuration from a `config.json`, with keywords as overrides.

        The Auto classes pass on keywords meant for the tokenizer or for loading weights, so only those that resemble a
        setting are rejected.

        Raises:
            ValueError: if a keyword is a misspelt setting; names both.
            StrictDataclassClassValidationError: if a setting is inconsistent with the others.
        """
        returns_unused = kwargs.pop("return_unused_kwargs", False)
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        config.validate()  # the library sets the keywords only after validation
        known = [field.name for field in fields(config)]
        check_keywords(config, [name for name in unused if difflib.get_close_matches(name, known, cutoff=RESEMBLANCE)])
        return (config, unused) if returns_unused else config


def check_version(config: PreTrainedConfig) -> None:
    """Reject a configuration written by a newer package.

    Raises:
        ValueError: if `config_version` is newer than this package knows.
    """
    if config.config_version > CONFIG_VERSION:
        raise ValueError(
            f"This configuration has version {config.config_version}, and the installed CALM package knows versions up"
            f" to {CONFIG_VERSION}. Upgrade the package."
        )
