"""What the tests of the example scripts share: a corpus of tones and noise, a toy language model, their options."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import soundfile
import yaml
from speech_data import DataArguments, read_split
from transformers import AutoProcessor, BertConfig, BertModel, BertTokenizer

RATE = 16000
# Each clip has notes and a transcript of its own; its emotion is heard (tones or noise) and read.
TEXTS = ("red cat", "blue dog", "one tree", "two mats", "three cats", "four dogs", "five trees", "six mats")


def waveform(index: int, seconds: float = 0.4) -> np.ndarray:
    """Clip `index`: five notes, of tones in even clips and of noise bursts in odd ones.

    Notes, since a sound that never changes is normalised away.
    """
    generator = np.random.default_rng(index)
    notes = []
    for note in np.array_split(np.arange(round(seconds * RATE)), 5):
        tone = np.sin(2 * np.pi * generator.uniform(200, 6000) * note / RATE)
        notes.append(generator.uniform(-0.3, 0.3, len(note)) * generator.uniform() if index % 2 else 0.3 * tone)
    return np.concatenate(notes).astype(np.float32)


def rows(number: int = 8) -> list[dict]:
    """The columns of a corpus: a class, two 0/1 columns, two scores, a speaker."""
    return [
        {
            "file_name": f"clip_{i}.wav", "text": TEXTS[i % 8], "emotion": "noisy" if i % 2 else "calm",
            "loud": i % 2, "high": int(i % 8 > 3), "valence": round(1.5 - 2.5 * (i % 2) + 0.1 * i, 2),
            "arousal": round(0.25 * i - 0.7, 2), "level": i % 3, "speaker": f"s{i % 2}",
        }
        for i in range(number)
    ]  # fmt: skip


def write_clips(folder: Path, number: int = 8, rate: int = RATE) -> list[Path]:
    """`number` clips as `folder/clip_<i>.wav`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"clip_{i}.wav" for i in range(number)]
    for i, file in enumerate(files):
        soundfile.write(file, waveform(i), rate)
    return files


def write_table(file: Path, table: list[dict]) -> Path:
    """A CSV, JSONL or parquet file of the rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, table[0])
            writer.writeheader()
            writer.writerows(table)
    elif file.suffix == ".jsonl":
        datasets.Dataset.from_list(table).to_json(file)
    else:
        datasets.Dataset.from_list(table).to_parquet(file)
    return file


def write_corpus(folder: Path, number: int = 8, splits: tuple[str, ...] = ("train", "validation", "test")) -> Path:
    """An audiofolder whose splits hold the same clips: what is learnt by heart must be found again."""
    for split in splits:
        write_clips(folder / split, number)
        write_table(folder / split / "metadata.csv", rows(number))
    return folder


def save_language_model(folder: Path, dropout: float = 0.0) -> str:
    """A BERT of 2 layers, 32 wide, with a WordPiece tokenizer of the words of `TEXTS`."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "##s",
        *sorted({w for text in TEXTS for w in text.split()}),
    ]
    tokenizer = BertTokenizer({piece: index for index, piece in enumerate(pieces)})
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


def save_spectran(file: Path, dropout: float = 0.0) -> str:
    """A toy SpecTran as YAML: 16 mel bins, tokens of 80 ms."""
    values = {
        "num_mel_bins": 16, "patch_frames": 2, "patch_bins": 16, "token_frames": 8, "hidden_size": 32,
        "num_hidden_layers": 1, "num_context_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
        "hidden_dropout_prob": dropout,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(values))
    return str(file)


def read(source, split: str = "train", text: bool = True, label: bool = True, **options) -> datasets.Dataset:
    """A split, with its transcripts and labels."""
    return read_split(DataArguments(dataset=str(source), **options), split, RATE, text=text, label=label)


def assert_is_the_corpus(dataset: datasets.Dataset, number: int = 8) -> None:
    """The clips in order, each beside its own transcript and label."""
    expected = rows(number)
    assert list(dataset["text"]) == [row["text"] for row in expected]
    assert list(dataset["label"]) == [row["emotion"] for row in expected]
    for i in range(number):
        assert dataset[i]["audio"].dtype == np.float32
        np.testing.assert_allclose(dataset[i]["audio"], waveform(i), atol=1e-4)
        np.testing.assert_allclose(dataset[i]["duration"], 0.4, atol=1e-6)


def run(script, corpus: str, output: Path, *options: str, steps: int = 30) -> dict:
    """A run of `steps` steps of the whole set, evaluated and saved at the end."""
    return script.main(
        [
            "--dataset", corpus, "--output_dir", str(output), "--max_steps", str(steps), "--eval_strategy", "steps",
            "--eval_steps", str(steps), "--save_strategy", "steps", "--save_steps", str(steps),
            "--per_device_train_batch_size", "8", "--dataloader_num_workers", "0", "--no_augment", "--learning_rate",
            "3e-3", "--disable_tqdm", "true", "--logging_steps", "1", *options,
        ]
    )  # fmt: skip


def assert_finite(values) -> None:
    """No NaN among the numbers, however deep."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            assert_finite(value)
    elif isinstance(values, float):
        assert np.isfinite(values)


def load_json(file: Path) -> dict:
    """A file of strict JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(Path(file).read_text(), parse_constant=refuse)


def assert_is_a_run(output: str, *auto_classes: type) -> None:
    """Everything that a reader of the folder needs, and a checkpoint that loads without this repository's scripts."""
    for name in ("model.safetensors", "config.json", "processor_config.json", "config.yaml", "results.json"):
        assert (Path(output) / name).is_file(), name
    assert_finite(load_json(Path(output) / "results.json"))
    for auto_class in auto_classes:
        _, found = auto_class.from_pretrained(output, output_loading_info=True)
        assert not found["missing_keys"]
    assert AutoProcessor.from_pretrained(output).feature_extractor.sampling_rate == 16000
