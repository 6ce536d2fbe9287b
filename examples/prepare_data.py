"""Convert any data set to parquet shards: validated, mono, at the model's sampling rate, refused rows reported.

    python examples/prepare_data.py --dataset FOLDER --output_dir SHARDS --num_proc 8
    accelerate launch examples/pretrain.py --dataset SHARDS --streaming

Each shard is written atomically to `SHARDS/.partial`; a split moves to `SHARDS/<split>` when it is complete. Rerunning
an interrupted preparation writes only the missing shards and those whose data changed.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset
from options import parse_arguments, write_json
from scoring import load_processor
from shard_writer import ENCODINGS, Job, ShardWriter, read_report
from shards import REPORT
from speech_data import check_columns, stamp_files
from speech_features import extractor_settings
from speech_sources import DataArguments, load_split
from tqdm import tqdm
from training import ModelArguments

from processing import CalmFeatureExtractor

logger = logging.getLogger(__name__)


@dataclass
class PreparationArguments:
    """How a data set is prepared."""

    output_dir: str = field(metadata={"help": "Folder of the shards."})
    splits: list[str] = field(
        default_factory=lambda: ["train", "validation", "test"],
        metadata={"help": "What to prepare of train, validation and test; --train_split and its siblings name them."},
    )
    sampling_rate: int = field(default=16000, metadata={"help": "Of the audio in the shards, in Hz."})
    audio_format: str = field(
        default="flac",
        metadata={
            "help": "flac (16 bits, about half the size), int16 or float32 (WAV), none (with --features).",
            "choices": [*ENCODINGS, "none"],
        },
    )
    features: str | None = field(
        default=None,
        metadata={"help": "Add what the feature extractor makes, in this type.", "choices": ["float16", "float32"]},
    )
    audio_config: str = field(default="small", metadata={"help": "The SpecTran that the features are for."})
    model: str | None = field(default=None, metadata={"help": "Instead of it, the checkpoint that they are for."})
    keep_untranscribed: bool = field(
        default=False, metadata={"help": "Keep clips without a transcript, which a classifier may not need."}
    )
    rows_per_shard: int = field(default=2048, metadata={"help": "Rows of the data set in a shard."})
    num_proc: int = field(default=1, metadata={"help": "Processes, each of which writes one shard at a time."})

    def extractor(self) -> CalmFeatureExtractor | None:
        """The extractor that computes the features, if any.

        Raises:
            ValueError: if there is neither audio nor features to write, or the extractor has another sampling rate.
        """
        if self.features is None:
            if self.audio_format == "none":
                raise ValueError("`--audio_format none` leaves nothing to train on; add `--features float16`.")
            return None
        if self.model is not None:
            extractor = load_processor(self.model).feature_extractor
        else:
            extractor = CalmFeatureExtractor.from_audio_config(
                ModelArguments(audio_config=self.audio_config).spectran()
            )
        if extractor.sampling_rate != self.sampling_rate:
            raise ValueError(f"The features are for {extractor.sampling_rate} Hz; give it as `--sampling_rate`.")
        return extractor


def prepare_split(name: str, arguments: PreparationArguments, data: DataArguments) -> dict:
    """Write the shards of a split, or the missing ones.

    Returns:
        `clips`, `hours`, `shards`, and the `row`, `file`, `kind` and `reason` of each `refused` row.

    Raises:
        ValueError: if the split was prepared from other data or with other settings, or all its rows are refused.
    """
    dataset = load_split(data, getattr(data, f"{name}_split"))
    check_columns(dataset, [("audio_column", data.audio_column)], data.dataset)
    transcribed = data.text_column in dataset.column_names and not arguments.keep_untranscribed
    extractor = arguments.extractor()
    writer = ShardWriter(
        dataset,
        stamp(dataset, arguments, data, extractor),
        data.audio_column,
        data.text_column if transcribed else None,
        arguments.sampling_rate,
        None if arguments.audio_format == "none" else arguments.audio_format,
        extractor,
        arguments.features or "",
    )
    ready = Path(arguments.output_dir) / name
    folder = ready if ready.exists() else ready.parent / ".partial" / name
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(dataset), arguments.rows_per_shard)
    names = [f"{name}-{i:05d}-of-{len(starts):05d}.parquet" for i in range(len(starts))]
    jobs = [
        Job(folder / file, start, min(start + arguments.rows_per_shard, len(dataset)))
        for file, start in zip(names, starts, strict=True)
    ]
    reports = {job: read_report(job.file) if job.file.exists() else None for job in jobs}
    missing = [job for job, report in reports.items() if report is None or report["stamp"] != writer.stamp]
    others = set(folder.glob("*.parquet")) - {job.file for job in jobs if job not in missing}
    if ready.exists() and (missing or others):
        raise ValueError(
            f"'{ready}' was prepared from other data or settings. Choose another `--output_dir`, or remove it."
        )
    for file in (*others, *folder.glob("*.partial")):
        file.unlink()
    if others:
        logger.warning("'%s': the data or the settings changed; %d shards are written anew.", name, len(others))
    run(writer, missing, arguments.num_proc, f"Preparing '{name}'")

    reports = [read_report(job.file) for job in jobs]
    refused = [row for report in reports for row in report["refused"]]
    clips = sum(report["clips"] for report in reports)
    if clips == 0:
        listing = "\n".join(f"  row {row['row']}: {row['reason']}" for row in refused[:10])
        raise ValueError(f"All {len(dataset)} rows of split '{name}' are refused, such as these:\n{listing}")
    if folder != ready:
        folder.rename(ready)
        with suppress(OSError):  # another split is being prepared there
            folder.parent.rmdir()
    hours = sum(report["seconds"] for report in reports) / 3600
    return {"clips": clips, "hours": round(hours, 4), "shards": len(jobs), "refused": refused}


def stamp(dataset: Dataset, arguments: PreparationArguments, data: DataArguments, extractor) -> str:
    """A hash of everything that determines the shards: the rows, the audio files, the settings."""
    free = ("output_dir", "splits", "num_proc", "audio_config", "model")
    settings = {name: value for name, value in asdict(arguments).items() if name not in free}
    settings |= {"audio_column": data.audio_column, "text_column": data.text_column}
    settings["extractor"] = None if extractor is None else extractor_settings(extractor)
    parts = (dataset._fingerprint, stamp_files(dataset, data.audio_column), json.dumps(settings, sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run(writer: ShardWriter, jobs: list[Job], num_proc: int, description: str) -> None:
    """Write the shards, in several processes or in this one."""
    with tqdm(total=sum(job.stop - job.start for job in jobs), desc=description, unit=" clips") as progress:
        if num_proc == 1:
            for job in map(writer.write, jobs):
                progress.update(job.stop - job.start)
            return
        with ProcessPoolExecutor(num_proc, initializer=_take_over, initargs=(writer,)) as pool:
            for job in pool.map(_write, jobs):
                progress.update(job.stop - job.start)


def _take_over(writer: ShardWriter) -> None:
    global _writer  # sent once to each process, not with every shard
    _writer = writer

    def end_with_parent():  # otherwise a process whose parent was killed would keep writing and then wait forever
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write(job: Job) -> Job:
    return _writer.write(job)


def main(argv: list[str] | None = None) -> dict:
    arguments, data = parse_arguments(PreparationArguments, DataArguments, arguments=argv)
    logging.basicConfig(level=logging.INFO)
    unknown = sorted(set(arguments.splits) - {"train", "validation", "test"})
    if unknown:
        raise ValueError(
            f"`--splits {unknown[0]}`: there are train, validation and test; `--train_split` names others."
        )
    file, report = Path(arguments.output_dir) / REPORT, {}
    for name in arguments.splits:
        prepared = prepare_split(name, arguments, data)
        others = json.loads(file.read_text())["splits"] if file.exists() else {}  # possibly prepared in parallel
        report = {"settings": asdict(arguments) | asdict(data), "splits": others | {name: prepared}}
        write_json(file, report)
    print(f"{'split':<12}{'clips':>10}{'hours':>10}{'shards':>8}{'refused':>9}")
    for name, split in report["splits"].items():
        kinds = Counter(row["kind"] for row in split["refused"])
        told = "".join(f"  {count} for the {kind}" for kind, count in kinds.items())
        counts = f"{split['clips']:>10,}{split['hours']:>10.2f}{split['shards']:>8}{len(split['refused']):>9}"
        print(f"{name:<12}{counts}{told}")
    for name, split in report["splits"].items():
        for row in split["refused"][:10]:
            print(f"{name}, row {row['row']}: {row['reason']}")
    print(f"All refused rows are in {file}.")
    return report


if __name__ == "__main__":
    main()
