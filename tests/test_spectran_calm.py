"""SpecTran: each window by itself, then in view of its clip; padding and company change nothing."""

import pytest
import torch
from model_helpers import INPUTS, close, gradients, lengthen, spoil

from modeling_calm import CalmAudioConfig, CalmAudioModel, CalmModel


def test_spectran_shapes(audio_config, batch):
    """(B, T, hidden), one mask entry a window that holds a real patch, zeros elsewhere: what all the heads rely on."""
    model = CalmAudioModel(audio_config).eval()
    output = model(batch["input_features"], batch["input_features_mask"])
    assert output.last_hidden_state.shape == (4, 4, 32)
    assert output.acoustic_tokens_mask.dtype == torch.bool
    assert output.acoustic_tokens_mask.sum(-1).tolist() == [3, 2, 4, 1]
    assert output.last_hidden_state[~output.acoustic_tokens_mask].eq(0).all()
    assert model(batch["input_features"]).acoustic_tokens_mask.all()  # without a mask everything is real


def test_pooler_output(audio_config, batch):
    """A voice's emotion stands in how its windows vary, before and after the context layers, not in a mean alone."""
    model = CalmAudioModel(audio_config).eval()
    audio = {key: batch[key].clone() for key in INPUTS[2:]}
    audio["input_features_mask"][0] = 0
    output = model(**audio)
    assert output.pooler_output.shape == (4, audio_config.pooler_size) == (4, 4 * 32)
    windows, _ = model.encode_windows(**audio)
    for row, count in enumerate([3, 2, 4, 1][1:], start=1):
        states = [values[row, :count] for values in (windows, output.last_hidden_state)]
        expected = [f(values) for values in states for f in (lambda v: v.mean(0), lambda v: v.std(0, correction=0))]
        torch.testing.assert_close(output.pooler_output[row], torch.cat(expected), atol=2e-3, rtol=1e-3)
    assert output.pooler_output[0].eq(0).all()  # a row without audio
    output.pooler_output.sum().backward()  # the last row is one token long: nothing varies there
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


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


@pytest.mark.parametrize("windows_at_once", [1, 3, 10, 100])
def test_windows_may_run_piece_by_piece(audio_config, batch, windows_at_once):
    """What bounds the memory of an hour of audio must not change what is heard in it."""
    model = CalmAudioModel(audio_config).eval()
    audio = {key: batch[key] for key in INPUTS[2:]}
    seen = []
    model.pooling.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    close(model(**audio, windows_at_once=windows_at_once).last_hidden_state, model(**audio).last_hidden_state)
    assert max(seen[:-1]) <= windows_at_once and sum(seen[:-1]) == 10


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
    of_real = output.context_attentions[0].movedim(1, -1)[tokens]  # (N, T, heads)
    assert of_real[~tokens.unsqueeze(1).expand(-1, 4, -1)[tokens]].eq(0).all()
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


@pytest.mark.parametrize("windows", [(9, 7, 1), (12, 0, 5), (25, 24, 13)])
@pytest.mark.parametrize("sliding_window", [1, 2, 4])
def test_long_recordings_are_compared_in_blocks(audio_config_values, pretraining_batch, windows, sliding_window):
    """What each window sees, and the gradient, are those of a table of all beside all, silence included."""
    settings = audio_config_values | {"sliding_window": sliding_window, "hidden_dropout_prob": 0.0}
    batch = pretraining_batch([1] * len(windows), windows)
    found = []
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = CalmAudioModel(CalmAudioConfig(**settings, attn_implementation=attention)).train()
        states = model(batch["input_features"], batch["input_features_mask"]).last_hidden_state
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        found.append((states, gradients(model)))
    close(found[1][0], found[0][0])
    for name, expected in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], expected, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_context_layer_sees_so_far_and_no_farther(audio_config_values, pretraining_batch, attention):
    """Two windows to either side in a layer are four in two layers, at every place of a block."""
    settings = audio_config_values | {"sliding_window": 2, "num_context_layers": 2}
    model = CalmAudioModel(CalmAudioConfig(**settings, attn_implementation=attention)).eval()
    features = pretraining_batch([1], [12])["input_features"]
    before = model(features).last_hidden_state[0]
    for changed in range(12):
        louder = features.clone()
        louder[:, changed * 8 : changed * 8 + 8] += 1
        moved = (model(louder).last_hidden_state[0] - before).abs().amax(-1) > 1e-6
        assert moved.nonzero().flatten().tolist() == list(range(max(changed - 4, 0), min(changed + 5, 12)))


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
