"""From waveform to log-mel spectrogram and on to linearised patches, batched, on any device.

Dimensions: B clips, N samples, F frames, M mel bins, P patches, D values in a patch.
"""

from functools import lru_cache

import torch
from transformers.audio_utils import mel_filter_bank

# Power of a mel bin below which nothing is read, so that the logarithm of digital silence is finite. Our choice: far
# below the 1e-9 of half a step of 16-bit PCM, or the level of a quiet recording would show.
SILENCE_POWER = 1e-20
CPU_BLOCK = 1024  # frames transformed at once, so that their spectra stay in the cache
LOWEST_FREQUENCY = 20.0  # Hz, below which microphones hold hum and offset, not speech; Kaldi's choice


@lru_cache(maxsize=8)
def hann_window(win_length: int, device: torch.device) -> torch.Tensor:
    """Periodic Hann window of `win_length` samples (the one of `transformers.audio_utils.window_function`)."""
    return torch.hann_window(win_length, periodic=True, device=device)


@lru_cache(maxsize=8)
def mel_filters(n_fft: int, num_mel_bins: int, sampling_rate: int, device: torch.device) -> torch.Tensor:
    """Triangular filters (n_fft // 2 + 1, M) on Kaldi's mel scale, from 20 Hz to half the sampling rate."""
    filters = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=LOWEST_FREQUENCY,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(filters).to(device, torch.float32)


def count_frames(num_samples: int | torch.Tensor, win_length: int, hop_length: int) -> int | torch.Tensor:
    """Frames of a clip: those that lie wholly inside it, and one for a clip shorter than a frame."""
    frames = (num_samples - win_length) // hop_length + 1
    return frames.clamp(min=1) if isinstance(frames, torch.Tensor) else max(frames, 1)


def real_frames(num_frames: torch.Tensor, length: int) -> torch.Tensor:
    """(B, length, 1) bool: which frames lie inside their clip."""
    return (torch.arange(length, device=num_frames.device) < num_frames[:, None]).unsqueeze(-1)


def log_mel_spectrogram(
    waveform: torch.Tensor,
    num_frames: torch.Tensor,
    *,
    sampling_rate: int,
    n_fft: int,
    win_length: int,
    hop_length: int,
    num_mel_bins: int,
    dynamic_range: float,
) -> torch.Tensor:
    """Natural logarithm of the mel power spectrogram; frame `f` covers samples `[f * hop, f * hop + win)`.

    The floor lies `dynamic_range` below the clip's loudest bin. An absolute one would cut into quiet recordings, and
    float32 carries no more than about 90 dB beside a loud frequency. Our choice.

    Args:
        waveform: (B, N) float32 samples in [-1, 1], zero past each clip's end.
        num_frames: (B,) real frames of each clip.
        dynamic_range: in dB.

    Returns:
        (B, F, M), meaningful in real frames.
    """
    missing = win_length - waveform.shape[-1]
    if missing > 0:
        waveform = torch.nn.functional.pad(waveform, (0, missing))
    frames = waveform.unfold(-1, win_length, hop_length)  # (B, F, win), a view
    real = real_frames(num_frames, frames.shape[1])  # (B, F, 1)
    window = hann_window(win_length, waveform.device)
    filters = mel_filters(n_fft, num_mel_bins, sampling_rate, waveform.device)
    mel = waveform.new_zeros(*frames.shape[:2], num_mel_bins)
    clip, place = real.squeeze(-1).nonzero(as_tuple=True)  # of the real frames alone
    block = CPU_BLOCK if waveform.device.type == "cpu" else max(len(clip), 1)
    for rows in torch.arange(len(clip), device=waveform.device).split(block):
        spectrum = torch.fft.rfft(frames[clip[rows], place[rows]].mul_(window), n=n_fft)  # (block, n_fft // 2 + 1)
        mel[clip[rows], place[rows]] = (spectrum.real.square() + spectrum.imag.square()) @ filters
    loudest = mel.amax(dim=(1, 2), keepdim=True)  # zero outside the clips
    floor = (loudest * 10 ** (-dynamic_range / 10)).clamp_(min=SILENCE_POWER)
    return torch.maximum(mel, floor, out=mel).log_()


def normalize(log_mel: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
    """Make a clip independent of its level: zero mean and unit variance over all its frames and mel bins together.

    A mean in every bin would also remove the channel, and with it how high and how tense a voice is, which is what
    emotion is read from. The statistics see real frames only. Our choice.

    Args:
        log_mel: (B, F, M) natural logarithms.
        num_frames: (B,) real frames of each clip.

    Returns:
        (B, F, M), zero past each clip's end.
    """
    past_end = ~real_frames(num_frames, log_mel.shape[1])
    count = (num_frames * log_mel.shape[2])[:, None, None]
    # Counted from the first value, digital silence is zero to the bit and not a rounding error divided by nothing.
    log_mel = (log_mel - log_mel[:, :1, :1]).masked_fill_(past_end, 0.0)
    centred = (log_mel - log_mel.sum((1, 2), keepdim=True) / count).masked_fill_(past_end, 0.0)
    deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt_()
    return centred / deviation.add_(1e-2)  # the constant keeps a clip that never moves from being blown up


def patchify(log_mel: torch.Tensor, patch_frames: int, patch_bins: int) -> torch.Tensor:
    """Cut (..., F, M) into linearised patches (..., P, D).

    The patches of one time step stand together, low to high frequency, then those of the next step.

    Raises:
        ValueError: if frames or bins are not multiples of the patch.
    """
    *batch, frames, bins = log_mel.shape
    if frames % patch_frames or bins % patch_bins:
        raise ValueError(
            f"A spectrogram of {frames} frames x {bins} bins cannot be cut into patches of {patch_frames} x"
            f" {patch_bins}; pad the frames to a multiple of {patch_frames}."
        )
    grid = log_mel.reshape(*batch, frames // patch_frames, patch_frames, bins // patch_bins, patch_bins)
    return grid.transpose(-3, -2).reshape(*batch, -1, patch_frames * patch_bins)


def unpatchify(patches: torch.Tensor, patch_frames: int, patch_bins: int, num_mel_bins: int) -> torch.Tensor:
    """The exact inverse of `patchify`: (..., P, D) back to (..., F, M).

    Raises:
        ValueError: if the patches do not fill whole time steps, or have another size.
    """
    *batch, num_patches, patch_dim = patches.shape
    steps, rest = divmod(num_patches, num_mel_bins // patch_bins)
    if rest or patch_dim != patch_frames * patch_bins:
        raise ValueError(
            f"{num_patches} patches of {patch_dim} values are not {num_mel_bins // patch_bins} patches of"
            f" {patch_frames * patch_bins} values a time step."
        )
    grid = patches.reshape(*batch, steps, num_mel_bins // patch_bins, patch_frames, patch_bins)
    return grid.transpose(-3, -2).reshape(*batch, steps * patch_frames, num_mel_bins)
