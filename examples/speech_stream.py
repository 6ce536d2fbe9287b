"""Training on a stream of shards: any amount of speech, with identical batches when a run is resumed.

Existing tools do not combine to achieve this. `accelerate` has rank 0 read for all ranks, or every rank read
everything; `datasets.split_dataset_by_node` gives the ranks unequal numbers of rows, so that one waits forever for a
step that another does not take; the shuffle buffer of `datasets` is lost when a run stops (see
`IterableDataset.state_dict`, on which torchdata's `StatefulDataLoader` relies), and `Trainer` decodes every clip that
it skips. Here the rows of all shards are counted first, and every batch is a function of (seed, epoch, rank, worker,
position in the epoch):

1. The blocks of all shards are permuted in every epoch, and their rows are split into one contiguous range for each
   worker of each rank, in whole batches: all ranks take the same number of steps, and no row is repeated. Fewer rows
   than one batch of all ranks are dropped, different ones in every epoch.
2. A worker reads its range in windows of `--shuffle_buffer` rows, still encoded, shuffles each, and cuts it into
   batches.
3. The clips of a batch are decoded when the batch is collated; see [`StreamCollator`].

A worker of a resumed run starts at the window of its range where it stopped: earlier rows are not even read.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from shards import Block, column_names, pick, read_rows
from speech_sources import DataArguments
from stream_collation import REASONS, StreamCollator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import TrainingArguments

from processing import CalmProcessor, SeededCollator


@dataclass(eq=False)
class SpeechStream(IterableDataset):
    """The rows of one rank in each epoch; every `batch_size` consecutive rows form a batch.

    All batches have the same number of clips, since a clip is contrasted with the others in its batch: with batches of
    a fixed total duration, long clips would have fewer negatives, an easier task, and a loss that is not comparable.
    `group_by_length` reduces padding: the clips of a window are sorted by length before they are cut into batches, and
    the batches are shuffled in the same order on all ranks, which thus process clips of similar length at the same
    time and do not wait for each other.

    Args:
        blocks: from [`count_rows`], the same on every rank.
        arguments: names the columns.
        shuffle_buffer: rows in a window, rounded down to whole batches, at least one.
        features_column: used instead of the audio.
        length_column: gives the length of a clip if the shards have it; otherwise the size of the encoded clip does.

    Raises:
        ValueError: if there are too few rows for one batch on every rank, or a column is missing.
    """

    blocks: list[Block]
    arguments: DataArguments
    batch_size: int
    shuffle_buffer: int = 1024
    seed: int = 0
    rank: int = 0
    num_ranks: int = 1
    group_by_length: bool = False
    length_column: str = "duration"
    features_column: str | None = None

    def __post_init__(self):
        self.num_rows = sum(block.rows for block in self.blocks)
        if self.num_steps == 0:
            raise ValueError(
                f"The shards hold {self.num_rows} rows, fewer than the {self.batch_size * self.num_ranks} of one batch"
                " of all ranks, and incomplete batches are dropped. Lower `--per_device_train_batch_size`."
            )
        self.skip = (0, 0)  # epoch, and how many of its batches were already trained on
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # read by persistent workers
        names = column_names(self.blocks[0].file)
        option = "features_column" if self.features_column else "audio_column"
        self.audio_column = self.features_column or self.arguments.audio_column
        for name, column in ((option, self.audio_column), ("text_column", self.arguments.text_column)):
            if column not in names and column.split(".")[0] not in names:
                raise ValueError(
                    f"'{self.blocks[0].file}' has no column '{column}'; it has {names}. Name the right one with"
                    f" `--{name}`."
                )
        self.columns = [self.audio_column, self.arguments.text_column]
        self.columns += [self.length_column] * (self.length_column in names)

    @property
    def digest(self) -> str:
        """A hash of the streamed data: the names of the shards, regardless of their folder, and their rows."""
        shards = [(PurePosixPath(block.file).name, block.start, block.rows) for block in self.blocks]
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]

    @property
    def num_steps(self) -> int:
        """Batches per rank and epoch."""
        return self.num_rows // (self.batch_size * self.num_ranks)

    def __len__(self) -> int:
        """Rows of this rank per epoch."""
        return self.num_steps * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict | None]:
        """The rows of this worker, None where skipped.

        `audio` is undecoded, `row` is the global row number, `id` describes the row's location.
        """
        epoch, info = int(self._epoch), get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        # A DataLoader takes batches from its workers in turn: these are the positions of this worker's in the epoch.
        places = range(worker, self.num_steps, num_workers)
        skipped = len(range(worker, self.skip[1], num_workers)) if epoch == self.skip[0] else 0
        for _ in range(skipped * self.batch_size):
            yield None

        before = self.rank * self.num_steps + sum(len(range(w, self.num_steps, num_workers)) for w in range(worker))
        window = max(1, self.shuffle_buffer // self.batch_size)  # batches
        opened = skipped // window * window
        rows = self._read(epoch, (before + opened) * self.batch_size, (before + len(places)) * self.batch_size)
        for start in range(opened, len(places), window):
            share = places[start : start + window]
            batches = self._shuffle(list(islice(rows, len(share) * self.batch_size)), epoch, worker, start)
            for number in range(start, start + len(share)):
                batch = batches.popleft()  # releases the memory of each batch
                if number >= skipped:
                    yield from batch

    def _draws(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _shuffle(self, rows: list[dict], epoch: int, worker: int, window: int) -> deque[list[dict]]:
        """A window of rows as batches in random order."""
        order = self._draws(epoch, worker, window, self.rank).permutation(len(rows))
        if self.group_by_length:
            order = sorted(order, key=lambda i: rows[i]["length"])
        batches = [[rows[i] for i in order[k : k + self.batch_size]] for k in range(0, len(rows), self.batch_size)]
        if self.group_by_length:  # the same permutation on all ranks
            order = self._draws(epoch, worker, window).permutation(len(batches))
            batches = [batches[i] for i in order]
        return deque(batches)

    def _read(self, epoch: int, start: int, stop: int) -> Iterator[dict]:
        """Rows `start` to `stop` of an epoch."""
        sizes = np.array([block.rows for block in self.blocks])
        numbers = np.cumsum(sizes) - sizes  # of the first row of each block
        end = 0
        for i in self._draws(epoch).permutation(len(self.blocks)):
            block = self.blocks[i]
            end += block.rows
            first, last = max(start - end + block.rows, 0), min(stop - end + block.rows, block.rows)
            if first < last:
                rows = read_rows(block.file, block.start + first, block.start + last, self.columns)
                for offset, row in enumerate(rows, first):
                    yield self._row(row, block.file, block.start + offset) | {"row": int(numbers[i]) + offset}

    def _row(self, row: dict, file: str, position: int) -> dict:
        audio = pick(row, self.audio_column)
        if isinstance(audio, bytes) and not self.features_column:
            audio = {"bytes": audio, "path": None}
        encoded = audio.get("bytes") if isinstance(audio, Mapping) else audio
        length = pick(row, self.length_column)
        name = row.get("__key__") or (audio.get("path") if isinstance(audio, Mapping) else None)
        return {
            "audio": audio,
            "text": pick(row, self.arguments.text_column),
            "length": length if isinstance(length, (int, float)) else len(encoded or b""),
            "id": f"row {position} of '{file}'" + (f" ('{name}')" if name else ""),
        }

    def dataloader(
        self, collator: SeededCollator, processor: CalmProcessor, training: TrainingArguments, max_tokens: int | None
    ) -> DataLoader:
        """The batches of this rank on its device, which `accelerate` does not split any further.

        Args:
            collator: called with decoded rows; see [`StreamCollator`].
            max_tokens: positions of the language model, if it runs.
        """
        self.refused = torch.zeros(max(training.dataloader_num_workers, 1), len(REASONS), dtype=torch.long)
        loader = DataLoader(
            self,
            batch_size=self.batch_size,
            drop_last=True,
            collate_fn=StreamCollator(
                collator,
                processor,
                self.refused.share_memory_(),
                skip_bad_audio=self.arguments.skip_bad_audio,
                features=self.features_column is not None,
                max_tokens=max_tokens,
            ),
            num_workers=training.dataloader_num_workers,
            pin_memory=training.dataloader_pin_memory,
            persistent_workers=training.dataloader_persistent_workers,
            prefetch_factor=training.dataloader_prefetch_factor,
            multiprocessing_context=training.dataloader_multiprocessing_context,
        )
        return prepare_data_loader(
            loader,
            training.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
            non_blocking=training.accelerator_config.non_blocking,
        )
