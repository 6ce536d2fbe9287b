"""Speech data sets by one option: a folder, a CSV or JSONL manifest, parquet, or a Hub data set.

Reading a split decodes every clip once, so that broken files are all known before training starts, and keeps the
waveforms in the cache of `datasets`, which is memory-mapped.
"""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Audio, Dataset, Features, Sequence, Value, load_dataset
from demo_corpus import build_demo_corpus

from processing import AudioError, load_audio

logger = logging.getLogger(__name__)

DEMO_CORPUS = Path("runs/demo/corpus")
AUDIO_FORMATS = {".wav", ".flac", ".ogg", ".mp3"}
FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass
class DataArguments:
    """Where the speech is, and what its columns are called."""

    dataset: str = field(
        default="demo",
        metadata={
            "help": "A folder of recordings with metadata.csv files (audiofolder), a .csv, .jsonl or .parquet file, a"
            " folder of such files named by split, a data set of the Hub, or 'demo'."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "As in datasets, e.g. 'train[:90%]'."})
    validation_split: str = field(default="validation", metadata={"help": "Chooses the best checkpoint."})
    test_split: str = field(default="test", metadata={"help": "Reported, never used for a choice."})
    audio_column: str = field(default="audio", metadata={"help": "Audio, or the path of a file."})
    text_column: str = field(default="text", metadata={"help": "The transcript."})
    label_column: str = field(default="emotion", metadata={"help": "The class; several columns by commas."})
    skip_bad_audio: bool = field(default=False, metadata={"help": "Go on without unreadable files; count them."})


def load_split(arguments: DataArguments, split: str) -> Dataset:
    """One split as it is stored, audio not yet decoded; paths are absolute.

    Raises:
        ValueError: if the data set or the split is not there; names what is.
    """
    source = Path(arguments.dataset).expanduser()
    if arguments.dataset == "demo":
        source = build_demo_corpus(DEMO_CORPUS)
    name = re.match(r"\w*", split)[0]
    if source.is_file():
        return _load_manifest(source, name, split, arguments.audio_column)
    if not source.is_dir():
        dataset = load_dataset(arguments.dataset, arguments.dataset_config, split=split)
        for column, feature in dataset.features.items():
            if isinstance(feature, Audio):  # its own decoder needs torchcodec and FFmpeg
                dataset = dataset.cast_column(column, Audio(decode=False))
        return dataset
    for manifest in [*(source / name / f"metadata{end}" for end in FILE_FORMATS), *source.glob(f"{name}.*")]:
        if manifest.suffix in FILE_FORMATS and manifest.is_file():
            column = "file_name" if manifest.stem == "metadata" else arguments.audio_column
            dataset = _load_manifest(manifest, name, split, column)
            return dataset.rename_column(column, arguments.audio_column) if column == "file_name" else dataset
    clips = sorted(path for path in (source / name).rglob("*") if path.suffix.lower() in AUDIO_FORMATS)
    if clips:  # folder/split/label/clip.wav
        rows = {arguments.audio_column: [str(path) for path in clips]}
        rows[arguments.label_column] = [path.parent.name for path in clips]
        return Dataset.from_dict(rows, split=name)
    found = sorted({path.parent.name for path in source.glob("*/metadata.*")} | {p.stem for p in source.glob("*.*")})
    raise ValueError(
        f"'{source}' has no split '{name}': neither {name}/metadata.csv, nor {name}.csv, .jsonl or .parquet, nor clips"
        f" under {name}/. It has {found}; name the right split with `--train_split` and its siblings."
    )


def _load_manifest(manifest: Path, name: str, split: str, column: str) -> Dataset:
    """A CSV, JSONL or parquet file; the paths in `column` are relative to its folder."""
    if manifest.suffix not in FILE_FORMATS:
        raise ValueError(f"'{manifest}' is no manifest: the endings {sorted(FILE_FORMATS)} are known.")
    dataset = load_dataset(FILE_FORMATS[manifest.suffix], data_files={name: str(manifest)}, split=split)
    if column in dataset.column_names and dataset.features[column].dtype.endswith("string"):
        folder = manifest.parent.resolve()
        dataset = dataset.map(lambda row: {column: str(folder / row[column])}, desc=f"Paths of '{name}'")
    return dataset


def check_columns(dataset: Dataset, columns: list[tuple[str, str]]) -> None:
    """Refuse a data set without the columns asked for.

    Args:
        columns: pairs of option name and column name.

    Raises:
        ValueError: names the missing column, its option, and the columns that are there.
    """
    for option, column in columns:
        if column not in dataset.column_names:
            raise ValueError(
                f"The data set has no column '{column}'; it has {dataset.column_names}. Name the right one with"
                f" `--{option}`."
            )


def read_split(
    arguments: DataArguments, split: str, sampling_rate: int, text: bool = True, label: bool = False
) -> Dataset:
    """One split, decoded and checked: `audio` (float32 waveforms at `sampling_rate`), `text`, `label`, `duration` (s).

    Args:
        text: whether a transcript is needed in every row.
        label: whether the label column is needed; it becomes `label`.

    Raises:
        ValueError: lists every row without a transcript and, unless `--skip_bad_audio`, every file that cannot be
            read.
    """
    dataset = load_split(arguments, split)
    labels = arguments.label_column.split(",") if label else []
    columns = [("audio_column", arguments.audio_column)] + [("label_column", name) for name in labels]
    check_columns(dataset, columns + ([("text_column", arguments.text_column)] if text else []))
    if text:
        empty = [i for i, line in enumerate(dataset[arguments.text_column]) if not str(line or "").strip()]
        if empty:
            raise ValueError(f"Rows {empty} of split '{split}' have no transcript. Fill or remove them.")

    features = {"audio": Sequence(Value("float32")), "duration": Value("float32"), "problem": Value("string")}
    if text:
        features["text"] = Value("string")
    if label:
        features["label"] = dataset.features[labels[0]] if len(labels) == 1 else Sequence(Value("float32"))
    for extra in ("speaker", "file_name"):
        if extra in dataset.column_names:
            features[extra] = dataset.features[extra]
    dataset = dataset.map(
        decode_row,
        fn_kwargs={"arguments": arguments, "sampling_rate": sampling_rate, "keep": list(features), "labels": labels},
        remove_columns=dataset.column_names,
        features=Features(features),
        desc=f"Reading the audio of '{split}'",
    )
    problems = [(i, problem) for i, problem in enumerate(dataset["problem"]) if problem]
    if problems and not arguments.skip_bad_audio:
        listing = "\n".join(f"  row {i}: {problem}" for i, problem in problems)
        raise ValueError(
            f"{len(problems)} of {len(dataset)} recordings of split '{split}' cannot be used:\n{listing}\nRepair or"
            " remove them, or go on without them with `--skip_bad_audio`."
        )
    if problems:
        logger.warning("Skipped %d of %d recordings of split '%s'.", len(problems), len(dataset), split)
        broken = {i for i, _ in problems}
        dataset = dataset.select([i for i in range(len(dataset)) if i not in broken])
    if len(dataset) == 0:
        raise ValueError(f"Split '{split}' of '{arguments.dataset}' holds no recording.")
    return dataset.remove_columns("problem").with_format("numpy", columns=["audio"], output_all_columns=True)


def decode_row(row: dict, arguments: DataArguments, sampling_rate: int, keep: list[str], labels: list[str]) -> dict:
    """Decode one row; a file that cannot be read leaves an empty waveform and says why in `problem`."""
    decoded = {name: row[name] for name in keep if name in row and name != "audio"}
    try:
        waveform, problem = load_audio(row[arguments.audio_column], sampling_rate=sampling_rate), None
    except AudioError as error:
        waveform, problem = np.zeros(0, np.float32), str(error)
    decoded.update(audio=waveform, duration=len(waveform) / sampling_rate, problem=problem)
    if "text" in keep:
        decoded["text"] = row[arguments.text_column]
    if labels:
        decoded["label"] = row[labels[0]] if len(labels) == 1 else [row[name] for name in labels]
    return decoded
