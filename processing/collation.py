"""Data collators: dataset rows in, batches of tensors out. All randomness of a training step is drawn here.

A row holds `audio` (anything `as_waveform` takes) or precomputed `input_features` (the real patches of a clip, (P, D),
or a `.npy` file of them as bytes); `text`; and for classification `label`. A batch is a function of its rows and one
`numpy.random.Generator`; [`SeededCollator`] makes that generator a function of the seed, the epoch and the rows.

B clips, P patches, D values in a patch, T acoustic tokens, L lexical tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling

from .audio import as_waveform, audio_of
from .augmentation import SpecAugment, WaveformAugmentation
from .waveforms_calm import check_waveform


def _generator(generator: np.random.Generator | None) -> np.random.Generator:
    """The given generator, or one seeded from torch's global random state, which differs between workers."""
    return np.random.default_rng(int(torch.randint(2**62, ()))) if generator is None else generator


def as_patches(features: Any) -> np.ndarray:
    """The patches (P, D) of a row's `input_features`, which may be the bytes of a `.npy` file.

    Raises:
        ValueError: if the bytes are not such a file, or fewer than its header claims; nothing is preallocated.
    """
    if not isinstance(features, bytes):
        return np.asarray(features)
    stream = BytesIO(features)
    try:
        np.lib.format.read_magic(stream)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TokenError) as error:
        raise ValueError(f"The features are no `.npy` file: {error}") from error
    return np.frombuffer(features, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


@dataclass
class _Collator:
    """Base of both collators: waveforms and transcripts to a batch, with optional augmentation."""

    processor: Any
    waveform_augmentation: WaveformAugmentation | None = None
    spec_augment: SpecAugment | None = None

    def _batch(self, rows: Sequence[dict], generator: np.random.Generator) -> dict[str, torch.Tensor]:
        texts = [row.get("text") for row in rows]
        batch = {}
        # The columns decide, not their values: a modality without values is fully masked. All ranks must run the same
        # modules, and would deadlock if one skipped SpecTran.
        if any("text" in row for row in rows):
            batch.update(self.processor(text=[text or "" for text in texts], return_tensors="pt"))
            given = torch.tensor([text is not None for text in texts])
            batch["attention_mask"] = batch["attention_mask"] * given[:, None]
        if any(row.get("input_features") is not None for row in rows):
            other = [row.get("input_features") is None and row.get("audio") is not None for row in rows]
            if any(other):
                row = other.index(True)
                raise ValueError(
                    f"Row {row} of the batch has `audio`, and others have `input_features`; give one kind."
                )
            batch.update(self._pad_features([row.get("input_features") for row in rows], generator))
        elif any("audio" in row or "input_features" in row for row in rows):
            batch.update(self._extract_features([audio_of(row) for row in rows], generator))
        if not batch:
            raise ValueError("No row of the batch has `audio` or `text`.")
        return batch

    def _extract_features(self, clips: list, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Patches of the clips; a row without one is fully masked."""
        extractor = self.processor.feature_extractor
        waveforms = []
        for clip in clips:
            waveform = np.zeros(1, np.float32) if clip is None else as_waveform(clip, extractor.sampling_rate)
            if self.waveform_augmentation is not None and clip is not None:
                waveform = check_waveform(waveform, len(waveforms)).numpy()  # scales integers
                waveform = self.waveform_augmentation(waveform, extractor.sampling_rate, generator)
            waveforms.append(waveform)
        features = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        given = torch.tensor([clip is not None for clip in clips])
        features["input_features_mask"] = features["input_features_mask"] * given[:, None]
        return self._augment_features(features, [extractor.count_frames(len(clip)) for clip in waveforms], generator)

    def _pad_features(self, clips: list, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Precomputed patches, padded to whole acoustic tokens."""
        extractor = self.processor.feature_extractor
        width, size = extractor.patch_frames * extractor.patch_bins, extractor.patches_per_token
        if self.waveform_augmentation is not None:
            raise ValueError("`waveform_augmentation` needs waveforms, and the rows hold `input_features`.")
        patches = [np.zeros((size, width), np.float32) if clip is None else as_patches(clip) for clip in clips]
        for clip in patches:
            if clip.ndim != 2 or len(clip) == 0 or clip.shape[1] != width:
                raise ValueError(f"`input_features` of shape {clip.shape} are no patches of {width} values.")
        rows = {"input_features": [clip.astype(np.float32) for clip in patches]}
        features = extractor.pad(rows, padding=True, pad_to_multiple_of=size, return_tensors="pt")
        given = torch.tensor([clip is not None for clip in clips])
        features["input_features_mask"] = features["input_features_mask"] * given[:, None]
        steps = [len(clip) // (extractor.feature_size // extractor.patch_bins) for clip in patches]
        # The last patch may be partly padding; the patches do not show how much.
        return self._augment_features(features, [n * extractor.patch_frames for n in steps], generator)

    def _augment_features(
        self, features: dict[str, torch.Tensor], num_frames: list[int], generator: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        if self.spec_augment is not None:
            extractor = self.processor.feature_extractor
            log_mel = extractor.unpatchify(features["input_features"])
            augmented = self.spec_augment(log_mel, torch.tensor(num_frames), generator)
            features["input_features"] = extractor.patchify(augmented)
        return features


@dataclass
class DataCollatorForCalmPreTraining(_Collator):
    """Data collator for [`CalmForPreTraining`]: every row has audio and a transcript.

    Args:
        processor ([`CalmProcessor`]): makes the tensors.
        waveform_augmentation, spec_augment (*optional*): for training.
        mlm_probability (`float`, defaults to 0.15): share of lexical tokens masked (80 % [MASK], 10 % random, 10 %
            kept: Devlin et al. 2019, section 3.1); 0 gives no `labels`.
        mask_time_prob (`float`, defaults to 0.15): share of acoustic tokens masked, as in Wav2Vec2, at least one span
            per clip; 0 gives no `mask_time_indices`.
        mask_time_length (`int`, defaults to 1): acoustic tokens in a masked span.
        draw_pairs (`bool`, defaults to `True`): whether to draw neighbouring windows, `pair_indices`. Without masks
            and pairs, as in evaluation, a batch is a function of its rows.

    A call takes the rows and, optionally, the `numpy.random.Generator` for all draws; without one they depend on
    torch's global random state. It returns the model's inputs; see [`CalmForPreTraining`].

    Example:

    ```python
    >>> import numpy as np
    >>> from processing import CalmFeatureExtractor, CalmProcessor, DataCollatorForCalmPreTraining
    >>> from transformers import BertTokenizer

    >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "stop", "go", "left"]
    >>> tokenizer = BertTokenizer({piece: index for index, piece in enumerate(pieces)})
    >>> processor = CalmProcessor(CalmFeatureExtractor(), tokenizer)
    >>> second = np.random.default_rng(0).normal(size=16000)
    >>> batch = DataCollatorForCalmPreTraining(processor)(
    ...     [{"audio": second, "text": "go left"}, {"audio": second, "text": "stop"}]
    ... )
    >>> batch["input_ids"].shape, batch["labels"].shape, batch["mask_time_indices"].shape
    (torch.Size([2, 4]), torch.Size([2, 4]), torch.Size([2, 5]))

    ```
    """

    mlm_probability: float = 0.15
    mask_time_prob: float = 0.15
    mask_time_length: int = 1
    draw_pairs: bool = True

    def __call__(self, rows: Sequence[dict], generator: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        for index, row in enumerate(rows):
            if not (row.get("text") or "").strip():
                raise ValueError(f"Row {index} of the batch has no transcript; pretraining needs one a clip.")
            if row.get("audio") is None and row.get("input_features") is None:
                raise ValueError(f"Row {index} of the batch has no audio; pretraining needs a clip a row.")
        generator = _generator(generator)
        batch = self._batch(rows, generator)
        if self.mlm_probability > 0:
            masking = DataCollatorForLanguageModeling(self.processor.tokenizer, mlm_probability=self.mlm_probability)
            masking.generator = torch.Generator().manual_seed(int(generator.integers(2**63)))
            batch["input_ids"], batch["labels"] = masking.torch_mask_tokens(batch["input_ids"].clone())
        size = self.processor.feature_extractor.patches_per_token
        tokens_mask = batch["input_features_mask"].unflatten(1, (-1, size)).any(-1)  # (B, T)
        if self.mask_time_prob > 0:
            # A batch too short for a span still has the key: every rank must compute the same terms.
            batch["mask_time_indices"] = torch.zeros_like(tokens_mask)
            if tokens_mask.shape[1] >= self.mask_time_length:
                batch["mask_time_indices"] = self._mask_spans(tokens_mask, generator)
        if self.draw_pairs:
            counts = tokens_mask.sum(-1)
            first = (
                torch.from_numpy(generator.random(len(rows))) * (counts - 1)
            ).long()  # uniform over a clip's pairs
            batch["pair_indices"] = torch.where(counts > 1, first, -1)
        return batch

    def _mask_spans(self, tokens_mask: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """(B, T) bool, spans of real tokens drawn as in Wav2Vec2, which uses numpy's global random state."""
        from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices  # slow to import

        state = np.random.get_state()
        np.random.seed(generator.integers(2**32))
        try:
            masked = _compute_mask_indices(
                tuple(tokens_mask.shape),
                self.mask_time_prob,
                self.mask_time_length,
                attention_mask=tokens_mask.long(),
                min_masks=1,
            )
        finally:
            np.random.set_state(state)
        return torch.from_numpy(masked) & tokens_mask


@dataclass
class DataCollatorForCalmClassification(_Collator):
    """Data collator for [`CalmForSequenceClassification`]: rows have audio, text or both, and a `label`.

    Args:
        processor ([`CalmProcessor`]): makes the tensors.
        waveform_augmentation, spec_augment (*optional*): for training.

    A call takes the rows and, optionally, the `numpy.random.Generator` for all draws. It returns the model's inputs,
    with `labels` if the rows have a `label`: long for classes, float for targets.

    Example:

    ```python
    >>> import numpy as np
    >>> from processing import CalmFeatureExtractor, CalmProcessor, DataCollatorForCalmClassification
    >>> from transformers import BertTokenizer

    >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "stop", "go", "left"]
    >>> tokenizer = BertTokenizer({piece: index for index, piece in enumerate(pieces)})
    >>> processor = CalmProcessor(CalmFeatureExtractor(), tokenizer)
    >>> second = np.random.default_rng(0).normal(size=16000)
    >>> batch = DataCollatorForCalmClassification(processor)(
    ...     [{"audio": second, "text": "stop", "label": 1}, {"audio": None, "text": "go left", "label": 0}]
    ... )
    >>> batch["input_features_mask"].sum(-1), batch["labels"]
    (tensor([25,  0]), tensor([1, 0]))

    ```
    """

    def __call__(self, rows: Sequence[dict], generator: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        for index, row in enumerate(rows):
            if all(row.get(name) is None for name in ("audio", "input_features", "text")):
                raise ValueError(f"Row {index} of the batch has neither audio nor text.")
        batch = self._batch(rows, _generator(generator))
        if any(row.get("label") is not None for row in rows):
            batch["labels"] = self._labels([row.get("label") for row in rows])
        return batch

    def _labels(self, given: list) -> torch.Tensor:
        """(B,) classes as long, or (B,) or (B, K) float targets.

        Raises:
            ValueError: names the first row whose label is missing, not numeric, or shaped unlike the others.
        """
        arrays = [np.asarray(label) for label in given]
        for index, label in enumerate(arrays):
            if label.dtype.kind not in "biuf" or label.shape != arrays[0].shape:
                raise ValueError(
                    f"The label of row {index} of the batch is {given[index]!r}; each row needs the number of its"
                    " class, or as many numbers as the others have."
                )
        labels = np.stack(arrays)
        return torch.tensor(labels, dtype=torch.float32 if labels.dtype.kind == "f" or labels.ndim > 1 else torch.long)
