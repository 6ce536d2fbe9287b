"""Model checks: reject unsuitable language models, and inputs that would otherwise be silently ignored."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import TransformersKwargs

# Encoders for which the library has a causal-LM class but no masked-LM class.
BIDIRECTIONAL = {"bert-generation", "xlnet"}


def check_language_model(config: PreTrainedConfig, kind: type) -> None:
    """Reject a language model that cannot attend bidirectionally to padded words and acoustic tokens.

    Raises:
        ValueError: for a decoder, an encoder-decoder, or a model without `inputs_embeds` or `attention_mask`.
    """
    name, taken = config.model_type, inspect.signature(kind.forward).parameters
    causal = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = causal and name not in BIDIRECTIONAL and not getattr(config, "use_bidirectional_attention", False)
    decoder = causal or config.is_encoder_decoder or getattr(config, "is_decoder", False)
    if decoder or not {"inputs_embeds", "attention_mask"} <= set(taken):
        raise ValueError(
            "The language model must be an encoder that takes `inputs_embeds` and `attention_mask`, as BERT, RoBERTa"
            f" or ModernBERT do; `{name}` is none."
        )


def check_names(call: Callable, keywords: dict[str, Any]) -> None:
    """Reject an input unknown to the method, such as a misspelt mask, which would be silently ignored.

    Args:
        call: a method of a model.
        keywords: the arguments it received beyond its own parameters.

    Raises:
        TypeError: names the input and the nearest parameter.
        ValueError: for `inputs_embeds`.
    """
    if keywords.get("inputs_embeds") is not None:
        raise ValueError("`inputs_embeds` are made here, of words and acoustic tokens; give `input_ids`.")
    for name, value in keywords.items():
        # Adapter libraries pass arguments that are None.
        if value is not None and name not in TransformersKwargs.__annotations__ and not name.startswith("output_"):
            nearest = difflib.get_close_matches(name, inspect.signature(call).parameters, n=1)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
            raise TypeError(f"`{type(call.__self__).__name__}` takes no input `{name}`.{hint}")


def check_shapes(input_ids: torch.Tensor, **beside: torch.Tensor | None) -> None:
    """Reject `attention_mask` and `token_type_ids` whose shape is not that of `input_ids` (B, L).

    Raises:
        ValueError: names the shapes.
    """
    for name, value in beside.items():
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(value.shape)}, and `input_ids` {tuple(input_ids.shape)}. It is of the"
                " words alone; the mask of the sound is `input_features_mask`."
            )
