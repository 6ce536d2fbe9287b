"""Sources of speech data: a folder, a CSV or JSONL manifest, parquet, or a Hub data set, chosen by one option.

A data set names files and may be untrusted: only files in its own folder or in `--audio_root` are read.
"""

import functools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, ReadInstruction, Value, concatenate_datasets, config
from demo_corpus import build_demo_corpus
from shards import REPORT, count_samples, load_undecoded, local_shards

DEMO_CORPUS = Path("runs/demo/corpus")
AUDIO_FORMATS = {".wav", ".flac", ".ogg", ".mp3"}
FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".tar": "webdataset"}
SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # parquet files of a data set cloned from the Hub


@dataclass
class DataArguments:
    """Where the speech data is, and the names of its columns."""

    dataset: str = field(
        default="demo",
        metadata={
            "help": "A folder of recordings with metadata.csv files (audiofolder), a folder of .csv, .jsonl or"
            " .parquet files named by split, one such file (the split 'train'), a data set of the Hub, or 'demo'; with"
            " --streaming parquet or tar shards, also by a pattern such as 'shards/train-*.tar'."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "As in datasets, e.g. 'train[:90%%]'."})
    validation_split: str = field(default="validation", metadata={"help": "Chooses the best checkpoint."})
    test_split: str = field(default="test", metadata={"help": "Reported, never used for a choice."})
    audio_column: str = field(default="audio", metadata={"help": "Audio, or the path of a file."})
    audio_root: str | None = field(
        default=None,
        metadata={"help": "Folder that the files named by the data must lie in; by default the data set's own."},
    )
    text_column: str = field(default="text", metadata={"help": "The transcript."})
    label_column: str = field(default="emotion", metadata={"help": "The class; several columns by commas."})
    skip_bad_audio: bool = field(default=False, metadata={"help": "Go on without unreadable files; count them."})

    def label_columns(self) -> list[str]:
        """The names in `label_column`."""
        return [name.strip() for name in self.label_column.split(",")]


def load_split(arguments: DataArguments, split: str) -> Dataset:
    """One split as stored, audio not yet decoded; paths are absolute.

    Args:
        split: as in datasets: `"train"`, `"train[:90%]"`, `"train[:100]+validation"`.

    Raises:
        ValueError: if the data set or the split does not exist; names the available splits.
    """
    source = Path(arguments.dataset).expanduser()
    if arguments.dataset == "demo":
        source = build_demo_corpus(DEMO_CORPUS)
    if not source.exists():
        trouble = f"'{source}' is no file or folder, and as a data set of the Hub it does not load"
        dataset = load_undecoded(arguments.dataset, split, trouble, name=arguments.dataset_config)
        refuse_outside(named_files(dataset, arguments.audio_column), _roots(arguments, config.HF_CACHE_HOME))
        return _with_fields(dataset, arguments)
    roots = _roots(arguments, source if source.is_dir() else source.parent)
    pieces = []
    for part in split.split("+"):
        name = re.match(r"[\w.-]*", part.strip())[0]
        rows = _load_local(source, name, arguments)
        refuse_outside(named_files(rows, arguments.audio_column), roots)
        (piece,) = ReadInstruction.from_spec("rows" + part.strip()[len(name) :]).to_absolute({"rows": len(rows)})
        pieces.append(rows.select(range(piece.from_, max(piece.from_, piece.to))))
    return _with_fields(pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces), arguments)


def _with_fields(dataset: Dataset, arguments: DataArguments) -> Dataset:
    """Add struct fields that options name, such as `json.text`, as columns."""
    for column in (arguments.text_column, *arguments.label_columns()):
        struct = column.split(".")[0]
        if column not in dataset.column_names and struct in dataset.column_names:
            fields = dataset.select_columns(struct).flatten()
            if column in fields.column_names:
                dataset = concatenate_datasets([dataset, fields.select_columns(column)], axis=1)
    return dataset


def _load_local(source: Path, name: str, arguments: DataArguments) -> Dataset:
    """The whole split `name` of a file or a folder."""
    if source.is_file():
        if name != "train":
            raise ValueError(
                f"'{source}' is one file, which is the split 'train'; there is no '{name}'. Take parts of it, in"
                " the order of its rows: `--train_split 'train[:80%]' --validation_split 'train[80%:90%]'"
                " --test_split 'train[90%:]'`; or give a folder that holds train.csv, validation.csv and test.csv."
            )
        return _load_manifest(source, arguments.audio_column)
    manifests = {file.stem: file for file in source.glob("*.*") if file.suffix in FILE_FORMATS and file.name != REPORT}
    table = manifests.pop("metadata", None)
    manifests |= {file.parent.name: file for file in source.glob("*/metadata.*") if file.suffix in FILE_FORMATS}
    if name in manifests:
        return _load_manifest(manifests[name], arguments.audio_column)
    if table is not None:
        return _load_table(table, name, arguments.audio_column)
    if shards := local_shards(source, name):
        return _load_shards(shards)
    clips = {folder.name: _clips(folder) for folder in source.glob("*/")}
    if clips.get(name):  # name/label/clip.wav, or deeper
        columns = {arguments.audio_column: [str(clip.resolve()) for clip in clips[name]]}
        if all(clip.parent != source / name for clip in clips[name]):
            labels = [clip.relative_to(source / name).parts[0] for clip in clips[name]]
            columns[arguments.label_columns()[0]] = labels
        return Dataset.from_generator(_rows, gen_kwargs={"columns": columns})
    found = {split for split in manifests if not SHARD.search(split)} | {split for split in clips if clips[split]}
    if found:
        raise ValueError(
            f"'{source}' has no split '{name}': neither {name}/metadata.csv, nor {name}.csv, .jsonl or .parquet, nor"
            f" clips under {name}/. It has {sorted(found)}; name the right one with `--train_split` and its siblings."
        )
    return load_undecoded(str(source), name, f"'{source}' does not load", name=arguments.dataset_config)


def _load_shards(files: list[Path]) -> Dataset:
    kind = FILE_FORMATS[files[0].suffix]
    for file in files:
        if kind == "webdataset":
            count_samples(str(file))  # rejects members that do not belong in an archive
    names = [str(file) for file in files]
    return load_undecoded(kind, "train", f"'{files[0]}' and its siblings cannot be read as {kind}", data_files=names)


def _clips(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_FORMATS)


def _rows(columns: dict[str, list]) -> Iterator[dict]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _load_manifest(manifest: Path, column: str) -> Dataset:
    """A CSV, JSONL or parquet file; the paths in `column` are relative to its folder."""
    if manifest.suffix not in FILE_FORMATS:
        raise ValueError(f"'{manifest}' is no manifest: the endings {sorted(FILE_FORMATS)} are known.")
    if manifest.suffix == ".tar":
        return _load_shards([manifest])
    kind = FILE_FORMATS[manifest.suffix]
    # "null", "none" and "NA" may be transcripts or class names.
    options = {"keep_default_na": False, "na_values": [""]} if kind == "csv" else {}
    dataset = load_undecoded(
        kind, "train", f"'{manifest}' cannot be read as {kind}", data_files=str(manifest), **options
    )
    if manifest.stem == "metadata" and column not in dataset.column_names and "file_name" in dataset.column_names:
        files = dataset.select_columns("file_name").rename_column("file_name", column)
        dataset = concatenate_datasets([dataset, files], axis=1)
    if column in dataset.column_names and dataset.features[column] in (Value("string"), Value("large_string")):
        folder = manifest.parent.resolve()
        paths = [None if path is None else str(folder / path) for path in dataset[column]]
        dataset = dataset.remove_columns(column).add_column(column, paths, feature=Value("string"))
    return dataset


def _load_table(table: Path, name: str, column: str) -> Dataset:
    """The rows of one split in a table of all splits (audiofolder): those with files in the split's folder."""
    dataset = _load_manifest(table, column)
    if column not in dataset.column_names:
        return dataset  # `check_columns` reports it
    folders = [Path(os.path.relpath(str(path), table.parent.resolve())).parts[0] for path in dataset[column]]
    if name not in folders:
        raise ValueError(
            f"'{table}' lists no file under {name}/; the folders are {sorted(set(folders))}. Name the right one with"
            f" `--train_split` and its siblings, or give the table itself, which is the split 'train': `{table}`."
        )
    return dataset.select([i for i, folder in enumerate(folders) if folder == name])


def named_files(dataset: Dataset, column: str) -> list[str]:
    """The files that must be opened to read `column`: those of rows that do not contain the bytes themselves.

    Raises:
        ValueError: if the column holds neither audio nor paths, or an unresolvable mixture.
    """
    if column not in dataset.column_names:
        return []
    kind = dataset.features[column]
    dataset = dataset.select_columns(column).flatten()
    if f"{column}.bytes" in dataset.column_names:
        blobs = dataset.select_columns(f"{column}.bytes").with_format("arrow")  # reads none of the bytes
        missing = [batch.column(0).is_null().to_numpy() for batch in blobs.iter(1000)]
        dataset = dataset.select(np.flatnonzero(np.concatenate(missing or [np.zeros(0)])))
    column = f"{column}.path" if f"{column}.path" in dataset.column_names else column
    feature = dataset.features.get(column, kind)
    if isinstance(feature, Value) and feature.dtype.endswith("string"):
        return [path for path in dataset[column] if path is not None]
    if not isinstance(feature, Value) or feature.dtype not in ("null", "binary", "large_binary"):
        raise ValueError(
            f"Column '{column}' holds {feature}, neither paths nor audio. Name the right one with `--audio_column`, or"
            " give every row the path of its file."
        )
    return []


def _roots(arguments: DataArguments, own: str | Path) -> list[str]:
    return [os.path.realpath(root) for root in (own, arguments.audio_root) if root is not None]


def refuse_outside(files: Iterable[str], roots: list[str]) -> None:
    """Reject data that names files outside `roots`, by `..`, an absolute path or a symbolic link.

    Args:
        roots: real paths of the folders that may contain the files.

    Raises:
        ValueError: names the first such file, and how many there are.
    """
    real_folder = functools.lru_cache(maxsize=4096)(os.path.realpath)
    outside = []
    for file in files:
        folder, name = os.path.split(file)
        real = os.path.join(real_folder(folder), name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real)
        if not any(real.startswith(os.path.join(root, "")) for root in roots):
            outside.append(f"'{file}'" + (f" (which is '{real}')" if real != file else ""))
    if outside:
        raise ValueError(
            f"The data names {len(outside)} files outside of {' and '.join(roots)}: {outside[0]}"
            f"{', ...' if outside[1:] else ''}. If they are to be read, name their folder by `--audio_root`."
        )
