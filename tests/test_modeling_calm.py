"""`modeling_calm`: the models mean what their contract says, and padding, company and call order change nothing."""

import logging

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertModel,
    pipeline,
)

from modeling_calm import (
    CalmAudioConfig,
    CalmAudioModel,
    CalmConfig,
    CalmForPreTraining,
    CalmForSequenceClassification,
    CalmModel,
)

TERMS = ["audio_text_loss", "audio_audio_loss", "masked_language_loss", "masked_acoustic_loss"]
INPUTS = ["input_ids", "attention_mask", "input_features", "input_features_mask"]
ALIGN = {"masked_language_loss_weight": 0.0, "masked_acoustic_loss_weight": 0.0}
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


def close(actual, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def quiet(config):
    """The configuration without dropout, for tests that compare training steps."""
    for part in (config, config.audio_config, config.text_config):
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if getattr(part, name, None) is not None:
                setattr(part, name, 0.0)
    return config


def family(name: str) -> object:
    """A toy language model configuration."""
    return AutoConfig.for_model(
        name,
        **{
            "vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "max_position_embeddings": 48, **FAMILIES[name],
        },
    )  # fmt: skip


@pytest.fixture
def batch(pretraining_batch) -> dict[str, torch.Tensor]:
    """Four clips with their words, nothing masked."""
    drawn = pretraining_batch()
    drawn["input_ids"] = torch.where(drawn["labels"] != -100, drawn["labels"], drawn["input_ids"])
    return {key: drawn[key] for key in INPUTS}


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


# ---- SpecTran


def test_spectran_shapes(audio_config, batch):
    """(B, T, hidden), one mask entry a window that holds a real patch, zeros elsewhere: what all the heads rely on."""
    model = CalmAudioModel(audio_config).eval()
    output = model(batch["input_features"], batch["input_features_mask"])
    assert output.last_hidden_state.shape == (4, 4, 32)
    assert output.pooler_output.shape == (4, 32)
    assert output.acoustic_tokens_mask.dtype == torch.bool
    assert output.acoustic_tokens_mask.sum(-1).tolist() == [3, 2, 4, 1]
    assert output.last_hidden_state[~output.acoustic_tokens_mask].eq(0).all()
    close(output.pooler_output[1], output.last_hidden_state[1, :2].mean(0))
    close(model(batch["input_features"]).last_hidden_state.shape[1], 4)  # without a mask everything is real


@pytest.mark.parametrize("num_context_layers", [0, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_spectran_does_not_see_padding_or_company(audio_config_values, batch, select, attention, num_context_layers):
    """An embedding that depends on the batch cannot be compared with one computed yesterday."""
    config = CalmAudioConfig(
        **audio_config_values | {"num_context_layers": num_context_layers}, attn_implementation=attention
    )
    model = CalmAudioModel(config).eval()
    audio = {key: batch[key] for key in INPUTS[2:]}
    expected = model(**audio)
    spoilt = model(**spoil(audio))
    assert torch.equal(spoilt.last_hidden_state, expected.last_hidden_state)
    longer = model(**spoil(lengthen(audio), float("inf")))
    close(longer.last_hidden_state[:, :4], expected.last_hidden_state)
    assert longer.last_hidden_state[:, 4:].eq(0).all()
    close(longer.pooler_output, expected.pooler_output)
    order = [2, 0, 3, 1]
    close(
        model(**{key: value[order] for key, value in audio.items()}).last_hidden_state,
        expected.last_hidden_state[order],
    )
    for row in range(4):
        one = {key: value for key, value in select(batch, [row]).items() if key in INPUTS[2:]}
        alone = model(**one).last_hidden_state[0]
        close(alone, expected.last_hidden_state[row, : len(alone)])
    as_bool = model(audio["input_features"], audio["input_features_mask"].bool())
    assert torch.equal(as_bool.last_hidden_state, expected.last_hidden_state)


def test_only_real_windows_are_computed(audio_config, batch):
    """Padding that were computed would make a batch of unequal clips cost as much as its longest, times its size."""
    model = CalmAudioModel(audio_config).eval()
    real = int(batch["input_features_mask"].view(4, 4, 8).any(-1).sum())
    assert real == 10  # of 16
    output = model(batch["input_features"], batch["input_features_mask"], output_hidden_states=True)
    assert [tuple(states.shape) for states in output.hidden_states] == 3 * [(10, 8, 32)]
    longer = lengthen({key: batch[key] for key in INPUTS[2:]})
    assert len(model(**longer, output_hidden_states=True).hidden_states[0]) == 10


def test_what_the_layers_record(audio_config_values, batch):
    """Hidden states and attentions are those inside the windows, in row-major order; the context's stand apart."""
    model = CalmAudioModel(CalmAudioConfig(**audio_config_values, attn_implementation="eager")).eval()
    output = model(
        batch["input_features"], batch["input_features_mask"], output_hidden_states=True, output_attentions=True,
        output_context_attentions=True,
    )  # fmt: skip
    assert [tuple(weights.shape) for weights in output.attentions] == 2 * [(10, 4, 8, 8)]
    assert [tuple(weights.shape) for weights in output.context_attentions] == 2 * [(4, 4, 4, 4)]
    for weights in (*output.attentions, *output.context_attentions):
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    real = batch["input_features_mask"].view(4, 4, 8).bool()
    tokens = output.acoustic_tokens_mask
    seen = output.attentions[0].movedim(1, -2).amax((1, 2)) > 0  # (W, S): which sub-tokens anyone looked at
    assert torch.equal(seen, real[tokens])
    assert output.context_attentions[0].masked_select(~tokens[:, None, None, :]).eq(0).all()
    # The first state is the embedding, the last the input of the pooling, not the pooled and normalised tokens.
    patches = batch["input_features"].view(4, 4, 8, 8)[tokens].masked_fill(~real[tokens].unsqueeze(-1), 0)
    close(output.hidden_states[0], model.embeddings(patches))
    pooled = model.pooling(output.hidden_states[-1], real[tokens])
    close(model.encode_windows(batch["input_features"], batch["input_features_mask"])[0][tokens], pooled)
    plain = model(batch["input_features"], batch["input_features_mask"])
    assert plain.hidden_states is plain.attentions is plain.context_attentions is None


def test_context_crosses_windows_and_nothing_else_does(audio_config_values, batch):
    """Without context layers a token knows its own window only; with them it knows the clip, never another clip."""
    changed = batch["input_features"].clone()
    changed[0, 16:20] += 1  # the third window of the first clip
    for layers, reaches in ((0, False), (1, True)):
        model = CalmAudioModel(CalmAudioConfig(**audio_config_values | {"num_context_layers": layers})).eval()
        before, after = (
            model(features, batch["input_features_mask"]).last_hidden_state
            for features in (batch["input_features"], changed)
        )
        assert not torch.equal(before[0, 2], after[0, 2])
        assert torch.equal(before[1:], after[1:])
        assert bool((before[0, :2] - after[0, :2]).abs().max() > 1e-6) is reaches


def test_masked_patches_weigh_nothing_in_their_window(audio_config, batch):
    """The last window of a clip is seldom full; what it holds besides speech may not be pooled into a word."""
    model = CalmAudioModel(audio_config).eval()
    before = model(batch["input_features"], batch["input_features_mask"]).last_hidden_state
    with torch.no_grad():
        model.embeddings.position_embeddings.weight[4:] += 1  # the places that are empty in every clip's last window
    after = model(batch["input_features"], batch["input_features_mask"]).last_hidden_state
    assert torch.equal(before[3, 0], after[3, 0])  # a clip of half a window
    assert not torch.equal(before[0], after[0])


def test_the_order_of_windows_matters(audio_config, batch):
    """Rotary positions that did nothing would make a clip a bag of words."""
    model = CalmAudioModel(audio_config).eval()
    features = batch["input_features"][:1, :32]
    swapped = torch.cat((features[:, 8:16], features[:, :8], features[:, 16:]), dim=1)
    before, after = model(features).last_hidden_state[0], model(swapped).last_hidden_state[0]
    assert (before[[1, 0, 2, 3]] - after).abs().max() > 1e-4


def test_masked_windows_stand_behind_one_vector(audio_config, batch):
    """A masked window may not be seen through its neighbours, or predicting it teaches nothing."""
    model = CalmAudioModel(audio_config).eval()
    masked = torch.zeros(4, 4, dtype=torch.bool)
    masked[0, 1] = masked[2, 3] = True
    changed = batch["input_features"].clone()
    changed[0, 8:16] += 1
    before, after = (
        model(features, batch["input_features_mask"], mask_time_indices=masked).last_hidden_state
        for features in (batch["input_features"], changed)
    )
    assert torch.equal(before, after)
    assert not torch.equal(before[0], model(changed, batch["input_features_mask"]).last_hidden_state[0])


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [
        (torch.zeros(1, 8, 9), None, "9 values a patch, this model reads 8.*from_audio_config"),
        (torch.zeros(1, 12, 8), None, r"12 patches, no multiple of the 8 patches.*pad_to_multiple_of=8"),
        (torch.zeros(1, 8, 8), torch.ones(1, 7), r"`input_features_mask` has shape \(1, 7\).*\(1, 8\)"),
    ],
)
def test_features_of_another_geometry_are_refused(config, features, mask, message):
    """A processor of another checkpoint gives such features; a reshape error would not say so."""
    with pytest.raises(ValueError, match=message):
        CalmAudioModel(config.audio_config)(features, mask)
    with pytest.raises(ValueError, match=message):
        CalmModel(config)(input_features=features, input_features_mask=mask)


# ---- The model around a language model


def test_calm_model_shapes(config, batch):
    """The names and shapes of the contract."""
    model = CalmModel(config).eval()
    output = model(**batch)
    assert output.last_hidden_state.shape == (4, 9 + 4, 24)
    assert output.pooler_output.shape == (4, 24)
    assert output.acoustic_tokens.shape == (4, 4, 24)
    assert output.acoustic_tokens_mask.sum(-1).tolist() == [3, 2, 4, 1]
    spectran = model.audio_model(batch["input_features"], batch["input_features_mask"])
    close(output.audio_pooler_output, spectran.pooler_output)
    for embeds in (output.audio_embeds, output.text_embeds):
        close(embeds.norm(dim=-1), torch.ones(4))
    real = torch.cat((batch["attention_mask"].bool(), output.acoustic_tokens_mask), dim=1)
    assert output.last_hidden_state[~real].eq(0).all()
    for row in range(4):
        close(output.pooler_output[row], output.last_hidden_state[row][real[row]].mean(0))
    audio_alone = model(**{key: batch[key] for key in INPUTS[2:]})
    assert audio_alone.last_hidden_state.shape == (4, 4, 24)
    assert torch.equal(audio_alone.text_embeds, torch.zeros(4, 24))
    text_alone = model(batch["input_ids"], attention_mask=batch["attention_mask"])
    assert text_alone.last_hidden_state.shape == (4, 9, 24)
    assert text_alone.acoustic_tokens.shape == (4, 0, 24)
    assert torch.equal(text_alone.audio_embeds, torch.zeros(4, 24))
    assert torch.equal(text_alone.audio_pooler_output, torch.zeros(4, 32))


def test_text_alone_is_the_language_model_itself(text_config, config, batch):
    """Words pass through unchanged: what the language model knew before CALM must still be there."""
    model = CalmModel(config).eval()
    reference = BertModel(text_config, add_pooling_layer=False).eval()
    reference.load_state_dict(model.text_model.state_dict())
    types = torch.zeros_like(batch["input_ids"])
    types[:, 3:] = 1
    expected = reference(batch["input_ids"], attention_mask=batch["attention_mask"], token_type_ids=types)
    output = model(batch["input_ids"], attention_mask=batch["attention_mask"], token_type_ids=types)
    real = batch["attention_mask"].bool()
    close(output.last_hidden_state[real], expected.last_hidden_state[real])


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


def test_the_language_model_gets_words_then_sounds_then_padding(config, batch):
    """Hidden states and attentions come in the compact order; `last_hidden_state` is back in the order given."""
    config.text_config._attn_implementation = "eager"
    model = CalmModel(config).eval()
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert [tuple(weights.shape) for weights in output.attentions] == 2 * [(4, 4, 13, 13)]
    words, sounds = batch["attention_mask"].sum(-1), output.acoustic_tokens_mask.sum(-1)
    for row, (first, second) in enumerate(zip(words.tolist(), sounds.tolist(), strict=True)):
        compact = output.hidden_states[-1][row]
        close(compact[:first], output.last_hidden_state[row, :first])
        close(compact[first : first + second], output.last_hidden_state[row, 9 : 9 + second])
        assert output.attentions[0][row, :, :, first + second :].eq(0).all()


def test_acoustic_tokens_enter_the_language_model_as_words_would(config, batch):
    """A clip whose acoustic tokens are the embeddings of words must mean what those words mean."""
    model = CalmModel(config).eval()
    words = batch["input_ids"][2:3, :4]
    centred = model.get_input_embeddings()(words) - model.word_embedding_mean
    nothing = torch.zeros(1, 0, dtype=torch.bool)
    real = torch.ones(1, 4, dtype=torch.bool)
    as_words = model.fuse(model.get_input_embeddings()(words), real, None, centred[:, :0], nothing)
    as_sounds = model.fuse(centred[:, :0], nothing, None, centred, real)
    close(as_sounds.last_hidden_state, as_words.last_hidden_state)


def test_a_row_or_call_of_nothing_is_an_error_that_names_it(config, batch):
    """Its embedding would be zeros, and its class the most frequent one."""
    for model in (CalmModel(config), CalmForSequenceClassification(config)):
        with pytest.raises(ValueError, match="Give `input_ids`, `input_features` or both"):
            model()
        batch["attention_mask"][[1, 3]] = 0
        batch["input_features_mask"][[1, 3]] = 0
        with pytest.raises(ValueError, match=r"Rows \[1, 3\] of the batch have neither text nor audio"):
            model(**batch)
        with pytest.raises(ValueError, match=r"Rows \[1, 3\]"):
            model(batch["input_ids"], attention_mask=batch["attention_mask"])


def test_a_batch_whose_rows_all_lack_audio_is_text_alone(config, batch):
    """A rank may draw such a batch; SpecTran still takes part, so that distributed training does not wait for it."""
    model = CalmModel(config).eval()
    batch["input_features_mask"][:] = 0
    output = model(**spoil(batch))
    expected = model(batch["input_ids"], attention_mask=batch["attention_mask"])
    close(output.pooler_output, expected.pooler_output)
    assert torch.equal(output.audio_embeds, torch.zeros(4, 24))
    output.pooler_output.sum().backward()
    taken = {name for name, value in model.audio_model.named_parameters() if value.grad is not None}
    assert taken == {name for name, _ in model.audio_model.named_parameters()} - {"mask_embedding"}
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_features_are_those_of_the_forward_pass(config, batch, monkeypatch):
    """An index of `get_audio_features` is searched with `get_text_features`; neither needs the language model."""
    model = CalmModel(config).eval()
    expected = model(**batch)
    monkeypatch.setattr(model.text_model, "forward", None)
    audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(audio.pooler_output, expected.audio_embeds)
    assert torch.equal(text.pooler_output, expected.text_embeds)
    assert audio.acoustic_tokens_mask.shape == (4, 4)


def test_the_text_target_is_the_mean_of_centred_words_without_special_tokens(config, batch):
    """With [CLS] and [SEP] in it, all transcripts resemble each other; with a gradient, the target would collapse."""
    model = CalmModel(config)
    embeddings = model.get_input_embeddings().weight
    for row, ids in enumerate(batch["input_ids"]):
        words = embeddings[ids[ids > 4]] - embeddings.mean(0)
        target = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        close(target[row], normalize(words.mean(0), dim=-1))
        assert not target.requires_grad
    # Words that are masked out do not count.
    mask = batch["attention_mask"].clone()
    mask[0, 1:4] = 0
    words = embeddings[batch["input_ids"][0, 4:6]] - embeddings.mean(0)
    close(model.get_text_features(batch["input_ids"], mask).pooler_output[0], normalize(words.mean(0), dim=-1))


def test_nearest_tokens_finds_the_planted_words(config, batch):
    """The acoustic tokens are made the embeddings of known words; the answer must be those words, and their time."""
    config.special_token_ids = [0, 1, 2, 3, 4]
    model = CalmModel(config).eval()
    audio = batch["input_features"][2:3], batch["input_features_mask"][2:3]
    planted = torch.tensor([7, 20, 9, 12])
    with torch.no_grad():
        states = model.audio_model(*audio).last_hidden_state[0]
        words = model.get_input_embeddings().weight[planted] - model.word_embedding_mean
        model.audio_projection.weight.copy_(torch.linalg.lstsq(states, words).solution.T)
        model.audio_projection.bias.zero_()
    nearest = model.nearest_tokens(*audio, top_k=3)
    assert nearest.token_ids.shape == nearest.similarities.shape == (1, 4, 3)
    assert nearest.token_ids[0, :, 0].tolist() == planted.tolist()
    close(nearest.similarities[0, :, 0], torch.ones(4), 1e-4)
    assert nearest.similarities.diff(dim=-1).le(0).all()
    close(nearest.time_spans, torch.tensor([[0, 0.08], [0.08, 0.16], [0.16, 0.24], [0.24, 0.32]]))
    assert nearest.acoustic_tokens_mask.all()
    without = model.nearest_tokens(*audio, top_k=25 - 1, excluded_token_ids=[7])
    assert not set(without.token_ids.flatten().tolist()) & {0, 1, 2, 3, 4, 7}
    config.special_token_ids = None
    assert model.nearest_tokens(*audio, top_k=30).token_ids.shape == (1, 4, 30)


def test_evaluation_repeats_to_the_bit_and_training_does_not(config, batch):
    """The same clip gave other embeddings from call to call in LAION-CLAP; dropout that is off does not regularise."""
    for model in (CalmModel(config), CalmForSequenceClassification(config)):
        model.eval()
        assert torch.equal(model(**batch)[0], model(**batch)[0])
        model.train()
        assert not torch.equal(model(**batch)[0], model(**batch)[0])
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        for silent in ("audio_config", "text_config"):
            setattr(getattr(config, silent), name, 0.0)
    head_alone = CalmForSequenceClassification(config).train()
    assert not torch.equal(head_alone(**batch)[0], head_alone(**batch)[0])
    config.audio_config.hidden_dropout_prob = 0.1
    audio = CalmAudioModel(config.audio_config).train()
    assert not torch.equal(audio(batch["input_features"])[0], audio(batch["input_features"])[0])


@pytest.mark.parametrize("kind", [CalmModel, CalmForPreTraining, CalmForSequenceClassification])
def test_tuples_on_request(kind, config, batch):
    """`return_dict=False` and TorchScript users get the same tensors in a tuple, asked by call or by configuration."""
    model = kind(config).eval()
    output = model(**batch)
    for answer in (model(**batch, return_dict=False), setattr(model.config, "return_dict", False) or model(**batch)):
        assert isinstance(answer, tuple)
        for value, expected in zip(answer, output.to_tuple(), strict=True):
            assert torch.equal(value, expected)


def test_half_precision_runs(config, batch):
    """A bf16 checkpoint comes back in bf16, and its features in float32."""
    batch["attention_mask"][1] = 0
    output = (
        CalmForSequenceClassification(config).to(torch.bfloat16).eval()(**spoil(batch), labels=torch.zeros(4).long())
    )
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.isfinite()


@pytest.mark.parametrize("terms", [ALIGN, {}])
def test_a_step_under_autocast(config, pretraining_batch, terms):
    """Mixed precision is how it is trained on GPUs; parts of two types must not meet."""
    for name, value in terms.items():
        setattr(config, name, value)
    model = CalmForPreTraining(quiet(config)).train()
    drawn = spoil(pretraining_batch())
    expected = model(**drawn).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**drawn).loss
    loss.backward()
    close(loss, expected, 0.05)
    assert all(slope is None or slope.isfinite().all() for slope in gradients(model).values())


def test_attention_implementations_agree(audio_config_values, text_config, batch):
    """The fused kernels are a matter of speed alone."""
    outputs = []
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        audio_config = CalmAudioConfig(**audio_config_values)
        config = CalmConfig(audio_config=audio_config, text_config=text_config, attn_implementation=attention)
        model = CalmModel(config).eval()
        assert model.audio_model.config._attn_implementation == attention
        outputs.append(model(**batch).last_hidden_state)
    close(*outputs)


def test_the_exported_graph_is_the_model(config, batch):
    """Deployment runs the graph: with sizes frozen in it, it would be right for one length of clip only."""
    model = CalmModel(config).eval()

    class Tensors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, input_features, input_features_mask):
            output = self.model(input_ids, input_features, attention_mask, input_features_mask=input_features_mask)
            return output.last_hidden_state, output.audio_embeds, output.text_embeds

    clips, words, windows = (torch.export.Dim(name, min=2, max=40) for name in ("clips", "words", "windows"))
    text, audio = {0: clips, 1: words}, {0: clips, 1: 8 * windows}
    graph = torch.export.export(
        Tensors(), tuple(batch[key] for key in INPUTS), dynamic_shapes=(text, text, audio, audio)
    )
    for form in (batch, spoil(lengthen(batch)), {key: value[:2] for key, value in batch.items()}):
        with torch.no_grad():
            expected = Tensors()(*(form[key] for key in INPUTS))
            for value, truth in zip(graph.module()(*(form[key] for key in INPUTS)), expected, strict=True):
                close(value, truth)


# ---- Pretraining


def test_pretraining_returns_every_term(config, pretraining_batch):
    """The weighted sum is the loss, and a term of weight 0 is not computed."""
    weights = dict(zip([f"{term}_weight" for term in TERMS], (0.5, 0.1, 2.0, 3.0), strict=True))
    for name, weight in weights.items():
        setattr(config, name, weight)
    drawn = pretraining_batch()
    output = CalmForPreTraining(config).eval()(**drawn)
    assert all(output[term] > 0 for term in TERMS)
    close(output.loss, sum(weight * output[term] for weight, term in zip(weights.values(), TERMS, strict=True)))
    assert output.logits_per_audio.shape == (4, 4)
    assert torch.equal(output.logits_per_text, output.logits_per_audio.T)
    close(output.logits_per_audio, output.audio_embeds @ output.text_embeds.T / 0.07, 1e-3)
    for term in TERMS:
        setattr(config, f"{term}_weight", 0.0)
        without = CalmForPreTraining(config).eval()(**drawn)
        assert getattr(without, term) is None
        setattr(config, f"{term}_weight", 1.0)


@pytest.mark.parametrize("training", [False, True])
def test_padding_does_not_change_a_pretraining_step(config, pretraining_batch, training):
    """The loss of a clip may not depend on how long the others in its batch are."""
    model = CalmForPreTraining(quiet(config)).train(training)
    drawn = pretraining_batch()
    results = []
    for form in (drawn, spoil(drawn), spoil(lengthen(drawn))):
        model.zero_grad()
        output = model(**form)
        output.loss.backward()
        results.append(({term: output[term] for term in TERMS}, gradients(model)))
    for terms, slopes in results[1:]:
        for term in TERMS:
            close(terms[term], results[0][0][term])
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, results[0][1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_every_parameter_learns_in_the_fuse_stage(config, pretraining_batch):
    """A parameter without gradient is dead weight, and stops distributed training."""
    model = CalmForPreTraining(config).train()
    model(**pretraining_batch()).loss.backward()
    idle = [name for name, slope in gradients(model).items() if slope is None or not slope.any()]
    # A bias of the keys shifts every score of a query alike, so that its slope is zero but for rounding.
    assert [name for name in idle if not name.endswith(("k_proj.bias", "key.bias"))] == []


def test_the_align_stage_trains_spectran_alone(config, pretraining_batch, monkeypatch):
    """The language model is only a target: it never runs, and what is not frozen by hand has no gradient to lose."""
    for name, value in ALIGN.items():
        setattr(config, name, value)
    model = CalmForPreTraining(config).train()
    monkeypatch.setattr(model.calm.text_model, "forward", None)
    model(**pretraining_batch()).loss.backward()
    trained = {name for name, slope in gradients(model).items() if slope is not None}
    spectran = {f"calm.audio_model.{name}" for name, _ in model.calm.audio_model.named_parameters()}
    expected = spectran | {"calm.audio_projection.weight", "calm.audio_projection.bias", "logit_scale"}
    assert trained == expected - {"calm.audio_model.mask_embedding"}


def test_the_language_model_does_not_run_for_terms_without_masks(config, batch, monkeypatch):
    """Evaluation gives no masks: retrieval over a corpus would pay for a language model whose output nobody reads."""
    model = CalmForPreTraining(config).eval()
    monkeypatch.setattr(model.calm.text_model, "forward", None)
    output = model(**batch)
    assert output.masked_language_loss is output.masked_acoustic_loss is None
    assert output.loss == output.audio_text_loss


def test_the_contrast_does_not_hang_on_the_language_models_layers(config, pretraining_batch):
    """CALP aligns with the input embeddings; through the layers, the target would move while it is aimed at."""
    model, drawn = CalmForPreTraining(config).eval(), pretraining_batch()
    before = model(**drawn)
    with torch.no_grad():
        for parameter in model.calm.text_model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = model(**drawn)
    assert torch.equal(before.audio_text_loss, after.audio_text_loss)
    assert torch.equal(before.audio_audio_loss, after.audio_audio_loss)
    assert before.masked_language_loss != after.masked_language_loss


def test_the_text_target_sees_the_words_under_the_masks(config, pretraining_batch):
    """[MASK] in a transcript belongs to objective 3; the contrast must aim at what was said."""
    model, drawn = CalmForPreTraining(config).eval(), pretraining_batch()
    said = torch.where(drawn["labels"] != -100, drawn["labels"], drawn["input_ids"])
    target = model.calm.get_text_features(said, drawn["attention_mask"]).pooler_output
    assert torch.equal(model(**drawn).text_embeds, target)


def test_a_masked_window_is_predicted_without_being_seen(config, pretraining_batch):
    """A leak would let the model copy: the term would fall to zero and teach nothing."""
    model, drawn, predictions = CalmForPreTraining(config).eval(), pretraining_batch(), []
    model.acoustic_head.register_forward_hook(lambda module, given, output: predictions.append(output))
    assert drawn["mask_time_indices"][[0, 2], 1].all()
    before = model(**drawn)
    drawn["input_features"][0, 8:16] += 1  # the masked window of the first clip
    after = model(**drawn)
    assert torch.equal(*predictions)
    assert before.masked_acoustic_loss != after.masked_acoustic_loss  # its target did change
    drawn["input_features"][0, :8] += 1  # a visible window, in contrast, must be of use
    model(**drawn)
    assert not torch.equal(predictions[1], predictions[2])


def test_the_masked_terms_are_those_of_their_formulas(config, pretraining_batch):
    """From the model's own states: cross-entropy over the vocabulary, and InfoNCE over all masked windows."""
    model, drawn, seen = CalmForPreTraining(config).eval(), pretraining_batch(), {}
    for name in ("lm_head", "acoustic_head"):
        getattr(model, name).register_forward_hook(lambda m, given, output, name=name: seen.update({name: output}))
    output = model(**drawn)
    labels = drawn["labels"][drawn["labels"] != -100]
    expected = -seen["lm_head"].log_softmax(-1)[torch.arange(4), labels].mean()
    close(output.masked_language_loss, expected)
    unmasked = model.calm(**{key: drawn[key] for key in INPUTS}).acoustic_tokens
    true = unmasked[drawn["mask_time_indices"]]
    similarities = normalize(seen["acoustic_head"], dim=-1) @ normalize(true, dim=-1).T / 0.07
    close(output.masked_acoustic_loss, -similarities.log_softmax(-1).diagonal().mean(), 1e-4)


def test_the_targets_of_masked_windows_do_not_move_to_meet_the_prediction(config, pretraining_batch):
    """With a gradient through them, all acoustic tokens could become one: the easiest target of all."""
    for term in TERMS[:3]:
        setattr(config, f"{term}_weight", 0.0)
    model = CalmForPreTraining(config).train()
    torch.nn.init.zeros_(model.acoustic_head.weight)  # closes the way through the prediction
    model(**pretraining_batch()).loss.backward()
    assert model.acoustic_head.weight.grad.any()
    assert all(value.grad is None or not value.grad.any() for value in model.calm.parameters())


def test_neighbours_are_compared_before_the_context(config, pretraining_batch):
    """After the context layers each window has seen its neighbour, and the contrast would be won by looking."""
    model, drawn = CalmForPreTraining(config).eval(), pretraining_batch()
    assert drawn["pair_indices"].tolist() == [1, 0, 2, -1]
    before = model(**drawn)
    drawn["input_features"][0, :8] += 1  # in no pair
    drawn["input_features"][3] += 1  # a clip of one window takes no part
    after = model(**drawn)
    assert torch.equal(before.audio_audio_loss, after.audio_audio_loss)
    assert before.audio_text_loss != after.audio_text_loss
    windows, _ = model.calm.audio_model.encode_windows(drawn["input_features"], drawn["input_features_mask"])
    first = normalize(torch.stack((windows[0, 1], windows[1, 0], windows[2, 2])), dim=-1)
    second = normalize(torch.stack((windows[0, 2], windows[1, 1], windows[2, 3])), dim=-1)
    close(after.audio_audio_loss, -(first @ second.T / 0.07).log_softmax(-1).diagonal().mean())


def test_no_pair_and_no_mask_are_zeros_in_the_graph(config, pretraining_batch):
    """Short clips and short texts may leave a batch without any; the step must still run on every rank."""
    drawn = pretraining_batch(windows=(1, 1, 1, 1))
    drawn["labels"][:] = -100
    model = CalmForPreTraining(config).train()
    output = model(**drawn)
    assert [output[term].item() for term in TERMS[1:]] == [0, 0, 0]
    output.loss.backward()
    assert [name for name, slope in gradients(model).items() if slope is None] == []
    assert all(slope.isfinite().all() for slope in gradients(model).values())


def test_rows_that_lack_a_modality_take_no_part_in_the_contrast(config, pretraining_batch, select):
    """A clip without transcript has no text to be near to; with a target of zeros it would still be a negative."""
    drawn = pretraining_batch()
    model = CalmForPreTraining(config).eval()
    expected = model(**select(drawn, [0, 2])).audio_text_loss
    drawn["attention_mask"][1] = 0
    drawn["input_features_mask"][3] = 0
    drawn["labels"][1] = -100
    close(model(**drawn).audio_text_loss, expected)


def test_a_batch_of_one_is_refused_in_training(config, pretraining_batch, select):
    """Without negatives the contrast is zero, and a run would look perfect from the first step."""
    one = select(pretraining_batch(), [2])
    with pytest.raises(ValueError, match="at least two clips.*per_device_train_batch_size"):
        CalmForPreTraining(config).train()(**one)
    assert CalmForPreTraining(config).eval()(**one).audio_text_loss == 0


def test_the_scale_is_clamped_at_100(config, batch):
    """Beyond it the contrast turns unstable."""
    config.logit_scale_init_value = 10.0
    output = CalmForPreTraining(config).eval()(**batch)
    close(output.logits_per_audio, 100 * output.audio_embeds @ output.text_embeds.T, 1e-3)


@pytest.mark.parametrize("size", [1, 3])
def test_chunks_change_neither_loss_nor_gradient(config, pretraining_batch, size):
    """Chunks trade time for memory, so that a large batch of negatives fits; nothing else may change."""
    config = quiet(config)
    results = []
    for config.contrastive_chunk_size in (None, size):
        torch.manual_seed(0)
        model = CalmForPreTraining(config).train()
        output = model(**pretraining_batch())
        output.loss.backward()
        results.append((output.loss, gradients(model)))
    close(results[1][0], results[0][0])
    for name, slope in results[1][1].items():
        torch.testing.assert_close(slope, results[0][1][name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_changes_neither_loss_nor_gradient(config, pretraining_batch):
    """Recomputed activations must be the same ones; the layers' second run shows that the option does something."""
    results, runs = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = CalmForPreTraining(quiet(config)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        count = []
        model.calm.audio_model.layers[0].attention.register_forward_hook(lambda *_, count=count: count.append(1))
        output = model(**pretraining_batch())
        output.loss.backward()
        results.append((output.loss, gradients(model)))
        runs.append(len(count))
    assert runs == [1, 2]
    close(results[1][0], results[0][0])
    for name, slope in results[1][1].items():
        torch.testing.assert_close(slope, results[0][1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_without_context_layers_every_objective_still_works(config, pretraining_batch):
    """`num_context_layers=0` is an ablation of the design."""
    config.audio_config.num_context_layers = 0
    output = CalmForPreTraining(config).train()(**pretraining_batch())
    assert all(output[term] > 0 for term in TERMS)
    output.loss.backward()


def test_candidates_for_a_clip_give_logits_without_loss(config, processor, noise, batch):
    """The library's zero-shot pipeline gives one clip and N texts, and reads `logits_per_audio`."""
    model = CalmForPreTraining(config).eval()
    answer = pipeline(
        "zero-shot-audio-classification", model=model, feature_extractor=processor.feature_extractor,
        tokenizer=processor.tokenizer,
    )(noise(0.5), candidate_labels=["cat", "red tree", "stop"], hypothesis_template="the {}")  # fmt: skip
    assert {entry["label"] for entry in answer} == {"cat", "red tree", "stop"}
    assert sum(entry["score"] for entry in answer) == pytest.approx(1)
    output = model(batch["input_ids"], batch["input_features"][:1], batch["attention_mask"])
    assert output.logits_per_audio.shape == (1, 4)
    assert output.loss is None
    with pytest.raises(ValueError, match="1 clips and 4 transcripts"):
        model.train()(batch["input_ids"], batch["input_features"][:1], batch["attention_mask"])


# ---- Classification


def test_classifier_rows_alone_and_together(config, batch, select):
    """The emotion of a clip may not depend on the clips it is scored with."""
    model = CalmForSequenceClassification(config).eval()
    batch["attention_mask"][1] = 0
    batch["input_features_mask"][3] = 0
    together = model(**spoil(batch)).logits
    assert together.shape == (4, 2)
    close(model(**spoil(lengthen(batch))).logits, together)
    close(model(**select(batch, [0])).logits, together[:1])
    close(model(**{key: batch[key][1:2] for key in INPUTS[2:]}).logits, together[1:2])
    close(model(**{key: batch[key][3:4] for key in INPUTS[:2]}).logits, together[3:])


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2, 1, 0])),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.ones(4, 3)),
        ({"num_labels": 3, "problem_type": "regression", "regression_loss": "ccc"}, torch.rand(4, 3)),
        ({"num_labels": 1}, torch.rand(4)),
    ],
)
def test_every_problem_trains_the_whole_classifier(audio_config, text_config, batch, settings, labels):
    """Whatever the labels, the gradient reaches every layer, and the configuration stays as it was."""
    config = CalmConfig(audio_config=audio_config, text_config=text_config, **settings)
    model = CalmForSequenceClassification(config).train()
    before = config.to_dict()
    output = model(**batch, labels=labels)
    output.loss.backward()
    idle = {name for name, slope in gradients(model).items() if slope is None}
    assert idle == {"calm.audio_model.mask_embedding"}  # fine-tuning hides no window
    assert config.to_dict() == before


# ---- Saving, loading, starting from a language model


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        (CalmModel, AutoModel),
        (CalmForPreTraining, AutoModelForPreTraining),
        (CalmForSequenceClassification, AutoModelForSequenceClassification),
        (CalmForSequenceClassification, AutoModelForAudioClassification),
    ],
)
def test_saving_and_loading_are_exact(kind, auto, config, batch, tmp_path):
    """A weight that is not saved comes back random, and scores collapse to chance without a word."""
    model = kind(config).eval()
    with torch.no_grad():
        for value in filter(torch.is_floating_point, (*model.parameters(), *model.buffers())):
            value.add_(0.01)  # so that nothing can come back by being initialised alike
    model.save_pretrained(tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is kind
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    expected, actual = model(**batch), loaded(**batch)
    assert list(actual) == list(expected)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


def test_spectran_saves_and_loads_alone(audio_config, batch, tmp_path):
    model = CalmAudioModel(audio_config).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is CalmAudioModel
    assert torch.equal(loaded.mask_embedding, model.mask_embedding)
    assert torch.equal(loaded(batch["input_features"])[0], model(batch["input_features"])[0])


def test_a_pretraining_checkpoint_serves_every_model(config, batch, tmp_path, caplog):
    """Features, classification and further pretraining all start from it; a head that is missing is named loudly."""
    model = CalmForPreTraining(config).eval()
    model.save_pretrained(tmp_path)
    expected = model.calm(**batch)
    loaded, report = CalmModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(loaded(**batch).last_hidden_state, expected.last_hidden_state)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        classifier, report = CalmForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert "classifier.weight" in caplog.text
    assert classifier(**batch).logits.shape == (4, 5)
    assert torch.equal(classifier.calm(**batch).last_hidden_state, expected.last_hidden_state)


def test_heads_that_are_missing_are_initialised(config, tmp_path):
    """Models are built without memory and filled from the file: what the file lacks must not stay uninitialised."""
    config.logit_scale_init_value = 1.25
    CalmModel(config).save_pretrained(tmp_path)
    model, report = CalmForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"logit_scale", "lm_head", "acoustic_head"}
    assert model.logit_scale == 1.25
    assert 0 < model.acoustic_head.weight.std() < 0.1
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.bias.eq(0).all()


def test_the_language_head_shares_the_word_embeddings_or_not(config, tmp_path):
    """Tied, they are one parameter also after loading; untied, two."""
    for config.tie_word_embeddings in (True, False):
        model = CalmForPreTraining(config)
        model.save_pretrained(tmp_path / str(config.tie_word_embeddings))
        for one in (model, CalmForPreTraining.from_pretrained(tmp_path / str(config.tie_word_embeddings))):
            tied = one.lm_head.decoder.weight is one.calm.text_model.get_input_embeddings().weight
            assert tied is config.tie_word_embeddings


@pytest.fixture
def language_model(text_config, tokenizer, tmp_path):
    """A pretrained language model with its tokenizer, and its folder."""
    model = BertModel(text_config)
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return model, tmp_path / "bert"


@pytest.mark.parametrize("kind", [CalmModel, CalmForPreTraining, CalmForSequenceClassification])
def test_a_model_starts_from_a_pretrained_language_model(kind, language_model, audio_config, tmp_path):
    """Its weights arrive unchanged, and the aligned space has its origin in the middle of its vocabulary."""
    reference, folder = language_model
    model = kind.from_text_pretrained(folder, audio_config=audio_config, audio_text_loss_weight=0.5)
    base = model if kind is CalmModel else model.calm
    for name, value in base.text_model.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name
    close(base.word_embedding_mean, reference.get_input_embeddings().weight.mean(0))
    assert model.config.special_token_ids == [0, 1, 2, 3, 4]
    assert model.config.audio_text_loss_weight == 0.5
    assert model.config.audio_config.hidden_size == 32
    model.save_pretrained(tmp_path / "calm")
    loaded = kind.from_pretrained(tmp_path / "calm")
    assert str(folder) not in (tmp_path / "calm" / "config.json").read_text()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_language_model_starts_with_its_own_options(language_model, audio_config):
    """What belongs to the loading goes there, what belongs to the configuration goes there, a typo goes nowhere."""
    _, folder = language_model
    model = CalmModel.from_text_pretrained(
        folder, audio_config=audio_config, dtype=torch.bfloat16, local_files_only=True, special_token_ids=[2, 3]
    )
    assert model.dtype == torch.bfloat16
    assert model.config.special_token_ids == [2, 3]
    with pytest.raises(ValueError, match="audio_text_loss_weight"):
        CalmModel.from_text_pretrained(folder, audio_config=audio_config, audio_text_loss_wieght=0.5)


def test_the_demo_language_model_loads(minilm_folder, audio_config):
    """The README's first command stands on it."""
    model = CalmModel.from_text_pretrained(minilm_folder, audio_config=audio_config, local_files_only=True)
    assert model.config.hidden_size == 384
    assert model.config.special_token_ids == [0, 100, 101, 102, 103]
    assert model.word_embedding_mean.norm() > 0.1


# ---- Eight clips


@pytest.fixture
def eight_clips(processor):
    """Melodies of eight notes with a transcript each, through the processor."""
    generator = np.random.default_rng(0)
    time = np.arange(16000 * 0.08) / 16000
    clips = [
        np.concatenate([0.2 * np.sin(2 * np.pi * note * time) for note in generator.uniform(100, 6000, 8)])
        for _ in range(8)
    ]
    texts = ["the cat sat", "a dog ran", "red tree", "blue mat", "one two", "three four five", "stop", "go left"]
    return processor(audio=clips, text=texts, sampling_rate=16000, return_tensors="pt")


def fit(model, batch, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()


def test_eight_clips_find_their_words(config, eight_clips):
    """The way from waveform to loss in one truth: if eight clips cannot be learned by heart, nothing can."""
    for name, value in ALIGN.items():
        setattr(config, name, value)
    model = CalmForPreTraining(quiet(config))
    model.calm.text_model.requires_grad_(False)
    fit(model, eight_clips, 150)
    output = model(**eight_clips)
    assert output.audio_text_loss < 0.1
    assert output.logits_per_audio.argmax(-1).tolist() == list(range(8))
    assert output.logits_per_text.argmax(-1).tolist() == list(range(8))


@pytest.mark.parametrize("given", [INPUTS, INPUTS[2:], INPUTS[:2]])
def test_eight_clips_find_their_class(config, eight_clips, given):
    """With both modalities and with either."""
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    model = CalmForSequenceClassification(quiet(config))
    inputs = {key: eight_clips[key] for key in given}
    fit(model, {**inputs, "labels": labels}, 100)
    output = model(**inputs, labels=labels)
    assert output.loss < 0.1
    assert output.logits.argmax(-1).tolist() == labels.tolist()
