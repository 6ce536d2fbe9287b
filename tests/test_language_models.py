"""Every language model that accepts `inputs_embeds` can read acoustic tokens, however it counts positions."""

import pytest
import torch
from model_helpers import (
    INPUTS,
    LANGUAGE_MODELS,
    close,
    gradients,
    language_model_config,
    lengthen,
    quiet,
    spoil,
)
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForMaskedLM, BertGenerationConfig, PreTrainedTokenizerFast, XLNetConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_calm import CalmConfig, CalmForPreTraining, CalmForSequenceClassification, CalmModel

every_language_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)


@pytest.fixture
def family(name, audio_config) -> CalmConfig:
    """SpecTran beside the language model of the test's parameter."""
    config = CalmConfig(audio_config=audio_config, text_config=language_model_config(name), transcript_loss_weight=1.0)
    config.special_token_ids = [0, 1, 2, 3, 4]
    return config


@every_language_model
def test_rows_alone_and_together(family, batch, select):
    """Both modalities, one of them, or rows that lack one: a row's result is its own, in every way to count positions.

    With padding left between words and sounds, outputs moved by more than 1.
    """
    model = CalmModel(family).eval()
    batch["attention_mask"][1] = 0  # sound without words
    batch["input_features_mask"][3] = 0  # words without sound
    together = model(**spoil(batch))
    assert together.last_hidden_state.isfinite().all()
    longer = model(**spoil(lengthen(batch)))
    for key in ("pooler_output", "audio_pooler_output", "audio_embeds", "text_embeds"):
        close(longer[key], together[key])
    close(longer.last_hidden_state[:, :7], together.last_hidden_state[:, :7])
    close(longer.last_hidden_state[:, 10:14], together.last_hidden_state[:, 7:])
    for row in range(4):
        one = select(batch, [row]) if row in (0, 2) else {key: value[row : row + 1] for key, value in batch.items()}
        if row == 1:
            one = {key: one[key] for key in INPUTS[2:]}
        if row == 3:
            one = {key: one[key] for key in INPUTS[:2]}
        alone = model(**one)
        for key in ("pooler_output", "audio_pooler_output", "audio_embeds", "text_embeds"):
            close(alone[key][0], together[key][row])


@every_language_model
def test_text_padded_on_the_left_changes_nothing(family, batch):
    """Some tokenizers pad on the left; the positions of the words and of the sounds behind them must not move."""
    model = CalmModel(family).eval()
    left = dict(batch)
    for key in INPUTS[:2]:
        counts = batch["attention_mask"].sum(-1).tolist()
        left[key] = torch.stack([row.roll(7 - count) for row, count in zip(batch[key], counts, strict=True)])
    right_output, left_output = model(**batch), model(**left)
    close(left_output.pooler_output, right_output.pooler_output)
    for row, count in enumerate(counts):
        close(left_output.last_hidden_state[row, 7 - count : 7], right_output.last_hidden_state[row, :count])
    close(left_output.last_hidden_state[:, 7:], right_output.last_hidden_state[:, 7:])


@every_language_model
def test_audio_as_long_as_fits_works_and_longer_is_refused(name, family):
    """A position table read past its end is an index error, or on a GPU the end of the process."""
    model = CalmModel(family).eval()
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


@pytest.mark.parametrize("name", ["t5", "clip_text_model", "fnet", "gpt2", "llama"])
def test_what_cannot_read_acoustic_tokens_is_refused(name, audio_config):
    """An encoder with a decoder, or one that takes ids alone, would fail at the first batch, with a riddle.

    FNet mixes padding into its words, and a decoder reads them before it has heard a sound: both without an error.
    """
    with pytest.raises(ValueError, match=f"must be an encoder that takes `inputs_embeds`.*`{name}` is none"):
        CalmModel(CalmConfig(audio_config=audio_config, text_config={"model_type": name}))


@pytest.mark.parametrize(
    "text_config",
    [
        BertGenerationConfig(
            vocab_size=30, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
        ),
        XLNetConfig(vocab_size=30, d_model=24, n_layer=1, n_head=4, d_inner=48),
    ],
    ids=["bert-generation", "xlnet"],
)
def test_an_encoder_that_the_library_also_has_as_a_decoder_is_taken(text_config, audio_config, batch):
    model = CalmModel(CalmConfig(audio_config=audio_config, text_config=text_config)).eval()
    assert model(**batch).last_hidden_state.isfinite().all()


def test_an_encoder_set_to_decode_is_refused(audio_config):
    with pytest.raises(ValueError, match="must be an encoder"):
        CalmModel(CalmConfig(audio_config=audio_config, text_config=language_model_config("bert", is_decoder=True)))


@every_language_model
def test_words_alone_are_read_as_the_language_model_reads_them(family, batch):
    """What it knew before CALM must still be there: its own positions, its own token types, its own layers."""
    model = CalmModel(family).eval()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    padded = ids.masked_fill(mask == 0, family.text_config.pad_token_id)  # RoBERTa tells padding by the id
    expected = model.text_model(padded, attention_mask=mask).last_hidden_state
    close(model(ids, attention_mask=mask).last_hidden_state[mask.bool()], expected[mask.bool()])


@every_language_model
def test_sounds_go_on_where_the_words_end(family):
    """A clip whose acoustic tokens are the embeddings of words must mean what those words mean, at those places."""
    model = CalmModel(family).eval()
    ids = torch.randint(5, 27, (1, 9)).expand(2, -1)
    words = model.get_input_embeddings()(ids)
    words_mask, tokens_mask = torch.ones(2, 5).bool(), torch.ones(2, 4).bool()
    words_mask[1, 3:] = tokens_mask[1, 2:] = False
    fused = model.fuse(words[:, :5], words_mask, None, words[:, 5:] - model.word_embedding_mean, tokens_mask)
    for row, kept in enumerate(([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 5, 6])):
        expected = model.text_model(ids[row : row + 1, kept], attention_mask=torch.ones(1, len(kept)).long())
        close(fused.last_hidden_state[row, kept], expected.last_hidden_state[0])


@every_language_model
def test_token_types_reach_those_that_know_them_and_no_others(name, family, batch):
    """Some tokenizers always give them; a language model without them must neither fall over nor read them."""
    model = CalmModel(family).eval()
    types = torch.zeros_like(batch["input_ids"])
    types[:, 3:] = 1
    plain, typed = model(**batch), model(**batch, token_type_ids=types)
    if name not in ("bert", "albert", "electra"):
        assert torch.equal(typed.last_hidden_state, plain.last_hidden_state)
        return
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = model.text_model(ids, attention_mask=mask, token_type_ids=types).last_hidden_state[mask.bool()]
    text_alone = model(ids, attention_mask=mask, token_type_ids=types)
    close(text_alone.last_hidden_state[mask.bool()], expected)
    # Sounds are of type 0, whatever type the words before them have.
    zeros = model(**batch, token_type_ids=torch.zeros_like(types))
    assert torch.equal(zeros.last_hidden_state, plain.last_hidden_state)
    assert not torch.equal(typed.last_hidden_state, plain.last_hidden_state)


@every_language_model
def test_every_parameter_gets_a_gradient(family, pretraining_batch):
    """A language model whose layers stood outside the graph would be saved as it came, and look trained."""
    model = CalmForPreTraining(family).train()
    output = model(**spoil(pretraining_batch()))
    assert output.loss.isfinite()
    output.loss.backward()
    assert [name for name, slope in gradients(model).items() if slope is None or not slope.isfinite().all()] == []


@every_language_model
def test_the_tied_embedding_learns_from_both_its_uses_once(family, pretraining_batch):
    """The slope of a shared table is the sum over its two places; a copy would learn from one, a double from three."""
    slopes = {}
    for family.tie_word_embeddings in (True, False):
        model = CalmForPreTraining(quiet(family)).train()
        model.load_state_dict(slopes.get("state", model.state_dict()))
        slopes["state"] = model.state_dict()
        model(**pretraining_batch()).loss.backward()
        words, decoder = model.get_input_embeddings().weight, model.lm_head.decoder.weight
        assert (decoder is words) is family.tie_word_embeddings
        assert sum(value is words for value in model.parameters()) == 1
        slopes[family.tie_word_embeddings] = words.grad if decoder is words else (words.grad, decoder.grad)
    assert all(slope.any() for slope in slopes[False])
    torch.testing.assert_close(slopes[True], sum(slopes[False]), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@every_language_model
def test_recomputed_activations_change_neither_loss_nor_gradient(name, family, pretraining_batch):
    """Each layer inside the windows, across them and in the language model runs again, and finds what it found before.

    MPNet and ALBERT cannot recompute in transformers; beside them SpecTran does.
    """
    model, drawn = CalmForPreTraining(quiet(family)).train(), pretraining_batch()
    spectran = model.calm.audio_model
    layers = [*spectran.layers, *spectran.context_layers]
    of_text = [module for module in model.calm.text_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert bool(of_text) is (name not in ("mpnet", "albert"))
    inner, runs, results = [next(layer.children()) for layer in layers + of_text], [], []
    for layer in inner:  # a layer's own hooks stay outside of what is recomputed
        layer.register_forward_pre_hook(lambda module, given: runs[-1].append(module))
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        runs.append([])
        model.zero_grad()
        output = model(**drawn)
        output.loss.backward()
        results.append((output.loss, gradients(model)))
    assert all(runs[1].count(layer) == 2 * runs[0].count(layer) > 0 for layer in inner)
    close(results[1][0], results[0][0])
    for key, slope in results[1][1].items():
        torch.testing.assert_close(slope, results[0][1][key], atol=1e-5, rtol=1e-4, msg=key)


@every_language_model
@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_are_exact(family, tied, pretraining_batch, tmp_path):
    """To the bit, in safetensors, with the tied table written once and shared again after loading."""
    family.tie_word_embeddings = tied
    model = CalmForPreTraining(family).eval()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.decoder.weight" in file.keys()) is not tied  # noqa: SIM118, a file is no dictionary
    loaded, report = CalmForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert (loaded.lm_head.decoder.weight is loaded.get_input_embeddings().weight) is tied
    drawn = pretraining_batch()
    assert torch.equal(loaded(**drawn).loss, model(**drawn).loss)


@every_language_model
@pytest.mark.parametrize("kind", [CalmModel, CalmForPreTraining, CalmForSequenceClassification])
def test_the_vocabulary_grows_and_shrinks(kind, family, batch, tmp_path):
    """New tokens get rows everywhere a token has one, and the origin of the aligned space stays where it was.

    If it moved, everything SpecTran has learned about directions from there would be off, silently.
    """
    model = kind(family).eval()
    base = getattr(model, "calm", model)
    with torch.no_grad():
        base.word_embedding_mean += 0.01  # as far from the vocabulary's as training takes the vocabulary from it
    batch["input_ids"] = batch["input_ids"].clamp(max=24)
    before = model(**batch)
    statistics = base.word_embedding_mean.clone(), base.word_embedding_norm.clone()
    for size in (25, 37):
        model.resize_token_embeddings(size)
        assert model.config.text_config.vocab_size == size
        assert model.get_input_embeddings().weight.shape[0] == model.get_input_embeddings().num_embeddings == size
        if kind is CalmForPreTraining:
            decoder = model.lm_head.decoder
            assert decoder.weight is model.get_input_embeddings().weight
            assert decoder.bias.shape == (size,)
            assert decoder.out_features == size
        assert torch.equal(base.word_embedding_mean, statistics[0])
        assert torch.equal(base.word_embedding_norm, statistics[1])
        after = model(**batch)
        for key in before:
            assert torch.equal(after[key], before[key]), key
    model(torch.full_like(batch["input_ids"], 36), batch["input_features"])  # the last token exists
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert loaded.config.text_config.vocab_size == 37
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_an_untied_head_grows_and_shrinks_beside_its_embeddings(audio_config, pretraining_batch):
    """Its rows are its own: what it had learned of the tokens that stay must stay."""
    config = CalmConfig(
        audio_config=audio_config, text_config=language_model_config("bert"), tie_word_embeddings=False
    )
    model = CalmForPreTraining(config).eval()
    torch.nn.init.normal_(model.lm_head.decoder.bias)
    weight, bias = model.lm_head.decoder.weight.clone(), model.lm_head.decoder.bias.clone()
    for size in (37, 28):
        model.resize_token_embeddings(size)
        decoder = model.lm_head.decoder
        assert decoder.weight is not model.get_input_embeddings().weight
        assert decoder.weight.shape == (size, 24)
        assert decoder.bias.shape == (size,)
        assert torch.equal(decoder.weight[:28], weight[:28])
        assert torch.equal(decoder.bias[:28], bias[:28])
        assert model(**pretraining_batch()).masked_language_loss.isfinite()


def tokenizer_of(config) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of BERT, or of RoBERTa, whose padding is 1 and whose [MASK] is the last piece."""
    words = [f"word{index}" for index in range(25)]
    if config.pad_token_id == 1:
        first, last, padding, unknown, mask = "<s>", "</s>", "<pad>", "<unk>", "<mask>"
        pieces = [first, padding, last, unknown, *words, mask]
    else:
        first, last, padding, unknown, mask = "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"
        pieces = [padding, unknown, first, last, mask, *words]
    backend = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(name, pieces.index(name)) for name in (first, last)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token=first, sep_token=last, pad_token=padding, unk_token=unknown,
        mask_token=mask,
    )  # fmt: skip


@every_language_model
@pytest.mark.parametrize("saved_as", [AutoModel, AutoModelForMaskedLM])
def test_a_pretrained_language_model_arrives_whole(saved_as, name, family, tmp_path):
    """Its tensors, from a checkpoint of the bare encoder or of a masked language model, and its special tokens."""
    reference = saved_as.from_config(family.text_config).eval()
    with torch.no_grad():
        for value in reference.parameters():
            value.add_(0.01)  # nothing can arrive by being initialised alike
    reference.save_pretrained(tmp_path)
    tokenizer = tokenizer_of(family.text_config)
    tokenizer.save_pretrained(tmp_path)
    model = CalmForPreTraining.from_text_pretrained(tmp_path, audio_config=family.audio_config).eval()
    expected = reference.base_model.state_dict()
    arrived = model.calm.text_model.state_dict()
    assert {key for key in expected if key not in arrived} <= {key for key in expected if "pooler" in key}
    for key, value in arrived.items():
        assert torch.equal(value, expected[key]), key
    close(model.calm.word_embedding_mean, reference.get_input_embeddings().weight.mean(0))
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    special = [0, 1, 2, 3, 29] if family.text_config.pad_token_id == 1 else [0, 1, 2, 3, 4]
    assert model.config.special_token_ids == special
    texts = tokenizer(["word3 word7 word3", "word9"], padding=True, return_tensors="pt")
    states = model.calm(texts["input_ids"], attention_mask=texts["attention_mask"])
    target = model.get_input_embeddings().weight[texts["input_ids"][1, 1]] - model.calm.word_embedding_mean
    close(states.text_embeds[1], torch.nn.functional.normalize(target, dim=-1))
    direct = reference.base_model(texts["input_ids"], attention_mask=texts["attention_mask"]).last_hidden_state
    real = texts["attention_mask"].bool()
    close(states.last_hidden_state[real], direct[real])
