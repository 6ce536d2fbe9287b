"""The encoders that SpecTran is compared with, from random weights, and the same audio in each one's input format.

An encoder gets features, since their extraction is measured separately (`features.py`); `Wav2Vec2Model` reads
waveforms by design. Width, depth, heads and feed-forward size are the same for all except `ClapAudioModel`, which has
its published size. Each has the setting that wastes the least work, and reads all of the audio:

- `ASTModel` reads windows of 10 s, with its published patches: 16 x 16, stride 10, 128 bins. A longer clip is cut into
  such windows, in one batch: in one piece, attention would take most of the time.
- `WhisperEncoder` reads windows of 30 s. A shorter clip is padded to 30 s, as by its feature extractor; since that
  wastes work, a second one has positions for the clip only. A longer clip is cut into windows of 30 s, in one batch.
- `ClapAudioModel` reads windows of 10 s of 1,001 frames and 64 bins: 60 s are six of them, in one batch.
- `Wav2Vec2Model` reads clips of any length; its frame rate is 50 Hz.
"""

import argparse
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import nn
from transformers import (
    ASTConfig,
    ASTModel,
    ClapAudioConfig,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
)
from transformers.models.clap.modeling_clap import ClapAudioModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_calm import CalmAudioConfig, CalmAudioModel

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TOY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BATCH = 4  # clips
RATE, FRAME_RATE = 16000, 100  # Hz


class Encoder(NamedTuple):
    """A model and its arguments for a batch of clips."""

    model: nn.Module
    inputs: dict[str, torch.Tensor]


def spectran(seconds: float, batch: int, size: dict) -> Encoder:
    config = CalmAudioConfig(**yaml.safe_load((Path(__file__).parents[1] / "configs" / "base.yaml").read_text()))
    if size is TOY:
        config = CalmAudioConfig(**TOY | {"num_hidden_layers": 1, "num_context_layers": 1})
    windows = ceil(seconds / config.seconds_per_token)
    features = torch.randn(batch, windows * config.patches_per_token, config.patch_dim)
    return Encoder(CalmAudioModel(config), {"input_features": features})


def ast(seconds: float, batch: int, size: dict) -> Encoder:
    window = min(seconds, 10)
    frames = round(window * FRAME_RATE)
    config = ASTConfig(**size, max_length=frames)
    spectrograms = torch.randn(batch * ceil(seconds / window), frames, config.num_mel_bins)
    return Encoder(ASTModel(config), {"input_values": spectrograms})


def wav2vec2(seconds: float, batch: int, size: dict) -> Encoder:
    model = Wav2Vec2Model(Wav2Vec2Config(**size, **({"conv_dim": (8,) * 7} if size is TOY else {})))
    return Encoder(model, {"input_values": torch.randn(batch, round(seconds * RATE))})


def whisper(seconds: float, batch: int, size: dict, padded: bool = False) -> Encoder:
    window = 30 if padded else min(seconds, 30)
    config = WhisperConfig(
        d_model=size["hidden_size"], encoder_layers=size["num_hidden_layers"],
        encoder_attention_heads=size["num_attention_heads"], encoder_ffn_dim=size["intermediate_size"],
        max_source_positions=round(window * FRAME_RATE / 2),
    )  # fmt: skip
    mel = torch.randn(batch * ceil(seconds / window), config.num_mel_bins, round(window * FRAME_RATE))
    return Encoder(WhisperEncoder(config), {"input_features": mel})


def whisper_padded(seconds: float, batch: int, size: dict) -> Encoder:
    return whisper(seconds, batch, size, padded=True)


def clap(seconds: float, batch: int, size: dict) -> Encoder:
    small = {"depths": (1, 1), "num_attention_heads": (2, 2), "patch_embeds_hidden_size": 16, "hidden_size": 32}
    config = ClapAudioConfig(**small if size is TOY else {})
    mel = torch.randn(batch * ceil(seconds / 10), 1, 10 * FRAME_RATE + 1, config.num_mel_bins)
    return Encoder(ClapAudioModel(config), {"input_features": mel})


OURS = "CALM"
ENCODERS: dict[str, Callable[[float, int, dict], Encoder]] = {
    OURS: spectran,
    "ASTModel": ast,
    "Wav2Vec2Model": wav2vec2,
    "WhisperEncoder": whisper,
    "WhisperEncoder, padded to 30 s": whisper_padded,
    "ClapAudioModel": clap,
}


def size_of(options: argparse.Namespace) -> dict:
    return TOY if options.quick else BASE


def encoders_for(seconds: float) -> dict[str, Callable[[float, int, dict], Encoder]]:
    """The distinct encoders at this length: from 30 s on, a Whisper encoder has nothing to pad."""
    return {name: build for name, build in ENCODERS.items() if build is not whisper_padded or seconds < 30}


def prepare(encoder: Encoder, device: str, dtype: torch.dtype, compiled: bool = False) -> Callable[[], torch.Tensor]:
    """A function that runs its forward pass in eval mode, without gradients."""
    model = encoder.model.eval().to(device, dtype)
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() else None) for name, value in encoder.inputs.items()
    }
    forward = torch.compile(model) if compiled else model

    @torch.no_grad()
    def run() -> torch.Tensor:
        return forward(**inputs).last_hidden_state

    return run
