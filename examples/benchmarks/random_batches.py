"""Shared by the benchmarks: a randomly initialised model of a given geometry, and random batches for it."""

import argparse
from pathlib import Path

import torch
import yaml

from modeling_calm import CalmAudioConfig, CalmConfig, CalmForPreTraining

CONFIGS = Path(__file__).parents[1] / "configs"
VOCABULARY, FIRST_WORD, MASK = 30522, 1000, 103  # of BERT


def add_geometry(parser: argparse.ArgumentParser, **defaults) -> None:
    """Add the options that define what is measured: both models, and the clips."""
    parser.add_argument("--audio_config", choices=("tiny", "small", "base"))
    parser.add_argument("--text_layers", type=int, help="Layers of a BERT of random weights.")
    parser.add_argument("--text_width", type=int, help="Its width; heads of 32 channels.")
    parser.add_argument("--seconds", type=float, help="Audio in a clip.")
    parser.add_argument("--words", type=int, help="Lexical tokens in a transcript.")
    parser.set_defaults(**defaults)


def describe(options: argparse.Namespace) -> dict:
    """What the measurements are valid for."""
    names = ("audio_config", "text_layers", "text_width", "seconds", "words")
    return {name: getattr(options, name) for name in names} | {"torch": torch.__version__}


def read_audio_config(options: argparse.Namespace) -> CalmAudioConfig:
    return CalmAudioConfig(**yaml.safe_load((CONFIGS / f"{options.audio_config}.yaml").read_text()))


def build_model(options: argparse.Namespace, **settings) -> CalmForPreTraining:
    """SpecTran of a configuration file with a BERT, from random weights; `settings` are those of `CalmConfig`."""
    text = {
        "vocab_size": VOCABULARY, "hidden_size": options.text_width, "num_hidden_layers": options.text_layers,
        "num_attention_heads": options.text_width // 32, "intermediate_size": 4 * options.text_width,
    }  # fmt: skip
    return CalmForPreTraining(CalmConfig(audio_config=read_audio_config(options), text_config=text, **settings))


def draw_batch(options: argparse.Namespace, clips: int) -> dict[str, torch.Tensor]:
    """Random clips of one length with transcripts, 15 % of words and windows masked."""
    config = read_audio_config(options)
    windows = max(2, round(options.seconds / config.seconds_per_token))
    ids = torch.randint(FIRST_WORD, VOCABULARY, (clips, options.words))
    labels = torch.where(torch.rand(clips, options.words) < 0.15, ids, -100)
    return {
        "input_ids": torch.where(labels != -100, MASK, ids),
        "labels": labels,
        "input_features": torch.randn(clips, windows * config.patches_per_token, config.patch_dim),
        "mask_time_indices": torch.rand(clips, windows) < 0.15,
        "pair_indices": torch.randint(windows - 1, (clips,)),
    }
