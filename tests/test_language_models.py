"""Every language model that accepts `inputs_embeds` can read acoustic tokens, however it counts positions."""

import pytest
import torch
from model_helpers import INPUTS, close, lengthen, spoil
from transformers import AutoConfig

from modeling_calm import CalmConfig, CalmModel

# Language models of every way to count positions: a table, a table behind the padding index, relative, rotary.
# The word embeddings of ALBERT and ELECTRA are narrower than their layers.
FAMILIES = {
    "bert": {},
    "roberta": {"max_position_embeddings": 50, "pad_token_id": 1},
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "distilbert": {},
    "mpnet": {"max_position_embeddings": 50, "pad_token_id": 1},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 2},
}


def family(name: str) -> object:
    """A toy language model configuration."""
    return AutoConfig.for_model(
        name,
        **{
            "vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "max_position_embeddings": 48, **FAMILIES[name],
        },
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_alone_and_together_in_every_language_model(name, audio_config, batch, select):
    """Both modalities, one of them, or rows that lack one: a row's result is its own, in every way to count positions.

    With padding left between words and sounds, outputs moved by more than 1.
    """
    model = CalmModel(CalmConfig(audio_config=audio_config, text_config=family(name))).eval()
    batch["attention_mask"][1] = 0  # sound without words
    batch["input_features_mask"][3] = 0  # words without sound
    together = model(**spoil(batch))
    assert together.last_hidden_state.isfinite().all()
    longer = model(**spoil(lengthen(batch)))
    for key in ("pooler_output", "audio_pooler_output", "audio_embeds", "text_embeds"):
        close(longer[key], together[key])
    close(longer.last_hidden_state[:, :9], together.last_hidden_state[:, :9])
    close(longer.last_hidden_state[:, 12:16], together.last_hidden_state[:, 9:])
    for row in range(4):
        one = select(batch, [row]) if row in (0, 2) else {key: value[row : row + 1] for key, value in batch.items()}
        if row == 1:
            one = {key: one[key] for key in INPUTS[2:]}
        if row == 3:
            one = {key: one[key] for key in INPUTS[:2]}
        alone = model(**one)
        for key in ("pooler_output", "audio_pooler_output", "audio_embeds", "text_embeds"):
            close(alone[key][0], together[key][row])


@pytest.mark.parametrize("name", FAMILIES)
def test_text_padded_on_the_left_changes_nothing(name, audio_config, batch):
    """Some tokenizers pad on the left; the positions of the words and of the sounds behind them must not move."""
    model = CalmModel(CalmConfig(audio_config=audio_config, text_config=family(name))).eval()
    left = dict(batch)
    for key in INPUTS[:2]:
        counts = batch["attention_mask"].sum(-1).tolist()
        left[key] = torch.stack([row.roll(9 - count) for row, count in zip(batch[key], counts, strict=True)])
    right_output, left_output = model(**batch), model(**left)
    close(left_output.pooler_output, right_output.pooler_output)
    for row, count in enumerate(counts):
        close(left_output.last_hidden_state[row, 9 - count : 9], right_output.last_hidden_state[row, :count])
    close(left_output.last_hidden_state[:, 9:], right_output.last_hidden_state[:, 9:])


@pytest.mark.parametrize("name", FAMILIES)
def test_audio_as_long_as_fits_works_and_longer_is_refused(name, audio_config):
    """A position table read past its end is an index error, or on a GPU the end of the process."""
    model = CalmModel(CalmConfig(audio_config=audio_config, text_config=family(name))).eval()
    limit = model.max_tokens()
    assert limit == (None if name == "modernbert" else 48)
    words = torch.randint(5, 27, (1, 5))
    output = model(words, torch.randn(1, (48 - 5) * 8, 8))
    assert output.last_hidden_state.shape == (1, 48, 24)
    longer = torch.randn(1, (48 - 4) * 8, 8)
    if limit is None:
        assert model(words, longer).last_hidden_state.shape == (1, 49, 24)
    else:
        with pytest.raises(ValueError, match="Row 0 has 49 .* 48 positions: beside its text 3.4 s of audio fit"):
            model(words, longer)
