"""SpecTran, the Spectral Transformer of CALM: maps spectrogram patches to acoustic tokens.

Dimensions: B clips, P patches, D values in a patch, S patches in an acoustic token, T acoustic tokens, W real windows
in a batch.
"""

from typing import Unpack

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_calm import CalmAudioConfig
from .input_checks_calm import check_names
from .layers_calm import CalmAudioAttention, CalmAudioLayer, TokenPlaces, block_mask
from .loading_calm import CheckedLoading
from .outputs_calm import CalmAudioModelOutput

DEVIATION_EPSILON = 1e-6  # under the square root, whose gradient at zero is infinite


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of (B, N, H) over the positions where the (B, N) mask is set; zero for a row without any.

    Sums are taken in at least float32: half-precision ones overflow (float16) or lose their last terms (bfloat16).
    """
    mask = mask.unsqueeze(-1)
    precise = torch.promote_types(values.dtype, torch.float32)
    total = values.masked_fill(~mask.bool(), 0.0).sum(1, dtype=precise)
    return (total / mask.sum(1).clamp(min=1)).to(values.dtype)


def mean_and_deviation(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, N, H) to (B, 2H): mean and standard deviation over positions where the (B, N) mask is set; zero if none.

    Statistics pooling (Snyder et al. 2017), in at least float32, and differentiable at zero variance.
    """
    precise = values.to(torch.promote_types(values.dtype, torch.float32))
    mean = masked_mean(precise, mask)
    variance = masked_mean((precise - mean.unsqueeze(1)).square(), mask)
    deviation = (variance + DEVIATION_EPSILON).sqrt().masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return torch.cat((mean, deviation), dim=-1).to(values.dtype)


class CalmAudioEmbeddings(nn.Module):
    """Patches (W, S, D) to sub-tokens (W, S, hidden), each with its position embedding."""

    def __init__(self, config: CalmAudioConfig):
        super().__init__()
        self.projection = nn.Linear(config.patch_dim, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.patches_per_token, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        # Calls the module instead of reading its weight: an offloaded weight is present only while its module runs.
        places = torch.arange(patches.shape[1], device=patches.device)
        return self.dropout(self.projection(patches) + self.position_embeddings(places))


class CalmAudioPooling(nn.Module):
    """Attentive pooling of a window, (W, S, hidden) to (W, hidden): each head has its own weights.

    Our choice, after Okabe et al. 2018 ("Attentive Statistics Pooling"), without the standard deviation.
    """

    def __init__(self, config: CalmAudioConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # Not named `score`: adapter libraries take that for a classifier's head and train it in full.
        self.head_scores = nn.Linear(config.hidden_size, config.num_attention_heads)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden_states = self.layernorm(hidden_states)
        scores = self.head_scores(hidden_states).masked_fill(~mask.unsqueeze(-1), -torch.inf)  # (W, S, heads)
        weights = scores.softmax(dim=1, dtype=torch.float32).to(hidden_states.dtype)
        heads = hidden_states.unflatten(-1, (weights.shape[-1], -1))  # (W, S, heads, head width)
        return (weights.unsqueeze(-1) * heads).sum(1).flatten(1)


def _never_empty(tokens_mask: torch.Tensor) -> torch.Tensor:
    """The (B, T) mask of tokens, with the first position set in a batch without any.

    This keeps every parameter in use on every rank. A data-dependent branch would not export.
    """
    first = torch.zeros_like(tokens_mask)
    first[0, 0] = True
    return tokens_mask | (first & ~tokens_mask.any())


class CalmAudioModel(CheckedLoading, PreTrainedModel):
    """SpecTran: maps patches to acoustic tokens.

    Layers run within each window of S patches, on the W real windows only; attentive pooling reduces each window to
    one vector; context layers with rotary positions run across the windows of a clip, each attending to
    `sliding_window` of them on either side. Cost is linear in the length of the audio, which is unlimited, except with
    eager attention and in exported programs, which compare all windows of a clip.

    Example:

    ```python
    >>> import torch
    >>> from modeling_calm import CalmAudioConfig, CalmAudioModel

    >>> config = CalmAudioConfig(hidden_size=32, num_hidden_layers=1, num_context_layers=1, num_attention_heads=2)
    >>> model = CalmAudioModel(config).eval()
    >>> output = model(torch.randn(1, 12, config.patch_dim))
    >>> output.last_hidden_state.shape
    torch.Size([1, 2, 32])

    ```
    """

    config_class = CalmAudioConfig
    base_model_prefix = "audio_model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CalmAudioEmbeddings", "CalmAudioLayer", "CalmAudioPooling"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(CalmAudioLayer, index=0, layer_name="layers"),
        "attentions": OutputRecorder(CalmAudioAttention, index=1, layer_name="layers"),
        "context_attentions": OutputRecorder(CalmAudioAttention, index=1, layer_name="context_layers"),
    }

    def __init__(self, config: CalmAudioConfig):
        super().__init__(config)
        self.embeddings = CalmAudioEmbeddings(config)
        self.layers = nn.ModuleList(CalmAudioLayer(config) for _ in range(config.num_hidden_layers))
        self.pooling = CalmAudioPooling(config)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.context_layers = nn.ModuleList(CalmAudioLayer(config) for _ in range(config.num_context_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, CalmAudioModel):
            init.normal_(module.mask_embedding, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.projection = value

    def encode_windows(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        windows_at_once: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode each window independently.

        Args:
            input_features: (B, P, D) patches, P a multiple of S.
            input_features_mask: (B, P), 1 for a patch with a real frame; all ones by default.
            windows_at_once: windows per pass through the layers; all by default. Without gradient this bounds the
                memory for a long recording and does not change the result. Recorded `hidden_states` and `attentions`
                then come in pieces.

        Returns:
            (B, T, hidden) windows, zero where masked, and the (B, T) bool mask of real ones.

        Raises:
            ValueError: if D is not `patch_dim`, P is not a multiple of S, or the mask has another shape.
        """
        batch, num_patches, patch_dim = input_features.shape
        size = self.config.patches_per_token
        if patch_dim != self.config.patch_dim:
            raise ValueError(
                f"`input_features` has {patch_dim} values a patch, this model reads {self.config.patch_dim}"
                f" ({self.config.patch_frames} frames x {self.config.patch_bins} bins). Make the features with"
                " `CalmFeatureExtractor.from_audio_config(model.config.audio_config)` or the checkpoint's processor."
            )
        if num_patches % size:
            raise ValueError(
                f"`input_features` has {num_patches} patches, no multiple of the {size} patches of an acoustic"
                f" token. Pad with `feature_extractor.pad(..., pad_to_multiple_of={size})`."
            )
        if input_features_mask is None:
            input_features_mask = torch.ones(batch, num_patches, dtype=torch.bool, device=input_features.device)
        elif input_features_mask.shape != (batch, num_patches):
            raise ValueError(
                f"`input_features_mask` has shape {tuple(input_features_mask.shape)}; `input_features` needs"
                f" {(batch, num_patches)}."
            )
        real = input_features_mask.bool()
        input_features = input_features.masked_fill(~real.unsqueeze(-1), 0.0)  # first, as 0 x NaN is NaN
        real = real.view(batch, -1, size)  # (B, T, S)
        tokens_mask = real.any(-1)  # (B, T)
        chosen = _never_empty(tokens_mask)
        real = real | (chosen & ~tokens_mask).unsqueeze(-1)
        patches = input_features.view(batch, -1, size, patch_dim)[chosen]  # (W, S, D)
        torch._check(patches.shape[0] > 0)  # unknown to export and compilation
        real = real[chosen]  # (W, S)

        if windows_at_once is None:
            pooled = self._pool_windows(patches, real, **kwargs)
        else:
            pieces = zip(patches.split(windows_at_once), real.split(windows_at_once), strict=True)
            pooled = torch.cat([self._pool_windows(*piece, **kwargs) for piece in pieces])
        windows = pooled.new_zeros(*tokens_mask.shape, pooled.shape[-1])
        windows = windows.masked_scatter(chosen.unsqueeze(-1), pooled)
        return windows.masked_fill(~tokens_mask.unsqueeze(-1), 0.0), tokens_mask

    def _pool_windows(self, patches: torch.Tensor, real: torch.Tensor, **kwargs) -> torch.Tensor:
        """(W, S, D) patches and the (W, S) mask of real ones to (W, hidden)."""
        # Cast to the dtype of a weight that is never quantised, as the projection may be.
        hidden_states = self.embeddings(patches.to(self.mask_embedding.dtype))  # (W, S, hidden)
        attention_mask = create_bidirectional_mask(self.config, hidden_states, real)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return self.pooling(hidden_states, real)

    def add_context(
        self, windows: torch.Tensor, tokens_mask: torch.Tensor, mask_time_indices: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """(B, T, hidden) windows to acoustic states of the same shape, each in the context of the others.

        `mask_time_indices` (B, T) bool first replaces windows with the learned mask vector.
        """
        if mask_time_indices is None:  # still uses the vector: unused parameters break distributed training
            mask_time_indices = torch.zeros_like(tokens_mask)
        windows = torch.where(mask_time_indices.bool().unsqueeze(-1), self.mask_embedding.to(windows.dtype), windows)
        width = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, width, 2, device=windows.device, dtype=torch.float32) / width
        times = torch.arange(windows.shape[1], device=windows.device, dtype=torch.float32)
        angles = times[:, None] * self.config.rope_theta**-exponents  # (T, width / 2)
        rotation = (angles.cos(), angles.sin())
        # A row without audio attends to its zeros: a softmax over nothing would be NaN.
        attended = tokens_mask | ~tokens_mask.any(-1, keepdim=True)
        span, sdpa = self.config.sliding_window, self.config._attn_implementation == "sdpa"
        # SDPA would compute all T x T scores, masked or not: blocks are cheaper beyond four spans.
        block = span if sdpa and windows.shape[1] > 4 * span and not torch.compiler.is_exporting() else None
        if block is None:
            attention_mask = create_bidirectional_sliding_window_mask(self.config, windows, attended)
        else:
            attention_mask = block_mask(attended, block)
        chosen = _never_empty(tokens_mask)
        places = TokenPlaces(chosen.flatten().nonzero().squeeze(-1), chosen.shape, block)
        states = places.pack(windows)  # (N, hidden)
        for layer in self.context_layers:
            states = layer(states, attention_mask, rotation, places, **kwargs)
        return places.unpack(self.layernorm(states)).masked_fill(~tokens_mask.unsqueeze(-1), 0.0)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_features: torch.FloatTensor,
        input_features_mask: torch.LongTensor | None = None,
        mask_time_indices: torch.BoolTensor | None = None,
        windows_at_once: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CalmAudioModelOutput:
        """Map patches to acoustic tokens.

        Args:
            input_features: (B, P, D) patches, P a multiple of S.
            input_features_mask: (B, P), 1 for a patch with a real frame; all ones by default.
            mask_time_indices: (B, T) bool, tokens to replace with the learned mask vector.
            windows_at_once: see `encode_windows`.

        Raises:
            ValueError: if D is not `patch_dim`, P is not a multiple of S, or the mask has another shape.
        """
        if not torch.compiler.is_compiling():
            check_names(self.forward, kwargs)
        windows, tokens_mask = self.encode_windows(input_features, input_features_mask, windows_at_once, **kwargs)
        states = self.add_context(windows, tokens_mask, mask_time_indices, **kwargs)
        pooled = [mean_and_deviation(values, tokens_mask) for values in (windows, states)]
        return CalmAudioModelOutput(
            last_hidden_state=states, pooler_output=torch.cat(pooled, dim=-1), acoustic_tokens_mask=tokens_mask
        )


__all__ = ["CalmAudioModel"]
