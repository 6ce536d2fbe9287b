"""Frozen representations: those of a clip, whatever stands beside it in a batch, and a choice made on validation."""

import frozen
import numpy as np
import pytest
import torch
from example_helpers import waveform
from frozen import Clips, fit_system, from_checkpoint, group, log_mel_statistics, mean_and_deviation, read_clips
from peer_encoders import PEERS, build_peer
from speech_data import DataArguments

from modeling_calm import CalmAudioConfig, CalmForPreTraining

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
PLACES = {"calm": {"windows", "context", "both"}, **dict.fromkeys(PEERS, {"middle", "last", "both"})}


@pytest.fixture(params=sorted(PLACES))
def checkpoint(request, saved, tmp_path):
    """A toy CALM or a toy peer, as if pretrained."""
    if request.param == "calm":
        return "calm", saved(CalmForPreTraining)[1]
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_context_layers": 1, "num_attention_heads": 4}
    peer = build_peer(request.param, CalmAudioConfig(**size, intermediate_size=64), max_length=46)
    peer.encoder.save_pretrained(tmp_path)
    peer.extractor.save_pretrained(tmp_path)
    return request.param, str(tmp_path)


def test_mean_and_deviation_are_those_of_the_real_positions():
    """Padding, and NaN in it, would move both."""
    states, real = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    states[1, 2:] = float("nan")
    found = mean_and_deviation(states, real).numpy()
    for row, count in enumerate((5, 2)):
        values = states[row, :count].numpy()
        np.testing.assert_allclose(found[row], np.concatenate([values.mean(0), values.std(0)]), atol=1e-5)


def test_a_clip_is_represented_alike_alone_and_in_a_batch(checkpoint, clips):
    name, folder = checkpoint
    assert group([folder]) == {name: [folder]}
    together, alone = (from_checkpoint(folder, batch_size)(clips) for batch_size in (4, 1))
    assert together.keys() == PLACES[name]
    for place, features in together.items():
        assert features.shape == (4, 128 if place == "both" else 64)
        np.testing.assert_allclose(features, alone[place], atol=1e-4)
        assert features.std(axis=0).max() > 1e-3  # clips differ


def test_the_level_of_a_clip_stands_in_the_spectrogram_alone():
    """The floor has the choice whether to read the level, which emotion moves and CALM does not see."""
    quiet, loud = (log_mel_statistics([gain * waveform(0)]) for gain in (0.1, 1.0))
    assert quiet["both"].shape == (1, 320)
    np.testing.assert_allclose(quiet["normalised"], loud["normalised"], atol=1e-3)
    np.testing.assert_allclose(loud["log_mel"][:, :80] - quiet["log_mel"][:, :80], 2 * np.log(10), atol=1e-3)


def test_validation_chooses_the_place():
    """`heard` tells the classes in every split; `overheard` in training alone, and would win there."""
    labels = np.arange(40) % 2
    generator = np.random.default_rng(0)

    def represent(waveforms):
        overheard = labels if waveforms == ["training"] else generator.permutation(labels)
        noise = generator.normal(scale=0.01, size=(40, 1))
        return {"overheard": 9 * overheard[:, None] + noise, "heard": labels[:, None] + noise}

    fitted, validated = fit_system([represent] * 2, Clips(["training"], labels), Clips(["validation"], labels))
    assert [one.place for one in fitted] == ["heard", "heard"]
    assert validated["heard"] == 1.0 > validated["overheard"]
    np.testing.assert_array_equal(fitted[0].predict(["test"]), labels)


def test_splits_are_read_with_the_classes_of_the_first(corpus):
    clips, classes = read_clips(DataArguments(dataset=corpus), "train", "test")
    assert classes == ["calm", "noisy"] and list(clips) == ["train", "test"]
    assert clips["test"].labels.tolist() == [0, 1] * 4
    np.testing.assert_allclose(clips["test"].waveforms[3], waveform(3), atol=1e-4)
    with pytest.raises(ValueError, match="A probe tells classes"):
        read_clips(DataArguments(dataset=corpus, label_column="valence"), "train")


def test_egemaps_have_one_place(clips):
    pytest.importorskip("opensmile", reason="needs the `baseline` extra")
    assert frozen.egemaps(clips)["functionals"].shape == (4, 88)
