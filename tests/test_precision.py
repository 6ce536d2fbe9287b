"""Half floats: outputs stay finite and near those of float32, losses are computed in float32, types never clash."""

import pytest
import torch
from model_helpers import (
    INPUTS,
    LANGUAGE_MODELS,
    TERMS,
    close,
    gradients,
    language_model_config,
    quiet,
    spoil,
)

from modeling_calm import CalmAudioModel, CalmConfig, CalmForPreTraining, CalmForSequenceClassification, CalmModel
from modeling_calm.loss_calm import contrast, mean_over_ranks, pair_loss
from modeling_calm.spectran_calm import masked_mean

HALVES = [torch.bfloat16, torch.float16]
half_floats = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}


@pytest.fixture
def mixed_batch(batch):
    """Sound without words in one row, words without sound in another, NaN in every masked patch."""
    batch["attention_mask"][1] = 0
    batch["input_features_mask"][3] = 0
    return spoil(batch)


@half_floats
def test_a_mean_is_taken_in_float32(dtype):
    """100 times 1,000 overflows float16, and bfloat16 cannot count to 1,001."""
    mask = torch.arange(1200)[None] < 1001
    values = torch.full((1, 1200, 2), 1000.0, dtype=dtype).masked_fill(~mask.unsqueeze(-1), torch.nan)
    mean = masked_mean(values, mask)
    assert mean.dtype == dtype
    assert torch.equal(mean, torch.full((1, 2), 1000.0, dtype=dtype))


@half_floats
def test_half_weights_give_what_float32_gives(config, mixed_batch, dtype):
    """Float16 divided zero by zero in every row that lacks a modality, and one such row spoils a whole index."""
    model = CalmForSequenceClassification(config).eval()
    base, head = model.calm(**mixed_batch), model(**mixed_batch, labels=torch.zeros(4).long())
    model.to(dtype)
    half_base, half_head = model.calm(**mixed_batch), model(**mixed_batch, labels=torch.zeros(4).long())
    assert mixed_batch["input_features"].dtype == torch.float32  # as the processor gives them
    for key, value in (*half_base.items(), ("logits", half_head.logits)):
        expected = base[key] if key in base else head[key]
        assert value.dtype == (torch.bool if key == "acoustic_tokens_mask" else dtype), key
        close(value.float(), expected.float(), TOLERANCE[dtype])
    assert half_head.loss.dtype == torch.float32
    close(half_head.loss, head.loss, TOLERANCE[dtype])
    again = model.calm(**mixed_batch | {"input_features": mixed_batch["input_features"].to(dtype)})
    close(again.audio_embeds, half_base.audio_embeds, TOLERANCE[dtype])


@half_floats
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_training_step_in_half_weights(name, audio_config, pretraining_batch, dtype):
    """Every language model, rows that lack a modality among them: a loss in float32 and gradients that are numbers."""
    config = CalmConfig(audio_config=audio_config, text_config=language_model_config(name), transcript_loss_weight=1.0)
    model = CalmForPreTraining(config).to(dtype).train()
    drawn = pretraining_batch()
    drawn["attention_mask"][1], drawn["labels"][1] = 0, -100
    drawn["input_features_mask"][3] = 0
    output = model(**spoil(drawn))
    assert all(output[term].dtype == torch.float32 and output[term].isfinite() for term in ("loss", *TERMS))
    output.loss.backward()
    assert all(slope.dtype == dtype and slope.isfinite().all() for slope in gradients(model).values())


@half_floats
def test_a_step_under_autocast(config, pretraining_batch, dtype):
    """Mixed precision is how it is trained on GPUs: weights, embeddings, losses and gradients stay float32."""
    model = CalmForPreTraining(quiet(config)).train()
    drawn = pretraining_batch()
    drawn["attention_mask"][1], drawn["labels"][1] = 0, -100
    drawn["input_features_mask"][3] = 0
    drawn = spoil(drawn)
    expected = model(**drawn)
    with torch.autocast("cpu", dtype):
        output = model(**drawn)
    for key in ("loss", *TERMS, "audio_embeds", "text_embeds", "logits_per_audio"):
        assert output[key].dtype == torch.float32, key
        close(output[key], expected[key], TOLERANCE[dtype] * (20 if key == "logits_per_audio" else 2))
    output.loss.backward()
    assert all(slope.dtype == torch.float32 and slope.isfinite().all() for slope in gradients(model).values())


@half_floats
def test_the_contrast_is_computed_in_float32(dtype):
    """At a scale of 100, bfloat16 rounds the logits to steps of 0.5: the loss of a good model would be noise."""
    queries, keys = (torch.nn.functional.normalize(torch.randn(16, 32), dim=-1).to(dtype) for _ in range(2))
    groups, scale = torch.arange(16), torch.tensor(100.0, dtype=dtype)
    expected = contrast(queries.float(), keys.float(), groups, groups, scale.float())
    pairs = pair_loss(queries.float(), keys.float(), scale.float(), None, gather=False)
    with torch.autocast("cpu", dtype):
        for given in (queries, queries.float()):
            close(contrast(given, keys, groups, groups, scale), expected)
            close(pair_loss(given, keys, scale, None, gather=False), pairs)
    zeros = torch.zeros(2, 32, dtype=dtype)
    assert pair_loss(zeros, zeros, scale, None, gather=False).isfinite()
    assert mean_over_ranks(torch.tensor(3003.0), torch.tensor(1001)) == 3  # a count no half float holds


@half_floats
def test_the_scale_stays_sane(config, batch, dtype):
    """Its logarithm is clamped and its exponential taken in float32, whatever the type of the weights."""
    config.logit_scale_init_value = 10.0
    output = CalmForPreTraining(config).to(dtype).eval()(**batch)
    cosines = output.audio_embeds.float() @ output.text_embeds.float().T
    assert output.logits_per_audio.dtype == torch.float32
    close(output.logits_per_audio, 100 * cosines, 1e-2)
    assert output.loss.isfinite()


@half_floats
def test_the_vocabulary_is_described_in_float32(config, dtype):
    """The mean of thousands of half floats, rounded at each step, would be an origin nobody chose."""
    model = CalmModel(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(3.0)  # far from zero, where half floats are coarse
    model.to(dtype).describe_vocabulary()
    words = model.get_input_embeddings().weight.float()
    assert torch.equal(model.word_embedding_mean, words.mean(0).to(dtype))
    assert torch.equal(
        model.word_embedding_norm, (words - words.mean(0)).norm(dim=-1).square().mean().sqrt().to(dtype)
    )


@half_floats
def test_a_half_checkpoint_comes_back_as_it_was(config, batch, tmp_path, dtype):
    """`from_pretrained` keeps the type of the file unless told otherwise; buffers must follow the weights."""
    model = CalmForPreTraining(config).to(dtype).eval()
    model.save_pretrained(tmp_path)
    for given in ({}, {"dtype": "auto"}, {"dtype": dtype}):
        loaded = CalmForPreTraining.from_pretrained(tmp_path, **given)
        for name, value in loaded.state_dict().items():
            assert value.dtype == dtype, name
            assert torch.equal(value, model.state_dict()[name]), name
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    widened = CalmForPreTraining.from_pretrained(tmp_path, dtype=torch.float32)
    assert {value.dtype for value in widened.state_dict().values()} == {torch.float32}
    close(widened(**batch).audio_embeds, model(**batch).audio_embeds.float(), TOLERANCE[dtype])


@half_floats
def test_features_of_any_type_are_taken(audio_config, batch, dtype):
    """The processor gives float32, a cache may hold halves, numpy gives float64."""
    for weights in (torch.float32, dtype):
        model = CalmAudioModel(audio_config).to(weights).eval()
        expected = model(batch["input_features"], batch["input_features_mask"]).last_hidden_state
        for features in (dtype, torch.float64):
            given = {**batch, "input_features": batch["input_features"].to(features)}
            output = model(**{key: spoil(given)[key] for key in INPUTS[2:]})
            assert output.last_hidden_state.dtype == weights
            close(output.last_hidden_state, expected, 2 * TOLERANCE[dtype])
