"""Parquet and tar shards of data sets too large to decode in advance: how they are found, counted and read in part.

A shard can be read from any row: parquet by row groups through pyarrow, WebDataset tars through `datasets`. Nothing is
decoded here, and nothing is unpacked to disk.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features, IterableDataset, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetsError
from datasets.packaged_modules.webdataset.webdataset import (
    EXTENSION_TO_COMPRESSION_FS_FILE_CLS,
    WebDataset,
    base_plus_ext,
)

SHARD_FORMATS = (".parquet", ".tar")
REPORT = "preparation.json"  # written by prepare_data.py next to its shards; not a manifest
# Rows read and shuffled as a unit: enough that the cost of opening a file is negligible, 13 MB of short clips.
BLOCK_ROWS = 128
READ_ROWS = 16  # rows converted from Arrow to Python at once


class Block(NamedTuple):
    """Consecutive rows of a shard that are read together: row groups of a parquet file, or a whole tar."""

    file: str
    start: int
    rows: int


def load_undecoded(path: str, split: str, trouble: str, **options) -> Dataset | IterableDataset:
    """`datasets.load_dataset` with undecoded audio and one-line errors.

    Args:
        trouble: start of the error message.
    """
    try:
        if path == "webdataset":  # which would need torchcodec to encode the bytes that it has read
            found = load_dataset(path, split=split, **options | {"streaming": True}).features
            found = {name: Value("binary") if isinstance(kind, Audio) else kind for name, kind in found.items()}
            options["features"] = Features(found)
        dataset = load_dataset(path, split=split, **options)
    except StopIteration as error:  # raised by `datasets` for an empty JSONL file
        raise ValueError(f"{trouble}: it is empty") from error
    except (DatasetsError, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(f"{trouble}: {cause}") from error
    for column, feature in dataset.features.items():
        if isinstance(feature, Audio):  # its own decoder needs torchcodec and FFmpeg
            dataset = dataset.cast_column(column, Audio(decode=False))
    return dataset


def local_shards(folder: Path, split: str) -> list[Path]:
    """The shards in a folder or its `data/` that are named after the split, or are in a subfolder of that name."""
    named = re.compile(rf"{re.escape(split)}([-_]\d+([-_]of[-_]\d+)?)?")
    places = (folder, folder / "data")
    files = [file for place in places for file in place.glob("*") if named.fullmatch(file.stem)]
    files += [file for place in places for file in (place / split).rglob("*")]
    return sorted(file for file in files if file.suffix in SHARD_FORMATS and file.is_file())


def find_shards(dataset: str, split: str, config: str | None = None) -> list[str]:
    """The parquet or tar files of a split, sorted by name.

    Args:
        dataset: a pattern such as `"shards/train-*.tar"` or one such file (the split `train`), a folder
            that holds `train-*.parquet`, `train.parquet`, `train/*.parquet` or the same in `data/` (or `.tar`), or a
            data set of the Hub that consists of parquet.
        config: configuration of a data set of the Hub.

    Raises:
        ValueError: if there is no such file, or only part of a split is requested.
    """
    if not re.fullmatch(r"[\w.-]+", split):
        raise ValueError(
            f"`--streaming` reads whole splits in shuffled order, and '{split}' is a part of one. Give a plain name,"
            " such as `--train_split train`, and leave rows out by preparing the data without them."
        )
    source = Path(dataset).expanduser()
    if any(sign in dataset for sign in "*?[") or source.is_file():
        if split != "train":
            raise ValueError(f"'{source}' is the split 'train' alone; for '{split}' give a folder.")
        files = [source] if source.is_file() else [Path(file) for file in glob(str(source), recursive=True)]
    elif source.is_dir():
        files = local_shards(source, split)
    else:
        return _find_hub_shards(dataset, split, config)
    files = sorted(str(file.absolute()) for file in files if file.suffix in SHARD_FORMATS and file.is_file())
    if not files or len({Path(file).suffix for file in files}) > 1:
        found = "parquet and tar shards together" if files else "neither parquet nor tar shards"
        raise ValueError(
            f"'{dataset}' has {found} of the split '{split}', and `--streaming` reads shards of one kind."
            " `python examples/prepare_data.py --dataset ... --output_dir FOLDER` makes them from any data set."
        )
    return files


def _find_hub_shards(dataset: str, split: str, config: str | None) -> list[str]:
    try:
        builder = load_dataset_builder(dataset, config)
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(
            f"'{dataset}' is no file, folder or pattern of files, and as a data set of the Hub it does not"
            f" load: {error}"
        ) from error
    splits = builder.config.data_files or {}
    files = [str(file) for file in splits.get(split, [])]
    if not files or not all(file.endswith(".parquet") for file in files):
        raise ValueError(
            f"The data set '{dataset}' of the Hub has no split '{split}' of parquet files; its splits are"
            f" {sorted(map(str, splits))}. `--streaming` reads parquet from the Hub: choose another split, or make"
            " local shards with `python examples/prepare_data.py`."
        )
    return sorted(files)


def count_rows(files: list[str]) -> list[Block]:
    """The blocks of the shards, from the footers of parquet files and the headers of tars.

    Raises:
        ValueError: names the shard that cannot be read, or the tar member that is rejected.
    """
    with ThreadPoolExecutor(16) as pool:
        return [block for blocks in pool.map(_count, files) for block in blocks]


def _count(file: str) -> list[Block]:
    if file.endswith(".tar"):
        return [Block(file, 0, count_samples(file))]
    blocks, start, rows = [], 0, 0
    metadata = _parquet(file, lambda table: table.metadata)
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= BLOCK_ROWS or group == metadata.num_row_groups - 1:
            blocks.append(Block(file, start, rows))
            start, rows = start + rows, 0
    return [block for block in blocks if block.rows]


def _parquet(file: str, read) -> Any:
    try:
        with fsspec.open(file) as stream, pq.ParquetFile(stream) as table:
            return read(table)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{file}' cannot be read as parquet: {error}") from error


def count_samples(file: str) -> int:
    """The number of samples in a WebDataset tar, from the names of its members; checks every member.

    Nothing is ever unpacked, so no member can be written outside a folder. A path that leads there is still a sign of
    a malicious archive, and `datasets` would silently drop links.

    Raises:
        ValueError: for a member with an absolute name or `..` in it, a link or a device, or one that expands when read
            (sparse or compressed); if the first samples differ in their fields; for a damaged archive.
    """
    members = []
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise ValueError(
                        f"'{file}' is refused: its member '{member.name}' leads out of the archive. Pack it anew with"
                        " relative names."
                    )
                if not (member.isreg() or member.isdir()):
                    raise ValueError(
                        f"'{file}' is refused: its member '{member.name}' is a link or a device, not a file. Pack it"
                        " anew with `tar --dereference --hard-dereference`."
                    )
                if member.issparse() or path.suffix.lower() in EXTENSION_TO_COMPRESSION_FS_FILE_CLS:
                    raise ValueError(
                        f"'{file}' is refused: its member '{member.name}' is compressed or sparse, and could fill the"
                        " memory when it is read. Pack it anew as it is."
                    )
                if member.isreg() and not path.name.startswith((".", "__")):  # which `datasets` skips
                    members.append(base_plus_ext(member.name))
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"'{file}' cannot be read as a tar archive: {error}") from error
    found = groupby((member for member in members if member[0] is not None), key=itemgetter(0))
    samples = [sorted(field for _, field in sample) for _, sample in found]
    first = samples[: WebDataset.NUM_EXAMPLES_FOR_FEATURES_INFERENCE]
    if any(fields != first[0] for fields in first):
        raise ValueError(
            f"'{file}' is refused: one of its first {len(first)} samples has other fields than the first,"
            f" {first[0]}, and `datasets` takes those of all for them. Pack it anew with samples alike."
        )
    return len(samples)


def read_rows(file: str, start: int, stop: int, columns: list[str]) -> Iterator[dict]:
    """Rows `start` to `stop` of a shard, undecoded, in order.

    Args:
        columns: to read from a parquet file; `a.b` is a field of a struct. Rows of a tar have all their fields.

    Raises:
        ValueError: if the shard holds fewer rows than when it was counted, or is damaged.
    """
    read = 0
    for row in _read_tar(file, start, stop) if file.endswith(".tar") else _read_parquet(file, start, stop, columns):
        read += 1
        yield row
    if read < stop - start:
        raise ValueError(f"'{file}' ends after row {start + read}, and had {stop} rows or more when it was counted.")


def _read_tar(file: str, start: int, stop: int) -> Iterator[dict]:
    dataset = load_undecoded("webdataset", "train", f"'{file}' cannot be read", data_files=[file], streaming=True)
    # Not `iter(dataset)`: in a DataLoader worker, that would split the rows among the workers again.
    try:
        for batch in dataset.skip(start).take(stop - start).iter(READ_ROWS):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))
    except (OSError, ValueError) as error:  # e.g. text that is not UTF-8
        raise ValueError(f"'{file}' cannot be read between samples {start} and {stop}: {error}") from error


def _read_parquet(file: str, start: int, stop: int, columns: list[str]) -> Iterator[dict]:
    try:
        with fsspec.open(file) as stream, pq.ParquetFile(stream) as table:
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = [group for group, end in enumerate(ends) if end > start and end - sizes[group] < stop]
            position = int(ends[groups[0]] - sizes[groups[0]]) if groups else stop
            for batch in table.iter_batches(READ_ROWS, row_groups=groups, columns=columns):
                first, last = max(start - position, 0), min(stop - position, len(batch))
                position += len(batch)
                if first < last:
                    yield from batch.slice(first, last - first).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{file}' cannot be read as parquet: {error}") from error


def column_names(file: str) -> list[str]:
    """The columns of a shard, or the fields of its first sample."""
    if file.endswith(".tar"):
        return list(next(_read_tar(file, 0, 1), {}))
    return _parquet(file, lambda table: table.schema_arrow.names)


def file_metadata(file: str) -> dict[bytes, bytes]:
    """The key-value metadata of a parquet file."""
    return _parquet(file, lambda table: table.metadata.metadata) or {}


def pick(row: Mapping, column: str) -> Any:
    """A value of a row; `"json.text"` is the field `text` of the column `json`. None if it is missing."""
    value = row
    for name in [column] if column in row else column.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
