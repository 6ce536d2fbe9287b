"""`CalmForPreTraining`: four objectives, none of which can be won by looking."""

import pytest
import torch
from model_helpers import ALIGN, INPUTS, TERMS, close, gradients, lengthen, quiet, spoil
from torch.nn.functional import normalize
from transformers import pipeline

from modeling_calm import CalmForPreTraining


def test_pretraining_returns_every_term(config, pretraining_batch):
    """The weighted sum is the loss, and a term of weight 0 is not computed."""
    weights = dict(zip([f"{term}_weight" for term in TERMS], (0.5, 0.1, 0.3, 2.0, 3.0), strict=True))
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
    spectran |= {"calm.audio_projection.weight", "calm.audio_projection.bias"}
    assert trained == spectran | {"logit_scale", "reader.logit_scale", "reader.blank_embedding"}


def test_the_language_model_does_not_run_for_terms_without_masks(config, batch, monkeypatch):
    """Evaluation gives no masks: retrieval over a corpus would pay for a language model whose output nobody reads."""
    model = CalmForPreTraining(config).eval()
    monkeypatch.setattr(model.calm.text_model, "forward", None)
    output = model(**batch)
    assert output.masked_language_loss is output.masked_acoustic_loss is None
    assert output.loss == output.audio_text_loss + output.transcript_loss
    config.audio_text_loss_weight = config.transcript_loss_weight = 0.0
    output = CalmForPreTraining(config).eval()(**batch)
    assert output.loss == 0, "Trainer evaluates only what has a loss"


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
    for term in TERMS[:4]:
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
    drawn = pretraining_batch(words=(3, 5, 4, 3), windows=(1, 1, 1, 1))
    drawn["labels"][:] = -100
    model = CalmForPreTraining(config).train()
    output = model(**drawn)
    assert [output[term].item() for term in TERMS[1:]] == [0, 0, 0, 0]
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
    drawn["attention_mask"][1, :2] = 1
    drawn["input_ids"][1, :2] = config.special_token_ids[0]  # writing that the tokenizer does not know
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


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_change_neither_loss_nor_gradient(config, pretraining_batch, monkeypatch, size):
    """Chunks trade time for memory, so that a large batch of negatives fits; nothing else may change."""
    monkeypatch.setattr("modeling_calm.modeling_calm.WORDS_AT_ONCE", 4)
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
        expected = results[0][1][name]
        assert (slope - expected).norm() <= 1e-5 * expected.norm() + 1e-6, name


@pytest.mark.parametrize("autocast", [False, True])
def test_a_recomputed_chunk_is_the_one_that_was_seen(config, pretraining_batch, monkeypatch, autocast):
    """Dropout drawn anew, or another precision, would give the gradient of a network that made no prediction."""
    monkeypatch.setattr("modeling_calm.modeling_calm.WORDS_AT_ONCE", 4)
    config.contrastive_chunk_size = 2
    results = []
    for recompute in (True, False):
        if not recompute:
            monkeypatch.setattr("modeling_calm.modeling_calm.checkpoint", lambda encode, *rows, **_: encode(*rows))
        torch.manual_seed(0)
        model = CalmForPreTraining(config).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**pretraining_batch()).loss
        torch.rand(3)  # what else draws between forward and backward, a data loader say
        loss.backward()
        results.append((loss, gradients(model)))
    close(results[1][0], results[0][0])
    for name, slope in results[1][1].items():
        torch.testing.assert_close(slope, results[0][1][name], atol=1e-6, rtol=1e-4, msg=name)


def test_no_module_sees_more_clips_than_a_chunk(config, pretraining_batch):
    """What runs over the whole batch, logits over a vocabulary before all, would grow with it."""
    config.contrastive_chunk_size = 2
    model, seen = CalmForPreTraining(config).train(), {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, given, output, name=name: seen.setdefault(name, []).append(len(given[0])) if given else None
        )
    drawn = pretraining_batch(words=(5,) * 6, windows=(3,) * 6)
    model(**drawn).loss.backward()
    assert seen["calm.audio_model.layers.1"] == [2 * 3] * 6  # three chunks of two clips of three windows, twice
    assert seen["lm_head"] == seen["acoustic_head"] == [2] * 6  # one masked word and one masked window a clip
    assert max(max(counts) for name, counts in seen.items() if "text_model.encoder" in name) == 2


def test_an_error_in_a_chunk_names_the_row_of_the_batch(config, pretraining_batch):
    """The first row of the third chunk is no row 0: a search for it would end at the wrong recording."""
    config.contrastive_chunk_size = 2
    model = CalmForPreTraining(config).train()
    drawn = pretraining_batch(words=(2,) * 6, windows=(3,) * 6)
    empty = {**drawn, "attention_mask": drawn["attention_mask"].clone()}
    empty["input_features_mask"] = drawn["input_features_mask"].clone()
    empty["attention_mask"][[4, 5]] = empty["input_features_mask"][[4, 5]] = 0
    with pytest.raises(ValueError, match=r"Rows \[4, 5\] of the batch have neither"):
        model(**empty)
    long = pretraining_batch(words=(2,) * 6, windows=(3, 3, 3, 46, 3, 3))
    with pytest.raises(ValueError, match="Row 3 has 50 lexical and acoustic tokens"):
        model(**long)


def test_a_rank_with_fewer_clips_than_chunks_is_refused(config, pretraining_batch, monkeypatch):
    """All ranks run as many chunks as the one with most: sharded layers are gathered by all of them together."""
    monkeypatch.setattr("modeling_calm.modeling_calm.largest_over_ranks", lambda count, device: 5)
    config.contrastive_chunk_size = 2
    with pytest.raises(ValueError, match="has 4 clips, and another 5 chunks of 2. Give every rank as many"):
        CalmForPreTraining(config).train()(**pretraining_batch())


@pytest.mark.parametrize("name", ["labels", "pair_indices", "input_features_mask"])
def test_inputs_of_different_numbers_of_rows_are_refused(config, pretraining_batch, name):
    """Cut into chunks, the rows that are too many would vanish without a word."""
    config.contrastive_chunk_size = 2
    drawn = pretraining_batch()
    drawn[name] = torch.cat((drawn[name], drawn[name]))
    with pytest.raises(ValueError, match=f"numbers differ: .*'{name}': 8"):
        CalmForPreTraining(config).train()(**drawn)


def test_inputs_that_are_not_given_stay_away_from_the_chunks(config, pretraining_batch):
    """`None` is the default of every mask: in the align stage, half of the inputs."""
    config = quiet(config)
    results = []
    for config.contrastive_chunk_size in (None, 3):
        torch.manual_seed(0)
        drawn = pretraining_batch() | {"labels": None, "mask_time_indices": None, "pair_indices": None}
        results.append(CalmForPreTraining(config).train()(**drawn, token_type_ids=None))
    assert results[1].audio_audio_loss is results[1].masked_language_loss is None
    close(results[1].loss, results[0].loss)


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
    with pytest.raises(ValueError, match="numbers differ: .*'input_features': 1"):
        model.train()(batch["input_ids"], batch["input_features"][:1], batch["attention_mask"])


def test_transcripts_are_scored_as_they_are_trained(config, batch):
    """A score is minus the loss of its pair; padding, other clips and other texts of the same pieces leave it."""
    config.audio_text_loss_weight = config.audio_audio_loss_weight = 0.0
    model = CalmForPreTraining(config).eval()
    drawn = {key: batch[key] for key in INPUTS}
    scores = model.score_transcripts(**drawn)
    assert scores.shape == (4, 4)
    fits = scores.diagonal().isfinite()
    assert fits.tolist() == [True, False, True, False]  # clips of two and one tokens are shorter than their texts
    close(model(**drawn).transcript_loss, -scores.diagonal()[fits].mean())
    assert scores[3].isneginf().all(), "every text has more wordpieces than one"
    close(model.score_transcripts(**spoil(lengthen(drawn))), scores)
    alone = {key: value[2:3] if "features" in key else value for key, value in drawn.items()}
    close(model.score_transcripts(**alone), scores[2:3])
    config.transcript_loss_weight = 0.0
    with pytest.raises(ValueError, match="not trained to read"):
        model.score_transcripts(**drawn)
