"""One split as parquet shards: every clip decoded, checked and re-encoded, refused rows reported in their shard."""

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, Dataset, Features, Value
from shards import BLOCK_ROWS, file_metadata
from speech_features import FEATURES_METADATA, encode_features, extractor_settings

from processing import AudioError, CalmFeatureExtractor, load_audio

SHARD_METADATA = "calm_shard"  # key in the metadata of a shard: its stamp, clips, seconds and refused rows
ENCODINGS = {"flac": ("FLAC", "PCM_16"), "int16": ("WAV", "PCM_16"), "float32": ("WAV", "FLOAT")}
LOUDEST = 1.5  # peak allowed in 16 bits, at a full scale of 1: resampling overshoots by less, and is clipped
QUIETEST = 2.0**-15  # peaks below this would be silence in 16 bits


@dataclass(frozen=True)
class Job:
    """Rows `start` to `stop` of the split, as one file."""

    file: Path
    start: int
    stop: int


@dataclass
class ShardWriter:
    """Writes the shards of one split.

    Args:
        dataset: the split as stored.
        stamp: hash of the data and the settings, which identifies shards of another preparation.
        audio_column, text_column: their names; `text_column` is None if transcripts are not required.
        sampling_rate: of the audio in the shards, in Hz.
        audio_format: a key of `ENCODINGS`; None leaves the audio out.
        extractor: of the features, or None.
        features_dtype: of the features.
    """

    dataset: Dataset
    stamp: str
    audio_column: str
    text_column: str | None
    sampling_rate: int
    audio_format: str | None
    extractor: CalmFeatureExtractor | None = None
    features_dtype: str = "float16"

    def schema(self) -> pa.Schema:
        """The columns of the data set, with re-encoded audio, `duration` (s) and `input_features`."""
        columns = dict(self.dataset.features) | {"duration": Value("float32")}
        columns[self.audio_column] = Audio(sampling_rate=self.sampling_rate)
        if self.audio_format is None:
            del columns[self.audio_column]
        if self.extractor is None:
            return Features(columns).arrow_schema
        schema = Features(columns | {"input_features": Value("binary")}).arrow_schema
        return schema.with_metadata(
            schema.metadata | {FEATURES_METADATA: json.dumps(extractor_settings(self.extractor))}
        )

    def write(self, job: Job) -> Job:
        """Write one shard, which gets its final name once it is complete and flushed to disk."""
        report = {"stamp": self.stamp, "clips": 0, "seconds": 0.0, "refused": []}
        partial, schema = job.file.with_suffix(f".{os.getpid()}.partial"), self.schema()
        with partial.open("wb") as stream:
            with pq.ParquetWriter(stream, schema) as writer:
                rows = self._rows(range(job.start, job.stop), report)
                while block := list(islice(rows, BLOCK_ROWS)):  # a row group, the unit that a stream reads
                    writer.write_table(pa.Table.from_pylist(block, schema))
                writer.add_key_value_metadata({SHARD_METADATA: json.dumps(report)})
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(job.file)
        return job

    def _rows(self, numbers: Iterable[int], report: dict) -> Iterator[dict]:
        for number in numbers:
            row = self.dataset[number]
            audio = row.pop(self.audio_column)
            file = audio.get("path") if isinstance(audio, dict) else audio if isinstance(audio, str) else None
            kind, found = self._check(row, audio)
            if kind is not None:
                report["refused"].append({"row": number, "file": file, "kind": kind, "reason": found})
                continue
            row["duration"] = len(found) / self.sampling_rate
            report["clips"] += 1
            report["seconds"] += row["duration"]
            if self.audio_format is not None:
                content = encode_audio(found, self.sampling_rate, self.audio_format)
                name = f"{Path(file or str(number)).stem}.{ENCODINGS[self.audio_format][0].lower()}"
                row[self.audio_column] = {"bytes": content, "path": name}
            if self.extractor is not None:
                row["input_features"] = encode_features(self.extractor, found, self.features_dtype)
            yield row

    def _check(self, row: dict, audio) -> tuple[str | None, np.ndarray | str]:
        """None and the waveform, or the kind of fault and its description."""
        if self.text_column is not None:
            text = row[self.text_column]
            if text is None or text != text or not str(text).strip():
                return "transcript", f"no transcript in '{self.text_column}'"
        if audio is None:
            return "audio", f"names no file in '{self.audio_column}'"
        try:
            waveform = load_audio(audio, sampling_rate=self.sampling_rate)
        except (AudioError, TypeError) as error:
            return "audio", str(error)
        peak = float(np.abs(waveform).max(initial=0.0))
        if self.audio_format in ("flac", "int16") and (peak > LOUDEST or 0 < peak < QUIETEST):
            return "audio", (
                f"its samples reach {peak:.3g}, and 16 bits hold {QUIETEST:.1e} to 1: choose `--audio_format float32`"
            )
        return None, waveform


def encode_audio(waveform: np.ndarray, sampling_rate: int, audio_format: str) -> bytes:
    """A mono file in `audio_format`; 16-bit audio at the same sampling rate is preserved exactly."""
    kind, subtype = ENCODINGS[audio_format]
    if subtype == "PCM_16":  # soundfile would write with a scale of 32767, and read with 32768
        waveform = np.rint(waveform * 32768).clip(-32768, 32767).astype(np.int16)
    stream = io.BytesIO()
    soundfile.write(stream, waveform, sampling_rate, format=kind, subtype=subtype)
    return stream.getvalue()


def read_report(file: Path) -> dict | None:
    """The report stored in a shard; None if this module did not write it."""
    stored = file_metadata(str(file)).get(SHARD_METADATA.encode())
    return None if stored is None else json.loads(stored)
