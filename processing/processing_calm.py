"""`CalmProcessor`: waveforms through the feature extractor, transcripts through the tokenizer, one batch out."""

from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin


class CalmProcessor(ProcessorMixin):
    r"""Makes the inputs of CALM's models from audio, text or both.

    Args:
        feature_extractor ([`CalmFeatureExtractor`]): reads the waveforms.
        tokenizer ([`PreTrainedTokenizerBase`]): the tokenizer of the language model.
    """

    def __init__(self, feature_extractor, tokenizer):
        super().__init__(feature_extractor, tokenizer)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Leave the inputs as they are: the feature extractor tells one clip from a batch by itself."""
        return images, text, videos, audio

    def __call__(self, audio=None, text=None, **kwargs) -> BatchFeature:
        """Prepare clips, transcripts, or clips with their transcripts.

        Args:
            audio: one waveform or a batch, as [`CalmFeatureExtractor`] takes them.
            text (`str` or `list[str]`, *optional*): the transcripts, one a clip.
            kwargs: `sampling_rate` (required with audio), `return_tensors`, `device`, `padding`; settings of one side
                alone by `audio_kwargs={...}` or `text_kwargs={...}`.

        Returns:
            `input_ids`, `attention_mask` (B, L) and what else the tokenizer gives; `input_features` (B, P, D),
            `input_features_mask` (B, P).

        Raises:
            ValueError: if the numbers of clips and transcripts differ; see also the feature extractor.
        """
        # Transcripts are padded as clips are. A tokenizer may carry a `max_length`, which the base class would hand on
        # without truncation: no limit.
        defaults = {name: value for name, value in (("padding", True), ("max_length", None)) if name not in kwargs}
        kwargs["text_kwargs"] = {**defaults, **kwargs.get("text_kwargs", {})}
        batch = super().__call__(text=text, audio=audio, **kwargs)
        if audio is not None and text is not None:
            clips, texts = len(batch["input_features"]), 1 if isinstance(text, str) else len(text)
            if clips != texts:
                raise ValueError(f"There are {clips} clips and {texts} transcripts; give one transcript a clip.")
        return batch


__all__ = ["CalmProcessor"]
