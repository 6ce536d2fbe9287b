"""Perturbations: each does to a waveform what its name says, and leaves alone what was given."""

import numpy as np
import pytest
from perturbations import PERTURBATIONS

RATE = 16000


def perturb(name: str, waveform: np.ndarray, seed: int = 0) -> np.ndarray:
    return PERTURBATIONS[name](waveform, RATE, np.random.default_rng(seed))


def decibels(waveform: np.ndarray) -> float:
    return 10 * np.log10(np.mean(waveform.astype(np.float64) ** 2))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_is_a_function_of_clip_and_draw(name, noise):
    """The same twice, and the clip is still what it was: it is perturbed again in another way."""
    clip = noise(2.5)
    kept = clip.copy()
    found = perturb(name, clip)
    np.testing.assert_array_equal(found, perturb(name, clip))
    np.testing.assert_array_equal(clip, kept)
    assert found.dtype == np.float32 and found.ndim == 1 and not np.array_equal(found, clip)


@pytest.mark.parametrize("snr", [20, 10])
@pytest.mark.parametrize("level", [0.001, 0.3])
def test_noise_lies_so_many_decibels_below_the_clip(snr, level, tone):
    clip = tone(440, seconds=2.0, amplitude=level)
    added = perturb(f"white noise, {snr} dB", clip) - clip
    assert decibels(clip) - decibels(added) == pytest.approx(snr, abs=0.2)
    assert not np.array_equal(added, perturb(f"white noise, {snr} dB", clip, seed=1) - clip)


def test_levels_move_by_so_many_decibels_up_to_full_scale(tone):
    clip = tone(440, amplitude=0.2)
    assert decibels(perturb("level -20 dB", clip)) == pytest.approx(decibels(clip) - 20, abs=1e-3)
    assert decibels(perturb("level +10 dB", clip)) == pytest.approx(decibels(clip) + 10, abs=1e-3)
    loud = perturb("level +10 dB", tone(440, amplitude=0.6))
    assert loud.max() == 1.0 and loud.min() == -1.0


@pytest.mark.parametrize(
    ("name", "passes", "stops"),
    [("telephone band", (400, 3300), (200, 3500)), ("through 8 kHz", (100, 3500), (4500,))],
)
def test_bands_let_through_what_a_line_carries(name, passes, stops, tone):
    for hertz in passes:
        assert decibels(perturb(name, tone(hertz))) == pytest.approx(decibels(tone(hertz)), abs=0.5)
    for hertz in stops:
        assert decibels(perturb(name, tone(hertz))) < decibels(tone(hertz)) - 30


def test_time_is_added_and_cut(noise):
    clip = noise(2.5)
    silence = perturb("1 s of silence before", clip)
    assert not silence[:RATE].any()
    np.testing.assert_array_equal(silence[RATE:], clip)
    for seconds in (1, 2):
        np.testing.assert_array_equal(perturb(f"first {seconds} s", clip), clip[: seconds * RATE])
    np.testing.assert_array_equal(perturb("first 2 s", clip[:1000]), clip[:1000])
    assert len(perturb("through 8 kHz", clip[:12345])) == 12345
