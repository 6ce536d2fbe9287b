"""What the tests of the models share besides fixtures."""

import torch
from transformers import AutoConfig

TERMS = ["audio_text_loss", "audio_audio_loss", "transcript_loss", "masked_language_loss", "masked_acoustic_loss"]
INPUTS = ["input_ids", "attention_mask", "input_features", "input_features_mask"]
DROPOUTS = ("dropout", "attention_dropout")  # DistilBERT's names for them
ALIGN = {"masked_language_loss_weight": 0.0, "masked_acoustic_loss_weight": 0.0}  # the weights of that stage

# Language models of every way to count positions: a table, a table behind the padding index, relative, rotary.
# The word embeddings of ALBERT and ELECTRA are narrower than their layers; only BERT and these two know token types.
LANGUAGE_MODELS = {
    "bert": {},
    "roberta": {"max_position_embeddings": 50, "pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"max_position_embeddings": 50, "pad_token_id": 1, "type_vocab_size": 1},
    "mpnet": {"max_position_embeddings": 50, "pad_token_id": 1},
    "albert": {"embedding_size": 16},
    "distilbert": {"hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]},
    "modernbert": {
        "pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
        "global_attn_every_n_layers": 2, "local_attention": 8,
    },
}  # fmt: skip


def language_model_config(name: str, **settings):
    """The configuration of a toy language model, whose 48 positions are those of `text_config`."""
    return AutoConfig.for_model(
        name,
        **{
            "vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "max_position_embeddings": 48, **LANGUAGE_MODELS[name], **settings,
        },
    )  # fmt: skip


def close(actual, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def quiet(config):
    """The configuration without dropout, for tests that compare training steps."""
    for part in (config, config.audio_config, config.text_config):
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", *DROPOUTS):
            if getattr(part, name, None) is not None:
                setattr(part, name, 0.0)
    return config


def spoil(batch: dict[str, torch.Tensor], value: float = float("nan")) -> dict[str, torch.Tensor]:
    """The same batch with `value` in every masked patch."""
    hidden = ~batch["input_features_mask"].bool().unsqueeze(-1)
    return {**batch, "input_features": batch["input_features"].masked_fill(hidden, value)}


def lengthen(batch: dict[str, torch.Tensor], windows: int = 2, words: int = 3, size: int = 8):
    """The same batch with more padding on the right."""
    pad, value = torch.nn.functional.pad, {"labels": -100}
    longer = dict(batch)
    for key in ("input_ids", "attention_mask", "labels", "token_type_ids"):
        if key in batch:
            longer[key] = pad(batch[key], (0, words), value=value.get(key, 0))
    if "input_features" in batch:
        longer["input_features"] = pad(batch["input_features"], (0, 0, 0, windows * size))
        longer["input_features_mask"] = pad(batch["input_features_mask"], (0, windows * size))
    if "mask_time_indices" in batch:
        longer["mask_time_indices"] = pad(batch["mask_time_indices"], (0, windows))
    return longer


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in model.named_parameters()}
