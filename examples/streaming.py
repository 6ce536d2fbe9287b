"""Streaming for pretraining: options, the stream of a rank, and how a resumed run finds its position."""

import logging
from dataclasses import dataclass, field

from accelerate.utils import broadcast_object_list
from shards import count_rows, find_shards
from speech_sources import DataArguments
from speech_stream import SpeechStream
from stream_collation import REASONS
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

logger = logging.getLogger(__name__)


@dataclass
class StreamingArguments:
    """Training on more speech than can be decoded in advance."""

    streaming: bool = field(
        default=False, metadata={"help": "Decode the training split while training, from parquet or tar shards."}
    )
    shuffle_buffer: int = field(
        default=1024, metadata={"help": "Rows that a worker holds, still encoded, and shuffles at a time."}
    )
    features_column: str | None = field(
        default=None, metadata={"help": "Train on these features of prepare_data.py instead of the audio."}
    )
    validation_dataset: str | None = field(
        default=None, metadata={"help": "Where the validation split is, if not in --dataset. It is decoded at once."}
    )


def open_stream(data: DataArguments, streaming: StreamingArguments, training: TrainingArguments) -> SpeechStream:
    """The stream of this rank; only rank 0 finds and counts the shards.

    Raises:
        ValueError: if there are no shards, or they cannot be read; see also [`SpeechStream`].
    """
    blocks = [None]
    if training.process_index == 0:
        files = find_shards(data.dataset, data.train_split, data.dataset_config)
        blocks = [count_rows(files)]
        logger.info("Streaming %d rows of %d shards.", sum(block.rows for block in blocks[0]), len(files))
    return SpeechStream(
        broadcast_object_list(blocks)[0],
        data,
        batch_size=training.train_batch_size,
        shuffle_buffer=streaming.shuffle_buffer,
        seed=training.seed,
        rank=training.process_index,
        num_ranks=training.world_size,
        group_by_length=training.train_sampling_strategy == "group_by_length",
        length_column=training.length_column_name,
        features_column=streaming.features_column,
    )


class StreamCallback(TrainerCallback, ExportableState):
    """Moves a resumed stream to where it stopped, and reports the refused rows after every epoch.

    Raises:
        ValueError: if a run is resumed with settings that change the batches.
    """

    def __init__(self):
        self.settings = {}

    def state(self) -> dict:
        """The state that `Trainer` saves in a checkpoint."""
        return {"args": {}, "attributes": {"settings": self.settings}}

    def on_train_begin(self, args, state, control, train_dataloader, **kwargs):
        """Skip the batches that the checkpoint was trained on; `Trainer` discards as many empty ones."""
        stream = train_dataloader.dataset
        self.settings = {
            "num_rows": stream.num_rows,
            "shards_digest": stream.digest,
            "num_ranks": stream.num_ranks,
            "dataloader_num_workers": args.dataloader_num_workers,
            "per_device_train_batch_size": stream.batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "shuffle_buffer": stream.shuffle_buffer,
            "seed": stream.seed,
            "group_by_length": stream.group_by_length,
        }
        stored = state.stateful_callbacks.get(type(self).__name__, {})
        before = stored.get("attributes", {}).get("settings", {})
        changed = [name for name, value in self.settings.items() if before.get(name) != value]
        if state.global_step and changed:
            told = ", ".join(f"{name} was {before.get(name)} and is {self.settings[name]}" for name in changed)
            raise ValueError(
                f"The stream would not go on where it stopped: {told}. Resume with what was, or begin a new run from"
                " the checkpoint with `--model`."
            )
        if not args.ignore_data_skip:
            epoch, steps = divmod(state.global_step, -(-stream.num_steps // args.gradient_accumulation_steps))
            stream.skip = (epoch, steps * args.gradient_accumulation_steps)

    def on_epoch_end(self, args, state, control, train_dataloader, **kwargs):
        """Report how many rows were refused."""
        counts = train_dataloader.dataset.refused.sum(0).tolist()
        if any(counts):
            told = ", ".join(f"{count} for their {reason}" for reason, count in zip(REASONS, counts, strict=True))
            logger.warning("Refused %d rows on rank %d so far: %s.", sum(counts), args.process_index, told)
