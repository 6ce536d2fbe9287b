"""`CalmProcessor`: waveforms through the feature extractor, transcripts through the tokenizer, one batch out."""

import os
from typing import Any, Self

from transformers import BatchFeature, PreTrainedTokenizerBase, SequenceFeatureExtractor
from transformers.processing_utils import ProcessorMixin

# Lengths in wordpieces are not lengths in patches: when text is given, these go to the tokenizer alone.
LENGTHS = ("truncation", "max_length", "pad_to_multiple_of")
# Keeps the base class from taking these from the tokenizer.
AUDIO_DEFAULTS = {"padding": True, "truncation": False, "max_length": None, "pad_to_multiple_of": None}


class CalmProcessor(ProcessorMixin):
    r"""Makes the inputs of CALM's models from audio, text or both.

    Args:
        feature_extractor ([`CalmFeatureExtractor`]): reads the waveforms.
        tokenizer ([`PreTrainedTokenizerBase`]): the tokenizer of the language model.

    Example:

    ```python
    >>> import numpy as np
    >>> from processing import CalmFeatureExtractor, CalmProcessor
    >>> from transformers import BertTokenizer

    >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "stop", "go", "left"]
    >>> tokenizer = BertTokenizer({piece: index for index, piece in enumerate(pieces)})
    >>> processor = CalmProcessor(CalmFeatureExtractor(), tokenizer)
    >>> clips = np.random.default_rng(0).normal(size=(2, 16000))
    >>> inputs = processor(audio=list(clips), text=["stop", "go left"], sampling_rate=16000, return_tensors="pt")
    >>> inputs["input_ids"].tolist()
    [[2, 5, 3, 0], [2, 6, 7, 3]]
    >>> inputs["input_features"].shape
    torch.Size([2, 30, 320])

    ```
    """

    def __init__(self, feature_extractor: SequenceFeatureExtractor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(feature_extractor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load the processor that was saved with a model; arguments as in `ProcessorMixin.from_pretrained`.

        Raises:
            OSError: if the feature extractor or the tokenizer is missing; names the file and how to make it.
        """
        name = pretrained_model_name_or_path
        try:
            return super().from_pretrained(name, **kwargs)
        except (OSError, ValueError) as error:
            files = ("processor_config.json", "tokenizer_config.json", "tokenizer.json")
            absent = [file for file in files if os.path.isdir(name) and not os.path.isfile(os.path.join(name, file))]
            raise OSError(
                f"'{name}' holds no complete processor of CALM"
                + (f": it lacks {', '.join(absent)}" if absent else "")
                + f" ({error}). Copy its files from the run that made the model, or make them by"
                " `CalmProcessor(CalmFeatureExtractor.from_audio_config(model.config.audio_config),"
                " AutoTokenizer.from_pretrained(LANGUAGE_MODEL)).save_pretrained(FOLDER)`."
            ) from error

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> tuple:
        """Leave the inputs as they are: the feature extractor itself distinguishes one clip from a batch."""
        return images, text, videos, audio

    def __call__(self, audio: Any = None, text: str | list[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Prepare clips, transcripts, or clips with their transcripts.

        Args:
            audio: one waveform or a batch, as [`CalmFeatureExtractor`] takes them.
            text (`str` or `list[str]`, *optional*): the transcripts, one per clip.
            kwargs: `sampling_rate` (required with audio), `return_tensors`, `device`, `padding`; settings of one
                modality alone go in `audio_kwargs={...}` or `text_kwargs={...}`. With text, `truncation`,
                `max_length`, `pad_to_multiple_of` and `padding="max_length"` apply to the text, and never cut or pad
                the audio. Transcripts are padded to the longest, unless the call or the tokenizer says otherwise; the
                tokenizer's own `max_length` applies only with `truncation` or `padding="max_length"`.

        Returns:
            `input_ids`, `attention_mask` (B, L) and whatever else the tokenizer returns; `input_features` (B, P, D),
            `input_features_mask` (B, P).

        Raises:
            ValueError: if the numbers of clips and transcripts differ, or `text` is not text or an empty list; see
                also the feature extractor.
        """
        if isinstance(text, list) and not text:
            raise ValueError("`text` holds no transcript; leave it out for audio alone.")
        given = {**kwargs.get("common_kwargs", {}), **kwargs}
        text_options = {**self.tokenizer.init_kwargs, **given, **kwargs.get("text_kwargs", {})}
        text_defaults = {} if "padding" in text_options else {"padding": True}
        needs_length = text_options.get("truncation") or text_options.get("padding") == "max_length"
        if "max_length" not in given and not needs_length:
            text_defaults["max_length"] = None  # else the tokenizer's own, unused, raises a warning
        if text is not None:
            lengths = LENGTHS + (("padding",) if given.get("padding") == "max_length" else ())
            moved = [name for name in lengths if name in kwargs and name not in kwargs.get("text_kwargs", {})]
            text_defaults |= {name: kwargs.pop(name) for name in moved}
            given = {name: value for name, value in given.items() if name not in lengths or name in kwargs}
        audio_defaults = {name: value for name, value in AUDIO_DEFAULTS.items() if name not in given}
        kwargs["text_kwargs"] = text_defaults | kwargs.get("text_kwargs", {})
        kwargs["audio_kwargs"] = audio_defaults | kwargs.get("audio_kwargs", {})
        batch = super().__call__(text=text, audio=audio, **kwargs)
        if audio is not None and text is not None:
            clips, texts = len(batch["input_features"]), 1 if isinstance(text, str) else len(text)
            if clips != texts:
                raise ValueError(f"There are {clips} clips and {texts} transcripts; give one transcript a clip.")
        return batch


__all__ = ["CalmProcessor"]
