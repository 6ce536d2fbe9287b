"""Perturbations of test recordings: level, noise, telephone band, silence, sampling rate and cropping.

Each is a pure function of a waveform (N,), its sampling rate in Hz and a `numpy.random.Generator`, which only noise
uses; it returns a new float32 waveform. Their selection and strength are our choice.
"""

from collections.abc import Callable

import numpy as np
import soxr

from processing import WaveformAugmentation

Perturbation = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
UNCHANGED = {"speed": None, "gain_db": None, "noise_probability": 0.0}


def level(decibels: float) -> Perturbation:
    """Louder or softer, clipped at full scale as by an A/D converter."""
    louder = WaveformAugmentation(**UNCHANGED | {"gain_db": (decibels, decibels)})
    return lambda waveform, rate, generator: louder(waveform, rate, generator).clip(-1.0, 1.0)


def white_noise(snr_db: float) -> Perturbation:
    """White Gaussian noise, `snr_db` dB below the level of the whole clip."""
    return WaveformAugmentation(**UNCHANGED | {"noise_snr_db": (snr_db, snr_db), "noise_probability": 1.0})


def leading_silence(seconds: float) -> Perturbation:
    """Digital silence before the clip."""
    return lambda waveform, rate, generator: np.concatenate(
        [np.zeros(round(seconds * rate), np.float32), np.asarray(waveform, np.float32)]
    )


def resampled(low_rate: int) -> Perturbation:
    """Resampled to `low_rate` and back, so that nothing above half of it is left; the length is kept."""

    def perturb(waveform: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
        back = soxr.resample(soxr.resample(np.asarray(waveform, np.float32), rate, low_rate), low_rate, rate)
        return np.pad(back, (0, max(0, len(waveform) - len(back))))[: len(waveform)]

    return perturb


def cropped(seconds: float) -> Perturbation:
    """The beginning of the clip; a shorter one is unchanged."""
    return lambda waveform, rate, generator: np.array(waveform[: round(seconds * rate)], np.float32)


PERTURBATIONS: dict[str, Perturbation] = {
    "level -20 dB": level(-20.0),
    "level +10 dB": level(10.0),
    "white noise, 20 dB": white_noise(20.0),
    "white noise, 10 dB": white_noise(10.0),
    "telephone band": WaveformAugmentation(**UNCHANGED, band_limit_probability=1.0),
    "1 s of silence before": leading_silence(1.0),
    "through 8 kHz": resampled(8000),
    "first 1 s": cropped(1.0),
    "first 2 s": cropped(2.0),
}
