"""From the undecoded rows of a stream to a batch: decoding, and refusals."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from speech_data import tokens_needed
from torch.utils.data import get_worker_info

from processing import AudioError, CalmProcessor, SeededCollator, load_audio
from processing.collation import as_patches

logger = logging.getLogger(__name__)

REASONS = ("audio", "transcript", "tokenizer", "length")  # why a row is refused


@dataclass
class StreamCollator:
    """Decodes the rows of a batch, leaves out those that cannot be used, and hands the others to `collator`.

    A refused row makes its batch smaller: which rows meet in a batch, and how many batches there are, must not depend
    on what only decoding shows.

    Args:
        collator: called with decoded rows; they have `row`, their number in the data set, and `file_name`, where they
            are from.
        processor: its tokenizer must know some piece of every transcript.
        refused: (workers, reasons) long, in shared memory: rows refused. Workers count at the same time, so that each
            has numbers of its own.
        skip_bad_audio: whether to go on without refused rows.
        features: whether the rows hold features instead of audio.
        max_tokens: that the language model has room for, where it runs; an utterance that could need more, as long as
            augmentation makes it, would end the run.

    Raises (a call):
        ValueError: for a refused row, naming it and its shard, unless `skip_bad_audio`; for a batch of nothing else.
    """

    collator: SeededCollator
    processor: CalmProcessor
    refused: torch.Tensor
    skip_bad_audio: bool = False
    features: bool = False
    max_tokens: int | None = None

    def __call__(self, rows: list[dict | None]) -> dict[str, torch.Tensor]:
        if rows[0] is None:
            return {}  # skipped; `Trainer` throws it away
        usable, problems = [], []
        for row in rows:
            reason, found = self._decode(row)
            if reason is None:
                usable.append(found)
                continue
            problems.append(f"{row['id']}: {found}")
            if not self.skip_bad_audio:
                raise ValueError(
                    f"Refused {problems[0]}. Repair or remove it, go on without such rows with `--skip_bad_audio`, or"
                    " let `examples/prepare_data.py` leave them out."
                )
            info = get_worker_info()
            self.refused[info.id if info else 0, REASONS.index(reason)] += 1
            logger.warning("Refused (%s): %s", reason, problems[-1])
        if not usable:
            listing = "\n".join(f"  {problem}" for problem in problems)
            raise ValueError(
                f"All {len(rows)} rows of a batch were refused:\n{listing}\nSo many bad rows are left out by"
                " `examples/prepare_data.py`."
            )
        return self.collator(usable)

    def _decode(self, row: dict) -> tuple[str | None, dict | str]:
        """None and the row decoded; or the reason of a refusal, and what is wrong."""
        text, audio, tokenizer = row["text"], row["audio"], self.processor.tokenizer
        if text is None or not str(text).strip():
            return "transcript", "it has none"
        ids = tokenizer(str(text), add_special_tokens=False)["input_ids"]
        if set(tokenizer.all_special_ids).issuperset(ids):
            return "tokenizer", f"it knows no piece of the transcript '{text}'"
        try:
            found = {"text": str(text), "row": row["row"], "file_name": row["id"]}
            if self.features:
                found["input_features"] = as_patches(audio)
                extractor = self.processor.feature_extractor
                tokens = len(found["input_features"]) / extractor.patches_per_token
                return self._check_length(found, tokens * extractor.seconds_per_token)
            if not isinstance(audio, Mapping) or audio.get("bytes") is None:
                return "audio", "no bytes of audio; files that a shard names are not opened"
            rate = self.processor.feature_extractor.sampling_rate
            found["audio"] = load_audio(audio, rate)
            return self._check_length(found, len(found["audio"]) / rate)
        except (AudioError, TypeError, ValueError) as error:
            return "audio", str(error)

    def _check_length(self, row: dict, seconds: float) -> tuple[str | None, dict | str]:
        augmentation = self.collator.collator.waveform_augmentation
        if self.max_tokens is not None:
            (tokens,) = tokens_needed(self.processor, np.array([seconds]), [row["text"]], augmentation)
            if tokens > self.max_tokens:
                return "length", f"{seconds:.1f} s and its words may need {tokens:.0f} of {self.max_tokens} positions"
        return None, row
