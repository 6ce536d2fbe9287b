"""Attention: every implementation gives the same result, in SpecTran and in the language model, and can be chosen."""

import pytest
import torch
from model_helpers import INPUTS, LANGUAGE_MODELS, close, gradients, language_model_config, quiet, spoil
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel, modeling_flash_attention_utils
from transformers.utils import is_flash_attn_2_available

from modeling_calm import CalmAudioModel, CalmConfig, CalmForPreTraining, CalmForSequenceClassification, CalmModel
from modeling_calm.layers_calm import eager_attention_forward

EAGER_ONLY = {"mpnet", "deberta-v2"}  # their relative positions have no fused kernel in transformers
every_language_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)


@pytest.fixture
def mixed_batch(batch):
    """Sound without words in one row, words without sound in another, NaN in every masked patch."""
    batch["attention_mask"][1] = 0
    batch["input_features_mask"][3] = 0
    return spoil(batch)


@pytest.fixture
def uncompiled():
    """Flex attention without its compiler.

    What is tested is the masks handed to it; to compile a kernel takes a quarter of a minute, and those that torch
    2.13 makes for the CPU are wrong for some shapes (see CONTRIBUTING.md).
    """
    with torch.compiler.set_stance("force_eager"):
        yield


def kernels(model) -> tuple[str, str]:
    """What SpecTran and the language model run."""
    base = getattr(model, "calm", model)
    return base.audio_model.config._attn_implementation, base.text_model.config._attn_implementation


@every_language_model
@torch.no_grad()
def test_eager_sdpa_and_flex_attention_agree(name, audio_config, mixed_batch, uncompiled):
    """The fused kernels are a matter of speed alone: padding inside windows, across them and behind the words."""
    audio_config.sliding_window = 1
    model = CalmModel(CalmConfig(audio_config=audio_config, text_config=language_model_config(name))).eval()
    outputs = {}
    for implementation in ("eager", "sdpa", "flex_attention"):
        text = "eager" if name in EAGER_ONLY else implementation
        model.set_attn_implementation({"audio_config": implementation, "text_config": text})
        assert kernels(model) == (implementation, text)
        outputs[implementation] = model(**mixed_batch)
    for fused in ("sdpa", "flex_attention"):
        for key, expected in outputs["eager"].items():
            close(outputs[fused][key], expected)


@pytest.mark.parametrize("name", sorted(EAGER_ONLY))
def test_a_kernel_that_a_language_model_lacks_is_refused(name, audio_config, mixed_batch):
    """By name, before anything runs; SpecTran's can be chosen beside it, and left alone both get their best."""
    text_config = language_model_config(name)
    for implementation in ("sdpa", "flex_attention"):
        with pytest.raises(ValueError, match="(MPNet|DebertaV2)Model does not support"):
            CalmModel(
                CalmConfig(audio_config=audio_config, text_config=text_config, attn_implementation=implementation)
            )
        choice = {"audio_config": implementation, "text_config": "eager"}
        config = CalmConfig(audio_config=audio_config, text_config=text_config, attn_implementation=choice)
        assert kernels(CalmModel(config)) == (implementation, "eager")
    text_config, audio_config = language_model_config(name), type(audio_config)(**audio_config.to_diff_dict())
    assert kernels(CalmModel(CalmConfig(audio_config=audio_config, text_config=text_config))) == ("sdpa", "eager")


@pytest.mark.parametrize("kind", [CalmModel, CalmForPreTraining, CalmForSequenceClassification])
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("eager", ("eager", "eager")),
        ({"audio_config": "sdpa", "text_config": "eager"}, ("sdpa", "eager")),
        ({"audio_config": "eager"}, ("eager", "sdpa")),
        (None, ("sdpa", "sdpa")),
    ],
)
def test_attention_is_chosen_everywhere_alike(
    kind, choice, expected, audio_config_values, text_config, tokenizer, tmp_path
):
    """One name for all or one a part: at construction, on loading, afterwards, over a pretrained language model."""
    given = {} if choice is None else {"attn_implementation": choice}
    built = kind(CalmConfig(audio_config=audio_config_values, text_config=text_config.to_dict(), **given))
    assert kernels(built) == expected
    built.save_pretrained(tmp_path / "calm")
    assert kernels(kind.from_pretrained(tmp_path / "calm", **given)) == expected
    assert kernels(AutoModel.from_pretrained(tmp_path / "calm", **given)) == expected
    assert kernels(kind.from_pretrained(tmp_path / "calm")) == ("sdpa", "sdpa")  # a choice is not saved
    changed = kind.from_pretrained(tmp_path / "calm")
    if choice is not None:
        changed.set_attn_implementation(choice)
        assert kernels(changed) == expected
    AutoModel.from_config(text_config).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    started = kind.from_text_pretrained(tmp_path / "text", audio_config=audio_config_values, **given)
    assert kernels(started) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_query_key_and_value_are_of_one_type(audio_config, batch, dtype, monkeypatch):
    """Under autocast the rotary angles, in float32, must not widen what they turn: twice the memory, or a refusal."""
    types = set()

    def recording(module, query, key, value, *arguments, **options):
        types.update(states.dtype for states in (query, key, value))
        return eager_attention_forward(module, query, key, value, *arguments, **options)

    monkeypatch.setattr("modeling_calm.layers_calm.eager_attention_forward", recording)
    model = CalmAudioModel(audio_config)
    model.set_attn_implementation("eager")
    with torch.autocast("cpu", dtype):
        model(batch["input_features"], batch["input_features_mask"])
    assert types == {dtype}


def plain_flash_attention(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """(batch, length, heads, width) in the manner of the flash-attn package, in plain torch."""
    q, k, v = (states.transpose(1, 2) for states in (q, k, v))
    places, (before, after) = torch.arange(q.shape[2]), window_size
    ahead = places - places[:, None]
    seen = ((before < 0) | (ahead >= -before)) & ((after < 0) | (ahead <= after)) & ((ahead <= 0) | (not causal))
    return scaled_dot_product_attention(q, k, v, scale=softmax_scale, attn_mask=seen).transpose(1, 2)


def plain_varlen_flash_attention(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1),
):  # fmt: skip
    """The same over sequences laid end to end, (total length, heads, width)."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert int(cu_seqlens_q.diff().max()) == max_seqlen_q == max_seqlen_k
    assert cu_seqlens_q.diff().min() > 0  # the kernel divides by the number of keys
    parts = [slice(*ends) for ends in cu_seqlens_q.unfold(0, 2, 1).tolist()]
    return torch.cat(
        [
            plain_flash_attention(
                q[None, part], k[None, part], v[None, part], dropout_p, softmax_scale, causal, window_size
            )[0]
            for part in parts
        ]
    )


@pytest.mark.parametrize("name", sorted(set(LANGUAGE_MODELS) - EAGER_ONLY))
def test_flash_attention_gets_the_right_sequences(name, audio_config, mixed_batch, pretraining_batch, monkeypatch):
    """The library's way to flash attention, unpadding included, with the kernel itself in plain torch.

    A kernel without masks sees whatever it is given: packed windows of which the last is half full, clips with fewer
    windows than the longest, rows without sound, the compacted words and sounds, and what is near enough.
    """
    audio_config.sliding_window = 1
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    monkeypatch.setattr(
        modeling_flash_attention_utils,
        "_lazy_imports",
        lambda *_, **__: (
            plain_flash_attention,
            plain_varlen_flash_attention,
            None,
            modeling_flash_attention_utils._pad_input,
            modeling_flash_attention_utils._unpad_input,
        ),
    )
    config = quiet(CalmConfig(audio_config=audio_config, text_config=language_model_config(name)))
    model, drawn = CalmForPreTraining(config).train(), pretraining_batch()
    parts = (model.calm.audio_model, model.calm.text_model)
    outputs, losses, slopes = [], [], []
    for implementation in ("eager", "flash_attention_2"):
        for part in parts:  # past the check for a GPU
            part.config._attn_implementation_internal = implementation
        outputs.append(model.calm(**mixed_batch))
        model.zero_grad()
        losses.append(model(**drawn).loss)
        losses[-1].backward()
        slopes.append(gradients(model))
    for key, expected in outputs[0].items():
        close(outputs[1][key], expected)
    close(losses[1], losses[0])
    for key, expected in slopes[0].items():
        torch.testing.assert_close(slopes[1][key], expected, atol=5e-5, rtol=1e-4, msg=key)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()), reason="needs a GPU and the package flash-attn"
)
@pytest.mark.parametrize("name", sorted(set(LANGUAGE_MODELS) - EAGER_ONLY))
def test_flash_attention_agrees_on_a_gpu(name, audio_config, mixed_batch):
    """The real kernel, in bfloat16."""
    text_config = language_model_config(name, hidden_size=32)  # heads of eight channels, the least the kernel takes
    model = CalmModel(CalmConfig(audio_config=audio_config, text_config=text_config)).eval().to("cuda", torch.bfloat16)
    given = {key: value.cuda() for key, value in mixed_batch.items()}
    expected = model(**given)
    model.set_attn_implementation("flash_attention_2")
    for key, value in model(**given).items():
        close(value.float(), expected[key].float(), 0.05)


def test_what_composites_record(config, batch):
    """Hidden states and attentions of the language model, in its compact order, by call or by configuration."""
    size = 10  # the longest row: six words and four sounds
    config.text_config._attn_implementation = "eager"
    for kind in (CalmModel, CalmForSequenceClassification):
        model = kind(config).eval()
        output = model(**batch, output_hidden_states=True, output_attentions=True)
        assert [tuple(states.shape) for states in output.hidden_states] == 3 * [(4, size, 24)]
        assert [tuple(weights.shape) for weights in output.attentions] == 2 * [(4, 4, size, size)]
        as_tuple = model(**batch, output_hidden_states=True, output_attentions=True, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(output.to_tuple())
        recorded = [value for value in as_tuple if isinstance(value, tuple)]
        assert [len(value) for value in recorded] == [3, 2]
        assert all(torch.equal(*pair) for pair in zip(recorded[0], output.hidden_states, strict=True))
        plain = model(**batch)
        assert plain.hidden_states is plain.attentions is None
    config.text_config.output_hidden_states = True
    assert len(CalmModel(config).eval()(**batch).hidden_states) == 3


def test_what_spectran_records_as_a_tuple(config, batch):
    """`return_dict=False` gives the same, in the same order, from SpecTran and from the features of a clip."""
    model = CalmModel(config).eval()
    model.set_attn_implementation("eager")
    options = {"output_hidden_states": True, "output_attentions": True, "output_context_attentions": True}
    audio = [batch[key] for key in INPUTS[2:]]
    for call in (model.audio_model, model.get_audio_features):
        output, as_tuple = call(*audio, **options), call(*audio, **options, return_dict=False)
        for value, expected in zip(as_tuple, output.to_tuple(), strict=True):
            pairs = zip(value, expected, strict=True) if isinstance(value, tuple) else [(value, expected)]
            assert all(torch.equal(*pair) for pair in pairs)
        assert [tuple(states.shape) for states in output.hidden_states] == 3 * [(10, 8, 32)]
        assert [tuple(weights.shape) for weights in output.attentions] == 2 * [(10, 4, 8, 8)]
        assert [tuple(weights.shape) for weights in output.context_attentions] == 2 * [(4, 4, 4, 4)]


def test_fused_kernels_record_no_attentions(config, batch):
    """They have none to give, in the library's own models too; hidden states they have."""
    output = CalmModel(config).eval()(**batch, output_attentions=True, output_hidden_states=True)
    assert not output.attentions
    assert len(output.hidden_states) == 3
    spectran = CalmAudioModel(config.audio_config).eval()
    output = spectran(batch["input_features"], output_attentions=True, output_hidden_states=True)
    assert not output.attentions
    assert len(output.hidden_states) == 3
