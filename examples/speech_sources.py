"""Where speech data comes from: a folder, a CSV or JSONL manifest, parquet, or a Hub data set, by one option."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Audio, Dataset, ReadInstruction, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from demo_corpus import build_demo_corpus

DEMO_CORPUS = Path("runs/demo/corpus")
AUDIO_FORMATS = {".wav", ".flac", ".ogg", ".mp3"}
FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # the parquet files of a data set that was cloned from the Hub


@dataclass
class DataArguments:
    """Where the speech is, and what its columns are called."""

    dataset: str = field(
        default="demo",
        metadata={
            "help": "A folder of recordings with metadata.csv files (audiofolder), a folder of .csv, .jsonl or"
            " .parquet files named by split, one such file (the split 'train'), a data set of the Hub, or 'demo'."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "As in datasets, e.g. 'train[:90%%]'."})
    validation_split: str = field(default="validation", metadata={"help": "Chooses the best checkpoint."})
    test_split: str = field(default="test", metadata={"help": "Reported, never used for a choice."})
    audio_column: str = field(default="audio", metadata={"help": "Audio, or the path of a file."})
    text_column: str = field(default="text", metadata={"help": "The transcript."})
    label_column: str = field(default="emotion", metadata={"help": "The class; several columns by commas."})
    skip_bad_audio: bool = field(default=False, metadata={"help": "Go on without unreadable files; count them."})

    def label_columns(self) -> list[str]:
        """The names in `label_column`."""
        return [name.strip() for name in self.label_column.split(",")]


def load_split(arguments: DataArguments, split: str) -> Dataset:
    """One split as it is stored, audio not yet decoded; paths are absolute.

    Args:
        split: as in datasets: `"train"`, `"train[:90%]"`, `"train[:100]+validation"`.

    Raises:
        ValueError: if the data set or the split is not there; names what is.
    """
    source = Path(arguments.dataset).expanduser()
    if arguments.dataset == "demo":
        source = build_demo_corpus(DEMO_CORPUS)
    if not source.exists():
        trouble = f"'{source}' is no file or folder, and as a data set of the Hub it does not load"
        return _load_dataset(arguments.dataset, split, trouble, name=arguments.dataset_config)
    pieces = []
    for part in split.split("+"):
        name = re.match(r"[\w.-]*", part.strip())[0]
        rows = _load_local(source, name, arguments)
        (piece,) = ReadInstruction.from_spec("rows" + part.strip()[len(name) :]).to_absolute({"rows": len(rows)})
        pieces.append(rows.select(range(piece.from_, max(piece.from_, piece.to))))
    return pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces)


def _load_local(source: Path, name: str, arguments: DataArguments) -> Dataset:
    """The whole split `name` of a file or a folder."""
    if source.is_file():
        if name != "train":
            raise ValueError(
                f"'{source}' is one file, which is the split 'train'; there is no '{name}'. Take parts of it, such as"
                " `--train_split 'train[:90%]' --validation_split 'train[90%:]'`, or give a folder that holds"
                " train.csv, validation.csv and test.csv."
            )
        return _load_manifest(source, arguments.audio_column)
    manifests = {file.stem: file for file in source.glob("*.*") if file.suffix in FILE_FORMATS}
    table = manifests.pop("metadata", None)
    manifests |= {file.parent.name: file for file in source.glob("*/metadata.*") if file.suffix in FILE_FORMATS}
    if name in manifests:
        return _load_manifest(manifests[name], arguments.audio_column)
    if table is not None:
        return _load_table(table, name, arguments.audio_column)
    clips = {folder.name: _clips(folder) for folder in source.glob("*/")}
    if clips.get(name):  # name/label/clip.wav
        columns = {arguments.audio_column: [str(clip.resolve()) for clip in clips[name]]}
        if all(clip.parent != source / name for clip in clips[name]):
            columns[arguments.label_columns()[0]] = [clip.parent.name for clip in clips[name]]
        return Dataset.from_generator(_rows, gen_kwargs={"columns": columns})
    found = {split for split in manifests if not SHARD.search(split)} | {split for split in clips if clips[split]}
    if found:
        raise ValueError(
            f"'{source}' has no split '{name}': neither {name}/metadata.csv, nor {name}.csv, .jsonl or .parquet, nor"
            f" clips under {name}/. It has {sorted(found)}; name the right one with `--train_split` and its siblings."
        )
    return _load_dataset(str(source), name, f"'{source}' does not load", name=arguments.dataset_config)


def _clips(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_FORMATS)


def _rows(columns: dict[str, list]) -> Iterator[dict]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _load_manifest(manifest: Path, column: str) -> Dataset:
    """A CSV, JSONL or parquet file; the paths in `column` are relative to its folder."""
    if manifest.suffix not in FILE_FORMATS:
        raise ValueError(f"'{manifest}' is no manifest: the endings {sorted(FILE_FORMATS)} are known.")
    kind = FILE_FORMATS[manifest.suffix]
    # "null", "none" and "NA" are words that people say and classes that people name.
    options = {"keep_default_na": False, "na_values": [""]} if kind == "csv" else {}
    dataset = _load_dataset(
        kind, "train", f"'{manifest}' cannot be read as {kind}", data_files=str(manifest), **options
    )
    if manifest.stem == "metadata" and column not in dataset.column_names and "file_name" in dataset.column_names:
        dataset = dataset.add_column(column, list(dataset["file_name"]))
    if column in dataset.column_names and dataset.features[column] in (Value("string"), Value("large_string")):
        folder = manifest.parent.resolve()
        paths = [None if path is None else str(folder / path) for path in dataset[column]]
        dataset = dataset.remove_columns(column).add_column(column, paths, feature=Value("string"))
    return dataset


def _load_table(table: Path, name: str, column: str) -> Dataset:
    """The rows of a table of all splits (audiofolder) whose files lie in the folder of one."""
    dataset = _load_manifest(table, column)
    if column not in dataset.column_names:
        return dataset  # `check_columns` says so
    folders = [str(path).removeprefix(f"{table.parent.resolve()}/").split("/")[0] for path in dataset[column]]
    if name not in folders:
        raise ValueError(
            f"'{table}' lists no file under {name}/; the folders are {sorted(set(folders))}. Name the right one with"
            f" `--train_split` and its siblings, or give the table itself, which is the split 'train': `{table}`."
        )
    return dataset.select([i for i, folder in enumerate(folders) if folder == name])


def _load_dataset(path: str, split: str, trouble: str, **options) -> Dataset:
    """`datasets.load_dataset`, its audio left undecoded, its errors in one line."""
    try:
        dataset = load_dataset(path, split=split, **options)
    except (DatasetsError, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(f"{trouble}: {cause}") from error
    for column, feature in dataset.features.items():
        if isinstance(feature, Audio):  # its own decoder needs torchcodec and FFmpeg
            dataset = dataset.cast_column(column, Audio(decode=False))
    return dataset
