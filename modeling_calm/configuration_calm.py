"""Configurations of CALM: `CalmAudioConfig` for SpecTran alone, `CalmConfig` for SpecTran and a language model.

The defaults are our own choice wherever the paper (arXiv 2202.03587) is silent, which is everywhere but the
structure: linearised spectrogram patches, a Spectral Transformer, a pretrained language model.
"""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .checks_calm import CONFIG_VERSION, RefusesTypos, check_keywords, check_version


@strict
class CalmAudioConfig(RefusesTypos, PreTrainedConfig):
    r"""Configuration of SpecTran ([`CalmAudioModel`]) and of the patch geometry that the feature extractor must share.

    Args:
        sampling_rate (`int`, *optional*, defaults to 16000):
            Samples per second of the waveform (Hz).
        hop_length (`int`, *optional*, defaults to 160):
            Samples between two spectrogram frames; 160 at 16 kHz is 10 ms.
        num_mel_bins (`int`, *optional*, defaults to 80):
            Mel bins in a frame, `M`.
        patch_frames (`int`, *optional*, defaults to 4):
            Frames in a patch (a sub-token): 40 ms.
        patch_bins (`int`, *optional*, defaults to 80):
            Mel bins in a patch. Divides `num_mel_bins`.
        token_frames (`int`, *optional*, defaults to 24):
            Frames in an acoustic token: 0.24 s, about four tokens a second. A multiple of `patch_frames`.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of SpecTran.
        num_hidden_layers (`int`, *optional*, defaults to 4):
            Layers within each window of sub-tokens.
        num_context_layers (`int`, *optional*, defaults to 8):
            Layers across the acoustic tokens of a clip; 0 leaves each token without context.
        sliding_window (`int`, *optional*, defaults to 256):
            Acoustic tokens on either side that a context layer attends to, about a minute: the cost per second of
            audio is then the same for an hour as for a minute.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Heads of every layer and of the attentive pooling. Divides `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward network.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward network.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout on the embeddings and each residual branch.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout on the attention probabilities.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the layer normalisations.
        rope_theta (`float`, *optional*, defaults to 10000.0):
            Base of the rotary position embeddings of the context layers.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        config_version (`int`, *optional*):
            Version of the configuration format.

    Example:

    ```python
    >>> from modeling_calm import CalmAudioConfig

    >>> config = CalmAudioConfig(patch_frames=4, patch_bins=40, token_frames=32)
    >>> config.patch_dim, config.patches_per_token, config.seconds_per_token
    (160, 16, 0.32)

    ```
    """

    model_type = "calm_audio_model"
    base_config_key = "audio_config"

    sampling_rate: int = 16000
    hop_length: int = 160
    num_mel_bins: int = 80
    patch_frames: int = 4
    patch_bins: int = 80
    token_frames: int = 24
    hidden_size: int = 768
    num_hidden_layers: int = 4
    num_context_layers: int = 8
    sliding_window: int = 256
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-6
    rope_theta: float | int = 10000.0
    initializer_range: float = 0.02
    config_version: int = CONFIG_VERSION

    def __post_init__(self, **kwargs):
        check_version(self)  # first: an unknown keyword may be a setting of a newer version
        check_keywords(self, kwargs)
        super().__post_init__(**kwargs)
        self.auto_map = {
            **(getattr(self, "auto_map", None) or {}),
            "AutoConfig": "configuration_calm.CalmAudioConfig",
            "AutoModel": "spectran_calm.CalmAudioModel",
        }

    def validate_geometry(self) -> None:
        """Check that patches tile the mel bins and the token, and that heads tile the width."""
        for whole, part in (
            ("num_mel_bins", "patch_bins"),
            ("token_frames", "patch_frames"),
            ("hidden_size", "num_attention_heads"),
        ):
            if min(getattr(self, whole), getattr(self, part)) < 1 or getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"`{whole}` ({getattr(self, whole)}) must be a positive multiple of `{part}`"
                    f" ({getattr(self, part)})."
                )
        if self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"Rotary positions turn pairs of channels, so `hidden_size // num_attention_heads` must be even; it is"
                f" {self.hidden_size // self.num_attention_heads}."
            )
        if min(self.sampling_rate, self.hop_length, self.sliding_window) < 1:
            raise ValueError("`sampling_rate`, `hop_length` and `sliding_window` must be positive.")
        if self.num_hidden_layers < 0 or self.num_context_layers < 0:
            raise ValueError("`num_hidden_layers` and `num_context_layers` cannot be negative.")

    @property
    def patch_dim(self) -> int:
        """Values in a patch, `D`."""
        return self.patch_frames * self.patch_bins

    @property
    def patches_per_token(self) -> int:
        """Patches in an acoustic token's window, `S`."""
        return (self.token_frames // self.patch_frames) * (self.num_mel_bins // self.patch_bins)

    @property
    def pooler_size(self) -> int:
        """Width of SpecTran's `pooler_output`: mean and standard deviation of windows and of states."""
        return 4 * self.hidden_size

    @property
    def seconds_per_token(self) -> float:
        """Duration of an acoustic token's window in seconds."""
        return self.token_frames * self.hop_length / self.sampling_rate


@strict
class CalmConfig(RefusesTypos, PreTrainedConfig):
    r"""Configuration of the whole model: SpecTran, the language model, the pretraining objectives and the classifier.

    Args:
        audio_config (`CalmAudioConfig` or `dict`, *optional*):
            SpecTran.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            The language model: any encoder of transformers whose forward takes `inputs_embeds` and
            `attention_mask`. Defaults to BERT.
        audio_text_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the contrastive loss between pooled acoustic tokens and the text target. A term of weight 0 is
            not computed.
        audio_audio_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the contrastive loss between neighbouring windows.
        transcript_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the loss that aligns single acoustic tokens with the transcript's wordpieces, in order (CTC). Our
            own addition to the method, therefore off by default.
        masked_language_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of masked language modelling conditioned on the audio.
        masked_acoustic_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the contrastive prediction of masked acoustic tokens.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Initial logarithm of the contrastive logit scale; 2.6592 is ln(1 / 0.07).
        contrastive_chunk_size (`int`, *optional*):
            Clips whose activations are in memory at once while the contrastive terms are computed; they are recomputed
            in the backward pass. `None` keeps the whole batch in memory.
        special_token_ids (`list[int]`, *optional*):
            Token ids excluded from the text target ([CLS], [SEP], ...). Set by `from_text_pretrained`.
        classifier_dropout (`float`, *optional*, defaults to 0.1):
            Dropout before the classifier.
        modalities (`str`, *optional*, defaults to `"both"`):
            What a classifier was trained on: `"both"`, `"audio"` or `"text"`. The pipeline ignores the other modality.
        class_weights (`list[float]`, *optional*):
            Weight of each class in the single-label and multi-label losses, for imbalanced labels.
        regression_loss (`str`, *optional*, defaults to `"mse"`):
            `"mse"`, or `"ccc"` for one minus the concordance correlation coefficient.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the masked-language head is tied to the word embeddings.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the heads.
        config_version (`int`, *optional*):
            Version of the configuration format.

    Example:

    ```python
    >>> from modeling_calm import CalmConfig

    >>> config = CalmConfig(text_config={"model_type": "distilbert"}, audio_config={"hidden_size": 384})
    >>> config.text_config.model_type, config.audio_config.hidden_size
    ('distilbert', 384)

    ```
    """

    model_type = "calm"
    keys_to_ignore_at_inference = [
        "audio_text_loss", "audio_audio_loss", "transcript_loss", "masked_language_loss", "masked_acoustic_loss",
        "logits_per_audio", "logits_per_text", "hidden_states", "attentions",
    ]  # fmt: skip
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=CalmAudioConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_text_loss_weight: float | int = 1.0
    audio_audio_loss_weight: float | int = 0.1
    transcript_loss_weight: float | int = 0.0
    masked_language_loss_weight: float | int = 1.0
    masked_acoustic_loss_weight: float | int = 1.0
    logit_scale_init_value: float | int = 2.6592
    contrastive_chunk_size: int | None = None
    special_token_ids: list[int] | None = None
    classifier_dropout: float | int = 0.1
    modalities: Literal["both", "audio", "text"] = "both"
    class_weights: list[float | int] | None = None
    regression_loss: Literal["mse", "ccc"] = "mse"
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    config_version: int = CONFIG_VERSION

    def __post_init__(self, **kwargs):
        check_version(self)
        check_keywords(self, kwargs)
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME) and "custom_pipelines" in kwargs:
            # The package registers its own pipeline; the library would insist on running the checkpoint's copy of it.
            pipelines = kwargs.pop("custom_pipelines")
            pipelines = {task: entry for task, entry in pipelines.items() if task != "audio-text-classification"}
            kwargs |= {"custom_pipelines": pipelines} if pipelines else {}
        super().__post_init__(**kwargs)
        self.auto_map = {
            **(getattr(self, "auto_map", None) or {}),
            "AutoConfig": "configuration_calm.CalmConfig",
            "AutoModel": "modeling_calm.CalmModel",
            "AutoModelForPreTraining": "modeling_calm.CalmForPreTraining",
            "AutoModelForSequenceClassification": "modeling_calm.CalmForSequenceClassification",
            "AutoModelForAudioClassification": "modeling_calm.CalmForSequenceClassification",
        }

    def validate_objectives(self) -> None:
        """Check loss weights, the chunk size, the problem type and the number of class weights."""
        for name in ("audio_text", "audio_audio", "transcript", "masked_language", "masked_acoustic"):
            if getattr(self, f"{name}_loss_weight") < 0:
                raise ValueError(f"`{name}_loss_weight` cannot be negative.")
        if self.contrastive_chunk_size is not None and self.contrastive_chunk_size < 1:
            raise ValueError("`contrastive_chunk_size` must be at least 1, or None for the whole batch at once.")
        problems = ("single_label_classification", "multi_label_classification", "regression")
        if self.problem_type is not None and self.problem_type not in problems:
            raise ValueError(f"`problem_type` must be one of {problems} or None; it is {self.problem_type!r}.")
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(
                f"`class_weights` has {len(self.class_weights)} entries for {self.num_labels} labels; give one each."
            )

    @property
    def hidden_size(self) -> int:
        """Width of the language model, `H`, which is the width of the multimodal output."""
        return self.text_config.hidden_size


__all__ = ["CalmAudioConfig", "CalmConfig"]
