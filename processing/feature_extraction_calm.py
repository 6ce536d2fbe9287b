"""`CalmFeatureExtractor`: waveforms in, linearised log-mel patches out.

Dimensions: B clips, F frames, M mel bins, P patches, D values in a patch, S patches in an acoustic token, T acoustic
tokens; P = T x S.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedConfig
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType

from .log_mel_calm import count_frames, log_mel_spectrogram, normalize, patchify, real_frames, unpatchify
from .waveforms_calm import as_clips, check_waveform

# The settings that extractor and model must share, from their names in `CalmAudioConfig` to those of the extractor.
GEOMETRY = {
    "sampling_rate": "sampling_rate", "hop_length": "hop_length", "num_mel_bins": "feature_size",
    "patch_frames": "patch_frames", "patch_bins": "patch_bins", "token_frames": "token_frames",
}  # fmt: skip


class CalmFeatureExtractor(SequenceFeatureExtractor):
    r"""Turns waveforms into the patches that [`CalmAudioModel`] reads.

    The natural-log mel spectrogram (Hann window of 25 ms every 10 ms, Kaldi's mel scale from 20 Hz to half the
    sampling rate) is normalised over the real frames of the clip, cut into patches of
    `patch_frames` x `patch_bins`, and padded to whole acoustic tokens. Any length works; a clip shorter than one
    token gives one token.

    Args:
        feature_size (`int`, *optional*, defaults to 80):
            Mel bins, `M`.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate that the waveforms must have (Hz).
        padding_value (`float`, *optional*, defaults to 0.0):
            Value of masked patches, which the model never reads, and of the padding in a clip's last patch, which it
            does: a value other than 0, the mean of a normalised clip, changes results.
        n_fft (`int`, *optional*, defaults to 512):
            Points of the Fourier transform.
        win_length (`int`, *optional*, defaults to 400):
            Samples in a frame; 400 at 16 kHz is 25 ms.
        hop_length (`int`, *optional*, defaults to 160):
            Samples between frames; 160 at 16 kHz is 10 ms.
        patch_frames (`int`, *optional*, defaults to 4):
            Frames in a patch.
        patch_bins (`int`, *optional*, defaults to 80):
            Mel bins in a patch.
        token_frames (`int`, *optional*, defaults to 24):
            Frames in an acoustic token.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether to normalise each clip; see `log_mel_calm.normalize`.
        dynamic_range (`float`, *optional*, defaults to 80.0):
            Decibels between the clip's loudest bin and the floor.
        return_attention_mask (`bool`, *optional*, defaults to `False`):
            Leave off: `attention_mask` is the text's key; patches are masked by `input_features_mask`.

    Example:

    ```python
    >>> import numpy as np
    >>> from processing import CalmFeatureExtractor

    >>> extractor = CalmFeatureExtractor()
    >>> second = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    >>> inputs = extractor([second, second[:4000]], sampling_rate=16000, return_tensors="pt")
    >>> inputs["input_features"].shape, inputs["input_features_mask"].sum(-1)
    (torch.Size([2, 30, 320]), tensor([25,  6]))

    ```
    """

    model_input_names = ["input_features", "input_features_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        patch_frames: int = 4,
        patch_bins: int = 80,
        token_frames: int = 24,
        do_normalize: bool = True,
        dynamic_range: float = 80.0,
        return_attention_mask: bool = False,
        **kwargs,
    ):
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            return_attention_mask=return_attention_mask,
            **kwargs,
        )
        if feature_size % patch_bins or token_frames % patch_frames or not 0 < win_length <= n_fft:
            raise ValueError(
                f"`feature_size` ({feature_size}) must be a multiple of `patch_bins` ({patch_bins}), `token_frames`"
                f" ({token_frames}) one of `patch_frames` ({patch_frames}), and `win_length` ({win_length}) at most"
                f" `n_fft` ({n_fft})."
            )
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.patch_frames = patch_frames
        self.patch_bins = patch_bins
        self.token_frames = token_frames
        self.do_normalize = do_normalize
        self.dynamic_range = dynamic_range

    @classmethod
    def from_audio_config(cls, audio_config: PreTrainedConfig, **kwargs: Any) -> Self:
        """Make an extractor with the geometry of a [`CalmAudioConfig`]; `kwargs` are its other settings."""
        return cls(**{own: getattr(audio_config, name) for name, own in GEOMETRY.items()}, **kwargs)

    def check_geometry(self, audio_config: PreTrainedConfig) -> None:
        """Reject a model that reads other patches; different geometries may give tensors of the same shape.

        Args:
            audio_config ([`CalmAudioConfig`]): the model's.

        Raises:
            ValueError: names each setting that differs, and the remedy.
        """
        differences = [
            f"`{name}` {getattr(self, own)} and {getattr(audio_config, name)}"
            for name, own in GEOMETRY.items()
            if getattr(self, own) != getattr(audio_config, name)
        ]
        if differences:
            raise ValueError(
                f"The feature extractor and the model have other patches: {', '.join(differences)}. Take the"
                " processor that was saved with the model, or make its extractor by"
                " `CalmFeatureExtractor.from_audio_config(model.config.audio_config)`."
            )

    @property
    def patches_per_token(self) -> int:
        """Patches in an acoustic token, `S`."""
        return (self.token_frames // self.patch_frames) * (self.feature_size // self.patch_bins)

    @property
    def seconds_per_token(self) -> float:
        """Duration of an acoustic token in seconds."""
        return self.token_frames * self.hop_length / self.sampling_rate

    def patchify(self, log_mel: torch.Tensor) -> torch.Tensor:
        """(..., F, M) to (..., P, D); see `log_mel_calm.patchify`."""
        return patchify(log_mel, self.patch_frames, self.patch_bins)

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """(..., P, D) back to (..., F, M), exactly."""
        return unpatchify(patches, self.patch_frames, self.patch_bins, self.feature_size)

    def log_mel(
        self, clips: "Sequence[torch.Tensor] | torch.Tensor", device: str | torch.device | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Natural-log mel spectrograms of B clips of (N,) float32 samples, before normalisation.

        Returns:
            (B, F, M), F a multiple of `token_frames`, and the (B,) numbers of real frames.
        """
        return log_mel_spectrogram(
            clips,
            sampling_rate=self.sampling_rate,
            n_fft=self.n_fft,
            win_length=self.win_length,
            hop_length=self.hop_length,
            num_mel_bins=self.feature_size,
            dynamic_range=self.dynamic_range,
            multiple_of=self.token_frames,
            device=device,
        )

    def count_frames(self, num_samples: int | torch.Tensor) -> int | torch.Tensor:
        """Spectrogram frames of a clip of `num_samples` samples."""
        return count_frames(num_samples, self.win_length, self.hop_length)

    def __call__(
        self,
        raw_speech: "np.ndarray | torch.Tensor | list",
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        device: str | torch.device = "cpu",
        **kwargs,
    ) -> BatchFeature:
        """Extract the patches of one clip or of a batch.

        Args:
            raw_speech: one waveform (N,), a list of waveforms, or an array (B, N); numpy, torch or lists of floats.
                `uint8`, `int8`, `int16` and `int32` are scaled by the range of their type.
            sampling_rate: samples per second of the waveforms (Hz); required, since a wrong rate would go unnoticed.
            padding: `True` pads to the longest clip, `"max_length"` to `max_length`, `False` keeps each clip's length.
            max_length: in patches, rounded up to whole acoustic tokens.
            truncation: whether to cut clips longer than `max_length`.
            pad_to_multiple_of: in patches, raised to its least common multiple with S.
            return_tensors: `"pt"` or `"np"`; by default numpy arrays.
            device: where the spectrogram is computed, and where it stays with `return_tensors="pt"`.

        Returns:
            `input_features` (B, P, D) float32 and `input_features_mask` (B, P) int64, with P = T x S.

        Raises:
            ValueError: for a missing or wrong `sampling_rate`, an empty batch or clip, NaN, infinite or absurdly large
                samples, non-numeric input, a clip with channels, 64-bit integers, or a (2, N) array, which may be a
                stereo recording.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"`sampling_rate` must be given and be {self.sampling_rate} Hz; it is {sampling_rate}. Resample first,"
                f" e.g. with `soxr.resample(waveform, rate, {self.sampling_rate})`; `processing.load_audio` does it."
            )
        waveforms = [check_waveform(clip, index) for index, clip in enumerate(as_clips(raw_speech))]
        log_mel, num_frames = self.log_mel(waveforms, device)  # (B, F, M), (B,)
        if self.do_normalize:
            log_mel = normalize(log_mel, num_frames)
        if self.padding_value or not self.do_normalize:
            log_mel[~real_frames(num_frames, log_mel.shape[1])] = self.padding_value

        features = self.patchify(log_mel)  # (B, P, D)
        steps = (num_frames + self.patch_frames - 1) // self.patch_frames
        num_patches = steps * (self.feature_size // self.patch_bins)  # (B,)
        mask = (torch.arange(features.shape[1], device=device) < num_patches[:, None]).long()  # (B, P)

        batch = {"input_features": features, "input_features_mask": mask}
        if padding is True and max_length is None and pad_to_multiple_of is None and self.padding_side == "right":
            return BatchFeature(batch if return_tensors == "pt" else {k: v.cpu().numpy() for k, v in batch.items()})
        token = self.patches_per_token
        lengths = ((num_patches + token - 1) // token * token).tolist()
        rows = {k: [row[:n].cpu().numpy() for row, n in zip(v, lengths, strict=True)] for k, v in batch.items()}
        if padding is False and not truncation:
            batch = BatchFeature(rows, tensor_type=return_tensors)
            return batch.to(device) if return_tensors == "pt" else batch
        max_length = max_length and -(-max_length // token) * token
        pad_to_multiple_of = pad_to_multiple_of and math.lcm(pad_to_multiple_of, token)
        batch = self.pad(rows, padding, max_length, truncation, pad_to_multiple_of, return_tensors=return_tensors)
        return batch.to(device) if return_tensors == "pt" else batch

    def _pad(
        self,
        processed_features: dict,
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        **kwargs,
    ) -> dict:
        length = len(processed_features["input_features"])
        mask = processed_features.pop("input_features_mask", np.ones(length, dtype=np.int64))
        padded = super()._pad(processed_features, max_length, padding_strategy, **kwargs)
        missing = len(padded["input_features"]) - length
        padded["input_features_mask"] = np.pad(
            mask, (0, missing) if self.padding_side == "right" else (missing, 0), constant_values=0
        )
        return padded

    def _truncate(self, processed_features: dict, *args, **kwargs) -> dict:
        processed_features = super()._truncate(processed_features, *args, **kwargs)
        if "input_features_mask" in processed_features:
            length = len(processed_features["input_features"])
            processed_features["input_features_mask"] = processed_features["input_features_mask"][:length]
        return processed_features


__all__ = ["CalmFeatureExtractor"]
