"""transformers encoders in place of SpecTran: the same training, text target and probe, another network.

`ASTModel` and `Wav2Vec2Model` from random weights, with SpecTran's width, heads and feed-forward size, and as many
layers as it has inside and across windows together. Finer details are our choice, in the peer's favour where there is
a choice:

- `ASTModel` has its published patches, 16 frames x 16 bins with stride 10, on the spectrogram that SpecTran reads. Its
  fixed input length is set by the training data instead of 10 s, most of which would be padding, and a longer clip is
  read in windows of that length. The padding is zero, the mean of the clip, and is not masked, as published.
- `Wav2Vec2Model` reads waveforms of zero mean and unit variance with its published convolutions and frames of 20 ms;
  the channels scale with the width (512 at 768), in multiples of 32, which are faster. Its normalisation is that of
  the large models (`feat_extract_norm="layer"`, `do_stable_layer_norm`): the other one takes statistics over time,
  padding included. It applies its own SpecAugment inside the model: at least one span of 200 ms per clip.

Dimensions: B clips, P patches, D values in a patch, F frames, M mel bins, L frames of a window of AST, N positions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import ASTConfig, AutoModel, BatchFeature, PreTrainedConfig, PreTrainedModel, Wav2Vec2Config
from transformers.utils import ModelOutput

from modeling_calm import CalmAudioConfig
from processing import CalmFeatureExtractor
from processing.feature_extraction_calm import GEOMETRY


def peer_config(name: str, audio_config: CalmAudioConfig, max_length: int) -> PreTrainedConfig:
    """The configuration of a peer of SpecTran's size.

    Args:
        name: `"ast"` or `"wav2vec2"`.
        audio_config: SpecTran's.
        max_length: L, the frames that AST reads at once.

    Raises:
        ValueError: if a patch of AST does not fit the spectrogram, or Wav2Vec2's channel groups do not fit the width.
    """
    size = {
        "hidden_size": audio_config.hidden_size,
        "num_hidden_layers": audio_config.num_hidden_layers + audio_config.num_context_layers,
        "num_attention_heads": audio_config.num_attention_heads,
        "intermediate_size": audio_config.intermediate_size,
        "hidden_act": audio_config.hidden_act,
    }
    if name == "ast":
        if min(max_length, audio_config.num_mel_bins) < 16:
            raise ValueError("A patch of AST takes 16 frames x 16 mel bins; the clips or the spectrogram have fewer.")
        return ASTConfig(
            **size, max_length=max_length, num_mel_bins=audio_config.num_mel_bins,
            hidden_dropout_prob=audio_config.hidden_dropout_prob,
            attention_probs_dropout_prob=audio_config.attention_probs_dropout_prob,
        )  # fmt: skip
    if audio_config.hidden_size % 16:
        raise ValueError("The positions of Wav2Vec2 take 16 groups of channels; choose a width that 16 divides.")
    channels = max(32, 32 * round(audio_config.hidden_size / 48))
    return Wav2Vec2Config(
        **size, conv_dim=(channels,) * 7, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True,
        layerdrop=0.0, hidden_dropout=audio_config.hidden_dropout_prob,
        attention_dropout=audio_config.attention_probs_dropout_prob, activation_dropout=0.0, feat_proj_dropout=0.0,
        mask_time_min_masks=1,
    )  # fmt: skip


class WaveformPatches(CalmFeatureExtractor):
    """Waveforms in the format of CALM's batches: patches of samples, as many per second as the spectrogram has.

    The collators, the Trainer and its meters thus also work for waveform encoders. A clip has zero mean and unit
    variance, as from `Wav2Vec2FeatureExtractor`; its last patch is padded with zeros, independently of the batch.
    """

    @property
    def patch_samples(self) -> int:
        """Samples in a patch, D."""
        return self.token_frames * self.hop_length // self.patches_per_token

    def __call__(self, raw_speech: Sequence[np.ndarray], sampling_rate: int | None = None, **kwargs) -> BatchFeature:
        """Waveforms (N,) to `input_features` (B, P, D) and `input_features_mask` (B, P), tensors.

        Raises:
            ValueError: for another `sampling_rate`.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(f"`sampling_rate` must be {self.sampling_rate} Hz; it is {sampling_rate}.")
        counts = torch.tensor([-(-len(clip) // self.patch_samples) for clip in raw_speech])
        length = -(-int(counts.max()) // self.patches_per_token) * self.patches_per_token
        samples = torch.zeros(len(raw_speech), length * self.patch_samples)
        for row, clip in zip(samples, raw_speech, strict=True):
            clip = torch.as_tensor(np.asarray(clip, dtype=np.float32))
            row[: len(clip)] = (clip - clip.mean()) / (clip.var(correction=0) + 1e-7).sqrt()
        mask = (torch.arange(length) < counts[:, None]).long()
        return BatchFeature({"input_features": samples.unflatten(1, (length, -1)), "input_features_mask": mask})


class PeerEncoder(nn.Module):
    """A peer that [`CalmForPreTraining`] can use as SpecTran: its frames serve as the acoustic tokens.

    Args:
        encoder: the transformers model.
        extractor: extracts its inputs.
    """

    def __init__(self, encoder: PreTrainedModel, extractor: CalmFeatureExtractor):
        super().__init__()
        self.encoder, self.extractor = encoder, extractor

    def encode_windows(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states (B, N, hidden) and the (B, N) bool mask of those that cover the clip."""
        states, real = self.run(input_features, input_features_mask)
        return states["last"], real

    def add_context(self, states: torch.Tensor, tokens_mask: torch.Tensor) -> torch.Tensor:
        """The states unchanged: the layers of a peer already see the whole clip."""
        return states

    def run(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor, **kwargs
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Hidden states (B, N, hidden) by name and their (B, N) mask.

        `"last"`, and with `output_hidden_states=True` also `"middle"`, those after half of the layers.
        """
        real = input_features_mask.bool()
        return self._run(input_features.masked_fill(~real.unsqueeze(-1), 0.0), real, **kwargs)


class ASTFrames(PeerEncoder):
    """`ASTModel` on the spectrogram that SpecTran reads; a position is a patch."""

    def _run(self, features: torch.Tensor, real: torch.Tensor, **kwargs) -> tuple[dict, torch.Tensor]:
        config, extractor = self.encoder.config, self.extractor
        log_mel = extractor.unpatchify(features)  # (B, F, M)
        real = real[:, :: extractor.feature_size // extractor.patch_bins]  # (B, steps of a patch)
        real = real.repeat_interleave(extractor.patch_frames, dim=1)  # (B, F)
        missing = -log_mel.shape[1] % config.max_length
        log_mel = nn.functional.pad(log_mel, (0, 0, 0, missing)).unflatten(1, (-1, config.max_length))
        real = nn.functional.pad(real, (0, missing)).unflatten(1, (-1, config.max_length))  # (B, windows, L)
        used = real.any(-1)
        output = self.encoder(log_mel[used], **kwargs)
        bands, steps = self.encoder.embeddings.get_shape(config)
        heard = real[..., :: config.time_stride][..., :steps].repeat(1, 1, bands)  # sorted by frequency, then by time
        states = {}
        for name, values in _layers(output).items():
            places = values.new_zeros(*heard.shape, values.shape[-1])
            places[used] = values[:, 2:]  # after the class and distillation tokens
            states[name] = places.flatten(1, 2)
        return states, heard.flatten(1, 2)


class Wav2Vec2Frames(PeerEncoder):
    """`Wav2Vec2Model` on waveforms; a position is a frame of 20 ms."""

    def _run(self, features: torch.Tensor, real: torch.Tensor, **kwargs) -> tuple[dict, torch.Tensor]:
        config, samples = self.encoder.config, features.flatten(1)
        counts = real.sum(-1) * features.shape[-1]
        mask = torch.arange(samples.shape[1], device=samples.device) < counts[:, None]
        states = _layers(self.encoder(samples, attention_mask=mask.long(), **kwargs))
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            counts = (counts - kernel) // stride + 1
        return states, torch.arange(states["last"].shape[1], device=samples.device) < counts[:, None]


def _layers(output: ModelOutput) -> dict[str, torch.Tensor]:
    layers = output.hidden_states
    middle = {} if layers is None else {"middle": layers[(len(layers) - 1) // 2]}
    return middle | {"last": output.last_hidden_state}


PEERS = {"ast": ASTFrames, "wav2vec2": Wav2Vec2Frames}
MODEL_TYPES = {ASTConfig.model_type: "ast", Wav2Vec2Config.model_type: "wav2vec2"}


def build_peer(name: str, audio_config: CalmAudioConfig, max_length: int) -> PeerEncoder:
    """A peer of SpecTran's size from random weights; see `peer_config`."""
    extractor = CalmFeatureExtractor.from_audio_config(audio_config)
    return _wrap(AutoModel.from_config(peer_config(name, audio_config, max_length)), extractor)


def load_peer(folder: str) -> PeerEncoder:
    """A checkpoint of `pretrain_peers.py`, ready to evaluate.

    Raises:
        ValueError: if the folder holds another model.
    """
    encoder = AutoModel.from_pretrained(folder)
    if encoder.config.model_type not in MODEL_TYPES:
        raise ValueError(f"'{folder}' holds a {type(encoder).__name__}, none of the peers {sorted(PEERS)}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _wrap(encoder, CalmFeatureExtractor.from_pretrained(folder)).to(device).eval()


def _wrap(encoder: PreTrainedModel, extractor: CalmFeatureExtractor) -> PeerEncoder:
    name = MODEL_TYPES[encoder.config.model_type]
    if name == "wav2vec2":
        extractor = WaveformPatches(**{setting: getattr(extractor, setting) for setting in GEOMETRY.values()})
    return PEERS[name](encoder, extractor)
