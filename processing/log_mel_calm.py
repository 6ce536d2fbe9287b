"""Waveforms to log-mel spectrograms to linearised patches, batched, on any device.

Dimensions: B clips, N samples, F frames, M mel bins, P patches, D values in a patch.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from transformers.audio_utils import mel_filter_bank

# Lower limit of a mel bin's power, so that the logarithm of digital silence is finite. Our choice: far below the 1e-9
# of half a step of 16-bit PCM, or results would depend on the level of a quiet recording.
SILENCE_POWER = 1e-20
STEADY = 1e-4  # standard deviation of a log-mel spectrogram below which only float32 rounding is left
CPU_BLOCK = 1024  # frames transformed at once, so that their spectra stay in the cache
BAND = 16  # mel bins filtered together: few enough to span few frequencies, enough for a full SIMD vector
LOWEST_FREQUENCY = 20.0  # Hz, below which there is hum and DC offset, not speech; Kaldi's choice


@lru_cache(maxsize=8)
def hann_window(win_length: int, device: torch.device) -> torch.Tensor:
    """Periodic Hann window of `win_length` samples (the one of `transformers.audio_utils.window_function`)."""
    return torch.hann_window(win_length, periodic=True, device=device)


@lru_cache(maxsize=8)
def mel_filters(
    n_fft: int, num_mel_bins: int, sampling_rate: int, device: torch.device
) -> list[tuple[slice, slice, torch.Tensor]]:
    """Triangular filters on Kaldi's mel scale, from 20 Hz to half the sampling rate, in bands.

    A triangle covers few frequencies: for every 16 neighbouring mel bins only the non-zero rows are kept, a quarter of
    the matrix. Every row occurs twice, for the squares of the real and the imaginary part.

    Returns:
        For each band, its slice of the 2 x (n_fft // 2 + 1) squares of a spectrum, its slice of the mel bins, and the
        filters from one to the other.
    """
    filters = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=LOWEST_FREQUENCY,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    ).repeat(2, axis=0)
    bands = []
    for start in range(0, num_mel_bins, BAND):
        bins = slice(start, start + BAND)
        used = filters[:, bins].any(axis=1).nonzero()[0]
        rows = slice(used[0], used[-1] + 1) if used.size else slice(0)
        bands.append((rows, bins, torch.from_numpy(filters[rows, bins]).to(device, torch.float32)))
    return bands


def count_frames(num_samples: int | torch.Tensor, win_length: int, hop_length: int) -> int | torch.Tensor:
    """Frames of a clip: those that lie entirely inside it, or one for a clip shorter than a frame."""
    frames = (num_samples - win_length) // hop_length + 1
    return frames.clamp(min=1) if isinstance(frames, torch.Tensor) else max(frames, 1)


def real_frames(num_frames: torch.Tensor, length: int) -> torch.Tensor:
    """(B, length) bool: which frames lie inside their clip."""
    return torch.arange(length, device=num_frames.device) < num_frames[:, None]


def pack(clips: Sequence[torch.Tensor], win_length: int, hop_length: int) -> tuple[torch.Tensor, list[int]]:
    """Concatenate clips so that each begins at a multiple of the hop and has at least one frame.

    All clips then share a single sequence of frames, without padding to the longest. Frames that span two clips belong
    to neither.

    Args:
        clips: B of (N,) samples.

    Returns:
        The samples of all clips, and the B indices of their first frames.
    """
    pieces, first, end = [], [], 0
    for clip in clips:
        steps = -(-max(len(clip), win_length) // hop_length)
        pieces += [clip, clip.new_zeros(steps * hop_length - len(clip))]
        first.append(end)
        end += steps
    return torch.cat(pieces), first


def log_mel_frames(
    samples: torch.Tensor, *, sampling_rate: int, n_fft: int, win_length: int, hop_length: int, num_mel_bins: int
) -> torch.Tensor:
    """Log-mel spectrogram (K, M) of (N,) float32 samples; frame `k` covers `[k * hop, k * hop + win)`."""
    frames = samples.unfold(0, win_length, hop_length)  # (K, win), a view
    window = hann_window(win_length, samples.device)
    bands = mel_filters(n_fft, num_mel_bins, sampling_rate, samples.device)
    log_mel = samples.new_empty(len(frames), num_mel_bins)
    block = min(len(frames), CPU_BLOCK if samples.device.type == "cpu" else len(frames))
    windowed = samples.new_zeros(block, n_fft)  # zeros after the window, written once
    for rows, result in zip(frames.split(block), log_mel.split(block), strict=True):
        torch.mul(rows, window, out=windowed[: len(rows), :win_length])
        spectrum = torch.fft.rfft(windowed[: len(rows)])  # (block, n_fft // 2 + 1)
        squares = torch.view_as_real(spectrum).flatten(1).square_()  # real and imaginary parts alternate
        for frequencies, mel_bins, filters in bands:
            torch.mm(squares[:, frequencies], filters, out=result[:, mel_bins])
        result.clamp_(min=SILENCE_POWER).log_()
    return log_mel


def log_mel_spectrogram(
    clips: Sequence[torch.Tensor],
    *,
    sampling_rate: int,
    n_fft: int,
    win_length: int,
    hop_length: int,
    num_mel_bins: int,
    dynamic_range: float,
    multiple_of: int = 1,
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Natural logarithm of the mel power spectrogram; frame `f` covers samples `[f * hop, f * hop + win)`.

    The floor lies `dynamic_range` below the clip's loudest bin. An absolute one would cut into quiet recordings, and
    float32 resolves only about 90 dB below a loud frequency. Our choice.

    Args:
        clips: B of (N,) float32 samples in [-1, 1].
        dynamic_range: in dB.
        multiple_of: F is padded to a multiple of this.
        device: where to compute; by default, where the clips are.

    Returns:
        The spectrograms (B, F, M), meaningful only in real frames, and the (B,) numbers of these.
    """
    samples, first = pack(clips, win_length, hop_length)
    samples = samples.to(device)
    frames = log_mel_frames(
        samples,
        sampling_rate=sampling_rate,
        n_fft=n_fft,
        win_length=win_length,
        hop_length=hop_length,
        num_mel_bins=num_mel_bins,
    )
    counts = [count_frames(len(clip), win_length, hop_length) for clip in clips]
    first, num_frames = torch.tensor([first, counts], device=samples.device)
    length = -(-max(counts) // multiple_of) * multiple_of
    places = first[:, None] + torch.arange(length, device=samples.device)
    places = places.clamp_(max=len(frames) - 1).flatten()
    log_mel = frames.index_select(0, places).unflatten(0, (len(clips), length))  # (B, F, M)
    loudest = log_mel.amax(-1).masked_fill_(~real_frames(num_frames, length), -torch.inf).amax(-1)  # (B,)
    floor = loudest - dynamic_range * math.log(10) / 10
    return torch.maximum(log_mel, floor[:, None, None], out=log_mel), num_frames


def normalize(log_mel: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
    """Normalise a clip's level: zero mean over all frames and mel bins, divided by the standard deviation + 0.01.

    Subtracting a mean per bin would also remove the channel, and with it the voice's pitch and tension, which convey
    emotion. The statistics are over real frames only. A constant clip, such as digital silence, becomes zero, so that
    rounding errors are not amplified. Our choice.

    Args:
        log_mel: (B, F, M) natural logarithms.
        num_frames: (B,) real frames of each clip.

    Returns:
        (B, F, M), zero after the real frames.
    """
    real = real_frames(num_frames, log_mel.shape[1])
    share = real / num_frames[:, None]  # (B, F) weight of each frame in its clip
    mean = (log_mel.mean(-1) * share).sum(1)
    centred = log_mel - mean[:, None, None]
    power = torch.linalg.vector_norm(centred, dim=-1).square() / centred.shape[-1]  # (B, F)
    deviation = (power * share).sum(1).sqrt()
    gain = torch.where(deviation > STEADY, 1 / (deviation + 1e-2), 0.0)
    return centred.mul_((gain[:, None] * real)[:, :, None])


def patchify(log_mel: torch.Tensor, patch_frames: int, patch_bins: int) -> torch.Tensor:
    """Cut (..., F, M) into linearised patches (..., P, D).

    The patches of one time step are adjacent, from low to high frequency, followed by those of the next step.

    Raises:
        ValueError: if frames or bins are not multiples of the patch size.
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
