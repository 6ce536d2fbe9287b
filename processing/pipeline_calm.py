"""The `"audio-text-classification"` pipeline: utterances in, labels or ranked candidate texts out.

Dimensions: B utterances, C candidate texts, K labels, E width of the aligned space.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import ChunkPipeline
from transformers.processing_utils import ProcessorMixin

from .audio import as_waveform, audio_of, split_waveform

TASK = "audio-text-classification"
FUNCTIONS = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda logits: logits}
FUNCTION_OF_PROBLEM = {
    "single_label_classification": "softmax", "multi_label_classification": "sigmoid", "regression": "none",
}  # fmt: skip
MAX_LOGIT_SCALE = 4.6052  # ln 100, where `CalmForPreTraining` clamps its own
HINT = 'Give {"audio": "speech.wav", "text": "what is said"}, or one of the two.'


class NumberedItems(Dataset):
    """The items of a list or dataset with their indices, so that an error can name the item it concerns."""

    def __init__(self, items: Sequence):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.items[index]


class AudioTextClassificationPipeline(ChunkPipeline):
    """Labels an utterance by its audio, its text or both, or ranks candidate texts by their closeness to its audio.

    Classification needs a trained [`CalmForSequenceClassification`]; a modality it was not trained on
    (`config.modalities`) is ignored. Classify a long recording, such as a call, in chunks as long as the clips it was
    trained on (`chunk_length_s`).

    With `candidate_texts`, any CALM checkpoint scores texts against a clip zero-shot: the softmax over the scaled
    cosines of the clip's embedding with those of the texts. The scale is the `logit_scale` that [`CalmForPreTraining`]
    learned; the other classes lack it and use its initial value from the configuration, which leaves the order right
    but the scores uncalibrated. A [`CalmForPreTraining`] trained to read (`transcript_loss_weight`) discriminates much
    better with `score_by="reading"`, the softmax over its `score_transcripts`.

    `pipeline("audio-text-classification", model=...)` loads the saved class, so that no head is newly initialised.

    Args:
        model: [`CalmForSequenceClassification`], [`CalmForPreTraining`] or [`CalmModel`].
        processor ([`CalmProcessor`]): the one saved with the model.
        kwargs: `device`, `batch_size`, `num_workers` as in every pipeline; defaults for the options of a call.

    Example:

    ```python
    >>> import numpy as np
    >>> from processing import AudioTextClassificationPipeline

    >>> pipe = AudioTextClassificationPipeline(model=model, processor=processor)
    >>> second = np.random.default_rng(0).normal(scale=0.1, size=16000)
    >>> answer = pipe({"audio": second, "text": "the cat sat"})
    >>> sorted(answer)
    ['label', 'score']
    >>> answers = pipe({"audio": second}, candidate_texts=["the cat sat", "a dog ran"])
    >>> round(sum(answer["score"] for answer in answers), 4)
    1.0

    ```
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None = None, **kwargs: Any):
        if not hasattr(getattr(model, "calm", model), "get_audio_features"):
            raise ValueError(
                "This pipeline runs `CalmForSequenceClassification`, `CalmForPreTraining` and `CalmModel`;"
                f" it got `{type(model).__name__}`."
            )
        if processor is None:
            raise ValueError(
                "This pipeline needs `processor=`: the `CalmProcessor` saved beside the model, or"
                " `CalmProcessor(CalmFeatureExtractor.from_audio_config(model.config.audio_config), tokenizer)`."
            )
        processor.feature_extractor.check_geometry(model.config.audio_config)
        kwargs.pop("local_files_only", None)  # meant for loading; `pipeline()` passes it on
        super().__init__(model=model.eval(), processor=processor, **kwargs)  # else dropout stays on after training

    def _sanitize_parameters(
        self,
        top_k: int | str | None = "",
        function_to_apply: str | None = None,
        candidate_texts: list[str] | None = None,
        score_by: str | None = None,
        chunk_length_s: float | None = None,
    ) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = {}, {}, {}
        if chunk_length_s is not None:
            if not chunk_length_s > 0:
                raise ValueError(f"`chunk_length_s` must be a positive number of seconds; it is {chunk_length_s!r}.")
            preprocess["chunk_length_s"] = chunk_length_s
        if top_k != "":  # None means all
            if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
                raise ValueError(f"`top_k` must be a positive number, or None for all; it is {top_k!r}.")
            postprocess["top_k"] = top_k
        if function_to_apply is not None:
            if function_to_apply not in FUNCTIONS:
                raise ValueError(f"`function_to_apply` must be one of {list(FUNCTIONS)}; it is {function_to_apply!r}.")
            postprocess["function_to_apply"] = function_to_apply
        if score_by is not None:
            if score_by not in ("embeddings", "reading"):
                raise ValueError(f"`score_by` must be 'embeddings' or 'reading'; it is {score_by!r}.")
            forward["score_by"] = score_by
        if candidate_texts is not None:
            texts = [] if isinstance(candidate_texts, str) else list(candidate_texts)
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(
                    f"`candidate_texts` must be a list of texts, none of them empty; it is {candidate_texts!r}."
                )
            preprocess["audio_alone"] = True
            forward["candidates"] = self._candidates(texts)
            postprocess["labels"] = texts
        return preprocess, forward, postprocess

    def _candidates(self, texts: list[str]) -> Mapping[str, torch.Tensor]:
        """Candidate texts to `input_ids` and `attention_mask` (C, L); rejects those without a known word."""
        words = self.processor(text=texts, return_tensors="pt")
        special = torch.tensor(self.processor.tokenizer.all_special_ids)
        known = (~torch.isin(words["input_ids"], special)).any(-1)  # (C,)
        unknown = [text for text, is_known in zip(texts, known.tolist(), strict=True) if not is_known]
        if unknown:
            raise ValueError(f"`candidate_texts` {unknown} hold no word that the model's tokenizer knows.")
        return words

    def __call__(self, inputs: Mapping | Iterable[Mapping], **kwargs) -> Any:
        """Classify utterances.

        Args:
            inputs: an utterance, or a list, generator or dataset of utterances. Each is a dict with `audio`, `text`
                or both; other keys are ignored. `audio` is a path, the bytes of a file, or samples (N,), at the
                model's rate unless the dict has a `sampling_rate` (Hz). The library's own forms,
                `{"array": ..., "sampling_rate": ...}` and `{"raw": ..., "sampling_rate": ...}`, and what a `datasets`
                audio column yields can be given as `audio` or as the whole utterance.
            candidate_texts (`list[str]`, *optional*): score these texts against the audio instead of classifying;
                `text` is then ignored.
            score_by (`str`, *optional*, defaults to `"embeddings"`): how candidate texts are scored: `"embeddings"` or
                `"reading"`.
            chunk_length_s (`float`, *optional*): classify longer recordings in equal chunks of at most this many
                seconds, each with the whole text, and average their logits. By default a recording is classified in
                one piece, which must fit into the language model. Candidate texts are scored against the whole clip.
            top_k (`int`, *optional*): how many labels or texts to return, best first; None for all. By default, the
                best label alone as in text classification, or all texts as in zero-shot classification.
            function_to_apply (`str`, *optional*): `"softmax"`, `"sigmoid"` or `"none"`. By default softmax, sigmoid
                and none for single-label, multi-label and regression models, and softmax over texts.
            batch_size (`int`, *optional*): utterances, or chunks of them, per batch; does not change the scores.
            num_workers (`int`, *optional*): 1 to load and prepare the audio in a separate process.

        Returns:
            `{"label": ..., "score": ...}`, or a list of these; for several utterances a list of such results, or an
            iterator if given a generator or dataset.

        Raises:
            ValueError, TypeError, AudioError: for an utterance that has neither audio nor text or cannot be read, with
                its index among several; for a model without a trained classifier; see also [`CalmModel`].
        """
        if isinstance(inputs, Mapping) or _is_decoder(inputs):
            return super().__call__((None, inputs), **kwargs)
        if isinstance(inputs, (list, tuple)):
            return list(super().__call__(NumberedItems(inputs), **kwargs))
        several = hasattr(inputs, "__iter__") or hasattr(inputs, "__getitem__")
        if not several or isinstance(inputs, (str, bytes, np.ndarray, torch.Tensor)):
            raise TypeError(f"An utterance is a dict, not {type(inputs).__name__}. {HINT}")
        if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
            return super().__call__(NumberedItems(inputs), **kwargs)
        return super().__call__((numbered for numbered in enumerate(inputs)), **kwargs)

    def preprocess(
        self, inputs: tuple[int | None, Mapping], audio_alone: bool = False, chunk_length_s: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """An utterance with its index to the processor's tensors, chunk by chunk; a missing modality is masked.

        Every chunk has the same keys, so that a batch may mix utterances with and without audio or text.
        """
        index, utterance = inputs
        rate = self.processor.feature_extractor.sampling_rate
        try:
            seen = "both" if audio_alone else self.model.config.modalities
            audio, text = _read(utterance, rate, seen)
            if audio_alone and audio is None:
                raise ValueError('`candidate_texts` are scored against audio: give {"audio": "speech.wav"}.')
            clips = [np.zeros(1, np.float32) if audio is None else audio]
            if chunk_length_s is not None and not audio_alone:
                clips = split_waveform(clips[0], chunk_length_s, rate)
            for place, clip in enumerate(clips, start=1):
                batch = self.processor(audio=[clip], text=[text or ""], sampling_rate=rate, return_tensors="pt")
                batch["input_features_mask"] *= audio is not None
                batch["attention_mask"] *= text is not None
                yield {**batch, "is_last": place == len(clips)}
        except (TypeError, ValueError) as error:
            if index is not None:
                error.args = (f"Item {index}: {error}",)
            raise

    def _forward(
        self, model_inputs: dict, candidates: Mapping | None = None, score_by: str = "embeddings"
    ) -> dict[str, Any]:
        is_last = model_inputs.pop("is_last")
        if candidates is None:
            self._check_classifier()
            logits = self.model(**model_inputs).logits  # (B, K)
        else:
            logits = self._score(model_inputs, candidates, score_by)  # (B, C)
        return {"logits": logits, "is_last": is_last}

    def _score(self, model_inputs: dict, candidates: Mapping, score_by: str) -> torch.Tensor:
        """Scores of candidate texts against clips, (B, C)."""
        features = {name: value for name, value in model_inputs.items() if name.startswith("input_features")}
        words = {name: candidates[name].to(self.device) for name in ("input_ids", "attention_mask")}
        if score_by == "reading":
            scores = self._reader().score_transcripts(**words, **features)
            return scores.clamp(min=torch.finfo(scores.dtype).min)  # -inf where a text does not fit
        base = getattr(self.model, "calm", self.model)
        audio = base.get_audio_features(**features).pooler_output  # (B, E)
        texts = base.get_text_features(**words).pooler_output  # (C, E)
        scale = getattr(self.model, "logit_scale", None)
        scale = torch.tensor(self.model.config.logit_scale_init_value) if scale is None else scale
        scale = scale.float().clamp(max=MAX_LOGIT_SCALE).exp().to(audio.device)
        return scale * audio.float() @ texts.float().T  # half precision would round to steps of 0.5

    def _reader(self) -> PreTrainedModel:
        """The model, if it can read transcripts."""
        if not hasattr(self.model, "score_transcripts"):
            raise ValueError(
                f"`{type(self.model).__name__}` cannot read. Load the `CalmForPreTraining` of the pretraining run, or"
                ' score by "embeddings".'
            )
        return self.model

    def _check_classifier(self) -> None:
        """Reject a missing or untrained classifier."""
        classifier = getattr(self.model, "classifier", None)
        # A new head has a bias of exactly zero, which any training step changes.
        if classifier is None or not classifier.bias.any():
            state = "has no classifier" if classifier is None else "has a classifier that was never trained"
            raise ValueError(
                f"This `{type(self.model).__name__}` {state}. Fine-tune it (examples/finetune.py), or score texts"
                " against the audio by `candidate_texts=[...]`."
            )

    def postprocess(
        self,
        model_outputs: list[dict],
        top_k: int | str | None = "",
        function_to_apply: str | None = None,
        labels: list[str] | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Logits of one utterance, averaged over its chunks, to its ranked labels."""
        config, best_alone = self.model.config, top_k == "" and labels is None
        if function_to_apply is None:
            problem = config.problem_type or (
                "regression" if config.num_labels == 1 else "single_label_classification"
            )
            function_to_apply = "softmax" if labels is not None else FUNCTION_OF_PROBLEM[problem]
        logits = torch.stack([chunk["logits"][0].float() for chunk in model_outputs]).mean(0)
        scores = FUNCTIONS[function_to_apply](logits).tolist()
        labels = [config.id2label[index] for index in range(len(scores))] if labels is None else labels
        answers = [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
        answers.sort(key=lambda answer: answer["score"], reverse=True)
        return answers[0] if best_alone else answers[: top_k or None]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save what `pipeline(..., trust_remote_code=True)` needs: the model, the processor and all code.

        `push_to_hub` uploads the same. The base class would omit the processor, and record a fixed class to load the
        model with, whatever its own.

        Args:
            save_directory: folder, created if it does not exist.
            kwargs: arguments of `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: for `push_to_hub`, which would upload only the model.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "Call `pipe.push_to_hub(repo_id)`: saving with `push_to_hub=True` uploads the model alone."
            )
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory)
        implementation = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.model.config.custom_pipelines = {TASK: {"impl": implementation, "pt": [self.model._auto_class]}}
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _is_decoder(value: Any) -> bool:
    """Whether it is the decoder that a `datasets` audio column yields unless created with `decode=False`."""
    return hasattr(value, "get_all_samples")


def _read(utterance: Mapping, sampling_rate: int, seen: str) -> tuple[np.ndarray | None, str | None]:
    """The waveform and the text of an utterance; `None` for what is missing or ignored by the classifier."""
    if _is_decoder(utterance):
        utterance = {"audio": utterance}
    if not isinstance(utterance, Mapping):
        raise TypeError(f"An utterance is a dict, not {type(utterance).__name__}. {HINT}")
    audio, text = audio_of(utterance), utterance.get("text")
    if "audio" not in utterance and utterance.keys() & {"array", "raw", "bytes"}:
        audio = dict(utterance)
    if audio is None and text is None:
        raise ValueError(f"An utterance has neither audio nor text, only {sorted(map(str, utterance))}. {HINT}")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"`text` must be a str, not {type(text).__name__}.")
    audio, text = None if seen == "text" else audio, None if seen == "audio" else text
    if audio is None and text is None:
        raise ValueError(f"This classifier was trained on {seen} alone; the utterance has none.")
    return None if audio is None else as_waveform(audio, sampling_rate), text


__all__ = ["AudioTextClassificationPipeline"]
