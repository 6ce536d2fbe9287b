"""Data collators: rows of a data set in, batches of tensors out. All randomness of a training step is drawn here.

A row holds `audio` (whatever `as_waveform` takes), `text`, and for classification `label`. B clips, P patches, D
values in a patch, T acoustic tokens, L lexical tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling

from .audio import as_waveform
from .augmentation import SpecAugment, WaveformAugmentation


@dataclass
class _Collator:
    """What both collators share: waveforms and transcripts to a batch, augmented where asked."""

    processor: Any
    waveform_augmentation: WaveformAugmentation | None = None
    spec_augment: SpecAugment | None = None

    def _batch(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        extractor = self.processor.feature_extractor
        clips = [row.get("audio") for row in rows]
        texts = [row.get("text") for row in rows]
        batch = {}
        if any(text is not None for text in texts):
            batch.update(self.processor(text=[text or "" for text in texts], return_tensors="pt"))
            given = torch.tensor([text is not None for text in texts])
            batch["attention_mask"] = batch["attention_mask"] * given[:, None]
        if any(clip is not None for clip in clips):
            augmented = self.waveform_augmentation is not None or self.spec_augment is not None
            generator = np.random.default_rng(np.random.randint(2**31)) if augmented else None
            waveforms = []
            for clip in clips:
                waveform = np.zeros(1, np.float32) if clip is None else as_waveform(clip, extractor.sampling_rate)
                if self.waveform_augmentation is not None and clip is not None:
                    waveform = self.waveform_augmentation(waveform, extractor.sampling_rate, generator)
                waveforms.append(waveform)
            features = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            given = torch.tensor([clip is not None for clip in clips])
            features["input_features_mask"] = features["input_features_mask"] * given[:, None]
            if self.spec_augment is not None:
                log_mel = extractor.unpatchify(features["input_features"])
                num_frames = torch.tensor([extractor.count_frames(len(waveform)) for waveform in waveforms])
                features["input_features"] = extractor.patchify(self.spec_augment(log_mel, num_frames, generator))
            batch.update(features)
        if not batch:
            raise ValueError("No row of the batch has `audio` or `text`.")
        return batch


@dataclass
class DataCollatorForCalmPreTraining(_Collator):
    """Batches for [`CalmForPreTraining`]: every row has audio and a transcript.

    Args:
        processor ([`CalmProcessor`]): makes the tensors.
        waveform_augmentation, spec_augment (*optional*): for training.
        mlm_probability (`float`, defaults to 0.15): share of lexical tokens masked (80 % [MASK], 10 % random, 10 %
            kept: Devlin et al. 2019, section 3.1); 0 gives no `labels`.
        mask_time_prob (`float`, defaults to 0.15): share of acoustic tokens masked, as Wav2Vec2 does; 0 gives no
            `mask_time_indices`.
        mask_time_length (`int`, defaults to 1): acoustic tokens in a masked span.
        draw_pairs (`bool`, defaults to `True`): whether to draw the neighbouring windows, `pair_indices`. With every
            mask off and no pairs, as in evaluation, a batch is a function of its rows.

    Returns (from a call):
        The model's inputs; see [`CalmForPreTraining`].
    """

    mlm_probability: float = 0.15
    mask_time_prob: float = 0.15
    mask_time_length: int = 1
    draw_pairs: bool = True

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        for index, row in enumerate(rows):
            if not (row.get("text") or "").strip():
                raise ValueError(f"Row {index} of the batch has no transcript; pretraining needs one a clip.")
            if row.get("audio") is None:
                raise ValueError(f"Row {index} of the batch has no audio; pretraining needs a clip a row.")
        batch = self._batch(rows)
        if self.mlm_probability > 0:
            masking = DataCollatorForLanguageModeling(self.processor.tokenizer, mlm_probability=self.mlm_probability)
            batch["input_ids"], batch["labels"] = masking.torch_mask_tokens(batch["input_ids"].clone())
        size = self.processor.feature_extractor.patches_per_token
        tokens_mask = batch["input_features_mask"].unflatten(1, (-1, size)).any(-1)  # (B, T)
        if self.mask_time_prob > 0:
            # A batch too short for a span still has the key: every rank must compute the same terms.
            batch["mask_time_indices"] = torch.zeros_like(tokens_mask)
            if tokens_mask.shape[1] >= self.mask_time_length:
                from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices  # slow to import

                masked = _compute_mask_indices(
                    tuple(tokens_mask.shape),
                    self.mask_time_prob,
                    self.mask_time_length,
                    attention_mask=tokens_mask.long(),
                    min_masks=1,
                )
                batch["mask_time_indices"] = torch.from_numpy(masked) & tokens_mask
        if self.draw_pairs:
            counts = tokens_mask.sum(-1)
            first = (torch.rand(len(rows)) * (counts - 1)).long()  # uniform over the pairs of a clip
            batch["pair_indices"] = torch.where(counts > 1, first, -1)
        return batch


@dataclass
class DataCollatorForCalmClassification(_Collator):
    """Batches for [`CalmForSequenceClassification`]: rows have audio, text or both, and a `label`.

    Args:
        processor ([`CalmProcessor`]): makes the tensors.
        waveform_augmentation, spec_augment (*optional*): for training.

    Returns (from a call):
        The model's inputs; `labels` where the rows have a `label`, long for classes, float for targets.
    """

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        for index, row in enumerate(rows):
            if row.get("audio") is None and row.get("text") is None:
                raise ValueError(f"Row {index} of the batch has neither audio nor text.")
        batch = self._batch(rows)
        if rows[0].get("label") is not None:
            labels = np.asarray([row["label"] for row in rows])
            batch["labels"] = torch.tensor(labels, dtype=torch.long if labels.dtype.kind in "iu" else torch.float32)
        return batch
