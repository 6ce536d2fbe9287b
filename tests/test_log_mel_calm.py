"""`processing.log_mel_calm`: the spectrogram says where a sound is in time and in frequency, and nothing else."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from processing.log_mel_calm import count_frames, log_mel_spectrogram, normalize, patchify, unpatchify

RATE, WIN, HOP, BINS = 16000, 400, 160, 80
SETTINGS = {
    "sampling_rate": RATE, "n_fft": 512, "win_length": WIN, "hop_length": HOP, "num_mel_bins": BINS,
    "dynamic_range": 80.0,
}  # fmt: skip


def log_mel(waveform: np.ndarray) -> torch.Tensor:
    """(F, M) of one clip (N,)."""
    return log_mel_spectrogram([torch.from_numpy(waveform)], **SETTINGS)[0][0]


def kaldi_centres() -> np.ndarray:
    """Centres of the 80 bins in Hz, from Kaldi's definition mel(f) = 1127 ln(1 + f / 700) (O'Shaughnessy)."""
    low, high = 1127 * np.log1p(np.array([20, RATE / 2]) / 700)
    return 700 * np.expm1(np.linspace(low, high, BINS + 2)[1:-1] / 1127)


@pytest.mark.parametrize("index", [5, 20, 40, 60, 75])
def test_a_tone_lands_in_its_mel_bin(tone, index):
    """A wrong scale, edge or sampling rate would shift every formant to a neighbouring bin."""
    spectrum = log_mel(tone(kaldi_centres()[index]))
    assert spectrum.argmax(-1).eq(index).all()


def test_an_impulse_lands_in_the_frames_that_cover_it():
    """Frame f covers samples f * hop to f * hop + win; an offset would misplace every word by it."""
    place = 8000
    waveform = np.zeros(RATE, dtype=np.float32)
    waveform[place] = 1.0
    heard = (log_mel(waveform) > log_mel(waveform).min() + 1).all(-1).nonzero().flatten()
    covering = [f for f in range(count_frames(RATE, WIN, HOP)) if f * HOP <= place < f * HOP + WIN]
    # The window's first sample weighs nothing, so a frame that begins at the impulse does not hear it.
    assert heard.tolist() == [f for f in covering if f * HOP != place]


def test_agrees_with_the_reference_spectrogram_on_real_speech(sample_clips):
    """The independent NumPy implementation of transformers judges window, transform, filters and logarithm."""
    filters = mel_filter_bank(257, BINS, 20.0, RATE / 2, RATE, mel_scale="kaldi", triangularize_in_mel_space=True)
    for clip in sample_clips:
        power = spectrogram(
            clip.astype(np.float64), window_function(WIN, "hann"), WIN, HOP, fft_length=512, power=2.0, center=False,
            mel_filters=filters, mel_floor=0.0, dtype=np.float64,
        )  # fmt: skip
        reference = np.log(np.maximum(power, power.max() * 1e-8)).T  # 80 dB below the loudest bin
        ours = log_mel(clip)
        assert ours.shape == reference.shape
        assert np.abs(ours.numpy() - reference).max() <= 1e-3


def test_the_floor_lies_80_db_below_the_loudest_bin(tone):
    """Without it the logarithm of an empty band would be set by rounding, which differs from machine to machine."""
    spectrum = log_mel(tone(1000, seconds=0.5))
    assert spectrum.max() - spectrum.min() == pytest.approx(8 * np.log(10), abs=1e-4)


@pytest.mark.parametrize("gain", [0.003, 1 / 32768])
def test_the_level_only_shifts_the_logarithm(noise, gain):
    """A floor that were absolute would cut into quiet recordings: some emotional speech peaks below 0.01."""
    shift = log_mel(noise() * np.float32(gain)) - log_mel(noise())
    torch.testing.assert_close(shift, torch.full_like(shift, 2 * np.log(gain)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("samples", [1, 159, 399, 400, 401, 559, 560, 561, 16000])
def test_frames_lie_wholly_inside_the_clip(samples):
    """One frame too many would read past the clip's end, into another clip's padding."""
    inside = sum(1 for start in range(0, samples, HOP) if start + WIN <= samples)
    assert count_frames(samples, WIN, HOP) == max(inside, 1)
    assert count_frames(torch.tensor([samples]), WIN, HOP).item() == max(inside, 1)
    assert len(log_mel(np.ones(samples, dtype=np.float32))) == max(inside, 1)


def test_neighbours_in_a_batch_are_not_heard():
    """Clips lie end to end while the spectrogram is taken: a frame that reached into the next would hear it."""
    clips = [torch.randn(samples) for samples in (1, 399, 4000, 401, 16000)]
    together, num_frames = log_mel_spectrogram(clips, **SETTINGS)
    for clip, spectrum, frames in zip(clips, together, num_frames, strict=True):
        alone, (counted,) = log_mel_spectrogram([clip], **SETTINGS)
        assert counted == frames == count_frames(len(clip), WIN, HOP)
        torch.testing.assert_close(spectrum[:frames], alone[0, :frames], atol=1e-5, rtol=0)


def test_the_real_frames_get_zero_mean_and_unit_variance():
    """The level would otherwise outweigh the words. Frames past the end hold junk that must not count."""
    spectrum = 5 * torch.randn(2, 50, BINS) - 3
    spectrum[1, 30:] = 1e6
    normalized = normalize(spectrum, torch.tensor([50, 30]))
    for clip, frames in zip(normalized, (50, 30), strict=True):
        assert clip[:frames].mean().item() == pytest.approx(0, abs=1e-4)
        assert clip[:frames].std(correction=0).item() == pytest.approx(1, abs=0.01)


def test_a_clip_that_never_moves_becomes_exactly_zero():
    """The rounding of a mean would be divided by a deviation of nothing: digital silence would become noise."""
    assert normalize(torch.full((1, 173, BINS), -18.420681), torch.tensor([173])).eq(0).all()


def test_the_pitch_of_a_steady_tone_survives(tone):
    """A mean taken in every bin would leave nothing of a steady sound: two tones would have the same features."""
    low, high = log_mel(tone(200)), log_mel(tone(2000))
    frames = torch.tensor([len(low)])
    low, high = normalize(low[None], frames), normalize(high[None], frames)
    assert low.mean(1).argmax() < high.mean(1).argmax()


@pytest.mark.parametrize("shape", [(24, 80), (2, 8, 80), (2, 3, 4, 80)])
@pytest.mark.parametrize(("patch_frames", "patch_bins"), [(4, 80), (4, 16), (1, 1), (2, 40)])
def test_patchify_and_unpatchify_are_exact_inverses(shape, patch_frames, patch_bins):
    """A reconstruction or an augmentation that goes through both would otherwise scramble the spectrogram."""
    spectrum = torch.randn(shape)
    patches = patchify(spectrum, patch_frames, patch_bins)
    assert patches.shape == (*shape[:-2], shape[-2] * 80 // (patch_frames * patch_bins), patch_frames * patch_bins)
    assert torch.equal(unpatchify(patches, patch_frames, patch_bins, 80), spectrum)
    assert torch.equal(patchify(unpatchify(patches, patch_frames, patch_bins, 80), patch_frames, patch_bins), patches)


def test_patches_of_a_time_step_stand_together_from_low_to_high():
    """The order is a contract: a checkpoint reads its positions by it."""
    time, frequency = torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij")
    spectrum = torch.stack((time, frequency)).float()  # the value of a cell is its time, then its frequency
    times, frequencies = patchify(spectrum, 2, 4)  # each (P, D), P = 3 steps x 2 bands
    assert (times.min(-1).values / 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert frequencies.min(-1).values.tolist() == [0, 4, 0, 4, 0, 4]
    assert times[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # inside a patch: frame by frame
    assert frequencies[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_shapes_that_cannot_be_cut_are_refused():
    """Silent truncation would lose the end of a clip."""
    with pytest.raises(ValueError, match="7 frames x 80 bins"):
        patchify(torch.zeros(7, 80), 4, 80)
    with pytest.raises(ValueError, match="8 frames x 80 bins"):
        patchify(torch.zeros(8, 80), 4, 30)
    with pytest.raises(ValueError, match="3 patches of 8 values"):
        unpatchify(torch.zeros(3, 8), 2, 4, 8)
    with pytest.raises(ValueError, match="2 patches of 7 values"):
        unpatchify(torch.zeros(2, 7), 2, 4, 8)
