"""CALM: maps spectrogram patches to acoustic tokens in a language model's embedding space, for that model to read.

Method: Sachidananda et al., "CALM: Contrastive Aligned Audio-Language Multirate and Multimodal Representations", arXiv
2202.03587. Everything beyond the abstract is our own choice.

Dimensions: B clips, P patches, D values in a patch, S patches in an acoustic token, T acoustic tokens, L lexical
tokens, N = L + T, H width of the language model, E width of its word embeddings.
"""

import inspect
from typing import Any, Unpack

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_calm import CalmConfig
from .input_checks_calm import check_language_model, check_names, check_shapes
from .loading_calm import CalmPreTrainedModel
from .loss_calm import (
    audio_text_loss,
    classification_loss,
    gather_ids,
    inverse_temperature,
    largest_over_ranks,
    mean_over_ranks,
    num_ranks,
    pair_loss,
    scaled_cosines,
)
from .outputs_calm import CalmAudioModelOutput, CalmForPreTrainingOutput, CalmModelOutput, NearestTokens
from .reading_calm import CalmTranscriptReader, transcript_losses, transcript_scores
from .spectran_calm import CalmAudioModel, masked_mean

WINDOWS_AT_ONCE = 1024  # per pass over a long recording; four minutes of audio in the default geometry
WORDS_AT_ONCE = 1024  # wordpieces of a large batch that acoustic tokens are compared with at once


class CalmModel(CalmPreTrainedModel):
    """SpecTran and a language model that reads its acoustic tokens alongside words.

    Takes audio, text or both; rows of a batch may lack one modality. Before the language model, each row is compacted
    to [real lexical | real acoustic | padding], so that padding cannot affect a result.

    Example:

    ```python
    >>> import torch
    >>> from modeling_calm import CalmConfig, CalmModel

    >>> tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> config = CalmConfig(audio_config={**tiny, "num_context_layers": 1}, text_config=tiny)
    >>> model = CalmModel(config).eval()
    >>> output = model(input_ids=torch.tensor([[5, 6, 7]]), input_features=torch.randn(1, 12, 320))
    >>> output.last_hidden_state.shape, output.audio_embeds.shape
    (torch.Size([1, 5, 32]), torch.Size([1, 32]))

    ```
    """

    def __init__(self, config: CalmConfig):
        super().__init__(config)
        self.audio_model = CalmAudioModel(config.audio_config)
        text_class = AutoModel._model_mapping[type(config.text_config)]
        check_language_model(config.text_config, text_class)
        pooling = "add_pooling_layer" in inspect.signature(text_class.__init__).parameters
        self.text_model = AutoModel.from_config(
            config.text_config, **({"add_pooling_layer": False} if pooling else {})
        )
        width = self.text_model.get_input_embeddings().embedding_dim
        self.audio_projection = nn.Linear(config.audio_config.hidden_size, width)
        self.word_embedding_mean = nn.Buffer(torch.zeros(width))
        self.word_embedding_norm = nn.Buffer(torch.ones(()))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, CalmModel):
            mean, norm = module.vocabulary_statistics()
            init.copy_(module.word_embedding_mean, mean)
            init.copy_(module.word_embedding_norm, norm)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @torch.no_grad()
    def vocabulary_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of the word embeddings (E,), and their root-mean-square norm once centred, a scalar; both float32."""
        words = self.get_input_embeddings().weight.float()
        mean = words.mean(0)
        return mean, (words - mean).square().sum(-1).mean().sqrt()

    @torch.no_grad()
    def describe_vocabulary(self) -> None:
        """Set the origin of the aligned space to the mean of the current word embeddings.

        It is computed once, from the pretrained vocabulary, and stays fixed when the embeddings are trained or
        `resize_token_embeddings` adds or drops some: SpecTran has learned directions relative to it. Call this only
        before SpecTran is trained.
        """
        mean, norm = self.vocabulary_statistics()
        self.word_embedding_mean.copy_(mean)
        self.word_embedding_norm.copy_(norm)

    def embed(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The L2-normalised mean (B, E) of (B, N, E) over real positions, zero for a row without any.

        Computed in float32, since float16 cannot represent the epsilon that prevents division by zero, and returned in
        the dtype of the weights.
        """
        return normalize(masked_mean(values.float(), mask), dim=-1).to(self.word_embedding_mean.dtype)

    def project(self, states: torch.Tensor, tokens_mask: torch.Tensor) -> torch.Tensor:
        """(B, T, hidden) acoustic states to (B, T, E) acoustic tokens, relative to the mean word embedding.

        The contrastive loss sees only directions and lets norms drift, but the language model adds position embeddings
        to its inputs. So a clip's tokens are scaled to the root-mean-square norm of the word embeddings; their
        relative norms and the direction of their mean do not change. Our choice.
        """
        tokens = self.audio_projection(states).masked_fill(~tokens_mask.unsqueeze(-1), 0.0)
        power = masked_mean(tokens.float().square().sum(-1, keepdim=True), tokens_mask)  # (B, 1)
        gain = self.word_embedding_norm.float() * power.clamp(min=1e-12).rsqrt()  # ONNX optimizers drop a `+ 1e-12`
        return (tokens.float() * gain.unsqueeze(1)).to(tokens.dtype)  # a row without audio has a gain beyond float16

    def pool_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The text target (B, E): centred word embeddings averaged over real, non-special tokens, L2-normalised."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.bool()
        for token_id in self.config.special_token_ids or []:
            mask = mask & (input_ids != token_id)
        words = self.get_input_embeddings()(input_ids).detach()  # a target; a `no_grad` block would not export
        return self.embed(words - self.word_embedding_mean, mask)

    @can_return_tuple
    def get_audio_features(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> CalmAudioModelOutput:
        """Embed clips, even hour-long ones, in the aligned space.

        SpecTran reads 1,024 windows at a time, to hold little more than their vectors of a long recording in memory.

        Args:
            input_features: (B, P, D) patches.
            input_features_mask: (B, P), 1 for a patch with a real frame; all by default.
            kwargs: `output_hidden_states` and the like; with any of these, all windows are read at once.

        Returns:
            The output of [`CalmAudioModel`], with the (B, E) L2-normalised embedding as `pooler_output`.
        """
        at_once = None if kwargs or torch.compiler.is_compiling() else WINDOWS_AT_ONCE
        outputs = self.audio_model(
            input_features, input_features_mask, windows_at_once=at_once, return_dict=True, **kwargs
        )
        tokens = self.project(outputs.last_hidden_state, outputs.acoustic_tokens_mask)
        outputs.pooler_output = self.embed(tokens, outputs.acoustic_tokens_mask)
        return outputs

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Embed transcripts in the aligned space, from word embeddings alone; the language model does not run.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L); all by default.
            token_type_ids: (B, L), as tokenizers return them; word embeddings do not depend on them.

        Returns:
            `last_hidden_state` (B, L, E), the centred word embeddings, and `pooler_output` (B, E), L2-normalised.
        """
        if not torch.compiler.is_compiling():
            check_names(self.get_text_features, kwargs)
        words = self.get_input_embeddings()(input_ids) - self.word_embedding_mean
        return BaseModelOutputWithPooling(
            last_hidden_state=words, pooler_output=self.pool_text(input_ids, attention_mask)
        )

    @torch.no_grad()
    def nearest_tokens(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        top_k: int = 5,
        excluded_token_ids: list[int] | None = None,
    ) -> NearestTokens:
        """The wordpieces whose embeddings lie nearest to each acoustic token (cosine, centred).

        Args:
            input_features: (B, P, D) patches.
            input_features_mask: (B, P), 1 for a patch with a real frame; all by default.
            top_k: number of wordpieces per token, k.
            excluded_token_ids: never returned, like `config.special_token_ids`; e.g. unused wordpieces.

        Example:

        ```python
        >>> import torch
        >>> from modeling_calm import CalmConfig, CalmModel

        >>> tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        >>> model = CalmModel(CalmConfig(audio_config={**tiny, "num_context_layers": 1}, text_config=tiny)).eval()
        >>> nearest = model.nearest_tokens(torch.randn(1, 12, 320), top_k=3)
        >>> nearest.token_ids.shape, nearest.time_spans[1]  # in seconds
        (torch.Size([1, 2, 3]), tensor([0.2400, 0.4800]))

        ```
        """
        outputs = self.audio_model(input_features, input_features_mask, windows_at_once=WINDOWS_AT_ONCE)
        tokens = self.project(outputs.last_hidden_state, outputs.acoustic_tokens_mask)  # (B, T, E)
        embeddings = self.get_input_embeddings()
        every_id = torch.arange(len(embeddings.weight), device=tokens.device)
        words = embeddings(every_id) - self.word_embedding_mean  # (V, E); called: its weight may be offloaded
        words = normalize(words.float(), dim=-1)
        excluded = [*(self.config.special_token_ids or []), *(excluded_token_ids or [])]
        nearest = []
        for some in normalize(tokens.float(), dim=-1).split(WINDOWS_AT_ONCE, dim=1):
            cosines = some @ words.T
            cosines[..., excluded] = -torch.inf
            nearest.append(cosines.topk(top_k, dim=-1))
        similarities, token_ids = (torch.cat(parts, dim=1) for parts in zip(*nearest, strict=True))
        edges = torch.arange(tokens.shape[1] + 1, device=tokens.device) * self.config.audio_config.seconds_per_token
        return NearestTokens(
            token_ids=token_ids,
            similarities=similarities,
            time_spans=torch.stack((edges[:-1], edges[1:]), dim=-1),
            acoustic_tokens_mask=outputs.acoustic_tokens_mask,
        )

    def max_tokens(self) -> int | None:
        """Lexical and acoustic tokens that fit in the language model's position embeddings; `None` if it has none."""
        for name, module in self.text_model.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                # RoBERTa and its relatives number positions from after the padding index.
                return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        return None

    def fuse(
        self,
        words: torch.Tensor,
        words_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        tokens: torch.Tensor,
        tokens_mask: torch.Tensor,
        first_row: int = 0,
        **kwargs: Any,
    ) -> ModelOutput:
        """Run the language model over the words and the acoustic tokens of each row.

        Args:
            words: (B, L, E) word embeddings.
            words_mask: (B, L) bool.
            token_type_ids: (B, L) long or `None`.
            tokens: (B, T, E) acoustic tokens, centred.
            tokens_mask: (B, T) bool.
            first_row: index of the first row in the whole batch, for error messages.

        Returns:
            The language model's output, with `last_hidden_state` (B, L + T, H) back in input order.

        Raises:
            ValueError: if a row has neither text nor audio, or more tokens than the language model has positions.
        """
        embeds = torch.cat((words, (tokens + self.word_embedding_mean).to(words.dtype)), dim=1)  # (B, N, E)
        mask = torch.cat((words_mask, tokens_mask), dim=1)  # (B, N)
        length = mask.shape[1]
        if not torch.compiler.is_compiling():
            length = self._check_rows(mask, words_mask, first_row)
        real = mask.long()
        count = real.sum(-1, keepdim=True)
        place = torch.where(mask, real.cumsum(-1) - 1, count + (1 - real).cumsum(-1) - 1)  # (B, N), a permutation
        embeds = embeds.masked_fill(~mask.unsqueeze(-1), 0.0)
        embeds = torch.zeros_like(embeds).scatter(1, place.unsqueeze(-1).expand_as(embeds), embeds)[:, :length]
        if getattr(self.config.text_config, "type_vocab_size", 0) > 1 and self._takes_token_types():
            types = torch.zeros_like(words_mask, dtype=torch.long) if token_type_ids is None else token_type_ids
            types = torch.cat((types * words_mask, torch.zeros_like(tokens_mask, dtype=torch.long)), dim=1)
            kwargs["token_type_ids"] = torch.zeros_like(types).scatter(1, place, types)[:, :length]
        attention_mask = (torch.arange(length, device=mask.device) < count).long()
        outputs = self.text_model(inputs_embeds=embeds, attention_mask=attention_mask, return_dict=True, **kwargs)
        states = outputs.last_hidden_state
        gathered = states.gather(1, place.clamp(max=length - 1).unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        outputs.last_hidden_state = gathered.masked_fill(~mask.unsqueeze(-1), 0.0)
        return outputs

    def _takes_token_types(self) -> bool:
        return "token_type_ids" in inspect.signature(self.text_model.forward).parameters

    def _check_rows(self, mask: torch.Tensor, words_mask: torch.Tensor, first_row: int) -> int:
        """Reject empty and too long rows, and return the length of the compacted sequence."""
        counts = mask.sum(-1)
        empty = ((counts == 0).nonzero().flatten() + first_row).tolist()
        if empty:
            raise ValueError(f"Rows {empty} of the batch have neither text nor audio. Leave them out.")
        longest, limit = int(counts.max()), self.max_tokens()
        if limit is not None and longest > limit:
            row = int(counts.argmax())
            room = limit - int(words_mask[row].sum())
            seconds = self.config.audio_config.seconds_per_token
            raise ValueError(
                f"Row {first_row + row} has {longest} lexical and acoustic tokens, and this language model has {limit}"
                f" positions: beside its text {max(room, 0) * seconds:.1f} s of audio fit. Cut the recording into"
                " chunks (`chunk_length_s` of the pipeline and of examples/evaluate.py), pretrain with a larger"
                " `token_frames` in the audio configuration, or use a language model with more positions."
            )
        return longest

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        input_features_mask: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CalmModelOutput:
        """Run the language model over words, acoustic tokens or both.

        Args:
            input_ids: (B, L).
            input_features: (B, P, D) patches, P a multiple of S.
            attention_mask: (B, L), an all-zero row for a row without text; all ones by default.
            token_type_ids: (B, L).
            input_features_mask: (B, P), an all-zero row for a row without audio; all ones by default.

        Raises:
            TypeError: for an unknown input.
            ValueError: if a row, or the call, has neither text nor audio; if the numbers of rows or the shapes of text
                and mask differ; if a row has more tokens than the language model has positions; if the patches do not
                fit the model. A compiled or exported graph cannot inspect its rows, and rejects none.
        """
        if input_ids is None and input_features is None:
            raise ValueError("Give `input_ids`, `input_features` or both.")
        both = input_ids is not None and input_features is not None
        if both and not torch.compiler.is_compiling() and len(input_ids) != len(input_features):
            raise ValueError(
                f"There are {len(input_features)} clips and {len(input_ids)} texts; give one text a clip. To score"
                " every text against every clip use `CalmForPreTraining`."
            )
        like = input_ids if input_ids is not None else input_features
        if input_ids is None:
            input_ids = torch.zeros(like.shape[0], 0, dtype=torch.long, device=like.device)
        if not torch.compiler.is_compiling():
            check_names(self.forward, kwargs)
            check_shapes(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        kwargs.pop("inputs_embeds", None)  # adapter libraries pass one that is None
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None and getattr(self.config, name):  # the language model has its own configuration
                kwargs[name] = True
        words_mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        words = self.get_input_embeddings()(input_ids)  # (B, L, E)
        if input_features is None:
            tokens, tokens_mask = words[:, :0], words_mask[:, :0]
            pooled_audio = words.new_zeros(words.shape[0], self.config.audio_config.pooler_size)
        else:
            audio = self.audio_model(input_features, input_features_mask, return_dict=True)
            tokens_mask, pooled_audio = audio.acoustic_tokens_mask, audio.pooler_output
            tokens = self.project(audio.last_hidden_state, tokens_mask)
        outputs = self.fuse(words, words_mask, token_type_ids, tokens, tokens_mask, **kwargs)
        return CalmModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=masked_mean(outputs.last_hidden_state, torch.cat((words_mask, tokens_mask), dim=1)),
            acoustic_tokens=tokens,
            acoustic_tokens_mask=tokens_mask,
            audio_pooler_output=pooled_audio,
            audio_embeds=self.embed(tokens, tokens_mask),
            text_embeds=self.pool_text(input_ids, words_mask),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CalmMaskedLanguageHead(nn.Module):
    """(..., H) states of the language model to (..., V) logits over its vocabulary, via width E."""

    def __init__(self, config: CalmConfig, width: int, vocab_size: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation_fn = nn.GELU()
        self.layernorm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layernorm(self.activation_fn(self.dense(states))))


class CalmForPreTraining(CalmPreTrainedModel):
    """[`CalmModel`] with the objectives of contrastive audio-language pretraining.

    A training stage is defined by the loss weights in the configuration and the frozen modules; with both masked terms
    at 0, the language model does not run. A step is a function of its batch: the collator draws all random masks.

    Example:

    ```python
    >>> import torch
    >>> from modeling_calm import CalmConfig, CalmForPreTraining

    >>> tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> config = CalmConfig(audio_config={**tiny, "num_context_layers": 1}, text_config=tiny)
    >>> model = CalmForPreTraining(config)
    >>> words, patches = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.randn(2, 12, 320)
    >>> output = model(words, patches, pair_indices=torch.tensor([0, 0]))  # no `labels`, no `mask_time_indices`
    >>> [name for name in output if name.endswith("loss")]
    ['loss', 'audio_text_loss', 'audio_audio_loss']
    >>> output.logits_per_audio.shape
    torch.Size([2, 2])

    ```
    """

    accepts_loss_kwargs = False  # the terms divide by their own counts; Trainer would divide again

    def __init__(self, config: CalmConfig):
        super().__init__(config)
        self.calm = CalmModel(config)
        embeddings = self.get_input_embeddings()
        self.logit_scale = nn.Parameter(torch.empty(1))  # FSDP2 cannot shard a 0-dimensional parameter
        self.lm_head = CalmMaskedLanguageHead(config, embeddings.embedding_dim, embeddings.num_embeddings)
        self.acoustic_head = nn.Linear(config.hidden_size, embeddings.embedding_dim)
        self.reader = CalmTranscriptReader(embeddings.embedding_dim)
        path = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.decoder.weight": f"{path}.weight"}
        if config.tie_word_embeddings:
            self._keys_to_ignore_on_save = ["lm_head.decoder.weight"]
        self.post_init()
        self.freeze_idle()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, (CalmForPreTraining, CalmTranscriptReader)):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        if isinstance(module, CalmTranscriptReader):
            init.normal_(module.blank_embedding, std=self.config.initializer_range)

    def freeze_idle(self) -> None:
        """Freeze the reader if its weight is 0: unused parameters break distributed training.

        It is specific to this package, so users would not know to freeze it. Other unused parts, such as the language
        model with both masked terms at 0, are for the training script to freeze, as `examples/pretrain.py` does.
        """
        self.reader.requires_grad_(bool(self.config.transcript_loss_weight))

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head.decoder = value

    def _transcripts(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L) unmasked token ids, and the (B, L) bool mask of real ones."""
        ids, labels, mask = batch["input_ids"], batch.get("labels"), batch.get("attention_mask")
        ids = ids if labels is None else torch.where(labels != -100, labels, ids)
        return ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()

    def _pieces(self, batch: dict) -> torch.Tensor:
        """(B, L) wordpieces of the transcripts, -1 for padding and special tokens."""
        ids, mask = self._transcripts(batch)
        special = torch.tensor(self.config.special_token_ids or [-1], device=ids.device)
        return ids.masked_fill(~mask | torch.isin(ids, special), -1)

    def _vocabulary(self, batch: dict, gather: bool) -> torch.Tensor | None:
        """(K,) distinct wordpieces of a batch's transcripts, of all ranks if `gather`, for the reader."""
        if not self.config.transcript_loss_weight:
            return None
        ids = self._pieces(batch)
        ids = gather_ids(ids) if gather else ids
        return ids[ids >= 0].unique()

    def _directions(self, ids: torch.Tensor) -> torch.Tensor:
        """(..., E) target directions of acoustic tokens that say the wordpieces (...)."""
        words = self.get_input_embeddings()(ids).detach() - self.calm.word_embedding_mean  # a target
        return normalize(words.float(), dim=-1)

    def _encode(self, batch: dict, word_ids: torch.Tensor | None, first_row: int = 0) -> dict:
        """Compute all that does not depend on other clips, for a batch or for its chunk from row `first_row` on.

        Returns small tensors, so that a chunk can be recomputed; the vectors to contrast are L2-normalised.
        """
        config, audio_model = self.config, self.calm.audio_model
        input_ids, labels = batch["input_ids"], batch.get("labels")
        unmasked_ids, words_mask = self._transcripts(batch)
        windows, tokens_mask = audio_model.encode_windows(batch["input_features"], batch.get("input_features_mask"))
        tokens = self.calm.project(audio_model.add_context(windows, tokens_mask), tokens_mask)  # (B, T, E)
        encoded = {
            "audio_embeds": self.calm.embed(tokens, tokens_mask),
            "text_embeds": self.calm.pool_text(unmasked_ids, words_mask),
            "unmasked_ids": unmasked_ids.masked_fill(~words_mask, -1),
            "has_audio": tokens_mask.any(-1),
            "has_text": (self._pieces(batch) >= 0).any(-1),  # special tokens alone have no direction
        }
        if word_ids is not None and len(tokens) == len(input_ids):
            pieces = self._pieces(batch)
            # As many tiles on every rank, see `_encode_in_chunks`; in evaluation each rank has its own vocabulary.
            tile_size = WORDS_AT_ONCE if config.contrastive_chunk_size and self.training else None
            said = self.reader(tokens, tokens_mask, word_ids, self._directions, pieces, tile_size)
            losses, fits = transcript_losses(said, tokens_mask.sum(-1), pieces)
            encoded["transcript_total"], encoded["transcript_count"] = losses.sum().view(1), fits.sum().view(1)
        if config.audio_audio_loss_weight and batch.get("pair_indices") is not None:
            rows = (batch["pair_indices"] >= 0).nonzero().flatten()
            first = batch["pair_indices"][rows]
            encoded["window"] = normalize(windows[rows, first].float(), dim=-1)
            encoded["neighbour"] = normalize(windows[rows, first + 1].float(), dim=-1)
        masked = batch.get("mask_time_indices") if config.masked_acoustic_loss_weight else None
        labels = labels if config.masked_language_loss_weight else None
        if masked is not None or labels is not None:
            visible = tokens
            if masked is not None:
                masked = masked.bool() & tokens_mask
                visible = self.calm.project(audio_model.add_context(windows, tokens_mask, masked), tokens_mask)
            words = self.get_input_embeddings()(input_ids)
            types = batch.get("token_type_ids")
            states = self.calm.fuse(words, words_mask, types, visible, tokens_mask, first_row).last_hidden_state
            if labels is not None:
                places = labels != -100
                logits = self.lm_head(states[:, : input_ids.shape[1]][places]).float()
                encoded["masked_language_total"] = cross_entropy(logits, labels[places], reduction="sum").view(1)
                encoded["masked_language_count"] = places.sum().view(1)
            if masked is not None:
                predicted = self.acoustic_head(states[:, input_ids.shape[1] :][masked])
                encoded["predicted"] = normalize(predicted.float(), dim=-1)
                encoded["true"] = normalize(tokens[masked].detach().float(), dim=-1)
        return encoded

    def _encode_in_chunks(self, batch: dict) -> dict:
        """Run `_encode` on chunks of `contrastive_chunk_size` clips, recomputing activations in the backward pass."""
        size, clips = self.config.contrastive_chunk_size, len(batch["input_ids"])
        word_ids = self._vocabulary(batch, gather=self.training)
        if size is None or not self.training:
            return self._encode(batch, word_ids)
        # As many chunks on every rank: gathering sharded layers is a collective operation.
        number = largest_over_ranks(-(-clips // size), batch["input_ids"].device)
        if number == 1:
            return self._encode(batch, word_ids)
        if clips < number:
            raise ValueError(
                f"This rank has {clips} clips, and another {number} chunks of {size}. Give every rank as many clips."
            )
        edges = [clips * i // number for i in range(number + 1)]
        encoded = []
        for first, end in zip(edges[:-1], edges[1:], strict=True):
            chunk = {key: value[first:end] for key, value in batch.items()}
            encoded.append(checkpoint(self._encode, chunk, word_ids, first, use_reentrant=False))
        return {key: torch.cat([chunk[key] for chunk in encoded]) for key in encoded[0]}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        input_features: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        input_features_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        mask_time_indices: torch.BoolTensor | None = None,
        pair_indices: torch.LongTensor | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> CalmForPreTrainingOutput:
        """The loss of a pretraining batch.

        Args:
            input_ids: (B, L), with [MASK] where `labels` is set. In evaluation the number of rows may differ from that
                of the clips, as for zero-shot candidates: then there are logits, but no loss.
            input_features: (B, P, D) patches, P a multiple of S.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            input_features_mask: (B, P).
            labels: (B, L), targets of masked language modelling, -100 elsewhere.
            mask_time_indices: (B, T) bool, masked acoustic tokens.
            pair_indices: (B,), t of the neighbouring windows (t, t + 1), -1 for none.
            return_loss: whether to compute the loss terms.
            kwargs: `output_hidden_states` and the like are accepted without effect; [`CalmModel`] records states.

        Raises:
            TypeError: for an unknown input.
            ValueError: for a training batch of one clip, which leaves the audio-text loss without negatives, or one
                whose inputs differ in their number of rows.
        """
        given = {
            "input_ids": input_ids, "input_features": input_features, "attention_mask": attention_mask,
            "token_type_ids": token_type_ids, "input_features_mask": input_features_mask, "labels": labels,
            "mask_time_indices": mask_time_indices, "pair_indices": pair_indices,
        }  # fmt: skip
        if not torch.compiler.is_compiling():
            check_names(self.forward, kwargs)
            check_shapes(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        given = {name: value for name, value in given.items() if value is not None}
        rows = {name: len(value) for name, value in given.items()}
        # Each compared with the first: a set of the numbers would recompile for each of them.
        if self.training and any(number != len(input_ids) for number in rows.values()):
            raise ValueError(f"Training pairs the rows of its inputs, and their numbers differ: {rows}.")
        encoded = self._encode_in_chunks(given)
        audio, text = encoded["audio_embeds"], encoded["text_embeds"]
        scale = inverse_temperature(self.logit_scale)
        loss, terms = None, {}
        if return_loss and len(audio) == len(text):
            terms = self._losses(encoded, scale)
            weighted = (getattr(self.config, f"{name}_weight") * term for name, term in terms.items())
            loss = sum(weighted, start=scale.new_zeros(()))  # 0 without terms, e.g. evaluation without contrast
        whole = self.config.contrastive_chunk_size is None or not self.training
        logits = scaled_cosines(audio, text, scale) if whole else None
        return CalmForPreTrainingOutput(
            loss=loss,
            **terms,
            logits_per_audio=logits,
            logits_per_text=None if logits is None else logits.T.contiguous(),  # FSDP2 warns about views
            audio_embeds=audio,
            text_embeds=text,
        )

    @torch.no_grad()
    def score_transcripts(
        self,
        input_ids: torch.LongTensor,
        input_features: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        input_features_mask: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """Score how well each of N texts can be read from each of B clips, wordpiece by wordpiece, in order.

        More precise than the cosine of two embeddings, but more expensive: every text is aligned with every clip. In a
        large collection, retrieve candidates by embeddings and rerank them by these scores.

        Args:
            input_ids: (N, L) texts; the reader's vocabulary is all wordpieces that occur in them.
            input_features: (B, P, D) patches, P a multiple of S.
            attention_mask: (N, L).
            input_features_mask: (B, P).

        Returns:
            (B, N) mean log-probability per wordpiece; minus infinity where a clip has fewer acoustic tokens than the
            text needs, one per wordpiece and one between two equal neighbours, or the text has no wordpiece.

        Raises:
            ValueError: if the model was not trained to read (`transcript_loss_weight` 0).
        """
        if not self.config.transcript_loss_weight:
            raise ValueError("This model was not trained to read transcripts: its `transcript_loss_weight` is 0.")
        texts = {"input_ids": input_ids, "attention_mask": attention_mask}
        word_ids = self._vocabulary(texts, gather=False)
        audio = self.calm.audio_model(input_features, input_features_mask, windows_at_once=WINDOWS_AT_ONCE)
        mask = audio.acoustic_tokens_mask
        said = self.reader(self.calm.project(audio.last_hidden_state, mask), mask, word_ids, self._directions)
        return transcript_scores(said, mask.sum(-1), self._pieces(texts), word_ids)

    def _losses(self, encoded: dict, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss terms whose weight is not 0 and whose masks were given."""
        options = {"scale": scale, "tile_size": self.config.contrastive_chunk_size, "gather": self.training}
        terms = {}
        if self.config.audio_text_loss_weight:
            paired = encoded["has_audio"] & encoded["has_text"]
            ids = encoded["unmasked_ids"][paired]
            if self.training and len(ids) < 2 and num_ranks() == 1:
                raise ValueError(
                    "The contrastive loss needs at least two clips in a training batch: one has no negatives. Raise"
                    " `per_device_train_batch_size`."
                )
            terms["audio_text_loss"] = audio_text_loss(
                encoded["audio_embeds"][paired], encoded["text_embeds"][paired], ids, **options
            )
        if "window" in encoded:
            terms["audio_audio_loss"] = pair_loss(encoded["window"], encoded["neighbour"], **options)
        for name in ("transcript", "masked_language"):
            if f"{name}_total" in encoded:
                total, count = encoded[f"{name}_total"].sum(), encoded[f"{name}_count"].sum()
                terms[f"{name}_loss"] = mean_over_ranks(total, count) if self.training else total / count.clamp(1)
        if "predicted" in encoded:
            terms["masked_acoustic_loss"] = pair_loss(encoded["predicted"], encoded["true"], **options)
        return terms


class CalmForSequenceClassification(CalmPreTrainedModel):
    """[`CalmModel`] with a linear head for an utterance's emotion or other labels, or its valence and arousal.

    The head sees the language model's pooled states and the mean and standard deviation of SpecTran's, so that what a
    voice conveys beyond words need not pass through the word embedding space. Our choice. Single-label, multi-label or
    regression by `config.problem_type`; takes audio, text or both.

    Example:

    ```python
    >>> import torch
    >>> from modeling_calm import CalmConfig, CalmForSequenceClassification

    >>> tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> config = CalmConfig(audio_config={**tiny, "num_context_layers": 1}, text_config=tiny, num_labels=4)
    >>> model = CalmForSequenceClassification(config).eval()
    >>> model(input_features=torch.randn(2, 12, 320)).logits.shape  # the voice alone
    torch.Size([2, 4])
    >>> output = model(torch.tensor([[5, 6, 7]]), torch.randn(1, 12, 320), labels=torch.tensor([3]))
    >>> output.loss.shape
    torch.Size([])

    ```
    """

    accepts_loss_kwargs = False  # the loss is a mean already; Trainer would divide it again

    def __init__(self, config: CalmConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.calm = CalmModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size + config.audio_config.pooler_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        input_features_mask: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Logits of utterances, and the loss if labels are given.

        Args:
            input_ids, input_features, attention_mask, token_type_ids, input_features_mask: see [`CalmModel`].
            labels: (B,) classes, or (B, K) multi-label or regression targets.
        """
        if not torch.compiler.is_compiling():
            check_names(self.forward, kwargs)
        outputs = self.calm(
            input_ids=input_ids,
            input_features=input_features,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            input_features_mask=input_features_mask,
            return_dict=True,
            **kwargs,
        )
        pooled = torch.cat((outputs.pooler_output, outputs.audio_pooler_output), dim=-1)  # (B, H + 4 hidden)
        logits = self.classifier(self.dropout(pooled))
        return SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "CalmAudioModel",
    "CalmForPreTraining",
    "CalmForSequenceClassification",
    "CalmModel",
    "CalmPreTrainedModel",
]
