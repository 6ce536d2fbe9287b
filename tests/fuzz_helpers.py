"""What the fuzz tests feed: encoded clips and tables with a few bytes changed, as damage and malice change them.

Random bytes are refused at the first glance at their header; what reaches the code behind it is nearly sound.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from hypothesis import strategies as st

# Formats of libsndfile that datasets hold, and some that a user may try.
ENCODINGS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"),
    ("AU", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip
# Numbers at which sizes, rates and counts overflow or turn absurd.
NUMBERS = [0, 1, 2, 16, 17, 255, 256, 999, 384_001, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4]


def encode(format: str, subtype: str, channels: int, rate: int, frames: int) -> bytes:
    """A short clip of noise."""
    stream = io.BytesIO()
    noise = np.random.default_rng(frames).uniform(-0.5, 0.5, (frames, channels))
    soundfile.write(stream, noise, rate, format=format, subtype=subtype)
    return stream.getvalue()


def _clips() -> list[bytes]:
    return [
        encode(format, subtype, channels, rate, frames)
        for format, subtype in ENCODINGS
        for channels, rate, frames in ((1, 16000, 700), (2, 8000, 3000))
    ]


@st.composite
def damaged(draw, contents: list[bytes], most: int = 4) -> bytes:
    """One of `contents` after up to `most` changes, near its beginning more often than not."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, most))):
        end = draw(st.sampled_from([12, 48, 200, len(content)]))
        place = draw(st.integers(0, max(min(end, len(content)) - 1, 0)))
        size = draw(st.sampled_from([1, 2, 4, 8, 40, 500]))
        change = draw(st.sampled_from(["number", "flip", "bytes", "delete", "repeat", "cut", "splice"]))
        if change == "number":
            width, order = draw(st.sampled_from([2, 3, 4, 8])), draw(st.sampled_from(["little", "big"]))
            number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * width)
            content[place : place + width] = number.to_bytes(width, order)
        elif change == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "bytes":
            content[place : place + size] = draw(st.binary(max_size=size))
        elif change == "delete":
            del content[place : place + size]
        elif change == "repeat":
            content[place:place] = content[place : place + size]
        elif change == "cut":
            del content[place:]
        else:
            other = draw(st.sampled_from(contents))
            content[place:] = other[place:]
    return bytes(content)


CLIPS = _clips()


@st.composite
def _samples(draw):
    """What may be handed over as a waveform: any type, shape, form and scale."""
    dtype = np.dtype(
        draw(st.sampled_from(["f4", "f4", "f4", "f8", "f2", "i2", "i1", "i4", "i8", "u1", "?", "c8", "O"]))
    )
    long = st.integers(0, 700)
    shape = draw(
        st.one_of(
            st.tuples(long),
            st.tuples(long),
            st.tuples(st.integers(0, 3), long),
            st.tuples(st.integers(0, 2), st.integers(0, 2), long),
            st.just(()),
        )
    )
    scale = draw(st.sampled_from([1.0, 1.0, 0.0, 1e-30, 100.0, 1e14, 1e30, 3e38]))
    with np.errstate(all="ignore"):
        samples = np.asarray(np.random.default_rng(len(shape)).uniform(-scale, scale, shape)).astype(dtype)
    if samples.size and dtype.kind in "fc" and draw(st.integers(0, 5)) == 0:
        samples.reshape(-1)[draw(st.integers(0, samples.size - 1))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    form = draw(st.sampled_from(["numpy", "list", "torch"]))
    if form == "list":
        return samples.tolist()
    return torch.from_numpy(samples) if form == "torch" and dtype.kind != "O" else samples


_ANYTHING = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.binary(max_size=5), st.floats(), st.booleans(),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip


def calls() -> st.SearchStrategy[dict]:
    """Arguments of a processor, more of them right than wrong."""
    clip = st.integers(1, 700).map(lambda n: np.sin(np.arange(n, dtype=np.float32)))
    clips = st.one_of(clip, st.lists(clip, max_size=3), _samples(), st.lists(_samples(), max_size=3), _ANYTHING)
    text = st.one_of(st.text(max_size=30), st.text(max_size=5).map(lambda word: f"{word} red cat " * 300))
    return st.fixed_dictionaries(
        {
            "audio": clips,
            "text": st.one_of(st.none(), text, st.lists(text, max_size=3), st.lists(_ANYTHING, max_size=2), _ANYTHING),
            "sampling_rate": st.sampled_from([16000] * 8 + [None, 8000, "16000", -1, 0]),
        },
        optional={
            "padding": st.sampled_from([True, False, "max_length", "longest", "bogus"]),
            "max_length": st.sampled_from([None, 1, 7, 64, 5000]),
            "truncation": st.booleans(),
            "pad_to_multiple_of": st.sampled_from([None, 1, 3, 8, 1000]),
            "return_tensors": st.sampled_from(["pt", "pt", "np", None, "bogus"]),
        },
    )


_HEADER = ["audio", "text", "emotion"]
_ROWS = [["clip_0.wav", "red cat", "calm"], ["clip_1.wav", "one", "noisy"]]


def _csv(rows: list[list[str]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def _jsonl(rows: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def _parquet(rows: list[dict]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


@st.composite
def tables(draw, outside: str) -> tuple[str, bytes]:
    """A manifest: its ending and its content; its cells may name the file `outside`, two folders up."""
    sound = [dict(zip(_HEADER, row, strict=True)) for row in _ROWS]
    held = [
        row | {"audio": {"bytes": clip, "path": None}} for row, clip in zip(sound, (CLIPS[0], CLIPS[2]), strict=True)
    ]
    ending = draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    if draw(st.booleans()):
        whole = {
            "csv": [_csv([_HEADER, *_ROWS])],
            "jsonl": [_jsonl(sound)],
            "parquet": [_parquet(sound), _parquet(held)],
        }
        return ending, draw(damaged(whole[ending]))
    above = f"../../{Path(outside).parent.name}/{Path(outside).name}"
    words = [
        "clip_0.wav", "clip_1.wav", "clip_0.wav", "clip_1.wav", outside, above, "", "nan",
        "None", "red cat", "calm", "0", "1.5", "-1e400", "é", "\0", "a\nb", '"', ",", ".", "..", "clip_0.wav/",
        "metadata.csv", "http://x/y.wav", "file:///etc/passwd", "~", "a" * 5000,
    ]  # fmt: skip
    text = st.one_of(st.sampled_from(words), st.text(max_size=8))
    value = st.one_of(
        text, st.none(), st.integers(-(2**70), 2**70), st.floats(), st.booleans(),
        st.lists(st.integers(0, 3), max_size=2),
        st.dictionaries(st.sampled_from(["bytes", "path", "array"]), st.one_of(text, st.none()), max_size=2),
    )  # fmt: skip
    columns = ["audio", "text", "emotion", "file_name", "speaker", "row", "duration", "problem", "label", "", " audio"]
    header = draw(st.lists(st.sampled_from(columns), min_size=1, max_size=5))
    if draw(st.booleans()):
        header = ["audio", "text", "emotion"]
    cells = st.lists(text if ending == "csv" else value, min_size=len(header), max_size=len(header))
    rows = draw(st.lists(cells, max_size=4))
    if ending == "csv":
        return ending, _csv([header, *rows])
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    try:
        return ending, _parquet(rows) if ending == "parquet" else _jsonl(rows)
    except (pa.ArrowException, OverflowError):  # a column of parquet has one type
        return "jsonl", _jsonl(rows)
