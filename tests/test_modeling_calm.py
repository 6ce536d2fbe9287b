"""`CalmModel`: words, sounds or both through a language model, a row the same alone and in any batch."""

import pytest
import torch
from model_helpers import INPUTS, close, spoil
from torch.nn.functional import normalize
from transformers import BertModel

from modeling_calm import (
    CalmAudioModel,
    CalmForPreTraining,
    CalmForSequenceClassification,
    CalmModel,
)


def test_calm_model_shapes(config, batch):
    """The names and shapes of the contract."""
    model = CalmModel(config).eval()
    output = model(**batch)
    assert output.last_hidden_state.shape == (4, 7 + 4, 24)
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
    assert text_alone.last_hidden_state.shape == (4, 7, 24)
    assert text_alone.acoustic_tokens.shape == (4, 0, 24)
    assert torch.equal(text_alone.audio_embeds, torch.zeros(4, 24))
    assert torch.equal(text_alone.audio_pooler_output, torch.zeros(4, 4 * 32))


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


def test_the_language_model_gets_words_then_sounds_then_padding(config, batch):
    """Hidden states and attentions come in the compact order; `last_hidden_state` is back in the order given."""
    config.text_config._attn_implementation = "eager"
    model = CalmModel(config).eval()
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert [tuple(weights.shape) for weights in output.attentions] == 2 * [(4, 4, 10, 10)]
    words, sounds = batch["attention_mask"].sum(-1), output.acoustic_tokens_mask.sum(-1)
    for row, (first, second) in enumerate(zip(words.tolist(), sounds.tolist(), strict=True)):
        compact = output.hidden_states[-1][row]
        close(compact[:first], output.last_hidden_state[row, :first])
        close(compact[first : first + second], output.last_hidden_state[row, 7 : 7 + second])
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


@pytest.mark.parametrize("kind", [CalmModel, CalmForSequenceClassification, CalmForPreTraining])
def test_an_input_of_another_name_or_shape_is_refused(kind, config, batch):
    """A mask misspelt would let padding count as sound, and the mask of words cannot be that of the sound."""
    model = kind(config).eval()
    misspelt = {**batch, "input_feature_mask": batch["input_features_mask"]}
    message = r"takes no input `input_feature_mask`\. Did you mean `input_features_mask`"
    with pytest.raises(TypeError, match=f"`{kind.__name__}` {message}"):
        model(**misspelt)
    base = model if kind is CalmModel else model.calm
    for embed in (base.get_audio_features, base.audio_model):
        with pytest.raises(TypeError, match=message):
            embed(misspelt["input_features"], input_feature_mask=misspelt["input_feature_mask"])
    with pytest.raises(TypeError, match=r"no input `attention_masks`\. Did you mean `attention_mask`"):
        base.get_text_features(batch["input_ids"], attention_masks=batch["attention_mask"])
    model(**batch, token_type_ids=None, position_ids=None, adapter=None)  # as adapter libraries call
    for name in ("attention_mask", "token_type_ids"):
        with pytest.raises(ValueError, match=f"`{name}` has shape .* the mask of the sound is `input_features_mask`"):
            model(**{**batch, name: batch["input_features_mask"]})


def test_states_are_recorded_where_the_configuration_asks(config, batch):
    """Asked for by `from_pretrained(..., output_hidden_states=True)`, it stands in the outer configuration."""
    model = CalmModel(config).eval()
    assert model(**batch).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 1 + config.text_config.num_hidden_layers
    assert model(**batch, output_hidden_states=False).hidden_states is None


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantised_layers_read_the_same_patches(config, batch):
    """A quantised projection has weights of integers, to which features must not be rounded."""
    model = CalmForSequenceClassification(config).eval()
    expected = model(**batch).logits
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantised.calm.audio_model.embeddings.projection, torch.nn.Linear)
    close(quantised(**batch).logits, expected, tolerance=0.05)


def test_a_batch_whose_rows_all_lack_audio_is_text_alone(config, batch):
    """A rank may draw such a batch; SpecTran still takes part, so that distributed training does not wait for it."""
    model = CalmModel(config).eval()
    batch["input_features_mask"][:] = 0
    output = model(**spoil(batch))
    expected = model(batch["input_ids"], attention_mask=batch["attention_mask"])
    close(output.pooler_output, expected.pooler_output)
    assert torch.equal(output.audio_embeds, torch.zeros(4, 24))
    output.pooler_output.sum().backward()
    assert [name for name, value in model.audio_model.named_parameters() if value.grad is None] == []
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


def test_a_long_recording_is_embedded_in_one_call_piece_by_piece(config):
    """Whoever indexes meetings and broadcasts must not cut them first, nor run out of memory."""
    model = CalmModel(config).eval()
    audio = config.audio_config
    number = round(300 / audio.seconds_per_token)
    recording = torch.randn(1, number * audio.patches_per_token, audio.patch_dim)
    seen = []
    model.audio_model.pooling.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with torch.no_grad():
        whole = model.audio_model(recording)
        streamed = model.get_audio_features(recording)
    assert seen[0] == number and max(seen[1:]) <= 1024 and sum(seen[1:]) == number
    close(streamed.last_hidden_state, whole.last_hidden_state)
    tokens = model.project(whole.last_hidden_state, whole.acoustic_tokens_mask)
    close(streamed.pooler_output, model.embed(tokens, whole.acoustic_tokens_mask))


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
    mask[1, 1:4] = 0
    words = embeddings[batch["input_ids"][1, 4:6]] - embeddings.mean(0)
    close(model.get_text_features(batch["input_ids"], mask).pooler_output[1], normalize(words.mean(0), dim=-1))


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
