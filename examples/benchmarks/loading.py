"""The share of time that training steps wait for data, from FLAC and from precomputed features.

    python examples/benchmarks/loading.py

The demo corpus as shards of `prepare_data.py`, streamed by the loader and the collator of `pretrain.py` with one
worker, into steps of stage `align` on one thread: two cores in total. From FLAC, clips are decoded, augmented and
turned into features; precomputed features get SpecAugment only. SpecTran is the small one, the harder case: a larger
one slows down the step but not the loader. Waiting is the time from requesting a batch until it arrives; the first two
of a round, while the worker starts, do not count.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from report import line, parse, run
from timing import spread, synchronize, threads
from training_steps import prepare
from transformers import AutoTokenizer, BertConfig

from modeling_calm import CalmConfig, CalmForPreTraining
from processing import CalmFeatureExtractor, CalmProcessor, DataCollatorForCalmPreTraining, SeededCollator

sys.path.append(str(Path(__file__).parents[1]))
import prepare_data  # noqa: E402
from demo_corpus import build_demo_corpus, demo_language_model  # noqa: E402
from options import CalmTrainingArguments  # noqa: E402
from pretrain import PretrainingArguments, freeze, objectives  # noqa: E402
from speech_sources import DataArguments  # noqa: E402
from streaming import StreamingArguments, open_stream  # noqa: E402
from training import SPEC_AUGMENT, WAVEFORM_AUGMENTATION  # noqa: E402

GOALS = {"FLAC": 0.10, "features": 0.03}
CLIPS, STEPS, WARMUPS = 32, 14, 2


def main(argv: list[str] | None = None) -> dict:
    return run(parse(__doc__, argv), measure)


def measure(options: argparse.Namespace) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder, threads(1):
        size = "tiny" if options.quick else "small"
        shards = make_shards(Path(folder), size, 4 if options.quick else None)
        arguments = PretrainingArguments(audio_config=size)
        step = build_step(arguments, options)
        loaders = {kind: open_loader(shards, kind, arguments, 4 if options.quick else CLIPS) for kind in GOALS}
        shares, steps = {kind: [] for kind in GOALS}, {kind: [] for kind in GOALS}
        for epoch in range(options.rounds):
            for kind, (stream, loader) in loaders.items():
                stream.set_epoch(epoch)
                share, seconds = waiting_share(loader, step, 4 if options.quick else STEPS, options.device)
                shares[kind].append(share)
                steps[kind].append(seconds)
    return [
        line(
            "loading", f"time spent waiting, from {kind}", "the whole step",
            median(shares[kind]) * median(steps[kind]), median(steps[kind]), "s", median(shares[kind]),
            ("at most", goal), spread=spread(shares[kind]),
        )
        for kind, goal in GOALS.items()
    ]  # fmt: skip


def make_shards(folder: Path, audio_config: str, sentences: int | None) -> Path:
    """The training split of the demo corpus as shards that hold both FLAC and features."""
    corpus = build_demo_corpus(folder / "corpus", num_sentences=sentences)
    options = ["--dataset", str(corpus), "--output_dir", str(folder / "shards"), "--splits", "train"]
    prepare_data.main([*options, "--features", "float16", "--audio_config", audio_config])
    return folder / "shards"


def build_step(arguments: PretrainingArguments, options: argparse.Namespace):
    """A step of stage `align` on a given batch; the language model has MiniLM's sizes and random weights."""
    text = BertConfig.from_pretrained(demo_language_model())
    settings = objectives(arguments)
    model = CalmForPreTraining(CalmConfig(audio_config=arguments.spectran(), text_config=text, **settings))
    freeze(model, arguments)
    return prepare(model, options)


def open_loader(shards: Path, kind: str, arguments: PretrainingArguments, clips: int) -> tuple:
    """The stream and the loader that `pretrain.py --streaming` would create from the shards."""
    features = kind == "features"
    training = CalmTrainingArguments(
        output_dir=str(shards), per_device_train_batch_size=clips, dataloader_num_workers=1,
        dataloader_persistent_workers=True, dataloader_pin_memory=False, length_column_name="duration",
    )  # fmt: skip
    column = "input_features" if features else None
    stream = open_stream(DataArguments(dataset=str(shards)), StreamingArguments(features_column=column), training)
    extractor = CalmFeatureExtractor.from_audio_config(arguments.spectran())
    processor = CalmProcessor(extractor, AutoTokenizer.from_pretrained(demo_language_model()))
    collator = DataCollatorForCalmPreTraining(
        processor,
        waveform_augmentation=None if features else WAVEFORM_AUGMENTATION,
        spec_augment=SPEC_AUGMENT,
        mlm_probability=0.0,
        mask_time_prob=0.0,
    )
    return stream, stream.dataloader(SeededCollator(collator, training.seed), processor, training, max_tokens=None)


def waiting_share(loader, step, steps: int, device: str) -> tuple[float, float]:
    """The share of time that `steps` steps wait for their batch, and the time per step in seconds."""
    batches = iter(loader)
    waited, start = 0.0, 0.0
    for number in range(steps):
        asked = time.perf_counter()
        if number == WARMUPS:
            start = asked
        batch = next(batches)
        if number >= WARMUPS:
            waited += time.perf_counter() - asked
        step(batch)
        synchronize(device)
    total = time.perf_counter() - start
    return waited / total, total / (steps - WARMUPS)


if __name__ == "__main__":
    main()
