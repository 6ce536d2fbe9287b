"""Audio inputs as separate waveforms, each checked and converted to float32."""

from typing import Any

import numpy as np
import torch

# Full scale is 1, and PCM passed as floats reaches 2^31. Far beyond that, the power overflows in float32.
MAX_AMPLITUDE = 1e15


def as_clips(raw_speech: Any) -> list:
    """Turn one waveform, or an array or list of waveforms, into a list of waveforms."""
    first = raw_speech[0] if isinstance(raw_speech, (list, tuple)) and raw_speech else raw_speech
    if isinstance(first, (str, bytes, dict)):
        raise ValueError("The feature extractor takes waveforms, not files. Read them with `processing.load_audio`.")
    if isinstance(raw_speech, (list, tuple)):
        if len(raw_speech) == 0:
            raise ValueError("The batch holds no clip.")
        return [raw_speech] if np.ndim(raw_speech[0]) == 0 else list(raw_speech)
    if np.ndim(raw_speech) < 2:
        return [raw_speech]
    if np.ndim(raw_speech) == 2 and (raw_speech.shape[0] == 2 or raw_speech.shape[1] <= 2):
        raise ValueError(
            f"An array of shape {tuple(raw_speech.shape)} may be one stereo recording or two clips. For stereo pass"
            " the mean over the channels, for two clips a list of two arrays."
        )
    if len(raw_speech) == 0:
        raise ValueError("The batch holds no clip.")
    return list(raw_speech)


def check_waveform(clip: Any, index: int) -> torch.Tensor:
    """Check a waveform and convert it to a float32 tensor (N,); errors name its index in the batch."""
    try:
        if not isinstance(clip, torch.Tensor):
            clip = torch.from_numpy(np.require(clip, requirements=["C", "W"]))  # what torch can wrap without a copy
        samples = clip.detach()
    except TypeError as error:
        raise ValueError(
            f"Clip {index} is no row of numbers ({error}). Give samples, e.g. of `load_audio`."
        ) from error
    if samples.ndim != 1:
        raise ValueError(
            f"Clip {index} has shape {tuple(samples.shape)}; a waveform has one axis. Mix its channels to mono first,"
            " e.g. by their mean."
        )
    if len(samples) == 0:
        raise ValueError(f"Clip {index} is empty. Leave it out of the batch.")
    if samples.dtype == torch.uint8:
        samples = (samples.float() - 128) / 128
    elif samples.dtype in (torch.int8, torch.int16, torch.int32):
        samples = samples.float() / (torch.iinfo(samples.dtype).max + 1)
    elif not samples.is_floating_point():
        raise ValueError(
            f"Clip {index} has dtype {samples.dtype}, whose full scale is unknown. Give float samples in [-1, 1], or"
            " PCM as uint8, int8, int16 or int32."
        )
    samples = samples.float()
    low, high = samples.aminmax()
    if not -MAX_AMPLITUDE <= low <= high <= MAX_AMPLITUDE:  # also for NaN
        raise ValueError(
            f"Clip {index} holds NaN or infinity, or samples above {MAX_AMPLITUDE:g} where full scale is 1. Repair the"
            " recording or leave it out."
        )
    return samples
