"""`processing.augmentation`: what each variation does, what it leaves alone, and where chance comes from."""

import numpy as np
import pytest
import torch

from processing.augmentation import SpecAugment, WaveformAugmentation

RATE = 16000
OFF = {"speed": None, "gain_db": None, "noise_snr_db": None, "noise_probability": 1.0, "band_limit_probability": 0.0}


def tone(frequency_hz: float, num_samples: int = RATE) -> np.ndarray:
    """A sine of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(num_samples) / RATE)).astype(np.float32)


def power(waveform: np.ndarray) -> float:
    """Mean square."""
    return float(np.mean(waveform.astype(np.float64) ** 2))


def augment(waveform: np.ndarray, seed: int = 0, **settings) -> np.ndarray:
    """Applies only the named variations."""
    return WaveformAugmentation(**{**OFF, **settings})(waveform, RATE, np.random.default_rng(seed))


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_shortens_the_clip_and_raises_its_pitch(speed):
    """With the factor turned round, fast would be slow; time stretching would keep the pitch at 440 Hz."""
    faster = augment(tone(440), speed=(speed, speed))
    assert len(faster) == pytest.approx(RATE / speed, abs=1)
    inner = slice(1600, -1600)  # away from the ends, where the filter meets silence
    np.testing.assert_allclose(faster[inner], tone(440 * speed, len(faster))[inner], atol=1e-3)


def test_gain_is_in_decibels_of_amplitude():
    """6.02 dB are a factor of 2 in amplitude, of 4 in power: a factor 10 instead of 20 would double the range."""
    np.testing.assert_allclose(augment(tone(440), gain_db=(6.0206, 6.0206)), 2 * tone(440), rtol=1e-4, atol=1e-6)
    gains = [10 * np.log10(power(augment(tone(440), seed, gain_db=(-6, 3))) / power(tone(440))) for seed in range(200)]
    assert -6 <= min(gains) < -5.5
    assert 2.5 < max(gains) <= 3.001


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_noise_has_the_ratio_asked_for_at_any_level(level):
    """RAVDESS clips peak below 0.01: noise of a fixed level would drown them, and spare the loud ones."""
    clean = level * tone(440)
    noise = augment(clean, noise_snr_db=(10, 10)) - clean
    assert 10 * np.log10(power(clean) / power(noise)) == pytest.approx(10, abs=0.2)
    # White: both halves of the spectrum hold about the same energy.
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    assert spectrum[: len(spectrum) // 2].sum() / spectrum.sum() == pytest.approx(0.5, abs=0.03)


def test_silence_stays_silent():
    """A ratio to nothing must not become a division by zero."""
    silent = augment(np.zeros(1000), noise_snr_db=(0, 0), gain_db=(6, 6), band_limit_probability=1.0, speed=(0.9, 1.1))
    assert not silent.any()


def test_the_telephone_passes_speech_and_stops_hum_and_hiss():
    """Its band is 300 to 3400 Hz, whatever the sampling rate."""
    for frequency_hz, passes in [(50, 0), (250, 0), (350, 1), (1000, 1), (3300, 1), (3500, 0), (7000, 0)]:
        through = augment(tone(frequency_hz), band_limit_probability=1.0)
        assert power(through) / power(tone(frequency_hz)) == pytest.approx(passes, abs=1e-6)


def test_a_band_is_drawn_anew_for_every_clip():
    """Lines and codecs differ, and a network that knows one of them knows one of them."""
    settings = {"band_limit_probability": 1.0, "lowest_hz": (0, 300), "highest_hz": (3400, 7000)}
    for frequency_hz, share in [(2000, 1), (7500, 0), (150, 0.5), (5200, 0.5)]:
        passed = [power(augment(tone(frequency_hz), seed, **settings)) > 0.1 for seed in range(300)]
        assert np.mean(passed) == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)


def test_silence_stands_before_and_after():
    """Recordings begin before somebody speaks, and the clip's level is not what changes by it."""
    waveform = np.ones(RATE, np.float32)
    lengths = []
    for seed in range(100):
        longer = augment(waveform, seed, silence_probability=1.0, silence_s=(0.1, 0.5))
        (spoken,) = longer.nonzero()
        np.testing.assert_array_equal(spoken, np.arange(spoken[0], spoken[0] + RATE))
        lengths += [spoken[0] / RATE, (len(longer) - 1 - spoken[-1]) / RATE]
    assert 0.1 <= min(lengths) < 0.15 and 0.45 < max(lengths) <= 0.5
    assert lengths[::2] != lengths[1::2]


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probabilities_are_shares_of_the_clips(probability):
    """An inverted comparison would turn 'never' into 'always'."""
    waveform = tone(50, 320)
    for settings in (
        {"noise_snr_db": (10, 10), "noise_probability": probability},
        {"band_limit_probability": probability},
        {"silence_probability": probability},
    ):
        changed = [not np.array_equal(augment(waveform, seed, **settings), waveform) for seed in range(1000)]
        assert np.mean(changed) == pytest.approx(probability, abs=0.05 if 0 < probability < 1 else 0)


def test_chance_comes_from_the_generator_alone():
    """Otherwise data loader workers repeat each other, or a resumed run differs from an unbroken one."""
    settings = {"speed": (0.9, 1.1), "gain_db": (-6, 6), "noise_snr_db": (10, 40), "band_limit_probability": 0.5}
    original = tone(440)
    before = np.random.get_state()[1].copy()
    first, again, other = (augment(original, seed, **settings) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal(original, tone(440))  # the caller's array is not written to
    assert first.dtype == np.float32


def test_all_off_gives_an_equal_copy():
    """Each variation has an off switch, and the result never shares memory with a cached clip."""
    original = tone(440)
    result = augment(original)
    np.testing.assert_array_equal(result, original)
    assert not np.shares_memory(result, original)


def test_a_clip_of_one_sample_survives():
    """Playing one sample three times faster leaves none, which the feature extractor would refuse."""
    assert augment(np.ones(1), speed=(3.0, 3.0)).shape == (1,)
    for waveform in (np.zeros(0), np.zeros((2, 100))):
        with pytest.raises(ValueError, match="at least one sample"):
            augment(waveform)


@pytest.mark.parametrize(
    "settings",
    [
        {"speed": (0.0, 1.0)}, {"speed": (1.1, 0.9)}, {"speed": (1.0,)}, {"speed": (1.0, float("nan"))},
        {"gain_db": (3, -3)}, {"gain_db": (0, float("inf"))}, {"noise_snr_db": (20, 10)},
        {"noise_probability": 1.5}, {"band_limit_probability": -0.1},
        {"silence_probability": 2}, {"silence_s": (1, 0)}, {"highest_hz": (1,)}, {"lowest_hz": (0, 4000)},
        {"silence_s": (-1, 0)}, {"lowest_hz": None},
    ],
)  # fmt: skip
def test_waveform_settings_that_make_no_sense_are_refused(settings):
    """A mistake in a configuration file must stop the run before it starts, and name the setting."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        WaveformAugmentation(**settings)


def masks(num_frames, seed=0, frames=100, bins=40, **settings):
    """Which values of a batch of ones were hidden, (B, F, M) bool."""
    ones = torch.ones(len(num_frames), frames, bins)
    return SpecAugment(**settings)(ones, num_frames, np.random.default_rng(seed)).numpy() == 0


def widths_and_edges(hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows (B, N) that hold at most one band each: the widths (B,), and how many edges there are (B,)."""
    return hidden.sum(axis=1), np.abs(np.diff(hidden.astype(int), axis=1, prepend=0, append=0)).sum(axis=1)


def test_a_band_of_time_hides_whole_frames_and_no_more_than_allowed():
    """A band covers all bins, its width is uniform in 0 to T, and no frame is beyond its reach, not even the last."""
    hidden = masks([100] * 4000, num_time_masks=1, max_time_frames=7, num_frequency_masks=0, bins=4)
    assert (hidden.all(axis=2) == hidden.any(axis=2)).all()
    time = hidden[:, :, 0]
    widths, edges = widths_and_edges(time)
    assert set(np.unique(edges)) == {0, 2}  # nothing, or one band
    counts = np.bincount(widths)
    assert len(counts) == 8
    assert counts.min() > 0.8 * 4000 / 8
    share = time.mean(axis=0)
    assert share[0] > 0
    assert share[-1] > 0
    np.testing.assert_allclose(share[10:-10], 3.5 / 97, atol=0.015)  # E[width] over the places: no favourite frame


def test_a_band_of_frequency_hides_whole_bins_and_no_more_than_allowed():
    """The same of bins: with both axes exchanged, a clip would lose time instead of pitch."""
    hidden = masks([30] * 2000, frames=30, num_time_masks=0, num_frequency_masks=1, max_frequency_bins=5, bins=20)
    assert (hidden.all(axis=1) == hidden.any(axis=1)).all()
    widths, edges = widths_and_edges(hidden[:, 0])
    assert set(np.unique(edges)) == {0, 2}
    assert set(np.unique(widths)) == set(range(6))
    assert (hidden[:, 0].mean(axis=0) > 0).all()


@pytest.mark.parametrize("num_frames", [1, 4, 5, 23, 100])
def test_short_clips_survive(num_frames):
    """Masks of 70 frames would erase a clip of half a second, and teach the model to answer nothing."""
    hidden = masks([num_frames] * 500, num_time_masks=1, num_frequency_masks=0, max_time_fraction=0.2, bins=4)
    widths, _ = widths_and_edges(hidden[:, :, 0])
    assert widths.max() == int(0.2 * num_frames)


def test_padding_comes_back_as_it_came():
    """Frames past the end hold the extractor's fill value: hiding them would waste masks and rewrite the fill."""
    num_frames = torch.tensor([100, 60, 1, 0])
    log_mel = torch.randn(4, 100, 40, generator=torch.Generator().manual_seed(0))
    real = torch.arange(100) < num_frames[:, None]
    log_mel[~real] = float("nan")
    augment = SpecAugment(num_time_masks=5, num_frequency_masks=5)
    for seed in range(20):
        masked = augment(log_mel, num_frames, np.random.default_rng(seed))
        assert masked[~real].isnan().all()
        kept = masked[real] != 0
        assert torch.equal(masked[real][kept], log_mel[real][kept])
        assert not kept.all()


def test_every_clip_has_its_own_masks_and_one_seed_gives_them_all():
    """Masks shared by the batch would be a weaker augmentation; masks from a global state could not be repeated."""
    before = torch.ones(8, 100, 40)
    first, again, other = (masks([100] * 8, seed) for seed in (1, 1, 2))
    assert len({clip.tobytes() for clip in first}) == 8
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    SpecAugment()(before, [100] * 8, np.random.default_rng(0))
    assert before.all()  # a copy is masked, not the caller's spectrogram


def test_no_masks_and_no_clips_change_nothing():
    """Off means off, and an empty batch (all rows without audio) is no error."""
    assert not masks([100] * 4, num_time_masks=0, num_frequency_masks=0).any()
    assert not masks([100] * 4, max_time_frames=0, max_frequency_bins=0).any()
    assert masks(torch.zeros(0, dtype=torch.long)).shape == (0, 100, 40)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_time_masks": -1}, {"max_time_frames": -1}, {"num_frequency_masks": 1.5}, {"max_frequency_bins": -2},
        {"max_time_fraction": 1.1}, {"max_time_fraction": float("nan")},
    ],
)  # fmt: skip
def test_mask_settings_that_make_no_sense_are_refused(settings):
    """As above, before the run starts and by name."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        SpecAugment(**settings)


def test_batches_that_do_not_fit_are_refused():
    """A wrong `num_frames` would hide padding or miss the end, and nobody would see it in the loss."""
    for num_frames, problem in [([100], "num_frames"), ([100, 101], "num_frames"), ([100, -1], "num_frames")]:
        with pytest.raises(ValueError, match=problem):
            SpecAugment()(torch.ones(2, 100, 40), num_frames, np.random.default_rng(0))
    with pytest.raises(ValueError, match="max_frequency_bins"):
        masks([100], bins=15)
