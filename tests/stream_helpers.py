"""Shards for the tests of streams: clips numbered through, as parquet and as WebDataset tars."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from example_helpers import RATE, TEXTS, waveform
from shards import count_rows, find_shards
from speech_sources import DataArguments
from speech_stream import SpeechStream
from torch.utils.data import DataLoader

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def flac(index: int, seconds: float = 0.4) -> bytes:
    """Clip `index` as a FLAC file."""
    stream = io.BytesIO()
    soundfile.write(stream, waveform(index, seconds), RATE, format="FLAC")
    return stream.getvalue()


def write_parquet(folder: Path, sizes, clip: Callable = flac, row_group_size: int = 5, **columns: Callable) -> Path:
    """`train-<n>.parquet` of so many rows each; a clip is called by its number."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = [("audio", AUDIO), ("text", pa.string())] + [(name, pa.float32()) for name in columns]
    number = 0
    for n, size in enumerate(sizes):
        rows = []
        for number in range(number, number + size):  # noqa: B020
            row = {"audio": {"bytes": clip(number), "path": f"{number}.flac"}, "text": TEXTS[number % 8]}
            rows.append(row | {name: value(number) for name, value in columns.items()})
        table = pa.Table.from_pylist(rows, pa.schema(schema))
        file = folder / f"train-{n:05d}-of-{len(sizes):05d}.parquet"
        pq.write_table(table, file, row_group_size=row_group_size)
        number += bool(size)
    return folder


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    """A tar of regular files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def write_tars(folder: Path, sizes, clip: Callable = flac) -> Path:
    """The same as WebDataset: `train-<n>.tar` with `<number>.flac` and `<number>.txt`."""
    number = 0
    for n, size in enumerate(sizes):
        members = {}
        for _ in range(size):
            members |= {f"{number}.flac": clip(number), f"{number}.txt": TEXTS[number % 8].encode()}
            number += 1
        write_tar(folder / f"train-{n:05d}.tar", members)
    return folder


def open_streams(
    folder: Path, num_ranks: int = 1, batch_size: int = 2, columns=None, **settings
) -> list[SpeechStream]:
    """The stream of every rank."""
    files = find_shards(str(folder), "train")
    names = {"audio_column": "flac", "text_column": "txt"} if files[0].endswith(".tar") else {}
    data = DataArguments(dataset=str(folder), **names | (columns or {}))
    blocks = count_rows(files)
    return [
        SpeechStream(blocks, data, batch_size, rank=rank, num_ranks=num_ranks, **settings) for rank in range(num_ranks)
    ]


def number(row: dict) -> int:
    """Which clip a row is."""
    return int(row["id"].split("('")[1].split("'")[0].removesuffix(".flac"))


def batches(stream: SpeechStream, epoch: int = 0, num_workers: int = 0, collate: Callable | None = None) -> list:
    """All batches of an epoch; by default the numbers of their clips."""
    stream.set_epoch(epoch)
    collate = collate or (lambda rows: [None if row is None else number(row) for row in rows])
    loader = DataLoader(stream, stream.batch_size, drop_last=True, collate_fn=collate, num_workers=num_workers)
    assert len(loader) == stream.num_steps
    return list(loader)
