"""Feature extraction against the extractors of transformers and kaldi-native-fbank: seconds of audio per second.

    python examples/benchmarks/features.py

All read the same 16 clips at 16 kHz from the same NumPy arrays, compute a log-mel frame every 10 ms and return one
tensor for the batch: 16 clips of 10 s, and 16 of 1 to 20 s. The rate does not count padding. Ours computes 80 bins
with a 512-point FFT, normalised and cut into patches. The peers, each with its fastest setting that reads all audio:

- `ClapFeatureExtractor`: 64 bins as published, a 512-point FFT, plain padding to the longest clip;
- `ASTFeatureExtractor`: 80 bins, a 512-point FFT, padding to the longest clip; with torchaudio if it is installed,
  else with NumPy;
- `WhisperFeatureExtractor`: 80 bins, a 400-point FFT; padded to the longest clip, and to 30 s as by default;
- kaldi-native-fbank: 80 bins, a 512-point FFT, clip by clip. Samples are passed as a list, which is faster than an
  array even with the conversion; two threads gain nothing, since it holds the GIL.

`tests/test_log_mel_calm.py` checks that their results agree.
"""

import argparse
from collections.abc import Callable

import kaldi_native_fbank
import numpy as np
import torch
from report import cpu_name, parse, rate_lines, run
from timing import interleave
from transformers import ASTFeatureExtractor, ClapFeatureExtractor, WhisperFeatureExtractor

from processing import CalmFeatureExtractor

RATE = 16000  # Hz
HOP = 160  # samples
GOAL = 4.0


def main(argv: list[str] | None = None) -> dict:
    return run(parse(__doc__, argv), measure)


def measure(options: argparse.Namespace) -> list[dict]:
    lines = []
    clips = 2 if options.quick else 16
    for case, lengths in {
        f"{clips} clips of 10 s": np.full(clips, 10.0),
        f"{clips} clips of 1 to 20 s": np.linspace(1, 20, clips),
    }.items():
        batch = draw_audio(lengths)
        candidates = extractors(batch)
        seconds = interleave(candidates, options.rounds if options.quick else 4 * options.rounds)  # milliseconds each
        audio = sum(map(len, batch)) / RATE
        lines += rate_lines("features", case, seconds, audio, [name for name in candidates if name != "CALM"], GOAL)
    return [entry | {"device": cpu_name()} for entry in lines]  # on the CPU, wherever the models run


def draw_audio(lengths: np.ndarray) -> list[np.ndarray]:
    """Noise of these lengths (s) in random order: no extractor's speed depends on the content."""
    generator = np.random.default_rng(0)
    return [
        generator.normal(scale=0.1, size=round(length * RATE)).astype(np.float32)
        for length in generator.permutation(lengths)
    ]


def extractors(batch: list[np.ndarray]) -> dict[str, Callable[[], torch.Tensor]]:
    """Every extractor on the batch, each returning the features of all clips in one tensor, (B, ...)."""
    longest = max(map(len, batch))
    ours = CalmFeatureExtractor()
    clap = ClapFeatureExtractor(
        sampling_rate=RATE, hop_length=HOP, fft_window_size=512, frequency_max=RATE // 2,
        max_length_s=-(-longest // RATE), truncation="rand_trunc", padding="pad",
    )  # fmt: skip
    ast = ASTFeatureExtractor(num_mel_bins=80, max_length=longest // HOP)
    whisper = WhisperFeatureExtractor()
    given = {"sampling_rate": RATE, "return_tensors": "pt"}
    return {
        "CALM": lambda: ours(batch, **given)["input_features"],
        "ClapFeatureExtractor": lambda: clap(batch, **given)["input_features"],
        "ASTFeatureExtractor": lambda: ast(batch, **given)["input_values"],
        "WhisperFeatureExtractor": lambda: whisper(batch, padding="longest", **given)["input_features"],
        "WhisperFeatureExtractor, 30 s": lambda: whisper(batch, **given)["input_features"],
        "kaldi-native-fbank": lambda: kaldi(batch),
    }


def kaldi(batch: list[np.ndarray]) -> torch.Tensor:
    """(B, F, 80) filter banks of kaldi-native-fbank, zero after the end of a clip."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    found = []
    for clip in batch:
        bank = kaldi_native_fbank.OnlineFbank(options)
        bank.accept_waveform(RATE, clip.tolist())
        bank.input_finished()
        found.append(torch.from_numpy(np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])))
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


if __name__ == "__main__":
    main()
