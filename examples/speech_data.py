"""Speech data sets, read and checked before training: all problems of a split are reported at once, by row.

Reading a split decodes every clip once, so that all broken files are known before training starts, and keeps the
waveforms in the memory-mapped cache of `datasets`. A file that changes is decoded again.
"""

import hashlib
import logging
import os
from itertools import combinations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Sequence, Value, concatenate_datasets
from speech_sources import DataArguments, load_split

from processing import AudioError, CalmProcessor, WaveformAugmentation, load_audio

__all__ = ["DataArguments", "check_columns", "join", "read_features", "read_split"]

logger = logging.getLogger(__name__)


def check_columns(dataset: Dataset, columns: list[tuple[str, str]], name: str) -> None:
    """Reject a data set that lacks required columns.

    Args:
        columns: pairs of option name and column name.
        name: value of `--dataset`, for the error message.

    Raises:
        ValueError: names the missing column, its option, and the available columns.
    """
    for option, column in columns:
        if column not in dataset.column_names:
            other = "; `finetune.py --modalities audio` needs no transcripts" if option == "text_column" else ""
            raise ValueError(
                f"The data set '{name}' has no column '{column}'; it has {dataset.column_names}. Name the right one"
                f" with `--{option}`{other}."
            )


def read_split(
    arguments: DataArguments, split: str, sampling_rate: int, text: bool = True, label: bool = False
) -> Dataset:
    """One split, decoded and checked: `audio` (float32 waveforms at `sampling_rate`), `text`, `label`, `duration` (s).

    `row` is the number of the row in the split as stored; `speaker` and `file_name` are kept if the data set has
    them.

    Args:
        text: whether every row must have a transcript.
        label: whether the label columns are required; they become `label`, see [`read_labels`].

    Raises:
        ValueError: lists every row without a transcript or a label and, unless `--skip_bad_audio`, every file that
            cannot be read.
    """
    dataset = load_split(arguments, split)
    if len(dataset) == 0:
        raise ValueError(f"Split '{split}' of '{arguments.dataset}' holds no recording.")
    labels = arguments.label_columns() if label else []
    columns = [("audio_column", arguments.audio_column)] + [("label_column", name) for name in labels]
    check_columns(dataset, columns + ([("text_column", arguments.text_column)] if text else []), arguments.dataset)
    added = {"row": list(range(len(dataset)))}
    if text:
        added["text"] = list(dataset[arguments.text_column])
        refuse_missing(added["text"], arguments.text_column, split, "transcript")
        added["text"] = [str(line) for line in added["text"]]
    if label:
        added["label"] = read_labels(dataset, labels, split)
    decoded = dataset.select_columns(arguments.audio_column).map(
        decode_row,
        fn_kwargs={
            "column": arguments.audio_column,
            "sampling_rate": sampling_rate,
            "stamp": stamp_files(dataset, arguments.audio_column),
        },
        remove_columns=[arguments.audio_column],
        features=Features(audio=Sequence(Value("float32")), duration=Value("float32"), problem=Value("string")),
        writer_batch_size=32,  # waveforms are held in memory until written
        desc=f"Reading the audio of '{split}'",
    )
    kept = dataset.select_columns([name for name in ("speaker", "file_name") if name in dataset.column_names])
    decoded = concatenate_datasets([decoded, kept], axis=1) if kept.column_names else decoded
    for name, values in added.items():
        decoded = decoded.add_column(name, values)

    problems = {i: problem for i, problem in enumerate(decoded["problem"]) if problem}
    if problems and (not arguments.skip_bad_audio or len(problems) == len(decoded)):
        listing = "\n".join(f"  row {i}: {problem}" for i, problem in problems.items())
        raise ValueError(
            f"{len(problems)} of {len(decoded)} recordings of split '{split}' cannot be used:\n{listing}\nRepair or"
            " remove them, or go on without them with `--skip_bad_audio`."
        )
    if problems:
        logger.warning("Skipped %d of %d recordings of split '%s'.", len(problems), len(decoded), split)
        decoded = decoded.select([i for i in range(len(decoded)) if i not in problems])
    return decoded.remove_columns("problem").with_format("numpy", columns=["audio"], output_all_columns=True)


def read_features(arguments: DataArguments, split: str, column: str) -> Dataset:
    """One split with precomputed features: `input_features` (still encoded), `text`, `row`.

    Raises:
        ValueError: if a column is missing; lists every row without a transcript.
    """
    dataset = load_split(arguments, split)
    check_columns(dataset, [("features_column", column), ("text_column", arguments.text_column)], arguments.dataset)
    refuse_missing(list(dataset[arguments.text_column]), arguments.text_column, split, "transcript")
    kept = [name for name in ("duration", "speaker", "file_name") if name in dataset.column_names]
    dataset = dataset.select_columns([column, arguments.text_column, *kept])
    dataset = dataset.add_column("row", list(range(len(dataset))))
    dataset = dataset.cast_column(arguments.text_column, Value("string"))  # digits alone are read as numbers
    return dataset.rename_columns({column: "input_features", arguments.text_column: "text"})


def join(datasets: list[Dataset]) -> Dataset:
    """Concatenate training splits of [`read_split`] or [`read_features`] and renumber their rows.

    Only columns that all splits share are kept. A split given twice is seen twice per epoch, each time with different
    augmentation.
    """
    if len(datasets) == 1:
        return datasets[0]
    columns = [name for name in datasets[0].column_names if all(name in other.column_names for other in datasets)]
    joined = concatenate_datasets([dataset.select_columns(columns) for dataset in datasets])
    return joined.remove_columns("row").add_column("row", list(range(len(joined))))


def warn_of_shared_speakers(splits: dict[str, Dataset]) -> None:
    """Warn if splits share speakers, by the column `speaker`: their scores then reward memorised voices."""
    speakers = {name: set(split["speaker"]) for name, split in splits.items() if "speaker" in split.column_names}
    for one, other in combinations(speakers, 2):
        shared = sorted(map(str, (speakers[one] & speakers[other]) - {None, ""}))
        if shared:
            logger.warning(
                "%d speakers are in split '%s' and in '%s' too, %s the first: on strangers figures will be lower.",
                len(shared), one, other, shared[0],
            )  # fmt: skip


def tokens_needed(
    processor: CalmProcessor, seconds: np.ndarray, texts: list[str] | None, augmentation: WaveformAugmentation | None
) -> np.ndarray:
    """The most lexical plus acoustic tokens (N,) that utterances of the given durations (N,), in s, can need."""
    longest = seconds if augmentation is None else augmentation.longest(seconds)
    tokens = np.ceil(longest / processor.feature_extractor.seconds_per_token)
    if texts is None:
        return tokens
    # In parts and without padding: one of a million transcripts may be very long.
    parts = (processor.tokenizer(texts[first : first + 1000]) for first in range(0, len(texts), 1000))
    return tokens + np.array([len(ids) for part in parts for ids in part["input_ids"]])


def refuse_long(
    dataset: Dataset,
    split: str,
    processor: CalmProcessor,
    max_tokens: int | None,
    augmentation: WaveformAugmentation | None = None,
) -> None:
    """Reject utterances that exceed the language model's positions before the first step, not during training.

    Args:
        dataset: with `duration` (s) and, if it is used, `text`.
        max_tokens: positions available; None for no limit.
        augmentation: may lengthen clips.

    Raises:
        ValueError: lists the rows.
    """
    if max_tokens is None or "duration" not in dataset.column_names:
        return
    texts = list(dataset["text"]) if "text" in dataset.column_names else None
    durations = np.asarray(dataset["duration"])
    tokens = tokens_needed(processor, durations, texts, augmentation)
    long = {i: durations[i] for i in np.flatnonzero(tokens > max_tokens).tolist()}
    if long:
        listing = "\n".join(f"  row {i}: {duration:.1f} s" for i, duration in long.items())
        raise ValueError(
            f"{len(long)} of {len(dataset)} recordings of split '{split}', with their words"
            f"{' and as long as augmentation makes them' * (augmentation is not None)}, do not fit into the"
            f" {max_tokens} positions of this language model:\n{listing}\nCut them into utterances, or leave them out."
        )


def refuse_missing(values: list, column: str, split: str, what: str) -> None:
    """Reject rows without a value.

    Raises:
        ValueError: lists the rows where the value is None, NaN or blank.
    """
    missing = [i for i, value in enumerate(values) if value is None or value != value or not str(value).strip()]
    if missing:
        raise ValueError(f"Rows {missing} of split '{split}' have no {what} in '{column}'. Fill or remove them.")


def read_labels(dataset: Dataset, columns: list[str], split: str) -> list:
    """The label of every row: a class (`str` or `int`) or a number for one column, a list of numbers for several.

    `ClassLabel` values and booleans become names.

    Raises:
        ValueError: lists the rows without a label; names a column that should hold numbers but does not, or that
            mixes types.
    """
    values = {}
    for name in columns:
        feature, values[name] = dataset.features[name], list(dataset[name])
        if isinstance(feature, ClassLabel):  # where -1 marks a missing label
            values[name] = [None if i is None or i < 0 else feature.int2str(i) for i in values[name]]
        refuse_missing(values[name], name, split, "label")
        if len(columns) > 1 and not all(isinstance(value, (bool, int, float)) for value in values[name]):
            raise ValueError(
                f"Column '{name}' of split '{split}' holds {type(values[name][0]).__name__}, and several label columns"
                " hold numbers: 0 and 1 for classes, or scores. For classes by name give one `--label_column`."
            )
    if len(columns) > 1:
        return [[float(value) for value in row] for row in zip(*values.values(), strict=True)]
    labels = [str(value) if isinstance(value, bool) else value for value in values[columns[0]]]
    kinds = {type(label) for label in labels}
    if len(kinds) > 1 and not kinds <= {int, float}:
        raise ValueError(
            f"Column '{columns[0]}' of split '{split}' mixes {' and '.join(sorted(kind.__name__ for kind in kinds))}."
            " Write all labels as text, or all as numbers."
        )
    return labels


def stamp_files(dataset: Dataset, column: str) -> str:
    """A hash of the size and modification time of every audio file, by which the cache detects changed files."""
    paths = dataset.select_columns(column).flatten()
    name = f"{column}.path" if f"{column}.path" in paths.column_names else column
    stamp = hashlib.sha256()
    if isinstance(paths.features[name], Value) and paths.features[name].dtype.endswith("string"):
        for path in paths.select_columns(name)[name]:
            if path is not None and os.path.isfile(path):
                status = os.stat(path)
                stamp.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return stamp.hexdigest()


def decode_row(row: dict, column: str, sampling_rate: int, stamp: str) -> dict:
    """Decode one row; a file that cannot be read gives an empty waveform and the reason in `problem`.

    Args:
        stamp: from [`stamp_files`]; unused except by the cache of `datasets`, which is keyed on the arguments.
    """
    waveform, problem = np.zeros(0, np.float32), None
    try:
        if row[column] is None:
            problem = f"names no file in '{column}'"
        else:
            waveform = load_audio(row[column], sampling_rate=sampling_rate)
    except (AudioError, TypeError) as error:
        problem = str(error)
    return {"audio": waveform, "duration": len(waveform) / sampling_rate, "problem": problem}
