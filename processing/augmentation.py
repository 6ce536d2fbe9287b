"""Random augmentation of training clips: waveforms, and log-mel spectrograms (SpecAugment).

All randomness comes from the `numpy.random.Generator` that the caller passes, so a batch is a function of its clips
and one seed. Defaults are our choice where no paper is named. Not for use in evaluation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
import torch

__all__ = ["SpecAugment", "WaveformAugmentation"]


def _check_range(name: str, value: Sequence[float] | None, above: float = -math.inf) -> None:
    if value is None:
        return
    if len(value) != 2 or not above < value[0] <= value[1] < math.inf:
        bound = "finite" if above == -math.inf else f"above {above:g}"
        raise ValueError(f"{name} must be None or (low, high) with low <= high, both {bound}, got {value}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in 0 to 1, got {value}")


@dataclass(frozen=True)
class WaveformAugmentation:
    """Varies speed, silence, channel, noise and level of a waveform, in that order.

    The band limit comes before the noise, so that the result has the signal-to-noise ratio that was drawn. The
    result is not clipped: samples are floats and may exceed 1.

    Args:
        speed: Range of the speed factor (Ko et al., "Audio Augmentation for Speech Recognition", Interspeech 2015, use
            0.9, 1.0 and 1.1). The clip is resampled, as if a tape played faster: its duration is divided by the
            factor, its speech rate **and pitch** are multiplied by it. Pitch carries emotion, so use with care there.
            None keeps the speed.
        gain_db: Range of the gain in dB. None keeps the level.
        noise_snr_db: Range of the ratio of signal to white Gaussian noise in dB, over the whole clip. None adds none.
        noise_probability: Fraction of clips that get noise.
        band_limit_probability: Fraction of clips that are band-limited.
        lowest_hz: Range of the band's lower limit. Both limits default to an analogue telephone line's (ITU-T G.712).
        highest_hz: Range of the band's upper limit.
        silence_probability: Fraction of clips that get silence before and after.
        silence_s: Range of that silence in seconds, drawn separately for each end.

    Raises:
        ValueError: If a range is not (low, high), a speed is not positive, or a probability is outside 0 to 1.

    Example:
        >>> augmentation = WaveformAugmentation(speed=(2.0, 2.0), gain_db=None, noise_probability=0.0)
        >>> augmentation(np.ones(16000), 16000, np.random.default_rng(0)).shape
        (8000,)
    """

    speed: Sequence[float] | None = (0.9, 1.1)
    gain_db: Sequence[float] | None = (-6.0, 6.0)
    noise_snr_db: Sequence[float] | None = (10.0, 40.0)
    noise_probability: float = 0.5
    band_limit_probability: float = 0.0
    lowest_hz: Sequence[float] = (300.0, 300.0)
    highest_hz: Sequence[float] = (3400.0, 3400.0)
    silence_probability: float = 0.0
    silence_s: Sequence[float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Checks the settings."""
        _check_range("speed", self.speed, above=0.0)
        _check_range("gain_db", self.gain_db)
        _check_range("noise_snr_db", self.noise_snr_db)
        _check_share("noise_probability", self.noise_probability)
        _check_share("band_limit_probability", self.band_limit_probability)
        for name in ("lowest_hz", "highest_hz", "silence_s"):
            if getattr(self, name) is None or getattr(self, name)[0] < 0:
                raise ValueError(f"{name} must be (low, high), none below 0, got {getattr(self, name)}")
            _check_range(name, getattr(self, name))
        if not self.lowest_hz[1] < self.highest_hz[0]:
            raise ValueError(f"lowest_hz {self.lowest_hz} must lie below highest_hz {self.highest_hz}")
        _check_share("silence_probability", self.silence_probability)

    def longest(self, seconds: np.ndarray) -> np.ndarray:
        """The longest durations that clips of `seconds` (...) can reach."""
        slowest = 1.0 if self.speed is None else self.speed[0]
        return seconds / slowest + (2 * self.silence_s[1] if self.silence_probability else 0.0)

    def __call__(self, waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """Augments one clip.

        Args:
            waveform: Samples `(num_samples,)`; not modified.
            sampling_rate: Its rate in Hz.
            generator: Source of all randomness.

        Returns:
            A new waveform, float32, of `num_samples / speed` samples, at least one, plus the silence.

        Raises:
            ValueError: If the waveform is empty or not one-dimensional.
        """
        waveform = np.array(waveform, dtype=np.float32)  # a copy
        if waveform.ndim != 1 or waveform.size == 0:
            raise ValueError(f"waveform must have shape (num_samples,) with at least one sample, got {waveform.shape}")
        if self.speed is not None:
            faster = soxr.resample(waveform, generator.uniform(*self.speed), 1.0)
            waveform = faster if faster.size else waveform  # a very short clip can become empty
        if generator.random() < self.silence_probability:
            waveform = np.pad(waveform, (generator.uniform(*self.silence_s, size=2) * sampling_rate).astype(int))
        if generator.random() < self.band_limit_probability:
            limits = generator.uniform(*self.lowest_hz), generator.uniform(*self.highest_hz)
            waveform = _band_limit(waveform, sampling_rate, *limits)
        if self.noise_snr_db is not None and generator.random() < self.noise_probability:
            signal_rms = np.sqrt(np.mean(waveform**2))
            noise_rms = signal_rms * 10 ** (-generator.uniform(*self.noise_snr_db) / 20)
            waveform = waveform + noise_rms * generator.standard_normal(waveform.size, dtype=np.float32)
        if self.gain_db is not None:
            waveform = waveform * 10 ** (generator.uniform(*self.gain_db) / 20)
        return waveform.astype(np.float32, copy=False)


def _band_limit(waveform: np.ndarray, sampling_rate: int, low: float, high: float) -> np.ndarray:
    """Removes frequencies outside a band (Hz) from the spectrum of the whole clip."""
    spectrum = np.fft.rfft(waveform)
    frequencies = np.fft.rfftfreq(waveform.size, 1 / sampling_rate)  # Hz
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    return np.fft.irfft(spectrum, waveform.size)


@dataclass(frozen=True)
class SpecAugment:
    """Masks bands of time and frequency in a normalised log-mel spectrogram.

    Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", Interspeech 2019,
    section 2, without time warping; the defaults are its policy SM (Table 1; 80 mel bins, 10 ms frames). A time mask
    is t frames wide, t uniform in 0 to T, and starts anywhere it fits in the clip; likewise in frequency. Masked
    values become 0, the mean of the normalised clip.

    Args:
        num_time_masks: Time masks per clip.
        max_time_frames: T, in frames.
        num_frequency_masks: Frequency masks per clip.
        max_frequency_bins: The widest frequency mask, in mel bins.
        max_time_fraction: No time mask is wider than this fraction of the real frames, to spare short clips.

    Raises:
        ValueError: If a number is negative or `max_time_fraction` is outside 0 to 1.

    Example:
        >>> augmentation = SpecAugment(num_time_masks=1, num_frequency_masks=0)
        >>> masked = augmentation(torch.ones(1, 200, 80), [100], np.random.default_rng(0))
        >>> masked.shape, bool((masked[0, 100:] == 1).all()), int((masked[0] == 0).all(-1).sum()) <= 20
        (torch.Size([1, 200, 80]), True, True)
    """

    num_time_masks: int = 2
    max_time_frames: int = 70
    num_frequency_masks: int = 2
    max_frequency_bins: int = 15
    max_time_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name in ("num_time_masks", "max_time_frames", "num_frequency_masks", "max_frequency_bins"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be an integer of at least 0, got {value!r}")
        _check_share("max_time_fraction", self.max_time_fraction)

    def __call__(
        self, log_mel: torch.Tensor, num_frames: torch.Tensor | Sequence[int], generator: np.random.Generator
    ) -> torch.Tensor:
        """Masks a batch, with separate draws for each clip.

        Args:
            log_mel: Normalised spectrograms `(B, F, M)` on any device; not modified.
            num_frames: Real frames of each clip, `(B,)`. The frames after them are returned unchanged.
            generator: Source of all randomness.

        Returns:
            A masked copy `(B, F, M)`.

        Raises:
            ValueError: If the shapes do not fit, or a frequency mask could cover all mel bins.
        """
        lengths = torch.as_tensor(num_frames).cpu().numpy()  # (B,)
        if log_mel.ndim != 3 or lengths.shape != log_mel.shape[:1]:
            raise ValueError(f"log_mel must be (B, F, M) and num_frames (B,), got {log_mel.shape} and {lengths.shape}")
        frames, bins = log_mel.shape[1:]
        if lengths.size and not 0 <= lengths.min() <= lengths.max() <= frames:
            raise ValueError(f"num_frames must lie in 0 to {frames}, got {lengths.min()} to {lengths.max()}")
        if self.num_frequency_masks and self.max_frequency_bins >= bins:
            raise ValueError(f"max_frequency_bins ({self.max_frequency_bins}) must be less than the {bins} mel bins")
        widest = np.minimum(self.max_time_frames, (self.max_time_fraction * lengths).astype(int))
        time = _bands(widest, lengths, frames, self.num_time_masks, generator)  # (B, F)
        widest = np.full_like(lengths, self.max_frequency_bins)
        frequency = _bands(widest, np.full_like(lengths, bins), bins, self.num_frequency_masks, generator)  # (B, M)
        real = np.arange(frames) < lengths[:, None]  # (B, F)
        hidden = (time[:, :, None] | frequency[:, None, :]) & real[:, :, None]  # (B, F, M)
        return log_mel.masked_fill(torch.from_numpy(hidden).to(log_mel.device), 0.0)


def _bands(
    widest: np.ndarray, lengths: np.ndarray, size: int, num_bands: int, generator: np.random.Generator
) -> np.ndarray:
    """Union of random bands per clip, (B, size) bool; `widest` (B,) and `lengths` (B,) bound their width and end."""
    widths = generator.integers(0, widest[:, None], size=(len(lengths), num_bands), endpoint=True)
    starts = generator.integers(0, lengths[:, None] - widths, endpoint=True)  # (B, num_bands)
    places = np.arange(size)
    inside = (places >= starts[..., None]) & (places < (starts + widths)[..., None])  # (B, num_bands, size)
    return inside.any(axis=1)
