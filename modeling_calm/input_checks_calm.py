"""What a model refuses: a language model that cannot read acoustic tokens, inputs that would be left out unseen."""

import difflib
import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import TransformersKwargs


def check_language_model(config: PreTrainedConfig, kind: type) -> None:
    """Refuse what cannot read acoustic tokens beside words, padded, each in view of all others.

    Raises:
        ValueError: for a decoder, an encoder with a decoder, and a model without `inputs_embeds` or `attention_mask`.
    """
    name, taken = config.model_type, inspect.signature(kind.forward).parameters
    decoder = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decoder = decoder or config.is_encoder_decoder or getattr(config, "is_decoder", False)
    if decoder or not {"inputs_embeds", "attention_mask"} <= set(taken):
        raise ValueError(
            "The language model must be an encoder that takes `inputs_embeds` and `attention_mask`, as BERT, RoBERTa"
            f" or ModernBERT do; `{name}` is none."
        )


def check_inputs(model: nn.Module, keywords: dict[str, Any], input_ids: torch.Tensor, **beside: torch.Tensor) -> None:
    """Refuse an input that would be left out unseen, or that does not fit `input_ids` (B, L).

    Raises:
        TypeError: for a keyword that `forward` does not know, such as a mask misspelt.
        ValueError: for `attention_mask` or `token_type_ids` of another shape.
    """
    known = inspect.signature(model.forward).parameters
    for name, value in keywords.items():
        if value is not None and name not in TransformersKwargs.__annotations__:  # adapter libraries hand on a None
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
            raise TypeError(f"`{type(model).__name__}` takes no input `{name}`.{hint}")
    for name, value in beside.items():
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(value.shape)}, and `input_ids` {tuple(input_ids.shape)}. It is of the"
                " words alone; the mask of the sound is `input_features_mask`."
            )
