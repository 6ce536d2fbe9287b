"""Audio files to the waveforms that the model reads: float32, mono, one sampling rate.

One decoder (libsndfile, through soundfile: wav, flac, ogg, mp3) and one resampler (soxr, quality HQ) for every entry
point of the package, because another resampler gives another signal and changes predictions. Whatever does not decode
to the complete, finite signal raises an [`AudioError`] that names the file: half a clip or a NaN would otherwise turn
into a plausible but wrong embedding.
"""

import io
import os
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from .waveforms_calm import MAX_AMPLITUDE

__all__ = ["AudioError", "as_waveform", "load_audio", "split_waveform"]

# A header can claim anything. Beyond these limits the file is treated as damaged, and rejected before any sample is
# decoded. 16 channels is the largest microphone array in common speech corpora; 1 kHz is below any speech codec; 384
# kHz is the highest rate of any audio converter sold.
MAX_CHANNELS = 16
MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 384_000
# Six hours of 16 kHz float32 are 1.4 GB, about what one decoding process can be expected to hold.
MAX_DURATION_S = 6 * 3600.0

# A frame is one sample of every channel. Files are decoded in blocks of 2^20 frames (66 s at 16 kHz, at most 64 MiB),
# so that memory scales with the mono result, not with channels x native rate; ordinary clips are a single block.
_BLOCK_FRAMES = 1 << 20
# Writers that stream into a pipe cannot go back to fill in the length, and leave one of these sizes (bytes) instead:
# 0x7FFFF000 (SoX), 0xFFFFFFFF (FFmpeg). From the former up, a WAV's size means "until the end of the file".
_UNKNOWN_WAV_SIZE = 0x7FFFF000
_WAV_SIZE_NOTE = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)


class AudioError(ValueError):
    """An audio source that cannot be read; the message names the source, what is wrong and what to do about it.

    Example:
        >>> load_audio("missing.wav")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        processing.audio.AudioError: missing.wav: is no such file; check the path ...
    """


def load_audio(
    source: str | os.PathLike | bytes | BinaryIO | dict[str, Any],
    sampling_rate: int = 16000,
    max_duration_s: float = MAX_DURATION_S,
) -> np.ndarray:
    """Reads one audio file as a mono waveform.

    Channels are averaged, then resampled. The level is not normalised: full scale is 1.0. libsndfile does not detect
    two kinds of damage, which pass as a shorter clip: an Ogg file that lost whole pages at its end, and a
    variable-bit-rate MP3 without a Xing header, whose length is only an estimate.

    Args:
        source: A path, the encoded bytes, a binary file object (read from its position to its end), or the dict
            `{"bytes": ..., "path": ...}` that `datasets.Audio(decode=False)` yields, whose bytes take precedence.
        sampling_rate: Rate of the result in Hz.
        max_duration_s: Longest accepted clip in seconds.

    Returns:
        Waveform of shape `(num_samples,)`, float32, with about `duration x sampling_rate` samples, at least one.

    Raises:
        AudioError: If the file is missing, cannot be decoded, is truncated, holds no sample or one that is not finite
            or exceeds 1e15, or claims more than 16 channels, a rate outside 1 kHz to 384 kHz or too long a duration.
        TypeError: If `source` is none of the accepted types.
        ValueError: If `sampling_rate` is outside 1 kHz to 384 kHz.

    Example:
        >>> file = io.BytesIO()
        >>> soundfile.write(file, np.zeros((4000, 2)), 8000, format="flac")  # half a second in stereo
        >>> load_audio(file.getvalue()).shape
        (8000,)
    """
    if not MIN_SAMPLE_RATE_HZ <= sampling_rate <= MAX_SAMPLE_RATE_HZ:
        raise ValueError(
            f"sampling_rate must lie in {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz, got {sampling_rate}"
        )
    file, name = _resolve(source)
    try:
        with soundfile.SoundFile(file) as sound:
            _check_header(sound, name, max_duration_s)
            waveform = _decode(sound, sampling_rate, name)
    # soundfile raises OSError for a file it may not read, and TypeError for headerless ".raw" files.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", error)  # leaves out "Error opening <_io.BytesIO object at ...>"
        raise AudioError(
            f"{name}: cannot be decoded ({reason}); it is damaged or not a format of libsndfile: "
            "copy it again, or convert it to wav or flac"
        ) from error
    if waveform.size == 0:
        raise AudioError(f"{name}: holds no samples, it is empty or cut short; copy it again or leave it out")
    return waveform


def as_waveform(audio: Any, sampling_rate: int = 16000) -> np.ndarray:
    """The waveform of a row's audio: samples, or a file that [`load_audio`] reads.

    Args:
        audio: Samples (N,) already at the rate, as the library's audio pipelines take them; samples with their rate,
            `{"array": ..., "sampling_rate": ...}` or `{"raw": ..., "sampling_rate": ...}`; a torchcodec
            `AudioDecoder`, as `datasets` returns; or a source of `load_audio`.
        sampling_rate: Rate of the result in Hz.

    Returns:
        Waveform (N,). Samples that need no resampling are returned unchanged, integers included.

    Raises:
        ValueError: For samples in a dict without a rate or with one outside 1 kHz to 384 kHz, and for samples to
            resample that have channels or are neither floats nor signed PCM.
        TypeError, AudioError: See `load_audio`.

    Example:
        >>> as_waveform({"array": np.zeros(4000, np.float32), "sampling_rate": 8000}).shape
        (8000,)
    """
    if hasattr(audio, "get_all_samples"):
        decoded = audio.get_all_samples()
        audio = {"array": decoded.data.mean(dim=0), "sampling_rate": decoded.sample_rate}
    if isinstance(audio, dict) and ("array" in audio or "raw" in audio):
        samples = np.asarray(audio["array"] if "array" in audio else audio["raw"])
        return _resample(samples, audio.get("sampling_rate"), sampling_rate)
    if isinstance(audio, list) or hasattr(audio, "__array__"):
        return np.asarray(audio)
    return load_audio(audio, sampling_rate=sampling_rate)


def audio_of(row: Mapping) -> Any:
    """The `audio` of a row; samples are paired with the row's `sampling_rate` (Hz)."""
    audio, rate = row.get("audio"), row.get("sampling_rate")
    samples = isinstance(audio, list) or hasattr(audio, "__array__")
    return {"array": audio, "sampling_rate": rate} if samples and rate is not None else audio


def split_waveform(waveform: np.ndarray, chunk_length_s: float, sampling_rate: int) -> list[np.ndarray]:
    """Splits samples (N,) into as few equal pieces as fit in `chunk_length_s` seconds each.

    Example:
        >>> [len(piece) for piece in split_waveform(np.zeros(40000), 1.0, 16000)]
        [13334, 13333, 13333]
    """
    longest = max(int(chunk_length_s * sampling_rate), 1)
    return np.array_split(waveform, max(-(-len(waveform) // longest), 1))


def _resample(samples: np.ndarray, rate: float | None, sampling_rate: int) -> np.ndarray:
    """Resamples (N,) samples from `rate` to `sampling_rate` (Hz), with the resampler of `load_audio`."""
    if rate is None or not MIN_SAMPLE_RATE_HZ <= rate <= MAX_SAMPLE_RATE_HZ:
        raise ValueError(
            f"samples in a dict need their rate beside them, {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz, got"
            f' {rate}: {{"array": samples, "sampling_rate": 16000}}'
        )
    if rate == sampling_rate:
        return samples
    if samples.ndim != 1:
        raise ValueError(f"samples of shape {samples.shape} have channels; mix them first, e.g. by their mean")
    if samples.dtype in (np.int8, np.int16, np.int32):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    if samples.dtype.kind != "f":
        raise ValueError(f"samples of dtype {samples.dtype} cannot be resampled; give floats in [-1, 1], or int16 PCM")
    return soxr.resample(samples.astype(np.float32), rate, sampling_rate, quality="HQ")


def _resolve(source: Any) -> tuple[str | BinaryIO, str]:
    """Turns any accepted source into what `soundfile.SoundFile` opens, and the name for errors."""
    if isinstance(source, dict):
        path = source.get("path")
        if source.get("bytes") is not None:
            return io.BytesIO(source["bytes"]), str(path or "<bytes>")
        if path is None:
            raise AudioError("<bytes>: the dict has neither bytes nor path; load the column with Audio(decode=False)")
        source = path
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        if not os.path.isfile(name):
            raise AudioError(f"{name}: is no such file; check the path (URLs are not fetched, download them first)")
        return name, name
    if hasattr(source, "read"):
        # Read in full, since libsndfile seeks, which sockets, pipes and archive members may not support.
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else "<bytes>"
        content = source.read()
        if not isinstance(content, bytes):
            raise AudioError(f"{name}: the file object gives {type(content).__name__}, not bytes; open it with 'rb'")
        return io.BytesIO(content), name
    raise TypeError(
        "source must be a path, bytes, a binary file object or a dict of bytes and path, got "
        f"{type(source).__name__}; a waveform needs no loading and goes to the feature extractor as it is"
    )


def _check_header(sound: soundfile.SoundFile, name: str, max_duration_s: float) -> None:
    """Rejects implausible header claims before memory is allocated for them."""
    if sound.channels > MAX_CHANNELS:
        raise AudioError(
            f"{name}: claims {sound.channels} channels, more than {MAX_CHANNELS}; "
            "its header is damaged, or it has to be mixed down first"
        )
    if not MIN_SAMPLE_RATE_HZ <= sound.samplerate <= MAX_SAMPLE_RATE_HZ:
        raise AudioError(
            f"{name}: claims a rate of {sound.samplerate} Hz, outside {MIN_SAMPLE_RATE_HZ} to "
            f"{MAX_SAMPLE_RATE_HZ} Hz; its header is damaged: convert it again from its source"
        )
    duration_s = sound.frames / sound.samplerate
    if duration_s > max_duration_s:
        raise AudioError(
            f"{name}: claims {duration_s:.0f} s, more than {max_duration_s:.0f} s; split it or raise max_duration_s "
            "(a header damaged or streamed without its length has to be written anew: convert the file)"
        )
    # libsndfile silently shortens a WAV whose data chunk is cut off, and leaves only this note in its log.
    note = _WAV_SIZE_NOTE.search(sound.extra_info)
    if note and int(note[1]) < _UNKNOWN_WAV_SIZE:
        raise AudioError(
            f"{name}: is truncated, its header claims {note[1]} bytes of samples "
            f"and {note[2]} are there; copy it again"
        )


def _decode(sound: soundfile.SoundFile, sampling_rate: int, name: str) -> np.ndarray:
    """Decodes, mixes and resamples block by block, and checks that all claimed samples are present and finite."""
    resampler = None
    if sound.samplerate != sampling_rate:
        resampler = soxr.ResampleStream(sound.samplerate, sampling_rate, 1, dtype="float32", quality="HQ")
    num_frames, parts = 0, []
    while len(block := sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):  # (frames, channels)
        if not -MAX_AMPLITUDE <= block.min() <= block.max() <= MAX_AMPLITUDE:  # also for NaN
            raise AudioError(
                f"{name}: holds NaN or infinite samples, or some above {MAX_AMPLITUDE:g} where full scale is 1, "
                f"between {num_frames / sound.samplerate:.1f} s and "
                f"{(num_frames + len(block)) / sound.samplerate:.1f} s; write it again from its source"
            )
        num_frames += len(block)
        mono = block.mean(axis=1)
        parts.append(mono if resampler is None else resampler.resample_chunk(mono))
    if num_frames < sound.frames:
        raise AudioError(
            f"{name}: is truncated or damaged, its header claims {sound.frames} samples a channel "
            f"and {num_frames} can be decoded; copy it again"
        )
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
