"""Estimate the cost of pretraining: storage, steps, GPU hours, money; from measured work and assumed rates.

    python examples/benchmarks/plan.py --hours 10000 --recordings FOLDER
    python examples/benchmarks/plan.py --hours 500 --audio_config small --text_layers 6 --text_width 384 --stage align

Measured, on this machine: the floating-point operations of a training step (torch counts those of matrix products),
and how much speech a CPU core decodes, augments and turns into features. Assumed, by the options: what share of a
GPU's peak the training reaches, the CPU cores per GPU, prices. Derived: all the rest. Nothing here was timed on a GPU.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import timing
import torch
from random_batches import add_geometry, build_model, describe, draw_batch, read_audio_config

from processing import CalmFeatureExtractor, SpecAugment, WaveformAugmentation, load_audio

sys.path.append(str(Path(__file__).parents[1]))
from pretrain import STAGES, PretrainingArguments, freeze, objectives  # noqa: E402

COUNTED_CLIPS = 2
ROWS_OF_A_SHARD = 2048  # the default of prepare_data.py


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    options = parse(argv)
    work = {"operations": count_operations(options), **time_a_core(options)}
    plan = {"measured": work, "assumed": assumptions(options), "derived": derive(options, work)}
    print(describe(options) | {"stage": options.stage})
    print("\n| what | value | how known |\n|---|---|---|")
    for known, entries in plan.items():
        for name, value in entries.items():
            print(f"| {LABELS[name]} | {in_words(value)} | {known} |")
    if options.output is not None:
        options.output.write_text(json.dumps(plan, indent=2) + "\n")
    return plan


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_geometry(parser, audio_config="base", text_layers=12, text_width=768, seconds=6.0, words=20)
    parser.add_argument("--stage", default="fuse", choices=sorted(STAGES))
    parser.add_argument("--no_recompute", action="store_true", help="Train without `contrastive_chunk_size`.")
    parser.add_argument("--recordings", type=Path, help="Folder of FLAC files that the core is timed on; else noise.")
    parser.add_argument("--hours", type=float, default=10000, help="Speech of the corpus.")
    parser.add_argument("--passes", type=float, default=10, help="Times that it is trained on.")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--peak", type=float, default=989, help="Of a GPU, TFLOP/s; 989 is an H100's in bfloat16.")
    parser.add_argument("--utilisation", type=float, default=0.2, help="Share of the peak that training reaches.")
    parser.add_argument("--cores", type=int, default=12, help="CPU cores beside each GPU.")
    parser.add_argument("--batch", type=int, default=4096, help="Clips of a batch of one GPU.")
    parser.add_argument("--price", type=float, default=3.0, help="Of an hour of a GPU with its cores.")
    parser.add_argument("--timing", type=float, default=5, help="Seconds for which a core is timed.")
    parser.add_argument("--output", type=Path, help="JSON file for the plan.")
    return parser.parse_args(argv)


def count_operations(options: argparse.Namespace) -> float:
    """Floating-point operations of a step per second of audio; a multiply-add counts as two."""
    chunk, arguments = None if options.no_recompute else COUNTED_CLIPS // 2, PretrainingArguments(stage=options.stage)
    model = build_model(
        options, contrastive_chunk_size=chunk, attn_implementation="eager", **objectives(arguments)
    ).train()
    freeze(model, arguments)
    batch = draw_batch(options, COUNTED_CLIPS)
    return timing.count_operations(lambda: model(**batch).loss.backward()) / (COUNTED_CLIPS * options.seconds)


def time_a_core(options: argparse.Namespace) -> dict[str, float]:
    """Speech that a core prepares, in seconds per second of CPU time, and the bytes of a second of speech.

    Raises:
        ValueError: if the folder of recordings holds no FLAC file.
    """
    config, generator = read_audio_config(options), np.random.default_rng(0)
    extractor, rate = CalmFeatureExtractor.from_audio_config(config), config.sampling_rate
    files = [file.read_bytes() for file in sorted((options.recordings or Path()).rglob("*.flac"))][:256]
    if options.recordings and not files:
        raise ValueError(f"There is no FLAC file in '{options.recordings}'.")
    if not files:
        stream = BytesIO()
        soundfile.write(stream, generator.normal(scale=0.1, size=round(options.seconds * rate)), rate, format="FLAC")
        files = [stream.getvalue()]
    clips = [load_audio(file, rate) for file in files]
    stored = [extractor(clip, sampling_rate=rate)["input_features"][0].astype(np.float16) for clip in clips]
    augment, mask = WaveformAugmentation(), SpecAugment()

    def from_audio(index: int) -> None:
        clip = augment(load_audio(files[index], rate), rate, generator)
        hide(extractor(clip, sampling_rate=rate, return_tensors="pt")["input_features"])

    def from_features(index: int) -> None:
        hide(torch.from_numpy(stored[index].astype(np.float32))[None])

    def hide(patches: torch.Tensor) -> None:
        log_mel = extractor.unpatchify(patches)
        extractor.patchify(mask(log_mel, torch.tensor([log_mel.shape[1]]), generator))

    def core_rate(prepare: Callable[[int], None]) -> float:
        spoken, start = 0.0, time.process_time()
        while time.process_time() - start < options.timing:
            index = generator.integers(len(files))
            prepare(index)
            spoken += len(clips[index]) / rate
        return spoken / (time.process_time() - start)

    torch.set_num_threads(1)
    bytes_a_second = sum(map(len, files)) / sum(map(len, clips)) * rate
    rates = {"core_rate": core_rate(from_audio), "feature_core_rate": core_rate(from_features)}
    return rates | ({"flac_bytes": bytes_a_second} if options.recordings else {})  # noise does not compress


def assumptions(options: argparse.Namespace) -> dict[str, float]:
    """The assumptions of the plan."""
    names = ("hours", "passes", "seconds", "gpus", "cores", "peak", "utilisation", "batch", "price")
    return {name: getattr(options, name) for name in names}


def derive(options: argparse.Namespace, work: dict[str, float]) -> dict[str, float]:
    """The derived part of the plan."""
    config, speech = read_audio_config(options), options.hours * 3600  # seconds
    clips, step = speech / options.seconds, options.batch * options.gpus
    gpu_rate = options.peak * 1e12 * options.utilisation / work["operations"]
    data_rate = work["core_rate"] * options.cores
    hours = options.passes * options.hours / min(gpu_rate, data_rate)
    frame_rate = config.sampling_rate / config.hop_length
    return {
        "wav_terabytes": speech * config.sampling_rate * 2 / 1e12,
        **({"flac_terabytes": speech * work["flac_bytes"] / 1e12} if "flac_bytes" in work else {}),
        "feature_terabytes": speech * frame_rate * config.num_mel_bins * 2 / 1e12,
        "clips": round(clips),
        "shards": math.ceil(clips / ROWS_OF_A_SHARD),
        "contrastive_batch": step,
        "steps": round(math.floor(clips / step) * options.passes),
        "total_operations": options.passes * speech * work["operations"],
        "gpu_rate": gpu_rate,
        "data_rate": data_rate,
        "cores_needed": gpu_rate / work["core_rate"],
        "feature_cores_needed": gpu_rate / work["feature_core_rate"],
        "gpu_hours_at_best": options.passes * options.hours / gpu_rate,
        "gpu_hours": hours,
        "wall_hours": hours / options.gpus,
        "cost": hours * options.price,
    }


LABELS = {
    "operations": "operations of training, a second of audio (FLOP)",
    "core_rate": "speech that a core decodes, augments and turns into features, a second (s)",
    "feature_core_rate": "speech that a core augments of features computed beforehand, a second (s)",
    "flac_bytes": "FLAC, a second of speech (bytes)",
    "hours": "speech (h)",
    "passes": "passes over it",
    "seconds": "length of a clip (s)",
    "gpus": "GPUs",
    "cores": "CPU cores a GPU",
    "peak": "peak of a GPU (TFLOP/s)",
    "utilisation": "share of it that training reaches",
    "batch": "clips of a GPU's batch",
    "price": "price of a GPU hour",
    "wav_terabytes": "corpus as 16-bit WAV (TB)",
    "flac_terabytes": "corpus as FLAC (TB)",
    "feature_terabytes": "corpus as features in float16 (TB)",
    "clips": "clips",
    "shards": f"shards of {ROWS_OF_A_SHARD:,} clips",
    "contrastive_batch": "clips that are contrasted with each other",
    "steps": "steps",
    "total_operations": "operations in all (FLOP)",
    "gpu_rate": "speech that a GPU trains on, a second (s)",
    "data_rate": "speech that its cores prepare, a second (s)",
    "cores_needed": "cores a GPU that would keep up with it",
    "feature_cores_needed": "cores a GPU that would, with features computed beforehand",
    "gpu_hours_at_best": "GPU hours, if data never kept a GPU waiting",
    "gpu_hours": "GPU hours",
    "wall_hours": "hours",
    "cost": "cost",
}


def in_words(value: float) -> str:
    """Integers as they are, others with three significant digits; commas separate thousands."""
    if value >= 1e12:
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else f"{float(f'{value:.3g}'):,.10g}"


if __name__ == "__main__":
    main()
