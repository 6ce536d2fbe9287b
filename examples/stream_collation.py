"""Collation of a stream's undecoded rows: decoding, refusal of unusable rows, batching."""

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
    """Decodes the rows of a batch, drops unusable ones, and passes the others to `collator`.

    A refused row makes its batch smaller: the composition and the number of batches must not depend on what only
    decoding reveals.

    Args:
        collator: called with decoded rows; they have `row`, their number in the data set, and `file_name`, their
            location.
        processor: its tokenizer must know at least one piece of every transcript.
        refused: (workers, reasons) long, in shared memory: counts of refused rows. Workers count concurrently, so each
            has its own counts.
        skip_bad_audio: whether to continue without refused rows.
        features: whether the rows hold features instead of audio.
        max_tokens: positions of the language model, if it runs; an utterance that could exceed them, as lengthened by
            augmentation, would end the run.

    Raises (when called):
        ValueError: for a refused row, naming it and its shard, unless `skip_bad_audio`; if a whole batch is refused.
    """

    collator: SeededCollator
    processor: CalmProcessor
    refused: torch.Tensor
    skip_bad_audio: bool = False
    features: bool = False
    max_tokens: int | None = None

    def __call__(self, rows: list[dict | None]) -> dict[str, torch.Tensor]:
        if rows[0] is None:
            return {}  # skipped; `Trainer` discards it
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
        """None and the decoded row, or the reason for refusal and its details."""
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
