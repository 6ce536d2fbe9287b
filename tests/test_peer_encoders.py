"""Peers in SpecTran's place: they have its size, and padding changes nothing of what is pooled."""

import numpy as np
import peer_encoders
import pytest
import torch
from peer_encoders import PEERS, build_peer, load_peer, peer_config

from modeling_calm import CalmAudioConfig
from modeling_calm.spectran_calm import masked_mean

NAMES = sorted(PEERS)


@pytest.fixture
def spectran() -> CalmAudioConfig:
    """A toy of 16 mel bins: patches of 2 frames x 8 bins, S = 8 patches in a token of 80 ms."""
    return CalmAudioConfig(
        num_mel_bins=16, patch_frames=2, patch_bins=8, token_frames=8, hidden_size=32, num_hidden_layers=2,
        num_context_layers=1, num_attention_heads=4, intermediate_size=64,
    )  # fmt: skip


@pytest.fixture(params=NAMES)
def peer(request, spectran):
    """AST reads 0.46 s at once."""
    return build_peer(request.param, spectran, max_length=46).eval()


def batch_of(peer, clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
    return dict(peer.extractor(clips, sampling_rate=16000, return_tensors="pt"))


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_has_the_size_of_spectran(spectran, name):
    """As many layers as SpecTran has in both places, or more compute would be compared, not another network."""
    peer = build_peer(name, spectran, max_length=46)
    config = peer.encoder.config
    assert config.num_hidden_layers == 3
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (32, 4, 64)
    matrices = [weight for weight in peer.parameters() if weight.shape == (64, 32)]
    assert len(matrices) == 3  # the feed-forward part of each layer


@torch.no_grad()
def test_padding_changes_nothing_that_is_pooled(peer, noise):
    """A clip alone and beside a longer one, NaN in the padding: the means agree."""
    short, long = noise(0.33, 1), noise(1.5, 2)
    alone, together = batch_of(peer, [short]), batch_of(peer, [short, long])
    hidden = ~together["input_features_mask"].bool()
    together["input_features"][hidden] = float("nan")
    for name, states in peer.run(**together, output_hidden_states=True)[0].items():
        real = peer.run(**together)[1]
        expected, own = peer.run(**alone, output_hidden_states=True)
        assert real[0].sum() == own.sum()
        torch.testing.assert_close(
            masked_mean(states, real)[0], masked_mean(expected[name], own)[0], atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_all_of_a_long_clip_is_heard(peer, noise):
    """Three times the input of AST: a change in the last tenth of a second moves the mean."""
    clip = noise(1.4)
    changed = clip.copy()
    changed[-1600:] = noise(0.1, 7)
    means = [masked_mean(*peer.encode_windows(**batch_of(peer, [each]))) for each in (clip, changed)]
    assert (means[0] - means[1]).abs().max() > 1e-4


@torch.no_grad()
def test_the_frames_cover_the_clip(peer, noise):
    """Patches of AST every 100 ms in its own windows, one band of 16 bins; frames of Wav2Vec2 every 20 ms."""
    states, real = peer.encode_windows(**batch_of(peer, [noise(0.8)]))
    assert states.shape[:2] == real.shape
    # 78 frames, 46 of them in the first window: patches at 0, 10, 20, 30, and at 46, 56, 66, 76. 12,800 samples.
    assert real.sum() == {"ast": 8, "wav2vec2": 39}[peer_encoders.MODEL_TYPES[peer.encoder.config.model_type]]


@torch.no_grad()
def test_half_of_the_layers_is_another_state(peer, noise):
    states, _ = peer.run(**batch_of(peer, [noise(0.5)]), output_hidden_states=True)
    assert sorted(states) == ["last", "middle"]
    assert not torch.allclose(states["middle"], states["last"])


@torch.no_grad()
def test_a_saved_peer_gives_the_same(peer, noise, tmp_path):
    """Its extractor comes with it: Wav2Vec2 would not complain of a spectrogram."""
    peer.encoder.save_pretrained(tmp_path)
    peer.extractor.save_pretrained(tmp_path)
    found = load_peer(str(tmp_path))
    batch = batch_of(found, [noise(0.5)])
    torch.testing.assert_close(batch, batch_of(peer, [noise(0.5)]))
    torch.testing.assert_close(found.encode_windows(**batch), peer.encode_windows(**batch))


def test_what_does_not_fit_is_refused(spectran, tmp_path, audio_config_values):
    with pytest.raises(ValueError, match="16 frames x 16 mel bins"):
        peer_config("ast", CalmAudioConfig(**audio_config_values), 46)
    with pytest.raises(ValueError, match="a width that 16 divides"):
        peer_config("wav2vec2", CalmAudioConfig(hidden_size=40, num_attention_heads=4), 46)
    extractor = build_peer("wav2vec2", spectran, 46).extractor
    with pytest.raises(ValueError, match="16000 Hz; it is 8000"):
        extractor([np.zeros(800)], sampling_rate=8000)
